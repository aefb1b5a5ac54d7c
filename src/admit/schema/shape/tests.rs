//! What texts are read as.

use serde_json::json;

use super::super::files::Shelf;
use super::super::reference::Lost;
use super::*;

fn read(schema: Value, commas: bool, texts: &[&str]) -> Value {
    let place = Place {
        shelf: &Shelf::built_in(),
        file: "x.json",
        root: &json!({"$defs": {"n": {"type": "integer"}}}),
        lost: &Lost::default(),
    };
    Shape::of(&schema, place, commas).read(texts)
}

#[test]
fn what_a_reference_leads_to_is_found_as_addresses_are_or_noted() {
    let number = json!({"type": "integer"});
    let root = json!({"$defs": {"n": number, "here": {"$anchor": "n"}}});
    let named = json!({"$id": "https://example.com/x.json", "$defs": {"n": number}});
    for (root, file, schema, is_found) in [
        (&root, "x.json", json!({"$ref": "#/$defs/n"}), true),
        (&root, "x.json", json!({"$ref": "x.json#/$defs/n"}), true),
        (&root, "x.json", json!({"$ref": "./x.json#/$defs/n"}), true),
        (
            &root,
            "x.json",
            json!({"$ref": "./common.json#/$defs/page"}),
            true,
        ),
        (
            &root,
            "x.json",
            json!({"$ref": "schema:///common.json#/$defs/page"}),
            true,
        ),
        (
            &root,
            "x.json",
            json!({"$ref": "/common.json#/$defs/page"}),
            true,
        ),
        (
            &root,
            "sub/x.json",
            json!({"$ref": "../common.json#/$defs/page"}),
            true,
        ),
        (
            &root,
            "sub/x.json",
            json!({"$ref": "x.json#/$defs/n"}),
            true,
        ),
        (&named, "x.json", json!({"$ref": "#/$defs/n"}), true),
        // The library may know them.
        (
            &root,
            "sub/x.json",
            json!({"$ref": "common.json#/$defs/page"}),
            false,
        ),
        (
            &named,
            "x.json",
            json!({"$ref": "common.json#/$defs/page"}),
            false,
        ),
        (&root, "x.json", json!({"$ref": "#n"}), false),
        (
            &root,
            "x.json",
            json!({"$ref": "common.json#/$defs/nothing"}),
            false,
        ),
        (&root, "x.json", json!({"$dynamicRef": "#n"}), false),
        (
            &root,
            "x.json",
            json!({"$id": "y.json", "type": "integer"}),
            false,
        ),
        (
            &root,
            "x.json",
            json!({"anyOf": [{"$ref": "#n"}, number]}),
            false,
        ),
    ] {
        let lost = Lost::default();
        let place = Place {
            shelf: &Shelf::built_in(),
            file,
            root,
            lost: &lost,
        };
        let read = Shape::of(&schema, place, false).read(&["12"]);
        let faults: Vec<String> = lost.faults().collect();
        assert_eq!(faults.is_empty(), is_found, "{schema} {faults:?}");
        if is_found {
            assert_eq!(read, json!(12), "{schema}");
        }
    }
}

#[test]
fn texts_become_what_the_schema_takes_and_nothing_else() {
    for (schema, text, value) in [
        (json!({"type": "integer"}), "12", json!(12)),
        (json!({"type": "integer"}), "-12", json!(-12)),
        (json!({"$ref": "#/$defs/n"}), "12", json!(12)),
        (json!({"allOf": [{"$ref": "#/$defs/n"}]}), "12", json!(12)),
        (json!({"$ref": "common.json#/$defs/page"}), "12", json!(12)),
        (
            json!({"anyOf": [{"type": "integer"}, {"type": "boolean"}]}),
            "true",
            json!(true),
        ),
        (json!({"enum": [1, 2]}), "1", json!(1)),
        (json!({"type": "number"}), "1.5", json!(1.5)),
        (json!({"type": "number"}), "1e3", json!(1e3)),
        (json!({"type": "boolean"}), "false", json!(false)),
        (json!({"type": ["integer", "null"]}), "3", json!(3)),
        // as they are
        (json!({"type": "integer"}), "1.0", json!("1.0")),
        (json!({"type": "integer"}), "1e3", json!("1e3")),
        (json!({"type": "integer"}), "012", json!("012")),
        (json!({"type": "integer"}), "+12", json!("+12")),
        (json!({"type": "integer"}), " 12", json!(" 12")),
        (json!({"type": "integer"}), "", json!("")),
        (
            json!({"type": "integer"}),
            "99999999999999999999",
            json!("99999999999999999999"),
        ),
        (json!({"type": "number"}), "NaN", json!("NaN")),
        (json!({"type": "number"}), "1e999999", json!("1e999999")),
        (json!({"type": "number"}), "0x10", json!("0x10")),
        (json!({"type": "boolean"}), "TRUE", json!("TRUE")),
        (json!({"type": "boolean"}), "1", json!("1")),
        (json!({"type": "string"}), "12", json!("12")),
        (json!({"type": ["integer", "string"]}), "12", json!("12")),
        (json!({}), "12", json!("12")),
        (json!(true), "12", json!("12")),
    ] {
        assert_eq!(
            read(schema.clone(), false, &[text]),
            value,
            "{schema} {text}"
        );
    }
}

#[test]
fn what_is_repeated_is_a_list() {
    let numbers = json!({"type": "array", "items": {"type": "integer"}});
    assert_eq!(read(numbers.clone(), false, &["1", "x"]), json!([1, "x"]));
    assert_eq!(read(numbers.clone(), false, &["1"]), json!([1]));
    assert_eq!(read(numbers.clone(), false, &["1,2"]), json!(["1,2"]));
    assert_eq!(read(numbers, true, &["1,2"]), json!([1, 2]));
    let number = json!({"type": "integer"});
    assert_eq!(read(number, false, &["1", "2"]), json!(["1", "2"]));
    let either = json!({"type": ["string", "array"]});
    assert_eq!(read(either.clone(), false, &["a"]), json!("a"));
    assert_eq!(read(either, false, &["a", "b"]), json!(["a", "b"]));
}
