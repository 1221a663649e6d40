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

/// Bytes that a value takes in memory, about, and an object and each of its fields beside that.
const VALUE_BYTES: u64 = 32;
const OBJECT_BYTES: u64 = 200;
const FIELD_BYTES: u64 = 100;

/// Bytes that a value takes in memory, about: many small ones take far more than their text.
pub fn memory_of(value: &Value) -> u64 {
    VALUE_BYTES
        + match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
            Value::String(text) => text.len() as u64,
            Value::Array(values) => values.iter().map(memory_of).sum(),
            Value::Object(fields) => memory_of_fields(fields),
        }
}

/// The same for an object.
pub fn memory_of_fields(fields: &Map<String, Value>) -> u64 {
    let field =
        |(name, value): (&String, &Value)| FIELD_BYTES + name.len() as u64 + memory_of(value);
    OBJECT_BYTES + fields.iter().map(field).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn many_small_values_weigh_more_than_their_text() {
        let numbers = Value::from(vec![1; 1_000]);
        let objects = json!(vec![json!({ "a": 1 }); 1_000]);
        assert_eq!(memory_of(&"x".repeat(2_000).into()), 2_032);
        assert_eq!(memory_of(&numbers), 32 + 32 * 1_000);
        assert_eq!(memory_of(&objects), 32 + (32 + 200 + 100 + 1 + 32) * 1_000);
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
