//! What needs processes: the binaries and the examples as people run them, signals, forks, and what
//! changes a process as a whole.

#[path = "../support/apart.rs"]
mod apart;
#[path = "../support/dflockd.rs"]
mod dflockd;
#[path = "../support/proxy.rs"]
mod proxy;

#[cfg(feature = "cli")]
mod cli;
mod dflockd_bin;
#[cfg(unix)]
mod dflockd_hangup;
#[cfg(unix)]
mod dflockd_limits;
#[cfg(unix)]
mod dflockd_log;
#[cfg(unix)]
mod dflockd_stop;
mod dflockd_wire;
mod examples;
mod fences;
#[cfg(unix)]
mod forked;
#[cfg(target_os = "linux")]
mod hostile_client_bin;
#[cfg(unix)]
mod proxy_client;
#[cfg(unix)]
mod proxy_contenders;
#[cfg(unix)]
mod proxy_server;
#[cfg(all(target_os = "linux", feature = "file"))]
mod slept;
#[cfg(unix)]
mod suspended;
#[cfg(feature = "cli")]
mod tls_pem;
