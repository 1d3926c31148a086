//! The replies that are not written yet. Gathers them into batches, and keeps track of the grants in them:
//! one whose reply was not written whole must be released.

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

/// The size at which gathered replies are written.
const BATCH_SIZE: usize = 32 * 1024;
/// The part of a batch that a slow peer must accept within the write timeout. A slow link is not a dead
/// one.
const SLICE_SIZE: usize = 8 * 1024;
/// The capacity that is kept for later replies. There may be many connections, and most are idle.
const IDLE_CAPACITY: usize = 1024;

#[derive(Default)]
pub(super) struct ReplyBuffer {
    bytes: Vec<u8>,
    /// The number of bytes of `bytes` that are written.
    written: usize,
    /// The grants in `bytes`, each with the end of its reply.
    grants: Vec<(usize, Key, Token)>,
}

impl ReplyBuffer {
    pub(super) fn reply(&mut self, reply: &Reply) {
        reply.encode(&mut self.bytes);
    }

    /// Appends the reply to a grant.
    pub(super) fn grant(&mut self, key: Key, grant: Grant, reply: impl FnOnce(Grant) -> Reply) {
        let token = grant.token.clone();
        self.reply(&reply(grant));
        self.grants.push((self.bytes.len(), key, token));
    }

    /// Returns the buffer, for a reply that is appended in parts.
    pub(super) fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Returns `true` if the buffer holds a batch.
    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() >= BATCH_SIZE
    }

    /// Writes everything. Fails if the peer takes longer than `write_timeout` for one slice.
    pub(super) async fn flush(
        &mut self,
        stream: &mut impl Stream,
        write_timeout: Duration,
    ) -> Result<(), EndedBy> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        // Most peers accept it at once, so the timer is only started for those that do not.
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

    /// Returns the number of allocated bytes.
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

    /// Writes at least `until` bytes of the buffer, and remembers its position if it is dropped.
    async fn write(&mut self, stream: &mut impl Stream, until: usize) -> io::Result<()> {
        while self.written < self.bytes.len().min(until) {
            match stream.write(&self.bytes[self.written..]).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => self.written += n,
            }
        }
        stream.flush().await
    }

    /// Removes and returns the grants whose replies were not written whole: no peer knows them. If a reply
    /// was written whole, the peer may know its grant, even if a later reply failed.
    pub(super) fn undelivered(&mut self) -> impl Iterator<Item = (Key, Token)> {
        let written = self.written;
        self.grants.drain(..).filter(move |(end, ..)| *end > written).map(|(_, key, token)| (key, token))
    }
}
