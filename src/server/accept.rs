//! Accepts connections up to the limits on their number, and stops gracefully.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::net::{BoxStream, Listen};
use crate::server::connection;
use crate::server::lifecycle::ServerState;
use crate::server::shared::ServerShared;

/// The pause after the system failed to accept a connection.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

pub(super) async fn serve(
    shared: &Arc<ServerShared>,
    mut listener: impl Listen,
    shutdown: impl Future<Output = ()> + Send,
) {
    let addresses = listener.local_addrs().unwrap_or_default();
    let (address, also) =
        (addresses.first().map(tracing::field::display), addresses.get(1..).unwrap_or_default());
    let also = (!also.is_empty()).then_some(tracing::field::debug(also));
    tracing::info!(address, also, config = ?shared.config, "listening");
    let mut shutdown = std::pin::pin!(shutdown);
    let per_ip = PerIp::default();
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            // A dual-stack listener shows an IPv4 peer as an IPv6 address. Both count as the same peer.
            Ok((stream, peer)) => admit(shared, &per_ip, Box::new(stream), peer.ip().to_canonical()),
            Err(error) => {
                shared.warnings.accept.warn(|what| tracing::warn!(%error, "{what}"));
                if !is_peer_fault(&error) {
                    // The system has no file or memory left, and would fail in the same way at once.
                    tokio::select! {
                        biased;
                        () = &mut shutdown => break,
                        () = sleep(ACCEPT_RETRY_DELAY) => {}
                    }
                }
            }
        }
    }
    drop(listener);
    stop(shared).await;
}

/// Returns `true` if only this connection failed, so that the next may be accepted at once.
fn is_peer_fault(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Serves a connection in a new task, unless a limit is reached.
fn admit(shared: &Arc<ServerShared>, per_ip: &PerIp, stream: BoxStream, peer: IpAddr) {
    let config = &shared.config;
    let open_connections = shared.open_connections();
    if config.max_connections > 0 && open_connections >= config.max_connections as u64 {
        let log = |what| tracing::warn!(%peer, limit = config.max_connections, "{what}");
        return shared.warnings.max_connections.warn(log);
    }
    let Some(per_ip_guard) = per_ip.count(peer, config.max_connections_per_ip) else {
        let log = |what| tracing::warn!(%peer, limit = config.max_connections_per_ip, "{what}");
        return shared.warnings.max_connections_per_ip.warn(log);
    };
    tracing::debug!(%peer, "connected");
    // Counted here, so that a burst cannot exceed the limit before its tasks run.
    let guard = shared.connect();
    let shared = shared.clone();
    tokio::spawn(async move {
        let secured = tokio::select! {
            biased;
            secured = secure(&shared, stream, peer) => secured,
            // A peer whose handshake is not complete holds nothing, so a stop does not wait for it.
            () = shared.lifecycle.reached(ServerState::Draining) => None,
        };
        if let Some(stream) = secured {
            connection::serve_guarded(shared, guard, stream).await;
        }
        tracing::debug!(%peer, "disconnected");
        drop(per_ip_guard);
    });
}

/// Does the TLS handshake if TLS is on.
#[cfg_attr(not(feature = "tls"), allow(clippy::unused_async))]
async fn secure(shared: &ServerShared, stream: BoxStream, peer: IpAddr) -> Option<BoxStream> {
    #[cfg(feature = "tls")]
    if let Some(tls) = shared.credentials().tls {
        let handshake_timeout = shared.config.read_timeout;
        let secured = match timeout(handshake_timeout, tls.accept(stream)).await {
            Ok(secured) => secured.map_err(|error| error.to_string()),
            Err(_) => Err(format!("the handshake took longer than {handshake_timeout:?}")),
        };
        let log = |error| shared.warnings.handshake.warn(|what| tracing::warn!(%peer, error, "{what}"));
        return secured.map_err(log).ok();
    }
    let _ = (shared, peer);
    Some(stream)
}

/// Waits up to the shutdown timeout for holders to release, then ends every connection.
pub(super) async fn stop(shared: &Arc<ServerShared>) {
    tracing::info!("draining");
    let mut connections = shared.connection_count.subscribe();
    let all_gone = async {
        shared.drain().await;
        let _ = connections.wait_for(|count| *count == 0).await;
        shared.kept_leases_expired().await;
    };
    match shared.config.shutdown_timeout {
        Duration::ZERO => all_gone.await,
        limit => {
            if timeout(limit, all_gone).await.is_err() {
                tracing::warn!("shutdown timeout: closing the connections that still hold locks");
            }
        }
    }
    shared.lifecycle.advance(ServerState::Stopped);
    shared.warnings.flush();
    tracing::info!("stopped");
}

/// The number of open connections of each address.
#[derive(Clone, Default)]
struct PerIp(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl PerIp {
    fn count(&self, peer: IpAddr, cap: usize) -> Option<PerIpGuard> {
        // Never poisoned: no code panics while it holds the lock.
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(peer).or_default();
        if cap > 0 && *count >= cap {
            return None;
        }
        *count += 1;
        Some(PerIpGuard { counts: self.clone(), peer })
    }
}

struct PerIpGuard {
    counts: PerIp,
    peer: IpAddr,
}

impl Drop for PerIpGuard {
    fn drop(&mut self) {
        let mut counts = self.counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.peer);
            }
        }
    }
}
