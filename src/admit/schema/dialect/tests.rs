//! What the formats, the keywords and the patterns accept.

use serde_json::json;

use super::*;

fn accepts(schema: &Value, instance: &Value) -> bool {
    let validator = options(&Shelf::built_in(), "x.json").build(schema).unwrap();
    let is_valid = validator.is_valid(instance);
    assert_eq!(validator.validate(instance).is_ok(), is_valid, "{instance}");
    is_valid
}

#[test]
fn the_documented_formats_are_judged() {
    for (text, is_right) in [
        ("a@example.com", true),
        (" User.Name+tag@Example.CO.UK ", true),
        ("a@b", false),
        ("a@@example.com", false),
        ("a b@example.com", false),
        ("@example.com", false),
        (".a@example.com", false),
        ("a@-example.com", false),
        ("a@example.com\n", false),
        ("Name <a@example.com>", false),
        ("", false),
    ] {
        let schema = json!({"format": "x-email"});
        assert_eq!(accepts(&schema, &json!(text)), is_right, "{text:?}");
    }
    for (text, is_right) in [
        ("+4930123456", true),
        ("+15551234567", true),
        ("15551234567", false),
        ("+015551234567", false),
        ("+1 555 1234567", false),
        ("+1234567890123456", false),
        ("+", false),
    ] {
        let schema = json!({"format": "x-phone"});
        assert_eq!(accepts(&schema, &json!(text)), is_right, "{text:?}");
    }
}

#[test]
fn what_begins_is_before_what_ends() {
    let schema = json!({"x-before": {"start": "end"}});
    for (start, end, is_right) in [
        ("2025-01-01T10:00:00Z", "2025-01-01T10:00:01Z", true),
        ("2025-01-01T10:00:00Z", "2025-01-01T10:00:00Z", false),
        ("2025-01-01T10:00:00+02:00", "2025-01-01T08:30:00Z", true),
        ("2025-01-01T10:00:00-02:00", "2025-01-01T11:00:00Z", false),
        ("2025-01-01", "2025-01-01", true),
        ("2025-01-02", "2025-01-01", false),
        ("2025-01-01T10:00", "2025-01-01T10:01", true),
        ("2025-01-01T10:01", "2025-01-01T10:00:00.5", false),
        ("2025-01-01T10:00:00Z", "2025-01-01T09:00", true), // nobody knows where that is
        ("2025-01-02", "2025-01-01T10:00", true),
        ("soon", "2025-01-01", true), // its format says what is wrong with it
    ] {
        let instance = json!({"start": start, "end": end});
        assert_eq!(accepts(&schema, &instance), is_right, "{instance}");
    }
    assert!(accepts(&schema, &json!({"start": "2025-01-01"})));
    assert!(accepts(&schema, &json!([1])));
    let faulty = json!({"x-before": ["start", "end"]});
    assert!(
        options(&Shelf::built_in(), "x.json")
            .build(&faulty)
            .is_err()
    );
}

#[test]
fn the_same_twice_is_found_whatever_it_is() {
    let schema = json!({"uniqueItems": true});
    for (list, is_right) in [
        (json!([1, 2, 3]), true),
        (json!([1, "1", true, null, [1], {"a": 1}]), true),
        (json!([0, false, [], {}]), true),
        (json!([1, 1.0]), false),
        (json!([0, -0.0]), false),
        (json!([1.5, 2, 1]), true),
        (json!([{"a": 1, "b": 2}, {"b": 2, "a": 1.0}]), false),
        (json!([[1, 2], [1], [1, 2]]), false),
        (
            json!([9_007_199_254_740_993_u64, 9_007_199_254_740_992_u64]),
            true,
        ),
        (json!([-1, 18_446_744_073_709_551_615_u64]), true),
    ] {
        assert_eq!(accepts(&schema, &list), is_right, "{list}");
    }
    assert!(accepts(&json!({"uniqueItems": false}), &json!([1, 1])));
}

#[test]
fn prices_have_two_decimals_exactly() {
    let schema = json!({"type": "number", "exclusiveMinimum": 0, "multipleOf": 0.01});
    for (price, is_right) in [
        ("19.99", true),
        ("0.01", true),
        ("0.07", true),
        ("1.1", true),
        ("20", true),
        ("1070468.14", true),
        ("90071992547409.91", true),
        ("0", false),
        ("-1", false),
        ("0.001", false),
        ("19.999", false),
        ("1e-3", false),
        ("19.990000000000002", false),
    ] {
        let price: Value = serde_json::from_str(price).unwrap();
        assert_eq!(accepts(&schema, &price), is_right, "{price}");
    }
}

#[test]
fn a_pattern_takes_linear_time_or_is_a_fault_of_the_schema() {
    let evil = json!({"pattern": "^(a+)+$"});
    let began = std::time::Instant::now();
    assert!(!accepts(&evil, &json!(format!("{}!", "a".repeat(50_000)))));
    assert!(began.elapsed().as_secs() < 2, "{:?}", began.elapsed());
    for pattern in ["^(?=a)", r"(a)\1", "(", r"(\p{L}{1,900}x){1,900}"] {
        let schema = json!({"pattern": pattern});
        let built = options(&Shelf::built_in(), "x.json").build(&schema);
        assert!(built.is_err(), "{pattern}");
    }
}
