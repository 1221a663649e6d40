//! Counts what was asked for and what came of it, for monitoring.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::EngineError;
use crate::storage::{Figure, FigureKind, StorageError};

/// Writes by what they are.
#[derive(Debug, Clone, Copy)]
pub enum Operation {
    CreateWorkflow,
    CreateToken,
    Fire,
}

/// What came of a write: `done`, `refused` for a reason that the client can do something about, or
/// `failed` for want of the store.
const OUTCOMES: [&str; 3] = ["done", "refused", "failed"];

/// How often each came of one operation, and what it took in all.
#[derive(Debug, Default)]
struct Counts {
    outcomes: [AtomicU64; 3],
    micros: AtomicU64,
}

/// Counts since the start of the process.
#[derive(Debug, Default)]
pub struct Meter {
    operations: [Counts; 3],
}

const NAMES: [&str; 3] = ["create_workflow", "create_token", "fire"];

impl Meter {
    /// Notes a write that began at `begun` and has ended.
    pub fn note<T>(&self, operation: Operation, begun: Instant, outcome: &Result<T, EngineError>) {
        let counts = &self.operations[operation as usize];
        let outcome = match outcome {
            Ok(_) => 0,
            Err(EngineError::Storage(StorageError::TooLarge { .. })) => 1,
            Err(EngineError::Storage(_) | EngineError::Defect { .. }) => 2,
            Err(_) => 1,
        };
        counts.outcomes[outcome].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        counts.micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// The figures so far.
    pub fn figures(&self) -> Vec<Figure> {
        let mut figures = Vec::new();
        for (name, counts) in NAMES.iter().zip(&self.operations) {
            for (outcome, count) in OUTCOMES.iter().zip(&counts.outcomes) {
                figures.push(Figure {
                    name: "writes_total",
                    labels: format!("operation=\"{name}\",outcome=\"{outcome}\""),
                    meaning: "Writes since the start, by what came of them.",
                    kind: FigureKind::Counter,
                    value: count.load(Ordering::Relaxed) as f64,
                });
            }
        }
        for (name, counts) in NAMES.iter().zip(&self.operations) {
            figures.push(Figure {
                name: "write_seconds_total",
                labels: format!("operation=\"{name}\""),
                meaning: "Time that these writes took in all, in seconds.",
                kind: FigureKind::Counter,
                value: counts.micros.load(Ordering::Relaxed) as f64 / 1e6,
            });
        }
        figures
    }
}
