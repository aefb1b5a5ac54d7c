//! The documented validators, on the platform's own routes.

use super::*;

struct Platform {
    gateway: Gateway,
    services: Upstream,
}

impl Platform {
    fn start() -> Self {
        let services = Upstream::start();
        let gateway = Gateway::platform_unchecked().all_services_at(&services.url());
        Self {
            gateway: gateway.env("RATE_LIMIT_TICKET_MAX", "1000").start(),
            services,
        }
    }

    fn send(&self, method: &str, target: &str, body: Option<&Value>) -> Response {
        let request = Request::method(method, target).bearer(&token::admin());
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        request.send_to(self.gateway.addr())
    }

    #[track_caller]
    fn accepts(&self, method: &str, target: &str, body: Option<Value>) {
        let answer = self.send(method, target, body.as_ref());
        assert_eq!(
            answer.status,
            200,
            "{method} {target} {body:?}: {}",
            answer.text()
        );
    }

    #[track_caller]
    fn refuses(&self, method: &str, target: &str, body: Option<Value>, fault: &str) {
        let before = self.services.count();
        let answer = self.send(method, target, body.as_ref());
        assert_eq!(
            answer.status,
            422,
            "{method} {target} {body:?}: {}",
            answer.text()
        );
        assert_eq!(faults(&answer), [fault], "{method} {target} {body:?}");
        assert_eq!(self.services.count(), before);
    }
}

#[test]
fn lists_are_paged_and_sorted_as_documented() {
    let platform = Platform::start();
    for list in [
        "/api/v1/venues",
        "/api/v1/events",
        "/api/v1/event",
        "/api/v1/marketplace/listings",
    ] {
        platform.accepts("GET", list, None);
        let target = format!("{list}?page=2&limit=50&sortBy=createdAt&sortOrder=desc&city=Ulm");
        platform.accepts("GET", &target, None);
        // What is not documented is not ruled: the service says.
        for query in [
            "limit=100000",
            "page=90000000",
            "sortBy=-createdAt",
            "sortBy=price:asc",
            "sortOrder=Descending",
            "startDate=2025-07-01T19:00&endDate=2025-07-01T20:00",
        ] {
            platform.accepts("GET", &format!("{list}?{query}"), None);
        }
        for (query, fault) in [
            ("page=0", "query:/page"),
            ("page=-1", "query:/page"),
            ("page=two", "query:/page"),
            ("limit=0", "query:/limit"),
            ("limit=1&limit=2", "query:/limit"),
            ("sortOrder=up", "query:/sortOrder"),
            ("startDate=2025-02-30", "query:/startDate"),
            (
                "startDate=2025-02-02&endDate=2025-02-01",
                "query:/startDate",
            ),
        ] {
            platform.refuses("GET", &format!("{list}?{query}"), None, fault);
        }
    }
}

#[test]
fn venues_and_events_are_made_and_changed_as_documented() {
    let platform = Platform::start();
    let venue = json!({"name": "Hall", "email": " Info@Example.COM ", "phone": "+4930123456", "other": {"x": 1}});
    platform.accepts("POST", "/api/v1/venues", Some(venue));
    platform.accepts("PUT", "/api/v1/venues/v1", Some(json!({})));
    let event = json!({
        "name": "Concert", "venueId": "v1", "price": 19.99,
        "startDate": "2025-07-01T19:00:00Z", "endDate": "2025-07-01T23:00:00+02:00",
    });
    platform.accepts("POST", "/api/v1/events", Some(event));
    platform.accepts("PATCH", "/api/v1/events/e1", Some(json!({"price": 20})));
    // What is not documented is not ruled: names, places, how a price is written.
    platform.accepts(
        "POST",
        "/api/v1/venues",
        Some(json!({"name": " ", "capacity": "90"})),
    );
    for price in ["19.99", "20", "0.5", ".05", "007.10"] {
        platform.accepts(
            "POST",
            "/api/v1/events",
            Some(json!({"price": price, "name": ""})),
        );
    }
    let local = json!({"startDate": "2025-07-01T19:00", "endDate": "2025-07-01 23:00:00"});
    platform.accepts("POST", "/api/v1/events", Some(local));
    for (method, target, body, fault) in [
        ("POST", "/api/v1/venues", json!([]), "body:"),
        (
            "POST",
            "/api/v1/venues",
            json!({"email": "x"}),
            "body:/email",
        ),
        (
            "PUT",
            "/api/v1/venues/v1",
            json!({"phone": "030 123456"}),
            "body:/phone",
        ),
        ("POST", "/api/v1/events", json!({"price": 0}), "body:/price"),
        (
            "POST",
            "/api/v1/events",
            json!({"price": 19.999}),
            "body:/price",
        ),
        (
            "POST",
            "/api/v1/events",
            json!({"price": "19.999"}),
            "body:/price",
        ),
        (
            "POST",
            "/api/v1/events",
            json!({"price": "0.00"}),
            "body:/price",
        ),
        (
            "PUT",
            "/api/v1/events/e1",
            json!({"price": -1}),
            "body:/price",
        ),
        (
            "POST",
            "/api/v1/events",
            json!({"startDate": "2025-07-02T00:00:00Z", "endDate": "2025-07-01T00:00:00Z"}),
            "body:/startDate",
        ),
        (
            "POST",
            "/api/v1/events",
            json!({"startDate": "tomorrow"}),
            "body:/startDate",
        ),
    ] {
        platform.refuses(method, target, Some(body), fault);
    }
    // What has no schema goes on as before.
    platform.accepts("POST", "/api/v1/venues/v1/layouts", Some(json!([1])));
    platform.accepts("DELETE", "/api/v1/events/e1", None);
}

#[test]
fn tickets_and_listings_are_sold_as_documented() {
    let platform = Platform::start();
    let purchase = "/api/v1/tickets/purchase";
    platform.accepts(
        "POST",
        purchase,
        Some(json!({"eventId": "e1", "quantity": 2})),
    );
    platform.accepts(
        "POST",
        purchase,
        Some(json!({"event_id": 7, "tickets": [1]})),
    );
    platform.accepts("POST", purchase, None);
    platform.accepts(
        "POST",
        "/api/v1/ticket/purchase",
        Some(json!({"eventId": "e1"})),
    );
    for quantity in [json!(0), json!("2"), json!(5000)] {
        platform.accepts("POST", purchase, Some(json!({ "quantity": quantity })));
    }
    for path in [purchase, "/api/v1/ticket/purchase"] {
        for (body, fault) in [
            (json!({"price": 1.005}), "body:/price"),
            (json!({"email": "nobody"}), "body:/email"),
            (json!({"phone": "030 123"}), "body:/phone"),
        ] {
            platform.refuses("POST", path, Some(body), fault);
        }
    }
    platform.accepts(
        "POST",
        "/api/v1/tickets/validate",
        Some(json!({"ticketId": "t1"})),
    );
    platform.accepts("POST", "/api/v1/tickets/t1/validate", None);
    platform.refuses(
        "POST",
        "/api/v1/tickets/t1/validate",
        Some(json!({"ticketId": null})),
        "body:/ticketId",
    );
    let listings = "/api/v1/marketplace/listings";
    platform.accepts(
        "POST",
        listings,
        Some(json!({"ticketId": "t1", "price": 10.5})),
    );
    platform.refuses(
        "POST",
        listings,
        Some(json!({"ticketId": "t1", "price": 0.001})),
        "body:/price",
    );
    platform.accepts("POST", &format!("{listings}/l1/purchase"), None);
    platform.refuses(
        "POST",
        &format!("{listings}/l1/purchase"),
        Some(json!({"price": -1})),
        "body:/price",
    );
}
