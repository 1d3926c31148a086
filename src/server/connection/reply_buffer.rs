//! Replies on their way to the peer: gathered, written once per batch, and counted, since a grant that
//! did not get out whole must not stand. Does not depend on the table.

use std::io;
use std::time::Duration;

use futures::FutureExt;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::EndedBy;
use crate::net::Stream;
use crate::proto::Reply;
use crate::server::table::Grant;
use crate::types::{Key, Token};

/// How many bytes of replies are gathered before they are written.
const BATCH_SIZE: usize = 32 * 1024;
/// How much of that a slow peer must take within the write timeout: a slow link is no dead one.
const SLICE_SIZE: usize = 8 * 1024;
/// How much room is kept for the next ones: there may be many connections, and most are idle.
const IDLE_CAPACITY: usize = 1024;

#[derive(Default)]
pub(super) struct ReplyBuffer {
    bytes: Vec<u8>,
    /// How much of `bytes` is written.
    written: usize,
    /// The grants in `bytes`, by where their replies end.
    grants: Vec<(usize, Key, Token)>,
}

impl ReplyBuffer {
    pub(super) fn reply(&mut self, reply: &Reply) {
        reply.encode(&mut self.bytes);
    }

    /// Appends a reply that carries this grant.
    pub(super) fn grant(&mut self, key: Key, grant: Grant, reply: impl FnOnce(Grant) -> Reply) {
        let token = grant.token.clone();
        self.reply(&reply(grant));
        self.grants.push((self.bytes.len(), key, token));
    }

    /// Where a reply is appended that is made in parts.
    pub(super) fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Whether there is enough for a batch.
    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() >= BATCH_SIZE
    }

    /// Writes everything, unless the peer takes longer than this for a slice of it.
    pub(super) async fn flush(
        &mut self,
        stream: &mut impl Stream,
        write_timeout: Duration,
    ) -> Result<(), EndedBy> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        // Most peers take it at once: no need for a timer.
        let mut written = self.write(stream, usize::MAX).now_or_never();
        while written.is_none() {
            let slice = self.written + SLICE_SIZE;
            let Ok(more) = timeout(write_timeout, self.write(stream, slice)).await else {
                tracing::debug!("write timeout: closing a connection");
                return Err(EndedBy::Server);
            };
            written = (more.is_err() || self.written == self.bytes.len()).then_some(more);
        }
        if let Some(Err(error)) = written {
            return Err(EndedBy::from_error(&error));
        }
        self.clear();
        Ok(())
    }

    /// How many bytes are kept, used or not.
    #[cfg(test)]
    pub(super) fn allocated(&self) -> usize {
        self.bytes.capacity() + self.grants.capacity() * size_of::<(usize, Key, Token)>()
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(IDLE_CAPACITY);
        self.grants.clear();
        self.grants.shrink_to(IDLE_CAPACITY / size_of::<(usize, Key, Token)>());
        self.written = 0;
    }

    /// Writes `bytes` at least so far, and keeps count of where it broke off.
    async fn write(&mut self, stream: &mut impl Stream, until: usize) -> io::Result<()> {
        while self.written < self.bytes.len().min(until) {
            match stream.write(&self.bytes[self.written..]).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => self.written += n,
            }
        }
        stream.flush().await
    }

    /// Takes out the grants whose replies were not written whole: they reached no peer. A grant whose
    /// reply was may be known to the peer, whatever became of the replies behind it.
    pub(super) fn undelivered(&mut self) -> impl Iterator<Item = (Key, Token)> {
        let written = self.written;
        self.grants.drain(..).filter(move |(end, ..)| *end > written).map(|(_, key, token)| (key, token))
    }
}
