//! What to do about a batch that nats-server has refused.

use crate::storage::nats::wire::jetstream::{WHY_UNANSWERED, code};

/// Refusals after which a batch is tried in halves: one of its changes may be what is refused.
const REFUSALS_WHOLE: u32 = 2;

/// A refusal of a batch: nothing of it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub err_code: u64,
    pub description: String,
}

/// What follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// This one of the batch is in the way: it is judged alone, and the others are sent again at once.
    Culprit(usize),
    /// It is not told which one it is: halves, down to one.
    Halves,
    /// The only one has lost, or only its departure has come or gone; a look tells.
    Judge,
    /// Another server is just writing the same subject: again in a moment.
    Busy,
    /// Nothing fits any more.
    NoRoom,
    /// Something is wrong with the stream or the permissions: whoever watches over it looks, and it is
    /// tried again.
    LookAndRetry,
}

impl Refusal {
    /// The sequence that stands in the way, or 0. nats-server tells it in its words alone.
    pub fn told(&self) -> u64 {
        if self.err_code != code::WRONG_LAST_SEQUENCE {
            return 0;
        }
        let digits = self.description.rsplit(' ').next().unwrap_or_default();
        digits.parse().unwrap_or(0)
    }

    /// What to do with a batch of `changes`, of which the most refused one was refused so `often`,
    /// where the sequence that was told is that of the one at `culprit`.
    pub fn plan(&self, changes: usize, often: u32, culprit: Option<usize>) -> Plan {
        let lost = matches!(self.err_code, code::WRONG_LAST_SEQUENCE | code::WRITE_UNDER_WAY);
        if changes > 1 {
            if let Some(culprit) = culprit {
                return Plan::Culprit(culprit);
            }
            if lost || often > REFUSALS_WHOLE || self.err_code == code::BATCH_TOO_LARGE {
                return Plan::Halves;
            }
        }
        match self.err_code {
            code::WRONG_LAST_SEQUENCE => Plan::Judge,
            code::WRITE_UNDER_WAY => Plan::Busy,
            code::STORE_FAILED => Plan::NoRoom,
            code::INSUFFICIENT_RESOURCES | code::ACCOUNT_LIMIT => Plan::NoRoom,
            _ if self.description.contains("no space left") => Plan::NoRoom,
            _ => Plan::LookAndRetry,
        }
    }

    /// Why, as a person reads it.
    pub fn reason(&self) -> String {
        let mut said = format!("{} (error code {})", self.description, self.err_code);
        // It is no refusal of one of its messages: that one is told by its own answer.
        if self.err_code == code::BATCH_INCOMPLETE {
            said = format!("{said}; {WHY_UNANSWERED}");
        }
        match self.advice() {
            Some(advice) => format!("nats-server has no room: {said}; {advice}"),
            None => said,
        }
    }

    /// What a person can do about it, where it is not the stream's own limit that is reached: then
    /// nothing can be written, and only nats-server or its disk can give more.
    pub fn advice(&self) -> Option<&'static str> {
        match self.err_code {
            code::INSUFFICIENT_RESOURCES => Some(
                "raise max_file_store of nats-server, enlarge its disk, or remove other streams",
            ),
            code::ACCOUNT_LIMIT => {
                Some("raise max_file of the account, or remove its other streams")
            }
            _ if self.description.contains("no space left") => {
                Some("enlarge the disk of nats-server, or remove what else is on it")
            }
            _ => None,
        }
    }

    /// Whether it is sure that nothing of the batch is stored: nats-server refuses these before it
    /// begins to store. Of others 2.14.4 can have stored the first messages.
    pub fn is_whole(&self) -> bool {
        match self.err_code {
            code::WRONG_LAST_SEQUENCE | code::WRITE_UNDER_WAY | code::BATCH_TOO_LARGE => true,
            code::STORE_FAILED => self.description.starts_with("maximum "),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_tells_what_stands_in_the_way() {
        let told = |err_code, description: &str| {
            Refusal { err_code, description: description.to_owned() }.told()
        };
        assert_eq!(told(code::WRONG_LAST_SEQUENCE, "wrong last sequence: 17"), 17);
        assert_eq!(told(code::WRONG_LAST_SEQUENCE, "wrong last sequence"), 0);
        assert_eq!(told(code::STORE_FAILED, "maximum messages exceeded 17"), 0);
    }

    #[test]
    fn a_limit_of_nats_server_comes_with_what_to_do() {
        let advice = |err_code, description: &str| {
            Refusal { err_code, description: description.to_owned() }.advice()
        };
        assert!(advice(code::ACCOUNT_LIMIT, "").unwrap().contains("account"));
        assert!(advice(code::INSUFFICIENT_RESOURCES, "").unwrap().contains("max_file_store"));
        assert!(advice(code::STORE_FAILED, "write: no space left on device").is_some());
        assert_eq!(advice(code::STORE_FAILED, "maximum messages exceeded"), None);
    }

    #[test]
    fn each_refusal_has_its_plan() {
        for (err_code, changes, often, culprit, plan) in [
            (code::WRONG_LAST_SEQUENCE, 5, 1, Some(3), Plan::Culprit(3)),
            (code::WRONG_LAST_SEQUENCE, 5, 1, None, Plan::Halves),
            (code::WRONG_LAST_SEQUENCE, 1, 1, Some(0), Plan::Judge),
            (code::WRONG_LAST_SEQUENCE, 1, 9, None, Plan::Judge),
            (code::WRITE_UNDER_WAY, 5, 1, None, Plan::Halves),
            (code::WRITE_UNDER_WAY, 1, 1, None, Plan::Busy),
            (code::BATCH_TOO_LARGE, 5, 1, None, Plan::Halves),
            (code::BATCH_TOO_LARGE, 1, 1, None, Plan::LookAndRetry),
            (code::STORE_FAILED, 5, 1, None, Plan::NoRoom),
            (code::STORE_FAILED, 5, 3, None, Plan::Halves),
            (code::STORE_FAILED, 1, 9, None, Plan::NoRoom),
            (code::TEMPORARILY_UNAVAILABLE, 5, 1, None, Plan::LookAndRetry),
            (code::TEMPORARILY_UNAVAILABLE, 5, 3, None, Plan::Halves),
        ] {
            let refusal = Refusal { err_code, description: String::new() };
            assert_eq!(refusal.plan(changes, often, culprit), plan, "{err_code} {changes} {often}");
        }
    }
}
