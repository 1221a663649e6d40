//! What is executed of a document: the fields of one operation, each once.
//!
//! Fragments are written out, what is skipped is gone, and fields of one key are one field with all that is selected
//! of it (GraphQL, October 2021, 6.3.2). The library would read such a field as often as it is written, at
//! different moments, and merge what it has read by its place in a list; and a mutation it would do twice.
//! All types are objects, so a fragment that is valid always applies.
//!
//! A variable that is not sent and has no default is left out wherever it is an argument or a member of an
//! object, as if it had not been written there; in a list it is null (3.10, 3.11 and 6.4.1). The library takes it for null
//! everywhere: a patch would delete what it was not to touch, and an argument would lose its default.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};

use async_graphql::parser::types::{
    Directive, DocumentOperations, ExecutableDocument, Field, FragmentDefinition,
    OperationDefinition, Selection, SelectionSet,
};
use async_graphql::{Name, Positioned, ServerError, Variables};
use async_graphql_value::indexmap::IndexMap;
use async_graphql_value::indexmap::map::Entry;
use async_graphql_value::{ConstValue, Value};

use super::budget::bytes_of;
use super::document::too_complex;

/// Bytes in memory of all variables of a request, each as often as it is used again: the first use is no more than what
/// was sent.
const USED_BYTES_MAX: usize = 24 << 20;

/// What is executed of a valid document with these variables, to which defaults are added. None where there is no such
/// operation.
pub fn collect(
    document: &ExecutableDocument,
    operation: Option<&str>,
    variables: &mut Variables,
) -> Result<Option<ExecutableDocument>, ServerError> {
    let Some(operation) = operation_of(&document.operations, operation) else { return Ok(None) };
    for declared in &operation.node.variable_definitions {
        let (name, default) = (&declared.node.name.node, &declared.node.default_value);
        if let Some(default) = default.as_ref().filter(|_| !variables.contains_key(name)) {
            variables.insert(name.clone(), default.node.clone());
        }
    }
    let sizes = variables.iter().map(|(name, value)| (name, bytes_of(value))).collect();
    let (fragments, again, used) = (&document.fragments, Cell::new(0), RefCell::default());
    let collector = Collector { fragments, variables, sizes, used, again };
    let mut executed = operation.node.clone();
    executed.directives.clear();
    let set = &operation.node.selection_set;
    executed.selection_set = Positioned::new(collector.merged(&[&set.node]), set.pos);
    let used = collector.again.get();
    if used > USED_BYTES_MAX {
        return Err(too_complex(format!(
            "the variables take {used} more bytes in memory, each as often as it is used again; at most {USED_BYTES_MAX} are allowed"
        )));
    }
    Ok(Some(ExecutableDocument {
        operations: DocumentOperations::Single(Positioned::new(executed, operation.pos)),
        fragments: HashMap::new(),
    }))
}

/// The operation of this name, or the only one.
pub fn operation_of<'a>(
    operations: &'a DocumentOperations,
    name: Option<&str>,
) -> Option<&'a Positioned<OperationDefinition>> {
    match (operations, name) {
        (DocumentOperations::Single(operation), None) => Some(operation),
        (DocumentOperations::Single(_), Some(_)) => None,
        (DocumentOperations::Multiple(operations), Some(name)) => operations.get(name),
        (DocumentOperations::Multiple(operations), None) if operations.len() == 1 => {
            operations.values().next()
        }
        (DocumentOperations::Multiple(_), None) => None,
    }
}

/// One field as it is first written, and all that is selected of it.
struct Merged<'a> {
    field: &'a Positioned<Field>,
    sets: Vec<&'a SelectionSet>,
}

struct Collector<'a> {
    fragments: &'a HashMap<Name, Positioned<FragmentDefinition>>,
    variables: &'a Variables,
    /// Bytes of each variable in memory.
    sizes: HashMap<&'a Name, usize>,
    /// Those that are used so far, and the bytes of those that are used again, each as often as it is.
    used: RefCell<HashSet<Name>>,
    again: Cell<usize>,
}

// The depth of what is here is bounded, and so are the fields with fragments written out: `document` has seen to it.
impl<'a> Collector<'a> {
    /// One selection set for several of the same object.
    fn merged(&self, sets: &[&'a SelectionSet]) -> SelectionSet {
        let mut fields = IndexMap::new();
        for set in sets {
            self.gather(set, &mut fields);
        }
        let items = fields.into_values().map(|Merged { field, sets }| {
            let Field { alias, name, arguments, selection_set, .. } = &field.node;
            let arguments = arguments.iter().filter_map(|(name, value)| {
                let stays = self.sent(&value.node)?;
                Some((name.clone(), Positioned::new(stays, value.pos)))
            });
            let merged = Field {
                alias: alias.clone(),
                name: name.clone(),
                arguments: arguments.collect(),
                directives: Vec::new(),
                selection_set: Positioned::new(self.merged(&sets), selection_set.pos),
            };
            Positioned::new(Selection::Field(Positioned::new(merged, field.pos)), field.pos)
        });
        SelectionSet { items: items.collect() }
    }

    fn gather(&self, set: &'a SelectionSet, fields: &mut IndexMap<Name, Merged<'a>>) {
        for selection in &set.items {
            let (directives, inner) = match &selection.node {
                Selection::Field(field) => (&field.node.directives, None),
                Selection::InlineFragment(inline) => {
                    (&inline.node.directives, Some(&inline.node.selection_set.node))
                }
                Selection::FragmentSpread(spread) => {
                    let fragment = self.fragments.get(&spread.node.fragment_name.node);
                    let set = fragment.map(|fragment| &fragment.node.selection_set.node);
                    (&spread.node.directives, set)
                }
            };
            if directives.iter().any(|directive| self.skips(&directive.node)) {
                continue;
            }
            if let Some(inner) = inner {
                self.gather(inner, fields);
            }
            let Selection::Field(field) = &selection.node else { continue };
            let key = field.node.alias.as_ref().unwrap_or(&field.node.name).node.clone();
            let set = &field.node.selection_set.node;
            match fields.entry(key) {
                Entry::Occupied(mut there) => there.get_mut().sets.push(set),
                Entry::Vacant(free) => drop(free.insert(Merged { field, sets: vec![set] })),
            }
        }
    }

    /// Whether a directive leaves out what it stands at.
    fn skips(&self, directive: &Directive) -> bool {
        let condition = directive.get_argument("if").map(|condition| &condition.node);
        let holds = match condition {
            Some(Value::Boolean(holds)) => *holds,
            Some(Value::Variable(name)) => {
                self.variables.get(name) == Some(&ConstValue::Boolean(true))
            }
            _ => return false,
        };
        match directive.name.node.as_str() {
            "skip" => holds,
            "include" => !holds,
            _ => false,
        }
    }

    /// A value without the variables that are not sent; none if it is one itself.
    fn sent(&self, value: &Value) -> Option<Value> {
        Some(match value {
            Value::Variable(name) => {
                let bytes = self.sizes.get(name)?;
                if !self.used.borrow_mut().insert(name.clone()) {
                    self.again.set(self.again.get().saturating_add(*bytes));
                }
                value.clone()
            }
            Value::List(items) => {
                let item = |item: &Value| self.sent(item).unwrap_or(Value::Null);
                Value::List(items.iter().map(item).collect())
            }
            Value::Object(members) => {
                let member =
                    |(name, value): (&Name, &Value)| Some((name.clone(), self.sent(value)?));
                Value::Object(members.iter().filter_map(member).collect())
            }
            value => value.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use async_graphql::parser::parse_query;
    use serde_json::json;

    use super::*;

    /// The fields that are executed, with their arguments.
    fn collected(query: &str, operation: Option<&str>, sent: serde_json::Value) -> String {
        fn shown(set: &SelectionSet) -> String {
            let field = |item: &Positioned<Selection>| {
                let Selection::Field(field) = &item.node else { panic!("{item:?}") };
                assert_eq!(field.node.directives.len(), 0);
                let Field { alias, name, arguments, selection_set, .. } = &field.node;
                let alias = alias.as_ref().map(|alias| format!("{}:", alias.node));
                let arguments = arguments.iter();
                let arguments: Vec<_> =
                    arguments.map(|(name, value)| format!("{name}: {}", value.node)).collect();
                let arguments = match arguments.join(", ") {
                    none if none.is_empty() => none,
                    some => format!("({some})"),
                };
                let inner = match shown(&selection_set.node) {
                    none if none.is_empty() => none,
                    some => format!("{{{some}}}"),
                };
                format!("{}{}{arguments}{inner}", alias.unwrap_or_default(), name.node)
            };
            set.items.iter().map(field).collect::<Vec<_>>().join(" ")
        }
        let document = parse_query(query).unwrap();
        let mut variables = Variables::from_json(sent);
        let Some(executed) = collect(&document, operation, &mut variables).unwrap() else {
            return "none".to_owned();
        };
        let (_, operation) = executed.operations.iter().next().unwrap();
        shown(&operation.node.selection_set.node)
    }

    #[test]
    fn a_field_is_executed_once_with_all_that_is_selected_of_it() {
        let sent = json!({ "t": true, "f": false });
        for (query, expected) in [
            ("{ a b a }", "a b"),
            ("{ a { x } b a { y x } }", "a{x y} b"),
            (
                "{ ...F a { z } } fragment F on Q { a { x } ...G } fragment G on Q { a { y } b }",
                "a{x y z} b",
            ),
            ("{ ... { a { x } } ... on Q { a { x { y } } a { x { z } } } }", "a{x{y z}}"),
            ("{ k: a { x } a { y } k: a { z } }", "k:a{x z} a{y}"),
            (
                "{ a @skip(if: true) b @include(if: false) c @skip(if: false) @include(if: true) }",
                "c",
            ),
            (
                "query($t: Boolean!, $f: Boolean!) { a @skip(if: $t) b @include(if: $t) c @skip(if: $f) d @include(if: $f) }",
                "b c",
            ),
            ("query($d: Boolean = true) { a @skip(if: $d) b @include(if: $d) }", "b"),
            ("{ ...F @skip(if: true) ... @include(if: false) { b } c } fragment F on Q { a }", "c"),
            ("mutation { a(x: 1) { x } ...F } fragment F on M { a(x: 1) { y } }", "a(x: 1){x y}"),
        ] {
            assert_eq!(collected(query, None, sent.clone()), expected, "{query}");
        }
        let two = "query A { a } query B { b }";
        assert_eq!(collected(two, Some("B"), json!({})), "b");
        assert_eq!(collected(two, None, json!({})), "none");
        assert_eq!(collected(two, Some("C"), json!({})), "none");
        assert_eq!(collected("query A { a }", None, json!({})), "a");
    }

    #[test]
    fn what_is_not_sent_is_not_there() {
        for (declared, written, sent, left) in [
            ("$a: Int", "x: $a", json!({}), "f"),
            ("$a: Int", "x: $a", json!({ "a": null }), "f(x: $a)"),
            ("$a: Int = 1", "x: $a", json!({}), "f(x: $a)"),
            ("$a: Int, $b: Int", "x: $a, y: $b", json!({ "b": 1 }), "f(y: $b)"),
            ("$a: Int", "x: {m: $a, n: 1}", json!({}), "f(x: {n: 1})"),
            ("$a: Int", "x: {m: {o: {p: $a}}}", json!({}), "f(x: {m: {o: {}}})"),
            ("$a: Int", "x: [$a, {m: $a}]", json!({}), "f(x: [null, {}])"),
            ("$a: Int", "x: [[$a]], y: $a", json!({}), "f(x: [[null]])"),
        ] {
            let query = format!("query({declared}) {{ f({written}) }}");
            assert_eq!(collected(&query, None, sent), left, "{query}");
        }
    }

    #[test]
    fn a_default_is_sent() {
        let document = parse_query("query($a: Int = 1, $b: Int = 2, $c: Int = 3) { f }").unwrap();
        let mut variables = Variables::from_json(json!({ "b": 5, "c": null }));
        collect(&document, None, &mut variables).unwrap();
        assert_eq!(variables, Variables::from_json(json!({ "a": 1, "b": 5, "c": null })));
    }

    #[test]
    fn variables_are_weighed_as_often_as_they_are_used() {
        let told = |head: &str, uses: usize, sent: serde_json::Value| {
            let query = format!("query({head}) {{ f(x: [{}]) }}", "$v ".repeat(uses));
            let document = parse_query(query).unwrap();
            let told = collect(&document, None, &mut Variables::from_json(sent)).map(drop);
            told.map_err(|error| error.message)
        };
        let text = json!({ "v": "x".repeat(1 << 20) });
        assert_eq!(told("$v: JSON", 20, text.clone()), Ok(()));
        let large = json!({ "v": "x".repeat(30 << 20) });
        assert_eq!(told("$v: JSON", 1, large.clone()), Ok(()));
        assert!(told("$v: JSON", 2, large).is_err());
        assert!(told("$v: JSON", 30, text).unwrap_err().contains("at most 25165824"));
        let numbers = format!("$v: JSON = [{}]", "1 ".repeat(1_000));
        assert_eq!(told(&numbers, 100, json!({})), Ok(()));
        assert!(told(&numbers, 1_000, json!({})).unwrap_err().contains("used again"));
    }
}
