//! Numbers that a request cannot mean as they would be kept.
//!
//! JSON has numbers of any length; what is kept is a whole number of 64 bits or a double. What would come back as
//! another number is refused, not changed: an account number of 20 digits is a text.

/// Digits that every double gives back as they were.
const SAFE_DIGITS: usize = 15;

/// Characters of a number or a name that are shown.
const SHOWN_MAX: usize = 60;

/// Whether a number, as JSON and GraphQL write them, would be kept as another one.
pub fn changes(number: &str) -> bool {
    let digits = number.bytes().filter(u8::is_ascii_digit).count();
    let has_exponent = number.contains(['e', 'E']);
    if digits <= SAFE_DIGITS && !has_exponent
        || number.parse::<i64>().is_ok()
        || number.parse::<u64>().is_ok()
    {
        return false;
    }
    match number.parse::<f64>() {
        Ok(kept) if kept.is_finite() => decimal(number) != decimal(&format!("{kept:e}")),
        // Whoever parses it says what is wrong.
        _ => false,
    }
}

/// The digits of a number without zeros around them, and the power of ten of the last one.
fn decimal(number: &str) -> (bool, String, i64) {
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let exponent = exponent.trim_start_matches('+').parse::<i64>().unwrap_or(i64::MAX / 2);
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let is_negative = whole.starts_with('-');
    let all = format!("{}{fraction}", whole.trim_start_matches('-'));
    let kept = all.trim_end_matches('0');
    let power = exponent - fraction.len() as i64 + (all.len() - kept.len()) as i64;
    match kept.trim_start_matches('0') {
        "" => (false, String::new(), 0),
        digits => (is_negative, digits.to_owned(), power),
    }
}

/// What is told of such a number, and where it stands.
pub fn told(number: &str, place: &str) -> String {
    let number: String = number.chars().take(SHOWN_MAX).collect();
    format!(
        "{place} is {number}, which would be kept as another number: there are whole numbers of 64 bits and doubles; send it as a text"
    )
}

/// The first number of a JSON text that would change, with its place, such as `variables.input.data.n`. What is no
/// JSON is none of its business.
pub fn first_changed(json: &str) -> Option<(&str, String)> {
    let mut at = 0;
    while let Some(byte) = json.as_bytes().get(at) {
        match byte {
            b'"' => at = after_string(json, at),
            b'-' | b'0'..=b'9' => {
                let number = number_at(json, at);
                if changes(number) {
                    return Some((number, place_of(json, at)));
                }
                at += number.len();
            }
            _ => at += 1,
        }
    }
    None
}

/// The number that begins there.
pub fn number_at(text: &str, at: usize) -> &str {
    let rest = &text[at..];
    let is_part = |byte: u8| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-');
    let length = rest.bytes().position(|byte| !is_part(byte)).unwrap_or(rest.len());
    &rest[..length]
}

/// Where a string ends that begins there.
fn after_string(json: &str, begin: usize) -> usize {
    let mut at = begin + 1;
    while let Some(byte) = json.as_bytes().get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    json.len()
}

/// The members and items that lead to what begins there.
fn place_of(json: &str, end: usize) -> String {
    enum Step<'a> {
        Member(&'a str),
        Item(usize),
    }
    let (mut steps, mut string, mut at) = (Vec::new(), "", 0);
    while at < end {
        let byte = json.as_bytes()[at];
        let next = if byte == b'"' { after_string(json, at) } else { at + 1 };
        match byte {
            b'"' => string = json.get(at + 1..next.saturating_sub(1)).unwrap_or_default(),
            b'{' => steps.push(Step::Member("")),
            b'[' => steps.push(Step::Item(0)),
            b'}' | b']' => drop(steps.pop()),
            b':' => {
                if let Some(Step::Member(name)) = steps.last_mut() {
                    *name = string;
                }
            }
            b',' => {
                if let Some(Step::Item(index)) = steps.last_mut() {
                    *index += 1;
                }
            }
            _ => {}
        }
        at = next;
    }
    let mut place = String::new();
    for step in steps {
        match step {
            Step::Member(name) => {
                let dot = if place.is_empty() { "" } else { "." };
                let name: String = name.chars().take(SHOWN_MAX).collect();
                place.push_str(&format!("{dot}{name}"));
            }
            Step::Item(index) => place.push_str(&format!("[{index}]")),
        }
    }
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_as_it_was_is_taken() {
        for number in [
            "0",
            "-0",
            "-0.0",
            "1",
            "1.0",
            "1.10",
            "100",
            "0.1",
            "1e3",
            "1E+3",
            "1e-3",
            "1.5e300",
            "9007199254740993",
            "-9223372036854775808",
            "18446744073709551615",
            "1e20",
            "100000000000000000000",
            "0.30000000000000004",
            "5e-324",
            "1.7976931348623157e308",
            "123456789012345.000",
            "1.000000000000000000000",
            "0e999",
        ] {
            assert!(!changes(number), "{number}");
        }
        for number in [
            "18446744073709551616",
            "-9223372036854775809",
            "12345678901234567890123",
            "1e-400",
            "9007199254740993.0",
            "0.1000000000000000055511151231257827",
            "3.14159265358979323846",
            "2e-324",
            "1.00000000000000000001",
            "100000000000000000001",
        ] {
            assert!(changes(number), "{number}");
        }
        // That it is none at all, its parser says.
        for number in ["1e400", "-", "1.2.3", "1e", "--1", "12345678901234567890e+-1"] {
            assert!(!changes(number), "{number}");
        }
    }

    #[test]
    fn any_double_comes_back() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..20_000 {
            let number = f64::from_bits(random.u64(..));
            if number.is_finite() {
                let texts = [format!("{number}"), format!("{number:e}"), format!("{number:?}")];
                assert!(texts.iter().all(|text| !changes(text)), "{texts:?}");
            }
        }
    }

    #[test]
    fn its_place_is_told() {
        const N: &str = "12345678901234567890123";
        for (json, place) in [
            (N.to_owned(), ""),
            (format!("[1, {{\"a\": [true, {N}]}}]"), "[1].a[1]"),
            (
                format!(
                    "{{\"variables\": {{\"i\": {{\"x\": \"{N}, \\\" [\", \"data\": {{\"n\": {N}}}}}}}}}"
                ),
                "variables.i.data.n",
            ),
            (format!("{{\"a\": {{\"b\": 1}}, \"c\": [[], [{N}"), "c[1][0]"),
        ] {
            assert_eq!(first_changed(&json), Some((N, place.to_owned())), "{json}");
        }
        for json in [
            "",
            "{}",
            "\"18446744073709551616",
            "{\"a\": \"18446744073709551616\"}",
            "[1e400]",
            "\\",
        ] {
            assert_eq!(first_changed(json), None, "{json}");
        }
    }
}
