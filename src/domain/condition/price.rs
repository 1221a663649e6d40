//! Prices: what repeats or copies is made to pay for itself.
//!
//! The evaluator of `cel` counts nothing itself. So the expression is rewritten once, after it was parsed:
//! loops, comparisons, sums, calls and literals go through functions of ours, which take their steps.

use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, ListExpr, LiteralValue, operators,
};

use super::functions::{BYTES_PER_STEP, STEPS_PER_ITEM};
use super::parse::{FUNCTIONS, pattern_of};

/// Steps of one round of a loop, beside those of its body.
const STEPS_PER_ROUND: usize = 6;

/// Rewrites a bounded expression in place, and puts its patterns into `patterns`.
pub fn price(node: &mut IdedExpr, patterns: &mut Vec<String>) {
    Pricing { patterns }.price(node);
}

struct Pricing<'a> {
    patterns: &'a mut Vec<String>,
}

impl Pricing<'_> {
    /// Gives the steps of one evaluation without its loops.
    fn price(&mut self, node: &mut IdedExpr) -> usize {
        match &mut node.expr {
            Expr::Call(call) if call.func_name == "dyn" => {
                // It is for a checker of types; what it stands for is its argument.
                let argument = call.args.pop().unwrap_or_default();
                *node = argument;
                self.price(node)
            }
            Expr::Call(call) => {
                let is_time = call.func_name == "timestamp";
                let steps = self.price_call(call);
                if is_time {
                    through("@utc", node);
                }
                steps
            }
            Expr::Comprehension(loops) => {
                let builds = matches!(loops.accu_init.expr, Expr::List(_));
                let steps =
                    if builds { self.price_building(loops) } else { self.price_asking(loops) };
                if builds {
                    through("@list", node);
                }
                steps
            }
            Expr::List(list) => {
                let steps = 1 + self.price_items(&mut list.elements);
                through("@list", node);
                steps
            }
            Expr::Map(map) => {
                let entries = std::mem::take(&mut map.entries).into_iter();
                let mut items: Vec<_> =
                    entries.flat_map(|entry| key_and_value(entry.expr)).collect();
                let steps = 2 + self.price_items(&mut items);
                let list = Expr::List(ListExpr::new(items));
                *node = call("@object", vec![IdedExpr { id: node.id, expr: list }]);
                steps
            }
            Expr::Select(select) => 1 + self.price(&mut select.operand),
            Expr::Literal(LiteralValue::String(text)) => 1 + text.inner().len() / BYTES_PER_STEP,
            _ => 1,
        }
    }

    fn price_call(&mut self, call: &mut CallExpr) -> usize {
        use operators::{
            ADD, DIVIDE, EQUALS, GREATER, GREATER_EQUALS, LESS, LESS_EQUALS, MODULO, MULTIPLY,
            NOT_EQUALS, SUBSTRACT,
        };
        if let Some(pattern) = pattern_of(call) {
            self.patterns.push(pattern.to_owned());
            let number = i64::try_from(self.patterns.len() - 1).unwrap_or(i64::MAX);
            let text = call.target.take().map(|text| *text);
            let mut text = text.unwrap_or_else(|| std::mem::take(&mut call.args[0]));
            let steps = 2 + self.price(&mut text);
            *call = CallExpr {
                func_name: "@matches".to_owned(),
                target: None,
                args: vec![text, literal(LiteralValue::Int(number.into()))],
            };
            return steps;
        }
        let ours = match call.func_name.as_str() {
            EQUALS => Some("@equals"),
            NOT_EQUALS => Some("@not_equals"),
            LESS => Some("@less"),
            LESS_EQUALS => Some("@less_equals"),
            GREATER => Some("@greater"),
            GREATER_EQUALS => Some("@greater_equals"),
            SUBSTRACT => Some("@difference"),
            MULTIPLY => Some("@product"),
            DIVIDE => Some("@quotient"),
            ADD => Some("@sum"),
            _ => None,
        };
        // A sum pays for what it reads itself.
        let reads = match call.func_name.as_str() {
            ADD => false,
            MODULO => true,
            function => ours.is_some() || FUNCTIONS.contains(&function),
        };
        if let Some(ours) = ours {
            ours.clone_into(&mut call.func_name);
        }
        if call.func_name == "duration" {
            call.args.iter_mut().for_each(|text| through("@span", text));
        }
        let mut steps = 2;
        if let Some(target) = call.target.as_deref_mut() {
            steps += self.price_through("@read", target);
        }
        for argument in &mut call.args {
            steps +=
                if reads { self.price_through("@read", argument) } else { self.price(argument) };
        }
        steps
    }

    /// The items of a literal, which are kept.
    fn price_items(&mut self, items: &mut [IdedExpr]) -> usize {
        items.iter_mut().map(|item| STEPS_PER_ITEM + self.price_through("@keep", item)).sum()
    }

    /// What is read or kept pays for its length.
    fn price_through(&mut self, function: &str, node: &mut IdedExpr) -> usize {
        let steps = self.price(node);
        let is_short = match &node.expr {
            Expr::Literal(literal) => !matches!(literal, LiteralValue::String(_)),
            _ => false,
        };
        if !is_short {
            through(function, node);
        }
        steps
    }

    /// Makes each round of `all`, `exists` or `exists_one` pay before it begins.
    ///
    /// The steps are taken in the loop's own condition: there an error ends the loop, while one in its
    /// body is kept until the end. What the macros make around the body is left as it is.
    fn price_asking(&mut self, loops: &mut ComprehensionExpr) -> usize {
        let of_range = self.price(&mut loops.iter_range);
        let mut of_round = STEPS_PER_ROUND;
        if let Expr::Call(step) = &mut loops.loop_step.expr {
            // `body ? @result + 1 : @result` for exists_one, `@result && body` and `@result || body` else.
            let body = usize::from(step.func_name != operators::CONDITIONAL);
            of_round += step.args.get_mut(body).map_or(0, |body| self.price(body));
        }
        pay_before(&mut loops.loop_cond, of_round);
        3 + of_range
    }

    /// Makes each round of `map` or `filter` pay before it begins.
    ///
    /// They are `@result + [item]`, or that and else `@result`. The evaluator builds the list in one piece as long
    /// as they look like this and their condition is a literal. So the steps are taken in what is asked
    /// first in a round, where an error ends the loop.
    fn price_building(&mut self, loops: &mut ComprehensionExpr) -> usize {
        let of_range = self.price(&mut loops.iter_range);
        let mut of_round = STEPS_PER_ROUND;
        let Expr::Call(step) = &mut loops.loop_step.expr else { return 3 + of_range };
        let (guard, sum) = match &mut step.args[..] {
            [guard, IdedExpr { expr: Expr::Call(sum), .. }, _] => (Some(guard), sum),
            _ => (None, step),
        };
        if let [_, IdedExpr { expr: Expr::List(one), .. }] = &mut sum.args[..] {
            of_round += self.price_items(&mut one.elements);
            match guard {
                Some(guard) => {
                    of_round += self.price(guard);
                    pay_before(guard, of_round);
                }
                None => one.elements.iter_mut().for_each(|item| pay_before(item, of_round)),
            }
        }
        3 + of_range
    }
}

fn key_and_value(entry: EntryExpr) -> Vec<IdedExpr> {
    match entry {
        EntryExpr::MapEntry(entry) => vec![entry.key, entry.value],
        EntryExpr::StructField(field) => vec![field.value],
    }
}

/// Replaces a node by one that takes steps first. Not by `&&`, which would swallow the error.
fn pay_before(node: &mut IdedExpr, steps: usize) {
    let steps = literal(LiteralValue::Int(i64::try_from(steps).unwrap_or(i64::MAX).into()));
    let paid = call("@round", vec![steps]);
    let inner = std::mem::take(node);
    let never = literal(LiteralValue::Boolean(false.into()));
    *node = call(operators::CONDITIONAL, vec![paid, inner, never]);
}

/// Replaces a node by a call of `function` on it.
fn through(function: &str, node: &mut IdedExpr) {
    let inner = std::mem::take(node);
    *node = call(function, vec![inner]);
}

fn call(function: &str, args: Vec<IdedExpr>) -> IdedExpr {
    let call = CallExpr { func_name: function.to_owned(), target: None, args };
    IdedExpr { id: 0, expr: Expr::Call(call) }
}

fn literal(value: LiteralValue) -> IdedExpr {
    IdedExpr { id: 0, expr: Expr::Literal(value) }
}
