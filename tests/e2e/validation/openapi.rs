//! Rules that stand in an operation of an OpenAPI 3.1 document.

use super::*;

const DOCUMENT: &str = r##"
openapi: 3.1.0
info: { title: Things, version: "1" }
paths:
  /things/{number}:
    parameters:
      - { $ref: "#/components/parameters/Number" }
      - { name: page, in: query, schema: { type: boolean } }
    post:
      operationId: makeThing
      parameters:
        - { name: page, in: query, required: true, schema: { type: integer, format: int32, minimum: 1 } }
        - { name: ids, in: query, explode: false, schema: { type: array, items: { type: integer } } }
        - { name: tags, in: query, schema: { type: array, items: { type: string }, maxItems: 2 } }
        - { name: X-Device-Kind, in: header, schema: { enum: [phone, desk] } }
        - { name: Authorization, in: header, required: true, schema: { type: string } }
      requestBody: { $ref: "#/components/requestBodies/Thing" }
    get:
      operationId: listThings
components:
  parameters:
    Number: { name: number, in: path, required: true, schema: { type: integer } }
  requestBodies:
    Thing:
      required: true
      content:
        application/json: { schema: { $ref: "#/components/schemas/Thing" } }
        application/vnd.thing+json: { schema: { type: array } }
        text/plain: { schema: { type: string } }
  schemas:
    Thing:
      type: object
      required: [name]
      properties: { name: { type: string }, part: { $ref: "#/components/schemas/Thing" } }
"##;

fn judged(document: &str) -> Judged {
    let file = TempFile::new("yaml", document);
    let rules = |operation: &str| format!("{{ openapi: {}, operation: {operation} }}", name(&file));
    let echo = Upstream::start();
    let validate = format!(
        "{{ POST: {}, GET: {} }}",
        rules("makeThing"),
        rules("listThings")
    );
    let conf = yaml(&echo, &validate, "");
    // Only the second route's path has the parameter.
    let conf = conf.replacen(&format!(", validate: {validate}"), "", 1);
    Judged {
        gateway: Gateway::with(&conf).start(),
        echo,
        _files: vec![file],
    }
}

fn make(target: &str, kind: &str, body: &str) -> Request {
    Request::post(target)
        .header("Content-Type", kind)
        .body(body)
}

#[test]
fn parameters_and_bodies_are_those_of_the_operation() {
    let judged = judged(DOCUMENT);
    let json = "application/json";
    let good = r#"{"name":"a","part":{"name":"b"}}"#;
    judged.accepts(&make("/x/1?page=1&ids=1,2&tags=a&tags=b", json, good));
    judged.accepts(&make("/x/1?page=1", "application/vnd.thing+json", "[]"));
    judged.accepts(&make("/x/1?page=1", "text/plain", "anything"));
    judged.accepts(&make("/x/1?page=1", json, good).header("X-Device-Kind", "desk"));
    judged.accepts(&Request::get("/x/5"));
    for (target, kind, body, fault) in [
        ("/x/1", json, good, "query:/page"),
        ("/x/1?page=true", json, good, "query:/page"),
        ("/x/1?page=1&ids=1,x", json, good, "query:/ids/1"),
        (
            "/x/1?page=1&tags=a&tags=b&tags=c",
            json,
            good,
            "query:/tags",
        ),
        ("/x/one?page=1", json, good, "path:/number"),
        ("/x/1?page=1", json, "{}", "body:/name"),
        (
            "/x/1?page=1",
            json,
            r#"{"name":"a","part":{}}"#,
            "body:/part/name",
        ),
        ("/x/1?page=1", "application/vnd.thing+json", "{}", "body:"),
    ] {
        assert_eq!(
            judged.refuses(&make(target, kind, body)),
            [fault],
            "{target} {body}"
        );
    }
    let kind = make("/x/1?page=1", json, good).header("X-Device-Kind", "toaster");
    assert_eq!(judged.refuses(&kind), ["header:/x-device-kind"]);
    let xml = judged.send(&make("/x/1?page=1", "application/xml", "<a/>"));
    assert_eq!(xml.status, 415);
    assert_eq!(judged.refuses(&Request::post("/x/1?page=1")), ["body:"]);
}

#[test]
fn what_is_not_understood_of_a_document_is_a_fault_of_the_configuration() {
    for (from, to, told) in [
        ("openapi: 3.1.0", "openapi: 3.0.3", "#/openapi: must be 3.1"),
        (
            "operationId: makeThing",
            "operationId: other",
            "no operation `makeThing`",
        ),
        (
            "explode: false",
            "style: pipeDelimited",
            "only `style: form`",
        ),
        (
            "schema: { enum: [phone, desk] }",
            "content: {}",
            "has a `schema` here",
        ),
        (
            "name: number, in: path",
            "name: other, in: path",
            "no parameter {other}",
        ),
        (
            "in: header, schema",
            "in: cookie, schema",
            "must be path, query or header",
        ),
        ("{ type: boolean }", "{ type: object }", "written as a text"),
        (
            "\"#/components/parameters/Number\"",
            "\"#/components/nothing\"",
            "is nothing in this document",
        ),
        ("minimum: 1", "minimum: one", "/schema/minimum"),
        ("required: [name]", "required: name", "/required"),
    ] {
        assert!(DOCUMENT.contains(from), "{from}");
        let file = TempFile::new("yaml", &DOCUMENT.replace(from, to));
        let echo = Upstream::start();
        let rules = format!("{{ openapi: {}, operation: makeThing }}", name(&file));
        let conf = yaml(&echo, &format!("{{ POST: {rules} }}"), "");
        let exit = Gateway::with(&conf).arg("--test").run_to_exit();
        let said = format!("{}{}", exit.stdout, exit.stderr);
        assert_eq!(exit.code, 1, "{to}: {said}");
        assert!(said.contains(told), "{to}: {said}");
        assert!(said.contains("validate.POST.ope"), "{to}: {said}");
    }
}
