//! Bounds on the parsed document of a query.
//!
//! They stand before validation and the GraphQL library, whose own limits come after the cost. All here is linear.

use std::collections::{HashMap, HashSet};

use async_graphql::parser::types::{
    ExecutableDocument, FragmentDefinition, OperationDefinition, OperationType, Selection,
    SelectionSet,
};
use async_graphql::{Name, Positioned, ServerError, Variables};
use async_graphql_value::{ConstValue, Value};

use super::error::{ErrorCode, refusal};

/// Levels of selected fields, with fragments written out. GraphiQL's introspection has 15.
const DEPTH_MAX: usize = 24;

/// Selected fields, with fragments written out: each time that a fragment is spread counts, and is one itself, also
/// where it selects nothing.
const FIELDS_MAX: usize = 1_000;

/// Fields selected at the root, with fragments written out: each is an operation of its own.
const ROOT_FIELDS_MAX: usize = 50;

/// Lists of the introspection schema inside one another. `types`, `fields`, `args` are three; each
/// further one multiplies the answer.
const INTROSPECTION_LISTS_MAX: usize = 3;

/// Operations; fragments; variables and directives together.
const DEFINITIONS_MAX: usize = 100;

/// Arguments of one field or directive.
const ARGUMENTS_MAX: usize = 32;

/// JSON values in the variables, times the uses of variables: each use is checked value by value.
const VARIABLE_VALUES_MAX: usize = 1_000_000;

/// What executing a document amounts to, whatever its variables.
#[derive(Debug, Clone, Copy)]
pub struct DocumentWeight {
    variable_uses: usize,
}

/// Checks a parsed document before it is validated.
pub fn check_document(document: &ExecutableDocument) -> Result<DocumentWeight, ServerError> {
    if document.operations.iter().count() > DEFINITIONS_MAX
        || document.fragments.len() > DEFINITIONS_MAX
    {
        return Err(too_complex(format!(
            "at most {DEFINITIONS_MAX} operations and as many fragments are allowed"
        )));
    }
    let mut weigher =
        Weigher { fragments: &document.fragments, known: HashMap::new(), written: 0, extras: 0 };
    let mut variable_uses = 0_usize;
    // Also fragments that nobody uses: validation goes through them, too.
    for name in document.fragments.keys() {
        let weight = weigher.fragment(name)?;
        check_fields(weight)?;
        variable_uses = variable_uses.saturating_add(weight.variable_uses);
    }
    for (_, operation) in document.operations.iter() {
        let weight = weigher.operation(&operation.node)?;
        variable_uses = variable_uses.saturating_add(weight.variable_uses);
        let limits = [
            ("levels", weight.depth, DEPTH_MAX),
            ("fields at the root", weight.roots, ROOT_FIELDS_MAX),
            ("levels of introspection lists", weight.introspection_lists, INTROSPECTION_LISTS_MAX),
        ];
        check_fields(weight)?;
        for (what, count, max) in limits {
            if count > max {
                return Err(too_much(count, what, max));
            }
        }
        if operation.node.ty == OperationType::Mutation {
            let mut keys = HashSet::new();
            distinct_roots(&operation.node.selection_set.node, &document.fragments, &mut keys)?;
        }
    }
    Ok(DocumentWeight { variable_uses })
}

fn check_fields(weight: Weight) -> Result<(), ServerError> {
    if weight.fields > FIELDS_MAX {
        return Err(too_much(weight.fields, "fields and fragments", FIELDS_MAX));
    }
    Ok(())
}

fn too_much(count: usize, what: &str, max: usize) -> ServerError {
    too_complex(format!(
        "the query selects {count} {what} with its fragments written out, at most {max} are allowed"
    ))
}

/// Checks what the variables of a request add to its document.
pub fn check_variables(weight: DocumentWeight, variables: &Variables) -> Result<(), ServerError> {
    let values = variables.values().map(values).sum::<usize>();
    // One use of each is no more than reading them.
    let checked = values.saturating_mul(weight.variable_uses);
    if weight.variable_uses > 1 && checked > VARIABLE_VALUES_MAX {
        return Err(too_complex(format!(
            "{values} values in variables that are used {} times are too much for one request",
            weight.variable_uses
        )));
    }
    Ok(())
}

fn values(value: &ConstValue) -> usize {
    match value {
        ConstValue::List(items) => 1 + items.iter().map(values).sum::<usize>(),
        ConstValue::Object(members) => 1 + members.values().map(values).sum::<usize>(),
        _ => 1,
    }
}

pub(super) fn too_complex(message: String) -> ServerError {
    refusal(ErrorCode::QueryTooComplex, message)
}

pub(super) fn wrong(message: impl Into<String>) -> ServerError {
    refusal(ErrorCode::InvalidInput, message)
}

/// What a selection amounts to with its fragments written out.
#[derive(Debug, Clone, Copy, Default)]
struct Weight {
    depth: usize,
    /// Fields, and fragments as often as they are written out.
    fields: usize,
    /// Fields of the outermost level.
    roots: usize,
    introspection_lists: usize,
    variable_uses: usize,
}

impl Weight {
    fn add(&mut self, other: Weight) {
        self.depth = self.depth.max(other.depth);
        self.introspection_lists = self.introspection_lists.max(other.introspection_lists);
        self.fields = self.fields.saturating_add(other.fields);
        self.roots = self.roots.saturating_add(other.roots);
        self.variable_uses = self.variable_uses.saturating_add(other.variable_uses);
    }

    fn with_one_more(self) -> Self {
        Self { fields: self.fields.saturating_add(1), ..self }
    }
}

struct Weigher<'a> {
    fragments: &'a HashMap<Name, Positioned<FragmentDefinition>>,
    /// Weights of fragments; none while one is being weighed.
    known: HashMap<Name, Option<Weight>>,
    /// Selections in the text, each counted once.
    written: usize,
    /// Variables and directives.
    extras: usize,
}

type Arguments<'a> = &'a [(Positioned<Name>, Positioned<Value>)];

impl Weigher<'_> {
    fn operation(&mut self, operation: &OperationDefinition) -> Result<Weight, ServerError> {
        self.extra(operation.variable_definitions.len())?;
        let mut weight = self.selection_set(&operation.selection_set.node)?;
        for directive in &operation.directives {
            self.extra(1)?;
            weight.variable_uses += arguments(&directive.node.arguments)?;
        }
        Ok(weight)
    }

    // The recursion is bounded: a text nests no deeper than `text` lets it, fragments are at most
    // DEFINITIONS_MAX, and each is entered once.
    fn selection_set(&mut self, set: &SelectionSet) -> Result<Weight, ServerError> {
        let mut sum = Weight::default();
        for selection in &set.items {
            self.written += 1;
            if self.written > 2 * FIELDS_MAX {
                return Err(too_complex(format!(
                    "the query has more than {} selections",
                    2 * FIELDS_MAX
                )));
            }
            let directives = match &selection.node {
                Selection::Field(field) => &field.node.directives,
                Selection::InlineFragment(inline) => &inline.node.directives,
                Selection::FragmentSpread(spread) => &spread.node.directives,
            };
            for directive in directives {
                self.extra(1)?;
                sum.variable_uses += arguments(&directive.node.arguments)?;
            }
            sum.add(match &selection.node {
                Selection::Field(field) => {
                    let inner = self.selection_set(&field.node.selection_set.node)?;
                    Weight {
                        depth: inner.depth + 1,
                        fields: inner.fields.saturating_add(1),
                        roots: 1,
                        introspection_lists: inner.introspection_lists
                            + list_of_introspection(&field.node.name.node),
                        variable_uses: inner
                            .variable_uses
                            .saturating_add(arguments(&field.node.arguments)?),
                    }
                }
                // They weigh something themselves, as validation goes through each of them.
                Selection::InlineFragment(inline) => {
                    self.selection_set(&inline.node.selection_set.node)?.with_one_more()
                }
                Selection::FragmentSpread(spread) => {
                    self.fragment(&spread.node.fragment_name.node)?.with_one_more()
                }
            });
        }
        Ok(sum)
    }

    fn fragment(&mut self, name: &Name) -> Result<Weight, ServerError> {
        match self.known.get(name) {
            Some(Some(weight)) => return Ok(*weight),
            Some(None) => return Err(too_complex(format!("fragment {name} contains itself"))),
            None => {}
        }
        // An unknown fragment is named by validation.
        let Some(fragment) = self.fragments.get(name) else { return Ok(Weight::default()) };
        self.known.insert(name.clone(), None);
        let mut weight = self.selection_set(&fragment.node.selection_set.node)?;
        for directive in &fragment.node.directives {
            self.extra(1)?;
            weight.variable_uses += arguments(&directive.node.arguments)?;
        }
        self.known.insert(name.clone(), Some(weight));
        Ok(weight)
    }

    fn extra(&mut self, count: usize) -> Result<(), ServerError> {
        self.extras += count;
        if self.extras > DEFINITIONS_MAX {
            return Err(too_complex(format!(
                "at most {DEFINITIONS_MAX} variables and directives are allowed"
            )));
        }
        Ok(())
    }
}

/// Bounds the arguments and counts the variables in them.
fn arguments(arguments: Arguments<'_>) -> Result<usize, ServerError> {
    fn uses(value: &Value) -> usize {
        match value {
            Value::Variable(_) => 1,
            Value::List(items) => items.iter().map(uses).sum(),
            Value::Object(members) => members.values().map(uses).sum(),
            _ => 0,
        }
    }
    if arguments.len() > ARGUMENTS_MAX {
        return Err(too_complex(format!(
            "a field has {} arguments, at most {ARGUMENTS_MAX} are allowed",
            arguments.len()
        )));
    }
    Ok(arguments.iter().map(|(_, value)| uses(&value.node)).sum())
}

fn list_of_introspection(field: &str) -> usize {
    let lists = [
        "types",
        "fields",
        "inputFields",
        "args",
        "interfaces",
        "possibleTypes",
        "enumValues",
        "directives",
        "locations",
    ];
    usize::from(lists.contains(&field))
}

/// Refuses a mutation that names a root field twice under one key, but for `__typename`: the library would do it twice.
fn distinct_roots(
    set: &SelectionSet,
    fragments: &HashMap<Name, Positioned<FragmentDefinition>>,
    keys: &mut HashSet<Name>,
) -> Result<(), ServerError> {
    for selection in &set.items {
        match &selection.node {
            Selection::Field(field) => {
                let key = field.node.alias.as_ref().unwrap_or(&field.node.name).node.clone();
                if field.node.name.node != "__typename" && !keys.insert(key.clone()) {
                    return Err(wrong(format!(
                        "the mutation has {key} twice; give one of them an alias"
                    )));
                }
            }
            Selection::InlineFragment(inline) => {
                distinct_roots(&inline.node.selection_set.node, fragments, keys)?
            }
            Selection::FragmentSpread(spread) => {
                if let Some(fragment) = fragments.get(&spread.node.fragment_name.node) {
                    distinct_roots(&fragment.node.selection_set.node, fragments, keys)?;
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_graphql::parser::parse_query;

    fn code(query: &str) -> String {
        let outcome = check_document(&parse_query(query).unwrap());
        match outcome {
            Ok(_) => "ok".to_owned(),
            Err(error) => error.extensions.unwrap().get("code").unwrap().to_string(),
        }
    }

    #[test]
    fn fragments_count_each_time_they_are_spread() {
        let mut exponential = "{ ...f0 }".to_owned();
        for level in 0..40 {
            exponential += &format!(
                " fragment f{level} on Query {{ a: x {{ ...f{0} }} b: x {{ ...f{0} }} }}",
                level + 1
            );
        }
        assert_eq!(code(&(exponential + " fragment f40 on Query { x }")), "\"QUERY_TOO_COMPLEX\"");
        assert_eq!(
            code("{ ...a } fragment a on Query { ...b } fragment b on Query { ...a }"),
            "\"QUERY_TOO_COMPLEX\""
        );
        assert_eq!(code("{ x } fragment a on Query { y { ...a } }"), "\"QUERY_TOO_COMPLEX\"");
        assert_eq!(code("{ ...a ...a } fragment a on Query { x }"), "ok");
    }

    #[test]
    fn what_selects_nothing_weighs_something_too() {
        let spreads = |next: &str| format!("...{next} ").repeat(5);
        let inline = |next: &str| format!("... on Query {{ ...{next} }} ").repeat(5);
        let without_type = |next: &str| format!("... {{ ...{next} }} ").repeat(5);
        let ways: [&dyn Fn(&str) -> String; 3] = [&spreads, &inline, &without_type];
        let ends = ["...gone", "... on Query { ...gone }", "... { ...gone }", "x @skip(if: true)"];
        // From the operation, and where nobody comes to it.
        for (way, end, root) in ways.iter().flat_map(|way| {
            ends.iter().flat_map(move |end| ["{ ...f0 }", "{ x }"].map(|root| (way, end, root)))
        }) {
            let chain = |levels: usize| {
                let fragment =
                    |n| format!("fragment f{n} on Query {{ {} }}", way(&format!("f{}", n + 1)));
                let all: String = (0..levels).map(fragment).collect();
                format!("{root} {all} fragment f{levels} on Query {{ {end} }}")
            };
            assert_eq!(code(&chain(2)), "ok", "{}", chain(2));
            assert_eq!(code(&chain(5)), "\"QUERY_TOO_COMPLEX\"", "{}", chain(5));
            assert_eq!(code(&chain(20)), "\"QUERY_TOO_COMPLEX\"", "{}", chain(20));
        }
    }

    #[test]
    fn depth_fields_roots_and_introspection_are_bounded() {
        let nested = |n: usize| format!("{}x{}", "{ a ".repeat(n), " }".repeat(n));
        let fields = |n: usize| format!("{{ a {{ {} }} }}", "x ".repeat(n));
        let roots =
            |n: usize| format!("{{ {} }}", (0..n).map(|n| format!("a{n}: x ")).collect::<String>());
        for (query, expected) in [
            (nested(DEPTH_MAX - 1), "ok"),
            (nested(DEPTH_MAX + 1), "\"QUERY_TOO_COMPLEX\""),
            (fields(FIELDS_MAX - 1), "ok"),
            (fields(FIELDS_MAX), "\"QUERY_TOO_COMPLEX\""),
            (roots(ROOT_FIELDS_MAX), "ok"),
            (roots(ROOT_FIELDS_MAX + 1), "\"QUERY_TOO_COMPLEX\""),
            ("{ __schema { types { fields { args { name } } } } }".to_owned(), "ok"),
            ("{ __schema { types { fields { type { fields { type { fields { name } } } } } } } }".to_owned(), "\"QUERY_TOO_COMPLEX\""),
            ("mutation { a b a }".to_owned(), "\"INVALID_INPUT\""),
            ("mutation { a b c: a }".to_owned(), "ok"),
            (format!("{{ x {} }}", "@skip(if: false) ".repeat(DEFINITIONS_MAX + 1)), "\"QUERY_TOO_COMPLEX\""),
        ] {
            assert_eq!(code(&query), expected, "{}", &query[..query.len().min(80)]);
        }
    }

    #[test]
    fn variables_are_weighed_by_how_often_they_are_used() {
        let query = |uses: usize| {
            format!(
                "query($v: JSON) {{ {} }}",
                (0..uses).map(|n| format!("a{n}: x(v: $v) ")).collect::<String>()
            )
        };
        let large = Variables::from_json(serde_json::json!({ "v": vec![0; 100_000] }));
        for (uses, fits) in [(1, true), (9, true), (11, false)] {
            let weight = check_document(&parse_query(query(uses)).unwrap()).unwrap();
            assert_eq!(check_variables(weight, &large).is_ok(), fits, "{uses} uses");
        }
    }
}
