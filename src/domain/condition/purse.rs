//! The purse of one evaluation: what repeats or copies takes steps of the request from it, and fails when
//! none are left.

use std::cell::RefCell;
use std::sync::Arc;

use cel::ExecutionError;
use cel::common::types::CelString;
use cel::common::value::Val;

use super::patterns::Pattern;
use crate::domain::steps::Steps;

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
    /// The patterns of the condition that is evaluated.
    patterns: Arc<[Pattern]>,
    /// Taken from `steps` and not used yet.
    at_hand: i64,
    /// There were none left. It stays so, whatever `||` does with the error.
    used_up: bool,
}

/// Evaluates what has these patterns on the steps of a request. Gives what came of it, and whether they were
/// enough.
pub fn with_steps<T>(
    steps: &Arc<Steps>,
    patterns: &Arc<[Pattern]>,
    evaluate: impl FnOnce() -> T,
) -> (T, bool) {
    let patterns = Arc::clone(patterns);
    let here = Here { steps: Arc::clone(steps), patterns, at_hand: 0, used_up: false };
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

/// Whether a pattern of the condition is found in a text, after the search was paid.
pub fn is_match(pattern: usize, text: &str) -> Result<bool, ExecutionError> {
    let patterns = HERE.with_borrow(|here| here.as_ref().map(|here| Arc::clone(&here.patterns)));
    let pattern = patterns.as_ref().and_then(|patterns| patterns.get(pattern));
    let pattern = pattern.ok_or_else(|| ExecutionError::function_error("matches", "a defect"))?;
    let steps = pattern.steps(text.len());
    pay_or_fail(steps.map_err(|why| ExecutionError::function_error("matches", why))?)?;
    Ok(pattern.is_match(text))
}

/// The length of a text; 0 for anything else.
pub fn text_bytes(value: &dyn Val) -> usize {
    value.downcast_ref::<CelString>().map_or(0, |text| text.inner().len())
}
