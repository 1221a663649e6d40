//! Figures in the text format of Prometheus (its exposition format 0.0.4).

use std::fmt::Write;

use crate::storage::{Figure, FigureKind};

/// What stands before the name of each figure.
const PREFIX: &str = "circuit_breaker_";

/// The figures as Prometheus reads them; those of one name must follow one another.
pub fn text(figures: &[Figure]) -> String {
    let (mut text, mut name) = (String::new(), "");
    for figure in figures {
        if figure.name != name {
            name = figure.name;
            let kind = match figure.kind {
                FigureKind::Counter => "counter",
                FigureKind::Gauge => "gauge",
            };
            let meaning = figure.meaning;
            // Writing to a text cannot fail.
            let _ = write!(text, "# HELP {PREFIX}{name} {meaning}\n# TYPE {PREFIX}{name} {kind}\n");
        }
        let labels = match figure.labels.as_str() {
            "" => String::new(),
            labels => format!("{{{labels}}}"),
        };
        let _ = writeln!(text, "{PREFIX}{name}{labels} {}", figure.value);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_one_name_share_their_head() {
        let figure = |labels: &str, value| Figure {
            name: "writes_total",
            labels: labels.to_owned(),
            meaning: "Writes.",
            kind: FigureKind::Counter,
            value,
        };
        let up = Figure { name: "up", kind: FigureKind::Gauge, ..figure("", 0.5) };
        assert_eq!(
            text(&[figure("a=\"1\"", 3.0), figure("a=\"2\"", 0.0), up]),
            "# HELP circuit_breaker_writes_total Writes.\n# TYPE circuit_breaker_writes_total counter\n\
             circuit_breaker_writes_total{a=\"1\"} 3\ncircuit_breaker_writes_total{a=\"2\"} 0\n\
             # HELP circuit_breaker_up Writes.\n# TYPE circuit_breaker_up gauge\ncircuit_breaker_up 0.5\n"
        );
    }
}
