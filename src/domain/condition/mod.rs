//! Conditions: CEL expressions over a token and a request, bounded in time and memory.
//!
//! They come from clients, and so does the data that they see; the evaluator of the `cel` crate has
//! no bound of its own. So `parse` bounds the text and refuses what needs unbounded memory,
//! `price` rewrites the expression so that whatever repeats or copies is paid for out of a fixed
//! number of steps, and `json` lends the data to the evaluator instead of copying it. The same
//! condition on the same data always comes to the same verdict: steps are counted, not time.

mod functions;
mod json;
mod list;
mod looks;
mod numbers;
mod object;
mod parse;
mod patterns;
mod price;
mod purse;
mod sense;
mod words;

use std::sync::{Arc, LazyLock};

use cel::common::ast::IdedExpr;
use cel::common::types::CelTimestamp;
use cel::{Context, ExecutionError, Value as CelValue};
use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

use self::json::{caller_value, token_value, value};
use self::looks::Look;
use self::patterns::Pattern;
use self::words::reason;
use super::caller::Caller;
use super::id::Shown;
use super::limits::PATTERNS_BYTES_MAX;
use super::steps::Steps;
use super::token::Token;

/// Stack that [`Condition::parse`] needs, with a wide margin: it was measured to use 0.3 MiB in a
/// release build, of what `parse` lets through.
pub const PARSER_STACK_BYTES: usize = 16 << 20;

/// One condition, ready to be evaluated.
#[derive(Debug)]
pub struct Condition {
    source: String,
    expression: IdedExpr,
    /// Nodes of the expression: what one evaluation costs without its loops.
    nodes: usize,
    /// The values that it names.
    looks: Vec<Look>,
    /// What it calls `matches` with.
    patterns: Arc<[Pattern]>,
}

/// What the patterns of a definition may still take in memory.
#[derive(Debug)]
pub struct PatternRoom {
    bytes: usize,
}

impl PatternRoom {
    /// What a wrong pattern takes of it: to find out costs time, too.
    const WRONG_BYTES: usize = 16 * 1024;

    fn compile(&mut self, text: &str) -> Result<Pattern, String> {
        if self.bytes == 0 {
            return Err("those before it are too large, or too many are wrong".to_owned());
        }
        let pattern = Pattern::compile(text, self.bytes);
        let taken = match &pattern {
            Ok(pattern) => pattern.memory_bytes(),
            Err(patterns::Wrong::TooLarge) => self.bytes,
            Err(patterns::Wrong::Text(_)) => Self::WRONG_BYTES,
        };
        self.bytes = self.bytes.saturating_sub(taken);
        pattern.map_err(|wrong| wrong.to_string())
    }
}

impl Default for PatternRoom {
    fn default() -> Self {
        Self { bytes: PATTERNS_BYTES_MAX }
    }
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
    /// The steps of the request were not enough for it.
    TooCostly,
}

impl Condition {
    /// Parses a condition of a new definition; an error says what is wrong and where. One that can never be
    /// evaluated is wrong, too.
    ///
    /// Call it on a thread with [`PARSER_STACK_BYTES`] of stack.
    pub fn parse_new(source: &str, room: &mut PatternRoom) -> Result<Self, String> {
        let parsed = parse::parse(source)?;
        sense::check(&parsed.expression)?;
        Self::of(source, parsed, room)
    }

    /// The same for one that is stored, maybe since a time when its sense was not looked at.
    pub fn parse(source: &str, room: &mut PatternRoom) -> Result<Self, String> {
        Self::of(source, parse::parse(source)?, room)
    }

    fn of(source: &str, parsed: parse::Parsed, room: &mut PatternRoom) -> Result<Self, String> {
        let parse::Parsed { mut expression, nodes } = parsed;
        let looks = looks::looks(&expression);
        let mut texts = Vec::new();
        price::price(&mut expression, &mut texts);
        let compile = |text: &String| {
            let wrong = |wrong| format!("the pattern {}: {wrong}", Shown(text));
            room.compile(text).map_err(wrong)
        };
        let patterns = texts.iter().map(compile).collect::<Result<_, _>>()?;
        Ok(Self { source: source.to_owned(), expression, nodes, looks, patterns })
    }

    /// The condition as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The values that it looks at where they are there, by their text, such as `next.amount`; those
    /// that are long are left out.
    pub fn values(&self, seen: &Seen<'_>) -> Map<String, Value> {
        self.looks.iter().filter_map(|look| look.value(seen)).collect()
    }

    /// About how many bytes it takes in memory.
    pub fn memory_bytes(&self) -> usize {
        const NODE_BYTES: usize = 256;
        let patterns = self.patterns.iter().map(Pattern::memory_bytes).sum::<usize>();
        self.source.len() + self.nodes * NODE_BYTES + patterns
    }
}

/// What conditions see.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The token as it is before the move.
    pub token: &'a Token,
    /// The data of the request; an object without members where there is none.
    pub input: Option<&'a Value>,
    /// The data of the token as it will be.
    pub next: &'a Value,
    /// The time of the decision.
    pub now: DateTime<Utc>,
    /// Who asks.
    pub caller: &'a Caller,
}

impl<'a> Seen<'a> {
    /// The data of the request.
    fn input(&self) -> &'a Value {
        static NONE: LazyLock<Value> = LazyLock::new(|| Value::Object(Map::new()));
        self.input.unwrap_or(&NONE)
    }
}

/// The values that conditions see, lent to the evaluator.
pub struct Scope<'a> {
    context: Context<'a, 'a>,
}

impl<'a> Scope<'a> {
    /// Lends what is to be seen.
    pub fn new(seen: &Seen<'a>) -> Self {
        let root: &'a Context<'a, 'a> = functions::root_context();
        let mut context = root.new_inner_scope();
        context.add_variable_as_val("token", token_value(seen.token));
        context.add_variable_as_val("input", value(seen.input()));
        context.add_variable_as_val("next", value(seen.next));
        context.add_variable_as_val("now", Box::new(CelTimestamp::from(seen.now.fixed_offset())));
        context.add_variable_as_val("caller", caller_value(seen.caller));
        Self { context }
    }

    /// Evaluates a condition on the steps of a request. Anything but true and false is a failure.
    pub fn evaluate(&self, condition: &Condition, steps: &Arc<Steps>) -> Verdict {
        let (outcome, enough) = purse::with_steps(steps, &condition.patterns, || {
            purse::pay(condition.nodes);
            CelValue::resolve(&condition.expression, &self.context)
        });
        // First, as `||` may have swallowed the error.
        if !enough {
            return Verdict::TooCostly;
        }
        match outcome {
            Ok(CelValue::Bool(true)) => Verdict::True,
            Ok(CelValue::Bool(false)) => Verdict::False,
            Ok(other) => Verdict::Failed(format!("it is {}, not true or false", other.type_of())),
            // The value exists but is one of ours, which the evaluator cannot return.
            Err(ExecutionError::UnexpectedType { got, want }) if want.contains("representable") => {
                Verdict::Failed(format!("it is {got}, not true or false"))
            }
            Err(error) => Verdict::Failed(reason(&error)),
        }
    }
}

#[cfg(test)]
mod tests;
