//! The two things that the domain does with free JSON: merge it and bound it.

use serde_json::Value;

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
    for (name, change) in changes {
        if change.is_null() {
            // `shift_remove` keeps the order of the members that stay.
            members.shift_remove(name);
        } else {
            merge_patch(members.entry(name.as_str()).or_insert(Value::Null), change);
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
