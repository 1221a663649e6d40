//! Which subjects the stream holds, without reading their messages.

use serde_json::json;

use super::jetstream::{ApiError, ask_long};
use super::link::Link;
use super::names::{self, ALL_DEFINITIONS, STREAM};
use crate::domain::WorkflowId;

/// Calls `each` with every subject that matches `filter` and how many messages it has.
pub async fn visit(
    link: &Link,
    filter: &str,
    mut each: impl FnMut(&str, u64),
) -> Result<(), ApiError> {
    let mut pages = Pages::new();
    while pages.more() {
        for (subject, count) in page(link, filter, &mut pages).await? {
            each(&subject, count);
        }
    }
    Ok(())
}

/// The next page of them, in their order, without those of the pages before.
pub async fn page(
    link: &Link,
    filter: &str,
    pages: &mut Pages,
) -> Result<Vec<(String, u64)>, ApiError> {
    let request = json!({ "subjects_filter": filter, "offset": pages.offset });
    let info = ask_long(link, &format!("STREAM.INFO.{STREAM}"), &request).await?;
    let subjects = info["state"]["subjects"].as_object();
    let subjects = subjects.into_iter().flatten();
    let subjects = subjects.map(|(name, count)| (name.clone(), count.as_u64().unwrap_or(0)));
    let total = info["total"].as_u64().and_then(|total| usize::try_from(total).ok());
    Ok(pages.on(subjects.collect(), total.unwrap_or(0)))
}

/// A walk through sorted pages of at most 100,000 by their offset, while names come and go: one that
/// goes before the offset moves all others down. So each page begins before the end of the one before,
/// and where it does not, it is asked for again from further up.
#[derive(Debug)]
pub struct Pages {
    offset: usize,
    /// The last name that was given.
    last: Option<String>,
    overlap: usize,
    ended: bool,
}

impl Pages {
    pub fn new() -> Self {
        Self { offset: 0, last: None, overlap: 1, ended: false }
    }

    /// Whether there may be more.
    pub fn more(&self) -> bool {
        !self.ended
    }

    /// Takes a page, of `total` names in all. Gives what is new in it.
    fn on(&mut self, mut page: Vec<(String, u64)>, total: usize) -> Vec<(String, u64)> {
        page.sort_unstable();
        if let (Some(last), offset @ 1..) = (&self.last, self.offset)
            && page.first().is_none_or(|(first, _)| first > last)
        {
            self.overlap *= 2;
            self.offset = offset.saturating_sub(self.overlap);
            return Vec::new();
        }
        let next = self.offset + page.len();
        self.ended = page.is_empty() || next >= total;
        self.offset = next.saturating_sub(self.overlap);
        if let Some(last) = &self.last {
            page.retain(|(name, _)| name > last);
        }
        if let Some((name, _)) = page.last() {
            self.last = Some(name.clone());
        }
        page
    }
}

/// The ids of all workflows, in their order.
pub async fn workflows(link: &Link) -> Result<Vec<WorkflowId>, ApiError> {
    let mut workflows = Vec::new();
    let each = |subject: &str, _| workflows.extend(names::parse_definition(subject));
    visit(link, ALL_DEFINITIONS, each).await?;
    workflows.sort_unstable();
    workflows.dedup();
    Ok(workflows)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_name_that_stays_is_left_out_while_others_come_and_go() {
        const PAGE: usize = 50;
        let name = |n: usize| format!("{n:04}");
        let mut seed = 7_u64;
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            usize::try_from(seed >> 33).unwrap() % below
        };
        for going in [0, 1, 5, 40, 120] {
            let mut there: BTreeSet<String> = (0..1_000).map(name).collect();
            let stays = |n: &String| n.parse::<usize>().unwrap() % 3 == 0;
            let (mut pages, mut seen, mut asked) = (Pages::new(), Vec::new(), 0);
            while pages.more() {
                let page = there.iter().skip(pages.offset).take(PAGE);
                let page = page.map(|name| (name.clone(), 1)).collect();
                seen.extend(pages.on(page, there.len()).into_iter().map(|(name, _)| name));
                for _ in 0..going {
                    let other = name(random(1_000));
                    if !stays(&other) && !there.remove(&other) {
                        there.insert(other);
                    }
                }
                asked += 1;
                assert!(asked < 1_000, "it ends");
            }
            assert!(seen.is_sorted_by(|a, b| a < b), "each once");
            let stayed: Vec<_> = seen.iter().filter(|name| stays(name)).cloned().collect();
            assert_eq!(stayed, (0..1_000).map(name).filter(stays).collect::<Vec<_>>(), "{going}");
        }
    }
}
