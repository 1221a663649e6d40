//! What is wrong with a condition, in words for who wrote it.

use cel::{ExecutionError, Value};

/// Characters of a message that are passed on; it may quote data.
const MESSAGE_CHARS_MAX: usize = 200;

/// Why something could not be evaluated, in one line.
pub fn reason(error: &ExecutionError) -> String {
    let text = match error {
        ExecutionError::FunctionError { function, .. } if function == "timestamp" => {
            "timestamp takes a text such as 2026-07-01T10:00:00Z or 2026-07-01T10:00:00+02:00, or seconds since 1970".to_owned()
        }
        ExecutionError::FunctionError { function, .. } if function == "duration" => {
            "duration takes a text of numbers with the units h, m, s, ms, us and ns, such as 1h30m, or 168h for a week".to_owned()
        }
        ExecutionError::FunctionError { function, message } => format!("{function}: {message}"),
        ExecutionError::NoSuchKey(name) => {
            format!("there is no member {name}; has(a.{name}) asks whether there is one")
        }
        ExecutionError::IndexOutOfBounds(Value::Int(at)) => format!("the list has no item {at}"),
        ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => {
            "it divides by zero".to_owned()
        }
        ExecutionError::NoSuchOverload(overload) if overload.function() == "_._" => {
            let of = overload.argument_types().first().map_or("value", |of| of.as_str());
            format!("a {of} has no members; for how long something is write size(x)")
        }
        other => other.to_string(),
    };
    text.lines().next().unwrap_or_default().chars().take(MESSAGE_CHARS_MAX).collect()
}

/// What other languages write, and what it is here.
const OTHERS: [(&str, &str); 12] = [
    ("and", "write &&"),
    ("or", "write ||"),
    ("not", "write !"),
    ("===", "write =="),
    ("=>", "write >="),
    ("=<", "write <="),
    ("=", "write =="),
    ("??", "write has(a.b) ? a.b : c"),
    (";", "a condition is one expression, without ;"),
    ("\u{2018}", "write ' or \" around a text"),
    ("\u{201c}", "write ' or \" around a text"),
    ("$", "names have no $"),
];

/// What the parser says, and a hint where it can be told what was meant: by what stands in the line `before` the
/// place that it names, and from there on.
pub fn syntax(message: &str, before: &str, at: &str) -> String {
    let message = message.lines().next().unwrap_or_default().trim_start_matches("Syntax error: ");
    if message.starts_with("invalid argument to has() macro") {
        return "has is written has(a.b), or 'b' in a where b is no name".to_owned();
    }
    if message.starts_with("expected identifier after '.'") {
        return format!("{message}; a word that CEL keeps for itself is written a['in']");
    }
    if before.ends_with('<') && at.starts_with('>') {
        return "<> is not expected there; write !=".to_owned();
    }
    let starts = |text: &str, word: &str| {
        let after = text.strip_prefix(word);
        let is_name = word.starts_with(char::is_alphabetic);
        after.is_some_and(|after| {
            !is_name || !after.starts_with(|c: char| c.is_alphanumeric() || c == '_')
        })
    };
    let last = before.trim_end().rsplit(|c: char| !c.is_alphanumeric() && c != '_').next();
    let meant = OTHERS.iter().find(|(word, _)| starts(at, word)).or_else(|| {
        // The parser takes a word for a name, and stumbles over what follows.
        OTHERS.iter().find(|(word, _)| last == Some(*word))
    });
    match meant {
        Some((word, hint)) => format!("{word} is not expected there; {hint}"),
        None => message.replace("expecting <EOF>", "where the condition might have ended"),
    }
}
