//! What is wrong with a setting, found out before anything is sent.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::types::Seconds;

pub(crate) fn check_time(field: &'static str, time: Duration) -> Result<()> {
    if time.is_zero() {
        return Err(Error::invalid(field, "is 0, it must be longer"));
    }
    Seconds::ceil(field, time)?;
    Ok(())
}

pub(crate) fn check_count(field: &'static str, count: usize) -> Result<()> {
    if count == 0 {
        return Err(Error::invalid(field, "is 0, the least is 1"));
    }
    Ok(())
}

pub(crate) fn check_share(field: &'static str, share: f64) -> Result<()> {
    if !(0.0..=1.0).contains(&share) {
        return Err(Error::invalid(field, format!("is {share}, the range is 0 to 1")));
    }
    Ok(())
}

pub(crate) fn lease_seconds(field: &'static str, lease: Option<Duration>) -> Result<Option<Seconds>> {
    let Some(lease) = lease else { return Ok(None) };
    if lease.is_zero() {
        return Err(Error::invalid(field, "is 0, the least is 1 s"));
    }
    Ok(Some(Seconds::ceil(field, lease)?))
}
