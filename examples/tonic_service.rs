//! Long jobs over gRPC, on tonic: `Run` streams a job's progress and holds a lease for as long. The stream
//! ends with `ABORTED` as soon as the lease is lost, and a client that disconnects frees the job.
//!
//! `cargo run --release --example tonic_service` runs all of it. The service is written by hand, so that the
//! build needs no `protoc`; its `.proto` would be:
//!
//! ```proto
//! package demo;
//! service Jobs { rpc Run (RunRequest) returns (stream Progress); }
//! message RunRequest { string job = 1; uint32 steps = 2; }
//! message Progress { uint32 step = 1; uint64 fence = 2; }
//! ```

use std::convert::Infallible;
use std::task::{Context, Poll};
use std::time::Duration;

use dflockd_client::test_util::TestServer;
use dflockd_client::{Error, LockClient, Outcome};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, try_unfold};
use tokio::time::sleep;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::{NamedService, ServerStreamingService};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

const RUN: &str = "/demo.Jobs/Run";

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct RunRequest {
    #[prost(string, tag = "1")]
    pub(crate) job: String,
    #[prost(uint32, tag = "2")]
    pub(crate) steps: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Progress {
    #[prost(uint32, tag = "1")]
    pub(crate) step: u32,
    /// The fence for the job's writes; 0 from a lock server without fences.
    #[prost(uint64, tag = "2")]
    pub(crate) fence: u64,
}

#[derive(Clone)]
pub(crate) struct Jobs {
    pub(crate) locks: LockClient,
}

impl Jobs {
    pub(crate) async fn run(
        self,
        request: RunRequest,
    ) -> Result<BoxStream<'static, Result<Progress, Status>>, Status> {
        let lock = self.locks.lock(format!("job:{}", request.job)).map_err(status)?;
        let running = || Status::already_exists(format!("{} runs already", request.job));
        let guard = lock.try_acquire().await.map_err(status)?.ok_or_else(running)?;
        let fence = guard.fence().map_or(0, |fence| fence.get());
        // The stream owns the guard: dropping the stream releases the lease.
        let steps = try_unfold((guard, 1), move |(guard, step)| async move {
            if step > request.steps {
                guard.release().await.map_err(status)?;
                return Ok(None);
            }
            match guard.run(work()).await {
                Outcome::Completed(()) => Ok(Some((Progress { step, fence }, (guard, step + 1)))),
                Outcome::Lost(reason) => Err(Status::aborted(format!("the lease was lost: {reason}"))),
            }
        });
        Ok(steps.boxed())
    }
}

async fn work() {
    sleep(Duration::from_millis(100)).await;
}

/// The status of an error, which tells a caller to wait, to check, to retry later, or to change the request.
pub(crate) fn status(error: Error) -> Status {
    let code = match &error {
        error if error.is_busy() => Code::AlreadyExists,
        error if error.is_lease_lost() => Code::Aborted,
        error if error.is_invalid_input() => Code::InvalidArgument,
        error if error.is_unavailable() || error.is_timeout() => Code::Unavailable,
        _ => Code::Internal,
    };
    Status::new(code, error.to_string())
}

// From here on, what generated code would do: the service and its client.

impl NamedService for Jobs {
    const NAME: &'static str = "demo.Jobs";
}

impl Service<http::Request<Body>> for Jobs {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let jobs = self.clone();
        Box::pin(async move {
            if request.uri().path() != RUN {
                return Ok(Status::unimplemented("there is Run").into_http());
            }
            Ok(tonic::server::Grpc::new(ProstCodec::default()).server_streaming(jobs, request).await)
        })
    }
}

impl ServerStreamingService<RunRequest> for Jobs {
    type Response = Progress;
    type ResponseStream = BoxStream<'static, Result<Progress, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<RunRequest>) -> Self::Future {
        let running = self.clone().run(request.into_inner());
        Box::pin(async move { running.await.map(Response::new) })
    }
}

async fn call(channel: &Channel, job: &str, steps: u32) -> Result<Streaming<Progress>, Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let codec = ProstCodec::<RunRequest, Progress>::default();
    let request = Request::new(RunRequest { job: job.into(), steps });
    let path = http::uri::PathAndQuery::from_static(RUN);
    Ok(client.server_streaming(request, path, codec).await?.into_inner())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // A lock server in memory, whose leases the example takes away.
    let locks = TestServer::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tonic::transport::Server::builder()
        .add_service(Jobs { locks: locks.locks() })
        .serve_with_incoming_shutdown(TcpIncoming::from(listener), async { drop(stopped.await) });
    let serving = tokio::spawn(serving);
    let channel = Endpoint::try_from(format!("http://{address}"))?.connect().await?;

    println!("a job that runs to its end, and a second one of its name:");
    let mut progress = call(&channel, "report", 3).await?;
    while let Some(step) = progress.next().await {
        let step = step?;
        println!("  step {} with fence {}", step.step, step.fence);
        if step.step == 1 {
            let refused = call(&channel, "report", 3).await.err().ok_or("two of them run")?;
            println!("  the second one: {:?}: {}", refused.code(), refused.message());
        }
    }

    println!("a job whose lease is lost:");
    let mut progress = call(&channel, "report", 1_000).await?;
    println!("  {:?}", progress.message().await?);
    locks.expire_lease("job:report");
    // The next renewal would show it after half of the ttl; a closed connection shows it at once.
    locks.cut();
    let end = loop {
        match progress.message().await {
            Ok(Some(_)) => {}
            Ok(None) => return Err("it ends as if nothing had happened".into()),
            Err(status) => break status,
        }
    };
    println!("  {:?}: {}", end.code(), end.message());
    assert_eq!(end.code(), Code::Aborted);

    println!("a client that hangs up:");
    let mut progress = call(&channel, "report", 1_000).await?;
    println!("  {:?}", progress.message().await?);
    drop(progress);
    while !locks.stats().locks.is_empty() {
        sleep(Duration::from_millis(1)).await;
    }
    println!("  the job is free again");

    drop((channel, stop));
    serving.await??;
    Ok(())
}
