//! The requests: built by a client, parsed by a server.

use crate::types::{Key, Limit, Seconds, Token};

/// The spelling of a command: for a lock (`l e w r n`) or for a semaphore (`sl se sw sr sn`).
///
/// A server treats both alike if the limit agrees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// `l e w r n`
    Lock,
    /// `sl se sw sr sn`
    Semaphore,
}

impl Family {
    /// Returns the family of a resource: if it has a limit to send, it is a semaphore.
    pub fn of(limit: Option<Limit>) -> Self {
        if limit.is_some() { Self::Semaphore } else { Self::Lock }
    }
}

/// One command with its fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// `auth`: the first command on a server that has an auth token.
    Auth {
        /// The token, as raw bytes. This crate never shows it.
        token: Secret,
    },
    /// `ping`: keeps an idle connection open.
    Ping,
    /// `stats`: the server's table as JSON.
    Stats,
    /// `l`, `sl`: takes the key or waits for it.
    Acquire {
        /// The key.
        key: Key,
        /// How long to wait; 0 is a try.
        timeout: Seconds,
        /// `None` for `l`, the number of holders for `sl`.
        limit: Option<Limit>,
        /// The lease, at least 1 s; `None` for the server's default.
        lease: Option<Seconds>,
    },
    /// `e`, `se`: takes the key or a place in its queue, without waiting.
    Enqueue {
        /// The key.
        key: Key,
        /// `None` for `e`, the number of holders for `se`.
        limit: Option<Limit>,
        /// The lease, at least 1 s; `None` for the server's default.
        lease: Option<Seconds>,
    },
    /// `w`, `sw`: waits for the grant of an earlier enqueue.
    Wait {
        /// The key.
        key: Key,
        /// How long to wait.
        timeout: Seconds,
        /// How the command is spelled.
        family: Family,
    },
    /// `r`, `sr`: releases a grant.
    Release {
        /// The key.
        key: Key,
        /// The grant's token.
        token: Token,
        /// How the command is spelled.
        family: Family,
    },
    /// `n`, `sn`: renews the lease, counting from now.
    Renew {
        /// The key.
        key: Key,
        /// The grant's token.
        token: Token,
        /// The lease, at least 1 s; `None` for the server's default.
        lease: Option<Seconds>,
        /// How the command is spelled.
        family: Family,
    },
}

/// Bytes that are never shown: `Debug` prints their number alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Wraps secret bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// Returns the bytes. Keep them out of logs.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret({} bytes)", self.0.len())
    }
}

/// The replies that a request can have, as [`Reply::parse`](super::Reply::parse) needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Expect {
    /// `ok`
    Done,
    /// `ok <token> <lease>` or `timeout`
    Grant,
    /// `acquired <token> <lease>` or `queued`
    Enqueue,
    /// `ok <seconds>`
    Lease,
    /// `ok <json>`
    Stats,
}

/// Why three well-framed lines are not a request. A server replies `error` and reads on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed request: {0}")]
pub struct Malformed(pub &'static str);

impl Request {
    /// Returns the command's word on the wire.
    pub fn command(&self) -> &'static str {
        let pick = |family, lock, semaphore| if family == Family::Lock { lock } else { semaphore };
        match self {
            Self::Auth { .. } => "auth",
            Self::Ping => "ping",
            Self::Stats => "stats",
            Self::Acquire { limit, .. } => pick(Family::of(*limit), "l", "sl"),
            Self::Enqueue { limit, .. } => pick(Family::of(*limit), "e", "se"),
            Self::Wait { family, .. } => pick(*family, "w", "sw"),
            Self::Release { family, .. } => pick(*family, "r", "sr"),
            Self::Renew { family, .. } => pick(*family, "n", "sn"),
        }
    }

    /// Returns the request's key, if it has one.
    pub fn key(&self) -> Option<&Key> {
        match self {
            Self::Auth { .. } | Self::Ping | Self::Stats => None,
            Self::Acquire { key, .. }
            | Self::Enqueue { key, .. }
            | Self::Wait { key, .. }
            | Self::Release { key, .. }
            | Self::Renew { key, .. } => Some(key),
        }
    }

    /// Returns which replies the request can have, besides an error.
    pub fn expect(&self) -> Expect {
        match self {
            Self::Auth { .. } | Self::Ping | Self::Release { .. } => Expect::Done,
            Self::Stats => Expect::Stats,
            Self::Acquire { .. } | Self::Wait { .. } => Expect::Grant,
            Self::Enqueue { .. } => Expect::Enqueue,
            Self::Renew { .. } => Expect::Lease,
        }
    }

    /// Returns `true` if the reply may be delayed: until then, the server handles none of the requests
    /// behind it.
    pub fn may_wait(&self) -> bool {
        matches!(self, Self::Acquire { timeout, .. } | Self::Wait { timeout, .. } if *timeout != Seconds::ZERO)
    }

    /// Returns the third line.
    pub fn arg(&self) -> Vec<u8> {
        let mut arg = Vec::new();
        self.encode_arg(&mut arg);
        arg
    }

    fn encode_arg(&self, out: &mut Vec<u8>) {
        match self {
            Self::Auth { token } => out.extend_from_slice(token.expose()),
            Self::Ping | Self::Stats => out.push(b'_'),
            Self::Acquire { timeout, limit, lease, .. } => {
                fields(out, [Some(timeout.get()), limit.map(Limit::get), lease.map(Seconds::get)]);
            }
            Self::Enqueue { limit, lease, .. } => {
                fields(out, [None, limit.map(Limit::get), lease.map(Seconds::get)]);
            }
            Self::Wait { timeout, .. } => fields(out, [Some(timeout.get()), None, None]),
            Self::Release { token, .. } | Self::Renew { token, lease: None, .. } => token.encode(out),
            Self::Renew { token, lease: Some(lease), .. } => {
                token.encode(out);
                out.push(b' ');
                fields(out, [Some(lease.get()), None, None]);
            }
        }
    }

    /// Appends the request's three lines.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.command().as_bytes());
        out.push(b'\n');
        out.extend_from_slice(self.key().map_or(b"_", Key::as_bytes));
        out.push(b'\n');
        self.encode_arg(out);
        out.push(b'\n');
    }

    /// Parses a request from its three lines, as a server does. Returns the first fault that is found.
    ///
    /// # Errors
    /// [`Malformed`], to which a server replies `error` while it keeps the connection.
    pub fn parse(command: &[u8], key: &[u8], arg: &[u8]) -> Result<Self, Malformed> {
        let family = match command {
            b"auth" => return Ok(Self::Auth { token: Secret::new(arg) }),
            b"ping" => return Ok(Self::Ping),
            b"stats" => return Ok(Self::Stats),
            b"l" | b"e" | b"w" | b"r" | b"n" => Family::Lock,
            b"sl" | b"se" | b"sw" | b"sr" | b"sn" => Family::Semaphore,
            _ => return Err(Malformed("unknown command")),
        };
        let key = Key::from_wire(key).map_err(|_| Malformed("bad key"))?;
        if let (b"r" | b"sr", Some(token)) = (command, Token::minted(arg)) {
            return Ok(Self::Release { token, key, family });
        }
        // Bytes that are not UTF-8 are neither whitespace nor part of a number.
        let arg = String::from_utf8_lossy(arg);
        let mut fields = Fields(arg.split_whitespace());
        let request = match command {
            b"l" | b"sl" => Self::Acquire {
                timeout: fields.timeout()?,
                limit: fields.limit(family)?,
                lease: fields.lease()?,
                key,
            },
            b"e" | b"se" => Self::Enqueue { limit: fields.limit(family)?, lease: fields.lease()?, key },
            b"w" | b"sw" => Self::Wait { timeout: fields.timeout()?, key, family },
            b"r" | b"sr" => Self::Release { token: fields.token()?, key, family },
            _ => Self::Renew { token: fields.token()?, lease: fields.lease()?, key, family },
        };
        fields.end()?;
        Ok(request)
    }
}

/// Appends the parts that are present, separated by spaces.
fn fields(out: &mut Vec<u8>, parts: [Option<u64>; 3]) {
    for (at, part) in parts.into_iter().flatten().enumerate() {
        if at > 0 {
            out.push(b' ');
        }
        out.extend_from_slice(itoa::Buffer::new().format(part).as_bytes());
    }
}

/// The fields of an `arg` line, parsed one by one.
struct Fields<'a>(std::str::SplitWhitespace<'a>);

impl Fields<'_> {
    fn integer(&mut self, missing: &'static str) -> Result<i64, Malformed> {
        let field = self.0.next().ok_or(Malformed(missing))?;
        field.parse().map_err(|_| Malformed("bad integer"))
    }

    fn timeout(&mut self) -> Result<Seconds, Malformed> {
        let timeout = self.integer("timeout missing")?;
        let timeout = u64::try_from(timeout).map_err(|_| Malformed("negative timeout"))?;
        Seconds::new(timeout).ok_or(Malformed("timeout too large"))
    }

    fn limit(&mut self, family: Family) -> Result<Option<Limit>, Malformed> {
        if family == Family::Lock {
            return Ok(None);
        }
        let limit = self.integer("limit missing")?;
        let limit = u64::try_from(limit).ok().and_then(|limit| Limit::new(limit).ok());
        limit.map(Some).ok_or(Malformed("limit not positive"))
    }

    fn lease(&mut self) -> Result<Option<Seconds>, Malformed> {
        if self.0.clone().next().is_none() {
            return Ok(None);
        }
        let lease = self.integer("lease missing")?;
        let lease = u64::try_from(lease).ok().filter(|lease| *lease > 0);
        let lease = lease.ok_or(Malformed("lease not positive"))?;
        Seconds::new(lease).map(Some).ok_or(Malformed("lease too large"))
    }

    fn token(&mut self) -> Result<Token, Malformed> {
        let token = self.0.next().ok_or(Malformed("empty token"))?;
        Token::parse(token).map_err(|_| Malformed("bad token"))
    }

    fn end(mut self) -> Result<(), Malformed> {
        self.0.next().map_or(Ok(()), |_| Err(Malformed("too many arguments")))
    }
}
