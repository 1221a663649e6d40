//! Steps: what repeats or copies takes some of a fixed number, and fails when none are left.
//!
//! The evaluator of `cel` counts nothing itself. So the expression is rewritten once, after it was
//! parsed: loops, comparisons, sums, calls and list literals go through functions of ours, whose
//! names begin with `@` so that no client can write them.

use std::cell::Cell;
use std::sync::Arc;

use cel::common::ast::{CallExpr, ComprehensionExpr, Expr, IdedExpr, LiteralValue, operators};
use cel::common::types::{CelBool, CelInt, CelString, DYN_TYPE, INT_TYPE, Kind};
use cel::common::value::{CowVal, Val};
use cel::{Context, Env, ExecutionError};

use super::json::List;
use super::parse::FUNCTIONS;

/// Bytes of text that one step reads.
const BYTES_PER_STEP: usize = 16;

/// Bytes of a text that `+` makes.
const SUM_BYTES_MAX: usize = 4 * 1024;

/// Steps of one round of a loop, beside those of its body.
const STEPS_PER_ROUND: usize = 6;

thread_local! {
    // Per thread, as the evaluator hands nothing of ours through. An evaluation never changes
    // threads: nothing in it awaits. It stays negative once it is used up, whatever `||` does with
    // the error.
    static STEPS_LEFT: Cell<i64> = const { Cell::new(0) };
}

/// Begins an evaluation.
pub fn fill(steps: i64) {
    STEPS_LEFT.set(steps);
}

/// Takes steps; false if there are not that many left.
pub fn pay(steps: usize) -> bool {
    let left = STEPS_LEFT.get().saturating_sub(i64::try_from(steps).unwrap_or(i64::MAX));
    STEPS_LEFT.set(left);
    left >= 0
}

/// Whether an evaluation asked for more than there was.
pub fn is_empty() -> bool {
    STEPS_LEFT.get() < 0
}

/// Takes steps, or is the error that ends the evaluation.
pub fn pay_or_fail(steps: usize) -> Result<(), ExecutionError> {
    if pay(steps) {
        Ok(())
    } else {
        Err(ExecutionError::function_error("condition", "too many steps"))
    }
}

/// The length of a text; 0 for anything else.
pub fn text_bytes(value: &dyn Val) -> usize {
    value.downcast_ref::<CelString>().map_or(0, |text| text.inner().len())
}

/// The functions that conditions and the rewriting below may call.
pub fn root_context() -> Context<'static, 'static> {
    let mut env = Env::default().with_optional_support(false).with_stdlib();
    let added = [
        env.add_overload("@round", "@round", vec![INT_TYPE], round),
        env.add_overload("@read", "@read", vec![DYN_TYPE], read),
        env.add_overload("@list", "@list", vec![DYN_TYPE], list),
        env.add_overload("@sum", "@sum", vec![DYN_TYPE, DYN_TYPE], sum),
    ];
    for outcome in added {
        outcome.expect("names with @ are free in the standard library");
    }
    Context::with_env(Arc::new(env))
}

type Outcome<'b, 'v> = Result<CowVal<'b, 'v>, ExecutionError>;

/// One round of a loop: true, after its steps were paid.
fn round<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v> {
    let steps = arguments
        .first()
        .and_then(|steps| steps.downcast_ref::<CelInt>())
        .map_or(1, |steps| *steps.inner());
    pay_or_fail(usize::try_from(steps).unwrap_or(1))?;
    Ok(CowVal::owned(CelBool::from(true)))
}

/// Its argument, after the length was paid: operators read it, and errors copy it.
fn read<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v> {
    let value = only(arguments)?;
    pay_or_fail(1 + text_bytes(value.as_ref()) / BYTES_PER_STEP)?;
    Ok(value)
}

/// A list literal as a list that is copied in one step and equal to a list in the data.
fn list<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v> {
    match only(arguments)? {
        CowVal::Owned(value) => match Vec::<Box<dyn Val + 'v>>::try_from(value) {
            Ok(items) => Ok(CowVal::owned(List::of(items))),
            Err(other) => Ok(CowVal::Owned(other)),
        },
        borrowed => Ok(borrowed),
    }
}

/// The sum of numbers and times, or two short texts joined. Lists are not joined: they could double
/// with each `+`.
fn sum<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v> {
    let [left, right] = &arguments[..] else { return Err(wrong_arguments()) };
    let bytes = text_bytes(left.as_ref()) + text_bytes(right.as_ref());
    if left.get_type().kind() == Kind::List {
        return Err(ExecutionError::function_error("+", "lists cannot be joined in a condition"));
    }
    if bytes > SUM_BYTES_MAX {
        return Err(ExecutionError::function_error(
            "+",
            format!("the text would be longer than {SUM_BYTES_MAX} bytes"),
        ));
    }
    pay_or_fail(1 + bytes / BYTES_PER_STEP)?;
    let types = || vec![left.get_type().name().to_owned(), right.get_type().name().to_owned()];
    let adder =
        left.as_adder().ok_or_else(|| ExecutionError::no_such_overload(operators::ADD, types()))?;
    Ok(CowVal::Owned(adder.add(right.as_ref())?.into_owned()))
}

fn only<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v> {
    arguments.into_iter().next().ok_or_else(wrong_arguments)
}

fn wrong_arguments() -> ExecutionError {
    ExecutionError::function_error("condition", "it was rewritten wrongly, a defect")
}

/// Rewrites a bounded expression in place. Gives the steps of one evaluation without its loops.
pub fn price(node: &mut IdedExpr) -> usize {
    match &mut node.expr {
        Expr::Call(call) => price_call(call),
        Expr::Comprehension(loops) => price_loop(loops),
        Expr::List(list) => {
            let steps = 1 + list.elements.iter_mut().map(price_and_read).sum::<usize>();
            through("@list", node);
            steps
        }
        Expr::Select(select) => 1 + price(&mut select.operand),
        Expr::Literal(LiteralValue::String(text)) => 1 + text.inner().len() / BYTES_PER_STEP,
        _ => 1,
    }
}

fn price_call(call: &mut CallExpr) -> usize {
    use operators::{
        ADD, DIVIDE, EQUALS, GREATER, GREATER_EQUALS, LESS, LESS_EQUALS, MODULO, MULTIPLY,
        NOT_EQUALS, SUBSTRACT,
    };
    let reads = match call.func_name.as_str() {
        EQUALS | NOT_EQUALS | LESS | LESS_EQUALS | GREATER | GREATER_EQUALS => true,
        SUBSTRACT | MULTIPLY | DIVIDE | MODULO => true,
        ADD => {
            call.func_name = "@sum".to_owned();
            false
        }
        function => FUNCTIONS.contains(&function),
    };
    let of_target = call.target.as_deref_mut().map_or(0, price_and_read);
    let of_arguments = call.args.iter_mut().map(if reads { price_and_read } else { price });
    2 + of_target + of_arguments.sum::<usize>()
}

fn price_and_read(node: &mut IdedExpr) -> usize {
    let steps = price(node);
    // Numbers and bools are neither long nor copied.
    if !matches!(&node.expr, Expr::Literal(literal) if !matches!(literal, LiteralValue::String(_)))
    {
        through("@read", node);
    }
    steps
}

/// Makes each round of `all`, `exists` or `exists_one` pay before it begins.
///
/// The steps are taken in the loop's own condition: there an error ends the loop, while one in its
/// body is kept until the end. What the macros make around the body is left as it is.
fn price_loop(loops: &mut ComprehensionExpr) -> usize {
    let of_range = price(&mut loops.iter_range);
    let mut of_round = STEPS_PER_ROUND;
    if let Expr::Call(step) = &mut loops.loop_step.expr {
        // `body ? @result + 1 : @result` for exists_one, `@result && body` and `@result || body` else.
        let body = usize::from(step.func_name != operators::CONDITIONAL);
        of_round += step.args.get_mut(body).map_or(0, price);
    }
    let condition = std::mem::take(&mut loops.loop_cond);
    let steps = literal(LiteralValue::Int(i64::try_from(of_round).unwrap_or(i64::MAX).into()));
    let paid = call("@round", vec![steps]);
    // Not `&&`, which would swallow the error.
    loops.loop_cond = call(
        operators::CONDITIONAL,
        vec![paid, condition, literal(LiteralValue::Boolean(false.into()))],
    );
    3 + of_range
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
