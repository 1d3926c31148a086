//! The client, against servers in the same process: the embedded one, and peers that a test scripts.

#[path = "../support/faces.rs"]
mod faces;
#[path = "../support/peers.rs"]
mod peers;
#[path = "../support/turns.rs"]
mod turns;
#[path = "../support/world.rs"]
mod world;

mod blocking;
mod cancel;
mod cancel_held;
mod closing;
mod conn;
mod conn_turns;
#[cfg(feature = "file")]
mod errors;
mod faults;
mod faults_held;
mod hostile_floods;
mod hostile_server;
mod house;
mod in_time;
mod leases;
mod lost;
mod lost_states;
mod races;
mod races_runtime;
mod reattach;
mod releases;
mod retry;
mod runtimes;
mod seats;
mod secure;
mod seen;
mod settings;
mod sharding;
mod shared;
mod stalls;
mod test_util;
mod tls;
mod unfenced;
mod unread;
