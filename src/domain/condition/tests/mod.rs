mod steps;

use serde_json::{Value, json};

use super::*;
use crate::domain::limits::CONDITION_BYTES_MAX;

/// Fewer than a request has, so that the data can be small.
const STEPS_MAX: i64 = 1_000_000;

fn token(data: Value) -> Token {
    let json = json!({
        "id": "01890a5d-ac96-774b-bcce-b302099a8057", "workflow_id": "w", "place": "draft", "version": 3,
        "data": data, "metadata": { "team": "a" }, "history": [], "transition_history": [],
        "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-02T00:00:00Z",
    });
    serde_json::from_value(json).unwrap()
}

/// As one that is stored.
fn parse(source: &str) -> Result<Condition, String> {
    Condition::parse(source, &mut PatternRoom::default())
}

fn evaluate(source: &str, data: Value, input: Option<Value>) -> Verdict {
    let condition = parse(source).unwrap_or_else(|error| panic!("{source}: {error}"));
    verdict(&condition, &token(data), input.as_ref(), &Arc::new(Steps::new(STEPS_MAX)))
}

fn verdict(
    condition: &Condition,
    token: &Token,
    input: Option<&Value>,
    steps: &Arc<Steps>,
) -> Verdict {
    let now = DateTime::from_timestamp(1_767_400_000, 0).unwrap();
    let roles = vec!["clerk".to_owned(), "approver".to_owned()];
    let claims = serde_json::from_value(json!({ "dept": { "id": 7 } })).unwrap();
    let caller = Caller { id: "ann".to_owned(), roles, claims };
    let mut next = token.data.clone();
    if let Some(patch) = input {
        crate::domain::merge_patch(&mut next, patch);
    }
    let seen = Seen { token, input, next: &next, now, caller: &caller };
    Scope::new(&seen).evaluate(condition, steps)
}

/// On this data: an int, a negative one, a double, one above i64, a text, lists and objects.
fn check(source: &str, expected: bool) {
    let data = json!({
        "n": 1500, "neg": -5, "f": 1500.5, "big": 18446744073709551615_u64, "s": "é日x", "b": true, "nil": null,
        "l": [1, 2, 3], "ll": [[1], [2]], "o": { "a": 1, "b": { "c": [1] } }, "same": { "b": { "c": [1] }, "a": 1 },
        "items": [{ "price": 10, "tags": ["x"] }, { "price": 99.5, "tags": [] }],
    });
    let expected = if expected { Verdict::True } else { Verdict::False };
    assert_eq!(evaluate(source, data, Some(json!({ "who": "ann" }))), expected, "{source}");
}

#[test]
fn conditions_compare_numbers_of_all_kinds() {
    for (source, expected) in [
        ("token.data.n > 1000", true),
        ("token.data.f > 1500", true),
        ("token.data.neg < 0", true),
        ("token.data.big > 9223372036854775807", true),
        ("token.data.n == 1500.0", true),
        ("token.data.n - 500 == 1000", true),
        ("token.data.n + 1 > token.data.n", true),
        ("token.data.neg + 5 == 0", true),
        ("token.data.f / 2.0 < 751.0", true),
        ("token.data.n % 7 == 2", true),
        ("-token.data.neg == 5", true),
        ("double(token.data.n) < token.data.f", true),
        ("token.data.n == '1500'", false),
    ] {
        check(source, expected);
    }
}

#[test]
fn conditions_see_token_and_input() {
    for (source, expected) in [
        ("token.id == '01890a5d-ac96-774b-bcce-b302099a8057'", true),
        ("token.place == 'draft' && token.version == 3 && token.metadata.team == 'a'", true),
        ("token.updated_at - token.created_at == duration('24h')", true),
        ("token.created_at < timestamp('2026-01-01T00:00:01Z')", true),
        ("token.updated_at.getDayOfMonth() == 1", true),
        ("input.who == 'ann'", true),
        ("has(input.who) && !has(input.why)", true),
        ("has(token.data) && !has(token.history)", true),
        ("'place' in token && size(token) == 7", true),
        ("token['data']['n'] == 1500", true),
    ] {
        check(source, expected);
    }
    for without in ["!has(input.who)", "!('who' in input)", "size(input) == 0", "input != null"] {
        assert_eq!(evaluate(without, json!({}), None), Verdict::True, "{without}");
    }
    assert!(matches!(evaluate("input.who == 'ann'", json!({}), None), Verdict::Failed(_)));
}

#[test]
fn conditions_go_through_lists_and_objects() {
    for (source, expected) in [
        ("2 in token.data.l", true),
        ("4 in token.data.l", false),
        ("'a' in token.data.o", true),
        ("token.data.l == [1, 2, 3] && [1, 2, 3] == token.data.l", true),
        ("[1.0, 2u, 3] == token.data.l", true),
        ("token.data.ll == [[1], [2]] && [[1], [2]] == token.data.ll", true),
        ("token.data.l != [1, 2]", true),
        ("token.data.o == token.data.same", true),
        ("token.data.l[0] == 1 && token.data.l[2] == 3", true),
        ("size(token.data.l) == 3 && token.data.s.size() == 3 && size(token.data.o) == 2", true),
        ("token.data.items.all(i, i.price > 5)", true),
        ("token.data.items.exists(i, i.price > 99)", true),
        ("token.data.items.exists_one(i, 'x' in i.tags)", true),
        ("token.data.items.all(i, i.price > 50)", false),
        ("token.data.o.exists(name, name == 'b')", true),
        ("[].all(x, false) && ![].exists(x, true)", true),
        (
            "token.data.items.all(i, i.price < 100) && token.data.items.exists(i, i.price < 50)",
            true,
        ),
        (
            "token.data.s.startsWith('é') && token.data.s.endsWith('x') && token.data.s.contains('日')",
            true,
        ),
        ("token.data.s + '!' == 'é日x!'", true),
        ("token.data.nil == null && token.data.b", true),
        ("(token.data.b ? 1 : 2) == 1", true),
    ] {
        check(source, expected);
    }
}

#[test]
fn conditions_make_lists_and_objects_and_look_for_patterns() {
    for (source, expected) in [
        ("[1] + token.data.l + [4.0] == [1, 1, 2, 3, 4]", true),
        ("([] + []) == [] && size(token.data.l + token.data.ll) == 5", true),
        ("token.data.l == token.data.l + []", true),
        (
            "{'a': 1, 'b': {'c': [1]}} == token.data.o && token.data.o == {'b': token.data.o.b, 'a': 1.0}",
            true,
        ),
        (
            "{'a': 1} != {'a': 2} && {'a': 1} != {'b': 1} && {} == {} && {'a': 1} != {'a': 1, 'b': 1}",
            true,
        ),
        (
            "{1: 'one', true: 'yes', 2u: 'two'}[1.0] == 'one' && 2 in {2u: 1} && !('1' in {1: 1})",
            true,
        ),
        (
            "{'DE': 19, 'FR': 20}['FR'] == 20 && {'a': 1}.a == 1 && has({'a': 1}.a) && !has({'a': 1}.b)",
            true,
        ),
        ("size({'a': 1, 'b': 2}) == 2 && {'a': 1, 'b': 2}.exists(k, k == 'b')", true),
        ("{'x': 1, 'a': 2}.map(k, k) == ['x', 'a']", true),
        ("token.data.items.map(i, i.price) == [10, 99.5]", true),
        ("token.data.l.map(x, x > 1, x * 2) == [4, 6]", true),
        ("token.data.items.filter(i, i.price > 50).size() == 1", true),
        ("token.data.l.filter(x, x > 9) == []", true),
        (
            "token.data.l.map(x, token.data.l.map(y, x * y)) == [[1, 2, 3], [2, 4, 6], [3, 6, 9]]",
            true,
        ),
        ("token.data.items.exists(i, i.tags.exists(t, t == 'x'))", true),
        ("token.data.items.all(i, i.tags.all(t, t == 'y'))", false),
        ("token.data.l.map(x, string(x) + '!')[2] == '3!'", true),
        ("[1, 2].map(x, {'n': x})[1].n == 2", true),
        ("dyn(1) == 1 && dyn(token.data.s) == 'é日x'", true),
        ("bool('true') && !bool('False') && bool(token.data.b)", true),
        (
            "type(token.data.n) == int && type(token.data.f) == double && type(token.data.l) == list",
            true,
        ),
        (
            "type(token.data.o) == map && type(token.data.s) == string && type({}) == type(token.data.o)",
            true,
        ),
        ("type(null) == null_type && type(token.data.big) == uint && type(true) == bool", true),
        (
            "'BK-1042'.matches('^[A-Z]{2}-[0-9]+$') && matches('a1', r'\\d') && !'ab'.matches('^b')",
            true,
        ),
        ("input.who.matches('a') && input.who.matches('nn') && !input.who.matches('x')", true),
        ("token.data.items.all(i, string(i.price).matches('^[0-9.]+$'))", true),
        ("token.data.l[1.0] == 2", true),
        ("{1: 'a', 2: 'b'}.all(k, k > 0) && {true: 1}.exists(k, k)", true),
        ("{'content-type': 1}.`content-type` == 1 && has(token.data.`n`)", true),
    ] {
        check(source, expected);
    }
}

#[test]
fn what_has_no_value_is_a_failure_unless_the_other_side_decides() {
    for (source, part) in [
        ("token.data.missing == 1", "missing"),
        ("token.missing", "missing"),
        ("nothing == 1", "nothing"),
        ("token.data.l[3] == 1", "the list has no item 3"),
        ("token.data.l[-1] == 1", ""),
        ("token.data.l['x'] == 1", ""),
        ("token.data.n / 0 == 1", "it divides by zero"),
        (
            "token.data.s.length > 2",
            "a string has no members; for how long something is write size(x)",
        ),
        ("9223372036854775807 + token.data.n > 0", ""),
        ("token.data.n % 1.5 == 0.0", ""),
        ("token.data.n + 'x' == ''", ""),
        ("token.data.n", "not true or false"),
        ("token.data.s", "not true or false"),
        ("token.data.l", "not true or false"),
        ("token.data", "not true or false"),
        ("null", "not true or false"),
        ("token.data.l + 1 == []", ""),
        ("duration(token.data.s) > duration('1h')", "such as 1h30m"),
        ("duration(string(token.data.n) + 'h30') > duration('1h')", "such as 1h30m"),
        ("timestamp(token.data.s) < now", "such as 2026-07-01T10:00:00Z"),
        ("{token.data.s: 1, 'text': 2} == {}", "a key stands there twice"),
        ("{token.data.l: 1} == {}", "no key of an object"),
        ("{'a': 1}.b == 1", "b"),
        ("{1: 1}[2] == 1", ""),
        ("token.data.n.matches('a')", ""),
        ("bool(token.data.s)", ""),
        ("token.data.l[0.5] == 1", ""),
        ("token.data.l.map(x, x / 0) == []", ""),
        ("(token.data.s + 'x'.contains('x'))", ""),
        ("1 < 'x'", ""),
    ] {
        let data = json!({ "n": 1500, "s": "text", "l": [1, 2, 3] });
        let verdict = evaluate(source, data, None);
        let Verdict::Failed(reason) = verdict else { panic!("{source}: {verdict:?}") };
        assert!(reason.contains(part) && reason.chars().count() <= 200, "{source}: {reason}");
    }
    assert_eq!(evaluate("token.data.missing == 1 || true", json!({}), None), Verdict::True);
    assert_eq!(evaluate("token.data.missing == 1 && false", json!({}), None), Verdict::False);
}

#[test]
fn a_wrong_condition_says_what_is_wrong_and_where() {
    let long = format!("true {}", " ".repeat(CONDITION_BYTES_MAX));
    for (source, part) in [
        ("token.data.amount >", "line 1, column 20"),
        ("a &&\n  'é' b", "line 2, column 7"),
        ("", "line 1, column 1"),
        ("x = 1", "line 1, column 3"),
        ("'open", "column"),
        ("Order{id: 1} == token.data", "message literals"),
        ("{?'a': token.data.x} == token.data", ""),
        ("token.data.s.matches(input.pattern)", "with the pattern as a text in the condition"),
        ("matches('a')", "with the pattern as a text in the condition"),
        ("token.data.s.matches('(a')", "the pattern \"(a\": unclosed group at its character 1"),
        ("token.data.s.matches('(a{1000}){1000}')", "too large"),
        ("token.data.x.dyn() == 1", "dyn is written dyn(x)"),
        ("token.data.s.replace('a', 'b') == 'b'", "there is no function replace; there are all, "),
        ("token.data.l.all(x > 0)", "all is written list.all(item, condition)"),
        ("token.data.l.any(x, x > 0)", "there is no function any; there are all, exists, "),
        ("token.data.n > 1 and true", "line 1, column 18: and is not expected there; write &&"),
        ("true or false", "or is not expected there; write ||"),
        ("not token.data.b", "not is not expected there; write !"),
        ("token.data.n = 5", "= is not expected there; write =="),
        ("token.data.n => 5", "=> is not expected there; write >="),
        ("token.data.n === 5", "is not expected there; write =="),
        ("token.data.n <> 5", "write !="),
        ("true;", "a condition is one expression, without ;"),
        ("token.data.s == \u{2018}a\u{2019}", "write ' or \" around a text"),
        ("$token == 1", "names have no $"),
        ("has(token)", "has is written has(a.b)"),
        ("has(token.data['s'])", "has is written has(a.b), or 'b' in a"),
        ("token.data.in == 5", "is written a['in']"),
        ("order == 1 order", "where the condition might have ended"),
        ("b'x' == b'x'", "bytes"),
        ("[?token.data.x] == []", ""),
        ("token.?data == 1", ""),
        (&long, "at most 4096"),
    ] {
        let error = parse(source).expect_err(source);
        assert!(error.contains(part), "{source}: {error}");
        assert!(!error.contains('\n'), "{source}: {error}");
    }
}

/// On the stack that the engine gives a parser; the test's own thread has less.
fn on_a_large_stack(test: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().stack_size(PARSER_STACK_BYTES).spawn(test).unwrap().join().unwrap();
}

#[test]
fn nesting_is_bounded_and_overflows_no_stack() {
    on_a_large_stack(|| {
        let nested = |open: &str, inner: &str, close: &str, n: usize| {
            format!("{}{inner}{}", open.repeat(n), close.repeat(n))
        };
        for source in [
            nested("(", "true", ")", 2_045),
            nested("[", "1", "]", 2_045),
            nested("!", "true", "", 4_090),
            nested("!(", "true", ")", 1_300),
            nested("-", "1", "", 4_090),
            nested("size(", "1", ")", 680),
            nested("{1:", "1", "}", 1_000),
            nested("true?", "1", ":2", 580),
            nested("(true?", "1", ":2)", 450),
            format!("1{}", "+1".repeat(2_040)),
            format!("true{}", "?true:true".repeat(400)),
            format!("token{}", ".a".repeat(2_000)),
            format!("token{}", "[0]".repeat(1_360)),
            format!("token{}", ".size()".repeat(580)),
            format!("true{}", "&&true".repeat(680)),
            format!("true{}", "==true".repeat(680)),
            "(".repeat(4_096),
            "[".repeat(4_096),
            "\"".repeat(4_095),
            "a.all(x,".repeat(512),
            "token.exists(a,".repeat(273),
        ] {
            assert!(
                source.len() <= CONDITION_BYTES_MAX,
                "{} bytes: {}",
                source.len(),
                &source[..20]
            );
            // Whether it is refused is not the point, only that it ends.
            if let Ok(condition) = parse(&source) {
                let token = token(json!({}));
                std::thread::scope(|scope| {
                    // A worker's stack.
                    let thread = std::thread::Builder::new().stack_size(2 << 20);
                    thread
                        .spawn_scoped(scope, || {
                            let steps = Arc::new(Steps::new(STEPS_MAX));
                            verdict(&condition, &token, None, &steps)
                        })
                        .unwrap()
                        .join()
                        .unwrap();
                });
            }
        }
        assert!(parse(&format!("1{}", "+1".repeat(100))).is_err(), "depth is bounded");
    });
}

#[test]
fn conditions_see_what_will_be_when_it_is_and_who_asks() {
    for (source, expected) in [
        ("next.n == 2 && token.data.n == 1 && input.n == 2", true),
        ("next.kept == 'k' && !has(next.gone) && has(token.data.gone)", true),
        ("next.n > 2", false),
        ("now > token.updated_at && now - token.created_at < duration('72h')", true),
        ("now == timestamp('2026-01-03T00:26:40Z')", true),
        ("caller.id == 'ann' && 'approver' in caller.roles", true),
        ("'director' in caller.roles", false),
        ("caller.claims.dept.id == 7 && size(caller.roles) == 2", true),
    ] {
        let data = json!({ "n": 1, "kept": "k", "gone": true });
        let input = json!({ "n": 2, "gone": null });
        let expected = if expected { Verdict::True } else { Verdict::False };
        assert_eq!(evaluate(source, data, Some(input)), expected, "{source}");
    }
}

#[test]
fn what_a_condition_looked_at_is_told_by_its_text() {
    let data = json!({ "n": 2400, "l": [{ "sku": "a" }], "long": "x".repeat(2_000), "a b": 1 });
    let token = token(data.clone());
    for (source, expected) in [
        ("next.n <= 1000", json!({ "next.n": 2400 })),
        (
            "token.data.l[0].sku == 'b' || token.data['a b'] == 2",
            json!({ "token.data.l[0].sku": "a", "token.data[\"a b\"]": 1 }),
        ),
        ("has(input.x) && input.x == 1", json!({})),
        ("token.data.long == '' && token.place == 'x'", json!({ "token.place": "draft" })),
        (
            "token.data.l.all(l, l.sku == caller.id)",
            json!({ "token.data.l": [{ "sku": "a" }], "caller.id": "" }),
        ),
        ("token.data.l.all(token, token.sku == 'b')", json!({ "token.data.l": [{ "sku": "a" }] })),
        (
            "token.metadata.team == 'b' && token.version == 1",
            json!({ "token.metadata.team": "a", "token.version": 3 }),
        ),
        ("token == input", json!({ "input": {} })),
        ("token.data == next && token.data.l == 1", json!({ "token.data.l": [{ "sku": "a" }] })),
        (
            "token.data.l[input.n] == 1 && next.n == next.n",
            json!({ "token.data.l": [{ "sku": "a" }], "next.n": 2400 }),
        ),
    ] {
        let condition = parse(source).unwrap();
        let now = DateTime::UNIX_EPOCH;
        let seen = Seen { token: &token, input: None, next: &data, now, caller: &Caller::anyone() };
        assert_eq!(Value::Object(condition.values(&seen)), expected, "{source}");
    }
}

#[test]
fn parts_of_a_time_are_those_in_utc() {
    check("timestamp('2024-01-01T00:30:00+02:00').getHours() == 22", true);
    check("timestamp('2024-01-01T00:30:00+02:00').getFullYear() == 2023", true);
    check("timestamp('2024-01-01T00:30:00+02:00').getHours('+02:00') == 0", true);
    check("string(timestamp('2024-01-01T00:30:00+02:00')).contains('22:30:00')", true);
    check("timestamp(timestamp('2024-01-01T00:30:00+02:00')).getMinutes() == 30", true);
}

#[test]
fn numbers_compare_by_what_they_are_worth_and_calculate_with_one_another() {
    for source in [
        "9007199254740993 != 9007199254740992.0",
        "9007199254740993 > 9007199254740992.0",
        "!(9007199254740993 in [9007199254740992.0])",
        "[9007199254740993] != [9007199254740992.0]",
        "1 == 1.0 && 1.0 == 1 && [1, 2.0] == [1.0, 2]",
        "1 in [1.0] && 1.0 in token.data.l",
        "token.data.big > 18446744073709551614.0 || token.data.big < 18446744073709551616.0",
        "token.data.n * 1.19 == 1785.0",
        "token.data.n / 1000.0 == 1.5",
        "token.data.n - 0.5 == 1499.5 && 0.5 + token.data.n == token.data.f",
        "token.data.neg * 0.5 == -2.5 && 7 / 2 == 3",
        "token.data.o == token.data.same == false || true",
    ] {
        check(source, true);
    }
    for source in ["double('NaN') < 1", "double('NaN') >= 1.0", "double('NaN') == double('NaN')"] {
        check(source, false);
    }
}
