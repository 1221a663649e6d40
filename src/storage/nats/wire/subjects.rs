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
    let mut offset = Some(0);
    while let Some(from) = offset {
        offset = page(link, filter, from, &mut each).await?;
    }
    Ok(())
}

/// The same for one page of them, of at most 100,000. Gives where the next one begins.
pub async fn page(
    link: &Link,
    filter: &str,
    offset: usize,
    mut each: impl FnMut(&str, u64),
) -> Result<Option<usize>, ApiError> {
    let request = json!({ "subjects_filter": filter, "offset": offset });
    let info = ask_long(link, &format!("STREAM.INFO.{STREAM}"), &request).await?;
    let Some(subjects) = info["state"]["subjects"].as_object() else { return Ok(None) };
    for (subject, count) in subjects {
        each(subject, count.as_u64().unwrap_or(0));
    }
    let next = offset + subjects.len();
    let total = info["total"].as_u64().and_then(|total| usize::try_from(total).ok());
    let ended = subjects.is_empty() || total.is_none_or(|total| next >= total);
    Ok((!ended).then_some(next))
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
