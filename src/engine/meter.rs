//! Counts what was asked for and what came of it, for monitoring.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::EngineError;
use crate::storage::{Figure, FigureKind, StorageError};

/// What can be asked of the engine.
#[derive(Debug, Clone, Copy)]
pub enum Verb {
    CreateWorkflow,
    CreateToken,
    Fire,
    AvailableTransitions,
    ExplainTransitions,
    Token,
    MessageTime,
    Tokens,
    TokenPage,
    TokenHistory,
    Workflow,
    Workflows,
    WorkflowPage,
    Health,
    Figures,
}

/// Their names, in their order; the first ones write.
const NAMES: [&str; 15] = [
    "create_workflow",
    "create_token",
    "fire",
    "available_transitions",
    "explain_transitions",
    "token",
    "message_time",
    "tokens",
    "token_page",
    "token_history",
    "workflow",
    "workflows",
    "workflow_page",
    "health",
    "figures",
];
const WRITES: usize = 3;

impl Verb {
    /// As figures and spans name it.
    pub fn name(self) -> &'static str {
        NAMES[self as usize]
    }

    /// Whether it reads one thing as a whole, which may be large, so that few of one request are done at once.
    pub fn reads_one(self) -> bool {
        use Verb::{AvailableTransitions, ExplainTransitions, Token, Workflow};
        matches!(self, AvailableTransitions | ExplainTransitions | Token | Workflow)
    }

    /// Whether it may change what is stored.
    pub fn writes(self) -> bool {
        matches!(self, Self::CreateWorkflow | Self::CreateToken | Self::Fire)
    }
}

/// What came of it: `done`, `refused` for a reason that the client can do something about, `failed` for
/// want of the store, or `left`: whoever asked did not wait for the end. What was left may be done.
const OUTCOMES: [&str; 4] = ["done", "refused", "failed", "left"];

/// How often each came of one verb, and what it took in all.
#[derive(Debug, Default)]
struct Counts {
    outcomes: [AtomicU64; OUTCOMES.len()],
    micros: AtomicU64,
}

/// Counts since the start of the process.
#[derive(Debug, Default)]
pub struct Meter {
    verbs: [Counts; NAMES.len()],
}

/// Something that is under way. It is counted at its end, however it ends.
pub struct Metered<'a> {
    counts: &'a Counts,
    begun: Instant,
    outcome: usize,
}

impl Metered<'_> {
    /// It has ended.
    pub fn end<T>(mut self, outcome: &Result<T, EngineError>) {
        self.outcome = match outcome {
            Ok(_) => 0,
            Err(EngineError::Storage(StorageError::TooLarge { .. })) => 1,
            Err(EngineError::Storage(_) | EngineError::Defect { .. }) => 2,
            Err(_) => 1,
        };
    }
}

impl Drop for Metered<'_> {
    fn drop(&mut self) {
        self.counts.outcomes[self.outcome].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.counts.micros.fetch_add(micros, Ordering::Relaxed);
    }
}

impl Meter {
    /// Something begins.
    pub fn begin(&self, verb: Verb) -> Metered<'_> {
        let left = OUTCOMES.len() - 1;
        Metered { counts: &self.verbs[verb as usize], begun: Instant::now(), outcome: left }
    }

    /// The figures so far.
    pub fn figures(&self) -> Vec<Figure> {
        let (writes, reads) = (0..WRITES, WRITES..NAMES.len());
        let mut figures = Vec::new();
        for (verbs, counted, timed) in
            [(writes, COUNTED_WRITES, TIMED_WRITES), (reads, COUNTED_READS, TIMED_READS)]
        {
            figures.extend(verbs.clone().flat_map(|verb| self.counted(verb, counted)));
            figures.extend(verbs.map(|verb| self.timed(verb, timed)));
        }
        figures
    }

    fn counted(&self, verb: usize, (name, meaning): Named) -> impl Iterator<Item = Figure> {
        OUTCOMES.iter().zip(&self.verbs[verb].outcomes).map(move |(outcome, count)| Figure {
            name,
            labels: format!("operation=\"{}\",outcome=\"{outcome}\"", NAMES[verb]),
            meaning,
            kind: FigureKind::Counter,
            value: count.load(Ordering::Relaxed) as f64,
        })
    }

    fn timed(&self, verb: usize, (name, meaning): Named) -> Figure {
        Figure {
            name,
            labels: format!("operation=\"{}\"", NAMES[verb]),
            meaning,
            kind: FigureKind::Counter,
            value: self.verbs[verb].micros.load(Ordering::Relaxed) as f64 / 1e6,
        }
    }
}

type Named = (&'static str, &'static str);

const COUNTED_WRITES: Named = ("writes_total", "Writes since the start, by what came of them.");
const TIMED_WRITES: Named =
    ("write_seconds_total", "Time that these writes took in all, in seconds.");
const COUNTED_READS: Named = ("reads_total", "Reads since the start, by what came of them.");
const TIMED_READS: Named = ("read_seconds_total", "Time that these reads took in all, in seconds.");
