//! Conditions: CEL expressions over a token and a request, bounded in time and memory.
//!
//! They come from clients, and so does the data that they see; the evaluator of the `cel` crate has
//! no bound of its own. So `parse` bounds the text and refuses what needs unbounded memory,
//! `price` rewrites the expression so that whatever repeats or copies is paid for out of a fixed
//! number of steps, and `json` lends the data to the evaluator instead of copying it. The same
//! condition on the same data always comes to the same verdict: steps are counted, not time.

mod json;
mod parse;
mod price;

use std::sync::LazyLock;

use cel::common::ast::IdedExpr;
use cel::{Context, ExecutionError, Value as CelValue};
use serde_json::{Map, Value};

use self::json::{token_value, value};
use super::token::Token;

/// Stack that [`Condition::parse`] needs, with a wide margin: it was measured to use 0.3 MiB in a
/// release build, of what `parse` lets through.
pub const PARSER_STACK_BYTES: usize = 16 << 20;

/// Steps of one evaluation. A loop over 10,000 small objects with one comparison takes about
/// 135,000, a comparison without a loop about 10.
const STEPS_MAX: i64 = 1_000_000;

/// Characters of the evaluator's message that are passed on; it may quote data.
const MESSAGE_CHARS_MAX: usize = 200;

/// One condition, ready to be evaluated.
#[derive(Debug)]
pub struct Condition {
    source: String,
    expression: IdedExpr,
    /// Nodes of the expression: what one evaluation costs without its loops.
    nodes: usize,
    loops: bool,
}

/// What came of a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// It could not be evaluated, for the reason given.
    Failed(String),
}

impl Condition {
    /// Parses a condition; an error says what is wrong and where.
    ///
    /// Call it on a thread with [`PARSER_STACK_BYTES`] of stack.
    pub fn parse(source: &str) -> Result<Self, String> {
        let parse::Parsed { mut expression, nodes, loops } = parse::parse(source)?;
        price::price(&mut expression);
        Ok(Self { source: source.to_owned(), expression, nodes, loops })
    }

    /// The condition as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether it goes through a list, so that its time depends on the data.
    pub fn loops(&self) -> bool {
        self.loops
    }

    /// About how many bytes it takes in memory.
    pub fn memory_bytes(&self) -> usize {
        const NODE_BYTES: usize = 256;
        self.source.len() + self.nodes * NODE_BYTES
    }
}

/// What conditions see: `token` as it is, and `input`, the data of the request.
pub struct Scope<'a> {
    context: Context<'a, 'a>,
}

impl<'a> Scope<'a> {
    /// Lends a token and a request's data; `input` is an object without members where there is none.
    pub fn new(token: &'a Token, input: Option<&'a Value>) -> Self {
        static ROOT: LazyLock<Context<'static, 'static>> = LazyLock::new(price::root_context);
        let root: &'a Context<'a, 'a> = &ROOT;
        let mut context = root.new_inner_scope();
        context.add_variable_as_val("token", token_value(token));
        static NONE: LazyLock<Value> = LazyLock::new(|| Value::Object(Map::new()));
        context.add_variable_as_val("input", value(input.unwrap_or(&NONE)));
        Self { context }
    }

    /// Evaluates a condition. Anything but true and false, and anything too costly, is a failure.
    pub fn evaluate(&self, condition: &Condition) -> Verdict {
        price::fill(STEPS_MAX);
        price::pay(condition.nodes);
        let outcome = CelValue::resolve(&condition.expression, &self.context);
        // First, as `||` may have swallowed the error.
        if price::is_empty() {
            return Verdict::Failed(format!("it takes more than {STEPS_MAX} steps on this data"));
        }
        match outcome {
            Ok(CelValue::Bool(true)) => Verdict::True,
            Ok(CelValue::Bool(false)) => Verdict::False,
            Ok(other) => Verdict::Failed(format!("it is {}, not true or false", other.type_of())),
            // The value exists but is one of ours, which the evaluator cannot return.
            Err(ExecutionError::UnexpectedType { got, want }) if want.contains("representable") => {
                Verdict::Failed(format!("it is {got}, not true or false"))
            }
            Err(error) => {
                let text = error.to_string();
                Verdict::Failed(
                    text.lines()
                        .next()
                        .unwrap_or_default()
                        .chars()
                        .take(MESSAGE_CHARS_MAX)
                        .collect(),
                )
            }
        }
    }
}

#[cfg(test)]
mod tests;
