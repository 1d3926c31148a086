//! Properties of the wire: what is encoded is decoded, in any chunks, and nothing panics.

use proptest::prelude::*;

use super::*;
use crate::types::{Fence, Key, Limit, MAX_SECONDS, Seconds, Token};

fn keys() -> impl Strategy<Value = Key> {
    "[a-zа-я0-9:/_-]{1,60}".prop_map(|key| Key::parse(&key).unwrap())
}

fn seconds(least: u64) -> impl Strategy<Value = Seconds> {
    prop_oneof![least..100, Just(MAX_SECONDS)].prop_map(|s| Seconds::new(s).unwrap())
}

fn leases() -> impl Strategy<Value = Option<Seconds>> {
    proptest::option::of(seconds(1))
}

fn limits() -> impl Strategy<Value = Option<Limit>> {
    proptest::option::of((1..=i64::MAX as u64).prop_map(|limit| Limit::new(limit).unwrap()))
}

fn tokens() -> impl Strategy<Value = Token> {
    prop_oneof![
        any::<(u64, u64)>().prop_map(|(fence, salt)| Token::mint(Fence::new(fence), salt)),
        "[A-Za-z0-9_.-]{1,245}".prop_map(|text| Token::parse(&text).unwrap()),
    ]
}

fn families() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::Lock), Just(Family::Semaphore)]
}

fn requests() -> impl Strategy<Value = Request> {
    prop_oneof![
        "[ -~]{0,300}".prop_map(|token| Request::Auth { token: Secret::new(token) }),
        Just(Request::Ping),
        Just(Request::Stats),
        (keys(), seconds(0), limits(), leases()).prop_map(|(key, timeout, limit, lease)| Request::Acquire {
            key,
            timeout,
            limit,
            lease
        }),
        (keys(), limits(), leases()).prop_map(|(key, limit, lease)| Request::Enqueue { key, limit, lease }),
        (keys(), seconds(0), families()).prop_map(|(key, timeout, family)| Request::Wait {
            key,
            timeout,
            family
        }),
        (keys(), tokens(), families()).prop_map(|(key, token, family)| Request::Release {
            key,
            token,
            family
        }),
        (keys(), tokens(), leases(), families()).prop_map(|(key, token, lease, family)| Request::Renew {
            key,
            token,
            lease,
            family
        }),
    ]
}

fn replies() -> impl Strategy<Value = (Reply, Expect)> {
    let grants = || (tokens(), seconds(1));
    let refusals = prop_oneof![
        "error(_[a-z]{1,20}){0,3}".prop_map(|line| Status::parse(&line).unwrap()),
        Just(Status::NotLeader(Some("10.0.0.1:6388".into()))),
    ];
    prop_oneof![
        Just((Reply::Done, Expect::Done)),
        grants().prop_map(|(token, lease)| (Reply::Granted { token, lease }, Expect::Grant)),
        grants().prop_map(|(token, lease)| (Reply::Acquired { token, lease }, Expect::Enqueue)),
        Just((Reply::Queued, Expect::Enqueue)),
        Just((Reply::Timeout, Expect::Grant)),
        seconds(1).prop_map(|lease| (Reply::Renewed(lease), Expect::Lease)),
        Just((Reply::Stats(StatsResult::default().to_json()), Expect::Stats)),
        refusals.prop_map(|status| (Reply::Refused(status), Expect::Grant)),
    ]
}

/// Cuts `bytes` at the given places, in any order.
fn chunks<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

fn frames(parts: &[&[u8]]) -> (Vec<Frame>, bool) {
    let (mut decoder, mut found) = (FrameDecoder::new(), Vec::new());
    for mut part in parts.iter().copied() {
        while let Some(frame) = decoder.next(&mut part) {
            let last = matches!(frame, Frame::TooLong(_));
            found.push(frame);
            if last {
                return (found, false);
            }
        }
    }
    (found, decoder.at_boundary())
}

fn lines(parts: &[&[u8]], cap: usize) -> (Vec<Vec<u8>>, Option<LineTooLong>) {
    let (mut decoder, mut found) = (LineDecoder::new(), Vec::new());
    for mut part in parts.iter().copied() {
        while let Some(line) = decoder.next(&mut part, cap) {
            match line {
                Ok(line) => found.push(line.to_vec()),
                Err(fault) => return (found, Some(fault)),
            }
        }
    }
    (found, None)
}

proptest! {
    #[test]
    fn requests_decode_to_what_was_encoded_in_any_chunks(
        sent in proptest::collection::vec(requests(), 0..6),
        cuts in proptest::collection::vec(any::<usize>(), 0..12),
    ) {
        let mut bytes = Vec::new();
        sent.iter().for_each(|request| request.encode(&mut bytes));
        let (found, whole) = frames(&chunks(&bytes, &cuts));
        let sent: Vec<Frame> = sent.into_iter().map(Frame::Request).collect();
        prop_assert_eq!(found, sent);
        prop_assert!(whole);
    }

    #[test]
    fn replies_decode_to_what_was_encoded((reply, expect) in replies()) {
        let mut bytes = Vec::new();
        reply.encode(&mut bytes);
        let line = bytes.strip_suffix(b"\n").unwrap();
        prop_assert!(!line.contains(&b'\n'));
        prop_assert_eq!(Reply::parse(line, expect), Ok(reply));
    }

    #[test]
    fn any_bytes_make_the_same_frames_in_any_chunks(
        bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b'l'), any::<u8>()], 0..900),
        cuts in proptest::collection::vec(any::<usize>(), 0..20),
    ) {
        prop_assert_eq!(frames(&chunks(&bytes, &cuts)), frames(&[&bytes]));
        prop_assert_eq!(lines(&chunks(&bytes, &cuts), 40), lines(&[&bytes], 40));
    }

    #[test]
    fn any_line_is_a_reply_or_an_error(line in proptest::collection::vec(any::<u8>(), 0..200)) {
        for expect in [Expect::Done, Expect::Grant, Expect::Enqueue, Expect::Lease, Expect::Stats] {
            let _ = Reply::parse(&line, expect);
        }
    }
}

fn parse(command: &str, key: &str, arg: &str) -> Result<Request, Malformed> {
    Request::parse(command.as_bytes(), key.as_bytes(), arg.as_bytes())
}

#[test]
fn every_malformed_request_names_its_fault() {
    let cases = [
        ("L", "k", "1", "unknown command"),
        ("l ", "k", "1", "unknown command"),
        ("l", "", "1", "bad key"),
        ("l", "a b", "1", "bad key"),
        ("l", "a\tb", "1", "bad key"),
        ("l", "k", "", "timeout missing"),
        ("l", "k", "x", "bad integer"),
        ("l", "k", "1.5", "bad integer"),
        ("l", "k", "-1", "negative timeout"),
        ("l", "k", "9223372037", "timeout too large"),
        ("l", "k", "1 0", "lease not positive"),
        ("l", "k", "1 -3", "lease not positive"),
        ("l", "k", "1 9223372037", "lease too large"),
        ("l", "k", "1 2 3", "too many arguments"),
        ("sl", "k", "1", "limit missing"),
        ("sl", "k", "1 0", "limit not positive"),
        ("sl", "k", "1 2 3 4", "too many arguments"),
        ("e", "k", "0", "lease not positive"),
        ("se", "k", "", "limit missing"),
        ("w", "k", "", "timeout missing"),
        ("r", "k", " \t ", "empty token"),
        ("n", "k", "", "empty token"),
        ("n", "k", "t x", "bad integer"),
        ("n", "k", "t 1 2", "too many arguments"),
    ];
    for (command, key, arg, fault) in cases {
        assert_eq!(parse(command, key, arg), Err(Malformed(fault)), "{command:?} {key:?} {arg:?}");
    }
}

#[test]
fn numbers_may_carry_a_sign_and_fields_any_white_space() {
    let acquire = |arg| match parse("sl", "k", arg) {
        Ok(Request::Acquire { timeout, limit, lease, .. }) => {
            (timeout.get(), limit.unwrap().get(), lease.map(Seconds::get))
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(acquire("+5 3"), (5, 3, None));
    assert_eq!(acquire("-0 1 +7"), (0, 1, Some(7)));
    assert_eq!(acquire(" \t 1\u{a0}\u{b} 2  3 "), (1, 2, Some(3)));
}

#[test]
fn commands_without_a_key_take_any_key() {
    assert_eq!(parse("ping", "", "whatever 1 2"), Ok(Request::Ping));
    assert_eq!(parse("stats", "a b", ""), Ok(Request::Stats));
    assert!(
        matches!(parse("auth", "", "s p a c e"), Ok(Request::Auth { token }) if token.expose() == b"s p a c e")
    );
}

#[test]
fn lines_keep_to_their_caps() {
    let frame = |key: usize, cr: &str| {
        let bytes = format!("r\n{}{cr}\nt\n", "k".repeat(key));
        frames(&[bytes.as_bytes()]).0.remove(0)
    };
    assert!(matches!(frame(256, ""), Frame::Request(_)));
    assert!(matches!(frame(255, "\r"), Frame::Request(_)));
    assert!(matches!(frame(256, "\r"), Frame::TooLong(_)));
    assert!(matches!(frame(257, ""), Frame::TooLong(_)));
    let auth = |len: usize| frames(&[format!("auth\n_\n{}\n", "t".repeat(len)).as_bytes()]).0.remove(0);
    assert!(matches!(auth(64 * 1024), Frame::Request(_)));
    assert!(matches!(auth(64 * 1024 + 1), Frame::TooLong(_)));
}

#[test]
fn an_over_long_line_is_read_away_before_it_is_reported() {
    let mut decoder = FrameDecoder::new();
    let long = "x".repeat(300);
    assert_eq!(decoder.next(&mut long.as_bytes()), None);
    assert_eq!(decoder.next(&mut long.as_bytes()), None);
    assert!(!decoder.at_boundary());
    assert_eq!(decoder.next(&mut &b"x\n"[..]), Some(Frame::TooLong(LineTooLong { cap: 256 })));
}

#[test]
fn statuses_keep_what_they_carry() {
    assert_eq!(Status::parse("error_not_leader h:1"), Some(Status::NotLeader(Some("h:1".into()))));
    assert_eq!(Status::parse("error_not_leader"), Some(Status::NotLeader(None)));
    assert_eq!(Status::parse("error_new_thing x"), Some(Status::Other("error_new_thing x".into())));
    assert_eq!(Status::parse("ok"), None);
}

#[test]
fn replies_that_do_not_fit_the_request_are_refused() {
    let cases = [
        (Expect::Done, "ok 1"),
        (Expect::Done, "timeout"),
        (Expect::Grant, "ok"),
        (Expect::Grant, "ok t"),
        (Expect::Grant, "ok t 0"),
        (Expect::Grant, "ok t -5"),
        (Expect::Grant, "ok t +5"),
        (Expect::Grant, "ok t 9223372037"),
        (Expect::Grant, "ok t 5 6"),
        (Expect::Grant, "queued"),
        (Expect::Enqueue, "ok t 5"),
        (Expect::Lease, "ok"),
        (Expect::Lease, "ok 0"),
        (Expect::Lease, "ok 99999999999999999999"),
        (Expect::Stats, "queued"),
        (Expect::Done, ""),
    ];
    for (expect, line) in cases {
        assert!(Reply::parse(line.as_bytes(), expect).is_err(), "{expect:?} {line:?}");
    }
}

#[test]
fn a_bad_reply_does_not_show_the_token_in_it() {
    let line = b"ok 0123456789abcdef0123456789abcdef never";
    let shown = Reply::parse(line, Expect::Grant).unwrap_err().to_string();
    assert_eq!(shown, "a lease that is not a number in a reply of 41 bytes that begins with \"ok\"");
}

#[test]
fn stats_ignore_unknown_keys_and_want_the_known_ones() {
    let json = r#"{"connections":3,"locks":[{"key":"a","owner_conn_id":7,"lease_expires_in_s":1.5,"waiters":2,"new":1}],
        "semaphores":[],"idle_locks":[{"key":"b","idle_s":0.25}],"idle_semaphores":[],"extra":{}}"#;
    let stats = StatsResult::from_json(json).unwrap();
    assert_eq!((stats.connections, stats.locks[0].waiters, stats.idle_locks[0].idle_s), (3, 2, 0.25));
    assert!(StatsResult::from_json(r#"{"connections":3}"#).is_err());
    assert!(
        StatsResult::from_json(
            r#"{"connections":-1,"locks":[],"semaphores":[],"idle_locks":[],"idle_semaphores":[]}"#
        )
        .is_err()
    );
}

#[test]
fn a_line_that_is_kept_is_the_line_that_is_looked_at() {
    let bytes = "ok\r\n\n".to_owned() + &"x".repeat(40) + "\r\ndone\n";
    for cut in 1..=bytes.len() {
        let (mut decoder, mut found) = (LineDecoder::new(), Vec::new());
        for mut part in bytes.as_bytes().chunks(cut) {
            while let Some(line) = decoder.next_owned(&mut part, 41) {
                found.push(String::from_utf8(line.unwrap()).unwrap());
            }
        }
        assert_eq!(found, ["ok", "", &"x".repeat(40), "done"], "in chunks of {cut}");
        assert!(decoder.at_boundary());
    }
}
