//! A query's text, before it is parsed.
//!
//! The parser of the GraphQL library recurses through values without bound, is quadratic on unclosed block
//! strings, and knows neither pairs of escapes for one character nor escapes of any length. All here is
//! linear.

use std::borrow::Cow;

use async_graphql::{Pos, ServerError};

use super::document::{too_complex, wrong};
use super::numbers::{changes, number_at, told};

/// Bytes of a query's text. What is large belongs into the variables.
const QUERY_BYTES_MAX: usize = 64 * 1024;

/// Names, numbers and texts in a query: what parses and validates them takes microseconds for each.
const WORDS_MAX: usize = 10_000;

/// Levels of `{`, `[` and `(` in a query's text. 300 would overflow a stack in a debug build.
const NESTING_MAX: usize = 64;

/// Checks a query's text. Gives it with escapes that the parsers know, and with blanks for comments and commas, which the
/// parsers do not take everywhere: not behind `...`. What is left stands where it stood.
pub fn check_text(query: &str) -> Result<Cow<'_, str>, ServerError> {
    if query.len() > QUERY_BYTES_MAX {
        let bytes = query.len();
        return Err(too_complex(format!(
            "the query has {bytes} bytes, at most {QUERY_BYTES_MAX} are allowed; put data into variables"
        )));
    }
    let mut escaped = Escaped::new(query);
    let (mut depth, mut words) = (0_usize, 0_usize);
    let mut rest = query;
    while let Some(first) = rest.bytes().next() {
        let is_word = matches!(first, b'"' | b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z');
        words += usize::from(is_word);
        if words > WORDS_MAX {
            return Err(too_complex(format!(
                "the query has more than {WORDS_MAX} names, numbers and texts; put data into variables"
            )));
        }
        rest = match first {
            b'{' | b'[' | b'(' => {
                depth += 1;
                if depth > NESTING_MAX {
                    return Err(too_complex(format!(
                        "the query nests more than {NESTING_MAX} brackets"
                    )));
                }
                &rest[1..]
            }
            b'}' | b']' | b')' => {
                depth = depth.saturating_sub(1);
                &rest[1..]
            }
            b'#' => {
                let length = rest.find(['\n', '\r']).unwrap_or(rest.len());
                escaped.blank(rest, length);
                &rest[length..]
            }
            b',' => {
                escaped.blank(rest, 1);
                &rest[1..]
            }
            b'"' => match rest.strip_prefix("\"\"\"") {
                Some(block) => escaped.after_block(block),
                None => escaped.after_string(&rest[1..])?,
            }
            .ok_or_else(|| wrong("a string in the query is not closed"))?,
            b'-' | b'0'..=b'9' => {
                let number = number_at(rest, 0);
                if changes(number) {
                    return Err(wrong_at(query, query.len() - rest.len(), number));
                }
                &rest[number.len()..]
            }
            b'_' | b'a'..=b'z' | b'A'..=b'Z' => {
                let is_part = |byte: u8| byte == b'_' || byte.is_ascii_alphanumeric();
                &rest[rest.bytes().position(|byte| !is_part(byte)).unwrap_or(rest.len())..]
            }
            _ => &rest[rest.chars().next().map_or(1, char::len_utf8)..],
        };
    }
    Ok(escaped.finish())
}

/// That a number would be kept as another one.
fn wrong_at(query: &str, at: usize, number: &str) -> ServerError {
    let before = &query[..at];
    let line_begin = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    let column = before[line_begin..].chars().count() + 1;
    let mut error = wrong(told(number, "a number in the query"));
    error.locations = vec![Pos { line, column }];
    error
}

/// A text some of which is written in another way.
struct Escaped<'a> {
    text: &'a str,
    /// What comes before `kept`, written anew.
    done: String,
    kept: usize,
}

impl<'a> Escaped<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, done: String::new(), kept: 0 }
    }

    /// Writes blanks for what a text begins with.
    fn blank(&mut self, text: &str, length: usize) {
        let begin = self.text.len() - text.len();
        self.done.push_str(&self.text[self.kept..begin]);
        self.done.extend(text[..length].chars().map(|_| ' '));
        self.kept = begin + length;
    }

    /// What follows a block string whose first quotes were just read; none if it is not closed. One with quotes in it is
    /// written as a plain string, as the parser would keep their escape.
    fn after_block(&mut self, text: &'a str) -> Option<&'a str> {
        let (mut rest, mut has_quotes) = (text, false);
        loop {
            let end = rest.find("\"\"\"")?;
            let is_escaped = rest[..end].ends_with('\\');
            rest = &rest[end + 3..];
            if !is_escaped {
                break;
            }
            has_quotes = true;
        }
        if has_quotes {
            let begin = self.text.len() - text.len() - 3;
            let block = &text[..text.len() - rest.len() - 3];
            self.done.push_str(&self.text[self.kept..begin]);
            self.done.push_str(&serde_json::Value::from(value_of(block)).to_string());
            self.kept = self.text.len() - rest.len();
        }
        Some(rest)
    }

    /// What follows a plain string whose first quote was just read; none if it is not closed in its line.
    fn after_string(&mut self, text: &'a str) -> Result<Option<&'a str>, ServerError> {
        let mut rest = text;
        loop {
            let Some(next) = rest.find(['"', '\\', '\n', '\r']) else { return Ok(None) };
            rest = &rest[next..];
            let escape = match rest.as_bytes() {
                [b'"', ..] => return Ok(Some(&rest[1..])),
                [b'\\', b'u', ..] => &rest[2..],
                [b'\\', b'\n' | b'\r', ..] | [b'\n' | b'\r', ..] | [b'\\'] => return Ok(None),
                _ => {
                    // What it escapes may be of several bytes, which the parser refuses.
                    let skipped = rest.chars().take(2).map(char::len_utf8).sum();
                    rest = &rest[skipped..];
                    continue;
                }
            };
            rest = self.after_escape(escape)?;
        }
    }

    /// What follows the escape of a character, of which `\u` was just read.
    fn after_escape(&mut self, text: &'a str) -> Result<&'a str, ServerError> {
        let begin = self.text.len() - text.len() - 2;
        let half =
            "a string in the query has half of a pair of escapes, such as \\ud83d without \\ude00";
        let (code, rest) = match text.strip_prefix('{') {
            Some(inner) => match digits_of(inner) {
                Some(parts) => parts,
                // The parser says what is wrong.
                None => return Ok(text),
            },
            None => match four(text) {
                Some(parts) => parts,
                None => return Ok(text),
            },
        };
        let is_braced = text.starts_with('{');
        let code = u32::from_str_radix(code, 16).map_err(|_| wrong(half))?;
        let (code, rest) = match code {
            0xd800..=0xdbff if !is_braced => {
                let low = rest.strip_prefix("\\u").and_then(four);
                let low = low.and_then(|(low, rest)| {
                    let low = u32::from_str_radix(low, 16).ok()?;
                    (0xdc00..=0xdfff).contains(&low).then_some((low, rest))
                });
                let (low, rest) = low.ok_or_else(|| wrong(half))?;
                (0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00), rest)
            }
            code if !is_braced && !(0xdc00..=0xdfff).contains(&code) => return Ok(rest),
            code => (code, rest),
        };
        let character = char::from_u32(code).ok_or_else(|| {
            wrong(if is_braced {
                "an escape in a string of the query is no character"
            } else {
                half
            })
        })?;
        self.done.push_str(&self.text[self.kept..begin]);
        match u16::try_from(code) {
            Ok(code) => self.done.push_str(&format!("\\u{code:04x}")),
            Err(_) => self.done.push(character),
        }
        self.kept = self.text.len() - rest.len();
        Ok(rest)
    }

    fn finish(mut self) -> Cow<'a, str> {
        if self.kept == 0 {
            return Cow::Borrowed(self.text);
        }
        self.done.push_str(&self.text[self.kept..]);
        Cow::Owned(self.done)
    }
}

/// The value of a block string (GraphQL, October 2021, 2.9.4): without the indentation that its lines share and
/// the blank lines around.
fn value_of(block: &str) -> String {
    let block = block.replace("\r\n", "\n").replace('\r', "\n").replace("\\\"\"\"", "\"\"\"");
    let blank = |line: &str| line.chars().all(|c| c == ' ' || c == '\t');
    let indent = |line: &str| line.len() - line.trim_start_matches([' ', '\t']).len();
    let lines: Vec<&str> = block.split('\n').collect();
    let shared = lines.iter().skip(1).filter(|line| !blank(line)).map(|line| indent(line)).min();
    let lines: Vec<&str> = lines
        .iter()
        .enumerate()
        .map(
            |(index, line)| {
                if index == 0 { *line } else { line.get(shared.unwrap_or(0)..).unwrap_or("") }
            },
        )
        .collect();
    let first = lines.iter().position(|line| !blank(line)).unwrap_or(lines.len());
    let last = lines.iter().rposition(|line| !blank(line)).map_or(first, |last| last + 1);
    lines[first..last].join("\n")
}

/// The digits up to a closing brace, and what follows it.
fn digits_of(text: &str) -> Option<(&str, &str)> {
    const DIGITS_MAX: usize = 8;
    let end = text.bytes().take(DIGITS_MAX + 1).position(|byte| byte == b'}')?;
    let digits = &text[..end];
    is_hex(digits).then_some((digits, &text[end + 1..]))
}

/// The four digits that a text begins with, and what follows.
fn four(text: &str) -> Option<(&str, &str)> {
    text.split_at_checked(4).filter(|(digits, _)| is_hex(digits))
}

fn is_hex(digits: &str) -> bool {
    !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(query: &str) -> String {
        match check_text(query) {
            Ok(_) => "ok".to_owned(),
            Err(error) => error.extensions.unwrap().get("code").unwrap().to_string(),
        }
    }

    #[test]
    fn brackets_are_counted_outside_of_strings_and_comments() {
        let deep = "[".repeat(NESTING_MAX);
        for (query, expected) in [
            (format!("{{ a(x: \"{deep}\") }}"), "ok"),
            (format!("{{ a(x: \"\"\"{deep} \\\"\"\" {deep}\"\"\") }}"), "ok"),
            (format!("{{ a # {deep}\n b }}"), "ok"),
            (format!("{{ a(x: \"\\\"{deep}\") }}"), "ok"),
            (format!("{{ a(x: {deep}"), "\"QUERY_TOO_COMPLEX\""),
            (format!("{{ a(x: \"\" {deep}"), "\"QUERY_TOO_COMPLEX\""),
            (format!("{{ a # comment\r {deep} {deep}"), "\"QUERY_TOO_COMPLEX\""),
            (format!("{{ a(x: \"\\\\\" {deep}"), "\"QUERY_TOO_COMPLEX\""),
            (format!("{{ a(x: \"\"\"\" \" {deep}"), "\"INVALID_INPUT\""),
            ("{ a(x: \"open\n\") }".to_owned(), "\"INVALID_INPUT\""),
            ("{ a(x: 18446744073709551616) }".to_owned(), "\"INVALID_INPUT\""),
            ("{ a(x: [-1.5, 1e-400]) }".to_owned(), "\"INVALID_INPUT\""),
            (
                "{ a18446744073709551616(x: \"18446744073709551616\") # 18446744073709551616\n }"
                    .to_owned(),
                "ok",
            ),
            ("{ a(x: \"\"\"open".to_owned(), "\"INVALID_INPUT\""),
            ("{ a(x: \"open\\".to_owned(), "\"INVALID_INPUT\""),
            ("x".repeat(QUERY_BYTES_MAX + 1), "\"QUERY_TOO_COMPLEX\""),
        ] {
            assert_eq!(code(&query), expected, "{}", &query[..query.len().min(80)]);
        }
    }

    #[test]
    fn escapes_are_written_as_the_parser_knows_them() {
        for (text, expected) in [
            (r#"{a(x: "plain \" \\ \n \u00e9 é")}"#, None),
            (r#"{a(x: "\ud83d\ude00!")}"#, Some(r#"{a(x: "😀!")}"#)),
            (
                r#"{a(x: "é\uD83D\uDE00\ud83d\ude00", y: "\u0041")}"#,
                Some(r#"{a(x: "é😀😀"  y: "\u0041")}"#),
            ),
            (
                r#"{a(x: "\u{1F600} \u{41} \u{22} \u{0A}")}"#,
                Some(r#"{a(x: "😀 \u0041 \u0022 \u000a")}"#),
            ),
            // Elsewhere it is no escape.
            (
                r#"{a(x: """\ud83d\ude00 " \u{41}""") # \ud83d
                }"#,
                Some(
                    r#"{a(x: """\ud83d\ude00 " \u{41}""")         
                }"#,
                ),
            ),
            (r#"{a(x: """a \""" b""") }"#, Some(r#"{a(x: "a \"\"\" b") }"#)),
            (
                "{a(x: \"\"\"\n\n    a \\\"\"\"\n      b\\n\n\n    c\n  \"\"\")}",
                Some(r#"{a(x: "a \"\"\"\n  b\\n\n\nc")}"#),
            ),
            (r#"{a(x: "\\ud83d\\u{41}")}"#, None),
            // What is wrong there, the parser says.
            (r#"{a(x: "\u12")}"#, None),
            (r#"{a(x: "\u{}")}"#, None),
            (r#"{a(x: "\u{zz}")}"#, None),
            (r#"{a(x: "\ué")}"#, None),
            (r#"{a(x: "\é")}"#, None),
        ] {
            let checked = check_text(text).unwrap();
            assert_eq!(checked, expected.unwrap_or(text));
            assert_eq!(matches!(checked, Cow::Owned(_)), expected.is_some(), "{text}");
        }
        for text in [
            r#"{a(x: "\ud83d")}"#,
            r#"{a(x: "\ud83d\u0041")}"#,
            r#"{a(x: "\ude00\ud83d")}"#,
            r#"{a(x: "\u{d83d}\u{de00}")}"#,
            r#"{a(x: "\u{110000}")}"#,
            r#"{a(x: "\u{FFFFFFFF}")}"#,
        ] {
            assert_eq!(code(text), "\"INVALID_INPUT\"", "{text}");
        }
    }

    #[test]
    fn words_are_counted() {
        for word in ["1 ", "a,", "\"\" ", "-1 ", "_a("] {
            let of = |count: usize| {
                let text = word.repeat(count).replace('(', " ");
                check_text(&text).map(drop).map_err(|error| error.message)
            };
            assert_eq!(of(WORDS_MAX), Ok(()), "{word}");
            assert!(of(WORDS_MAX + 1).unwrap_err().contains("more than 10000 names"), "{word}");
        }
        // What is within a text or a comment is none.
        let long = format!("\"{}\" # {}", "1 ".repeat(WORDS_MAX), "1 ".repeat(WORDS_MAX));
        assert!(check_text(&long).is_ok());
    }

    #[test]
    fn no_text_is_cut_within_a_character() {
        let parts =
            ["\\", "u", "{", "}", "\"", "\"\"\"", "é", "😀", "d83d", "de00", "\n", "#", "(", ")"];
        let mut state = 1_u64;
        for _ in 0..100_000 {
            let mut text = String::new();
            for _ in 0..10 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                text.push_str(parts[(state >> 33) as usize % parts.len()]);
            }
            drop(check_text(&text));
        }
    }
}
