//! Whether a document is right for the schema, and its variables for it, as the GraphQL specification has it
//! (October 2021, chapter 5 and 6.1.2).
//!
//! The library that executes has rules of its own for this, which let different fields under one key pass and know
//! neither all positions of variables nor all places where they are used. So they are off, and apollo-compiler,
//! which has all of the rules, says what is valid.

use std::fmt::Write;
use std::sync::LazyLock;

use apollo_compiler::ast::Type;
use apollo_compiler::executable::Operation;
use apollo_compiler::parser::Parser;
use apollo_compiler::schema::{ExtendedType, InputObjectType};
use apollo_compiler::validation::{DiagnosticList, Valid};
use async_graphql::{EmptySubscription, Name, Pos, Schema, ServerError, Variables};
use async_graphql_value::ConstValue;

use super::document::wrong;
use super::mutation::Mutation;
use super::positions::check_positions;
use super::query::Query;

/// Tokens of a document: a text has at most one for each of its bytes.
const TOKENS_MAX: usize = 128 * 1024;

/// Errors that are told.
const ERRORS_MAX: usize = 20;

/// Characters of each of them.
const MESSAGE_CHARS_MAX: usize = 400;

static SCHEMA: LazyLock<Valid<apollo_compiler::Schema>> = LazyLock::new(|| {
    let schema = Schema::build(Query, Mutation, EmptySubscription).finish().sdl();
    let checked = apollo_compiler::Schema::parse_and_validate(schema, "schema.graphql");
    checked.expect("the schema is valid: a test shows it")
});

/// The variables of each operation of a document that is valid.
#[derive(Debug)]
pub struct Operations(Vec<(Option<String>, Vec<Declared>)>);

/// A variable that an operation declares.
#[derive(Debug)]
struct Declared {
    name: Name,
    of: Type,
    has_default: bool,
    /// Its type takes null, and it stands where null may not, as it has a default.
    is_never_null: bool,
    at: Pos,
}

/// Checks a document. Where it is wrong, what is wrong with it.
pub fn validate(text: &str) -> Result<Operations, Vec<ServerError>> {
    let mut parser = Parser::new().token_limit(TOKENS_MAX);
    let document = parser
        .parse_executable(&SCHEMA, text, "query")
        .map_err(|wrong| told(&wrong.errors))?
        .validate(&SCHEMA)
        .map_err(|wrong| told(&wrong.errors))?;
    let declared = |operation: &Operation| {
        let never_null = check_positions(&SCHEMA, &document, operation)?;
        let each = operation.variables.iter().map(|variable| {
            let at = variable.line_column_range(&document.sources).map(|range| range.start);
            Declared {
                name: Name::new(variable.name.as_str()),
                of: Type::clone(&variable.ty),
                has_default: variable.default_value.is_some(),
                is_never_null: never_null.contains(&variable.name),
                at: at.map_or(Pos::default(), |at| Pos { line: at.line, column: at.column }),
            }
        });
        Ok((operation.name.as_ref().map(ToString::to_string), each.collect()))
    };
    let all: Result<_, ServerError> = document.operations.iter().map(|it| declared(it)).collect();
    Ok(Operations(all.map_err(|wrong| vec![wrong])?))
}

fn told(errors: &DiagnosticList) -> Vec<ServerError> {
    let each = errors.iter().take(ERRORS_MAX).map(|error| {
        let error = error.to_json();
        // It can name what the query has.
        let message: String = error.message.chars().take(MESSAGE_CHARS_MAX).collect();
        let mut told = wrong(message);
        let at =
            |at: &apollo_compiler::parser::LineColumn| Pos { line: at.line, column: at.column };
        told.locations = error.locations.iter().map(at).collect();
        told
    });
    each.collect()
}

impl Operations {
    /// Checks the variables that are sent for an operation. A whole number in an `Int` may be written as `5.0`.
    pub fn coerce(
        &self,
        operation: Option<&str>,
        variables: &mut Variables,
    ) -> Result<(), ServerError> {
        let found = match operation {
            None => self.0.first().filter(|_| self.0.len() == 1),
            Some(_) => self.0.iter().find(|(name, _)| name.as_deref() == operation),
        };
        // Which one there is not, execution says.
        let Some((_, declared)) = found else { return Ok(()) };
        for Declared { name, of, has_default, is_never_null, at } in declared {
            let mut path = format!("variable ${name}");
            let checked = match variables.get_mut(name) {
                None if of.is_non_null() && !has_default => {
                    Err(format!("{path} of type {of} is required; send it in variables"))
                }
                None => Ok(()),
                Some(ConstValue::Null) if *is_never_null => {
                    Err(format!("{path} is null, and is used where null may not be"))
                }
                Some(value) => coerce(value, of, &mut path),
            };
            checked.map_err(|message| {
                let mut error = wrong(message);
                error.locations = vec![*at];
                error
            })?;
        }
        Ok(())
    }
}

/// Checks a value of a variable. `path` is where it stands.
fn coerce(value: &mut ConstValue, of: &Type, path: &mut String) -> Result<(), String> {
    if *value == ConstValue::Null {
        let null = Err(format!("{path} is null, which a {of} may not be"));
        return if of.is_non_null() { null } else { Ok(()) };
    }
    let known = path.len();
    match (of, value) {
        (Type::List(inner) | Type::NonNullList(inner), ConstValue::List(items)) => {
            for (index, item) in items.iter_mut().enumerate() {
                let _ = write!(path, "[{index}]");
                coerce(item, inner, path)?;
                path.truncate(known);
            }
            Ok(())
        }
        // One that is no list stands for a list of it.
        (Type::List(inner) | Type::NonNullList(inner), value) => coerce(value, inner, path),
        (Type::Named(name) | Type::NonNullNamed(name), value) => match SCHEMA.types.get(name) {
            Some(ExtendedType::InputObject(object)) => coerce_object(value, object, path),
            Some(ExtendedType::Enum(known)) => match value {
                ConstValue::String(text) if known.values.contains_key(text.as_str()) => Ok(()),
                value => Err(format!("{path} is {}, not one of {name}", kind(value))),
            },
            _ => coerce_scalar(value, name, path),
        },
    }
}

fn coerce_scalar(value: &mut ConstValue, of: &str, path: &str) -> Result<(), String> {
    let fits = match (of, &*value) {
        ("Int", ConstValue::Number(number)) => {
            let whole = number.as_f64().filter(|number| number.fract() == 0.0);
            let whole = whole.filter(|n| (f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(n));
            if let Some(whole) = whole.filter(|_| number.is_f64()) {
                *value = ConstValue::from(whole as i32);
            }
            whole.is_some()
        }
        ("ID", ConstValue::Number(number)) => !number.is_f64(),
        ("Float", ConstValue::Number(_))
        | ("String" | "ID", ConstValue::String(_))
        | ("Boolean", ConstValue::Boolean(_)) => true,
        ("Int" | "Float" | "String" | "ID" | "Boolean", _) => false,
        // Any other takes what JSON has.
        _ => true,
    };
    if fits { Ok(()) } else { Err(format!("{path} is {}, not a value of {of}", kind(value))) }
}

fn coerce_object(
    value: &mut ConstValue,
    of: &InputObjectType,
    path: &mut String,
) -> Result<(), String> {
    let ConstValue::Object(members) = value else {
        return Err(format!("{path} is {}, not a {}", kind(value), of.name));
    };
    if let Some(unknown) = members.keys().find(|name| !of.fields.contains_key(name.as_str())) {
        let name: String = unknown.chars().take(100).collect();
        return Err(format!("{path} has a member {name:?}, which a {} does not have", of.name));
    }
    let known = path.len();
    for (name, field) in &of.fields {
        match members.get_mut(name.as_str()) {
            Some(value) => {
                let _ = write!(path, ".{name}");
                coerce(value, &field.ty, path)?;
                path.truncate(known);
            }
            None if field.is_required() => {
                return Err(format!("{path} lacks {name}, which a {} needs", of.name));
            }
            None => {}
        }
    }
    Ok(())
}

/// What kind of value something is.
fn kind(value: &ConstValue) -> &'static str {
    match value {
        ConstValue::Null => "null",
        ConstValue::Number(_) => "a number",
        ConstValue::String(_) => "a text",
        ConstValue::Boolean(_) => "true or false",
        ConstValue::Enum(_) => "a name",
        ConstValue::Binary(_) => "bytes",
        ConstValue::List(_) => "a list",
        ConstValue::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn refused(query: &str, variables: Value) -> String {
        let operations = match validate(query) {
            Ok(operations) => operations,
            Err(errors) => return errors[0].message.clone(),
        };
        let mut variables = Variables::from_json(variables);
        operations
            .coerce(None, &mut variables)
            .map_or_else(|error| error.message, |()| String::new())
    }

    #[test]
    fn documents_are_held_against_the_schema() {
        let cases = [
            ("{ health { status } }", ""),
            ("{ __schema { types { name } } __type(name: \"Token\") { name } }", ""),
            ("{ ... # { \n @include(if: true) { __typename } }", ""),
            ("{ healthx }", "does not have a field `healthx`"),
            ("{ a: workflows { id } a: tokens { id } }", "different fields into the same alias"),
            (
                "{ a: token(id: \"x\") { id } a: token(id: \"y\") { id } }",
                "conflicting field arguments",
            ),
            ("{ tokens { a: id } tokens { a: place } }", "select different types"),
            ("query($i: String) { token(id: $i) { id } }", "cannot be used for argument"),
            ("query($i: JSON!) { token(id: $i) { id } }", "cannot be used for argument"),
            ("query($i: Int) { health { status } }", "unused variable"),
            (
                "query($i: String!) { tokensInPlace(workflowId: \"w\", placeId: $i) { id } }",
                "is required",
            ),
            (
                "query($i: ID!) { explainTransitions(tokenId: \"\", data: [{ a: $i }]) { allowed } }",
                "is required",
            ),
            ("{ explainTransitions(tokenId: \"\", data: [{ a: $i }]) { allowed } }", "$i"),
            (
                "mutation($i: String!) { createWorkflow(input: { name: \"\", places: $i, transitions: [], initialPlace: \"\" }) { id } }",
                "cannot be used where a [String!]! is",
            ),
            (
                "mutation($i: String) { createWorkflow(input: { name: \"\", places: [$i], transitions: [], initialPlace: \"\" }) { id } }",
                "cannot be used where a String! is",
            ),
            (
                "query($i: Boolean = null) { __typename @skip(if: $i) }",
                "cannot be used where a Boolean! is",
            ),
            ("query($i: Int = null) { tokenConnection(first: $i) { edges { cursor } } }", ""),
            (
                "{ explainTransitions(tokenId: \"\", data: { a: 1, a: 2 }) { allowed } }",
                "an object has a twice",
            ),
            (
                "mutation { fireTransition(input: { tokenId: \"\", transitionId: \"\", expectedVersion: 1, expectedVersion: 2 }) { id } }",
                "expectedVersion",
            ),
            (
                "query($d: JSON = { b: 1, b: 2 }) { explainTransitions(tokenId: \"\", data: $d) { allowed } }",
                "an object has b twice",
            ),
            ("query($v: [Nope] = [1]) { __typename @skip(if: $v) }", "cannot find type `Nope`"),
            ("query($v: Health = {}) { __typename @skip(if: $v) }", "must be of an input type"),
            ("query($i: Boolean!) { __typename @skip(if: $i) }", "is required"),
            ("{ tokens { ... on Health { status } } }", "cannot be applied"),
        ];
        for (query, expected) in cases {
            let told = refused(query, json!({}));
            assert!(
                told.contains(expected) && told.is_empty() == expected.is_empty(),
                "{query}: {told}"
            );
        }
    }

    #[test]
    fn variables_are_those_of_the_operation_that_is_named() {
        let query = "query A($a: String!) { token(id: $a) { id } } query B { health { status } }";
        let operations = validate(query).unwrap();
        let told = |name| operations.coerce(name, &mut Variables::default()).is_ok();
        assert!(!told(Some("A")) && told(Some("B")));
        assert!(told(None) && told(Some("C")), "there is no such operation, which execution says");
    }

    #[test]
    fn variables_are_held_against_their_types() {
        let of = |of: &str, value: Value| {
            let (field, argument) = match of.trim_end_matches('!') {
                "Int" => ("tokenConnection", "first"),
                "JSON" => ("explainTransitions(tokenId: \"x\", data: $v) { allowed } #", ""),
                "TransitionFireInput" => ("fireTransition", "input"),
                _ => ("token", "id"),
            };
            let kind = if field == "fireTransition" { "mutation" } else { "query" };
            let query =
                format!("{kind}($v: {of}) {{ {field}({argument}: $v) {{ __typename }} \n }}");
            refused(&query, json!({ "v": value }))
        };
        assert_eq!(of("String!", json!("x")), "");
        assert_eq!(of("String!", json!(null)), "variable $v is null, which a String! may not be");
        assert_eq!(of("String!", json!(5)), "variable $v is a number, not a value of String");
        assert_eq!(of("Int!", json!(2_147_483_647)), "");
        assert_eq!(of("Int!", json!(5.0)), "");
        assert_eq!(of("Int!", json!(5.5)), "variable $v is a number, not a value of Int");
        assert_eq!(
            of("Int!", json!(2_147_483_648_u64)),
            "variable $v is a number, not a value of Int"
        );
        assert_eq!(of("JSON!", json!({ "any": [1, null] })), "");
        assert_eq!(of("JSON!", json!(null)), "variable $v is null, which a JSON! may not be");
        let input = "TransitionFireInput!";
        assert_eq!(of(input, json!({ "tokenId": "x", "transitionId": "y" })), "");
        assert_eq!(of(input, json!([])), "variable $v is a list, not a TransitionFireInput");
        assert_eq!(
            of(input, json!({ "tokenId": "x" })),
            "variable $v lacks transitionId, which a TransitionFireInput needs"
        );
        assert_eq!(
            of(input, json!({ "tokenId": "x", "transitionId": "y", "expectedVersion": "1" })),
            "variable $v.expectedVersion is a text, not a value of Int"
        );
        assert_eq!(
            of(input, json!({ "tokenId": "x", "transitionId": "y", "dat": 1 })),
            "variable $v has a member \"dat\", which a TransitionFireInput does not have"
        );
    }
}
