//! Which names this server is called by. A page of any site can send requests to a server of its reader's
//! machine under a name that its own DNS answers with that address (DNS rebinding); the browser then says that
//! name in `Host` and `Origin`.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::Response;

use super::reply;
use super::router;

/// The names that `Host` and `Origin` may have, beside IP addresses and `localhost`.
#[derive(Debug, Clone, Default)]
pub struct Hosts(Arc<[String]>);

impl Hosts {
    /// These names, which have no port.
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        Self(names.into_iter().map(|name| name.to_ascii_lowercase()).collect())
    }

    /// Whether a name with or without a port is one of them.
    fn has(&self, authority: &str) -> bool {
        let (host, is_bracketed) = match authority.strip_prefix('[') {
            Some(rest) => (rest.split(']').next().unwrap_or_default(), true),
            None => (authority.split(':').next().unwrap_or_default(), false),
        };
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let is_address = match host.parse() {
            Ok(IpAddr::V6(_)) => is_bracketed,
            Ok(IpAddr::V4(_)) => true,
            Err(_) => false,
        };
        is_address || host == "localhost" || host.ends_with(".localhost") || self.0.contains(&host)
    }

    /// The first name of a request that is none of them.
    fn foreign(&self, uri: &Uri, headers: &HeaderMap) -> Option<(&'static str, String)> {
        let text = |name| {
            let values = headers.get_all(name).iter();
            values.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let hosts = text(header::HOST).chain(uri.authority().map(ToString::to_string));
        let mut hosts = hosts.map(|host| ("Host", host));
        let origins = text(header::ORIGIN).map(|origin| ("Origin", origin));
        hosts.find(|(_, host)| !self.has(host)).or_else(|| {
            let mut origins = origins;
            origins.find(|(_, origin)| match origin.split_once("://") {
                Some(("http" | "https", authority)) => !self.has(authority),
                _ => true,
            })
        })
    }
}

/// Refuses what is called by another name, but for probes: they show nothing.
pub async fn check(State(hosts): State<Hosts>, request: Request, next: Next) -> Response {
    if router::is_health(request.uri().path()) {
        return next.run(request).await;
    }
    match hosts.foreign(request.uri(), request.headers()) {
        None => next.run(request).await,
        Some((header, name)) => {
            let name: String = name.chars().take(256).collect();
            let message = format!(
                "{header} names {name:?}, which is not a name of this server; if it is one, add its host to ALLOWED_HOSTS"
            );
            reply::refused(request.headers(), StatusCode::MISDIRECTED_REQUEST, message)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_localhost_and_what_is_named_are_ours() {
        let hosts = Hosts::new(["Orders.example.com".to_owned()]);
        for (name, ours) in [
            ("localhost", true),
            ("LOCALHOST:4000", true),
            ("app.localhost:1", true),
            ("127.0.0.1", true),
            ("10.1.2.3:80", true),
            ("[::1]:4000", true),
            ("[::1]", true),
            ("orders.example.com", true),
            ("orders.example.com.:443", true),
            ("ORDERS.example.com:443", true),
            ("evil.example.com", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("notlocalhost", false),
            ("::1", false),
            ("", false),
        ] {
            assert_eq!(hosts.has(name), ours, "{name}");
        }
    }

    #[test]
    fn an_origin_is_a_page_of_ours() {
        let hosts = Hosts::default();
        for (origin, ours) in [
            ("http://localhost:3000", true),
            ("https://127.0.0.1", true),
            ("null", false),
            ("file://", false),
            ("http://evil.example", false),
            ("http://evil.example://localhost", false),
        ] {
            let headers = HeaderMap::from_iter([(header::ORIGIN, origin.parse().unwrap())]);
            let foreign = hosts.foreign(&Uri::from_static("/graphql"), &headers);
            assert_eq!(foreign.is_none(), ours, "{origin}");
        }
    }
}
