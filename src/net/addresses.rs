//! Connects to a name that has several addresses: side by side, a little apart, so that a dead one costs
//! a moment and not the whole connect timeout (RFC 8305).

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::sleep;

/// How long an attempt runs alone before the next address is tried beside it.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// The address of each name that worked last: it is tried first.
#[derive(Debug, Default)]
pub(super) struct Addresses(Mutex<HashMap<(String, u16), SocketAddr>>);

impl Addresses {
    /// Connects to the address of `host:port` that answers first.
    ///
    /// # Errors
    /// The last failure, once every address has failed.
    pub(super) async fn connect<R, C, S>(
        &self,
        host: &str,
        port: u16,
        resolve: R,
        connect: impl Fn(SocketAddr) -> C,
    ) -> io::Result<S>
    where
        R: Future<Output = io::Result<Vec<SocketAddr>>>,
        C: Future<Output = io::Result<S>>,
    {
        let name = (host.to_owned(), port);
        let found = resolve.await?;
        let last = self.last_working().get(&name).copied();
        let is_one_of_many = found.len() > 1;
        let (address, stream) = connect_first(in_order(found, last), connect).await?;
        if is_one_of_many && last != Some(address) {
            self.last_working().insert(name, address);
        }
        Ok(stream)
    }

    fn last_working(&self) -> MutexGuard<'_, HashMap<(String, u16), SocketAddr>> {
        // Nothing panics while it is locked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the address that worked last, then the other ones in the resolver's order with the families
/// alternating, so that a family without a route delays no connect.
fn in_order(mut found: Vec<SocketAddr>, last: Option<SocketAddr>) -> Vec<SocketAddr> {
    if let Some(at) = found.iter().position(|address| Some(*address) == last) {
        found[..=at].rotate_right(1);
    }
    let preferred = found.first().is_some_and(SocketAddr::is_ipv6);
    let (one, other): (Vec<_>, Vec<_>) = found.into_iter().partition(|found| found.is_ipv6() == preferred);
    let (mut one, mut other) = (one.into_iter(), other.into_iter());
    let mut ordered = Vec::with_capacity(one.len() + other.len());
    while one.len() + other.len() > 0 {
        ordered.extend(one.next().into_iter().chain(other.next()));
    }
    ordered
}

async fn connect_first<C, S>(
    addresses: Vec<SocketAddr>,
    connect: impl Fn(SocketAddr) -> C,
) -> io::Result<(SocketAddr, S)>
where
    C: Future<Output = io::Result<S>>,
{
    let attempt = async |address| (address, connect(address).await);
    let (mut next, mut attempts) = (addresses.into_iter(), FuturesUnordered::new());
    let mut fault = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        // The next begins when an attempt has failed, or ran alone for long enough.
        attempts.extend(next.next().map(attempt));
        tokio::select! {
            biased;
            outcome = attempts.next() => match outcome {
                Some((address, Ok(stream))) => return Ok((address, stream)),
                Some((_, Err(error))) => fault = error,
                None => return Err(fault),
            },
            () = sleep(ATTEMPT_DELAY), if next.len() > 0 => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::Instant;

    use super::*;

    /// What an address does: answers, or refuses, after a number of milliseconds; or swallows everything.
    #[derive(Clone, Copy)]
    enum Does {
        Answer(u64),
        Refuse(u64),
        Swallow,
    }
    use Does::{Answer, Refuse, Swallow};

    fn address(text: &str) -> SocketAddr {
        format!("{text}:6388").parse().unwrap()
    }

    /// Connects to a name with these addresses; returns the outcome, after how many milliseconds it came,
    /// and which addresses were tried, in order.
    async fn connect(known: &Addresses, does: &[(&str, Does)]) -> (io::Result<String>, u128, Vec<String>) {
        let (tried, start) = (Arc::new(Mutex::new(Vec::new())), Instant::now());
        let found = does.iter().map(|(text, _)| address(text)).collect();
        let outcome = known
            .connect("name", 6388, async { Ok(found) }, |to| {
                let (text, does) = *does.iter().find(|(text, _)| address(text) == to).unwrap();
                let tried = tried.clone();
                async move {
                    tried.lock().unwrap().push(text.to_owned());
                    match does {
                        Answer(after) => sleep(Duration::from_millis(after)).await,
                        Refuse(after) => {
                            sleep(Duration::from_millis(after)).await;
                            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, text));
                        }
                        Swallow => std::future::pending().await,
                    }
                    Ok(text.to_owned())
                }
            })
            .await;
        let tried = tried.lock().unwrap().clone();
        (outcome, start.elapsed().as_millis(), tried)
    }

    const A: &str = "10.0.0.1";
    const B: &str = "10.0.0.2";
    const C: &str = "[fd00::1]";
    const D: &str = "[fd00::2]";

    #[tokio::test(start_paused = true)]
    async fn an_address_that_swallows_everything_costs_a_moment_once() {
        let known = Addresses::default();
        let does = [(A, Swallow), (B, Answer(20))];
        let (outcome, took, tried) = connect(&known, &does).await;
        assert_eq!((outcome.unwrap(), took, tried), (B.to_owned(), 270, vec![A.to_owned(), B.to_owned()]));
        // The one that worked comes first from now on.
        let (outcome, took, tried) = connect(&known, &does).await;
        assert_eq!((outcome.unwrap(), took, tried), (B.to_owned(), 20, vec![B.to_owned()]));
        // Until it no longer does.
        let (outcome, took, tried) = connect(&known, &[(A, Answer(20)), (B, Swallow)]).await;
        assert_eq!((outcome.unwrap(), took, tried), (A.to_owned(), 270, vec![B.to_owned(), A.to_owned()]));
        let (outcome, took, _) = connect(&known, &[(A, Answer(20)), (B, Swallow)]).await;
        assert_eq!((outcome.unwrap(), took), (A.to_owned(), 20));
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_refuses_makes_way_at_once() {
        let does = [(A, Refuse(5)), (C, Refuse(5)), (B, Answer(5))];
        let (outcome, took, tried) = connect(&Addresses::default(), &does).await;
        assert_eq!((outcome.unwrap(), took), (B.to_owned(), 15));
        assert_eq!(tried, [A, C, B]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_address_goes_on_while_the_next_is_tried() {
        let does = [(A, Answer(400)), (B, Swallow)];
        let (outcome, took, _) = connect(&Addresses::default(), &does).await;
        assert_eq!((outcome.unwrap(), took), (A.to_owned(), 400));
        let does = [(A, Answer(400)), (B, Refuse(10))];
        let (outcome, took, _) = connect(&Addresses::default(), &does).await;
        assert_eq!((outcome.unwrap(), took), (A.to_owned(), 400));
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_have_failed_the_last_failure_is_told() {
        let does = [(A, Refuse(300)), (B, Refuse(300))];
        let (outcome, took, _) = connect(&Addresses::default(), &does).await;
        let error = outcome.unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string(), took),
            (io::ErrorKind::ConnectionRefused, B.to_owned(), 550)
        );
        let (outcome, _, _) = connect(&Addresses::default(), &[]).await;
        assert_eq!(outcome.unwrap_err().to_string(), "the name has no address");
    }

    #[test]
    fn families_take_turns_behind_the_one_that_worked() {
        let order = |found: &[&str], last: Option<&str>| {
            let found = found.iter().map(|text| address(text)).collect();
            let ordered = in_order(found, last.map(address));
            ordered.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(order(&[C, D, A, B], None), "fd00::1 10.0.0.1 fd00::2 10.0.0.2");
        assert_eq!(order(&[C, D, A, B], Some(B)), "10.0.0.2 fd00::1 10.0.0.1 fd00::2");
        assert_eq!(order(&[C, D, A], Some(D)), "fd00::2 10.0.0.1 fd00::1");
        assert_eq!(order(&[A, B], Some(C)), "10.0.0.1 10.0.0.2", "one that is gone is forgotten");
    }
}
