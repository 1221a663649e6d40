//! The values that a condition names, so that a refusal can show what decided it.

use cel::common::ast::{Expr, IdedExpr, LiteralValue, operators};
use serde_json::{Map, Value, json};

use super::Seen;
use super::parse::parts;

/// Values of one condition that are shown.
const LOOKS_MAX: usize = 16;

/// About how many bytes of JSON a value may have; a longer one is left out.
const VALUE_BYTES_MAX: usize = 1_024;

/// One value that a condition names, such as `token.data.lines[0].sku`.
#[derive(Debug)]
pub struct Look {
    text: String,
    root: Root,
    path: Vec<Part>,
}

#[derive(Debug, Clone, Copy)]
enum Root {
    Token,
    Input,
    Next,
    Now,
    Caller,
}

#[derive(Debug)]
enum Part {
    Member(String),
    Item(usize),
}

/// The values that a parsed condition names, in the order of its text, each once. What is named by
/// a calculation, such as `input.l[input.n]` or the items of a loop, is not among them.
pub fn looks(root: &IdedExpr) -> Vec<Look> {
    let mut looks: Vec<Look> = Vec::new();
    let mut waiting = vec![root];
    while let Some(node) = waiting.pop() {
        if looks.len() == LOOKS_MAX {
            break;
        }
        match look(node) {
            Some(look) if looks.iter().any(|known| known.text == look.text) => {}
            Some(look) => looks.push(look),
            None => {
                // A loop may call its items what we call something else.
                let hides = matches!(&node.expr, Expr::Comprehension(of) if root_of(&of.iter_var).is_some());
                let begin = waiting.len();
                parts(node, &mut |part, in_body| {
                    if !(hides && in_body) {
                        waiting.push(part);
                    }
                });
                waiting[begin..].reverse();
            }
        }
    }
    looks
}

fn look(node: &IdedExpr) -> Option<Look> {
    let (mut at, mut path) = (node, Vec::new());
    let (name, root) = loop {
        match &at.expr {
            Expr::Select(select) => {
                path.push(Part::Member(select.field.clone()));
                at = &select.operand;
            }
            Expr::Call(call) if call.func_name == operators::INDEX => {
                let [of, index] = &call.args[..] else { return None };
                path.push(index_of(index)?);
                at = of;
            }
            Expr::Ident(name) => break (name, root_of(name)?),
            _ => return None,
        }
    };
    path.reverse();
    let mut text = name.clone();
    for part in &path {
        match part {
            Part::Member(member) if is_name(member) => {
                text.push('.');
                text.push_str(member);
            }
            Part::Member(member) => text.push_str(&format!("[{}]", Value::from(member.as_str()))),
            Part::Item(index) => text.push_str(&format!("[{index}]")),
        }
    }
    Some(Look { text, root, path })
}

fn root_of(name: &str) -> Option<Root> {
    match name {
        "token" => Some(Root::Token),
        "input" => Some(Root::Input),
        "next" => Some(Root::Next),
        "now" => Some(Root::Now),
        "caller" => Some(Root::Caller),
        _ => None,
    }
}

fn index_of(index: &IdedExpr) -> Option<Part> {
    match &index.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(Part::Member(text.inner().to_owned())),
        Expr::Literal(LiteralValue::Int(at)) => usize::try_from(*at.inner()).ok().map(Part::Item),
        _ => None,
    }
}

fn is_name(member: &str) -> bool {
    member.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && member.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

impl Look {
    /// Its text and the value, where it is there and not too long.
    pub fn value(&self, seen: &Seen<'_>) -> Option<(String, Value)> {
        let value = match self.root {
            Root::Input => short(follow(seen.input(), &self.path)?)?,
            Root::Next => short(follow(seen.next, &self.path)?)?,
            Root::Now => short(follow(&json!(seen.now), &self.path)?)?,
            Root::Token => of_token(seen, &self.path)?,
            Root::Caller => {
                let caller = seen.caller;
                let caller =
                    json!({ "id": caller.id, "roles": caller.roles, "claims": caller.claims });
                short(follow(&caller, &self.path)?)?
            }
        };
        Some((self.text.clone(), value))
    }
}

fn of_token(seen: &Seen<'_>, path: &[Part]) -> Option<Value> {
    // The whole token has its data in it, which may be long.
    let (Part::Member(name), rest) = path.split_first()? else { return None };
    let token = seen.token;
    let value = match name.as_str() {
        "data" => return short(follow(&token.data, rest)?),
        "metadata" => match rest.split_first() {
            Some((Part::Member(name), rest)) => {
                return short(follow(token.metadata.get(name)?, rest)?);
            }
            Some((Part::Item(_), _)) => return None,
            None => {
                return members_left(&token.metadata, VALUE_BYTES_MAX)
                    .map(|_| json!(token.metadata));
            }
        },
        "id" => json!(token.id),
        "place" => json!(token.place),
        "version" => json!(token.version),
        "created_at" => json!(token.created_at),
        "updated_at" => json!(token.updated_at),
        _ => return None,
    };
    rest.is_empty().then_some(value)
}

fn follow<'a>(value: &'a Value, path: &[Part]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, part| match part {
        Part::Member(name) => value.as_object()?.get(name),
        Part::Item(index) => value.as_array()?.get(*index),
    })
}

/// A copy of a value that is not too long.
fn short(value: &Value) -> Option<Value> {
    left(value, VALUE_BYTES_MAX).map(|_| value.clone())
}

/// What is left of so many bytes once a value is written, about; none if it needs more. A long value is not gone
/// through any further than that.
fn left(value: &Value, bytes: usize) -> Option<usize> {
    let bytes = bytes.checked_sub(1)?;
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => bytes.checked_sub(3),
        Value::String(text) => bytes.checked_sub(text.len() + 1),
        Value::Array(items) => items.iter().try_fold(bytes, |bytes, item| left(item, bytes)),
        Value::Object(members) => members_left(members, bytes),
    }
}

fn members_left(members: &Map<String, Value>, bytes: usize) -> Option<usize> {
    members
        .iter()
        .try_fold(bytes, |bytes, (name, value)| left(value, bytes.checked_sub(name.len() + 4)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_value_is_about_what_its_json_takes() {
        for value in [
            json!(null),
            json!("text"),
            json!([1, [2, 3], {}]),
            json!({ "a": { "b": [true, "x"] }, "name": "y".repeat(200) }),
        ] {
            let written = VALUE_BYTES_MAX - left(&value, VALUE_BYTES_MAX).unwrap();
            let json = value.to_string().len();
            assert!(written.abs_diff(json) <= 2 + json / 2, "{value}: {written} for {json}");
            assert_eq!(left(&value, written), Some(0), "{value}");
            assert_eq!(left(&value, written - 1), None, "{value}");
        }
        let long = json!({ "a": vec![0; VALUE_BYTES_MAX] });
        assert_eq!(short(&long), None);
        assert_eq!(short(&json!("x".repeat(VALUE_BYTES_MAX))), None);
    }
}
