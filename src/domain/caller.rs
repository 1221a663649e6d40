//! Who asks for something.

use serde_json::{Map, Value};

/// Who asks, as far as the server itself knows: never what a request says of itself.
///
/// The ids `timer` and `action` are kept for what the server does by itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Caller {
    /// Empty where the server does not know who asks.
    pub id: String,
    /// What the caller is, for conditions.
    pub roles: Vec<String>,
    /// What else is known of the caller, for conditions.
    pub claims: Map<String, Value>,
}

impl Caller {
    /// Somebody of whom nothing is known.
    pub fn anyone() -> Self {
        Self::default()
    }

    /// Who stands in the record of a change: what the request says, else who the server knows it is.
    pub fn triggered_by(&self, said: Option<String>) -> Option<String> {
        said.or_else(|| Some(self.id.clone()).filter(|id| !id.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_names_who_the_request_says_it_is_else_who_is_known() {
        let ann = Caller { id: "ann".to_owned(), ..Caller::anyone() };
        let bo = Some("bo".to_owned());
        assert_eq!(Caller::anyone().triggered_by(None), None);
        assert_eq!(Caller::anyone().triggered_by(bo.clone()), bo);
        assert_eq!(ann.triggered_by(bo.clone()), bo);
        assert_eq!(ann.triggered_by(None).as_deref(), Some("ann"));
    }
}
