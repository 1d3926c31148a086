//! What is wrong with a setting, found out before anything is sent.

use std::time::Duration;

use crate::error::{Error, Result, is_host, quoted};
use crate::types::{MAX_AUTH_TOKEN_BYTES, Seconds};

/// `host:port`, an IPv6 host in brackets.
pub(crate) fn server_name(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

pub(crate) fn check_server(host: &str, port: u16) -> Result<()> {
    if host.is_empty() {
        return Err(Error::invalid("host", "is empty"));
    }
    if !is_host(host) {
        let fault = format!("is {} and no name, whose limit is 253 bytes, and 63 a label", quoted(host));
        return Err(Error::invalid("host", fault));
    }
    if host.contains(char::is_whitespace) {
        return Err(Error::invalid("host", format!("{} has white space", quoted(host))));
    }
    if host.contains(['[', ']']) {
        let fault = format!("{} has brackets, the address goes without them", quoted(host));
        return Err(Error::invalid("host", fault));
    }
    if port == 0 {
        return Err(Error::invalid("port", "is 0, the range is 1 to 65535"));
    }
    Ok(())
}

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

pub(crate) fn check_auth_token(token: &str) -> Result<()> {
    if token.is_empty() {
        return Err(Error::invalid("auth_token", "is empty"));
    }
    if token.contains(['\n', '\r']) {
        return Err(Error::invalid("auth_token", "has a line break"));
    }
    if token.len() > MAX_AUTH_TOKEN_BYTES {
        let fault = format!("is {} bytes long, the limit is {MAX_AUTH_TOKEN_BYTES}", token.len());
        return Err(Error::invalid("auth_token", fault));
    }
    Ok(())
}
