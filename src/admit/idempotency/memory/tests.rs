use super::*;

const ROOM: Bounds = Bounds {
    all: 10_000,
    each: 10_000,
};

fn name(n: u8) -> Name {
    Name::from_bytes(&[n; 32]).unwrap()
}

fn running(run: &str) -> String {
    format!("running f {run} 9000")
}

fn claim(memory: &mut Memory, n: u8, run: &str, now: i64) -> Result<Bytes, Away> {
    claim_of(memory, 1, n, run, now)
}

fn claim_of(memory: &mut Memory, who: u64, n: u8, run: &str, now: i64) -> Result<Bytes, Away> {
    memory.claim(&name(n), Owner(who), running(run), now + 1000, now)
}

fn conclude(memory: &mut Memory, n: u8, run: &str, record: &[u8], end: i64) {
    let short = b"unkept f 201".to_vec();
    memory.conclude(&name(n), run, record.to_vec().into(), short, end);
}

fn take_over(memory: &mut Memory, writes: Vec<Carried>) {
    for write in writes {
        memory.take_over(write).unwrap();
    }
}

#[test]
fn the_first_has_it_until_its_end_and_what_it_says_stays_for_its_life() {
    let mut memory = Memory::new(ROOM);
    assert_eq!(claim(&mut memory, 1, "a", 0), Ok(Bytes::new()));
    assert_eq!(claim(&mut memory, 1, "b", 1), Ok(running("a").into()));
    conclude(&mut memory, 1, "b", b"done by b", 5000);
    assert_eq!(claim(&mut memory, 1, "b", 2), Ok(running("a").into()));
    conclude(&mut memory, 1, "a", b"done by a", 5000);
    conclude(&mut memory, 1, "a", b"again", 5000);
    assert_eq!(claim(&mut memory, 1, "b", 4999), Ok("done by a".into()));
    assert_eq!(claim(&mut memory, 1, "b", 5000), Ok(Bytes::new()));
}

#[test]
fn what_was_not_done_may_run_again() {
    let mut memory = Memory::new(ROOM);
    claim(&mut memory, 1, "a", 0).unwrap();
    conclude(&mut memory, 1, "a", b"", 5000);
    assert_eq!((memory.used, memory.shares.len()), (0, 0));
    assert_eq!(claim(&mut memory, 1, "b", 1), Ok(Bytes::new()));
}

#[test]
fn a_full_memory_takes_no_more_and_forgets_none() {
    let all = 2 * (OVERHEAD + running("a").len());
    let mut memory = Memory::new(Bounds { all, each: all });
    for n in [1, 2] {
        assert_eq!(claim(&mut memory, n, "a", 0), Ok(Bytes::new()));
    }
    assert_eq!(claim(&mut memory, 3, "a", 1), Err(Away));
    conclude(&mut memory, 1, "a", &[b'x'; 5000], 9000);
    assert_eq!(claim(&mut memory, 1, "b", 2), Ok("unkept f 201".into()));
    assert_eq!(claim(&mut memory, 2, "b", 2), Ok(running("a").into()));
    // The time of the second is over.
    assert_eq!(claim(&mut memory, 3, "a", 2000), Ok(Bytes::new()));
    assert_eq!(memory.entries.len(), memory.by_end.len());
}

#[test]
fn who_has_filled_his_share_leaves_the_others_theirs() {
    let one = OVERHEAD + running("a").len();
    let mut memory = Memory::new(Bounds {
        all: 100 * one,
        each: 4 * one,
    });
    claim(&mut memory, 1, "a", 0).unwrap();
    conclude(&mut memory, 1, "a", &vec![b'x'; one], 9000);
    claim(&mut memory, 2, "a", 0).unwrap();
    conclude(&mut memory, 2, "a", &vec![b'x'; 2 * one], 9000);
    assert_eq!(
        claim(&mut memory, 2, "b", 1),
        Ok("unkept f 201".into()),
        "half is for answers"
    );
    claim(&mut memory, 3, "a", 1).unwrap();
    assert_eq!(claim(&mut memory, 4, "a", 1), Err(Away));
    assert_eq!(claim_of(&mut memory, 2, 4, "a", 1), Ok(Bytes::new()));
    // All are known still, and what has had its time makes room.
    assert_eq!(claim(&mut memory, 3, "b", 1), Ok(running("a").into()));
    assert_eq!(claim(&mut memory, 5, "a", 1001), Ok(Bytes::new()));
}

#[test]
fn the_next_process_knows_all_of_it_and_what_ends_meanwhile() {
    let (mut old, mut new) = (Memory::new(ROOM), Memory::new(ROOM));
    for n in [1, 2, 3] {
        claim(&mut old, n, "a", 0).unwrap();
    }
    take_over(&mut new, old.hand_over());
    assert_eq!(
        claim(&mut old, 4, "a", 1),
        Err(Away),
        "the new one may be at it"
    );
    assert_eq!(claim(&mut old, 1, "b", 1), Ok(running("a").into()));
    assert_eq!(claim(&mut new, 1, "b", 1), Ok(running("a").into()));
    assert!(!old.has_ends());
    conclude(&mut old, 1, "a", b"done \xff", 5000);
    conclude(&mut old, 2, "a", b"", 5000);
    assert!(old.has_ends());
    take_over(&mut new, old.take_ends());
    assert!(!old.has_ends());
    assert_eq!(
        claim(&mut old, 5, "a", 1),
        Err(Away),
        "nobody would hear of it"
    );
    let done = Bytes::from_static(b"done \xff");
    assert_eq!(claim(&mut new, 1, "b", 1), Ok(done));
    assert_eq!(claim(&mut new, 2, "b", 1), Ok(Bytes::new()));
    assert_eq!(claim(&mut new, 3, "b", 1), Ok(running("a").into()));
}

#[test]
fn after_an_upgrade_that_failed_writes_begin_at_once_and_until_the_next_one_hands_over() {
    let mut old = Memory::new(ROOM);
    old.hand_over();
    assert_eq!(claim(&mut old, 1, "a", 1), Err(Away));
    old.goes_on();
    assert_eq!(claim(&mut old, 1, "a", 1), Ok(Bytes::new()));
}

#[test]
fn an_end_counts_for_its_own_run_alone_and_what_has_had_its_time_is_not_told() {
    let (mut old, mut new) = (Memory::new(ROOM), Memory::new(ROOM));
    claim(&mut old, 1, "a", 0).unwrap();
    claim(&mut old, 2, "a", 0).unwrap();
    conclude(&mut old, 2, "a", b"done by a", 500);
    take_over(&mut new, old.hand_over());
    // The life of both is over, in both processes; the new one has run both again.
    claim(&mut new, 1, "b", 2000).unwrap();
    conclude(&mut new, 1, "b", b"done by b", 9000);
    claim(&mut new, 2, "b", 2000).unwrap();
    conclude(&mut old, 1, "a", b"done by a", 9000);
    old.drop_ended(2000);
    let told = old.take_ends();
    assert_eq!(told.len(), 1);
    take_over(&mut new, told);
    assert_eq!(claim(&mut new, 1, "c", 2001), Ok("done by b".into()));
    assert_eq!(claim(&mut new, 2, "c", 2001), Ok(running("b").into()));
}

#[test]
fn a_process_that_has_no_room_for_all_says_so() {
    let (mut old, all) = (Memory::new(ROOM), 2 * OVERHEAD);
    let mut new = Memory::new(Bounds { all, each: all });
    for n in [1, 2] {
        claim(&mut old, n, "a", 0).unwrap();
    }
    let mut taken = old
        .hand_over()
        .into_iter()
        .map(|write| new.take_over(write));
    assert!(taken.next().unwrap().is_ok() && taken.next().unwrap().is_err());
}
