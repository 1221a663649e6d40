//! Every limit on what a client may send or ask for, with its reason.

/// Bytes of a workflow, place or transition id: three of them and a UUID stay well within what
/// nats-server takes as a subject.
pub const ID_BYTES_MAX: usize = 128;

/// Bytes of a name that people read, and of `triggeredBy`: a line on a screen.
pub const NAME_BYTES_MAX: usize = 256;

/// Bytes of a description: a few paragraphs.
pub const DESCRIPTION_BYTES_MAX: usize = 4 * 1024;

/// Places of one workflow: far above what a person can draw; checking a definition stays cheap.
pub const PLACES_MAX: usize = 1_000;

/// Transitions of one workflow, for the same reason.
pub const TRANSITIONS_MAX: usize = 1_000;

/// Conditions of one transition: `&&` joins more.
pub const CONDITIONS_MAX: usize = 16;

/// Members that one transition accepts: far more than a form has.
pub const ACCEPTS_MAX: usize = 256;

/// Steps that all conditions take for one request together: a loop over 10,000 small objects with one
/// comparison takes about 135,000, a comparison without a loop about 10. A million take 50 to 100 ms.
pub const STEPS_MAX: i64 = 4_000_000;

/// Bytes of one condition: bounds the time that its parser takes, 36 ms at worst.
pub const CONDITION_BYTES_MAX: usize = 4 * 1024;

/// Bytes of all conditions of one definition, for the same reason: about a second at worst.
pub const ALL_CONDITIONS_BYTES_MAX: usize = 128 * 1024;

/// Bytes that the compiled patterns of one definition take together: some hundred of them as people write them, and
/// a few milliseconds to compile.
pub const PATTERNS_BYTES_MAX: usize = 1024 * 1024;

/// Bytes of a whole definition as JSON: it is one message on NATS, where a message ends at 1 MiB.
pub const DEFINITION_BYTES_MAX: usize = 512 * 1024;

/// Problems listed for one wrong definition: an answer stays readable and small.
pub const PROBLEMS_MAX: usize = 500;

/// Bytes of a stored token or event as JSON. A NATS message is at most 1 MiB with its headers, and
/// what fits one backend should fit the others.
pub const RECORD_BYTES_MAX: usize = 1_000_000;

/// Levels of nesting in a client's JSON. Below the 128 at which `serde_json` stops reading, with
/// room for what the JSON is stored in.
pub const JSON_DEPTH_MAX: usize = 64;

/// Records that a token carries of its newest moves. A move so writes the same number of bytes
/// whether it is the tenth or the ten thousandth.
pub const EMBEDDED_HISTORY_MAX: usize = 5;

/// Bytes of a request's data that are repeated in the token's embedded history. What is larger
/// stands in the event alone.
pub const EMBEDDED_DATA_BYTES_MAX: usize = 1_024;

/// The highest version of a token: GraphQL's `Int` ends there.
pub const VERSION_MAX: u32 = i32::MAX as u32;

/// Rows of a list that is not paged.
pub const LIST_ROWS_MAX: usize = 10_000;

/// Rows of a page.
pub const PAGE_ROWS_MAX: usize = 1_000;

/// Bytes that the tokens or events of one page take in memory, about: a page of large tokens ends early. A
/// small token takes 1 to 4 KB.
pub const PAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Bytes that the tokens, events and definitions take in memory, about, which one request reads with its lists.
pub const RESULT_BYTES_MAX: usize = 48 * 1024 * 1024;

/// How often a move is decided anew when others move the token in between. At each try at least
/// one of the racers succeeds, so this many racers of one token all get through.
pub const COMMIT_ATTEMPTS_MAX: usize = 64;

/// Bytes that the values of one answer may take in memory, roughly: 10,000 rows of 12 fields.
pub const ANSWER_BYTES_MAX: usize = 32 * 1024 * 1024;
