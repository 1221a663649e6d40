//! Bounds on the parsed document of a query.
//!
//! They stand before validation and the GraphQL library, whose own limits come after the cost. All here is linear.

use std::collections::HashMap;

use async_graphql::parser::types::{
    ExecutableDocument, FragmentDefinition, OperationDefinition, Selection, SelectionSet,
};
use async_graphql::{Name, Positioned, ServerError};
use async_graphql_value::Value;

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

/// Checks a parsed document before it is validated.
pub fn check_document(document: &ExecutableDocument) -> Result<(), ServerError> {
    if document.operations.iter().count() > DEFINITIONS_MAX
        || document.fragments.len() > DEFINITIONS_MAX
    {
        return Err(too_complex(format!(
            "at most {DEFINITIONS_MAX} operations and as many fragments are allowed"
        )));
    }
    let mut weigher =
        Weigher { fragments: &document.fragments, known: HashMap::new(), written: 0, extras: 0 };
    // Also fragments that nobody uses: validation goes through them, too.
    for name in document.fragments.keys() {
        let weight = weigher.fragment(name)?;
        check_fields(weight)?;
    }
    for (_, operation) in document.operations.iter() {
        let weight = weigher.operation(&operation.node)?;
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
    }
    Ok(())
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
}

impl Weight {
    fn add(&mut self, other: Weight) {
        self.depth = self.depth.max(other.depth);
        self.introspection_lists = self.introspection_lists.max(other.introspection_lists);
        self.fields = self.fields.saturating_add(other.fields);
        self.roots = self.roots.saturating_add(other.roots);
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
        let weight = self.selection_set(&operation.selection_set.node)?;
        for directive in &operation.directives {
            self.extra(1)?;
            arguments(&directive.node.arguments)?;
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
                arguments(&directive.node.arguments)?;
            }
            sum.add(match &selection.node {
                Selection::Field(field) => {
                    arguments(&field.node.arguments)?;
                    let inner = self.selection_set(&field.node.selection_set.node)?;
                    Weight {
                        depth: inner.depth + 1,
                        fields: inner.fields.saturating_add(1),
                        roots: 1,
                        introspection_lists: inner.introspection_lists
                            + list_of_introspection(&field.node.name.node),
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
        let weight = self.selection_set(&fragment.node.selection_set.node)?;
        for directive in &fragment.node.directives {
            self.extra(1)?;
            arguments(&directive.node.arguments)?;
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

/// Bounds the arguments.
fn arguments(arguments: Arguments<'_>) -> Result<(), ServerError> {
    let count = arguments.len();
    if count > ARGUMENTS_MAX {
        return Err(too_complex(format!(
            "a field has {count} arguments, at most {ARGUMENTS_MAX} are allowed"
        )));
    }
    Ok(())
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
            (format!("{{ x {} }}", "@skip(if: false) ".repeat(DEFINITIONS_MAX + 1)), "\"QUERY_TOO_COMPLEX\""),
        ] {
            assert_eq!(code(&query), expected, "{}", &query[..query.len().min(80)]);
        }
    }
}
