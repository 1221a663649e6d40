//! From text to expression, refusing what the parser or the evaluator could not bound.

use cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators};
use cel::parser::PrattParser;

use super::words;
use crate::domain::limits::CONDITION_BYTES_MAX;

/// Brackets, and operations in one another. Evaluation recurses through them: 48 levels use 0.2 MiB
/// of stack, where 4 KiB of text could nest 2,000 deep and overflow a worker's.
const NESTING_MAX: u16 = 32;
const EXPRESSION_DEPTH_MAX: usize = 48;

/// Functions that conditions may call. All are linear at most, none keeps what it makes.
pub const FUNCTIONS: [&str; 24] = [
    "bool",
    "contains",
    "double",
    "duration",
    "dyn",
    "endsWith",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getFullYear",
    "getHours",
    "getMilliseconds",
    "getMinutes",
    "getMonth",
    "getSeconds",
    "int",
    "matches",
    "size",
    "startsWith",
    "string",
    "timestamp",
    "type",
    "uint",
];

/// What the parser writes out, if it is written like this.
const MACROS: [(&str, &str); 6] = [
    ("all", "list.all(item, condition)"),
    ("exists", "list.exists(item, condition)"),
    ("exists_one", "list.exists_one(item, condition)"),
    ("filter", "list.filter(item, condition)"),
    ("has", "has(a.b)"),
    ("map", "list.map(item, value)"),
];

/// An expression that holds all bounds.
pub struct Parsed {
    pub expression: IdedExpr,
    pub nodes: usize,
}

/// Parses a condition, or says what is wrong and, where that is known, in which line and column.
pub fn parse(source: &str) -> Result<Parsed, String> {
    if source.len() > CONDITION_BYTES_MAX {
        return Err(format!("{} bytes, at most {CONDITION_BYTES_MAX} are allowed", source.len()));
    }
    // The crate's own `Program` parses with ANTLR, which takes 116 ms for some 4 KiB and needs ten
    // times the stack; this one, the same grammar by hand, takes 36 ms for the worst that was found.
    // It is exported for those who ask for it, without a promise: hence the exact version in Cargo.toml.
    let parser = PrattParser::new()
        .max_recursion_depth(NESTING_MAX)
        .error_recovery_limit(4)
        .enable_ident_escape_syntax(true);
    let expression = parser.parse(source).map_err(|errors| {
        let placed = errors.errors.iter().filter(|error| error.pos.0 > 0);
        match placed.min_by_key(|error| error.pos) {
            None => "it nests too deep".to_owned(),
            Some(_) if brackets(source) > NESTING_MAX.into() => {
                format!("brackets are more than {NESTING_MAX} within one another")
            }
            Some(error) => {
                let (line, column) = (error.pos.0 as usize, error.pos.1 as usize);
                let text = source.split('\n').nth(line.saturating_sub(1)).unwrap_or_default();
                let (before, at) =
                    text.split_at_checked(column.saturating_sub(1)).unwrap_or((text, ""));
                let message = words::syntax(&error.msg, before, at);
                format!("line {line}, column {}: {message}", before.chars().count() + 1)
            }
        }
    })?;
    let nodes = bound_expression(&expression)?;
    Ok(Parsed { expression, nodes })
}

/// How deep brackets are within one another, about: what stands within texts counts, too.
fn brackets(source: &str) -> usize {
    let (mut depth, mut most) = (0_usize, 0);
    for byte in source.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        most = most.max(depth);
    }
    most
}

/// Bounds the parsed expression and refuses what could use memory without bound. Gives the number
/// of its nodes. Goes through it without recursion, as it may be deep.
fn bound_expression(root: &IdedExpr) -> Result<usize, String> {
    let mut waiting = vec![(root, 1_usize)];
    let mut nodes = 0;
    while let Some((node, depth)) = waiting.pop() {
        nodes += 1;
        if depth > EXPRESSION_DEPTH_MAX {
            return Err(format!(
                "more than {EXPRESSION_DEPTH_MAX} operations are nested in one another"
            ));
        }
        refuse(&node.expr)?;
        parts(node, &mut |part, _| waiting.push((part, depth + 1)));
    }
    Ok(nodes)
}

fn refuse(expression: &Expr) -> Result<(), String> {
    let what = match expression {
        Expr::Struct(_) => "message literals are not supported in conditions; JSON has none",
        Expr::Literal(LiteralValue::Bytes(_)) => {
            "bytes are not supported in conditions; JSON has none"
        }
        Expr::List(list) if !list.optional_indices.is_empty() => {
            "optional elements are not supported in conditions"
        }
        Expr::Map(map) if map.entries.iter().any(|entry| is_optional(&entry.expr)) => {
            "optional entries are not supported in conditions"
        }
        Expr::Call(call) if call.func_name == "matches" && pattern_of(call).is_none() => {
            "matches is written x.matches('pattern'), with the pattern as a text in the condition: one out of data could take any time to prepare"
        }
        Expr::Call(call)
            if call.func_name == "dyn" && (call.target.is_some() || call.args.len() != 1) =>
        {
            "dyn is written dyn(x)"
        }
        Expr::Unspecified => "a part of the expression is missing",
        Expr::Call(call) if MACROS.iter().any(|(name, _)| *name == call.func_name) => {
            let how = MACROS.iter().find(|(name, _)| *name == call.func_name).map(|(_, how)| *how);
            return Err(format!("{} is written {}", call.func_name, how.unwrap_or_default()));
        }
        Expr::Call(call)
            if !is_operator(&call.func_name) && !FUNCTIONS.contains(&call.func_name.as_str()) =>
        {
            return Err(format!(
                "there is no function {}; there are {}, {}",
                call.func_name,
                MACROS.map(|(name, _)| name).join(", "),
                FUNCTIONS.join(", ")
            ));
        }
        _ => return Ok(()),
    };
    Err(what.to_owned())
}

fn is_optional(entry: &EntryExpr) -> bool {
    matches!(entry, EntryExpr::MapEntry(entry) if entry.optional)
}

/// The pattern of a call of `matches`, which is written in it.
pub fn pattern_of(call: &CallExpr) -> Option<&str> {
    let pattern = match (call.func_name.as_str(), &call.target, &call.args[..]) {
        ("matches", Some(_), [pattern]) | ("matches", None, [_, pattern]) => pattern,
        _ => return None,
    };
    match &pattern.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}

fn is_operator(function: &str) -> bool {
    use operators::{LOGICAL_NOT, NEGATE};
    let mut characters = function.chars();
    let named = characters.next().is_some_and(char::is_alphanumeric);
    function == LOGICAL_NOT
        || function == NEGATE
        || function.starts_with('@')
        || (!named && function.contains('_'))
}

/// Calls `visit` for each direct part of a node, with whether it is evaluated once per round of a loop.
pub fn parts<'a>(node: &'a IdedExpr, visit: &mut dyn FnMut(&'a IdedExpr, bool)) {
    match &node.expr {
        Expr::Call(call) => call
            .target
            .iter()
            .map(Box::as_ref)
            .chain(&call.args)
            .for_each(|part| visit(part, false)),
        Expr::Comprehension(loops) => {
            visit(&loops.iter_range, false);
            for part in [&loops.accu_init, &loops.loop_cond, &loops.loop_step, &loops.result] {
                visit(part, true);
            }
        }
        Expr::List(list) => list.elements.iter().for_each(|part| visit(part, false)),
        Expr::Select(select) => visit(&select.operand, false),
        Expr::Map(map) => map.entries.iter().for_each(|entry| {
            if let EntryExpr::MapEntry(entry) = &entry.expr {
                visit(&entry.key, false);
                visit(&entry.value, false);
            }
        }),
        Expr::Struct(message) => message.entries.iter().for_each(|entry| {
            if let EntryExpr::StructField(field) = &entry.expr {
                visit(&field.value, false);
            }
        }),
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => {}
    }
}
