//! This machine's name, as Python's `socket.getfqdn` returns it, and which of its processes live.

use std::net::IpAddr;
use std::sync::OnceLock;

/// Returns this machine's name in the domain name system, queried once in a process.
pub(super) fn name() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        let own = dns_lookup::get_hostname().unwrap_or_else(|_| "localhost".to_owned());
        let address = dns_lookup::lookup_host(&own).ok().and_then(|mut found| found.next());
        let reverse = address.and_then(|address| {
            let canonical = dns_lookup::lookup_addr(&address).ok()?;
            // If no name is known, the address comes back.
            (canonical.parse::<IpAddr>().is_err()).then(|| (canonical, aliases(address)))
        });
        qualified(own, reverse)
    })
}

/// Returns the canonical name if it has a dot, or else the first alias with one, or else the canonical
/// name; the host's own name if there is no canonical one.
fn qualified(own: String, reverse: Option<(String, Vec<String>)>) -> String {
    let Some((canonical, aliases)) = reverse else { return own };
    if canonical.contains('.') {
        return canonical;
    }
    aliases.into_iter().find(|alias| alias.contains('.')).unwrap_or(canonical)
}

/// Returns the other names of an address: only the hosts file has any.
fn aliases(address: IpAddr) -> Vec<String> {
    let file = if cfg!(windows) { r"C:\Windows\System32\drivers\etc\hosts" } else { "/etc/hosts" };
    aliases_in(&std::fs::read_to_string(file).unwrap_or_default(), address)
}

fn aliases_in(hosts: &str, address: IpAddr) -> Vec<String> {
    for line in hosts.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        if words.next().and_then(|word| word.parse().ok()) == Some(address) {
            return words.skip(1).map(str::to_owned).collect();
        }
    }
    Vec::new()
}

/// Returns `true` if a process of this machine runs, and if that cannot be known.
pub(super) fn is_alive(pid: u32) -> bool {
    system::is_alive(pid)
}

#[cfg(unix)]
mod system {
    use rustix::io::Errno;
    use rustix::process::{Pid, test_kill_process};

    pub(super) fn is_alive(pid: u32) -> bool {
        let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return false };
        // Another user's process may not be signalled, but it exists.
        test_kill_process(pid) != Err(Errno::SRCH)
    }
}

#[cfg(not(unix))]
mod system {
    pub(super) fn is_alive(_pid: u32) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_dot_is_preferred() {
        let reverse = |canonical: &str, aliases: &[&str]| {
            Some((canonical.to_owned(), aliases.iter().map(|&a| a.to_owned()).collect()))
        };
        let own = || "own".to_owned();
        assert_eq!(qualified(own(), None), "own");
        assert_eq!(qualified(own(), reverse("h.example", &["h"])), "h.example");
        assert_eq!(qualified(own(), reverse("h", &["other", "h.example"])), "h.example");
        assert_eq!(qualified(own(), reverse("localhost", &["own"])), "localhost");
    }

    #[test]
    fn aliases_are_those_of_the_first_line_that_names_the_address() {
        let hosts = "# 10.0.0.1 no no.example\n10.0.0.1 h h.example # note\n10.0.0.1 late late.example\n";
        assert_eq!(aliases_in(hosts, "10.0.0.1".parse().unwrap()), ["h.example"]);
        assert!(aliases_in(hosts, "10.0.0.2".parse().unwrap()).is_empty());
    }

    #[test]
    fn this_process_is_alive_and_none_is_0() {
        assert!(is_alive(std::process::id()));
        assert!(!is_alive(0));
        assert!(!is_alive(u32::MAX));
    }
}
