//! What requests must look like: schemas of a route, the answer where they are not met, and that nothing of such a
//! request reaches the backend.

mod configuration;
mod hostile;
mod openapi;
mod platform;

use crate::support::prelude::*;

/// A gateway with one service, and routes that hold requests against schemas.
struct Judged {
    gateway: Gateway,
    echo: Upstream,
    /// Kept as long as the gateway may read them.
    _files: Vec<TempFile>,
}

impl Judged {
    /// POST /x must have this body.
    fn body(schema: &Value) -> Self {
        Self::body_with(schema, "")
    }

    /// The same, with more settings at the top level.
    fn body_with(schema: &Value, settings: &str) -> Self {
        let file = TempFile::new("json", &schema.to_string());
        let validate = format!("{{ POST: {{ body: {} }} }}", name(&file));
        Self::start(&validate, settings, vec![file])
    }

    /// `validate` is that of the route /x.
    fn start(validate: &str, settings: &str, files: Vec<TempFile>) -> Self {
        let echo = Upstream::start();
        let gateway = Gateway::with(&yaml(&echo, validate, settings)).start();
        Self {
            gateway,
            echo,
            _files: files,
        }
    }

    fn send(&self, request: &Request) -> Response {
        request.send_to(self.gateway.addr())
    }

    fn post(&self, body: impl Into<Vec<u8>>) -> Response {
        self.send(&json_post(body))
    }

    /// The request goes on.
    #[track_caller]
    fn accepts(&self, request: &Request) {
        let before = self.echo.count();
        let answer = self.send(request);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(self.echo.count(), before + 1);
    }

    /// It is refused with 422, and the backend hears nothing of it. These are the places of its faults.
    #[track_caller]
    fn refuses(&self, request: &Request) -> Vec<String> {
        let answer = self.send(request);
        assert_eq!(answer.status, 422, "{}", answer.text());
        assert_eq!(self.echo.heads_seen(), self.echo.count());
        faults(&answer)
    }
}

fn yaml(echo: &Upstream, validate: &str, settings: &str) -> String {
    format!(
        "health: {{ enabled: false }}
services: {{ echo: {{ url: {} }} }}
{settings}
routes:
  - {{ path: /x, service: echo, auth: public, limits: [], validate: {validate} }}
  - {{ path: \"/x/{{number}}\", service: echo, auth: public, limits: [], validate: {validate} }}
",
        echo.url()
    )
}

/// The name by which a configuration beside it names a file.
fn name(file: &TempFile) -> String {
    let name = file.path().file_name().unwrap();
    name.to_str().unwrap().to_owned()
}

fn json_post(body: impl Into<Vec<u8>>) -> Request {
    Request::post("/x")
        .header("Content-Type", "application/json")
        .body(body)
}

/// `part:pointer` of each.
fn faults(answer: &Response) -> Vec<String> {
    let body = answer.json();
    let errors = body["details"]["errors"].as_array().unwrap().clone();
    let place = |error: &Value| {
        let (part, pointer) = (error["in"].as_str(), error["pointer"].as_str());
        format!("{}:{}", part.unwrap(), pointer.unwrap())
    };
    errors.iter().map(place).collect()
}

#[test]
fn a_body_that_does_not_fit_is_422_as_documented_with_every_fault_and_its_pointer() {
    let schema = json!({
        "type": "object",
        "required": ["email", "items"],
        "properties": {
            "email": {"type": "string", "format": "email"},
            "items": {"type": "array", "items": {"properties": {"price": {"type": "number"}}}},
            "a/b~c": {"const": 1},
            "kind": {"enum": ["a", "b"]},
        },
    });
    let judged = Judged::body(&schema);
    judged.accepts(&json_post(
        r#"{"email":"a@example.com","items":[{"price":1}]}"#,
    ));
    let sent =
        r#"{"email":"s3cret","items":[{"price":1},{"price":"s3cret"}],"a/b~c":2,"kind":"s3cret"}"#;
    let answer = judged.post(sent);
    assert_eq!(answer.status, 422);
    let body = answer.json();
    for (name, value) in [
        ("statusCode", json!(422)),
        ("error", json!("Validation Error")),
        ("message", json!("Request validation failed")),
        ("code", json!("VALIDATION_ERROR")),
    ] {
        assert_eq!(body[name], value, "{body}");
    }
    assert_eq!(body["requestId"], answer.header("X-Request-ID").unwrap());
    let details = &body["details"];
    let mut places = faults(&answer);
    places.sort();
    let expected = [
        "body:/a~1b~0c",
        "body:/email",
        "body:/items/1/price",
        "body:/kind",
    ];
    assert_eq!(places, expected);
    // What the documentation has, of the first of them.
    let first = &details["errors"][0];
    assert_eq!(details["message"], first["message"]);
    assert!(details["field"].is_string());
    assert_eq!(details["more"], false);
    assert!(!answer.text().contains("s3cret"), "{}", answer.text());

    let missing = judged.post("{}");
    assert_eq!(faults(&missing), ["body:/email", "body:/items"]);
    assert_eq!(missing.json()["details"]["field"], "email");
    assert_eq!(missing.json()["details"]["message"], "is required");
    let invalid = judged.post(r#"{"email":"x","items":[]}"#);
    assert_eq!(
        invalid.json()["details"]["message"],
        "must be a valid email"
    );
    assert_eq!(judged.echo.count(), 1);
}

#[test]
fn a_large_body_is_held_back_until_it_is_whole_and_nothing_of_an_invalid_one_reaches_the_backend() {
    let judged = Judged::body(&json!({"required": ["a"]}));
    let padding = "x".repeat(300_000);
    let good = format!(r#"{{"pad":"{padding}","a":1}}"#);
    let bad = format!(r#"{{"pad":"{padding}","b":1}}"#);
    judged.accepts(&json_post(good.clone()));
    let seen = judged.echo.requests().pop().unwrap();
    assert_eq!(seen.body, good.as_bytes());
    let chunks = |text: &str| text.as_bytes().chunks(10_000).map(<[u8]>::to_vec).collect();
    let chunked = |text: &str| {
        let request = Request::post("/x").header("Content-Type", "application/json");
        request.chunked::<Vec<u8>>(chunks(text))
    };
    judged.accepts(&chunked(&good));
    for request in [json_post(bad.clone()), chunked(&bad), chunked(r#"{"b":1}"#)] {
        let answer = judged.send(&request);
        assert_eq!(answer.status, 422, "{}", answer.text());
        assert_eq!(faults(&answer), ["body:/a"]);
    }
    // The service may see the heads of them, never a byte of a body.
    for seen in judged.echo.requests().iter().filter(|seen| !seen.complete) {
        assert!(seen.body.is_empty(), "{seen:?}");
    }
    let whole = judged.echo.requests();
    assert_eq!(whole.iter().filter(|seen| seen.complete).count(), 2);
}

#[test]
fn a_body_must_be_there_and_be_json_without_a_coding() {
    let judged = Judged::body(&json!({"type": "object"}));
    assert_eq!(judged.refuses(&Request::post("/x")), ["body:"]);
    let empty = Request::post("/x").header("Content-Length", "0");
    assert_eq!(judged.refuses(&empty), ["body:"]);
    let typed = |kind: &str| Request::post("/x").header("Content-Type", kind).body("{}");
    for kind in [
        "application/json",
        "Application/JSON; charset=utf-8",
        "application/vnd.api+json",
    ] {
        judged.accepts(&typed(kind));
    }
    let coded = |coding: &str| json_post("{}").header("Content-Encoding", coding);
    // Who does not say what it is must send JSON all the same.
    judged.accepts(&Request::post("/x").body("{}"));
    assert_eq!(judged.send(&Request::post("/x").body("a=1")).status, 400);
    for request in [
        typed("text/plain"),
        typed("application/x-www-form-urlencoded"),
        typed("application/xml"),
        typed("multipart/form-data; boundary=x"),
        typed("application/json; charset=utf-16"),
        typed("application/jsonp"),
        coded("gzip"),
        coded("br"),
        coded("deflate, gzip"),
        coded("identity, zstd"),
    ] {
        let answer = judged.send(&request);
        assert_eq!(answer.status, 415, "{}", answer.text());
    }
    let two = typed("application/json").header("Content-Type", "text/plain");
    assert_eq!(judged.send(&two).status, 400);
    assert_eq!(judged.echo.count(), 4);
}

#[test]
fn queries_paths_and_header_fields_are_read_by_their_types_and_exactly() {
    let file = |schema: Value| TempFile::new("json", &schema.to_string());
    let query = file(json!({
        "properties": {
            "page": {"type": "integer", "minimum": 1},
            "ratio": {"type": "number"},
            "open": {"type": "boolean"},
            "tags": {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
            "word": {"type": "string"},
        },
        "propertyNames": {"maxLength": 8},
    }));
    let path = file(json!({"properties": {"number": {"type": "integer", "maximum": 99}}}));
    let headers = file(json!({
        "required": ["x-request-deadline"],
        "properties": {"x-request-deadline": {"type": "integer"}, "accept": {"type": "string"}},
    }));
    let validate = format!(
        "{{ GET: {{ query: {}, headers: {} }} }}",
        name(&query),
        name(&headers)
    );
    let by_path = format!("{{ GET: {{ path: {} }} }}", name(&path));
    let echo = Upstream::start();
    let conf = yaml(&echo, &validate, "");
    let last = conf.rfind(&validate).unwrap();
    let conf = [&conf[..last], &by_path, &conf[last + validate.len()..]].concat();
    let judged = Judged {
        gateway: Gateway::with(&conf).start(),
        echo,
        _files: vec![query, path, headers],
    };
    let get = |query: &str| {
        let request = Request::get(&format!("/x?{query}"));
        request.header("X-Request-Deadline", "99999999999999")
    };
    for query in [
        "",
        "page=1&ratio=0.5&open=true&word=12",
        "ratio=1e3&tags=1&tags=2",
        "tags=1",
        "other=1&other=2",
        "word=a%26b",
        "page=%31",
    ] {
        judged.accepts(&get(query));
    }
    for (query, fault) in [
        ("page=0", "query:/page"),
        ("page=1.0", "query:/page"),
        ("page=01", "query:/page"),
        ("page=", "query:/page"),
        ("page", "query:/page"),
        ("page=+1", "query:/page"),
        ("page=1&page=2", "query:/page"),
        ("page=99999999999999999999", "query:/page"),
        ("ratio=1e999999", "query:/ratio"),
        ("ratio=NaN", "query:/ratio"),
        ("open=1", "query:/open"),
        ("tags=a", "query:/tags/0"),
        ("tags=1,2", "query:/tags/0"),
        ("tags=1&tags=2&tags=3", "query:/tags"),
        ("word=a&word=b", "query:/word"),
        ("much-too-long=1", "query:"),
    ] {
        assert_eq!(judged.refuses(&get(query)), [fault], "{query}");
    }
    assert_eq!(
        judged.refuses(&Request::get("/x")),
        ["header:/x-request-deadline"]
    );
    let all = judged.refuses(&Request::get("/x?page=0&open=2"));
    let expected = ["query:/open", "query:/page", "header:/x-request-deadline"];
    assert_eq!(all, expected);
    // A HEAD is asked what a GET is.
    let head = Request::method("HEAD", "/x?page=0").send_to(judged.gateway.addr());
    assert_eq!(head.status, 422);

    judged.accepts(&Request::get("/x/12"));
    judged.accepts(&Request::get("/x/%312"));
    assert_eq!(judged.refuses(&Request::get("/x/100")), ["path:/number"]);
    assert_eq!(judged.refuses(&Request::get("/x/a")), ["path:/number"]);
    let field = judged.refuses(&Request::get("/x/1.5"));
    assert_eq!(field, ["path:/number"]);
}

#[test]
fn report_only_lets_everything_on_and_tells_the_log_and_a_counter_without_any_value() {
    let schema = json!({"properties": {"email": {"format": "email"}}, "required": ["a"]});
    let file = TempFile::new("json", &schema.to_string());
    let validate = format!("{{ POST: {{ body: {} }}, mode: report-only }}", name(&file));
    let judged = Judged::start(&validate, "", vec![file]);
    let large = format!(r#"{{"email":"s3cret","pad":"{}"}}"#, "x".repeat(200_000));
    let typed = |kind: &str| Request::post("/x").header("Content-Type", kind);
    let cases = [
        (json_post(r#"{"a":1}"#), None),
        (json_post(r#"{"email":"s3cret"}"#), Some("VALIDATION_ERROR")),
        (json_post(large), Some("VALIDATION_ERROR")),
        (Request::post("/x"), Some("VALIDATION_ERROR")),
        (json_post("s3cret"), Some("BAD_REQUEST")),
        (json_post(r#"{"a":1,"a":"s3cret"}"#), Some("BAD_REQUEST")),
        (
            typed("text/plain").body("s3cret"),
            Some("UNSUPPORTED_MEDIA_TYPE"),
        ),
        (
            json_post("x").header("Content-Encoding", "gzip"),
            Some("UNSUPPORTED_MEDIA_TYPE"),
        ),
    ];
    let mut told = 0;
    for (i, (request, code)) in cases.into_iter().enumerate() {
        let id = format!("report-{i}");
        let request = request.header("X-Request-ID", &id);
        judged.accepts(&request);
        judged.gateway.access_line(&id);
        let is_line = |line: &Value| line["context"] == "validation" && line["requestId"] == *id;
        let lines = judged.gateway.log_lines();
        let line = lines.iter().find(|line| is_line(line));
        assert_eq!(
            line.map(|line| line["code"].as_str().unwrap()),
            code,
            "{id}"
        );
        told += usize::from(line.is_some());
        if code == Some("VALIDATION_ERROR") {
            let line = line.unwrap();
            assert_eq!(line["route"], "/x");
            assert!(!line["faults"].as_array().unwrap().is_empty(), "{line}");
        }
    }
    let lines = judged.gateway.log_lines();
    let line = lines.iter().find(|line| line["requestId"] == "report-1");
    let places = line.unwrap()["faults"].to_string();
    assert!(
        places.contains("body:/a") && places.contains("body:/email"),
        "{places}"
    );
    assert!(!judged.gateway.raw_output().contains("s3cret"));
    let series = r#"validation_failures_total{mode="report-only",route="/x"}"#;
    assert_eq!(judged.gateway.metric(series), told as f64);
}

#[test]
fn what_is_refused_is_counted_and_its_line_has_the_code() {
    let judged = Judged::body(&json!({"required": ["a"]}));
    for (i, body) in ["{}", "[", r#"{"a":1}"#].into_iter().enumerate() {
        judged.send(&json_post(body).header("X-Request-ID", &format!("refused-{i}")));
    }
    let line = judged.gateway.access_line("refused-0");
    assert_eq!(
        (&line["statusCode"], &line["code"]),
        (&json!(422), &json!("VALIDATION_ERROR"))
    );
    let series = r#"validation_failures_total{mode="enforce",route="/x"}"#;
    assert_eq!(judged.gateway.metric(series), 2.0);
}

#[test]
fn a_connection_goes_on_after_a_body_that_was_refused() {
    let judged = Judged::body(&json!({"required": ["a"]}));
    let mut connection = Client::to(judged.gateway.addr()).connect();
    for (body, status) in [
        ("{}", 422),
        (r#"{"a":1}"#, 200),
        ("[", 400),
        (r#"{"a":1}"#, 200),
    ] {
        assert_eq!(
            connection.request(&json_post(body)).status,
            status,
            "{body}"
        );
    }
    let mut connection = Client::to(judged.gateway.addr()).connect();
    connection.send(
        &json_post("{}")
            .header("Expect", "100-continue")
            .head_bytes(),
    );
    assert_eq!(connection.read_response().status, 100);
    connection.send(b"{}");
    assert_eq!(connection.read_response().status, 422);
}

#[test]
fn who_may_not_make_the_request_is_not_told_what_it_must_look_like() {
    let file = TempFile::new("json", r#"{"required":["a"]}"#);
    let echo = Upstream::start();
    let conf = format!(
        "health: {{ enabled: false }}
services: {{ echo: {{ url: {} }} }}
roles: {{ maker: [\"things:make\"], other: [\"things:see\"] }}
limits: {{ rules: {{ few: {{ max: 2, window: 1h }} }} }}
routes:
  - path: /x
    service: echo
    auth: token
    permissions: {{ POST: \"things:make\" }}
    limits: [few]
    validate: {{ POST: {{ body: {} }} }}
",
        echo.url(),
        name(&file)
    );
    let gateway = Gateway::with(&conf).start();
    let status = |token: Option<&str>, body: &str| {
        let request = match token {
            Some(token) => json_post(body).bearer(token),
            None => json_post(body),
        };
        request.send_to(gateway.addr()).status
    };
    let of = |user: &str, role: &str| Token::user(user).role(role).hs256();
    let (maker, other) = (of("u1", "maker"), of("u2", "other"));
    assert_eq!(status(None, "{}"), 401);
    assert_eq!(status(Some(&other), "{}"), 403);
    assert_eq!(status(Some(&maker), r#"{"venueId":"v9"}"#), 404);
    assert_eq!(status(Some(&maker), "{}"), 422);
    assert_eq!(status(Some(&maker), "{}"), 429);
    assert_eq!(echo.heads_seen(), 0);
}

#[test]
fn names_that_hold_spaces_are_told_as_they_are() {
    let judged = Judged::body(&json!({"x-before": {"start date": "end of \"it\""}}));
    let answer = judged.post(r#"{"start date":"2025-01-02","end of \"it\"":"2025-01-01"}"#);
    assert_eq!(answer.status, 422);
    assert_eq!(faults(&answer), ["body:/start date"]);
    let message = answer.json()["details"]["message"].clone();
    assert_eq!(message, "must be before end of \"it\"");
}
