//! Which processes the command has left: those that descend from `dflock`, to which the kernel
//! hands every orphan below it where it is told to. A process that has ended and that nobody has
//! waited for does not count. Read from `/proc`; where there is none, nothing is known.

use std::collections::HashMap;
use std::fs;

use rustix::process::{Pid, getpid};

/// What descends from this process since it was looked at for the first time.
pub(crate) struct Family {
    /// Children from before: a shell that was replaced by `dflock` may have left some.
    others: Vec<Pid>,
}

struct Process {
    pid: Pid,
    parent: Option<Pid>,
    group: Option<Pid>,
    lives: bool,
}

impl Family {
    /// Becomes the parent of every orphan from now on.
    pub(crate) fn found() -> Self {
        // An old kernel leaves them to process 1.
        #[cfg(target_os = "linux")]
        let _ = rustix::process::set_child_subreaper(Some(getpid()));
        let mut family = Self { others: Vec::new() };
        family.others = family.living(None).unwrap_or_default();
        family
    }

    /// Those that live, in `group` alone if it is given; `None` where the system does not tell.
    pub(crate) fn living(&self, group: Option<Pid>) -> Option<Vec<Pid>> {
        let all = processes()?;
        let mut children: HashMap<_, Vec<&Process>> = HashMap::new();
        for process in &all {
            children.entry(process.parent).or_default().push(process);
        }
        let (mut found, mut next) = (Vec::new(), vec![getpid()]);
        while let Some(parent) = next.pop() {
            // Taken out, so that numbers that were used again in the meantime make no circle.
            for child in children.remove(&Some(parent)).unwrap_or_default() {
                if self.others.contains(&child.pid) {
                    continue;
                }
                next.push(child.pid);
                if child.lives && (group.is_none() || group == child.group) {
                    found.push(child.pid);
                }
            }
        }
        Some(found)
    }
}

/// Every process that can be seen, this one among them.
fn processes() -> Option<Vec<Process>> {
    let names = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let stats = names.filter(|name| name.starts_with(|c: char| c.is_ascii_digit()));
    let all: Vec<_> = stats.filter_map(|pid| process(&fs::read(format!("/proc/{pid}/stat")).ok()?)).collect();
    all.iter().any(|process| process.pid == getpid()).then_some(all)
}

/// `pid (name) state parent group …`; the name may be anything.
fn process(stat: &[u8]) -> Option<Process> {
    let stat = String::from_utf8_lossy(stat);
    let (head, rest) = stat.rsplit_once(')')?;
    // A process that is about to vanish has -1 for its group.
    let pid = |digits: &str| Pid::from_raw(digits.parse().ok().filter(|number| *number > 0)?);
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    Some(Process {
        pid: pid(head.split(' ').next()?)?,
        parent: pid(fields.next()?),
        group: pid(fields.next()?),
        lives: !matches!(state, "Z" | "X"),
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_looks_like_fields_deceives_nobody() {
        let found = process(b"42 (a) Z 1 1 (b c) S 7 40 40 0").expect("it is whole");
        let number = |pid: Option<Pid>| pid.map(|pid| pid.as_raw_nonzero().get());
        assert_eq!((number(Some(found.pid)), number(found.parent)), (Some(42), Some(7)));
        assert_eq!((number(found.group), found.lives), (Some(40), true));
        let gone = process(b"42 (a) X 7 -1 -1 0").expect("it is whole");
        assert_eq!((gone.group, gone.lives), (None, false));
    }

    #[test]
    fn a_child_is_found_until_it_has_ended_whoever_has_waited_for_it() {
        let before = std::process::Command::new("sleep").arg("1000").spawn();
        let mut before = before.expect("there is a sleep");
        let family = Family::found();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("there is a sleep");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("small"));
        assert_eq!(family.living(None).map(|all| all.contains(&pid.expect("not 0"))), Some(true));
        child.kill().expect("it runs");
        while family.living(None).is_some_and(|all| all.contains(&pid.expect("not 0"))) {
            std::thread::yield_now();
        }
        assert!(child.try_wait().is_ok_and(|ended| ended.is_some()), "it was there to be waited for");
        before.kill().and_then(|()| before.wait()).expect("it runs");
    }
}
