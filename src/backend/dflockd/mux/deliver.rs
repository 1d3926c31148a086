//! Delivers a reply to what waits for it, a grant together with the duty to release it.

use std::sync::Weak;
use std::sync::atomic::Ordering;

use super::requests::{InFlight, Responder};
use super::response::{Response, UnclaimedGrant};
use super::shared::{ConnShared, name_release};
use super::{ConnRef, MuxConnection};
use crate::backend::dflockd::replies;
use crate::lease::ReleaseCompletion;
use crate::proto::{Family, Reply, Request, Status};
use crate::types::{Token, printable};

/// Delivers a reply. Returns its grant if no handle of the connection is left to release it.
#[must_use]
pub(super) fn deliver(
    answered: InFlight,
    reply: Reply,
    handle: &Weak<ConnRef>,
    shared: &ConnShared,
) -> Option<UnclaimedGrant> {
    if reply == Reply::Refused(Status::Draining) {
        shared.context.draining.store(true, Ordering::Relaxed);
    }
    if matches!((&answered.request, &reply), (Request::Ping, Reply::Refused(Status::Error))) {
        shared.is_unfenced.store(true, Ordering::Relaxed);
    }
    let InFlight { request, responder, .. } = answered;
    let sender = match responder {
        Responder::Release { completion, .. } => {
            complete_release(&request, reply, completion, shared);
            return None;
        }
        Responder::Caller { sender, .. } => Some(sender),
        Responder::None => None,
    };
    let unclaimed = match &reply {
        Reply::Granted { token, .. } | Reply::Acquired { token, .. } => unclaimed_grant(request, token),
        _ => None,
    };
    let (unclaimed, left) = match unclaimed.map(|unclaimed| (unclaimed, handle.upgrade())) {
        Some((unclaimed, Some(handle))) => (Some((unclaimed, MuxConnection(handle))), None),
        Some((unclaimed, None)) => (None, Some(unclaimed)),
        None => (None, None),
    };
    let response = Response { reply: Some(reply), unclaimed };
    // If the caller is gone, `send` returns the response, and dropping it releases its grant.
    match sender {
        Some(sender) => drop(sender.send(Ok(response))),
        None => drop(response),
    }
    left
}

fn complete_release(
    request: &Request,
    reply: Reply,
    completion: Option<ReleaseCompletion>,
    shared: &ConnShared,
) {
    match (completion, request, reply) {
        (Some(completion), request, reply) => {
            let outcome = replies::released(reply);
            completion.complete(
                outcome.map_err(|error| name_release(error.on_server(&shared.context.server), request)),
            );
        }
        (None, Request::Release { key, token, .. }, Reply::Refused(status)) => {
            let (fence, status) = (shared.fence_of(token), status.to_string());
            tracing::debug!(%key, ?fence, status = %printable(&status), "released a lease that was gone already");
        }
        (None, ..) => {}
    }
}

fn unclaimed_grant(request: Request, token: &Token) -> Option<UnclaimedGrant> {
    let (key, family) = match request {
        Request::Acquire { key, limit, .. } | Request::Enqueue { key, limit, .. } => (key, Family::of(limit)),
        Request::Wait { key, family, .. } => (key, family),
        _ => return None,
    };
    Some(UnclaimedGrant { key, token: token.clone(), family, rerouted: None })
}
