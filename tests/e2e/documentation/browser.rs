//! The page in a real browser: it lists every operation, follows who authorizes, and tries one.

use super::*;
use crate::support::chromium::Chromium;

/// `METHOD path` of all that is listed.
const LISTED: &str = "[...document.querySelectorAll('.opblock')].map((block) =>
    block.querySelector('.opblock-summary-method').innerText.trim() + ' '
        + block.querySelector('.opblock-summary-path').dataset.path)";

/// Fills an element as a hand does: React listens to the event and looks at the value, and waits for more until it is left.
const FILL: &str = "window.fill = (element, text) => {
    const of = element.tagName === 'TEXTAREA' ? HTMLTextAreaElement : HTMLInputElement;
    Object.getOwnPropertyDescriptor(of.prototype, 'value').set.call(element, text);
    element.dispatchEvent(new Event('input', { bubbles: true }));
    element.dispatchEvent(new FocusEvent('focusout', { bubbles: true }));
}; true";

fn listed(page: &mut Chromium) -> BTreeSet<String> {
    let listed = page.evaluate(LISTED);
    let names = listed.as_array().unwrap().iter();
    names
        .map(|name| name.as_str().unwrap().to_owned())
        .collect()
}

/// An expression for the block of an operation.
fn block(method: &str, path: &str) -> String {
    format!(
        "[...document.querySelectorAll('.opblock-{}')].find((block) =>
            block.querySelector('.opblock-summary-path').dataset.path === '{path}')",
        method.to_ascii_lowercase()
    )
}

/// Tries an operation with these parameters, in order; the status and the body that the page shows then.
fn try_out(page: &mut Chromium, method: &str, path: &str, values: &[&str]) -> (String, String) {
    let block = block(method, path);
    page.evaluate(&format!(
        "{block}.querySelector('.opblock-summary-control').click()"
    ));
    page.wait(&format!("{block}.querySelector('.try-out__btn')"));
    page.evaluate(&format!("{block}.querySelector('.try-out__btn').click()"));
    page.wait(&format!("{block}.querySelector('.execute')"));
    for (number, value) in values.iter().enumerate() {
        page.evaluate(&format!(
            "fill({block}.querySelectorAll('.parameters input[type=text]')[{number}], '{value}')"
        ));
    }
    page.evaluate(&format!("{block}.querySelector('.execute').click()"));
    let answer = format!("{block}.querySelector('.live-responses-table .response')");
    page.wait(&answer);
    let text = |page: &mut Chromium, part: &str| {
        let text = page.evaluate(&format!("{answer}.querySelector('{part}').innerText"));
        text.as_str().unwrap_or_default().to_owned()
    };
    let status = text(page, ".response-col_status");
    (
        status.trim().to_owned(),
        text(page, ".response-col_description"),
    )
}

#[test]
fn the_page_lists_every_operation_follows_its_caller_and_tries_one() {
    let backend = backend();
    let gateway = platform(&backend).start();
    let all = names(&document(&gateway));
    let mut page = Chromium::start();
    page.open(&format!("http://{}/documentation", gateway.addr()));
    page.wait(&format!(
        "document.querySelectorAll('.opblock').length === {}",
        all.len()
    ));
    assert_eq!(listed(&mut page), all);

    // Authorize, as a customer: what a customer may not call is gone.
    let token = token::customer();
    let of_customer = Request::get("/documentation/json").bearer(&token);
    let of_customer = names(&document_of(&gateway, of_customer));
    assert!(of_customer.len() < all.len());
    page.evaluate(FILL);
    page.evaluate("document.querySelector('.btn.authorize').click()");
    page.wait("document.querySelector('.modal-ux .auth-container input')");
    let modal = "[...document.querySelectorAll('.modal-ux .auth-container')].find((way) =>
        way.innerText.includes('bearer'))";
    page.evaluate(&format!("fill({modal}.querySelector('input'), '{token}')"));
    page.evaluate(&format!("{modal}.querySelector('.btn.authorize').click()"));
    page.wait(&format!(
        "document.querySelectorAll('.opblock').length === {}",
        of_customer.len()
    ));
    assert_eq!(listed(&mut page), of_customer);
    page.evaluate("document.querySelector('.modal-ux .close-modal').click()");

    // Try it out: the request reaches the backend, and its answer is shown.
    let before = backend.count();
    let (status, shown) = try_out(&mut page, "GET", "/api/v1/events/{event}", &["e1"]);
    assert_eq!(status, "200", "{shown}");
    assert!(shown.contains("the backend"), "{shown}");
    let request = backend.wait_requests(before + 1).pop().unwrap();
    assert_eq!(
        (request.method.as_str(), request.path()),
        ("GET", "/api/v1/events/e1")
    );
    assert_eq!(request.header("x-tenant-id"), Some("t1"));

    // Slashes in the rest of a path stay slashes.
    let (status, shown) = try_out(
        &mut page,
        "GET",
        "/api/v1/search/{rest}",
        &["events/open air"],
    );
    assert_eq!(status, "200", "{shown}");
    let request = backend.wait_requests(before + 2).pop().unwrap();
    assert_eq!(request.path(), "/api/v1/events/open%20air");

    // Elsewhere a slash is a part of the value: it is sent as such, and no path of the gateway's has one.
    let single = "/api/v1/venues/{venue}";
    let (status, shown) = try_out(&mut page, "GET", single, &["a/b"]);
    assert_eq!(status, "400", "{shown}");
    let shown = page.evaluate(&format!("{}.innerText", block("GET", single)));
    assert!(
        shown.as_str().unwrap().contains("/api/v1/venues/a%2Fb"),
        "{shown}"
    );
    assert_eq!(backend.count(), before + 2, "it is not another path");

    // A page sends its origin with what is no GET: its own is allowed.
    let (status, shown) = try_out(&mut page, "POST", "/api/v1/tickets/purchase", &[]);
    assert_eq!(status, "422", "{shown}");
    assert!(
        shown.contains("VALIDATION_ERROR"),
        "its example is none of a purchase: {shown}"
    );

    let said = &page.said;
    let is_about_policy = |line: &&Value| line.to_string().contains("Content Security Policy");
    assert!(!said.iter().any(|line| is_about_policy(&line)), "{said:?}");
    let is_exception = |line: &&Value| !line["exceptionDetails"].is_null();
    assert!(!said.iter().any(|line| is_exception(&line)), "{said:?}");
}

#[test]
fn the_public_host_is_asked_by_the_scheme_of_the_page() {
    // Nobody is there: what counts is who is asked.
    let gateway = small("routes: [{ path: /things, service: s, auth: public, methods: [GET] }]")
        .env("SWAGGER_HOST", "127.0.0.1:1")
        .start();
    let mut page = Chromium::start();
    page.open(&format!("http://{}/documentation", gateway.addr()));
    page.wait("document.querySelector('.servers select') && document.querySelector('.opblock')");
    page.evaluate(
        "(() => {
            const select = document.querySelector('.servers select');
            const { set } = Object.getOwnPropertyDescriptor(HTMLSelectElement.prototype, 'value');
            set.call(select, '//127.0.0.1:1');
            select.dispatchEvent(new Event('change', { bubbles: true }));
            return true;
        })()",
    );
    try_out(&mut page, "GET", "/things", &[]);
    let asked = format!(
        "{}.querySelector('.request-url').innerText",
        block("GET", "/things")
    );
    let asked = page.evaluate(&asked);
    assert!(
        asked
            .as_str()
            .unwrap()
            .contains("http://127.0.0.1:1/things"),
        "{asked}"
    );
    let is_about_policy = |line: &&Value| line.to_string().contains("Content Security Policy");
    assert!(
        !page.said.iter().any(|line| is_about_policy(&line)),
        "{:?}",
        page.said
    );
}
