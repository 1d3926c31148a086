//! What `--help` and the man pages say beside the flags: examples, and what happens to a command.

use crate::exit;

pub(crate) const EXAMPLES: &str = "\
Examples:
  dflock run nightly-report -- ./report.sh
  dflock run --try --limit 3 exports -- ./export.sh --all
  dflock file /var/lock/report.lck -- ./report.sh
  dflock top --servers 10.0.0.1,10.0.0.2";

pub(crate) const LONG_EXAMPLES: &str = "\
Examples:
  dflock run nightly-report -- ./report.sh
  dflock run --try --limit 3 exports -- ./export.sh --all
  dflock file /var/lock/report.lck -- ./report.sh
  dflock top --servers 10.0.0.1,10.0.0.2

Every flag of the section \"Connection\" has an environment variable. A
flag beats its variable, and an empty variable is none. Colours are
for terminals alone, and off where NO_COLOR is set.";

pub(crate) const RUN_EXAMPLES: &str = "\
Examples:
  dflock run deploy -- ./deploy.sh production
  dflock run --wait 30s --ttl 1m deploy -- make release
  dflock run --try --conflict-exit-code 0 nightly -- ./report.sh
  dflock run --directory /mnt/shared/locks nightly -- ./report.sh
  dflock run dumps --limit 3 --shell 'pg_dump a | gzip > \"$1\"' a.gz";

pub(crate) fn run_help() -> String {
    format!(
        "{RUN_EXAMPLES}

The command finds in its environment:
  DFLOCK_KEY          the key
  DFLOCK_TOKEN_FENCE  the grant's fence: a number that grows with each
                      grant of the key, so that what the lock protects
                      can refuse lower ones; unset if there is none
  DFLOCK_GRANTOR      the server or the lock file that granted it
  DFLOCK_TTL          how many seconds the lease lasts unless renewed
  DFLOCK_LIMIT        how many may hold the key at a time

Every signal that would end dflock is passed on to the command, and the
lock is kept until the command has ended. Without a terminal it gets a
process group of its own, and HUP, INT, QUIT and TERM go to all of it.
On a terminal it shares dflock's group: it can read the terminal, and
^C and ^Z reach it as ever. When the lease is lost there, the whole job
is ended if dflock leads it, as it does when it is typed at the prompt,
or else the command with what it has started in that job. A job that is
suspended cannot renew its lease, and is ended when it continues too
late.

With --directory, dflock asks no server and takes a lock file, whose
name is the key and .lock, each byte but letters, digits, - . _ ~ as
%XX. Programs that use Python's flufl.lock can share it. Waiters poll,
in no order, and there is no fence. After a crash, the next one goes on
when the lease and 10s more have passed.

A dflock that gets KILL can do nothing, and the server hands the key on
at once. On Linux, the kernel then kills the command as well, unless
--on-lost is warn; neither what the command has started, nor one that
runs with other rights than dflock's, such as sudo.

The lock is released when the command has ended. What it has left in the
background, or as a daemon, runs on without the lock. --wait-for-all
keeps the lock until that has ended too, --kill-group and --kill-all end
it. Meanwhile, dflock is the parent of all that the command orphans
(Linux), and reaps it, as process 1 of a container must.

{}",
        exit::TABLE
    )
}

pub(crate) const FILE_EXAMPLES: &str = "\
Examples:
  dflock file /var/lock/report.lck -- ./report.sh
  dflock file --try --ttl 1m /mnt/shared/import.lck -- ./import.sh
  dflock file status /var/lock/report.lck
  dflock file break --yes /var/lock/report.lck

A file that is called \"status\" or \"break\" goes by ./status. Exit
codes, environment and signals are those of \"dflock run --help\"; a
lock file has no fence.";

pub(crate) const STATS_EXAMPLES: &str = "\
Examples:
  dflock stats
  dflock stats --json | jq '.locks[].key'
  dflock stats --all-shards --servers 10.0.0.1,10.0.0.2

A server that is there has a minute to send its table, which may be
long. Characters in a key that cannot be seen, or that deceive, are
shown as \\u{202e}; JSON has them as they are.";
