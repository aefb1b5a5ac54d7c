//! Requests of somebody who has `v1` and `v2` in his token, and is a member of `v3` and of `7`, as venue-service knows.

use crate::support::prelude::*;

/// What it is, and the request without a credential.
pub fn all() -> Vec<(String, Request)> {
    [heads(), json(), others(), large()]
        .into_iter()
        .flatten()
        .collect()
}

fn heads() -> Vec<(String, Request)> {
    let targets = [
        "/api/v1/venues/v1",
        "/api/v1/venues/v1/",
        "/api/v1/venues/v2/events?page=2&sort=-date",
        "/api/v1/venues/v3",
        "/api/v1/venues/7",
        "/api/v1/venues/search?q=jazz",
        "/api/v1/venues",
        "/api/v1/venues/",
        "/api/v1/events/venues/v1/venue/v2",
        "/api/v1/event/e1",
        "/p/v1/x",
        "/q/v2",
        "/r/v3",
        "/mine/v1",
        "/x/a%20b/caf%C3%A9?q=%C3%BC&empty=&flag",
        "/x/q?venueId=v1",
        "/x/q?venue_id=v2&page=1",
        "/x/q?venueIds=v1,v2,v3",
        "/x/q?venueIds[]=v1&venueIds[]=v2",
        "/x/q?filter[venueId]=v1&filter[name]=x",
        "/x/q?filter=%7B%22venueId%22%3A%22v1%22%7D",
        "/x/q?venueId=7",
        "/x/q?page=1&page=2&tag[]=a&tag[]=b&price[gte]=10",
        "/x/q?q=100%25&x=a%26b%3Dc&redirect=https://example.test/a?b=c",
        "/x/q?q=avenue&revenue=5&id=v9",
        "/x/q?json=%7B%22a%22%3A%5B1%2C2%5D%7D",
    ];
    let mut all: Vec<(String, Request)> = targets
        .iter()
        .map(|target| ((*target).to_owned(), Request::get(target)))
        .collect();
    for method in ["HEAD", "POST", "PUT", "PATCH", "DELETE"] {
        let request = Request::method(method, "/api/v1/venues/v1");
        all.push((format!("{method} without a body"), request));
    }
    let header = Request::get("/x/h").header("X-Venue-ID", "v1");
    all.push(("X-Venue-ID".into(), header));
    let everywhere = Request::post("/api/v1/venues/v1?venueId=v1")
        .header("X-Venue-ID", "v2")
        .json(&json!({"venueId": "v3"}));
    all.push(("one's own in every place".into(), everywhere));
    let empty = Request::post("/x/b").header("Content-Length", "0");
    all.push(("Content-Length: 0".into(), empty));
    let typed = Request::post("/x/b").header("Content-Type", "application/json");
    all.push(("a type and an empty body".into(), typed.body("")));
    let none: Vec<&str> = Vec::new();
    all.push((
        "no chunk at all".into(),
        Request::post("/x/b").chunked(none),
    ));
    let old = Request::post("/x/b?venueId=v1")
        .http_1_0()
        .json(&json!({"venueId": "v1"}));
    all.push(("HTTP/1.0".into(), old));
    all
}

fn json() -> Vec<(String, Request)> {
    let bodies = [
        "{}",
        "[]",
        "null",
        "true",
        "12.5e-3",
        r#""text""#,
        r#"{"venueId":"v1"}"#,
        " {\r\n\t\"venueId\" : \"v1\" } \n",
        r#"{"venueId":"\u0076\u0031","a":"\u00e9\ud83c\udfab é 🎫"}"#,
        r#"{"venueId":null,"venue":null,"venues":[],"venueIds":[]}"#,
        r#"{"venueId":7,"targetVenueId":"v2"}"#,
        r#"{"venue":{"id":"v1","name":"Halle","events":[{"venueId":"v2"}]}}"#,
        r#"{"venues":[{"id":"v1"},{"_id":"v2","name":"x"}],"venueIds":["v3","v1",7]}"#,
        r#"{"a":{"b":[{"venueId":"v1"},{"venueId":"v1"},{"venueId":"v2"}]}}"#,
        r#"{"payload":"{\"venueId\":\"v1\"}"}"#,
        r#"{"venueName":"v9","venueType":"club","avenueId":"x9","revenue":[1],"id":"v9","note":"see venue v9"}"#,
        r#"{"note":"{not json","other":"[a]","empty":"","brace":"{"}"#,
        r#"{"text":"{\"a\":1}","list":"[1,2]"}"#,
        r#"{"a":1e308,"b":-0,"c":123456789012345678901234567890,"d":0.1}"#,
        r#"{"":1," ":2,"a\u0000b":3,"__proto__":{}}"#,
    ];
    let mut all: Vec<(String, Request)> = bodies
        .iter()
        .map(|body| ((*body).to_owned(), typed("application/json", *body)))
        .collect();
    for content_type in [
        "application/json; charset=utf-8",
        "application/vnd.api+json",
        "text/plain; charset=UTF-8",
    ] {
        let body = r#"{"venueId":"v1"}"#;
        all.push((content_type.into(), typed(content_type, body)));
    }
    let depth = format!(
        "{}{}{}",
        "[".repeat(100),
        r#"{"venueId":"v1"}"#,
        "]".repeat(100)
    );
    all.push(("100 deep".into(), typed("application/json", depth)));
    let untyped = Request::post("/x/b").body(r#"{"venueId":"v1"}"#);
    all.push(("no type".into(), untyped));
    let bytes = r#"{"venueId":"v1","a":"é"}"#.as_bytes();
    let chunked = Request::post("/x/b").header("Content-Type", "application/json");
    let chunked = chunked.chunked(bytes.chunks(1).collect());
    all.push(("chunks of one byte".into(), chunked));
    all
}

fn others() -> Vec<(String, Request)> {
    let mut all = Vec::new();
    for (content_type, body) in [
        (
            "application/x-www-form-urlencoded",
            "venueId=v1&a=b&a=c&x=%26%3D+",
        ),
        (
            "application/x-www-form-urlencoded",
            "venueIds[]=v1&venueIds[]=v2",
        ),
        ("text/plain", "just text, with a venue in it"),
        ("text/plain; charset=utf-8", "grüße 🎫"),
    ] {
        all.push((format!("{content_type} {body}"), typed(content_type, body)));
    }
    let binary = [vec![0x89, 0, 0xff, b'{'], noise(5000)].concat();
    for content_type in ["application/octet-stream", "image/png", "application/pdf"] {
        all.push((
            format!("{content_type}, binary"),
            typed(content_type, binary.clone()),
        ));
    }
    let identity = typed("application/json", "{}").header("Content-Encoding", "identity");
    all.push(("Content-Encoding: identity".into(), identity));
    let parts = "--B\r\nContent-Disposition: form-data; name=\"venueId\"\r\n\r\nv9\r\n--B--\r\n";
    let upload =
        Request::post("/head/upload").header("Content-Type", "multipart/form-data; boundary=B");
    all.push((
        "an upload where only the head is looked at".into(),
        upload.body(parts),
    ));
    for (content_type, body) in [
        ("text/csv", "id,name\n1,\"a,b\"\n"),
        ("application/xml", "<?xml version=\"1.0\"?><a>b</a>"),
    ] {
        let request = Request::post("/head/b").header("Content-Type", content_type);
        let what = format!("{content_type} where only the head is looked at");
        all.push((what, request.body(body)));
    }
    let json = Request::post("/head/b").header("Content-Type", "application/json");
    let json = json.body(r#"{"venueId":"v9"#);
    all.push(("any body where only the head is looked at".into(), json));
    let any = Request::post("/any/venues/v9?venueId=v9&venueId=v8").header("X-Venue-ID", "v9");
    let any = any
        .header("X-Venue-ID", "v8")
        .header("Content-Encoding", "gzip");
    all.push((
        "anything where nothing is looked at".into(),
        any.body("{{{"),
    ));
    all
}

fn large() -> Vec<(String, Request)> {
    let mut all = Vec::new();
    for (what, size) in [
        ("64 KiB", 1 << 16),
        ("65 KiB", 65 << 10),
        ("1 MiB", 1 << 20),
        ("9 MiB", 9 << 20),
    ] {
        let (front, back) = (r#"{"filler":""#, r#"","venueId":"v1"}"#);
        let filler = "y".repeat(size - front.len() - back.len());
        let body = format!("{front}{filler}{back}").into_bytes();
        all.push((
            format!("{what} of JSON"),
            typed("application/json", body.clone()),
        ));
        let chunked = Request::post("/x/b").header("Content-Type", "application/json");
        let chunked = chunked.chunked(body.chunks(100_000).collect());
        all.push((format!("{what} of JSON in chunks"), chunked));
        let mut binary = noise(size);
        binary[0] = 0x89;
        let binary = typed("application/octet-stream", binary);
        all.push((format!("{what} of bytes"), binary));
    }
    let mut list = br#"[{"venueId":"v1"}"#.to_vec();
    list.extend(br#",{"venueId":"v2","n":1}"#.repeat(50_000));
    list.push(b']');
    all.push(("50,000 objects".into(), typed("application/json", list)));
    all
}

fn typed(content_type: &str, body: impl Into<Vec<u8>>) -> Request {
    Request::post("/x/b")
        .header("Content-Type", content_type)
        .body(body)
}
