//! A nats-server that knows its users by signed credentials alone, as hosted ones do.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};

use crate::nats_server::{NatsServer, configured};
use crate::support::Server;

/// A claim signed by `issuer`, as nats-server reads it (architecture decision record 14 of NATS).
fn signed(issuer: &KeyPair, subject: &KeyPair, name: &str, nats: Value) -> String {
    let encode = |json: Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let head = encode(json!({ "typ": "JWT", "alg": "ed25519-nkey" }));
    let claims = encode(json!({
        "jti": name, "iat": 1_700_000_000, "iss": issuer.public_key(), "sub": subject.public_key(), "name": name,
        "nats": nats,
    }));
    let text = format!("{head}.{claims}");
    let signature = URL_SAFE_NO_PAD.encode(issuer.sign(text.as_bytes()).unwrap());
    format!("{text}.{signature}")
}

fn account(operator: &KeyPair, account: &KeyPair, name: &str, storage: i64) -> String {
    let limits = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
        "leaf": -1, "mem_storage": storage, "disk_storage": storage, "streams": storage, "consumer": storage,
    });
    let nats = json!({ "type": "account", "version": 2, "limits": limits });
    signed(operator, account, name, nats)
}

fn credentials(account: &KeyPair) -> String {
    let user = KeyPair::new_user();
    let nats = json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 });
    let claims = signed(account, &user, "engine", nats);
    let seed = user.seed().unwrap();
    format!(
        "-----BEGIN NATS USER JWT-----\n{claims}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
}

#[test]
fn a_file_of_credentials_opens_the_account_that_signed_it() {
    let (operator, system, ours) =
        (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_account());
    let nats = json!({ "type": "operator", "version": 2, "system_account": system.public_key() });
    let text = format!(
        "operator: {}\nresolver: MEMORY\nsystem_account: {}\nresolver_preload {{\n  {}: {}\n  {}: {}\n}}\n",
        signed(&operator, &operator, "operator", nats),
        system.public_key(),
        system.public_key(),
        account(&operator, &system, "SYS", 0),
        ours.public_key(),
        account(&operator, &ours, "OURS", -1),
    );
    let Some((nats, folder)) = configured(&text) else { return };
    let ready = |name: &str, text: String, nats: &NatsServer| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        let server = Server::start(&[
            ("STORAGE_BACKEND", "nats"),
            ("NATS_URL", &nats.url()),
            ("NATS_CREDENTIALS_FILE", path.to_str().unwrap()),
        ]);
        (server.client().get("/health/ready").0, server.stop().1)
    };
    let (status, log) = ready("right.creds", credentials(&ours), &nats);
    assert_eq!(status, 200, "{log}");
    // An account that the operator does not know.
    let (status, log) = ready("wrong.creds", credentials(&KeyPair::new_account()), &nats);
    assert_eq!(status, 503, "{log}");
    assert!(log.to_lowercase().contains("authorization"), "{log}");
    assert!(!log.contains("BEGIN") && !log.contains("SU"), "no secret is logged: {log}");
}
