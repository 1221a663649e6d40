//! Which lines the log gets of something that breaks and comes back.

use std::time::Duration;

use tokio::time::Instant;

/// An outage so long is told however lately another one was.
const LASTING: Duration = Duration::from_secs(3);

/// What breaks and comes back. The log's last word on it is true, but for the first seconds of an outage
/// that follows on another one: what breaks again and again is told of once in a period.
#[derive(Debug)]
pub struct Outage {
    period: Duration,
    since: Option<Instant>,
    told_at: Option<Instant>,
    /// Whether the log's last word is that it is broken.
    is_told: bool,
}

/// A line about something that is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// It has broken.
    Begins,
    /// It is still so, and the last line was long ago.
    GoesOn,
}

impl Outage {
    /// It is told of once in this period while it lasts.
    pub fn new(period: Duration) -> Self {
        Self { period, since: None, told_at: None, is_told: false }
    }

    /// It is broken now, since then at the latest. To be called again every second or so while that lasts.
    pub fn broken(&mut self, since: Instant, now: Instant) -> Option<Line> {
        let since = *self.since.get_or_insert(since);
        let is_due = self.told_at.is_none_or(|at| now.duration_since(at) >= self.period);
        let lasts = !self.is_told && now.duration_since(since) >= LASTING;
        if !is_due && !lasts {
            return None;
        }
        self.told_at = Some(now);
        Some(if std::mem::replace(&mut self.is_told, true) { Line::GoesOn } else { Line::Begins })
    }

    /// It works now. Whether that is to be told.
    pub fn works(&mut self) -> bool {
        self.since = None;
        std::mem::take(&mut self.is_told)
    }

    /// It is about to break for a moment, on purpose: only if it lasts it is worth a line.
    pub fn expected(&mut self, now: Instant) {
        self.told_at = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// What is told each second of one that is broken (`x`), is about to break (`e`), or works.
    fn told(states: &str) -> String {
        let (mut outage, mut now) = (Outage::new(30 * SECOND), Instant::now());
        let mut told = |state| {
            now += SECOND;
            match state {
                'x' => match outage.broken(now, now) {
                    None => '-',
                    Some(Line::Begins) => 'B',
                    Some(Line::GoesOn) => 'g',
                },
                'e' => {
                    outage.expected(now);
                    '-'
                }
                _ if outage.works() => 'W',
                _ => '-',
            }
        };
        states.chars().map(&mut told).collect()
    }

    #[test]
    fn the_last_word_is_true_and_what_flaps_is_told_once() {
        for (states, lines) in [
            ("..xx..", "--B-W-"),
            // Short ones right after another are not told, a long one is.
            ("x.x.xx.x.", "BW-------"),
            ("x..xxxxx.", "BW----B-W"),
            ("xx.xxxxxx..xxxxx.", "B-W---B--W----B-W"),
            ("exx.", "----"),
            ("exxxxx.", "----B-W"),
        ] {
            assert_eq!(told(states), lines, "{states}");
        }
        let long = told(&"x".repeat(62));
        assert_eq!(long.replace('-', ""), "Bgg", "once in a period while it lasts");
    }
}
