//! Steps: what repeats or copies takes some of those of its request, and fails when none are left.
//!
//! The evaluator of `cel` counts nothing itself. So the expression is rewritten once, after it was
//! parsed: loops, comparisons, sums, calls and list literals go through functions of ours, whose
//! names begin with `@` so that no client can write them.

use std::cell::RefCell;
use std::sync::{Arc, LazyLock};

use cel::common::ast::{CallExpr, ComprehensionExpr, Expr, IdedExpr, LiteralValue, operators};
use cel::common::types::{CelBool, CelInt, CelString, DYN_TYPE, INT_TYPE, Kind};
use cel::common::value::{CowVal, Val};
use cel::{Context, Env, ExecutionError};

use super::json::List;
use super::numbers::{self, wrong_arguments};
use super::parse::FUNCTIONS;
use crate::domain::steps::Steps;

/// Bytes of text that one step reads.
const BYTES_PER_STEP: usize = 16;

/// Bytes of a text that `+` makes.
const SUM_BYTES_MAX: usize = 4 * 1024;

/// Steps of one round of a loop, beside those of its body.
const STEPS_PER_ROUND: usize = 6;

/// Steps that an evaluation takes from its request at once: it looks as often whether anybody still
/// waits for it, several times in a millisecond.
const STEPS_AT_ONCE: i64 = 4_096;

thread_local! {
    // Per thread, as the evaluator hands nothing of ours through. An evaluation never changes
    // threads: nothing in it awaits.
    static HERE: RefCell<Option<Here>> = const { RefCell::new(None) };
}

/// The evaluation of this thread.
struct Here {
    steps: Arc<Steps>,
    /// Taken from `steps` and not used yet.
    at_hand: i64,
    /// There were none left. It stays so, whatever `||` does with the error.
    used_up: bool,
}

/// Evaluates on the steps of a request. Gives what came of it, and whether they were enough.
pub fn with_steps<T>(steps: &Arc<Steps>, evaluate: impl FnOnce() -> T) -> (T, bool) {
    let here = Here { steps: Arc::clone(steps), at_hand: 0, used_up: false };
    HERE.set(Some(here));
    let outcome = evaluate();
    let here = HERE.take();
    let enough = here.is_some_and(|here| {
        here.steps.give_back(here.at_hand);
        !here.used_up
    });
    (outcome, enough)
}

/// Takes steps; false if there are not that many left.
pub fn pay(steps: usize) -> bool {
    HERE.with_borrow_mut(|here| here.as_mut().is_some_and(|here| here.pay(steps)))
}

impl Here {
    fn pay(&mut self, steps: usize) -> bool {
        let steps = i64::try_from(steps).unwrap_or(i64::MAX);
        if self.at_hand < steps && !self.used_up {
            self.at_hand += self.steps.take_up_to((steps - self.at_hand).max(STEPS_AT_ONCE));
        }
        self.used_up |= self.at_hand < steps;
        if !self.used_up {
            self.at_hand -= steps;
        }
        !self.used_up
    }
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
pub fn root_context() -> &'static Context<'static, 'static> {
    static ROOT: LazyLock<Context<'static, 'static>> = LazyLock::new(functions);
    &ROOT
}

fn functions() -> Context<'static, 'static> {
    let mut env = Env::default().with_optional_support(false).with_stdlib();
    let added = [
        env.add_overload("@round", "@round", vec![INT_TYPE], round),
        env.add_overload("@read", "@read", vec![DYN_TYPE], read),
        env.add_overload("@list", "@list", vec![DYN_TYPE], list),
        env.add_overload("@utc", "@utc", vec![DYN_TYPE], numbers::utc),
    ];
    type Operator = for<'b, 'v> fn(Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v>;
    let operators: [(&str, Operator); 10] = [
        ("@sum", sum),
        ("@difference", numbers::difference),
        ("@product", numbers::product),
        ("@quotient", numbers::quotient),
        ("@equals", numbers::equals),
        ("@not_equals", numbers::not_equals),
        ("@less", numbers::less),
        ("@less_equals", numbers::less_equals),
        ("@greater", numbers::greater),
        ("@greater_equals", numbers::greater_equals),
    ];
    for (name, operator) in operators {
        let added = env.add_overload(name, name, vec![DYN_TYPE, DYN_TYPE], operator);
        added.expect("names with @ are free in the standard library");
    }
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
    if let Some((left, right)) = numbers::as_fractions(left.as_ref(), right.as_ref()) {
        let adder = left.as_adder().ok_or_else(wrong_arguments)?;
        return Ok(CowVal::Owned(adder.add(&right)?.into_owned()));
    }
    let types = || vec![left.get_type().name().to_owned(), right.get_type().name().to_owned()];
    let adder =
        left.as_adder().ok_or_else(|| ExecutionError::no_such_overload(operators::ADD, types()))?;
    Ok(CowVal::Owned(adder.add(right.as_ref())?.into_owned()))
}

fn only<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v> {
    arguments.into_iter().next().ok_or_else(wrong_arguments)
}

/// Rewrites a bounded expression in place. Gives the steps of one evaluation without its loops.
pub fn price(node: &mut IdedExpr) -> usize {
    match &mut node.expr {
        Expr::Call(call) => {
            let is_time = call.func_name == "timestamp";
            let steps = price_call(call);
            if is_time {
                through("@utc", node);
            }
            steps
        }
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
