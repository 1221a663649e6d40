//! The order of the messages of one change, and what a cut has left out of it.
//!
//! nats-server stores a batch message by message, and can be cut in between: by a kill, a full disk,
//! a limit. So the order is such that no part of it loses anything: the token comes first, and takes
//! with it the check that nobody has moved it; what it leaves goes last. Whatever is missing follows
//! from the stored token, so it is always mended forwards.

use uuid::Uuid;

/// One message of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Piece {
    /// Which workflow the id of a new token, or the hash of a new workflow, leads to.
    Pointer,
    /// The token in the place where it is now.
    State,
    /// The event of its creation or move. It stands right behind the token.
    Event,
    /// The event of its completion, right behind that.
    Completion,
    /// The pointer of a token that is completed, from now on as short-lived as the token.
    PointerTtl,
    /// That a repair has written the event, or the completion alone: of several repairs one does.
    RepairRecord,
    /// The empty message that takes the token out of the place that it has left.
    Departure,
}

/// What a change has beside its token and its event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    /// It creates the token.
    pub creates: bool,
    /// The token has a pointer.
    pub pointer: bool,
    /// It leads from another place.
    pub leaves: bool,
    /// It completes the token.
    pub completes: bool,
    /// For good: the token ages from then on.
    pub ends: bool,
}

/// What is there of a token's newest change, beside the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Presence {
    pub event: bool,
    pub completion: bool,
    /// The pointer vanishes when the token does.
    pub pointer_ages: bool,
    /// The place that it has left does not show it any more.
    pub left: bool,
}

impl Shape {
    /// How many messages a change has at most, from its token on.
    pub const MESSAGES_MAX: u64 = 5;

    /// The messages of the change, in their order.
    pub fn pieces(self) -> Vec<Piece> {
        let mut pieces = Vec::with_capacity(6);
        pieces.extend((self.creates && self.pointer).then_some(Piece::Pointer));
        pieces.extend([Piece::State, Piece::Event]);
        pieces.extend(self.completes.then_some(Piece::Completion));
        pieces.extend(self.ages_pointer().then_some(Piece::PointerTtl));
        pieces.extend(self.leaves.then_some(Piece::Departure));
        pieces
    }

    /// Whether it makes the pointer age. A token that is created at its end has had such a one from
    /// the start.
    pub fn ages_pointer(self) -> bool {
        self.ends && self.pointer && !self.creates
    }

    /// The messages that mend the token's newest change, in their order; none if it is whole. A pointer
    /// stands before its token, so it is never missing.
    ///
    /// An event stands right behind its token. So where it is missing the token is written once more,
    /// the same version, and the rest after it.
    pub fn mending(self, there: Presence) -> Vec<Piece> {
        let mut pieces = Vec::new();
        if !there.event {
            pieces.extend([Piece::State, Piece::Event]);
        }
        if self.completes && !(there.event && there.completion) {
            pieces.push(Piece::Completion);
        }
        let tells = !pieces.is_empty();
        pieces.extend((self.ages_pointer() && !there.pointer_ages).then_some(Piece::PointerTtl));
        pieces.extend(tells.then_some(Piece::RepairRecord));
        if self.leaves && !there.left {
            pieces.push(Piece::Departure);
        }
        pieces
    }
}

/// What a change can do after a fresh look at its token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Try it with this as the newest sequence: the token is as it was decided on.
    Try(u64),
    /// Somebody has moved it.
    Lost,
    /// The look is older than what is known already, as that of a leader that was cut off.
    LookAgain,
}

/// Judges a change that was decided on the message `state`, given the token's message and its newest
/// one as they were `seen`, and the newest sequence that nats-server `told` when it refused it, else
/// 0.
pub fn judge(state: u64, told: u64, seen: Option<(u64, u64)>) -> Verdict {
    match seen {
        None if told == 0 => Verdict::Lost,
        None => Verdict::LookAgain,
        Some((seen, newest)) if newest < told || seen < state => Verdict::LookAgain,
        Some((seen, newest)) if seen == state => Verdict::Try(newest),
        Some(_) => Verdict::Lost,
    }
}

/// What a token's message remembers of its newest changes.
#[derive(Debug)]
pub struct Remembered<'a> {
    pub version: u32,
    /// The ids of its newest events, the newest first.
    pub events: &'a [Uuid],
    /// The sequence of the event before its newest one.
    pub previous: Option<u64>,
    /// The sequences of the messages of its newest moves, the newest first, where they are known.
    pub moves: &'a [Option<u64>],
}

/// What a token shows of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trace {
    /// It is the token's newest change.
    Newest,
    /// Others have gone on from it; its token was in this message.
    Passed(u64),
    /// It never was.
    None,
    /// The token does not tell: too many changes ago, or of the first version.
    Untold,
}

/// What the token shows of the change to `version` whose event has this id.
pub fn trace(seen: &Remembered<'_>, event_id: Uuid, version: u32) -> Trace {
    match seen.events.iter().position(|id| *id == event_id) {
        Some(0) => Trace::Newest,
        Some(1) => match seen.previous {
            Some(event) => Trace::Passed(event.saturating_sub(1)),
            None => Trace::Untold,
        },
        Some(later) => match seen.moves.get(later).copied().flatten() {
            Some(sequence) => Trace::Passed(sequence),
            None => Trace::Untold,
        },
        None if seen.version < version => Trace::None,
        // It names the events of as many versions; that of this change is another one's.
        None if ((seen.version - version) as usize) < seen.events.len() => Trace::None,
        None => Trace::Untold,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_tells_what_became_of_a_change() {
        let moves = [Some(30), Some(20), Some(10)];
        let check = |version, events: &[u128], previous, trace_is| {
            let events: Vec<_> = events.iter().map(|n| Uuid::from_u128(*n)).collect();
            let seen = Remembered { version: 5, events: &events, previous, moves: &moves };
            assert_eq!(trace(&seen, Uuid::from_u128(7), version), trace_is, "{version} {seen:?}");
        };
        check(5, &[7, 6, 5], Some(21), Trace::Newest);
        check(4, &[8, 7, 6], Some(21), Trace::Passed(20));
        check(4, &[8, 7, 6], None, Trace::Untold);
        check(3, &[9, 8, 7], Some(21), Trace::Passed(10));
        // Another change has made that version, or it has not been reached.
        check(5, &[8, 6, 5], Some(21), Trace::None);
        check(6, &[8, 6, 5], Some(21), Trace::None);
        check(3, &[8, 6, 5], Some(21), Trace::None);
        // Too long ago, or of the first version.
        check(2, &[8, 6, 5], Some(21), Trace::Untold);
        check(5, &[], None, Trace::Untold);
    }

    fn shapes() -> impl Iterator<Item = Shape> {
        (0..32).filter(|bits| bits & 24 != 16).map(|bits| Shape {
            creates: bits & 1 > 0,
            pointer: bits & 2 > 0,
            leaves: bits & 4 > 0,
            completes: bits & 8 > 0,
            ends: bits & 16 > 0,
        })
    }

    #[test]
    fn a_departure_is_last_and_an_event_right_behind_its_token() {
        use Piece::{Completion, Departure, Event, Pointer, PointerTtl, State};
        let plain =
            Shape { creates: false, pointer: false, leaves: false, completes: false, ends: false };
        for (shape, pieces) in [
            (plain, vec![State, Event]),
            (Shape { leaves: true, ..plain }, vec![State, Event, Departure]),
            (Shape { completes: true, ..plain }, vec![State, Event, Completion]),
            (
                Shape { leaves: true, completes: true, ..plain },
                vec![State, Event, Completion, Departure],
            ),
            (Shape { creates: true, ..plain }, vec![State, Event]),
            (Shape { creates: true, pointer: true, ..plain }, vec![Pointer, State, Event]),
            (
                Shape { creates: true, pointer: true, completes: true, ends: true, ..plain },
                vec![Pointer, State, Event, Completion],
            ),
            (
                Shape { pointer: true, completes: true, ends: true, leaves: true, ..plain },
                vec![State, Event, Completion, PointerTtl, Departure],
            ),
            // A transition still leaves the place: it is live, and so is its pointer.
            (
                Shape { pointer: true, completes: true, leaves: true, ..plain },
                vec![State, Event, Completion, Departure],
            ),
            (Shape { pointer: true, leaves: true, ..plain }, vec![State, Event, Departure]),
        ] {
            assert_eq!(shape.pieces(), pieces, "{shape:?}");
        }
        for shape in shapes() {
            assert!(shape.pieces().is_sorted(), "{shape:?}");
        }
    }

    #[test]
    fn what_a_cut_has_left_out_is_mended_and_nothing_else() {
        use Piece::{Completion, Departure, Event, PointerTtl, RepairRecord, State};
        for shape in shapes() {
            let pieces = shape.pieces();
            let state = pieces.iter().position(|piece| *piece == State).unwrap();
            for cut in state + 1..=pieces.len() {
                let there = &pieces[..cut];
                let presence = Presence {
                    event: there.contains(&Event),
                    completion: there.contains(&Completion),
                    pointer_ages: there.contains(&PointerTtl),
                    left: there.contains(&Departure) || !shape.leaves,
                };
                let mut wanted = pieces[cut..].to_vec();
                if !presence.event {
                    // The token once more, so that its event stands right behind it.
                    wanted.insert(0, State);
                }
                if wanted.contains(&Event) || wanted.contains(&Completion) {
                    wanted.push(RepairRecord);
                    wanted.sort_unstable();
                }
                assert_eq!(shape.mending(presence), wanted, "{shape:?} cut after {cut}");
            }
        }
    }

    #[test]
    fn a_change_is_lost_only_to_what_was_seen_for_sure() {
        for (state, told, seen, verdict) in [
            // Its departure has expired meanwhile, or has not, though it should have.
            (10, 10, Some((10, 10)), Verdict::Try(10)),
            (10, 12, Some((10, 12)), Verdict::Try(12)),
            (10, 0, Some((10, 12)), Verdict::Try(12)),
            (10, 15, Some((15, 15)), Verdict::Lost),
            (10, 15, Some((18, 20)), Verdict::Lost),
            // Who looks sees less than the one who refused.
            (10, 15, Some((10, 12)), Verdict::LookAgain),
            (10, 0, Some((8, 8)), Verdict::LookAgain),
            (10, 15, None, Verdict::LookAgain),
            (10, 0, None, Verdict::Lost),
        ] {
            assert_eq!(judge(state, told, seen), verdict, "{state} {told} {seen:?}");
        }
    }
}
