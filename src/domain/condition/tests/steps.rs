//! What conditions cost, and that all of it is paid.

use std::sync::Arc;

use serde_json::json;

use super::{
    Condition, PatternRoom, STEPS_MAX, Steps, Verdict, evaluate, on_a_large_stack, parse, token,
    verdict,
};

#[test]
fn what_costs_too_much_fails_for_its_steps() {
    let many: Vec<u32> = (0..300_000).collect();
    let long = "x".repeat(900_000);
    let words: Vec<String> = (0..20_000).map(|n| format!("word {n}")).collect();
    let data = json!({ "many": many, "long": long, "other": long, "words": words, "half": "x".repeat(450_000) });
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
        "token.data.words.all(x, token.data.words.all(y, x != '' || y != ''))",
        "token.data.words.map(x, token.data.words.map(y, x)).size() > 1",
        "token.data.many.map(x, x).size() > 1",
        "token.data.many.filter(x, true).size() > 1",
        "token.data.many.map(x, x < 0, x).size() > 1",
        "(token.data.many + token.data.many).size() > 1",
        "token.data.words.all(x, [x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x] != [])",
        "token.data.words.all(x, {'a': 1, 'b': 2, 'c': 3, 'd': 4, 'e': 5, 'f': 6, x: 1} != {})",
        "token.data.words.all(x, {'a': 1, 'b': 2, 'c': 3, 'd': 4, 'e': 5, 'f': 6}[token.data.long] != 1)",
        "token.data.words.all(x, x.matches('[a-z]{20}') || true)",
        &["!token.data.half.matches('^y$')"; 5].join(" && "),
        &format!("token.data.words.map(x, '{}' + string(x)) != []", "y".repeat(3_000)),
    ] {
        let verdict = evaluate(source, data.clone(), None);
        assert_eq!(verdict, Verdict::TooCostly, "{source}");
    }
    let longer = "token.data.long + token.data.long != ''";
    assert!(
        matches!(evaluate(longer, data.clone(), None), Verdict::Failed(reason) if reason.contains("4096"))
    );
    let wide = "token.data.long.matches('(a{0,30}){30}')";
    assert!(
        matches!(evaluate(wide, data.clone(), None), Verdict::Failed(reason) if reason.contains("at most 16"))
    );
    // What is large but not gone through, and what is lent, costs nothing.
    let lent = format!("size([{}]) == 20", vec!["token.data.long"; 20].join(", "));
    assert_eq!(evaluate(&lent, data.clone(), None), Verdict::True);
    assert_eq!(evaluate("size(token.data.many) == 300000", data.clone(), None), Verdict::True);
    assert_eq!(evaluate("token.data.words.all(x, x != '')", data, None), Verdict::True);
}

#[test]
fn the_same_condition_on_the_same_data_takes_the_same_steps() {
    let data = json!({ "l": (0..9_000).collect::<Vec<_>>() });
    let condition = parse("token.data.l.all(x, x >= 0 && x < 9000)").unwrap();
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
fn conditions_of_one_request_draw_from_the_same_steps() {
    let token = token(json!({ "l": (0..9_000).collect::<Vec<_>>() }));
    let condition = parse("token.data.l.all(x, x >= 0)").unwrap();
    let steps = Arc::new(Steps::new(STEPS_MAX));
    let verdicts: Vec<_> = (0..20).map(|_| verdict(&condition, &token, None, &steps)).collect();
    let first = verdicts.iter().take_while(|verdict| **verdict == Verdict::True).count();
    assert!((1..20).contains(&first), "{verdicts:?}");
    assert!(verdicts[first..].iter().all(|verdict| *verdict == Verdict::TooCostly));
}

#[test]
fn what_nobody_waits_for_any_more_ends() {
    let token = token(json!({ "l": (0..9_000).collect::<Vec<_>>() }));
    let condition = parse("token.data.l.all(x, x >= 0)").unwrap();
    let steps = Arc::new(Steps::new(STEPS_MAX));
    steps.stop();
    assert_eq!(verdict(&condition, &token, None, &steps), Verdict::TooCostly);
    assert_eq!(steps.left(), STEPS_MAX);
}

#[test]
fn the_patterns_of_a_definition_share_one_room() {
    on_a_large_stack(|| {
        let mut room = PatternRoom::default();
        let mut compile = |pattern: &str| {
            Condition::parse(&format!("input.x.matches('{pattern}')"), &mut room).map(|_| ())
        };
        for _ in 0..100 {
            compile("^[a-z0-9._-]+@[a-z0-9.-]+$").unwrap();
        }
        let wide = (0..100).find_map(|_| compile("[^a]{90}").err()).expect("the room has an end");
        assert!(wide.contains("too large"), "{wide}");
        assert!(compile("a").unwrap_err().contains("those before it"));

        let mut room = PatternRoom::default();
        let mut wrong = || Condition::parse("input.x.matches('(')", &mut room).unwrap_err();
        let messages: Vec<_> = (0..100).map(|_| wrong()).collect();
        assert!(messages[0].contains("unclosed"), "{}", messages[0]);
        assert!(messages[99].contains("too many are wrong"), "{}", messages[99]);
    });
}
