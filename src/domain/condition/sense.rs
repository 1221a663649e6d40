//! What can never be evaluated: refused when a workflow is created, as a definition cannot be mended.
//!
//! What hangs on data stays a question for the moment of the move: a value out of data may be anything.

use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SelectExpr, operators,
};

use self::Kind::{Any, Bool, Double, Duration, Int, List, Null, Object, Text, Time, Type, UInt};

/// What is known of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Any,
    Bool,
    Double,
    Duration,
    Int,
    List,
    Null,
    /// One whose members may be anything.
    Object,
    Text,
    Time,
    /// What `type(x)` gives, such as `int`.
    Type,
    UInt,
    /// `token` itself, and `caller`.
    Root(&'static [(&'static str, Kind)]),
}

const TOKEN: &[(&str, Kind)] = &[
    ("id", Text),
    ("place", Text),
    ("version", Int),
    ("data", Any),
    ("metadata", Object),
    ("created_at", Time),
    ("updated_at", Time),
];
const CALLER: &[(&str, Kind)] = &[("id", Text), ("roles", List), ("claims", Object)];
const NAMES: [(&str, Kind); 5] = [
    ("token", Kind::Root(TOKEN)),
    ("input", Any),
    ("next", Any),
    ("now", Time),
    ("caller", Kind::Root(CALLER)),
];

/// What `type(x)` is compared with.
const TYPES: [&str; 9] =
    ["bool", "double", "int", "list", "map", "null_type", "string", "type", "uint"];

impl Kind {
    fn is_number(self) -> bool {
        matches!(self, Int | UInt | Double)
    }

    /// Whether it may be one of these, or anything.
    fn may_be(self, kinds: &[Kind]) -> bool {
        self == Any || kinds.contains(&self)
    }

    fn name(self) -> &'static str {
        match self {
            Any => "anything",
            Bool => "true or false",
            Double => "a number with a fraction",
            Duration => "a duration",
            Int => "a whole number",
            UInt => "a whole number without a sign",
            List => "a list",
            Null => "null",
            Object | Kind::Root(_) => "an object",
            Text => "a text",
            Time => "a timestamp",
            Type => "a type",
        }
    }
}

/// Says what is wrong with a parsed condition that can never be evaluated, or never to true or false.
pub fn check(root: &IdedExpr) -> Result<(), String> {
    let kind = Scope::default().kind(root)?;
    if kind.may_be(&[Bool]) {
        Ok(())
    } else {
        Err(format!("it is {}, not true or false", kind.name()))
    }
}

/// The variables of loops, innermost last.
#[derive(Default)]
struct Scope {
    variables: Vec<(String, Kind)>,
}

impl Scope {
    /// Recursion is bounded by the depth of the expression, which the parser has checked.
    fn kind(&mut self, node: &IdedExpr) -> Result<Kind, String> {
        Ok(match &node.expr {
            Expr::Ident(name) => self.named(name)?,
            Expr::Literal(literal) => match literal {
                LiteralValue::Boolean(_) => Bool,
                LiteralValue::Double(_) => Double,
                LiteralValue::Int(_) => Int,
                LiteralValue::UInt(_) => UInt,
                LiteralValue::String(_) => Text,
                LiteralValue::Null => Null,
                LiteralValue::Bytes(_) => Any,
            },
            Expr::List(list) => {
                for element in &list.elements {
                    self.kind(element)?;
                }
                List
            }
            Expr::Select(select) => self.selected(select)?,
            Expr::Call(call) => self.call(call)?,
            Expr::Comprehension(of) => self.looped(of)?,
            Expr::Map(map) => {
                let mut keys = Vec::new();
                for entry in &map.entries {
                    let EntryExpr::MapEntry(entry) = &entry.expr else { continue };
                    let kind = self.kind(&entry.key)?;
                    if !kind.may_be(&[Bool, Int, UInt, Text]) {
                        return Err(format!("{} is no key of an object", kind.name()));
                    }
                    if let Expr::Literal(key) = &entry.key.expr {
                        if keys.contains(&key) {
                            return Err("a key stands twice in one object".to_owned());
                        }
                        keys.push(key);
                    }
                    self.kind(&entry.value)?;
                }
                Object
            }
            Expr::Struct(_) | Expr::Unspecified => Any,
        })
    }

    fn named(&self, name: &str) -> Result<Kind, String> {
        let variable = self.variables.iter().rev().find(|(known, _)| known == name);
        let known = NAMES.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind);
        let of_type = TYPES.contains(&name).then_some(Type);
        variable.map(|(_, kind)| *kind).or(known).or(of_type).ok_or_else(|| {
            let there: Vec<_> = NAMES.iter().map(|(name, _)| *name).collect();
            format!("there is no name {name}; there are {}", there.join(", "))
        })
    }

    fn selected(&mut self, select: &SelectExpr) -> Result<Kind, String> {
        let of = self.kind(&select.operand)?;
        // `has` of what is never there is false.
        let kind = if select.test {
            member(of, &select.field).unwrap_or(Any)
        } else {
            member(of, &select.field)?
        };
        Ok(if select.test { Bool } else { kind })
    }

    fn looped(&mut self, of: &ComprehensionExpr) -> Result<Kind, String> {
        let range = self.kind(&of.iter_range)?;
        if !range.may_be(&[List, Object]) && !matches!(range, Kind::Root(_)) {
            return Err(format!(
                "a loop goes through a list or an object, not through {}",
                range.name()
            ));
        }
        let result = self.kind(&of.accu_init)?;
        let depth = self.variables.len();
        self.variables
            // The keys of a literal may be other than texts.
            .push((of.iter_var.clone(), if matches!(range, Kind::Root(_)) { Text } else { Any }));
        self.variables.extend(of.iter_var2.iter().map(|name| (name.clone(), Any)));
        self.variables.push((of.accu_var.clone(), result));
        self.kind(&of.loop_step)?;
        let kind = self.kind(&of.result)?;
        self.variables.truncate(depth);
        Ok(kind)
    }

    fn call(&mut self, call: &CallExpr) -> Result<Kind, String> {
        let target = call.target.as_deref().map(|target| self.kind(target)).transpose()?;
        let args = call.args.iter().map(|arg| self.kind(arg)).collect::<Result<Vec<_>, _>>()?;
        constant(call)?;
        match (target, args.as_slice()) {
            (None, [left, right]) if is_binary(&call.func_name) => {
                binary(&call.func_name, *left, *right, &call.args)
            }
            (None, [of]) if call.func_name == operators::LOGICAL_NOT => {
                wants(*of, &[Bool], "!", Bool)
            }
            (None, [of]) if call.func_name == operators::NEGATE => {
                wants(*of, &[Int, Double], "-", *of)
            }
            (None, [condition, yes, no]) if call.func_name == operators::CONDITIONAL => {
                wants(*condition, &[Bool], "? :", if yes == no { *yes } else { Any })
            }
            _ if call.func_name.starts_with('@') => Ok(Any),
            (target, args) => function(&call.func_name, target, args),
        }
    }
}

/// A conversion of what is written there, such as `duration('7 days')`, always comes to the same.
fn constant(call: &CallExpr) -> Result<(), String> {
    const CONVERSIONS: [&str; 6] = ["bool", "double", "duration", "int", "timestamp", "uint"];
    let [IdedExpr { expr: Expr::Literal(literal), .. }] = call.args.as_slice() else {
        return Ok(());
    };
    if call.target.is_some() || !CONVERSIONS.contains(&call.func_name.as_str()) {
        return Ok(());
    }
    if let ("duration", LiteralValue::String(text)) = (call.func_name.as_str(), literal)
        && !super::numbers::is_span(text.inner())
    {
        return Err(super::words::reason(&super::numbers::no_span()));
    }
    let conversion = IdedExpr { id: 0, expr: Expr::Call(call.clone()) };
    match cel::Value::resolve(&conversion, super::functions::root_context()) {
        Ok(_) => Ok(()),
        Err(error) => Err(super::words::reason(&error)),
    }
}

fn member(of: Kind, name: &str) -> Result<Kind, String> {
    match of {
        Any | Object => Ok(Any),
        Kind::Root(members) => {
            let found = members.iter().find(|(known, _)| *known == name);
            found.map(|(_, kind)| *kind).ok_or_else(|| {
                let there: Vec<_> = members.iter().map(|(name, _)| *name).collect();
                format!("there is no member {name}; there are {}", there.join(", "))
            })
        }
        other => Err(format!("{} has no member {name}", other.name())),
    }
}

fn wants(of: Kind, kinds: &[Kind], operator: &str, gives: Kind) -> Result<Kind, String> {
    if of.may_be(kinds) {
        Ok(gives)
    } else {
        Err(format!("{operator} does not go with {}", of.name()))
    }
}

fn is_binary(function: &str) -> bool {
    use operators::{
        ADD, DIVIDE, EQUALS, GREATER, GREATER_EQUALS, IN, INDEX, LESS, LESS_EQUALS, LOGICAL_AND,
        LOGICAL_OR, MODULO, MULTIPLY, NOT_EQUALS, SUBSTRACT,
    };
    [
        ADD,
        DIVIDE,
        EQUALS,
        GREATER,
        GREATER_EQUALS,
        IN,
        INDEX,
        LESS,
        LESS_EQUALS,
        LOGICAL_AND,
        LOGICAL_OR,
        MODULO,
        MULTIPLY,
        NOT_EQUALS,
        SUBSTRACT,
    ]
    .contains(&function)
}

fn binary(operator: &str, left: Kind, right: Kind, args: &[IdedExpr]) -> Result<Kind, String> {
    use operators::{
        ADD, DIVIDE, EQUALS, GREATER, GREATER_EQUALS, IN, INDEX, LESS, LESS_EQUALS, LOGICAL_AND,
        LOGICAL_OR, MODULO, MULTIPLY, NOT_EQUALS, SUBSTRACT,
    };
    let shown = operator.trim_matches(['_', '@']);
    let wrong = || Err(format!("{shown} does not go with {} and {}", left.name(), right.name()));
    let numbers = left.may_be(&[Int, UInt, Double]) && right.may_be(&[Int, UInt, Double]);
    // One whole number is signed, the other one not.
    let apart = matches!((left, right), (Int, UInt) | (UInt, Int));
    match operator {
        EQUALS | NOT_EQUALS => Ok(Bool),
        LOGICAL_AND | LOGICAL_OR if left.may_be(&[Bool]) && right.may_be(&[Bool]) => Ok(Bool),
        LESS | LESS_EQUALS | GREATER | GREATER_EQUALS => {
            let same = left == right && matches!(left, Bool | Text | Time | Duration);
            if left == Any || right == Any || same || left.is_number() && right.is_number() {
                let other = if left == Any { right } else { left };
                if other.may_be(&[Bool, Text, Time, Duration, Int, UInt, Double]) {
                    return Ok(Bool);
                }
            }
            wrong()
        }
        IN if right.may_be(&[List, Object]) || matches!(right, Kind::Root(_)) => Ok(Bool),
        IN => Err(format!("in takes a list or an object on its right, not {}", right.name())),
        INDEX => match (left, args.get(1).map(|index| &index.expr)) {
            (Kind::Root(_) | Object, Some(Expr::Literal(LiteralValue::String(name)))) => {
                member(left, name.inner())
            }
            (Any | List | Object | Kind::Root(_), _) => Ok(Any),
            _ => Err(format!("{} has no [ ]", left.name())),
        },
        _ if left == Any && right == Any => Ok(Any),
        ADD | SUBSTRACT if matches!((left, right), (Time, Duration)) => Ok(Time),
        ADD if matches!((left, right), (Duration, Time)) => Ok(Time),
        SUBSTRACT if matches!((left, right), (Time, Time)) => Ok(Duration),
        ADD | SUBSTRACT if matches!((left, right), (Duration, Duration)) => Ok(Duration),
        ADD if matches!((left, right), (Text, Text) | (List, List)) => Ok(left),
        ADD if matches!(
            (left, right),
            (Any, Text | Time | Duration | List) | (Text | Time | Duration | List, Any)
        ) =>
        {
            Ok(Any)
        }
        SUBSTRACT if matches!((left, right), (Any, Time | Duration) | (Time | Duration, Any)) => {
            Ok(Any)
        }
        ADD | SUBSTRACT | MULTIPLY | DIVIDE if numbers && !apart => Ok(match (left, right) {
            (Any, _) | (_, Any) => Any,
            (Double, _) | (_, Double) => Double,
            (whole, _) => whole,
        }),
        MODULO if left.may_be(&[Int, UInt]) && right.may_be(&[Int, UInt]) && !apart => {
            Ok(if left == Any { right } else { left })
        }
        _ => wrong(),
    }
}

fn function(name: &str, target: Option<Kind>, args: &[Kind]) -> Result<Kind, String> {
    const TIMED: [Kind; 2] = [Time, Duration];
    let call = |of: Kind, kinds: &[Kind], gives: Kind| {
        if of.may_be(kinds) {
            Ok(gives)
        } else {
            Err(format!("{name} does not go with {}", of.name()))
        }
    };
    let takes = |how: &str| Err(format!("{name} is written {how}"));
    match (name, target, args) {
        ("size", Some(Kind::Root(_)), []) | ("size", None, [Kind::Root(_)]) => Ok(Int),
        ("size", Some(of), []) => call(of, &[Text, List, Object], Int),
        ("size", None, [of]) => call(*of, &[Text, List, Object], Int),
        ("size", ..) => takes("size(x) or x.size()"),
        ("contains" | "startsWith" | "endsWith", Some(of), [with]) => {
            call(of, &[Text], Bool)?;
            call(*with, &[Text], Bool)
        }
        ("contains" | "startsWith" | "endsWith", ..) => takes(&format!("x.{name}(y)")),
        ("matches", Some(of), [_]) => call(of, &[Text], Bool),
        ("matches", None, [of, _]) => call(*of, &[Text], Bool),
        ("dyn", None, [_]) => Ok(Any),
        ("type", None, [_]) => Ok(Type),
        ("bool", None, [of]) => call(*of, &[Bool, Text], Bool),
        ("int", None, [of]) => call(*of, &[Int, UInt, Double, Text, Time], Int),
        ("uint", None, [of]) => call(*of, &[Int, UInt, Double, Text], UInt),
        ("double", None, [of]) => call(*of, &[Int, UInt, Double, Text], Double),
        ("string", None, [of]) => call(*of, &[Bool, Int, UInt, Double, Text, Time, Duration], Text),
        ("timestamp", None, [of]) => call(*of, &[Int, Text, Time], Time),
        ("duration", None, [of]) => call(*of, &[Text, Duration], Duration),
        (
            "bool" | "dyn" | "int" | "uint" | "double" | "string" | "timestamp" | "duration"
            | "type",
            ..,
        ) => takes(&format!("{name}(x)")),
        ("getHours" | "getMinutes" | "getSeconds" | "getMilliseconds", Some(of), []) => {
            call(of, &TIMED, Int)
        }
        (_, Some(of), []) => call(of, &[Time], Int),
        (_, Some(of), [zone]) => {
            call(of, &[Time], Int)?;
            call(*zone, &[Text], Int)
        }
        _ => takes(&format!("x.{name}() or x.{name}('Europe/Berlin')")),
    }
}

#[cfg(test)]
mod tests {
    use crate::domain::condition::{Condition, PARSER_STACK_BYTES, PatternRoom};

    /// Parses as a new condition, on a thread with the stack for it.
    fn sense(source: &str) -> Result<(), String> {
        let source = source.to_owned();
        let parse = move || Condition::parse_new(&source, &mut PatternRoom::default()).map(|_| ());
        let thread = std::thread::Builder::new().stack_size(PARSER_STACK_BYTES).spawn(parse);
        thread.unwrap().join().unwrap()
    }

    /// Conditions that can never be evaluated, and what is told of them.
    const NEVER: &[(&str, &str)] = &[
        ("data.amount > 5", "there is no name data"),
        ("tokn.data.x", "there is no name tokn"),
        ("doc.approved || true", "there is no name doc"),
        ("triggeredBy == 'bob'", "there is no name triggeredBy"),
        ("True", "there is no name True"),
        ("token.createdAt > now", "no member createdAt"),
        ("token.dat.n == 1", "no member dat"),
        ("token['dat'] == 1", "no member dat"),
        ("caller.name == 'x'", "no member name"),
        ("token.place.x == 1", "a text has no member x"),
        ("1 + 1", "it is a whole number"),
        ("token", "it is an object"),
        ("'a'", "it is a text"),
        ("token.place", "it is a text"),
        ("!1", "! does not go with"),
        ("1 || true", "|| does not go with"),
        ("token.version && true", "&& does not go with"),
        ("-'a' == 1", "- does not go with"),
        ("token.place > 1", "> does not go with a text and a whole number"),
        ("now > token.version", "> does not go with"),
        ("token.data.x < null", "< does not go with"),
        ("now + now == now", "+ does not go with"),
        ("[1] + 2 == [3]", "+ does not go with"),
        ("{'a': 1} + {'b': 1} == {}", "+ does not go with"),
        ("{'a': 1, 'b': 1, 'a': 1} == {}", "a key stands twice"),
        ("{1.5: 1} == {}", "a number with a fraction is no key"),
        ("{'a': 1}", "it is an object"),
        ("{'a': doc} == {}", "there is no name doc"),
        ("[1].map(x, y) == []", "there is no name y"),
        ("[1].map(x, x)", "it is a list"),
        ("[1].filter(x, 'a') == []", "? : does not go with"),
        ("token.version.map(x, x) == []", "a loop goes through"),
        ("1.matches('a')", "matches does not go with"),
        ("bool('yes')", "bool"),
        ("bool(1)", "bool"),
        ("type(1)", "it is a type"),
        ("type(1) == integer", "there is no name integer"),
        ("dyn(doc) == 1", "there is no name doc"),
        ("token.place * 2 == 4", "* does not go with"),
        ("1.5 % 2 == 1", "% does not go with"),
        ("1 in 'a'", "in takes a list or an object on its right, not a text"),
        ("size() == 1", "size is written"),
        ("size(1, 2) == 1", "size is written"),
        ("size(1) == 1", "size does not go with a whole number"),
        ("now.size() == 1", "size does not go with a timestamp"),
        ("'a'.contains()", "contains is written"),
        ("contains('a', 'b')", "contains is written"),
        ("'a'.contains(1)", "contains does not go with"),
        ("token.version.startsWith('1')", "startsWith does not go with"),
        ("'1'.int() == 1", "int is written"),
        ("duration('7 days') > duration('1h')", "duration takes a text of numbers with the units"),
        ("duration('1h30') > duration('1h')", "duration takes a text of numbers with the units"),
        ("timestamp('yesterday') < now", "timestamp takes a text such as 2026-07-01T10:00:00Z"),
        ("int('a') == 1", "int"),
        ("duration('1h').getFullYear() == 1", "getFullYear does not go with a duration"),
        ("now.getHours(1) == 1", "getHours does not go with"),
        ("[1].all(x, y > 0)", "there is no name y"),
        ("[1].all(x, 1)", "&& does not go with"),
        ("token.version.all(x, true)", "a loop goes through"),
        ("token ? true : false", "? : does not go with"),
        ("token.data.l.all(x, x.z) && x.z", "there is no name x"),
    ];

    #[test]
    fn what_can_never_be_evaluated_is_refused_at_creation() {
        for (source, wrong) in NEVER {
            let error = sense(source).expect_err(source);
            assert!(error.contains(wrong), "{source}: {error}");
            // One that is stored loads all the same.
            assert!(Condition::parse(source, &mut PatternRoom::default()).is_ok(), "{source}");
        }
    }

    #[test]
    fn what_hangs_on_data_is_a_question_for_the_move() {
        for source in [
            "token.data.x",
            "input",
            "next.a.b.c == 1",
            "has(token.dat)",
            "has(input.x) && input.x",
            "token['data'].x == 1 && token.data['a b'][0] == input['x']",
            "token.data.l.all(x, x)",
            "token.data.l.exists(token, token.x)",
            "token.data.l.exists_one(x, x == 1)",
            "token.metadata.all(name, name != 'x')",
            "[1, 2].exists(x, x == input.n)",
            "caller.roles.exists(role, role == 'x') || 'y' in caller.roles",
            "size(caller.roles) > 0 && caller.claims.dept == 'x'",
            "input.a + 'b' == 'ab'",
            "token.data.n - 1 > 0 && token.data.n * 2 >= token.version",
            "now - token.updated_at > duration('1h')",
            "now + duration('1h') < timestamp(input.until)",
            "(input.x ? token.data : next).ok",
            "input.x ? true : input.y",
            "token.place == 1",
            "null == input.x",
            "input.a in ['x'] || input.b in token.data.m",
            "uint(3) == input.u",
            "string(now) == input.s && string(token.version) == '1'",
            "now.getHours('Europe/Berlin') < 18 && input.at.getHours() == 1",
            "duration('90m').getHours() == 1",
            "token.data.x.contains(input.y)",
            "1.5 * 2 == 3.0 && 3 % 2 == 1 && -1 < 0 && -1.5 < 0.0",
            "true && !false",
            "'a' < 'b' && 1 < 1.5 && 1 < token.data.n",
        ] {
            assert_eq!(sense(source), Ok(()), "{source}");
        }
    }
}
