//! The replies: encoded by a server, parsed by a client according to its request.

use std::fmt;

use crate::proto::request::Expect;
use crate::types::{Seconds, Token};

/// A status by which a server refuses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Status {
    /// `error`: malformed, unknown, or no such holder.
    Error,
    /// `error_auth`
    Auth,
    /// `error_max_locks`
    MaxLocks,
    /// `error_max_waiters`
    MaxWaiters,
    /// `error_limit_mismatch`
    LimitMismatch,
    /// `error_not_enqueued`
    NotEnqueued,
    /// `error_already_enqueued`
    AlreadyEnqueued,
    /// `error_lease_expired`
    LeaseExpired,
    /// `error_draining`
    Draining,
    /// `error_not_leader [<host:port>]`
    NotLeader(Option<Box<str>>),
    /// Any other line that begins with `error`, whole.
    Other(Box<str>),
}

/// The statuses that are a fixed word.
const WORDS: [(&str, Status); 9] = [
    ("error", Status::Error),
    ("error_auth", Status::Auth),
    ("error_max_locks", Status::MaxLocks),
    ("error_max_waiters", Status::MaxWaiters),
    ("error_limit_mismatch", Status::LimitMismatch),
    ("error_not_enqueued", Status::NotEnqueued),
    ("error_already_enqueued", Status::AlreadyEnqueued),
    ("error_lease_expired", Status::LeaseExpired),
    ("error_draining", Status::Draining),
];

impl Status {
    /// Parses a status line; returns `None` if the line does not begin with `error`.
    pub fn parse(line: &str) -> Option<Self> {
        if let Some((_, status)) = WORDS.iter().find(|(word, _)| *word == line) {
            return Some(status.clone());
        }
        match line.strip_prefix("error_not_leader") {
            Some("") => Some(Self::NotLeader(None)),
            Some(leader) if leader.starts_with(' ') => {
                let leader = leader.trim();
                Some(Self::NotLeader((!leader.is_empty()).then(|| leader.into())))
            }
            _ => line.starts_with("error").then(|| Self::Other(line.into())),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLeader(None) => f.write_str("error_not_leader"),
            Self::NotLeader(Some(leader)) => write!(f, "error_not_leader {leader}"),
            Self::Other(line) => f.write_str(line),
            fixed => {
                let word = WORDS.iter().find(|(_, status)| status == fixed);
                f.write_str(word.map_or("error", |(word, _)| word))
            }
        }
    }
}

/// One reply line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `ok`
    Done,
    /// `ok <token> <lease>`: the key is held.
    Granted {
        /// The grant's token.
        token: Token,
        /// The lease, at least 1 s.
        lease: Seconds,
    },
    /// `acquired <token> <lease>`: the key is held, by enqueue's fast path.
    Acquired {
        /// The grant's token.
        token: Token,
        /// The lease, at least 1 s.
        lease: Seconds,
    },
    /// `queued`
    Queued,
    /// `timeout`
    Timeout,
    /// `ok <seconds>`: the lease just set.
    Renewed(Seconds),
    /// `ok <json>`
    Stats(String),
    /// A refusal.
    Refused(Status),
}

/// A line that is not a reply to its request.
///
/// It shows only the line's first word and length: the rest may contain a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{fault} in a reply of {len} bytes that begins with {word:?}")]
pub struct BadReply {
    fault: &'static str,
    word: String,
    len: usize,
}

impl BadReply {
    fn new(fault: &'static str, line: &str) -> Self {
        let word = line.split_whitespace().next().unwrap_or_default();
        Self { fault, word: word.chars().take(8).collect(), len: line.len() }
    }
}

impl Reply {
    /// Parses the reply to a request that expects `expect`.
    ///
    /// # Errors
    /// If the line is not UTF-8, is not one of the replies that the request can have, or has a lease
    /// outside 1..=9,223,372,036 or a token that no request line can hold.
    pub fn parse(line: &[u8], expect: Expect) -> Result<Self, BadReply> {
        let Ok(line) = std::str::from_utf8(line) else {
            return Err(BadReply::new("invalid utf-8", &String::from_utf8_lossy(line)));
        };
        if let Some(status) = Status::parse(line) {
            return Ok(Self::Refused(status));
        }
        let bad = |fault| BadReply::new(fault, line);
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match (expect, word) {
            (Expect::Done, "ok") if rest.is_empty() => Ok(Self::Done),
            (Expect::Grant, "timeout") if rest.is_empty() => Ok(Self::Timeout),
            (Expect::Enqueue, "queued") if rest.is_empty() => Ok(Self::Queued),
            (Expect::Grant, "ok") => {
                grant(rest).map(|(token, lease)| Self::Granted { token, lease }).map_err(bad)
            }
            (Expect::Enqueue, "acquired") => {
                grant(rest).map(|(token, lease)| Self::Acquired { token, lease }).map_err(bad)
            }
            (Expect::Lease, "ok") => lease(rest.trim()).map(Self::Renewed).map_err(bad),
            (Expect::Stats, "ok") => Ok(Self::Stats(rest.to_owned())),
            _ => Err(bad("unexpected status")),
        }
    }

    /// Appends the reply's line.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut put = |word: &str| out.extend_from_slice(word.as_bytes());
        match self {
            Self::Done => put("ok"),
            Self::Granted { token, lease } => {
                put("ok ");
                encode_grant(token, *lease, out);
            }
            Self::Acquired { token, lease } => {
                put("acquired ");
                encode_grant(token, *lease, out);
            }
            Self::Queued => put("queued"),
            Self::Timeout => put("timeout"),
            Self::Renewed(lease) => {
                put("ok ");
                put(itoa::Buffer::new().format(lease.get()));
            }
            Self::Stats(json) => {
                put("ok ");
                put(json);
            }
            Self::Refused(status) => put(&status.to_string()),
        }
        out.push(b'\n');
    }
}

fn encode_grant(token: &Token, lease: Seconds, out: &mut Vec<u8>) {
    token.encode(out);
    out.push(b' ');
    out.extend_from_slice(itoa::Buffer::new().format(lease.get()).as_bytes());
}

fn grant(rest: &str) -> Result<(Token, Seconds), &'static str> {
    // Most tokens have 32 bytes, which saves the search for their end.
    if let Some((token, seconds)) = rest.split_at_checked(32)
        && let (Some(token), Some(seconds)) = (Token::minted(token.as_bytes()), seconds.strip_prefix(' '))
        && let Ok(lease) = lease(seconds)
    {
        return Ok((token, lease));
    }
    let mut fields = rest.split_whitespace();
    let (Some(token), Some(seconds), None) = (fields.next(), fields.next(), fields.next()) else {
        return Err("not a token and a lease");
    };
    let token = Token::parse(token).map_err(|_| "a token that cannot be sent back")?;
    Ok((token, lease(seconds)?))
}

fn lease(field: &str) -> Result<Seconds, &'static str> {
    if !field.bytes().all(|b| b.is_ascii_digit()) {
        return Err("a lease that is not a number");
    }
    let seconds = field.parse().ok().filter(|seconds| *seconds > 0).and_then(Seconds::new);
    seconds.ok_or("a lease outside 1..=9223372036")
}
