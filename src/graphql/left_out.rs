//! Variables that a request declares and does not send.
//!
//! One with a default is as if that were sent: the library does not know defaults where it decides what is skipped.
//! One that may be null and has no default is left out wherever it is an argument or a member of an
//! object, as if it had not been written there; in a list it is null (GraphQL, October 2021, 3.10,
//! 3.11 and 6.4.1). The library takes it for null everywhere: a patch would delete what it was not
//! to touch, and an argument would lose its default. So it goes before the document is validated.

use std::collections::HashSet;

use async_graphql::parser::types::{
    Directive, DocumentOperations, ExecutableDocument, OperationDefinition, Selection, SelectionSet,
};
use async_graphql::{Name, Positioned, Variables};
use async_graphql_value::Value;

/// Sends defaults, and takes what is left out of a request out of its document, which is valid with these variables.
pub fn leave_out(
    document: &mut ExecutableDocument,
    operation_name: Option<&str>,
    variables: &mut Variables,
) {
    let ExecutableDocument { operations, fragments } = document;
    let Some(operation) = operation_of(operations, operation_name) else {
        // Which one there is not, execution says.
        return;
    };
    let mut left_out = HashSet::new();
    for declared in &operation.node.variable_definitions {
        let (name, default) = (&declared.node.name.node, &declared.node.default_value);
        if variables.contains_key(name) {
            continue;
        }
        match default {
            Some(default) => drop(variables.insert(name.clone(), default.node.clone())),
            None => drop(left_out.insert(name.clone())),
        }
    }
    if left_out.is_empty() {
        return;
    }
    let walk = Walk { left_out: &left_out };
    walk.directives(&mut operation.node.directives);
    walk.selection_set(&mut operation.node.selection_set.node);
    for fragment in fragments.values_mut() {
        walk.directives(&mut fragment.node.directives);
        walk.selection_set(&mut fragment.node.selection_set.node);
    }
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
}

impl Walk<'_> {
    fn selection_set(&self, set: &mut SelectionSet) {
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

    fn directives(&self, directives: &mut [Positioned<Directive>]) {
        directives.iter_mut().for_each(|directive| self.arguments(&mut directive.node.arguments));
    }

    fn arguments(&self, arguments: &mut Vec<(Positioned<Name>, Positioned<Value>)>) {
        arguments.retain_mut(|(_, value)| self.stays(&mut value.node));
    }

    /// Whether an argument or a member of an object stays.
    fn stays(&self, value: &mut Value) -> bool {
        match value {
            Value::Variable(name) if self.left_out.contains(name) => false,
            Value::Object(members) => {
                members.retain(|_, value| self.stays(value));
                true
            }
            Value::List(items) => {
                for item in items {
                    match item {
                        Value::Variable(name) if self.left_out.contains(name) => {
                            *item = Value::Null
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

    /// The arguments of the first field.
    fn after(query: &str, sent: serde_json::Value) -> String {
        let mut document = parse_query(query).unwrap();
        leave_out(&mut document, None, &mut Variables::from_json(sent));
        let (_, operation) = document.operations.iter().next().unwrap();
        let selection = &operation.node.selection_set.node.items[0].node;
        let Selection::Field(field) = selection else { panic!("{selection:?}") };
        let arguments = field.node.arguments.iter();
        let arguments: Vec<_> = arguments.map(|(name, v)| format!("{name}: {}", v.node)).collect();
        arguments.join(", ")
    }

    #[test]
    fn what_is_not_sent_is_not_there() {
        for (declared, written, sent, left) in [
            ("$a: Int", "x: $a", json!({}), ""),
            ("$a: Int", "x: $a", json!({ "a": null }), "x: $a"),
            ("$a: Int", "x: $a", json!({ "a": 1 }), "x: $a"),
            ("$a: Int = 1", "x: $a", json!({}), "x: $a"),
            ("$a: Int! = 1", "x: $a", json!({}), "x: $a"),
            ("$a: Int, $b: Int", "x: $a, y: $b", json!({ "b": 1 }), "y: $b"),
            ("$a: Int", "x: {m: $a, n: 1}", json!({}), "x: {n: 1}"),
            ("$a: Int", "x: {m: {o: {p: $a}}}", json!({}), "x: {m: {o: {}}}"),
            ("$a: Int", "x: [$a, {m: $a}]", json!({}), "x: [null, {}]"),
            ("$a: Int", "x: [[$a]], y: $a", json!({}), "x: [[null]]"),
        ] {
            let query = format!("query({declared}) {{ f({written}) }}");
            assert_eq!(after(&query, sent), left, "{query}");
        }
    }

    #[test]
    fn a_default_is_sent() {
        let mut document =
            parse_query("query($a: Int = 1, $b: Int = 2, $c: Int = 3) { f }").unwrap();
        let mut variables = Variables::from_json(json!({ "b": 5, "c": null }));
        leave_out(&mut document, None, &mut variables);
        assert_eq!(variables, Variables::from_json(json!({ "a": 1, "b": 5, "c": null })));
    }

    #[test]
    fn fragments_and_directives_are_gone_through() {
        let text = "query A($a: Int, $b: Boolean) { ...f g @x(y: $a) { h(i: {j: $a}) } }
                    query B { f } fragment f on Query { k(l: $a) @z(m: [$b]) }";
        let mut document = parse_query(text).unwrap();
        leave_out(&mut document, Some("A"), &mut Variables::default());
        let left = format!("{document:?}");
        assert!(!left.contains("Variable(Name("), "{left}");
        for name in [None, Some("C")] {
            let mut document = parse_query(text).unwrap();
            leave_out(&mut document, name, &mut Variables::default());
            assert!(format!("{document:?}").contains("Variable(Name("), "{name:?}");
        }
    }
}
