//! Names that become subjects, keys and paths. Parsing is the only way to make one.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::limits::ID_BYTES_MAX;

/// A string that is not the name or id that it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} is not a {what}: {rule}", Shown(.value))]
pub struct InvalidId {
    /// What it should have been, such as `place id`.
    pub what: &'static str,
    /// The string as it came.
    pub value: String,
    /// The rule that it breaks.
    pub rule: &'static str,
}

/// A client's string as an error message shows it: quoted, escaped, and cut to a readable length.
pub struct Shown<'a>(pub &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const CHARS_MAX: usize = 64;
        match self.0.char_indices().nth(CHARS_MAX) {
            None => write!(f, "{:?}", self.0),
            Some((end, _)) => write!(f, "{:?}… ({} bytes)", &self.0[..end], self.0.len()),
        }
    }
}

/// The rule of every name: it is one token of a NATS subject and safe in a path or a query.
pub const NAME_RULE: &str = "use 1 to 128 of A-Z a-z 0-9 _ -, beginning with a letter or a digit";

fn is_name(value: &str) -> bool {
    let bytes = value.as_bytes();
    bytes.len() <= ID_BYTES_MAX
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks `value` against the rule of names.
            pub fn parse(value: impl Into<String>) -> Result<Self, InvalidId> {
                let value = value.into();
                if is_name(&value) {
                    Ok(Self(value))
                } else {
                    Err(InvalidId { what: $what, value, rule: NAME_RULE })
                }
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(value: String) -> Result<Self, InvalidId> {
                Self::parse(value)
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;
            fn from_str(value: &str) -> Result<Self, InvalidId> {
                Self::parse(value)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl std::ops::Deref for $name {
            type Target = str;
            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// The id of a workflow: 1 to 128 of `A-Z a-z 0-9 _ -`, beginning with a letter or a digit.
    WorkflowId,
    "workflow id"
);
name_type!(
    /// The name of a place within its workflow; the same rule as for [`WorkflowId`].
    PlaceId,
    "place id"
);
name_type!(
    /// The name of a transition within its workflow; the same rule as for [`WorkflowId`].
    TransitionId,
    "transition id"
);

/// Parses a token id: a UUID as 36 characters, of any version and in either case.
pub fn parse_token_id(value: &str) -> Result<Uuid, InvalidId> {
    let parsed = if value.len() == 36 { Uuid::try_parse(value).ok() } else { None };
    parsed.ok_or_else(|| InvalidId {
        what: "token id",
        value: value.to_owned(),
        rule: "use a UUID such as 01890a5d-ac96-774b-bcce-b302099a8057",
    })
}

/// Makes the id of a new token: a UUIDv7 whose last 24 bits are [`workflow_hash`].
///
/// A store that finds tokens by workflow can so tell from the id alone where to look. 50 random
/// bits remain for each millisecond and workflow.
pub fn new_token_id(workflow: &WorkflowId, at: DateTime<Utc>, random: [u8; 10]) -> Uuid {
    let millis = u64::try_from(at.timestamp_millis()).unwrap_or(0);
    let mut id =
        uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid().into_bytes();
    id[13..].copy_from_slice(&workflow_hash(workflow).to_be_bytes()[1..]);
    Uuid::from_bytes(id)
}

/// The 24-bit hash of a workflow id that ends the ids of its tokens.
///
/// FNV-1a with 32 bits, folded by exclusive or (Fowler, Noll, Vo; RFC 9923). Stored ids depend on
/// it: it never changes.
pub fn workflow_hash(workflow: &WorkflowId) -> u32 {
    let hash = workflow
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (hash >> 24) ^ (hash & 0x00ff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_subject_token_or_nothing() {
        let long = "a".repeat(128);
        for good in
            ["a", "0", "pending_approval", "A-1", "550e8400-e29b-41d4-a716-446655440000", &long]
        {
            assert_eq!(PlaceId::parse(good).unwrap().as_str(), good);
        }
        let too_long = "a".repeat(129);
        for bad in [
            "",
            " ",
            "a b",
            "a.b",
            ">",
            "*",
            "a*",
            "_a",
            "-a",
            "a\r\nPUB x 1",
            "a\0",
            "ä",
            "日本",
            "a/b",
            "../x",
            "$JS",
            "a\u{200b}",
            &too_long,
        ] {
            let error = WorkflowId::parse(bad).unwrap_err();
            assert!(error.to_string().contains("beginning with a letter or a digit"), "{error}");
            assert!(!error.to_string().contains('\n'), "{error}");
            assert!(serde_json::from_value::<TransitionId>(bad.into()).is_err());
        }
    }

    #[test]
    fn a_long_wrong_id_is_cut_in_the_message() {
        let error = PlaceId::parse("é".repeat(100_000)).unwrap_err().to_string();
        assert!(error.len() < 400, "{}", error.len());
        assert!(error.contains("200000 bytes"));
    }

    #[test]
    fn a_token_id_is_a_uuid_of_36_characters() {
        assert!(parse_token_id("01890A5D-AC96-774B-BCCE-B302099A8057").is_ok());
        for bad in [
            "",
            "456",
            "01890a5dac96774bbcceb302099a8057",
            "{01890a5d-ac96-774b-bcce-b302099a8057}",
            "*",
        ] {
            assert!(parse_token_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_new_token_id_is_a_uuid_v7_that_ends_with_the_hash_of_its_workflow() {
        let workflow = WorkflowId::parse("document_review").unwrap();
        let at = DateTime::from_timestamp_millis(1_700_000_000_123).unwrap();
        let id = new_token_id(&workflow, at, [0xff; 10]);
        assert_eq!(id.get_version_num(), 7);
        // Pinned: ids that are stored somewhere end in this hash.
        assert_eq!(workflow_hash(&workflow), 0x000b_cba1);
        assert_eq!(id.to_string(), "018bcfe5-687b-7fff-bfff-ffffff0bcba1");
    }
}
