//! Numbers and times where the evaluator's own operators would not do what they say.
//!
//! A whole number and a fraction are compared by their exact values, as the CEL specification has it;
//! the evaluator makes a fraction of the whole number first, which changes it from 2^53 on. And JSON does
//! not tell `100` from `100.0`, so what calculates with both takes the whole number for a fraction, which
//! is an extension of CEL.

use std::cmp::Ordering;

use cel::ExecutionError;
use cel::common::ast::operators;
use cel::common::types::{CelBool, CelDouble, CelInt, CelString, CelTimestamp, CelUInt};
use cel::common::value::{CowVal, Val};
use chrono::Utc;

type Outcome<'b, 'v> = Result<CowVal<'b, 'v>, ExecutionError>;

/// A number, exactly.
#[derive(Debug, Clone, Copy)]
enum Number {
    Whole(i128),
    Fraction(f64),
}

impl Number {
    fn of(value: &dyn Val) -> Option<Self> {
        if let Some(int) = value.downcast_ref::<CelInt>() {
            return Some(Self::Whole((*int.inner()).into()));
        }
        if let Some(uint) = value.downcast_ref::<CelUInt>() {
            return Some(Self::Whole((*uint.inner()).into()));
        }
        value.downcast_ref::<CelDouble>().map(|double| Self::Fraction(*double.inner()))
    }

    /// None where one of them is not a number (NaN).
    fn compare(self, other: Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Whole(left), Self::Whole(right)) => Some(left.cmp(&right)),
            (Self::Fraction(left), Self::Fraction(right)) => left.partial_cmp(&right),
            (Self::Whole(left), Self::Fraction(right)) => compare_exactly(left, right),
            (Self::Fraction(left), Self::Whole(right)) => {
                compare_exactly(right, left).map(Ordering::reverse)
            }
        }
    }

    #[allow(clippy::cast_precision_loss)]
    fn as_fraction(self) -> f64 {
        match self {
            Self::Whole(whole) => whole as f64,
            Self::Fraction(fraction) => fraction,
        }
    }
}

/// Compares a whole number of 64 bits with a fraction.
#[allow(clippy::cast_possible_truncation)]
fn compare_exactly(whole: i128, fraction: f64) -> Option<Ordering> {
    /// Above this no whole number of 64 bits is; below it a conversion to 128 bits changes nothing.
    const FAR: f64 = 1e30;
    if fraction.is_nan() {
        return None;
    }
    if fraction.abs() >= FAR {
        return Some(if fraction > 0.0 { Ordering::Less } else { Ordering::Greater });
    }
    let of_whole_parts = whole.cmp(&(fraction.trunc() as i128));
    Some(of_whole_parts.then_with(|| 0.0.partial_cmp(&fraction.fract()).unwrap_or(Ordering::Equal)))
}

/// Whether two values are equal, numbers by what they are worth.
pub fn equal(left: &dyn Val, right: &dyn Val) -> bool {
    match (Number::of(left), Number::of(right)) {
        (Some(left), Some(right)) => left.compare(right) == Some(Ordering::Equal),
        _ => left.equals(right),
    }
}

/// `==` and `!=`.
pub fn equals<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v> {
    let [left, right] = two(arguments)?;
    Ok(CowVal::owned(CelBool::from(equal(left.as_ref(), right.as_ref()))))
}

pub fn not_equals<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v> {
    let [left, right] = two(arguments)?;
    Ok(CowVal::owned(CelBool::from(!equal(left.as_ref(), right.as_ref()))))
}

/// The order of two values; none where they have none, as one is not a number.
fn order(
    operator: &str,
    left: &dyn Val,
    right: &dyn Val,
) -> Result<Option<Ordering>, ExecutionError> {
    if let (Some(left), Some(right)) = (Number::of(left), Number::of(right)) {
        return Ok(left.compare(right));
    }
    let ordered = left.as_comparer().and_then(|comparer| comparer.compare(right).ok());
    ordered.map(Some).ok_or_else(|| no_overload(operator, left, right))
}

macro_rules! comparisons {
    ($($name:ident $operator:ident $holds:ident;)*) => {
        $(pub fn $name<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v> {
            let [left, right] = two(arguments)?;
            let order = order(operators::$operator, left.as_ref(), right.as_ref())?;
            Ok(CowVal::owned(CelBool::from(order.is_some_and(Ordering::$holds))))
        })*
    };
}

comparisons! {
    less LESS is_lt;
    less_equals LESS_EQUALS is_le;
    greater GREATER is_gt;
    greater_equals GREATER_EQUALS is_ge;
}

/// Two numbers of which one is a fraction, both as fractions.
pub fn as_fractions(left: &dyn Val, right: &dyn Val) -> Option<(CelDouble, CelDouble)> {
    let (left, right) = (Number::of(left)?, Number::of(right)?);
    match (left, right) {
        (Number::Whole(_), Number::Fraction(_)) | (Number::Fraction(_), Number::Whole(_)) => {
            Some((CelDouble::from(left.as_fraction()), CelDouble::from(right.as_fraction())))
        }
        _ => None,
    }
}

macro_rules! calculations {
    ($($name:ident $operator:ident $as:ident $do:ident;)*) => {
        $(pub fn $name<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v> {
            let [left, right] = two(arguments)?;
            if let Some((left, right)) = as_fractions(left.as_ref(), right.as_ref()) {
                let able = left.$as().ok_or_else(wrong_arguments)?;
                return Ok(CowVal::Owned(able.$do(&right)?.into_owned()));
            }
            let operator = operators::$operator;
            let able = left.$as().ok_or_else(|| no_overload(operator, left.as_ref(), right.as_ref()))?;
            Ok(CowVal::Owned(able.$do(right.as_ref())?.into_owned()))
        })*
    };
}

calculations! {
    difference SUBSTRACT as_subtractor sub;
    product MULTIPLY as_multiplier mul;
    quotient DIVIDE as_divider div;
}

/// A time whose parts are those in UTC, whatever zone it was written in.
pub fn utc<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v> {
    let value = arguments.into_iter().next().ok_or_else(wrong_arguments)?;
    let in_utc = value.downcast_ref::<CelTimestamp>().map(|time| {
        CowVal::owned(CelTimestamp::from(time.inner().with_timezone(&Utc).fixed_offset()))
    });
    Ok(in_utc.unwrap_or(value))
}

/// A text that is a span of time from its beginning to its end: the evaluator takes the beginning of `1h30` for all.
pub fn span<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Outcome<'b, 'v> {
    let value = arguments.into_iter().next().ok_or_else(wrong_arguments)?;
    match value.downcast_ref::<CelString>() {
        Some(text) if !is_span(text.inner()) => Err(no_span()),
        _ => Ok(value),
    }
}

pub fn no_span() -> ExecutionError {
    ExecutionError::function_error("duration", "it is no span of time")
}

/// Whether a text is `0` or numbers with a unit each, after a sign.
pub fn is_span(text: &str) -> bool {
    const UNITS: [&str; 6] = ["ms", "us", "ns", "h", "m", "s"];
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return true;
    }
    loop {
        let number = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        let number_bytes = &rest.as_bytes()[..rest.len() - number.len()];
        let dots = number_bytes.iter().filter(|byte| **byte == b'.').count();
        let after_unit = UNITS.iter().find_map(|unit| number.strip_prefix(unit));
        match after_unit {
            Some(after) if dots < number_bytes.len() && dots <= 1 => rest = after,
            _ => return false,
        }
        if rest.is_empty() {
            return true;
        }
    }
}

fn two<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Result<[CowVal<'b, 'v>; 2], ExecutionError> {
    arguments.try_into().map_err(|_| wrong_arguments())
}

fn no_overload(operator: &str, left: &dyn Val, right: &dyn Val) -> ExecutionError {
    let types = [left, right].map(|value| value.get_type().name().to_owned()).to_vec();
    ExecutionError::no_such_overload(operator, types)
}

pub fn wrong_arguments() -> ExecutionError {
    ExecutionError::function_error("condition", "it was rewritten wrongly, a defect")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_number_and_a_fraction_compare_by_what_they_are_worth() {
        const MAX: i128 = u64::MAX as i128;
        for (whole, fraction, expected) in [
            (1, 1.0, Ordering::Equal),
            (1, 1.5, Ordering::Less),
            (2, 1.5, Ordering::Greater),
            (-1, -1.5, Ordering::Greater),
            (-2, -1.5, Ordering::Less),
            (0, -0.0, Ordering::Equal),
            (0, f64::MIN_POSITIVE, Ordering::Less),
            (0, -f64::MIN_POSITIVE, Ordering::Greater),
            (9_007_199_254_740_993, 9_007_199_254_740_992.0, Ordering::Greater),
            (9_007_199_254_740_991, 9_007_199_254_740_992.0, Ordering::Less),
            (i64::MAX.into(), 9_223_372_036_854_775_808.0, Ordering::Less),
            (i64::MIN.into(), -9_223_372_036_854_775_808.0, Ordering::Equal),
            (MAX, 18_446_744_073_709_551_616.0, Ordering::Less),
            (MAX, f64::INFINITY, Ordering::Less),
            (MAX, f64::NEG_INFINITY, Ordering::Greater),
            (MAX, 1e300, Ordering::Less),
        ] {
            assert_eq!(compare_exactly(whole, fraction), Some(expected), "{whole} {fraction}");
        }
        assert_eq!(compare_exactly(1, f64::NAN), None);
    }

    #[test]
    fn a_span_is_one_from_its_beginning_to_its_end() {
        for text in ["0", "-0", "1h", "1h30m", "-1.5s", "+2ms", ".5s", "1.s", "1h1h", "10us5ns"] {
            assert!(is_span(text), "{text}");
        }
        for text in [
            "", "-", "1", "h", ".s", "1h30", "1h 30m", " 1h", "1h ", "7d", "1..5s", "1.2.3s",
            "1h-30m", "infh", "1e3s", "\u{661}h", "1hx", "--1h",
        ] {
            assert!(!is_span(text), "{text}");
        }
    }
}
