//! The functions that a rewritten condition calls. Their names begin with `@`, so that no client can write
//! them.

use std::sync::{Arc, LazyLock};

use cel::common::ast::operators;
use cel::common::types::{CelBool, CelInt, CelString, DYN_TYPE, INT_TYPE, Kind};
use cel::common::value::{CowVal, Val};
use cel::{Context, Env, ExecutionError};

use super::list::List;
use super::numbers::{self, equal, wrong_arguments};
use super::object::{Members, Object};
use super::purse::{self, pay_or_fail, text_bytes};

/// Bytes of text that one step reads.
pub const BYTES_PER_STEP: usize = 16;

/// Bytes of text that one step keeps.
const BYTES_KEPT_PER_STEP: usize = 4;

/// Steps for one item of a list that is made: it takes 50 to 120 bytes.
pub const STEPS_PER_ITEM: usize = 16;

/// Bytes of a text that `+` makes.
const SUM_BYTES_MAX: usize = 4 * 1024;

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
        env.add_overload("@keep", "@keep", vec![DYN_TYPE], keep),
        env.add_overload("@list", "@list", vec![DYN_TYPE], list),
        env.add_overload("@object", "@object", vec![DYN_TYPE], object),
        env.add_overload("@span", "@span", vec![DYN_TYPE], numbers::span),
        env.add_overload("@utc", "@utc", vec![DYN_TYPE], numbers::utc),
    ];
    type Operator = for<'b, 'v> fn(Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v>;
    let operators: [(&str, Operator); 11] = [
        ("@matches", matches),
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

/// Its argument, which becomes part of a list or an object, after what it takes there was paid. The room of
/// the item itself is known before, and paid with the list.
fn keep<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v> {
    let value = only(arguments)?;
    pay_or_fail(1 + kept_steps(value.as_ref()))?;
    Ok(value)
}

/// Steps for what a copy of a value takes beside its place: a text of its own is copied, all else is lent or
/// shared.
fn kept_steps(value: &dyn Val) -> usize {
    match value.downcast_ref::<CelString>() {
        Some(text) if text.as_borrowed().is_none() => text.inner().len() / BYTES_KEPT_PER_STEP,
        _ => 0,
    }
}

/// The list of a literal, or of `map` and `filter`, as one that is copied in one step and equal to a list in the
/// data.
fn list<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v> {
    match items(only(arguments)?) {
        Ok(items) => Ok(CowVal::owned(List::of(items))),
        Err(other) => Ok(other),
    }
}

/// The values of a list that the evaluator made; what is no such list is given back.
fn items<'b, 'v>(value: CowVal<'b, 'v>) -> Result<Vec<Box<dyn Val + 'v>>, CowVal<'b, 'v>> {
    match value {
        CowVal::Owned(value) => Vec::<Box<dyn Val + 'v>>::try_from(value).map_err(CowVal::Owned),
        borrowed => Err(borrowed),
    }
}

/// The object of a literal, from its keys and values in turn.
fn object<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v> {
    let items = items(only(arguments)?).map_err(|_| wrong_arguments())?;
    let mut members: Vec<[Box<dyn Val + 'v>; 2]> = Vec::with_capacity(items.len() / 2);
    let mut items = items.into_iter();
    while let (Some(key), Some(value)) = (items.next(), items.next()) {
        pay_or_fail(members.len() * (1 + text_bytes(key.as_ref()) / BYTES_PER_STEP))?;
        let type_of_key = key.get_type();
        if !matches!(type_of_key.kind(), Kind::Boolean | Kind::Int | Kind::UInt | Kind::String) {
            let message = format!("{} is no key of an object", type_of_key.name());
            return Err(ExecutionError::function_error("{ }", message));
        }
        if members.iter().any(|[known, _]| equal(known.as_ref(), key.as_ref())) {
            return Err(ExecutionError::function_error("{ }", "a key stands there twice"));
        }
        members.push([key, value]);
    }
    Ok(CowVal::owned(Object::new(Members::Literal(members))))
}

/// The sum of numbers and times, two short texts joined, or two lists.
fn sum<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v> {
    let [left, right] = &arguments[..] else { return Err(wrong_arguments()) };
    let bytes = text_bytes(left.as_ref()) + text_bytes(right.as_ref());
    if bytes > SUM_BYTES_MAX {
        return Err(ExecutionError::function_error(
            "+",
            format!("the text would be longer than {SUM_BYTES_MAX} bytes"),
        ));
    }
    pay_or_fail(1 + bytes / BYTES_PER_STEP)?;
    if [left, right].iter().all(|side| side.get_type().kind() == Kind::List) {
        return joined(left.as_ref(), right.as_ref());
    }
    if let Some((left, right)) = numbers::as_fractions(left.as_ref(), right.as_ref()) {
        let adder = left.as_adder().ok_or_else(wrong_arguments)?;
        return Ok(CowVal::Owned(adder.add(&right)?.into_owned()));
    }
    let types = || vec![left.get_type().name().to_owned(), right.get_type().name().to_owned()];
    let adder =
        left.as_adder().ok_or_else(|| ExecutionError::no_such_overload(operators::ADD, types()))?;
    Ok(CowVal::Owned(adder.add(right.as_ref())?.into_owned()))
}

/// A list of the items of both.
fn joined<'b, 'v>(left: &(dyn Val + 'v), right: &(dyn Val + 'v)) -> Outcome<'b, 'v> {
    let mut items = Vec::new();
    for side in [left, right] {
        let mut rest = side.as_iterable().ok_or_else(wrong_arguments)?.iter();
        while let Some(item) = rest.next() {
            pay_or_fail(STEPS_PER_ITEM + kept_steps(item))?;
            items.push(item.clone_as_boxed());
        }
    }
    Ok(CowVal::owned(List::of(items)))
}

/// Whether the pattern with this number is found in a text.
fn matches<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v> {
    let [text, pattern] = &arguments[..] else { return Err(wrong_arguments()) };
    let number = pattern.downcast_ref::<CelInt>().and_then(|at| usize::try_from(*at.inner()).ok());
    let Some(text) = text.downcast_ref::<CelString>() else {
        let types = vec![text.get_type().name().to_owned(), "string".to_owned()];
        return Err(ExecutionError::no_such_overload("matches", types));
    };
    let found = purse::is_match(number.ok_or_else(wrong_arguments)?, text.inner())?;
    Ok(CowVal::owned(CelBool::from(found)))
}

fn only<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v> {
    arguments.into_iter().next().ok_or_else(wrong_arguments)
}
