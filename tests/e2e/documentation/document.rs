//! What stands in the document: that it is OpenAPI 3.1, that it is true, and what is not in it.

use super::*;
use std::collections::BTreeMap;

pub const OPENAPI: &str = include_str!("../../fixtures/openapi-3.1/schema.json");

#[test]
fn the_document_is_openapi_as_its_own_schema_has_it() {
    let backend = backend();
    let gateway = platform(&backend).start();
    let schema: Value = serde_json::from_str(OPENAPI).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    assert!(!validator.is_valid(&json!({"openapi": "3.1.0", "info": {}, "paths": {}})));
    let customer = Request::get("/documentation/json").bearer(&token::customer());
    for document in [document(&gateway), document_of(&gateway, customer)] {
        let faults: Vec<String> = validator
            .iter_errors(&document)
            .map(|e| format!("{}: {e}", e.instance_path()))
            .collect();
        assert!(faults.is_empty(), "{faults:#?}");
        let schemas = document["components"]["schemas"].as_object().unwrap();
        for (name, schema) in schemas {
            let valid = jsonschema::draft202012::meta::validate(schema);
            assert!(valid.is_ok(), "{name}: {:?}", valid.err());
        }
        assert_references_lead_somewhere(&document);
        assert_parts_fit(&document);
    }
}

#[track_caller]
fn assert_references_lead_somewhere(document: &Value) {
    let text = document.to_string();
    let mut used = BTreeSet::new();
    for reference in text.split(r#""$ref":""#).skip(1) {
        let to = reference.split('"').next().unwrap();
        let pointer = to
            .strip_prefix('#')
            .unwrap_or_else(|| panic!("{to} leads out"));
        assert!(document.pointer(pointer).is_some(), "{to} leads nowhere");
        used.insert(pointer.to_owned());
    }
    for (kind, named) in document["components"].as_object().unwrap() {
        for name in named.as_object().unwrap().keys() {
            let pointer = format!("/components/{kind}/{name}");
            let is_needed = used.contains(&pointer) || kind == "securitySchemes" || name == "Error";
            assert!(is_needed, "{pointer} is in it, and nobody needs it");
        }
    }
}

/// What the schema of OpenAPI cannot say.
#[track_caller]
fn assert_parts_fit(document: &Value) {
    let (mut ids, mut bare) = (BTreeSet::new(), BTreeMap::new());
    let tags: Vec<&Value> = document["tags"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| &t["name"])
        .collect();
    for operation in operations(document) {
        let name = operation.name();
        let id = operation.value["operationId"].as_str().unwrap().to_owned();
        assert!(ids.insert(id.clone()), "{id} is there twice");
        assert!(tags.contains(&&operation.value["tags"][0]), "{name}");
        let parameters = operation.value["parameters"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let of_path = parameters.iter().filter(|p| p["in"] == "path");
        let described: BTreeSet<String> = of_path
            .map(|p| format!("{{{}}}", p["name"].as_str().unwrap()))
            .collect();
        let in_path = operation
            .path
            .split('/')
            .filter(|segment| segment.starts_with('{'));
        let in_path: BTreeSet<String> = in_path.map(str::to_owned).collect();
        assert_eq!(described, in_path, "{name}");
        let without_names: Vec<&str> = operation
            .path
            .split('/')
            .map(|segment| {
                if segment.starts_with('{') {
                    "{}"
                } else {
                    segment
                }
            })
            .collect();
        let first = bare
            .entry(without_names.join("/"))
            .or_insert_with(|| operation.path.clone());
        assert_eq!(*first, operation.path, "they are one path to OpenAPI");
    }
}

#[test]
fn every_route_of_the_reference_is_in_it() {
    let backend = backend();
    let gateway = platform(&backend).start();
    let document = document(&gateway);
    let reference: serde_yaml::Value = serde_yaml::from_str(REFERENCE).unwrap();
    let paths: Vec<&String> = document["paths"].as_object().unwrap().keys().collect();
    let routes = reference["routes"].as_sequence().unwrap();
    assert!(routes.len() > 50);
    for route in routes {
        let path = route["path"].as_str().unwrap();
        let is_shown = match path.strip_suffix("/*") {
            None => paths.iter().any(|shown| *shown == path),
            Some(base) => paths.iter().any(|shown| {
                let rest = shown.strip_prefix(base);
                rest.is_some_and(|rest| rest.ends_with("/{rest}"))
            }),
        };
        assert!(is_shown, "{path} is not among {paths:#?}");
    }
    assert!(paths.iter().any(|path| *path == "/api/v1/batch"));
    assert_eq!(document["info"]["title"], "TicketToken API Gateway");
    assert_eq!(document["servers"][0]["url"], "/");
    // The documented SWAGGER_HOST is a name of the inside: who can use it has come by it.
    assert_eq!(document["servers"][1], json!(null));
    assert_eq!(document["x-aliases"]["/api/v1/event"], "/api/v1/events");
}

#[test]
fn every_operation_asks_for_credentials_exactly_where_it_says_so() {
    let backend = backend();
    let gateway = platform(&backend).start();
    let document = document(&gateway);
    let mut counts = (0, 0);
    for operation in operations(&document) {
        let response = operation.request().send_to(gateway.addr());
        let name = operation.name();
        assert!(
            !matches!(response.status, 404 | 405),
            "{name}: {}",
            response.status
        );
        match operation.is_open() {
            true => counts.0 += 1,
            false => counts.1 += 1,
        }
        assert_eq!(
            response.status == 401,
            !operation.is_open(),
            "{name}: {}",
            response.status
        );
        if response.status >= 400 {
            let codes = codes_of(&document, &operation, response.status);
            let code = response.json()["code"].clone();
            assert!(codes.contains(&code), "{name}: {code} is none of {codes:?}");
        }
    }
    assert!(counts.0 > 20 && counts.1 > 80, "{counts:?}");
}

/// What the document says of an operation's answers with this status.
fn codes_of(document: &Value, operation: &Operation, status: u16) -> Vec<Value> {
    let to = operation.value["responses"][status.to_string()]["$ref"].as_str();
    let Some(response) = to.and_then(|to| document.pointer(&to[1..])) else {
        return Vec::new();
    };
    let schema = &response["content"]["application/json"]["schema"];
    schema["properties"]["code"]["enum"]
        .as_array()
        .cloned()
        .unwrap_or_default()
}

#[test]
fn an_admin_may_call_every_operation_and_is_answered_as_it_says() {
    let backend = backend();
    let gateway = platform(&backend).start();
    for operation in operations(&document(&gateway)) {
        // A token of its own for each: one operation is the logout.
        let response = operation
            .request()
            .bearer(&token::admin())
            .send_to(gateway.addr());
        let expected: &[u16] = match &*operation.path {
            "/api/v1/batch" => &[400],
            _ => &[200],
        };
        let name = operation.name();
        assert!(
            expected.contains(&response.status),
            "{name}: {} {}",
            response.status,
            response.text()
        );
    }
}

#[test]
fn what_the_configuration_says_of_an_operation_is_in_it() {
    let backend = backend();
    let gateway = platform(&backend).start();
    let document = document(&gateway);
    let at = |path: &str, method: &str| document["paths"][path][method].clone();

    let purchase = at("/api/v1/tickets/purchase", "post");
    assert_eq!(purchase["security"], json!([{"bearer": []}]));
    assert_eq!(purchase["x-permission"], "tickets:purchase");
    assert_eq!(purchase["x-timeout-ms"], 30_000);
    assert_eq!(
        purchase["x-body-limit"],
        64 << 10,
        "its event is read first"
    );
    assert_eq!(purchase["x-idempotency"], "optional");
    assert_eq!(purchase["x-validation"], "enforce");
    assert_eq!(
        purchase["x-ratelimit"][1],
        json!({"name": "ticket", "max": 5, "windowMs": 60_000, "blockMs": 300_000, "perEvent": true})
    );
    assert_eq!(purchase["parameters"][0]["name"], "Idempotency-Key");
    assert_eq!(purchase["parameters"][0]["required"], false);
    let body = &purchase["requestBody"];
    assert_eq!(body["required"], false);
    assert_eq!(
        body["content"]["application/json"]["schema"]["$ref"],
        "#/components/schemas/ticket-purchase"
    );
    let of = |status: &str| {
        purchase["responses"][status]["$ref"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    assert!(of("409").ends_with("/409-REQUEST_IN_PROGRESS.OUTCOME_UNKNOWN.ANSWER_NOT_KEPT"));
    assert!(of("422").ends_with("/422-VALIDATION_ERROR.IDEMPOTENCY_KEY_REUSED"));
    assert!(of("429").ends_with("/429-RATE_LIMIT_ERROR"));
    let refused = &document["components"]["responses"]["429-RATE_LIMIT_ERROR"];
    for header in ["Retry-After", "X-RateLimit-Reset", "X-Request-ID"] {
        assert!(refused["headers"][header].is_object(), "{header}");
    }

    let list = at("/api/v1/events", "get");
    assert_eq!(list["security"], json!([{"bearer": []}, {"apiKey": []}]));
    assert_eq!(list["x-cache"]["ttl"], 300);
    assert!(list["responses"]["2XX"]["headers"]["Cache-Status"].is_object());
    let names: Vec<&Value> = list["parameters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| &p["name"])
        .collect();
    assert_eq!(
        names,
        ["endDate", "limit", "page", "sortOrder", "startDate"]
    );
    assert_eq!(
        document["components"]["schemas"]["dateRange"]["x-before"]["startDate"],
        "endDate"
    );

    let details = at("/api/v1/events/{event}/details", "get");
    let answer = &details["responses"]["200"]["content"]["application/json"]["schema"];
    let data = &answer["properties"]["data"];
    assert!(
        data["properties"]["nftConfig"].is_boolean() && data["properties"]["event"].is_boolean()
    );
    assert!(details["responses"]["404"].is_object() && details["responses"]["default"].is_null());

    let webhook = at("/api/v1/webhooks/stripe", "post");
    assert_eq!(webhook["security"], json!([]));
    assert_eq!(webhook["x-webhook"], true);
    assert!(
        webhook["responses"]["500"]["$ref"]
            .as_str()
            .unwrap()
            .contains("WEBHOOK_FAILED")
    );
    assert!(webhook["responses"]["401"].is_null() && webhook["responses"]["503"].is_null());

    let batch = at("/api/v1/batch", "post");
    let calls =
        &batch["requestBody"]["content"]["application/json"]["schema"]["properties"]["calls"];
    assert_eq!(calls["maxItems"], 20);
}

#[test]
fn nothing_that_is_inside_is_in_it() {
    let gateway = Gateway::with(
        "
environment: staging
documentation: { operators: true }
server: { public_host: '' }
batch: { path: '' }
services:
  front: { url: 'http://127.0.0.1:1' }
  hidden: { url: 'http://127.0.0.1:2' }
routes:
  - { path: '/things/{thing}', target: '/deep/inside/{thing}', service: front, auth: public }
  - path: /all
    service: hidden
    auth: token
    methods: [GET]
    aggregate: { sources: { thing: { service: hidden, path: '/behind/it', required: true } } }
",
    );
    let gateway = gateway.env("NODE_ENV", "staging").start();
    let text = Request::get("/documentation/json")
        .send_to(gateway.addr())
        .text()
        .to_owned();
    assert!(text.contains("/things/{thing}") && text.contains("/all"));
    for inside in ["127.0.0.1", "deep", "inside", "hidden", "behind", "front"] {
        assert!(!text.contains(inside), "{inside} is in {text}");
    }
}

#[test]
fn yaml_says_the_same() {
    let backend = backend();
    let gateway = platform(&backend).start();
    let response = Request::get("/documentation/yaml").send_to(gateway.addr());
    assert_eq!(
        response.header("content-type"),
        Some("application/yaml; charset=utf-8")
    );
    let yaml: Value = serde_yaml::from_str(response.text()).unwrap();
    assert_eq!(yaml, document(&gateway));
    assert!(response.text().starts_with("openapi: 3.1.0\n"));
}
