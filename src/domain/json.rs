//! What the domain does with free JSON: merge it, bound it and weigh it.

use serde_json::{Map, Value};

/// Applies a JSON Merge Patch to `target` (RFC 7396).
///
/// Members that are null in the patch go, objects merge, anything else replaces. Members keep
/// their order, new ones come last. Recursion is bounded by the depth of the patch, which
/// [`depth_exceeds`] has checked.
pub fn merge_patch(target: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(members) = target else { return };
    if changes.values().any(Value::is_null) {
        // In one go: to take out one member moves all that come after it.
        members.retain(|name, _| !changes.get(name).is_some_and(Value::is_null));
    }
    for (name, change) in changes.iter().filter(|(_, change)| !change.is_null()) {
        merge_patch(members.entry(name.as_str()).or_insert(Value::Null), change);
    }
}

/// Whether arrays and objects in `value` nest deeper than `levels`.
pub fn depth_exceeds(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(items) => {
            levels == 0 || items.iter().any(|item| depth_exceeds(item, levels - 1))
        }
        Value::Object(members) => {
            levels == 0 || members.values().any(|item| depth_exceeds(item, levels - 1))
        }
        _ => false,
    }
}

/// Bytes of a value itself.
const VALUE_BYTES: usize = size_of::<Value>();

/// Bytes of a place for a field: its hash, its name and its value, and its entry in the index.
const FIELD_BYTES: usize = size_of::<(u64, String, Value)>() + 9;

/// Bytes of a piece of memory beside what it is asked for.
const PIECE_BYTES: usize = 16;

/// Bytes that a value takes in memory, about: many small ones take far more than their text.
pub fn memory_of(value: &Value) -> u64 {
    (VALUE_BYTES + content_of(value)) as u64
}

/// The same for an object.
pub fn memory_of_fields(fields: &Map<String, Value>) -> u64 {
    (VALUE_BYTES + content_of_fields(fields)) as u64
}

/// Bytes that a value takes beside the value itself.
fn content_of(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => PIECE_BYTES + text.len(),
        // An array that was read has up to twice the room that it needs.
        Value::Array(values) => {
            let items = values.iter().map(content_of).sum::<usize>();
            PIECE_BYTES + values.capacity() * VALUE_BYTES + items
        }
        Value::Object(fields) => content_of_fields(fields),
    }
}

fn content_of_fields(fields: &Map<String, Value>) -> usize {
    // The map has room for 7 fields in each 8 of a power of two.
    let places = if fields.is_empty() { 0 } else { (fields.len() * 8 / 7 + 1).next_power_of_two() };
    let field = |(name, value): (&String, &Value)| PIECE_BYTES + name.len() + content_of(value);
    2 * PIECE_BYTES + places * FIELD_BYTES + fields.iter().map(field).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn many_small_values_weigh_more_than_their_text() {
        let numbers: Value = serde_json::from_str(&format!("[{}1]", "1,".repeat(999))).unwrap();
        let objects = json!(vec![json!({ "a": 1 }); 1_000]);
        assert_eq!(memory_of(&"x".repeat(2_000).into()), 72 + 16 + 2_000);
        assert_eq!(memory_of(&numbers), 72 + 16 + 72 * 1_024);
        assert_eq!(memory_of(&objects), 72 + 16 + (72 + 32 + 2 * 113 + 16 + 1) * 1_000);
    }

    #[test]
    fn merge_patch_does_what_the_appendix_of_rfc_7396_lists() {
        let cases = [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (json!({"a":"b","b":"c"}), json!({"a":null}), json!({"b":"c"})),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
            (json!({"a":{"b":"c"}}), json!({"a":{"b":"d","c":null}}), json!({"a":{"b":"d"}})),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a":"b"}), json!(["c"]), json!(["c"])),
            (json!({"a":"foo"}), json!(null), json!(null)),
            (json!({"a":"foo"}), json!("bar"), json!("bar")),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!([1, 2]), json!({"a":"b","c":null}), json!({"a":"b"})),
            (json!({}), json!({"a":{"bb":{"ccc":null}}}), json!({"a":{"bb":{}}})),
        ];
        for (mut target, patch, expected) in cases {
            merge_patch(&mut target, &patch);
            assert_eq!(target.to_string(), expected.to_string(), "patch {patch}");
        }
    }

    #[test]
    fn members_keep_their_order_through_a_patch() {
        let mut target = json!({"z":1,"m":2,"a":3,"k":4});
        merge_patch(&mut target, &json!({"z":null,"b":5,"a":6}));
        assert_eq!(target.to_string(), r#"{"m":2,"a":6,"k":4,"b":5}"#);
    }

    #[test]
    fn depth_counts_arrays_and_objects() {
        assert!(!depth_exceeds(&json!(1), 0));
        assert!(depth_exceeds(&json!([]), 0));
        assert!(!depth_exceeds(&json!([{"a":1}]), 2));
        assert!(depth_exceeds(&json!([{"a":[]}]), 2));
    }
}
