//! What is wrong with schemas, and with what a route says of them, is told before anything is served.

use super::*;

/// The fault of this `validate`, with the schema beside it as `FILE`.
#[track_caller]
fn fault(schema: &str, validate: &str) -> String {
    let file = TempFile::new("json", schema);
    let echo = Upstream::start();
    let yaml = yaml(&echo, &validate.replace("FILE", &name(&file)), "");
    let exit = Gateway::with(&yaml).arg("--test").run_to_exit();
    assert_eq!(exit.code, 1, "{}{}", exit.stdout, exit.stderr);
    format!("{}{}", exit.stdout, exit.stderr).replace(&name(&file), "FILE")
}

#[test]
fn faults_name_the_place_the_file_and_the_pointer() {
    for (schema, validate, told) in [
        (
            r#"{"properties":{"a":{"type":"strin"}}}"#,
            "{ POST: { body: FILE } }",
            "routes[0].validate.POST.body: FILE#/properties/a/type",
        ),
        ("{", "{ POST: { body: FILE } }", "FILE: is not JSON"),
        (
            r#"{"a":1,"a":2}"#,
            "{ POST: { body: FILE } }",
            "FILE: A name in the file is repeated",
        ),
        (
            "{}",
            "{ POST: { body: nothing.json } }",
            "nothing.json: cannot be read",
        ),
        (
            "{}",
            "{ POST: { body: \"builtin:nothing.json\" } }",
            "only common.json",
        ),
        (
            r#"{"$ref":"https://example.com/x.json"}"#,
            "{ POST: { body: FILE } }",
            "nothing is fetched",
        ),
        (
            r#"{"$ref":"../../etc/hostname"}"#,
            "{ POST: { body: FILE } }",
            "validate.POST.body",
        ),
        (
            r#"{"pattern":"(?=a)b"}"#,
            "{ POST: { body: FILE } }",
            "linear time",
        ),
        (r#"{"format":"emial"}"#, "{ POST: { body: FILE } }", "emial"),
        (
            r#"{"x-before":["a","b"]}"#,
            "{ POST: { body: FILE } }",
            "pairs of members",
        ),
        (
            r#"{"$schema":"http://json-schema.org/draft-07/schema#"}"#,
            "{ POST: { body: FILE } }",
            "must be https://json-schema.org/draft/2020-12/schema",
        ),
        ("{}", "{ GET: { body: FILE } }", "a GET has no body"),
        (
            "{}",
            "{ POST: {} }",
            "names `openapi` and `operation`, or some of",
        ),
        (
            "{}",
            "{ POST: { openapi: FILE } }",
            "names `openapi` and `operation`",
        ),
        (
            "{}",
            "{ POST: { bodies: FILE } }",
            "routes[0].validate.POST",
        ),
        ("{}", "{ mode: lenient }", "routes[0].validate.mode"),
        (
            r##"{"properties":{"a":{"$ref":"#n"}},"$defs":{"n":{"$anchor":"n","type":"integer"}}}"##,
            "{ GET: { query: FILE } }",
            "`$ref: #n` leads to nothing that is read here",
        ),
        (
            r##"{"properties":{"a":{"$dynamicRef":"#n"}},"$defs":{"n":{"$dynamicAnchor":"n","type":"integer"}}}"##,
            "{ GET: { query: FILE } }",
            "`$dynamicRef` is not followed",
        ),
        (
            r#"{"properties":{"other":{"type":"integer"}}}"#,
            "{ GET: { path: FILE } }",
            "no parameter {other}",
        ),
        (
            r#"{"properties":{"X-Id":{"type":"integer"}}}"#,
            "{ GET: { headers: FILE } }",
            "no header name in lower case",
        ),
        (
            r#"{"properties":{"a":{"type":"object"}}}"#,
            "{ GET: { query: FILE } }",
            "nothing that can be written as a text",
        ),
    ] {
        let said = fault(schema, validate);
        assert!(said.contains(told), "{schema} {validate}: {said}");
    }
}

#[test]
fn bounds_are_checked_and_methods_are_those_of_the_route() {
    let echo = Upstream::start();
    let faulty = yaml(
        &echo,
        "{}",
        "validation: { depth: 0, values: 0, faults: 1000 }",
    );
    let exit = Gateway::with(&faulty).arg("--test").run_to_exit();
    let said = format!("{}{}", exit.stdout, exit.stderr);
    for key in ["depth", "values", "faults"] {
        assert!(
            said.contains(&format!("validation.{key}: must be from 1")),
            "{said}"
        );
    }
    let conf = yaml(&echo, "{ PUT: { query: \"builtin:pagination.json\" } }", "");
    let only_get = conf.replace("limits: []", "limits: [], methods: [GET]");
    let exit = Gateway::with(&only_get).arg("--test").run_to_exit();
    let said = format!("{}{}", exit.stdout, exit.stderr);
    assert!(
        said.contains("routes[0].validate.PUT: the route does not answer PUT"),
        "{said}"
    );
}

#[test]
fn rules_for_the_others_hold_for_every_other_method_or_are_a_fault() {
    let schema = r#"{"properties":{"a":{"type":"integer"}}}"#;
    let start = |methods: &str, validate: &str| {
        let file = TempFile::new("json", schema);
        let echo = Upstream::start();
        let conf = yaml(&echo, &validate.replace("FILE", &name(&file)), "");
        let conf = conf.replace("limits: []", &format!("limits: [], methods: [{methods}]"));
        (Gateway::with(&conf), echo, file)
    };
    for (methods, validate, method) in [
        ("OPTIONS", "{ \"*\": { query: FILE } }", "OPTIONS"),
        ("HEAD", "{ \"*\": { query: FILE } }", "HEAD"),
        (
            "GET, OPTIONS",
            "{ GET: { query: FILE }, \"*\": { query: FILE } }",
            "HEAD",
        ),
        (
            "GET, OPTIONS",
            "{ GET: { query: FILE }, \"*\": { query: FILE } }",
            "OPTIONS",
        ),
        ("GET, DELETE", "{ \"*\": { query: FILE } }", "HEAD"),
    ] {
        let (gateway, echo, _file) = start(methods, validate);
        let gateway = gateway.start();
        let status = |target: &str| {
            let mut connection = Client::to(gateway.addr()).connect();
            connection.request(&Request::method(method, target)).status
        };
        assert_eq!((status("/x?a=1"), status("/x?a=x")), (200, 422), "{method}");
        assert_eq!(echo.count(), 1);
    }
    for (validate, told) in [
        (
            "{ GET: { query: FILE }, \"*\": { query: nothing.json } }",
            "routes[0].validate.*: every method of the route has rules of its own",
        ),
        (
            "{ \"*\": { body: FILE } }",
            "validate.*.body: a GET has no body",
        ),
    ] {
        let (gateway, _echo, _file) = start("GET", validate);
        let exit = gateway.arg("--test").run_to_exit();
        let said = format!("{}{}", exit.stdout, exit.stderr);
        assert!(exit.code == 1 && said.contains(told), "{said}");
    }
}

#[test]
fn references_from_a_folder_to_another_are_those_of_addresses() {
    let folder = std::env::temp_dir().join(format!("gateway-e2e-schemas-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("sub")).unwrap();
    let write = |name: &str, content: &str| std::fs::write(folder.join(name), content).unwrap();
    write(
        "query.json",
        r#"{"properties":{"a":{"$ref":"./sub/a.json#/$defs/n"}}}"#,
    );
    write("sub/a.json", r#"{"$defs":{"n":{"$ref":"b.json"}}}"#);
    write("sub/b.json", r#"{"type":"integer"}"#);
    // Of the folder above: another file of that name.
    write("b.json", r#"{"type":"string"}"#);
    let echo = Upstream::start();
    let query = folder.join("query.json");
    let validate = format!("{{ GET: {{ query: {} }} }}", query.display());
    let gateway = Gateway::with(&yaml(&echo, &validate, "")).start();
    for (target, status) in [("/x?a=12", 200), ("/x?a=x", 422)] {
        let answer = Request::get(target).send_to(gateway.addr());
        assert_eq!(answer.status, status, "{target}: {}", answer.text());
    }
    let _ = std::fs::remove_dir_all(&folder);
}

#[test]
fn a_reload_takes_up_another_schema_and_a_faulty_one_changes_nothing() {
    let file = TempFile::new("json", r#"{"required":["a"]}"#);
    let path = file.path().to_owned();
    let validate = format!("{{ POST: {{ body: {} }} }}", name(&file));
    let judged = Judged::start(&validate, "", vec![file]);
    let reload = || Request::post("/reload").send_to(judged.gateway.private_addr());
    judged.accepts(&json_post(r#"{"a":1}"#));
    std::fs::write(&path, r#"{"required":["b"]}"#).unwrap();
    let answer = reload();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.text().contains("validate"), "{}", answer.text());
    assert_eq!(judged.refuses(&json_post(r#"{"a":1}"#)), ["body:/b"]);
    std::fs::write(&path, r#"{"required":1}"#).unwrap();
    let answer = reload();
    assert_eq!(answer.status, 422, "{}", answer.text());
    assert!(answer.text().contains("#/required"), "{}", answer.text());
    judged.accepts(&json_post(r#"{"b":1}"#));
}

#[test]
fn a_schema_refers_to_others_beside_it() {
    let other = TempFile::new("json", r#"{"$defs":{"n":{"type":"integer"}}}"#);
    let schema = format!(
        r##"{{"properties":{{"a":{{"$ref":"{}#/$defs/n"}}}}}}"##,
        name(&other)
    );
    let file = TempFile::new("json", &schema);
    let validate = format!(
        "{{ POST: {{ body: {n} }}, GET: {{ query: {n} }} }}",
        n = name(&file)
    );
    let judged = Judged::start(&validate, "", vec![file, other]);
    judged.accepts(&json_post(r#"{"a":1}"#));
    assert_eq!(judged.refuses(&json_post(r#"{"a":"1"}"#)), ["body:/a"]);
    judged.accepts(&Request::get("/x?a=1"));
    assert_eq!(judged.refuses(&Request::get("/x?a=x")), ["query:/a"]);
}
