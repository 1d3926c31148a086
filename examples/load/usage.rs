//! The resources that a process uses, as the kernel counts them.

use std::fs;
use std::time::Duration;

use crate::Result;

/// Returns the resident memory, in bytes.
pub(crate) fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).ok_or("no VmRSS")?;
    Ok(kib.trim().parse::<u64>()? * 1024)
}

/// Returns the time that all its threads ran.
pub(crate) fn ran(pid: u32) -> Result<Duration> {
    let mut nanos = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let counts = fs::read_to_string(thread?.path().join("schedstat"))?;
        let ran = counts.split(' ').next().ok_or("no time in schedstat")?;
        nanos += ran.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanos))
}
