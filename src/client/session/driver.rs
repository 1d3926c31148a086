//! The task behind a session: it alone touches the stream.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::{Answer, Call, Orphan, Session, Shared, fail, shut_down};
use crate::client::conn::{closed_by_peer, unasked};
use crate::client::outcome;
use crate::error::{Error, ErrorKind, Result};
use crate::net::BoxStream;
use crate::proto::{Expect, Family, LineDecoder, MAX_REPLY_BYTES, Reply, Request};
use crate::types::Token;

/// How long a session whose last user is gone may take to finish what is under way.
const FINISH_LIMIT: Duration = Duration::from_secs(5);
/// How long an abandoned wait listens for a grant that crossed it.
const ABANDON_LIMIT: Duration = Duration::from_secs(1);
/// How much is gathered before it has to be written.
const WRITE_BATCH: usize = 64 * 1024;

pub(super) struct Driver {
    reader: ReadHalf<BoxStream>,
    writer: WriteHalf<BoxStream>,
    queue: mpsc::UnboundedReceiver<Call>,
    /// To hand out with grants; weak, so that it does not keep the session open.
    handle: mpsc::WeakUnboundedSender<Call>,
    shared: Arc<Shared>,
    keepalive: Duration,
    /// Sent and unanswered, in order.
    pending: VecDeque<Call>,
    out: Vec<u8>,
    written: usize,
    unflushed: bool,
    decoder: LineDecoder,
    quiet_since: Instant,
}

/// What the driver woke up for.
enum Event {
    Calls(usize),
    Written(std::io::Result<usize>),
    Read(std::io::Result<usize>),
    Quiet,
    Abandoned,
}

impl Driver {
    pub(super) fn new(
        stream: BoxStream,
        queue: mpsc::UnboundedReceiver<Call>,
        handle: mpsc::WeakUnboundedSender<Call>,
        shared: Arc<Shared>,
        keepalive: Duration,
    ) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self {
            reader,
            writer,
            queue,
            handle,
            shared,
            keepalive,
            pending: VecDeque::new(),
            out: Vec::new(),
            written: 0,
            unflushed: false,
            decoder: LineDecoder::new(),
            quiet_since: Instant::now(),
        }
    }

    pub(super) async fn run(mut self) {
        let end = self.drive().await;
        self.finish(end);
    }

    /// Serves until the connection ends, and answers why.
    async fn drive(&mut self) -> Error {
        let mut calls = Vec::with_capacity(64);
        let mut chunk = vec![0; 8 * 1024];
        let mut open = true;
        let mut last_call = None;
        loop {
            if !open && self.pending.is_empty() && self.out.is_empty() {
                let _ = timeout(FINISH_LIMIT, self.writer.shutdown()).await;
                return Error::new(ErrorKind::ConnectionClosed, "this client closed it");
            }
            let wake = last_call.unwrap_or(self.quiet_since + self.keepalive);
            // What the server has said is read before anything more is asked: a line that came
            // unasked must not pass for the reply to the next request.
            let event = tokio::select! {
                biased;
                n = self.reader.read(&mut chunk) => Event::Read(n),
                n = self.queue.recv_many(&mut calls, 64), if open && self.out.len() < WRITE_BATCH => Event::Calls(n),
                done = write_some(&mut self.writer, &self.out[self.written..]), if self.unflushed => Event::Written(done),
                () = sleep_until(wake) => Event::Quiet,
                () = self.shared.abandon.notified() => Event::Abandoned,
            };
            match event {
                Event::Calls(0) => {
                    open = false;
                    last_call = Some(Instant::now() + FINISH_LIMIT);
                }
                Event::Calls(_) => calls.drain(..).for_each(|call| self.admit(call)),
                Event::Written(Ok(n)) => self.advance(n),
                Event::Written(Err(cause)) => return Error::io("could not send", cause),
                Event::Read(Ok(0)) => return closed_by_peer(self.place()),
                Event::Read(Ok(n)) => {
                    if let Err(error) = self.receive(&chunk[..n]) {
                        return error;
                    }
                }
                Event::Read(Err(cause)) => return Error::io("could not read", cause),
                Event::Quiet if !open => {
                    return Error::new(ErrorKind::Timeout, "the server did not answer before it was closed");
                }
                Event::Quiet => self.ping(),
                Event::Abandoned => return self.listen_for_crossing_grant(&mut chunk).await,
            }
        }
    }

    /// Puts a request on its way, unless its caller is gone already.
    fn admit(&mut self, call: Call) {
        if call.answer.as_ref().is_some_and(oneshot::Sender::is_closed) {
            self.shared.under_way.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        call.request.encode(&mut self.out);
        self.pending.push_back(call);
        self.unflushed = true;
        self.quiet_since = Instant::now();
    }

    fn advance(&mut self, written: usize) {
        if self.written == self.out.len() {
            self.out.clear();
            self.written = 0;
            self.unflushed = false;
        } else {
            self.written += written;
        }
    }

    fn receive(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.quiet_since = Instant::now();
        self.shared.suspect.store(false, Ordering::Relaxed);
        loop {
            let line = match self.decoder.next(&mut bytes, MAX_REPLY_BYTES) {
                None => return Ok(()),
                Some(Ok(line)) => line,
                Some(Err(fault)) => {
                    return Err(Error::new(ErrorKind::Protocol, "reply too long").caused_by(fault));
                }
            };
            let Some(call) = self.pending.pop_front() else {
                return Err(unasked(line));
            };
            self.shared.under_way.fetch_sub(1, Ordering::Relaxed);
            let expect = call.request.expect();
            match Reply::parse(line, expect) {
                Ok(reply) => answer(call, reply, &self.handle, &self.shared),
                Err(fault) => {
                    let error = outcome::bad_reply(fault);
                    fail(call, &error, false);
                    return Err(error);
                }
            }
        }
    }

    /// Where in the conversation the stream stands.
    fn place(&self) -> &'static str {
        match (self.decoder.at_boundary(), self.pending.is_empty()) {
            (false, _) => "in the middle of a reply",
            (true, false) => "without a reply",
            (true, true) => "while it was idle",
        }
    }

    /// The connection was quiet for a while: keep the server from dropping it. While a request is
    /// under way the server either is busy with it, or has not answered for that long.
    fn ping(&mut self) {
        let waits = self.pending.front().is_some_and(|call| call.request.expect() == Expect::Grant);
        if self.pending.is_empty() {
            self.admit_ping();
        } else if !waits {
            self.shared.suspect.store(true, Ordering::Relaxed);
        }
        self.quiet_since = Instant::now();
    }

    fn admit_ping(&mut self) {
        self.shared.under_way.fetch_add(1, Ordering::Relaxed);
        self.admit(Call { request: Request::Ping, answer: None });
    }

    async fn listen_for_crossing_grant(&mut self, chunk: &mut [u8]) -> Error {
        let abandoned = || Error::new(ErrorKind::ConnectionClosed, "its wait was given up");
        let listening = async {
            while self.written < self.out.len() {
                self.written += self.writer.write(&self.out[self.written..]).await?;
            }
            self.writer.shutdown().await?;
            loop {
                match self.reader.read(chunk).await? {
                    0 => return Ok(()),
                    n if self.receive(&chunk[..n]).is_err() => return Ok(()),
                    _ => {}
                }
            }
        };
        let _: std::io::Result<()> = timeout(ABANDON_LIMIT, listening).await.unwrap_or(Ok(()));
        abandoned()
    }

    /// Tells everyone who still waits, and everyone who asks later.
    fn finish(&mut self, end: Error) {
        let end = end.on_server(&self.shared.server);
        tracing::debug!(server = %self.shared.server, reason = %end, "connection ended");
        self.shared.ended.send_replace(Some(end.clone()));
        self.queue.close();
        for call in self.pending.drain(..) {
            fail(call, &end, false);
        }
        while let Ok(call) = self.queue.try_recv() {
            fail(call, &end, true);
        }
    }
}

/// The runtime may drop the driver at any await: whoever looks must then see it closed.
impl Drop for Driver {
    fn drop(&mut self) {
        if self.shared.ended.borrow().is_none() {
            self.finish(shut_down());
        }
    }
}

/// Writes, or flushes once all is written.
async fn write_some(writer: &mut WriteHalf<BoxStream>, rest: &[u8]) -> std::io::Result<usize> {
    if rest.is_empty() {
        writer.flush().await?;
        return Ok(0);
    }
    match writer.write(rest).await? {
        0 => Err(std::io::ErrorKind::WriteZero.into()),
        n => Ok(n),
    }
}

/// Hands a reply to its caller; a grant travels with the duty to release it.
fn answer(call: Call, reply: Reply, handle: &mpsc::WeakUnboundedSender<Call>, shared: &Arc<Shared>) {
    let orphan = match &reply {
        Reply::Granted { token, .. } | Reply::Acquired { token, .. } => orphan(&call.request, token),
        _ => None,
    };
    if let (None, Request::Release { key, token, .. }, Reply::Refused(status)) =
        (&call.answer, &call.request, &reply)
    {
        tracing::debug!(%key, fence = ?token.fence(), %status, "released a lease that was gone already");
    }
    let orphan = orphan.and_then(|orphan| match handle.upgrade() {
        Some(calls) => Some((orphan, Session { calls, shared: shared.clone() })),
        None => {
            // Nobody has the session any more, so nobody waits for the grant.
            (shared.rescue)(orphan);
            None
        }
    });
    let answer = Answer { reply: Some(reply), orphan };
    match call.answer {
        // An answer that cannot be delivered comes back and is dropped, which releases its grant.
        Some(caller) => drop(caller.send(Ok(answer))),
        None => drop(answer),
    }
}

fn orphan(request: &Request, token: &Token) -> Option<Orphan> {
    let family = match request {
        Request::Acquire { limit, .. } | Request::Enqueue { limit, .. } => Family::of(*limit),
        Request::Wait { family, .. } => *family,
        _ => return None,
    };
    Some(Orphan { key: request.key()?.clone(), token: token.clone(), family })
}
