//! Variables that a request declares and does not send.
//!
//! One that may be null and has no default is left out wherever it is an argument or a member of an
//! object, as if it had not been written there; in a list it is null (GraphQL, October 2021, 3.10,
//! 3.11 and 6.4.1). The library takes it for null everywhere: a patch would delete what it was not
//! to touch, and an argument would lose its default. So it goes before the document is validated.

use std::collections::HashSet;

use async_graphql::parser::types::{
    Directive, DocumentOperations, ExecutableDocument, OperationDefinition, Selection, SelectionSet,
};
use async_graphql::{Name, Positioned, ServerError, Variables};
use async_graphql_value::Value;

use super::error::{ErrorCode, refusal};

/// Takes what is left out of a request out of its document. An error names a variable that must be
/// sent and is not.
pub fn leave_out(
    document: &mut ExecutableDocument,
    operation_name: Option<&str>,
    variables: &Variables,
) -> Result<(), ServerError> {
    let ExecutableDocument { operations, fragments } = document;
    let Some(operation) = operation_of(operations, operation_name) else {
        // Which one there is not, execution says.
        return Ok(());
    };
    let mut left_out = HashSet::new();
    for definition in &operation.node.variable_definitions {
        let name = &definition.node.name.node;
        if variables.contains_key(name) || definition.node.default_value.is_some() {
            continue;
        }
        let of_type = &definition.node.var_type.node;
        if !of_type.nullable {
            let message =
                format!("variable ${name} of type {of_type} is required; send it in variables");
            let mut error = refusal(ErrorCode::InvalidInput, message);
            error.locations = vec![definition.pos];
            return Err(error);
        }
        left_out.insert(name.clone());
    }
    if left_out.is_empty() {
        return Ok(());
    }
    let mut walk = Walk { left_out: &left_out, still_used: HashSet::new(), taken: HashSet::new() };
    walk.directives(&mut operation.node.directives);
    walk.selection_set(&mut operation.node.selection_set.node);
    for fragment in fragments.values_mut() {
        walk.directives(&mut fragment.node.directives);
        walk.selection_set(&mut fragment.node.selection_set.node);
    }
    // One that nobody uses any more would be taken for a mistake; one that nobody used is one.
    let Walk { still_used, taken, .. } = walk;
    operation.node.variable_definitions.retain(|definition| {
        let name = &definition.node.name.node;
        !taken.contains(name) || still_used.contains(name)
    });
    // Others may declare what is gone from a fragment that they share.
    if let (DocumentOperations::Multiple(all), Some(this)) = (operations, operation_name) {
        all.retain(|name, _| name == this);
    }
    Ok(())
}

fn operation_of<'a>(
    operations: &'a mut DocumentOperations,
    name: Option<&str>,
) -> Option<&'a mut Positioned<OperationDefinition>> {
    match (operations, name) {
        (DocumentOperations::Single(operation), None) => Some(operation),
        (DocumentOperations::Single(_), Some(_)) => None,
        (DocumentOperations::Multiple(operations), Some(name)) => operations.get_mut(name),
        (DocumentOperations::Multiple(operations), None) if operations.len() == 1 => {
            operations.values_mut().next()
        }
        (DocumentOperations::Multiple(_), None) => None,
    }
}

/// A walk over all values of a document. Its depth is bounded, as that of the text is.
struct Walk<'a> {
    left_out: &'a HashSet<Name>,
    /// Those of them that stay, in lists.
    still_used: HashSet<Name>,
    /// Those of them that were taken out somewhere.
    taken: HashSet<Name>,
}

impl Walk<'_> {
    fn selection_set(&mut self, set: &mut SelectionSet) {
        for selection in &mut set.items {
            match &mut selection.node {
                Selection::Field(field) => {
                    self.directives(&mut field.node.directives);
                    self.arguments(&mut field.node.arguments);
                    self.selection_set(&mut field.node.selection_set.node);
                }
                Selection::InlineFragment(inline) => {
                    self.directives(&mut inline.node.directives);
                    self.selection_set(&mut inline.node.selection_set.node);
                }
                Selection::FragmentSpread(spread) => self.directives(&mut spread.node.directives),
            }
        }
    }

    fn directives(&mut self, directives: &mut [Positioned<Directive>]) {
        directives.iter_mut().for_each(|directive| self.arguments(&mut directive.node.arguments));
    }

    fn arguments(&mut self, arguments: &mut Vec<(Positioned<Name>, Positioned<Value>)>) {
        arguments.retain_mut(|(_, value)| self.stays(&mut value.node));
    }

    /// Whether an argument or a member of an object stays.
    fn stays(&mut self, value: &mut Value) -> bool {
        match value {
            Value::Variable(name) if self.left_out.contains(name) => {
                self.taken.insert(name.clone());
                false
            }
            Value::Object(members) => {
                members.retain(|_, value| self.stays(value));
                true
            }
            Value::List(items) => {
                for item in items {
                    match item {
                        Value::Variable(name) if self.left_out.contains(name) => {
                            self.still_used.insert(name.clone());
                        }
                        item => drop(self.stays(item)),
                    }
                }
                true
            }
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_graphql::parser::parse_query;
    use serde_json::json;

    /// The arguments of the first field, and the variables that are still declared.
    fn after(query: &str, sent: serde_json::Value) -> Result<(String, Vec<String>), String> {
        let mut document = parse_query(query).unwrap();
        let sent = Variables::from_json(sent);
        leave_out(&mut document, None, &sent).map_err(|error| error.message)?;
        let (_, operation) = document.operations.iter().next().unwrap();
        let declared = operation.node.variable_definitions.iter();
        let declared = declared.map(|there| there.node.name.node.to_string()).collect();
        let selection = &operation.node.selection_set.node.items[0].node;
        let Selection::Field(field) = selection else { panic!("{selection:?}") };
        let arguments = field.node.arguments.iter();
        let arguments: Vec<_> = arguments.map(|(name, v)| format!("{name}: {}", v.node)).collect();
        Ok((arguments.join(", "), declared))
    }

    #[test]
    fn what_is_not_sent_is_not_there() {
        for (declared, written, sent, left, still) in [
            ("$a: Int", "x: $a", json!({}), "", vec![]),
            ("$a: Int", "x: $a", json!({ "a": null }), "x: $a", vec!["a"]),
            ("$a: Int", "x: $a", json!({ "a": 1 }), "x: $a", vec!["a"]),
            ("$a: Int = 1", "x: $a", json!({}), "x: $a", vec!["a"]),
            ("$a: Int! = 1", "x: $a", json!({}), "x: $a", vec!["a"]),
            ("$a: Int, $b: Int", "x: $a, y: $b", json!({ "b": 1 }), "y: $b", vec!["b"]),
            ("$a: Int", "x: {m: $a, n: 1}", json!({}), "x: {n: 1}", vec![]),
            ("$a: Int", "x: {m: {o: {p: $a}}}", json!({}), "x: {m: {o: {}}}", vec![]),
            ("$a: Int", "x: [$a, {m: $a}]", json!({}), "x: [$a, {}]", vec!["a"]),
            ("$a: Int", "x: [[$a]], y: $a", json!({}), "x: [[$a]]", vec!["a"]),
            // It is a mistake to declare what is not used.
            ("$a: Int", "x: 1", json!({}), "x: 1", vec!["a"]),
        ] {
            let query = format!("query({declared}) {{ f({written}) }}");
            let expected = (left.to_owned(), still.iter().map(ToString::to_string).collect());
            assert_eq!(after(&query, sent), Ok(expected), "{query}");
        }
        let query = "query($a: [Int!]!, $b: Int) { f(x: $a, y: $b) }";
        let error = after(query, json!({ "b": 1 })).unwrap_err();
        assert_eq!(error, "variable $a of type [Int!]! is required; send it in variables");
    }

    #[test]
    fn fragments_and_directives_are_gone_through() {
        let text = "query A($a: Int, $b: Boolean) { ...f g @x(y: $a) { h(i: {j: $a}) } }
                    query B { f } fragment f on Query { k(l: $a) @z(m: [$b]) }";
        let mut document = parse_query(text).unwrap();
        leave_out(&mut document, Some("A"), &Variables::default()).unwrap();
        let text = format!("{document:?}");
        assert!(!text.contains("Variable(Name(\"a\"))"), "{text}");
        assert!(text.contains("Variable(Name(\"b\"))"), "{text}");
        // Another operation may declare the same for a fragment of both.
        let text =
            "query A($a: Int) { ...f } query B($a: Int) { ...f } fragment f on Query { k(l: $a) }";
        let mut document = parse_query(text).unwrap();
        leave_out(&mut document, Some("A"), &Variables::default()).unwrap();
        assert_eq!(document.operations.iter().count(), 1);
        for name in [None, Some("C")] {
            let mut document = parse_query("query A($a: Int!) { f } query B { f }").unwrap();
            leave_out(&mut document, name, &Variables::default()).unwrap();
        }
    }
}
