use super::*;

type Reads = fn(&[u8], bool, &mut Named) -> Result<(), Ambiguous>;

#[track_caller]
fn venues(read: Reads, text: &str) -> Result<String, Ambiguous> {
    let mut named = Named::default();
    read(text.as_bytes(), false, &mut named)?;
    Ok(named.venues().collect::<Vec<_>>().join(" "))
}

#[test]
fn a_query_names_venues_in_many_ways() {
    for (query, expected) in [
        ("page=2&limit=10", ""),
        ("venueId=v1", "v1"),
        ("Venue_ID=v1&x=2", "v1"),
        ("%76enueId=v%31", "v1"),
        ("venue=v1", "v1"),
        ("venueIds=v1,v2", "v1 v2"),
        ("venueIds[]=v1&venueIds[]=v2", "v1 v2"),
        ("venueIds%5B0%5D=v1&venueIds%5B1%5D=v2", "v1 v2"),
        ("venues[0][id]=v1&venues[1][id]=v2", "v1 v2"),
        ("filter[venueId]=v1", "v1"),
        ("filter.venue.id=v1", "v1"),
        ("fromVenueId=v1&toVenueId=v2", "v1 v2"),
        (r#"filter={"venueId":"v1"}"#, "v1"),
        ("sort=venueId", ""),
        ("fields=id,venueId,name", ""),
        ("venueId=", ""),
        ("q=adventure", ""),
        ("targetVenue=v1&revenue=10&avenue=5th&minRevenue=3", "v1"),
        ("areVenue=v1", "v1"),
        ("q={not json", ""),
    ] {
        assert_eq!(venues(in_form, query).as_deref(), Ok(expected), "{query}");
    }
}

#[test]
fn a_query_that_two_readers_read_differently_is_refused() {
    for query in [
        "venueId=v1&venueId=v2",
        "venueId=v1&venue_id=v1",
        "venueId=v1&venueId[]=v2",
        "venueId[$ne]=v1",
        "venueId[in][]=v1",
        "venue[name]=x",
        "%2576enueId=v1",
        "filter=venueId:v1",
        "filter=venueId eq 'v1'",
        r#"filter={"venueId":"v1""#,
        r#"filter={"venueId":{"$ne":"v1"}}"#,
        "a=1;venueId=v2",
        "venueId__in=v1",
        "venue[id=v1",
        "venueId.gte=v1",
    ] {
        assert!(venues(in_form, query).is_err(), "{query}");
    }
}

#[test]
fn json_names_venues_at_every_depth() {
    for (json, expected) in [
        (r#"{}"#, ""),
        (r#"[1,"a",null,true,1.5]"#, ""),
        (r#"{"venueId":"v1"}"#, "v1"),
        (r#"{"\u0076enueId":"v1"}"#, "v1"),
        (r#"{"venue-id\u0000":"v1"}"#, "v1"),
        (r#"{"venueId":42}"#, "42"),
        (r#"{"venueId":null,"name":"x"}"#, ""),
        (r#"[[{"a":[{"venue_id":"v1"}]}],{"venueId":"v2"}]"#, "v1 v2"),
        (r#"{"venueIds":["v1",7]}"#, "v1 7"),
        (r#"{"venue":{"id":"v1","owner":{"id":"u1"}}}"#, "v1"),
        (r#"{"venues":[{"id":"v1"},"v2"]}"#, "v1 v2"),
        (r#"{"venue":{"name":"x","parent":{"venueId":"v2"}}}"#, "v2"),
        (r#"{"a":{"venueId":"v1"},"a":{"venueId":"v2"}}"#, "v1 v2"),
        (r#"{"payload":"{\"venueId\":\"v1\"}"}"#, "v1"),
        (r#"{"note":"{venues welcome"}"#, ""),
        (r#"{"venue":{"connect":{"id":"v1"}}}"#, "v1"),
        (r#"{"venue":{"data":{"type":"venues","id":"v1"}}}"#, "v1"),
        (r#"{"venues.0.id":"v1"}"#, "v1"),
        (r#"{"targetVenue":"v1","revenue":5}"#, "v1"),
        (r#"{"sort":"venueId","fields":["id","venueId"]}"#, ""),
        (r#"{"note":"the venue is great: come"}"#, ""),
    ] {
        assert_eq!(venues(in_json, json).as_deref(), Ok(expected), "{json}");
    }
}

#[test]
fn json_that_two_readers_read_differently_is_refused() {
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    for json in [
        r#"{"venueId":"v1","venueId":"v2"}"#,
        r#"{"venueId":"v1","\u0076enue_id":"v1"}"#,
        r#"{"venueId":["v1"]}"#,
        r#"{"venueId":{"$ne":"v1"}}"#,
        r#"{"venueId":true}"#,
        r#"{"venueId":1.5}"#,
        r#"{"venue":{"id":"v1","_id":"v2"}}"#,
        r#"{"venueIds":[["v1"]]}"#,
        r#"{"payload":"{\"venueId\":{\"$ne\":1}}"}"#,
        r#"{"payload":"{\"venueId\":\"v1\""}"#,
        r#"{"venueId":"v1"} {"venueId":"v2"}"#,
        r#"{"venueId":"v1",}"#,
        "\u{feff}{}",
        r#"{"venueId":9007199254740993}"#,
        r#"{"venue":{"$in":["v1"]}}"#,
        r#"{"venueId__in":["v1"]}"#,
        r#"[{"op":"replace","path":"/venueId","value":"v1"}]"#,
        r#"{"field":"venueId","op":"eq","value":"v1"}"#,
        r#"{"query":"{ events(venueId:\"v1\"){id} }"}"#,
        r#"{"a":"\ud800"}"#,
        r#"{"a":NaN}"#,
        &deep,
    ] {
        assert!(venues(in_json, json).is_err(), "{json}");
    }
}

#[test]
fn where_venues_are_spoken_of_a_plain_id_is_one() {
    for (json, expected) in [
        (r#"{"ids":["v1"],"id":"v2"}"#, "v1 v2"),
        (r#"[{"id":"v1"}]"#, "v1"),
        (
            r#"{"data":{"type":"venues","id":"v1"},"owner":{"id":"u1"}}"#,
            "v1",
        ),
    ] {
        let mut named = Named::default();
        in_json(json.as_bytes(), true, &mut named).unwrap();
        assert_eq!(
            named.venues().collect::<Vec<_>>().join(" "),
            expected,
            "{json}"
        );
    }
    let mut named = Named::default();
    in_form(b"id=v1&ids=v2,v3&page=1", true, &mut named).unwrap();
    assert_eq!(named.venues().count(), 3);
}

#[test]
fn tenants_are_found_too() {
    let mut named = Named::default();
    in_json(
        br#"{"tenantId":"t1","a":{"tenant_id":"t2"}}"#,
        false,
        &mut named,
    )
    .unwrap();
    in_form(b"tenant=t3", false, &mut named).unwrap();
    assert_eq!(named.tenants.len(), 3);
}

#[test]
fn a_segment_announces_a_venue_in_many_ways() {
    for segment in [
        "venues",
        "Venue",
        "venues;x=1",
        "venueId",
        "by-venue",
        "venue-id",
    ] {
        assert!(announces_venue(segment), "{segment}");
    }
    for segment in ["avenues", "revenue", "events", "venuesque"] {
        assert!(!announces_venue(segment), "{segment}");
    }
    for segment in ["venues(v9)", "e1;venueId=v9", "venue=v9", "e1;venue%49d=v9"] {
        assert!(check_segment(segment).is_err(), "{segment}");
    }
    assert!(check_segment("e1;version=2").is_ok());
}

#[test]
fn what_object_mappers_wrap_is_unwrapped() {
    for (json, expected) in [
        (r#"{"venue":{"is":{"id":"v1"}}}"#, "v1"),
        (
            r#"{"venue":{"connectOrCreate":{"where":{"id":"v1"}}}}"#,
            "v1",
        ),
        (r#"{"venues":{"set":["v1"]}}"#, "v1"),
        (r#"{"venues":{"0":"v1"}}"#, "v1"),
        (r#"{"venue":{"slug":"v1"}}"#, "v1"),
        (
            r#"{"venueData":{"id":"v1"},"venueName":"The Hall: great"}"#,
            "v1",
        ),
        (r#"{"venue1":"v1"}"#, "v1"),
        (r#"{"data":{"type":"venues","id":"v1"}}"#, "v1"),
        (r#"{"@id":"v1","@type":"Venue"}"#, "v1"),
        (r#"{"id":"e1","type":"event"}"#, ""),
        (
            r#"{"imageable_type":"Venue","imageable_id":"v1","id":"i1"}"#,
            "v1",
        ),
        (r#"{"resourceId":"v1","resourceType":"venue"}"#, "v1"),
        (r#"{"entity":"venue","entityId":"v1"}"#, "v1"),
        (r#"{"type":"venue","eventId":"e1"}"#, ""),
        (
            r#"{"venueAddress":{"id":"a7"},"venueManager":{"id":"u7"}}"#,
            "",
        ),
        (r#"{"extravenueid":"v1","totalRevenue":5}"#, "v1"),
        (r#"{"sort":"venueId:asc","orderBy":"venueId"}"#, ""),
        (r#"{"returnUrl":"https://app.test/a?venueId=v1"}"#, "v1"),
        (r#"{"about":"Venue: the hall. Our venue(s) are open."}"#, ""),
        (r#"{"venue":{"amenities":["bar"],"owner":{"id":"u1"}}}"#, ""),
    ] {
        assert_eq!(venues(in_json, json).as_deref(), Ok(expected), "{json}");
    }
    for json in [
        r#"{"field":"venueId","equals":"v1"}"#,
        r#"{"filters":[["venueId","=","v1"]]}"#,
        r#"[["venueId","v1"]]"#,
        r#"[{"op":"add","path":"/venue","value":"v1"}]"#,
        r#"{"query":"{ venue(id:\"v1\"){name} }"}"#,
    ] {
        assert!(venues(in_json, json).is_err(), "{json}");
    }
}

#[test]
fn conditions_in_a_query_are_refused_and_orders_are_not() {
    for query in [
        "field=venueId&value=v1",
        "filter[0][field]=venueId&filter[0][value]=v1",
        r#"filter=["venueId","=","v1"]"#,
        "q=venue:v1",
        "filter=venue eq 'v1'",
        "x=%26venue%3Dv1",
        "a=1;venue=v1",
        "EXTRAVENUEID[$ne]=v1",
    ] {
        assert!(venues(in_form, query).is_err(), "{query}");
    }
    for (query, expected) in [
        ("sort=venueId:asc", ""),
        ("redirect=https://x/a?venueId%3Dv1", "v1"),
        ("q=best venue in town", ""),
    ] {
        assert_eq!(venues(in_form, query).as_deref(), Ok(expected), "{query}");
    }
    let mut named = Named::default();
    for query in ["ids[$ne]=v1", "id__in=v1", "filter[id][in]=v1"] {
        assert!(
            in_form(query.as_bytes(), true, &mut named).is_err(),
            "{query}"
        );
    }
    in_form(b"ids[0]=v1&ids[1]=v2&filter[id]=v3", true, &mut named).unwrap();
    assert_eq!(named.venues().count(), 3);
}

#[test]
fn nothing_takes_longer_than_it_is_long() {
    let many = |name: fn(usize) -> String| (0..20_000).map(name).collect::<String>();
    let object = format!("{{{}\"z\":1}}", many(|i| format!("\"a{i}venueId\":null,")));
    let ids = format!(
        "{{{}\"type\":\"venue\"}}",
        many(|_| "\"id\":\"v1\",".to_owned())
    );
    let began = std::time::Instant::now();
    assert!(venues(in_json, &object).is_err());
    assert!(venues(in_json, &ids).is_err());
    assert!(venues(in_form, &many(|i| format!("a{i}venueId=&"))).is_err());
    for text in [
        "venue",
        "venue.",
        "venue\\\"",
        "venueid ",
        "avenue=",
        "%2576",
    ] {
        let _ = venues(in_json, &format!("{{\"a\":\"{}\"}}", text.repeat(20_000)));
        let _ = venues(in_form, &format!("a={}", text.repeat(20_000)));
    }
    let quotes = format!("{}{}", "venue".repeat(10_000), "'".repeat(50_000));
    assert_eq!(venues(in_form, &format!("a={quotes}")).as_deref(), Ok(""));
    assert!(began.elapsed() < std::time::Duration::from_secs(4));
    assert!(venues(in_json, r#"{"tenantId":{"$ne":"t1"}}"#).is_err());
    assert_eq!(
        venues(in_form, r#"filter="{\"venueId\":\"v1\"}""#).as_deref(),
        Ok("v1")
    );
}

/// An address with a document in its query, which holds a text that is such an address, and so on: written so that each
/// level costs a few bytes, not twice as many as the one within.
fn nested(levels: usize) -> String {
    let encoded = |byte: &str, times: usize| format!("%{}{byte}", "25".repeat(times));
    let brackets = 110;
    let mut text = String::new();
    for level in 0..levels {
        let mark = |byte| match level {
            0 => String::from(if byte == "3F" { "?" } else { "\"" }),
            level => encoded(byte, level - 1),
        };
        text += &format!(
            "/{}a={}{}",
            mark("3F"),
            "[".repeat(brackets),
            encoded("22", level)
        );
    }
    text += "x";
    for level in (0..levels).rev() {
        text += &encoded("22", level);
        text += &"]".repeat(brackets);
    }
    text
}

#[test]
fn documents_in_documents_end_somewhere() {
    let read = |levels: usize| {
        let body = format!(r#"{{"a":"{}"}}"#, nested(levels));
        let read = move || {
            (
                venues(in_json, &body),
                venues(in_form, &body[6..body.len() - 2]),
            )
        };
        // What a thread has that serves requests.
        let thread = std::thread::Builder::new().stack_size(2 << 20);
        thread.spawn(read).unwrap().join().unwrap()
    };
    assert_eq!(read(1).0.as_deref(), Ok(""));
    for levels in [5, 40, 150] {
        assert!(read(levels).0.is_err(), "{levels}");
    }
    let semicolons = format!("a;b=/?{}c;d", "x=/%3F;".repeat(10_000));
    assert!(venues(in_form, &semicolons).is_ok());
}
