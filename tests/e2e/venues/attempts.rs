//! Attempts at the venue `v9`, which is another tenant's, by somebody who has `v1` and `v2`. They carry no credential yet.

use crate::support::prelude::*;

/// What must become of an attempt. In every case the service gets nothing of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// 404, as for a path of no route; `venue_access_denied`.
    Stranger,
    /// 400, `malformed_request`.
    Ambiguous,
    /// One of the two: the spelling names something else to some readers and nothing that is clear to others.
    Either,
    /// 415, `malformed_request`.
    Unsupported,
    /// One of all these.
    Unclear,
    /// 404, `cross_tenant_access`.
    Tenant,
}

use Verdict::{Ambiguous, Either, Stranger, Tenant, Unclear, Unsupported};

pub struct Attempt {
    pub what: String,
    pub request: Request,
    pub verdict: Verdict,
}

pub fn all() -> Vec<Attempt> {
    [
        headers(),
        paths(),
        queries(),
        names_in_json(),
        values_in_json(),
        tenants(),
        json_that_is_none(),
        types_of_bodies(),
        forms(),
        framings(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn attempt(what: impl Into<String>, request: Request, verdict: Verdict) -> Attempt {
    let what = what.into();
    Attempt {
        what,
        request,
        verdict,
    }
}

fn headers() -> Vec<Attempt> {
    let get = || Request::get("/x/header");
    let mut all = Vec::new();
    let tenants = [
        "X-Tenant-ID",
        "x-tenant-id",
        "X-TENANT-ID",
        "X_Tenant_ID",
        "X-Tenant_ID",
        "X-Internal-Tenant-ID",
        "X-User-Tenant-ID",
        "X-Original-Tenant-ID",
    ];
    for name in tenants {
        let request = get().header(name, "t2").header("X-Tenant-Source", "jwt");
        let request = request.header("X-Venue-ID", "v9");
        all.push(attempt(format!("{name}: t2"), request, Stranger));
    }
    let twice = get()
        .header("X-Tenant-ID", "t1")
        .header("X-Tenant-ID", "t2");
    all.push(attempt(
        "two tenants",
        twice.header("X-Venue-ID", "v9"),
        Stranger,
    ));
    for name in ["X-Venue-ID", "x-venue-id", "X-VENUE-ID", "x-Venue-iD"] {
        all.push(attempt(name, get().header(name, "v9"), Stranger));
    }
    for (one, other) in [("v1", "v9"), ("v9", "v1"), ("v1", "v1"), ("v1", "")] {
        let request = get().header("X-Venue-ID", one).header("x-venue-id", other);
        all.push(attempt(
            format!("X-Venue-ID {one} and {other}"),
            request,
            Ambiguous,
        ));
    }
    for list in ["v1,v9", "v9, v1", "v1,", ",v1", "", " ", "\t"] {
        let request = get().header("X-Venue-ID", list);
        all.push(attempt(format!("X-Venue-ID {list:?}"), request, Ambiguous));
    }
    let odd = [
        "v1;v9",
        "v1 v9",
        "v1|v9",
        "\"v9\"",
        "v%39",
        "v1\tv9",
        "v1%00v9",
        "[\"v9\"]",
        "{\"id\":\"v9\"}",
        "V1",
        "v1é",
        "..",
        ".",
        "v1/../v9",
        "v9/members/u9?",
        "v9#",
        "*",
        "null",
    ];
    for odd in odd {
        let request = get().header("X-Venue-ID", odd);
        all.push(attempt(format!("X-Venue-ID {odd:?}"), request, Either));
    }
    let nominated = get().header("Connection", "X-Venue-ID, keep-alive");
    let nominated = nominated.header("X-Venue-ID", "v9");
    all.push(attempt("nominated by Connection", nominated, Ambiguous));
    let too = Request::post("/x/header").header("X-Venue-ID", "v9");
    let too = too.json(&json!({"venueId": "v1"}));
    all.push(attempt("beside the own venue in the body", too, Stranger));
    let upgrade = || {
        get()
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
    };
    let request = upgrade().header("X-Venue-ID", "v9");
    all.push(attempt("WebSocket", request, Stranger));
    let request = upgrade().header("X-Venue-ID", "v1,v9");
    all.push(attempt("WebSocket, list", request, Ambiguous));
    all
}

fn paths() -> Vec<Attempt> {
    let strangers = [
        "/api/v1/venues/v9",
        "/api/v1/venues/v9/",
        "/api/v1/venues/v9/events",
        "/api/v1/venues/v9?venueId=v1",
        "/api/v1/venues/%76%39",
        "/api/v1/%76%65%6e%75%65%73/v9",
        "/api/v1/venues/v1/venues/v9",
        "/api/v1/events/venues/v9",
        "/api/v1/events/e1/venue/v9",
        "/api/v1/events/e1/VENUE/v9",
        "/api/v1/events/e1/Venues/v9/x",
        "/api/v1/event/venues/v9",
        "/api/v1/event/e1/venue/v9",
        "/x/vEnUeS/v9",
        "/x/%56enue/v9",
        "/x/venue/venue/v9",
        "/x/venues/v9/venues/v1",
        "/p/v9/x",
        "/q/v9",
        "/r/v9",
        "/r/%769",
        "/mine/v9",
        "/head/venues/v9",
        "http://gateway.test/api/v1/venues/v9",
        "/api/v1/venues/V1",
        "/api/v1/venues/v1.json",
        "/api/v1/venues/v1;v=v9",
        "/api/v1/venues/v1,v9",
        "/api/v1/venues/v1%2Cv9",
        "/api/v1/venues/v1%3Bv9",
        "/api/v1/venues/v1%26v9",
        "/api/v1/venues/v1%3Fvenue=v9",
        "/api/v1/venues/v1%23",
        "/api/v1/venues/v1%20",
        "/api/v1/venues/v1:v9",
        "/api/v1/venues/%2576%2539",
        "/api/v1/venues/%EF%BD%961",
        "/api/v1/venues/*",
        "/api/v1/venues/search/venues/v9",
    ];
    let ambiguous = [
        "/api/v1/venues/v1/../v9",
        "/api/v1/venues/v1/%2e%2e/v9",
        "/api/v1/venues/v1/..;/v9",
        "/api/v1/venues/./v9",
        "/api/v1/venues//v9",
        "/api/v1//venues/v9",
        "/api/v1/venues/v1%2F..%2Fv9",
        "/api/v1/venues/v1%5Cv9",
        "/api/v1/venues/v9%00",
        "/api/v1/venues/v1%252f..%252fv9",
        "/x/venues%2Fv9",
    ];
    let mut all = Vec::new();
    for (targets, verdict) in [(&strangers[..], Stranger), (&ambiguous, Ambiguous)] {
        for target in targets {
            all.push(attempt(*target, Request::get(target), verdict));
        }
    }
    for method in ["HEAD", "POST", "PUT", "PATCH", "DELETE"] {
        let request = Request::method(method, "/api/v1/venues/v9");
        let what = format!("{method} in the path");
        all.push(attempt(what, request, Stranger));
    }
    let old = Request::get("/api/v1/venues/v9").http_1_0();
    all.push(attempt("HTTP/1.0", old, Stranger));
    let bare = Request::get("/api/v1/venues/v9").http_1_0().without_host();
    all.push(attempt("HTTP/1.0 without Host", bare, Stranger));
    all
}

fn queries() -> Vec<Attempt> {
    let strangers = [
        "venueId=v9",
        "venueId=%76%39",
        "VENUEID=v9",
        "venue_id=v9",
        "venue-id=v9",
        "VENUE-ID=v9",
        "venue.id=v9",
        "venue+id=v9",
        "venue%20id=v9",
        "venue%5Fid=v9",
        "%76enue%49d=v9",
        "venue=v9",
        "Venue=v9",
        "venues=v9",
        "venueIds=v9",
        "venue_ids=v9",
        "targetVenueId=v9",
        "source_venue_id=v9",
        "from.venueIds=v9",
        "a=b&venueId=v9",
        "&&venueId=v9&",
        "?venueId=v9",
        "venueIds=v1,v9",
        "venueIds=v1%2Cv9",
        "venueIds=v9,v1",
        "venues=v1,v2,v9",
        "venueIds[]=v9",
        "venueIds[]=v1&venueIds[]=v9",
        "venueIds%5B%5D=v9",
        "venueIds[0]=v1&venueIds[1]=v9",
        "filter[venueId]=v9",
        "filter%5BvenueId%5D=v9",
        "filter[venue_ids]=v9",
        "filter={%22venueId%22:%22v9%22}",
        "filter=%7B%22venueId%22%3A%22v9%22%7D",
        "filter=[{%22venueId%22:%22v9%22}]",
        "filter={%22a%22:{%22\\u0076enueId%22:%22v9%22}}",
        "filter=%20%7B%22venueIds%22:[%22v1%22,%22v9%22]%7D",
        "event[venue_id]=v9",
    ];
    let ambiguous = [
        "venueId=v1&venueId=v9",
        "venueId=v9&venueId=v1",
        "venueId=v1&venueId=v1",
        "venueId=v1&venue_id=v9",
        "venueId=v1&VENUEID=v1",
        "venueId=v1&%76enueId=v9",
        "venueIds=v1&venueIds=v9",
        "venueId[$ne]=v1",
        "venueId[ne]=v1",
        "venueId%5B%24ne%5D=v1",
        "venueId[$gt]=",
        "venueId[$regex]=.*",
        "venueId[$in][]=v1",
        "venueIds[$nin][]=v1",
        "venueIds[$ne]=v1",
        "venue[$ne]=v1",
        "a=1;venueId=v9",
        "x=%26venueId%3Dv9",
        "x=1%26venueId=v9",
        "venue%2549d=v9",
        "%2576enueId=v9",
        "filter={%22venueId%22:{%22$ne%22:%22v1%22}}",
        "filter={%22venueId%22:%22v1%22,%22venueId%22:%22v9%22}",
    ];
    let either = [
        "venueId[]=v9",
        "venueId[]=v1&venueId[]=v9",
        "venueId[0]=v9",
        "venueId[0]=v1&venueId[1]=v9",
        "venueId[][]=v9",
        "venue[id]=v9",
        "venue[_id]=v9",
        "venues[0][id]=v9",
        "venues[][id]=v9",
        "filter[venueId][]=v9",
        "filter[and][0][venueId]=v9",
        "filter[venueId][eq]=v9",
        "filter[venueId][$ne]=v1",
        "[venueId]=v9",
        "venue[id=v9",
        "venueId]=v9",
        "venueId[=v9",
        "a[[venueId]]=v9",
        "venueId%00=v9",
        "%20venueId=v9",
        "venueId%20=v9",
        "venue%E2%80%8BId=v9",
        "venueId=v1%26venueId%3Dv9",
        "venueId=v1%2526venueId%253Dv9",
        "venueId=v1%00v9",
        "venueId=v1%00",
        "venueId=v1%0Av9",
        "venueId=v1,v9",
        "venueId=v1;v9",
        "venueId=v1;venueId=v9",
        "venueId=v1|v9",
        "venueId=v1+v9",
        "venueId=v1%20",
        "venueId==v9",
        "venueId=V9",
        "venueId=%2576%2539",
        "venueId=*",
        "venueId=..",
        "venueIds=v1,,v9",
        "venueIds=v1;v9",
        "venueIds[a]=v9",
        "venueIds[0][$ne]=v1",
        "venueIds={%22$ne%22:1}",
        "venueId={%22$ne%22:1}",
        "venueId=[%22v9%22]",
        "venueId=%22v9%22",
        "filter=%257B%2522venueId%2522:%2522v9%2522%257D",
        "filter=%22{\\%22venueId\\%22:\\%22v9\\%22}%22",
        "$filter=venueId%20eq%20'v9'",
        "where=venue_id%3D%27v9%27",
        "q=venueId:v9",
        "filter=venueId:v9,name:x",
        "x=%5BvenueId%5D=v9",
        "venueId__in=v9",
        "venueId_ne=v1",
        "venueIds.0=v9",
        "not_venueId_in=v1",
    ];
    let mut all = Vec::new();
    for (queries, verdict) in [
        (&strangers[..], Stranger),
        (&ambiguous, Ambiguous),
        (&either, Either),
    ] {
        for query in queries {
            let request = Request::get(&format!("/x/query?{query}"));
            all.push(attempt(format!("?{query}"), request, verdict));
        }
    }
    all.push(attempt(
        "a query on a route that looks at the head only",
        Request::get("/head/x?venueId=v9"),
        Stranger,
    ));
    all
}

fn json_body(body: impl Into<Vec<u8>>) -> Request {
    typed("application/json", body)
}

fn typed(content_type: &str, body: impl Into<Vec<u8>>) -> Request {
    Request::post("/x/body")
        .header("Content-Type", content_type)
        .body(body)
}

fn in_json(bodies: &[&str], verdict: Verdict) -> Vec<Attempt> {
    let attempts = bodies.iter();
    attempts
        .map(|body| attempt(*body, json_body(*body), verdict))
        .collect()
}

fn names_in_json() -> Vec<Attempt> {
    let mut all = in_json(
        &[
            r#"{"venueId":"v9"}"#,
            r#"{"VENUEID":"v9"}"#,
            r#"{"venue_id":"v9"}"#,
            r#"{"venue-id":"v9"}"#,
            r#"{"venue.id":"v9"}"#,
            r#"{"venue id":"v9"}"#,
            r#"{" venueId ":"v9"}"#,
            r#"{"$venueId":"v9"}"#,
            r#"{"venueId\u0000":"v9"}"#,
            r#"{"venue\u200bId":"v9"}"#,
            r#"{"\u0076enueId":"v9"}"#,
            r#"{"venue\u0049d":"v9"}"#,
            r#"{"\u0076\u0065\u006e\u0075\u0065\u0049\u0064":"v9"}"#,
            r#"{"venue":"v9"}"#,
            r#"{"Venue":"v9"}"#,
            r#"{"venue":{"id":"v9"}}"#,
            r#"{"venue":{"_id":"v9"}}"#,
            r#"{"venue":{"name":"x","id":"v9"}}"#,
            r#"{"venues":["v9"]}"#,
            r#"{"venues":["v1","v2","v9"]}"#,
            r#"{"venues":[{"id":"v1"},{"id":"v9"}]}"#,
            r#"{"venueIds":["v9","v1"]}"#,
            r#"{"venue_ids":["v9"]}"#,
            r#"{"targetVenueId":"v9"}"#,
            r#"{"target_venue_id":"v9"}"#,
            r#"{"allowedVenueIds":["v1","v9"]}"#,
            r#"[{"venueId":"v9"}]"#,
            r#"[[[{"venueId":"v9"}]]]"#,
            r#"{"a":{"b":[1,{"c":{"venueId":"v9"}}]}}"#,
            r#"{"venueId":"v1","event":{"venueId":"v9"}}"#,
            r#"{"event":{"venueId":"v1"},"other":{"venueId":"v9"}}"#,
            r#"{"venue":{"id":"v1","parent":{"venueId":"v9"}}}"#,
            r#"{"venues":[{"id":"v1","venueId":"v9"}]}"#,
            r#"{"__proto__":{"venueId":"v9"}}"#,
            r#"{"constructor":{"prototype":{"venueId":"v9"}}}"#,
        ],
        Stranger,
    );
    all.extend(in_json(
        &[
            r#"{"venueId":"v1","venueId":"v9"}"#,
            r#"{"venueId":"v9","venueId":"v1"}"#,
            r#"{"venueId":"v1","venueId":"v1"}"#,
            r#"{"venueId":"v1","\u0076enueId":"v9"}"#,
            r#"{"a":{"venueId":"v1","venueId":"v9"}}"#,
            r#"[{"venueIds":["v1"],"venueIds":["v9"]}]"#,
        ],
        Ambiguous,
    ));
    all.extend(in_json(
        &[
            r#"{"venueId":"v1","venue_id":"v9"}"#,
            r#"{"venueId":"v1","VenueID":"v9"}"#,
            r#"{"venue":{"id":"v1","_id":"v9"}}"#,
            r#"{"venue":{"id":"v1","id":"v9"}}"#,
            r#"{"venue":{"ID":"v9"}}"#,
            r#"{"venue":["v9"]}"#,
            r#"{"venues":{"id":"v9"}}"#,
            r#"{"venues":[["v9"]]}"#,
            r#"{"a":{"venueId":"v1"},"a":{"venueId":"v9"}}"#,
        ],
        Either,
    ));
    all
}

fn values_in_json() -> Vec<Attempt> {
    let mut all = in_json(
        &[
            r#"{"venueId":"\u00769"}"#,
            r#"{"venueId":9}"#,
            r#"{"venueIds":[9]}"#,
            r#"{"venueId":" v1"}"#,
            r#"{"venueId":"v1 "}"#,
            r#"{"venueId":"V1"}"#,
            r#"{"venueId":"v1,v9"}"#,
            r#"{"venueId":"v%31"}"#,
            r#"{"payload":"{\"venueId\":\"v9\"}"}"#,
            r#"{"payload":" [{\"venue_id\":\"v9\"}]"}"#,
            r#"{"payload":"{\"more\":\"{\\\"venueId\\\":\\\"v9\\\"}\"}"}"#,
            r#""{\"venueId\":\"v9\"}""#,
            r#"["{\"venueId\":\"v9\"}"]"#,
        ],
        Stranger,
    );
    all.extend(in_json(
        &[
            r#"{"venueId":["v1"]}"#,
            r#"{"venueId":["v9"]}"#,
            r#"{"venueId":{"$ne":"v1"}}"#,
            r#"{"venueId":{"$in":["v9"]}}"#,
            r#"{"venueId":{"$oid":"v9"}}"#,
            r#"{"venueId":{"id":"v9"}}"#,
            r#"{"venueId":true}"#,
            r#"{"venueId":false}"#,
            r#"{"venueId":1.5}"#,
            r#"{"a":{"venue_id":{"$gt":""}}}"#,
            r#"{"payload":"{\"venueId\":\"v1\",\"venueId\":\"v9\"}"}"#,
        ],
        Ambiguous,
    ));
    all.extend(in_json(
        &[
            r#"{"venueId":" "}"#,
            r#"{"venueId":"v1\u0000"}"#,
            r#"{"venueId":"v1\u0000v9"}"#,
            r#"{"venueId":"v9\r\nX-Tenant-ID: t2"}"#,
            r#"{"venueId":"v9/members/u1 HTTP/1.1\r\nX-Tenant-ID: t2\r\n\r\n"}"#,
            r#"{"venueId":"../v9"}"#,
            r#"{"venueId":".."}"#,
            r#"{"venueId":"."}"#,
            r#"{"venueId":"%2e%2e"}"#,
            r#"{"venueId":"v9?"}"#,
            r#"{"venueId":"*"}"#,
            r#"{"venueId":-9}"#,
            r#"{"venueId":9e0}"#,
            r#"{"venueId":9.0}"#,
            r#"{"venueId":1e999}"#,
            r#"{"venueId":9007199254740993}"#,
            r#"{"venueIds":"v1,v9"}"#,
            r#"{"venueIds":{"0":"v9"}}"#,
            r#"{"venueIds":{"$nin":["v1"]}}"#,
            r#"{"venueIds":[{"venueId":"v9"}]}"#,
            r#"{"venueIds":[["v9"]]}"#,
            r#"{"venueIds":[true]}"#,
            r#"{"payload":"\ufeff{\"venueId\":\"v9\"}"}"#,
        ],
        Either,
    ));
    all
}

/// What one parser takes and another does not.
fn tenants() -> Vec<Attempt> {
    let mut all = in_json(
        &[
            r#"{"tenantId":"t2","venueId":"v9"}"#,
            r#"{"tenantId":"t2"}"#,
            r#"{"a":[{"tenant_id":"t2"}]}"#,
            r#"{"Tenant":"t2"}"#,
            r#"{"tenantId":"t1","b":{"tenantId":"t2"}}"#,
            r#"{"tenantId":"t1 "}"#,
            r#"{"payload":"{\"tenantId\":\"t2\"}"}"#,
        ],
        Tenant,
    );
    for query in [
        "tenantId=t2",
        "tenant_id=t2",
        "filter[tenantId]=t2",
        "TENANT=t2",
    ] {
        let request = Request::get(&format!("/x/query?{query}"));
        all.push(attempt(query, request, Tenant));
    }
    let form = typed("application/x-www-form-urlencoded", "tenantId=t2");
    all.push(attempt("a tenant in a form", form, Tenant));
    all.extend(in_json(
        &[
            r#"{"tenantId":"t1","tenantId":"t2"}"#,
            r#"{"tenantId":["t2"]}"#,
            r#"{"tenantId":{"$ne":"t1"}}"#,
        ],
        Ambiguous,
    ));
    let twice = Request::get("/x/query?tenantId=t1&tenantId=t2");
    all.push(attempt("two tenants in the query", twice, Ambiguous));
    all
}

/// What readers of all kinds make of a request: frameworks, object mappers, query languages.
pub fn readers() -> Vec<Attempt> {
    let mut all = Vec::new();
    for target in [
        "/x/query?extravenueid=v9",
        "/x/query?EXTRAVENUEID=v9",
        "/x/query?metavenueids=v9",
        "/x/query?sharevenueid=v9",
        "/x/query?a=1;venue=v9",
        "/x/query?a=1;venues=v9",
        "/x/query?a=1;%76enue=v9",
        "/x/query?x=%26venue%3Dv9",
        "/x/query?targetVenue=v9",
        "/x/query?venueUuid=v9",
        "/x/query?venue_slug=v9",
        "/api/v1/venues?id=v9",
        "/api/v1/venues?ids=v1,v9",
        "/api/v1/venues/?ids[]=v1&ids[]=v9",
        "/api/v1/venues?ids[0]=v1&ids[1]=v9",
        "/api/v1/venues?filter[id]=v9",
        "/api/v1/venues?id[in]=v9",
        "/api/v1/venues?id[$ne]=v1",
        "/api/v1/venues?id__in=v9",
        "/x/venues;a=b/v9",
        "/x/e1;venueId=v9",
        "/x/venues(v9)",
        "/x/by-venue/v9",
        "/x/venueId/v9",
        "/x/venue_id/v9",
        "/x/%2576enues/v9",
        "/x/venue:v9",
        "/api/v1/venues/search?id=v9",
        "/x/query?q=venue:v9",
        "/x/query?filter=venue%20eq%20'v9'",
        "/x/query?filter=[%22venueId%22,%22=%22,%22v9%22]",
        "/x/query?field=venueId&value=v9",
        "/x/query?filter[0][field]=venueId&filter[0][value]=v9",
    ] {
        all.push(attempt(target, Request::get(target), Either));
    }
    all.extend(in_json(
        &[
            r#"{"extravenueid":"v9"}"#,
            r#"{"targetVenue":"v9"}"#,
            r#"{"venueUuid":"v9"}"#,
            r#"{"idVenue":"v9"}"#,
            r#"{"venue":{"data":{"type":"venues","id":"v9"}}}"#,
            r#"{"venue":{"connect":{"id":"v9"}}}"#,
            r#"{"venue":{"is":{"id":"v9"}}}"#,
            r#"{"venue":{"connectOrCreate":{"where":{"id":"v9"}}}}"#,
            r#"{"venues":{"some":{"id":"v9"}}}"#,
            r#"{"venues":{"set":["v9"]}}"#,
            r#"{"venues":{"0":"v9"}}"#,
            r#"{"venue":{"slug":"v9"}}"#,
            r#"{"venue":{"key":"v9"}}"#,
            r#"{"venue":{"value":"v9"}}"#,
            r#"{"venueData":{"id":"v9"}}"#,
            r#"{"venue":{"$in":["v9"]}}"#,
            r#"{"venue":{"$oid":"v9"}}"#,
            r#"{"venue":{"uuid":"v9"}}"#,
            r#"{"venueId__in":["v9"]}"#,
            r#"{"venueId_eq":"v9"}"#,
            r#"{"venues.0.id":"v9"}"#,
            r#"{"venues[0].id":"v9"}"#,
            r#"{"venue.id.0":"v9"}"#,
            r#"[{"op":"replace","path":"/venueId","value":"v9"}]"#,
            r#"[{"op":"replace","path":"/a/0/venue_id","value":"v9"}]"#,
            r#"[{"op":"add","path":"/venue","value":"v9"}]"#,
            r#"{"field":"venueId","op":"eq","value":"v9"}"#,
            r#"{"field":"venueId","equals":"v9"}"#,
            r#"{"filters":[["venueId","=","v9"]]}"#,
            r#"[["venueId","v9"]]"#,
            r#"{"query":"{ events(venueId:\"v9\"){id} }"}"#,
            r#"{"query":"{ venue(id:\"v9\"){name} }"}"#,
            r#"{"query":"query($v:ID!){venue(id:$v){name}}","variables":{"v":"v9"}}"#,
            r#"{"where":"venue_id = 'v9'"}"#,
        ],
        Either,
    ));
    let untyped = Request::post("/x/body").body("venueId=v9");
    all.push(attempt("no Content-Type, a form", untyped, Unclear));
    let empty = typed("", "venueId=v9");
    all.push(attempt("an empty Content-Type, a form", empty, Unclear));
    let text = r#"{"venueId":"v9"}"#;
    for (one, other) in [
        ("application/json", "text/plain"),
        ("text/plain", "application/json"),
        ("application/json", "application/json"),
        ("image/png", "application/x-www-form-urlencoded"),
    ] {
        let twice = Request::post("/x/body")
            .header("Content-Type", one)
            .header("content-type", other);
        let what = format!("{one} and {other}");
        all.push(attempt(what, twice.body(text), Ambiguous));
    }
    for name in ["X-Device-Venue-ID", "Content-Venue-ID", "Accept-Venue"] {
        let request = Request::get("/x/header").header(name, "v9");
        all.push(attempt(name, request, Either));
    }
    for cookie in [
        "venueId=v9",
        "a=b; current_venue=v9",
        "a=1%3Bvenue=v9",
        "c=j:{\"venueId\":\"v9\"}",
    ] {
        let request = Request::get("/cookie/x").header("Cookie", cookie);
        all.push(attempt(format!("Cookie: {cookie}"), request, Either));
    }
    for (name, value) in [
        ("X-Venue", "v9"),
        ("X-Target-Venue-ID", "v9"),
        ("X-Filter", "venueId=v9"),
        ("X-Filter", "{\"venueId\":\"v9\"}"),
    ] {
        let request = Request::get("/fields/x").header(name, value);
        all.push(attempt(format!("{name}: {value}"), request, Either));
    }
    all.extend(in_json(
        &[r#"{"tenants":["t2"]}"#, r#"{"targetTenantId":"t2"}"#],
        Tenant,
    ));
    all.extend(in_json(
        &[
            r#"{"imageable_type":"Venue","imageable_id":"v9"}"#,
            r#"{"resourceType":"venue","resourceId":"v9"}"#,
        ],
        Either,
    ));
    let many = format!(
        r#"{{"type":"venues",{}"id":"v9"}}"#,
        r#""id":"v1","#.repeat(2000)
    );
    all.push(attempt("the last of many ids", json_body(many), Either));
    let api = typed(
        "application/vnd.api+json",
        r#"{"data":{"type":"venues","id":"v9"}}"#,
    );
    all.push(attempt("a resource of JSON:API", api, Either));
    let collection = |body: &str| {
        Request::post("/api/v1/venues")
            .header("Content-Type", "application/json")
            .body(body)
    };
    for body in [
        r#"{"id":"v9"}"#,
        r#"{"ids":["v9"]}"#,
        r#"[{"id":"v9"}]"#,
        r#"{"data":{"type":"venues","id":"v9"}}"#,
        r#"{"items":[{"id":"v9"}]}"#,
        r#"{"filter":{"id":"v9"}}"#,
    ] {
        all.push(attempt(
            format!("to the collection: {body}"),
            collection(body),
            Either,
        ));
    }
    all
}

fn json_that_is_none() -> Vec<Attempt> {
    // Sixty documents, each in a text of the one around it.
    let nested = &include_str!("../../../fuzz/corpus/json/nested_60")[1..];
    let mut all = in_json(
        &[
            nested,
            r#"{"venueId":"v1",}"#,
            r#"{"venueId":"v9",}"#,
            r#"{"a":[1,],"venueId":"v9"}"#,
            r#"{/* "x" */"venueId":"v9"}"#,
            "{\"venueId\":\"v1\"} // \n",
            "{\"venueId\":\"v1\" # \n}",
            r#"{"venueId":"v1"}{"venueId":"v9"}"#,
            r#"{"venueId":"v1"} {"venueId":"v9"}"#,
            "{\"venueId\":\"v1\"}\n{\"venueId\":\"v9\"}",
            "{\"venueId\":\"v1\"}\0",
            r#"{"venueId":"v1"}x"#,
            r#"{venueId:"v9"}"#,
            r#"{'venueId':'v9'}"#,
            r#"{"venueId":"v1","a":NaN}"#,
            r#"{"venueId":"v1","a":Infinity}"#,
            r#"{"venueId":"v1","a":+1}"#,
            r#"{"venueId":"v1","a":0x10}"#,
            r#"{"venueId":"v1","a":01}"#,
            r#"{"venueId":"v1","a":.5}"#,
            r#"{"venueId":"v1","a":"\ud800"}"#,
            r#"{"venueId\ud800":"v9"}"#,
            r#"{"venueId":"v1\udfff"}"#,
            r#"{"venueId":"v1","a":"\x41"}"#,
            "{\"venueId\":\"v1\",\"a\":\"\n\"}",
            r#"{"venueId":"v1""#,
            r#"{"venueId":"v9"#,
            r#"{"venueId"}"#,
            r#"{"venueId":"v1"]"#,
            "\u{feff}{\"venueId\":\"v9\"}",
            "\u{feff}{\"venueId\":\"v1\"}",
            "\u{a0}{\"venueId\":\"v9\"}",
            "\u{b}{\"venueId\":\"v9\"}",
            ")]}',\n{\"venueId\":\"v9\"}",
            "venueId=v9",
        ],
        Ambiguous,
    );
    let text = r#"{"venueId":"v9"}"#;
    let wide =
        |bytes: fn(u16) -> [u8; 2]| -> Vec<u8> { text.encode_utf16().flat_map(bytes).collect() };
    let bodies: [(&str, Vec<u8>); 8] = [
        ("UTF-16LE", wide(u16::to_le_bytes)),
        ("UTF-16BE", wide(u16::to_be_bytes)),
        (
            "UTF-16 with BOM",
            [vec![0xff, 0xfe], wide(u16::to_le_bytes)].concat(),
        ),
        (
            "UTF-32",
            text.chars()
                .flat_map(|c| u32::from(c).to_be_bytes())
                .collect(),
        ),
        (
            "a broken byte in a value",
            b"{\"venueId\":\"v1\xff\"}".into(),
        ),
        (
            "a broken byte elsewhere",
            b"{\"venueId\":\"v1\",\"a\":\"\xc0\xaf\"}".into(),
        ),
        (
            "an overlong letter in a name",
            b"{\"\xc1\xb6enueId\":\"v9\"}".into(),
        ),
        (
            "a surrogate in UTF-8",
            b"{\"venueId\":\"v1\xed\xa0\x80\"}".into(),
        ),
    ];
    for (what, body) in bodies {
        all.push(attempt(what, json_body(body), Ambiguous));
    }
    let deep = |depth: usize, inner: &str| {
        let (open, close) = (r#"{"a":"#.repeat(depth), "}".repeat(depth));
        format!("{open}{inner}{close}")
    };
    let lists = |depth: usize| format!("{}{text}{}", "[".repeat(depth), "]".repeat(depth));
    for (what, body, verdict) in [
        ("100 objects deep", deep(100, text), Stranger),
        ("100 lists deep", lists(100), Stranger),
        ("200 objects deep", deep(200, text), Ambiguous),
        (
            "200 objects deep, own",
            deep(200, r#"{"venueId":"v1"}"#),
            Ambiguous,
        ),
        ("10,000 lists deep", lists(10_000), Ambiguous),
    ] {
        all.push(attempt(what, json_body(body), verdict));
    }
    all
}

fn types_of_bodies() -> Vec<Attempt> {
    let text = r#"{"venueId":"v9"}"#;
    let mut all = Vec::new();
    let types = [
        "APPLICATION/JSON",
        "application/json;charset=UTF-8",
        "application/json ; charset=\"utf-8\"",
        "application/json; charset=us-ascii",
        "application/json; boundary=x; venueId=v1",
        "text/json",
        "application/vnd.api+json",
        "application/merge-patch+json",
        "application/problem+json",
        "application/x-json",
        "text/plain",
        "text/plain; x=application/json",
        "application/octet-stream",
        "application/x-ndjson",
        "json",
    ];
    for content_type in types {
        all.push(attempt(content_type, typed(content_type, text), Stranger));
        let padded = typed(content_type, format!(" \r\n\t[{text}]"));
        let what = format!("{content_type}, a list behind white space");
        all.push(attempt(what, padded, Stranger));
    }
    let untyped = Request::post("/x/body").body(text);
    all.push(attempt("no Content-Type", untyped, Stranger));
    let empty = typed("", text);
    all.push(attempt("an empty Content-Type", empty, Unclear));
    for content_type in [
        "application/json, text/plain",
        "text/html",
        "*/*",
        "application/xml",
        "application/graphql",
        "application/cbor",
        "multipart/mixed; boundary=B",
    ] {
        let request = typed(content_type, text);
        all.push(attempt(content_type, request, Unsupported));
    }
    for charset in [
        "utf-16",
        "UTF-16LE",
        "utf-32",
        "utf-7",
        "iso-8859-1",
        "\"utf-16\"",
        "ibm037",
    ] {
        let request = typed(&format!("application/json; charset={charset}"), text);
        all.push(attempt(format!("charset={charset}"), request, Unsupported));
    }
    for coding in [
        "gzip",
        "GZIP",
        "x-gzip",
        "deflate",
        "br",
        "zstd",
        "identity, gzip",
        "gzip, identity",
    ] {
        let request = json_body(GZIP).header("Content-Encoding", coding);
        all.push(attempt(
            format!("Content-Encoding: {coding}"),
            request,
            Unsupported,
        ));
    }
    let twice = json_body(GZIP)
        .header("Content-Encoding", "identity")
        .header("Content-Encoding", "gzip");
    all.push(attempt("two Content-Encodings", twice, Unsupported));
    let plain = json_body(text).header("Content-Encoding", "identity");
    all.push(attempt("Content-Encoding: identity", plain, Stranger));
    all
}

/// `{"venueId":"v9"}`
const GZIP: [u8; 36] = [
    31, 139, 8, 0, 0, 0, 0, 0, 2, 255, 171, 86, 42, 75, 205, 43, 77, 245, 76, 81, 178, 82, 42, 179,
    84, 170, 5, 0, 42, 66, 86, 189, 16, 0, 0, 0,
];

fn forms() -> Vec<Attempt> {
    const FORM: &str = "application/x-www-form-urlencoded";
    let mut all = Vec::new();
    for (body, verdict) in [
        ("venueId=v9", Stranger),
        ("a=b&venue_id=v9", Stranger),
        ("venue%49d=%76%39", Stranger),
        ("VENUEID=v9", Stranger),
        ("venueIds=v1,v9", Stranger),
        ("venueIds%5B%5D=v1&venueIds%5B%5D=v9", Stranger),
        ("event[venueId]=v9", Stranger),
        ("filter=%7B%22venueId%22%3A%22v9%22%7D", Stranger),
        ("venueId=v1&venueId=v9", Ambiguous),
        ("venueId=v1&venue_id=v1", Ambiguous),
        ("venueId[$ne]=v1", Ambiguous),
        ("a=1;venueId=v9", Ambiguous),
        ("x=%26venueId%3Dv9", Ambiguous),
        ("venue%2549d=v9", Ambiguous),
        (r#"{"a":"&venueId=v9&b="}"#, Either),
        (r#"["&venueId=v9&"]"#, Either),
        ("[venueId]=v9", Either),
        (r#"{"venueId":"v9"}"#, Either),
        (r#" {"venueId":"v9"}"#, Either),
        ("\r\nvenueId=v9", Either),
    ] {
        all.push(attempt(format!("form {body}"), typed(FORM, body), verdict));
    }
    for content_type in [
        "Application/X-WWW-Form-Urlencoded",
        "application/x-www-form-urlencoded;charset=UTF-8",
        "application/x-www-form-urlencoded ; a=b",
    ] {
        let request = typed(content_type, "venueId=v9");
        all.push(attempt(content_type, request, Stranger));
    }
    let charset = typed(
        "application/x-www-form-urlencoded; charset=utf-16",
        "venueId=v9",
    );
    all.push(attempt("a form in UTF-16", charset, Unsupported));
    let parts = "--B\r\nContent-Disposition: form-data; name=\"venueId\"\r\n\r\nv9\r\n--B--\r\n";
    for content_type in [
        "multipart/form-data; boundary=B",
        "Multipart/Form-Data; boundary=\"B\"",
        "multipart/form-data",
        "multipart/form-data;boundary=B; charset=utf-8",
    ] {
        let request = typed(content_type, parts);
        all.push(attempt(content_type, request, Unsupported));
    }
    all
}

fn framings() -> Vec<Attempt> {
    let text = r#"{"venueId":"v9"}"#;
    let mut all = Vec::new();
    for method in ["GET", "DELETE", "HEAD", "PUT", "PATCH"] {
        let request = Request::method(method, "/x/body")
            .header("Content-Type", "application/json")
            .body(text);
        all.push(attempt(format!("{method} with a body"), request, Stranger));
    }
    let json = || Request::post("/x/body").header("Content-Type", "application/json");
    let chunks = |size: usize| -> Vec<Vec<u8>> {
        text.as_bytes().chunks(size).map(<[u8]>::to_vec).collect()
    };
    all.push(attempt("one chunk", json().chunked(chunks(100)), Stranger));
    all.push(attempt(
        "chunks of one byte",
        json().chunked(chunks(1)),
        Stranger,
    ));
    let get = Request::get("/x/body").chunked(chunks(3));
    all.push(attempt("GET with chunks, without a type", get, Stranger));
    let split = json().chunked(vec![r#"{"venueId":"v"#, r#"9"}"#]);
    all.push(attempt("the venue in two chunks", split, Stranger));
    let broken = json().chunked(vec![r#"{"venueId":"v1"}"#, r#"{"venueId":"v9"}"#]);
    all.push(attempt("two documents in two chunks", broken, Ambiguous));
    let gzip = json()
        .header("Content-Encoding", "gzip")
        .chunked(vec![GZIP]);
    all.push(attempt("gzip in chunks", gzip, Unsupported));
    let old = json().http_1_0().body(text);
    all.push(attempt("HTTP/1.0 with a body", old, Stranger));
    for (what, size) in [
        ("64 KiB", 65_536),
        ("64 KiB and a byte", 65_537),
        ("70 KB", 70_000),
        ("1 MiB", 1 << 20),
        ("9 MiB", 9 << 20),
    ] {
        let body = ending_in_v9(size);
        assert_eq!(body.len(), size);
        let request = json().body(body.clone());
        all.push(attempt(
            format!("{what}, at the very end"),
            request,
            Stranger,
        ));
        let request = json().chunked(body.chunks(60_000).collect());
        let what = format!("{what} in chunks, at the very end");
        all.push(attempt(what, request, Stranger));
    }
    let late = [ending_in_v9(100_000), b",".into()].concat();
    all.push(attempt(
        "100 KB that end in a comma",
        json().body(late),
        Ambiguous,
    ));
    let mut list = br#"{"venueIds":["v9""#.to_vec();
    list.extend(br#","v1""#.repeat(40_000));
    list.extend(b"]}");
    all.push(attempt(
        "at the beginning of 200 KB",
        json().body(list),
        Stranger,
    ));
    let form = format!("a={}&venueId=v9", "x".repeat(100_000));
    let form = typed("application/x-www-form-urlencoded", form);
    all.push(attempt("a form of 100 KB", form, Stranger));
    let text = typed("text/plain", format!("{}{text}", " ".repeat(100_000)));
    all.push(attempt(
        "text that begins like JSON after 100 KB",
        text,
        Stranger,
    ));
    all
}

/// An object of so many bytes whose last value is the venue.
fn ending_in_v9(size: usize) -> Vec<u8> {
    let (front, back) = (r#"{"filler":""#, r#"","venueId":"v9"}"#);
    let filler = "x".repeat(size - front.len() - back.len());
    format!("{front}{filler}{back}").into_bytes()
}
