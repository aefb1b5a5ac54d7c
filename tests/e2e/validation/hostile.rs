//! Bodies that are made to cost: each has its 4xx soon, in little memory, and the next request is served.

use super::*;

/// For one answer. A debug build on a busy machine is slow; what is quadratic takes minutes.
const SOON: Duration = Duration::from_secs(5);

/// A schema with something for every attack.
fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "text": {"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$", "maxLength": 10_000_000},
            "mail": {"format": "x-email"},
            "date": {"format": "date-time"},
            "uri": {"format": "uri"},
            "host": {"format": "hostname"},
            "template": {"format": "uri-template"},
            "regex": {"format": "regex"},
            "list": {"uniqueItems": true, "items": {"type": ["integer", "object"]}},
            "number": {"type": "number", "multipleOf": 0.01},
            "nodes": {"$ref": "#/$defs/node"},
            "one": {"oneOf": [{"type": "string"}, {"type": "integer"}]},
        },
        "additionalProperties": {"type": "integer"},
        "required": ["a"],
        "$defs": {"node": {"additionalProperties": {"$ref": "#/$defs/node"}, "type": "object"}},
    })
}

#[track_caller]
fn dies_soon(judged: &Judged, body: impl Into<Vec<u8>>, status: u16) -> Response {
    let body = body.into();
    let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
    let began = Instant::now();
    let answer = judged.post(body);
    let took = began.elapsed();
    assert_eq!(answer.status, status, "{shown}: {}", answer.text());
    assert!(took < SOON, "{shown}: {took:?}");
    assert!(answer.body.len() < 20_000, "{shown}: {}", answer.body.len());
    answer
}

#[test]
fn what_is_deep_wide_or_no_json_is_400_in_bounded_time_and_memory() {
    let judged = Judged::body(&schema());
    dies_soon(&judged, r#"{"text":1}"#, 422);
    let before = judged.gateway.memory_kb();
    let mib = 1 << 20;
    for body in [
        "[".repeat(5 * mib),
        r#"{"a":"#.repeat(mib),
        format!("[{}", "[],".repeat(2 * mib)),
        format!("[{}1]", "1,".repeat(4 * mib)),
        format!(r#"{{"list":[{}1],"a":1}}"#, "{},".repeat(mib)),
        format!(r#"{{"{}":1}}"#, "x".repeat(8 * mib)),
        format!(r#"{{"number":{}}}"#, "9".repeat(8 * mib)),
        format!(r#"{{"number":0.{}}}"#, "1".repeat(8 * mib)),
        format!(r#"{{"text":"{}"#, r"\u0061".repeat(mib)),
        format!("{}{{}}", " ".repeat(8 * mib) + "x"),
    ] {
        dies_soon(&judged, body, 400);
    }
    let after = judged.gateway.memory_kb();
    // Ten bodies of up to 8 MiB: the one at hand, and what the allocator keeps of it.
    assert!(after < before + 150_000, "{before} kB, then {after} kB");
    assert_eq!(judged.post(r#"{"a":1}"#).status, 200);
}

#[test]
fn what_readers_read_differently_is_400() {
    let judged = Judged::body(&schema());
    let deep = |depth: usize| {
        format!(
            r#"{{"a":1,"nodes":{}{{}}{}}}"#,
            r#"{"x":"#.repeat(depth),
            "}".repeat(depth)
        )
    };
    for body in [
        r#"{"a":1,"a":2}"#,
        r#"{"a":1,"\u0061":2}"#,
        r#"{"a":1,"nodes":{"x":{},"x":{}}}"#,
        r#"{"a":1e999999}"#,
        r#"{"a":-1e999999}"#,
        r#"{"a":NaN}"#,
        r#"{"a":Infinity}"#,
        r#"{"a":0x10}"#,
        r#"{"a":012}"#,
        r#"{"a":1.000000000000000000001}"#,
        r#"{"a":123456789012345678901234567890}"#,
        r#"{"a":"\ud800"}"#,
        r#"{"a":"\udc00\ud800"}"#,
        r#"{"a":"\u0000"}"#,
        r#"{"a":"\x41"}"#,
        "{\"a\":\"\0\"}",
        "{\"a\":1}\0",
        "\u{feff}{\"a\":1}",
        "{\"a\":1} {}",
        "{\"a\":1},",
        "{\"a\":1}\n]",
        "{\"a\":\"\n\"}",
        "{'a':1}",
        "{a:1}",
        "{\"a\":1,}",
        "/* */{\"a\":1}",
        "{\"a\":",
        "null x",
        &deep(40),
    ] {
        dies_soon(&judged, body, 400);
    }
    for bytes in [
        &b"{\"a\":\"\xff\"}"[..],
        b"{\"a\":\"\xc0\x80\"}",
        b"{\"a\":\"\xed\xa0\x80\"}",
        b"\xff\xfe{\0\"\0a\0\"\0:\x001\0}\0",
        b"\x1f\x8b\x08\0\0\0\0\0\0\x03\xabV\0\0\0",
    ] {
        dies_soon(&judged, bytes, 400);
    }
    assert_eq!(judged.post(deep(20)).status, 200);
    assert_eq!(judged.echo.count(), 1);
}

#[test]
fn faults_are_told_up_to_a_bound_and_pointers_are_cut() {
    let judged = Judged::body_with(&schema(), "validation: { faults: 7 }");
    let many: Vec<String> = (0..9_000).map(|i| format!(r#""x{i}":"y""#)).collect();
    let answer = dies_soon(&judged, format!("{{{}}}", many.join(",")), 422);
    let details = &answer.json()["details"];
    assert_eq!(details["errors"].as_array().unwrap().len(), 7);
    assert_eq!(details["more"], true);
    // Every fault deep within long names.
    let name = "n".repeat(250);
    let leaves: Vec<String> = (0..5_000).map(|i| format!(r#""{i}":1"#)).collect();
    let mut node = format!("{{{}}}", leaves.join(","));
    for _ in 0..25 {
        node = format!(r#"{{"{name}":{node}}}"#);
    }
    let answer = dies_soon(&judged, format!(r#"{{"a":1,"nodes":{node}}}"#), 422);
    for fault in faults(&answer) {
        assert!(fault.len() < 300, "{fault}");
    }
}

#[test]
fn long_texts_and_lists_take_no_longer_than_they_are_long() {
    let judged = Judged::body(&schema());
    let long = "a".repeat(2_000_000);
    for (name, text) in [
        ("text", format!("{long}!")),
        ("mail", format!("{long}@{long}")),
        ("mail", "@".repeat(2_000_000)),
        ("date", "1".repeat(2_000_000)),
        ("uri", format!("http://{}%", "a.".repeat(1_000_000))),
        ("host", "a.".repeat(1_000_000)),
        ("template", "{".repeat(2_000_000)),
        ("regex", "(".repeat(100_000)),
        ("regex", "(a*)*".repeat(20_000) + "("),
    ] {
        dies_soon(&judged, json!({ name: text }).to_string(), 422);
    }
    let numbers: Vec<String> = (0..9_900)
        .map(|i| (9_007_199_254_740_992_u64 + i).to_string())
        .collect();
    let unique = format!(r#"{{"list":[{}]}}"#, numbers.join(","));
    assert_eq!(faults(&dies_soon(&judged, unique, 422)), ["body:/a"]);
    let objects: Vec<String> = (0..2_400)
        .map(|i| format!(r#"{{"a":{i},"b":{i}}}"#))
        .collect();
    let unique = format!(r#"{{"list":[{}]}}"#, objects.join(","));
    assert_eq!(faults(&dies_soon(&judged, unique, 422)), ["body:/a"]);
    let same = format!(
        r#"{{"a":1,"list":[{},{{"b":5,"a":5}}]}}"#,
        objects.join(",")
    );
    assert_eq!(faults(&dies_soon(&judged, same, 422)), ["body:/list"]);
    dies_soon(&judged, r#"{"a":1,"number":1e-308}"#, 422);
    dies_soon(&judged, r#"{"number":1e308}"#, 422);
}

#[test]
fn a_bomb_in_a_coding_is_415_before_it_is_read() {
    let judged = Judged::body(&schema());
    // A thousand times as much as it is long, if anybody would look.
    let bomb = [&b"\x1f\x8b\x08\0\0\0\0\0\0\x03"[..], &vec![0; 200_000]].concat();
    for coding in ["gzip", "x-gzip", "deflate", "br", "zstd", "gzip, gzip"] {
        let request = json_post(bomb.clone()).header("Content-Encoding", coding);
        let began = Instant::now();
        let answer = judged.send(&request);
        assert_eq!(answer.status, 415, "{coding}");
        assert!(began.elapsed() < SOON);
    }
    assert_eq!(judged.echo.heads_seen(), 0);
}
