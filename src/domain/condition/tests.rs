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

fn evaluate(source: &str, data: Value, input: Option<Value>) -> Verdict {
    let condition = Condition::parse(source).unwrap_or_else(|error| panic!("{source}: {error}"));
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
fn what_has_no_value_is_a_failure_unless_the_other_side_decides() {
    for (source, part) in [
        ("token.data.missing == 1", "missing"),
        ("token.missing", "missing"),
        ("nothing == 1", "nothing"),
        ("token.data.l[3] == 1", ""),
        ("token.data.l[-1] == 1", ""),
        ("token.data.l['x'] == 1", ""),
        ("token.data.n / 0 == 1", ""),
        ("9223372036854775807 + token.data.n > 0", ""),
        ("token.data.n % 1.5 == 0.0", ""),
        ("token.data.n + 'x' == ''", ""),
        ("token.data.n", "not true or false"),
        ("token.data.s", "not true or false"),
        ("token.data.l", "not true or false"),
        ("token.data", "not true or false"),
        ("null", "not true or false"),
        ("token.data.l + [1] == []", "joined"),
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
        ("token.data.items.map(i, i.price) == []", "map"),
        ("token.data.items.filter(i, true).size() > 1", "filter"),
        ("token.data.items.all(i, i.tags.all(t, t != ''))", "a loop inside a loop"),
        ("{'a': 1} == token.data", "map and message literals"),
        ("token.data.s.matches('a+')", "no function matches"),
        ("matches(token.data.s, '(a+)+')", "no function matches"),
        ("b'x' == b'x'", "bytes"),
        ("[?token.data.x] == []", ""),
        ("token.?data == 1", ""),
        (&long, "at most 4096"),
    ] {
        let error = Condition::parse(source).expect_err(source);
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
            if let Ok(condition) = Condition::parse(&source) {
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
        assert!(Condition::parse(&format!("1{}", "+1".repeat(100))).is_err(), "depth is bounded");
    });
}

#[test]
fn what_costs_too_much_fails_for_its_steps() {
    let many: Vec<u32> = (0..300_000).collect();
    let long = "x".repeat(900_000);
    let words: Vec<String> = (0..20_000).map(|n| format!("word {n}")).collect();
    let data = json!({ "many": many, "long": long, "other": long, "words": words });
    for source in [
        "token.data.many.all(x, x >= 0)",
        "token.data.many.exists(x, x < 0)",
        "token.data.many.exists_one(x, x == 7)",
        "token.data.many.all(x, token.data.many[x] == x)",
        &["!(-1 in token.data.many)"; 4].join(" && "),
        "token.data.words.all(x, !('none' in token.data.words))",
        "token.data.words.all(x, !token.data.long.contains(x)) || true",
        "token.data.words.exists(x, token.data[token.data.long] == x)",
        "token.data.words.all(x, !(token.data.long in token.data))",
        "token.data.words.all(x, token.data.words == token.data.words)",
        &["token.data.long == token.data.other"; 10].join(" && "),
        "token.data.words.exists(x, 1 == token.data.long)",
        "token.data.many.all(x, x in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18] || x >= 0)",
        &format!("[{}].exists(x, x == '')", vec!["token.data.long"; 20].join(", ")),
    ] {
        let verdict = evaluate(source, data.clone(), None);
        assert_eq!(verdict, Verdict::TooCostly, "{source}");
    }
    let longer = "token.data.long + token.data.long != ''";
    assert!(
        matches!(evaluate(longer, data.clone(), None), Verdict::Failed(reason) if reason.contains("4096"))
    );
    // What is large but not gone through costs nothing.
    assert_eq!(evaluate("size(token.data.many) == 300000", data.clone(), None), Verdict::True);
    assert_eq!(evaluate("token.data.words.all(x, x != '')", data, None), Verdict::True);
}

#[test]
fn the_same_condition_on_the_same_data_takes_the_same_steps() {
    let data = json!({ "l": (0..9_000).collect::<Vec<_>>() });
    let condition = Condition::parse("token.data.l.all(x, x >= 0 && x < 9000)").unwrap();
    let token = token(data);
    let taken = |steps_max: i64| {
        let steps = Arc::new(Steps::new(steps_max));
        let verdict = verdict(&condition, &token, None, &steps);
        (verdict, steps_max - steps.left())
    };
    let (verdict, steps) = taken(STEPS_MAX);
    assert_eq!(verdict, Verdict::True);
    for _ in 0..3 {
        assert_eq!(taken(STEPS_MAX), (Verdict::True, steps));
        assert_eq!(taken(steps), (Verdict::True, steps), "as many as it needs are enough");
        assert_eq!(taken(steps - 1).0, Verdict::TooCostly);
    }
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
        let condition = Condition::parse(source).unwrap();
        let now = DateTime::UNIX_EPOCH;
        let seen = Seen { token: &token, input: None, next: &data, now, caller: &Caller::anyone() };
        assert_eq!(Value::Object(condition.values(&seen)), expected, "{source}");
    }
}

#[test]
fn conditions_of_one_request_draw_from_the_same_steps() {
    let token = token(json!({ "l": (0..9_000).collect::<Vec<_>>() }));
    let condition = Condition::parse("token.data.l.all(x, x >= 0)").unwrap();
    let steps = Arc::new(Steps::new(STEPS_MAX));
    let verdicts: Vec<_> = (0..20).map(|_| verdict(&condition, &token, None, &steps)).collect();
    let first = verdicts.iter().take_while(|verdict| **verdict == Verdict::True).count();
    assert!((1..20).contains(&first), "{verdicts:?}");
    assert!(verdicts[first..].iter().all(|verdict| *verdict == Verdict::TooCostly));
}

#[test]
fn what_nobody_waits_for_any_more_ends() {
    let token = token(json!({ "l": (0..9_000).collect::<Vec<_>>() }));
    let condition = Condition::parse("token.data.l.all(x, x >= 0)").unwrap();
    let steps = Arc::new(Steps::new(STEPS_MAX));
    steps.stop();
    assert_eq!(verdict(&condition, &token, None, &steps), Verdict::TooCostly);
    assert_eq!(steps.left(), STEPS_MAX);
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
