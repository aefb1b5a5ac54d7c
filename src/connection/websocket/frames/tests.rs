use super::*;

const CLIENT: Rules = Rules {
    of: Side::Client,
    deflate: false,
    largest: 70_000,
};
const SERVER: Rules = Rules {
    of: Side::Server,
    ..CLIENT
};

fn frame(first: u8, length: usize, masked: bool) -> Vec<u8> {
    let bit = if masked { 0x80 } else { 0 };
    let mut frame = vec![first];
    match length {
        0..126 => frame.push(bit | length as u8),
        126..65_536 => {
            frame.push(bit | 126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            frame.push(bit | 127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    if masked {
        frame.extend_from_slice(&[1, 2, 3, 4]);
    }
    frame.resize(frame.len() + length, 0xc1);
    frame
}

#[test]
fn frames_pass_in_whatever_pieces_they_come() {
    let mut stream = Vec::new();
    let mut ends = vec![0];
    for (first, length) in [
        (0x82, 0),
        (0x81, 125),
        (0x02, 126),
        (0x89, 5),
        (0x00, 65_535),
        (0x80, 65_536),
        (0x8a, 125),
        (0x82, 70_000),
    ] {
        stream.extend(frame(first, length, true));
        ends.push(stream.len());
    }
    for size in [1, 2, 3, 7, 13, 4096, 65_537, stream.len()] {
        let mut frames = Frames::new(CLIENT);
        let (mut at, mut held) = (0, 0);
        while at < stream.len() {
            let end = (at + held + size).min(stream.len());
            let (passed, fault) = frames.walk(&stream[at..end], Rest::Hold);
            assert_eq!(fault, None, "{at} in pieces of {size}");
            held = end - at - passed;
            assert!(held < LONGEST_HEADER, "{held} held at {at}");
            at += passed;
            assert_eq!(frames.is_between(), ends.contains(&at), "at {at} of {size}");
        }
    }
}

#[test]
fn what_passes_only_in_part_is_followed_from_there() {
    let mut stream = frame(0x82, 300, true);
    stream.extend(frame(0x82, 10, true));
    for cut in 0..stream.len() {
        let mut frames = Frames::new(CLIENT);
        assert_eq!(frames.walk(&stream[..cut], Rest::Pass), (cut, None));
        let rest = &stream[cut..];
        assert_eq!(frames.walk(rest, Rest::Hold), (rest.len(), None), "{cut}");
        assert!(frames.is_between());
    }
}

#[test]
fn what_is_no_frame_does_not_pass_and_what_stood_before_it_does() {
    let good = frame(0x82, 10, true);
    let bad: &[(&str, Vec<u8>, Fault)] = &[
        ("not masked", frame(0x82, 10, false), Fault::Protocol),
        ("RSV1", frame(0xc2, 10, true), Fault::Protocol),
        ("RSV2", frame(0xa2, 10, true), Fault::Protocol),
        ("RSV3", frame(0x92, 10, true), Fault::Protocol),
        ("opcode 3", frame(0x83, 10, true), Fault::Protocol),
        ("opcode 11", frame(0x8b, 10, true), Fault::Protocol),
        ("a ping in pieces", frame(0x09, 10, true), Fault::Protocol),
        ("a long ping", frame(0x89, 126, true), Fault::Protocol),
        (
            "nothing to continue",
            frame(0x80, 10, true),
            Fault::Protocol,
        ),
        ("a Close of one byte", frame(0x88, 1, true), Fault::Protocol),
        (
            "a longer length than need be",
            vec![0x82, 0xfe, 0, 125, 1, 2, 3, 4],
            Fault::Protocol,
        ),
        (
            "the same of eight bytes",
            vec![0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 1, 2, 3, 4],
            Fault::Protocol,
        ),
        (
            "a negative length",
            vec![0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0],
            Fault::Protocol,
        ),
        ("too large", frame(0x82, 70_001, true), Fault::TooLarge),
        (
            "the largest of all",
            vec![0x82, 0xff, 0x7f, 255, 255, 255, 255, 255, 255, 255],
            Fault::TooLarge,
        ),
    ];
    for (what, bytes, fault) in bad {
        let mut frames = Frames::new(CLIENT);
        let stream = [&good[..], bytes].concat();
        assert_eq!(
            frames.walk(&stream, Rest::Hold),
            (good.len(), Some(*fault)),
            "{what}"
        );
    }
    let mut frames = Frames::new(CLIENT);
    let twice = [frame(0x01, 3, true), frame(0x01, 3, true)].concat();
    let (passed, fault) = frames.walk(&twice, Rest::Hold);
    assert_eq!((passed, fault), (twice.len() / 2, Some(Fault::Protocol)));
    let masked = frame(0x82, 10, true);
    assert_eq!(
        Frames::new(SERVER).walk(&masked, Rest::Hold),
        (0, Some(Fault::Protocol))
    );
}

#[test]
fn compressed_messages_pass_where_that_was_agreed_on() {
    let rules = Rules {
        deflate: true,
        ..CLIENT
    };
    let good = [
        frame(0x41, 3, true),
        frame(0x89, 0, true),
        frame(0x80, 3, true),
    ]
    .concat();
    assert_eq!(
        Frames::new(rules).walk(&good, Rest::Hold),
        (good.len(), None)
    );
    for bad in [0xc8, 0xc9] {
        let bad = frame(bad, 4, true);
        assert_eq!(
            Frames::new(rules).walk(&bad, Rest::Hold).1,
            Some(Fault::Protocol)
        );
    }
    let continued = [frame(0x41, 3, true), frame(0xc0, 3, true)].concat();
    assert_eq!(
        Frames::new(rules).walk(&continued, Rest::Hold).1,
        Some(Fault::Protocol)
    );
}

#[test]
fn the_code_of_a_close_is_read_and_nothing_passes_behind_it() {
    for (rules, mask) in [(CLIENT, Some([9, 8, 7, 6])), (SERVER, None)] {
        for size in [1, 2, 100] {
            let mut stream = close(4321, "because", mask);
            let end = stream.len();
            stream.extend_from_slice(b"anything");
            let mut frames = Frames::new(rules);
            let mut at = 0;
            while frames.closed().is_none() {
                let data = &stream[at..(at + LONGEST_HEADER + size).min(stream.len())];
                let (passed, fault) = frames.walk(data, Rest::Hold);
                assert_eq!(fault, None);
                at += passed;
            }
            assert_eq!((frames.closed(), at), (Some(4321), end));
            assert_eq!(frames.walk(&stream[at..], Rest::Hold), (0, None));
        }
    }
    let mut frames = Frames::new(SERVER);
    assert_eq!(frames.walk(&[0x88, 0], Rest::Hold), (2, None));
    assert_eq!(frames.closed(), Some(NO_STATUS));
}
