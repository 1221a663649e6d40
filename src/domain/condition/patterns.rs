//! Regular expressions for `matches`: the syntax of RE2 as CEL has it, searched in linear time.
//!
//! A pattern is written in the condition, so it is compiled once, with the definition, and its size is bounded
//! there. The search goes through the text once with all states at a time (Thompson, 1968; after Pike): it takes
//! no memory but a few words a state, and its steps are known before it begins.

use std::fmt;

use regex_automata::nfa::thompson::pikevm::PikeVM;
use regex_automata::nfa::thompson::{self, NFA, WhichCaptures};
use regex_syntax::ast::{
    AssertionKind, Ast, ClassAscii, ClassAsciiKind, ClassBracketed, ClassPerl, ClassPerlKind,
    ClassSet, ClassSetItem, ClassSetUnion, Flag, Flags, FlagsItem, FlagsItemKind, Group, GroupKind,
    Literal, LiteralKind, Span, parse,
};
use regex_syntax::hir::translate::Translator;

/// Brackets and repetitions in one another.
const NESTING_MAX: u32 = 32;

/// Bytes of the room for patterns that a Unicode class takes beside its states: to fold its cases takes up to 0.2 ms,
/// whether any state is made of it or not.
const CLASS_BYTES: usize = 4 * 1024;

/// States that one step tries on one byte of text. Each was measured to take 5 to 30 ns, a step 50 to 100.
const STATES_PER_STEP: usize = 3;

/// Steps of one search, about 90 ms: it cannot be ended in between, when nobody waits any more.
const SEARCH_STEPS_MAX: usize = 1_000_000;

/// One pattern, ready to be searched for.
#[derive(Debug)]
pub struct Pattern {
    search: PikeVM,
    states: usize,
    bytes: usize,
}

/// What is wrong with a pattern.
#[derive(Debug, thiserror::Error)]
pub enum Wrong {
    #[error("{0}")]
    Text(String),
    #[error("it is too large; repeat less, or with narrower classes")]
    TooLarge,
}

impl Pattern {
    /// Compiles a pattern that may take so many bytes, or says what is wrong with it.
    pub fn compile(text: &str, bytes_max: usize) -> Result<Self, Wrong> {
        let placed = |kind: &dyn fmt::Display, span: &Span| {
            Wrong::Text(format!("{kind} at its character {}", span.start.column))
        };
        let parser = parse::ParserBuilder::new().nest_limit(NESTING_MAX).build().parse(text);
        let mut ast = parser.map_err(|error| placed(error.kind(), error.span()))?;
        let mut classes = 0;
        as_in_re2(&mut ast, &mut classes).map_err(Wrong::Text)?;
        let class_bytes = classes * CLASS_BYTES;
        if class_bytes > bytes_max {
            return Err(Wrong::TooLarge);
        }
        let hir = Translator::new().translate(text, &ast);
        let hir = hir.map_err(|error| placed(error.kind(), error.span()))?;
        let limits = thompson::Config::new()
            .which_captures(WhichCaptures::None)
            .nfa_size_limit(Some(bytes_max));
        let nfa: NFA = thompson::Compiler::new()
            .configure(limits)
            .build_from_hir(&hir)
            .map_err(|_| Wrong::TooLarge)?;
        let states = nfa.states().len();
        let bytes = nfa.memory_usage() + class_bytes;
        let search = PikeVM::new_from_nfa(nfa).map_err(|error| Wrong::Text(error.to_string()))?;
        Ok(Self { search, states, bytes })
    }

    /// Bytes that it takes.
    pub fn memory_bytes(&self) -> usize {
        self.bytes
    }

    /// Steps of a search through so many bytes, or why there can be none.
    pub fn steps(&self, bytes: usize) -> Result<usize, String> {
        let of_byte = 1 + self.states / STATES_PER_STEP;
        let steps = (bytes + 1).saturating_mul(of_byte);
        if steps > SEARCH_STEPS_MAX {
            let most = (SEARCH_STEPS_MAX / of_byte).saturating_sub(1);
            return Err(format!(
                "the text has {bytes} bytes, this pattern is searched for in at most {most}"
            ));
        }
        Ok(steps)
    }

    /// Whether it is found anywhere in a text.
    pub fn is_match(&self, text: &str) -> bool {
        self.search.is_match(&mut self.search.create_cache(), text)
    }
}

/// Changes what means something else in RE2: `\d`, `\w`, `\s` and `\b` know ASCII alone there, `\<` and `\>` are
/// characters. What would silently mean something else is refused. Counts the Unicode classes. Recursion is
/// bounded by the parser.
fn as_in_re2(ast: &mut Ast, classes: &mut usize) -> Result<(), String> {
    match ast {
        Ast::ClassPerl(class) => {
            let (span, item) = (class.span, of_perl(class));
            let kind = ClassSet::Item(item);
            *ast = Ast::class_bracketed(ClassBracketed { span, negated: false, kind });
        }
        Ast::Assertion(assertion) => {
            let span = assertion.span;
            let character = |c| Ast::literal(Literal { span, kind: LiteralKind::Verbatim, c });
            match assertion.kind {
                AssertionKind::WordBoundary | AssertionKind::NotWordBoundary => {
                    let item = |kind| FlagsItem { span, kind };
                    let items = [FlagsItemKind::Negation, FlagsItemKind::Flag(Flag::Unicode)];
                    let flags = Flags { span, items: items.map(item).to_vec() };
                    let kind = GroupKind::NonCapturing(flags);
                    let inner = Box::new(std::mem::replace(ast, Ast::empty(span)));
                    *ast = Ast::group(Group { span, kind, ast: inner });
                }
                AssertionKind::WordBoundaryStartAngle => *ast = character('<'),
                AssertionKind::WordBoundaryEndAngle => *ast = character('>'),
                AssertionKind::StartLine
                | AssertionKind::EndLine
                | AssertionKind::StartText
                | AssertionKind::EndText => {}
                _ => return Err(r"\b{...} is not supported; write \b".to_owned()),
            }
        }
        Ast::ClassBracketed(class) => of_set(&mut class.kind, classes)?,
        Ast::Repetition(repetition) => as_in_re2(&mut repetition.ast, classes)?,
        Ast::Group(group) => {
            if let GroupKind::NonCapturing(flags) = &group.kind {
                known(flags)?;
            }
            as_in_re2(&mut group.ast, classes)?;
        }
        Ast::Alternation(of) => of.asts.iter_mut().try_for_each(|ast| as_in_re2(ast, classes))?,
        Ast::Concat(of) => of.asts.iter_mut().try_for_each(|ast| as_in_re2(ast, classes))?,
        Ast::Flags(set) => known(&set.flags)?,
        Ast::ClassUnicode(_) => *classes += 1,
        Ast::Empty(_) | Ast::Literal(_) | Ast::Dot(_) => {}
    }
    Ok(())
}

/// Refuses flags that RE2 does not have.
fn known(flags: &Flags) -> Result<(), String> {
    let is_known = |item: &FlagsItem| match item.kind {
        FlagsItemKind::Negation => true,
        FlagsItemKind::Flag(flag) => matches!(
            flag,
            Flag::CaseInsensitive | Flag::MultiLine | Flag::DotMatchesNewLine | Flag::SwapGreed
        ),
    };
    if flags.items.iter().all(is_known) {
        Ok(())
    } else {
        Err("of flags there are i, m, s and U".to_owned())
    }
}

fn of_set(set: &mut ClassSet, classes: &mut usize) -> Result<(), String> {
    match set {
        ClassSet::Item(item) => of_item(item, classes),
        ClassSet::BinaryOp(_) => {
            Err(r"&&, -- and ~~ within [ ] are not supported; write \& \- \~".to_owned())
        }
    }
}

fn of_item(item: &mut ClassSetItem, classes: &mut usize) -> Result<(), String> {
    match item {
        ClassSetItem::Perl(class) => *item = of_perl(class),
        ClassSetItem::Bracketed(_) => {
            return Err(r"[ ] within [ ] is not supported; for a bracket write \[".to_owned());
        }
        ClassSetItem::Union(of) => {
            of.items.iter_mut().try_for_each(|item| of_item(item, classes))?;
        }
        // Each range is folded, too.
        ClassSetItem::Unicode(_) => *classes += 1,
        ClassSetItem::Range(range) if !range.end.c.is_ascii() => *classes += 1,
        _ => {}
    }
    Ok(())
}

/// A class such as `\d`. That of blanks is not the one of ASCII, which has a vertical tab.
fn of_perl(class: &ClassPerl) -> ClassSetItem {
    let (span, negated) = (class.span, class.negated);
    let kind = match class.kind {
        ClassPerlKind::Digit => ClassAsciiKind::Digit,
        ClassPerlKind::Word => ClassAsciiKind::Word,
        ClassPerlKind::Space => {
            let blank = |c| ClassSetItem::Literal(Literal { span, kind: LiteralKind::Verbatim, c });
            let items = ['\t', '\n', '\u{c}', '\r', ' '].map(blank).to_vec();
            let kind = ClassSet::Item(ClassSetItem::Union(ClassSetUnion { span, items }));
            return ClassSetItem::Bracketed(Box::new(ClassBracketed { span, negated, kind }));
        }
    };
    ClassSetItem::Ascii(ClassAscii { span, kind, negated })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_match(pattern: &str, text: &str) -> bool {
        let compiled = Pattern::compile(pattern, 1 << 16);
        compiled.unwrap_or_else(|error| panic!("{pattern}: {error}")).is_match(text)
    }

    #[test]
    fn patterns_mean_what_they_mean_in_re2() {
        for (pattern, text, expected) in [
            ("b", "abc", true),
            ("^b$", "abc", false),
            ("", "", true),
            ("a.c", "a\nc", false),
            ("(?s)a.c", "a\nc", true),
            ("(?i)STRASSE", "strasse", true),
            (r"^\d+$", "42", true),
            (r"^\d+$", "\u{664}\u{662}", false),
            (r"^[\d-]+$", "4-2", true),
            (r"^\w+$", "a_1", true),
            (r"^\w+$", "\u{e9}", false),
            (r"^\W$", "\u{e9}", true),
            (r"^[^\w]$", "\u{e9}", true),
            (r"^\p{L}+$", "\u{e9}x", true),
            (r"\bb\b", "a b c", true),
            // No word ends between two letters that are not ASCII's.
            (r"\b\x{e9}", "\u{e9}", false),
            (r"a\Bb", "ab", true),
            (r"^\s$", " ", true),
            (r"^\s$", "\u{a0}", false),
            (r"^\s$", "\u{b}", false),
            (r"^[\s]$", "\u{b}", false),
            (r"^[^\S]$", "\u{b}", false),
            (r"^\S$", "\u{b}", true),
            (r"^[\S]$", "\t", false),
            (r"^\<b\>$", "<b>", true),
            (r"^\<b\>$", "b", false),
            ("^[[:alpha:]]+$", "ab", true),
            ("^.{3}$", "\u{e9}\u{65e5}x", true),
            ("^a$", "a\n", false),
            ("(?m)^a$", "a\nb", true),
        ] {
            assert_eq!(is_match(pattern, text), expected, "{pattern} on {text:?}");
        }
    }

    #[test]
    fn a_wrong_pattern_says_what_is_wrong() {
        for (pattern, part) in [
            ("a(b", "unclosed group at its character 2"),
            ("[a", "unclosed character class"),
            ("*a", "at its character 1"),
            (r"(a)\1", "backreferences are not supported"),
            ("(?=a)", "look-around"),
            ("[a&&b]", "&&, -- and ~~"),
            ("[[a]]", "[ ] within [ ]"),
            (r"\p{Nothing}", "Unicode property not found"),
            (r"a\b{start}", r"\b{...} is not supported"),
            ("(?x) a", "of flags there are i, m, s and U"),
            ("(?x: a)", "of flags there are i, m, s and U"),
            (&format!("(?i)({}){{0}}", r"\pL".repeat(500)), "too large"),
            (&format!("(?i)[{}]{{0}}", r"\pL\PL".repeat(300)), "too large"),
            ("(a{1000}){1000}", "too large"),
            (r"(\pL{100}){100}", "too large"),
            (&"(".repeat(40), ""),
        ] {
            let error = Pattern::compile(pattern, 1 << 16).expect_err(pattern).to_string();
            assert!(error.contains(part) && !error.contains('\n'), "{pattern}: {error}");
        }
    }

    #[test]
    fn a_search_costs_what_its_text_and_its_states_make() {
        let pattern = Pattern::compile("^[a-z0-9._-]+@[a-z0-9.-]+$", 1 << 16).unwrap();
        let (short, long) = (pattern.steps(23).unwrap(), pattern.steps(2_303).unwrap());
        assert!(short < 200 && long == short * 96, "{short} {long}");
        let wide = Pattern::compile("(a{0,30}){30}b", 1 << 20).unwrap();
        let error = wide.steps(100_000).unwrap_err();
        assert!(error.contains("100000 bytes") && error.contains("at most 16"), "{error}");
        let most = error.split(' ').next_back().unwrap().parse().unwrap();
        assert!(wide.steps(most).is_ok() && wide.steps(most + 1).is_err(), "{most}");
    }

    #[test]
    fn a_pattern_keeps_its_bound() {
        for pattern in ["a{1,400}", r"\pL{3}", "(a|b|c|d){99}", "[a-z]+@[a-z]+", "(a{0,30}){30}"] {
            let sizes = (6..=20).map(|power| 1 << power);
            let fits: Vec<_> = sizes
                .filter_map(|most| {
                    Some((most, Pattern::compile(pattern, most).ok()?.memory_bytes()))
                })
                .collect();
            assert!((1..15).contains(&fits.len()), "{pattern}: {fits:?}");
            // A few hundred bytes are there whatever the pattern.
            assert!(fits.iter().all(|(most, bytes)| *bytes <= most + 600), "{pattern}: {fits:?}");
        }
    }
}
