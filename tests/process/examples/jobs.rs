//! How the jobs of `tonic_service` end: done, refused, aborted, or hung up on.

use dflockd_client::test_util::TestServer;
use futures::StreamExt;
use tonic::Code;

use crate::examples::tonic_service::{Jobs, RunRequest};

fn job(steps: u32) -> RunRequest {
    RunRequest { job: "report".into(), steps }
}

#[tokio::test(start_paused = true)]
async fn a_job_streams_its_steps_with_its_fence_and_lets_go() {
    let server = TestServer::new();
    let steps = Jobs { locks: server.locks() }.run(job(3)).await.unwrap();
    let steps: Vec<_> = steps.map(Result::unwrap).collect().await;
    assert_eq!(steps.iter().map(|step| step.step).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(steps.iter().all(|step| step.fence == steps[0].fence && step.fence > 0));
    assert!(server.stats().locks.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_lease_is_lost_is_aborted() {
    let server = TestServer::new();
    let mut steps = Jobs { locks: server.locks() }.run(job(1_000_000)).await.unwrap();
    steps.next().await.unwrap().unwrap();
    server.expire_lease("job:report");
    let end = loop {
        if let Err(status) = steps.next().await.expect("it does not end well") {
            break status;
        }
    };
    assert_eq!(end.code(), Code::Aborted, "{end}");
    assert!(steps.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_second_job_of_a_name_is_refused_until_the_first_is_dropped() {
    let server = TestServer::new();
    let jobs = Jobs { locks: server.locks() };
    let first = jobs.clone().run(job(10)).await.unwrap();
    assert_eq!(jobs.clone().run(job(10)).await.err().unwrap().code(), Code::AlreadyExists);
    drop(first);
    assert!(jobs.run(job(10)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_lock_server_that_is_away_is_unavailable_and_a_bad_name_is_the_callers_fault() {
    let server = TestServer::new();
    let jobs = Jobs { locks: server.locks() };
    let bad = jobs.clone().run(RunRequest { job: "two words".into(), steps: 1 }).await;
    assert_eq!(bad.err().unwrap().code(), Code::InvalidArgument);
    server.partition();
    assert_eq!(jobs.run(job(1)).await.err().unwrap().code(), Code::Unavailable);
}
