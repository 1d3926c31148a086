//! The other side of a measurement, as a process of its own: an embedded server, or a responder with canned
//! bytes. It prints its address, and ends when its standard input does, so that it cannot outlive its parent.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dflockd_client::Seconds;
use dflockd_client::server::{Server, ServerConfig};

use crate::{Result, baseline, runtime};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Replies with canned bytes to any request: grants of this many seconds
    #[arg(long, value_name = "SECONDS")]
    canned: Option<u64>,
    #[arg(long, requires = "key")]
    cert: Option<PathBuf>,
    #[arg(long, requires = "cert")]
    key: Option<PathBuf>,
}

pub(crate) fn main(args: Args) -> Result<()> {
    let threads = args.threads;
    std::thread::spawn(|| {
        // The end of either ends this process.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    runtime(threads)?.block_on(async {
        if let Some(lease) = args.canned {
            let lease = Seconds::ceil("canned", Duration::from_secs(lease))?;
            return baseline::respond(lease, |address| println!("{address}")).await;
        }
        let server = Server::bind(config(args)).await?;
        println!("{}", server.local_addr().ok_or("the server is not bound")?);
        server.run(std::future::pending()).await;
        Ok(())
    })
}

/// The defaults, except for the limits that a measurement is not about.
fn config(args: Args) -> ServerConfig {
    ServerConfig {
        port: 0,
        max_locks: usize::MAX,
        read_timeout: Duration::from_secs(3600),
        tls_cert: args.cert,
        tls_key: args.key,
        ..Default::default()
    }
}

/// A running peer. Dropping it kills it.
pub(crate) struct Peer {
    child: Child,
    pub(crate) port: u16,
}

impl Peer {
    /// Starts an embedded server.
    pub(crate) fn server(threads: usize) -> Result<Self> {
        Self::start(threads, &[""; 0])
    }

    /// Starts an embedded server with TLS.
    pub(crate) fn tls_server(threads: usize, cert: &Path, key: &Path) -> Result<Self> {
        Self::start(threads, &[OsStr::new("--cert"), cert.as_ref(), OsStr::new("--key"), key.as_ref()])
    }

    /// Starts a responder with canned bytes.
    pub(crate) fn canned(threads: usize, lease: Seconds) -> Result<Self> {
        Self::start(threads, &["--canned", &lease.to_string()])
    }

    fn start(threads: usize, more: &[impl AsRef<OsStr>]) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["peer", "--threads", &threads.to_string()])
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut address = String::new();
        let stdout = child.stdout.take().ok_or("the peer has no output")?;
        BufReader::new(stdout).read_line(&mut address)?;
        let port = address.trim().rsplit(':').next().unwrap_or_default();
        let port = port.parse().map_err(|_| format!("the peer did not start: {address:?}"))?;
        Ok(Self { child, port })
    }

    /// Returns its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have exited by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
