//! The command line: what may be given, what `--help` says of it, and one line for a fault.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::connection::{Connection, without_contradicting_variables};
use crate::exit;
use crate::help::{EXAMPLES, FILE_EXAMPLES, LONG_EXAMPLES, RUN_EXAMPLES, STATS_EXAMPLES, run_help};

/// Run commands under a lock, of a dflockd server or a lock file, and see who holds what.
#[derive(Debug, Parser)]
#[command(name = "dflock", version, after_help = EXAMPLES, after_long_help = LONG_EXAMPLES, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) action: Action,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Run a command while holding a key.
    #[command(after_help = RUN_EXAMPLES, after_long_help = run_help())]
    Run(Run),
    /// Run a command while holding a lock file; look at one, break one.
    #[command(after_help = FILE_EXAMPLES, after_long_help = FILE_EXAMPLES)]
    File(File),
    /// Show what is held and who waits.
    #[command(after_help = STATS_EXAMPLES)]
    Stats(Stats),
    /// Watch what is held and who waits, on the full screen.
    Top(Top),
    /// Ask every server whether it is there, and tell how long it takes to answer.
    Ping(Ping),
    /// Tell which server a key lives on. Asks none.
    Shard(Shard),
    /// Print a shell's completions.
    #[command(after_help = "Example:\n  source <(dflock completions bash)")]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print a man page.
    #[command(
        after_help = "Examples:\n  dflock man run | man -l -\n  dflock man --dir ~/.local/share/man/man1"
    )]
    Man {
        /// The subcommand whose page it is; the whole command's where none is given.
        subcommand: Option<String>,
        /// Write all pages into this directory instead.
        #[arg(long, value_name = "DIR", conflicts_with = "subcommand")]
        dir: Option<PathBuf>,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Run {
    /// The key to hold: 1 to 256 bytes without white space.
    pub(crate) key: String,

    /// Let this many hold the key at a time; everybody who uses it gives the same number.
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u64>,

    /// Keep trying while the server cannot be reached, for as long as --wait says.
    #[arg(long)]
    pub(crate) retry: bool,

    #[command(flatten)]
    pub(crate) holding: Holding,

    #[command(flatten)]
    pub(crate) connection: Connection,
}

/// How the lock is waited for, and what is run under it.
#[derive(Args, Debug)]
pub(crate) struct Holding {
    /// How long to wait for the lock [default: forever].
    #[arg(long, short, value_name = "TIME", value_parser = duration)]
    pub(crate) wait: Option<Duration>,

    /// Do not wait.
    #[arg(long = "try", short = 'n', visible_alias = "nonblock", conflicts_with = "wait")]
    pub(crate) at_once: bool,

    /// How long the lease lasts unless it is renewed, which happens in the background [default: the
    /// server's, or 15s for a file]. The shorter, the sooner others go on after a crash.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) ttl: Option<Duration>,

    /// What to do with the command when the lease is lost: only say so, or end it by SIGTERM (and by
    /// SIGKILL where that does not help), or by SIGKILL at once.
    #[arg(long, value_enum, value_name = "HOW", default_value_t = OnLost::Term)]
    pub(crate) on_lost: OnLost,

    /// How long after SIGTERM to send SIGKILL.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub(crate) kill_after: Duration,

    /// When the command has ended, end what is left of its process group, by SIGTERM and after
    /// --kill-after by SIGKILL; the lock is kept until then.
    #[arg(long, conflicts_with_all = ["kill_all", "wait_for_all"])]
    pub(crate) kill_group: bool,

    /// The same with all that the command has started, also what has left its process group and was
    /// orphaned (Linux).
    #[arg(long, conflicts_with = "wait_for_all")]
    pub(crate) kill_all: bool,

    /// Keep the lock until all that the command has started has ended as well (Linux).
    #[arg(long)]
    pub(crate) wait_for_all: bool,

    /// Let the shell run COMMAND, which is a script; what follows it are its arguments $1, $2, ...
    #[arg(long)]
    pub(crate) shell: bool,

    /// The exit code when the lock stayed taken.
    #[arg(long, short = 'E', value_name = "CODE", default_value_t = exit::BUSY)]
    pub(crate) conflict_exit_code: u8,

    /// The exit code when the lease was lost.
    #[arg(long, value_name = "CODE", default_value_t = exit::LOST)]
    pub(crate) lost_exit_code: u8,

    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnLost {
    Warn,
    Term,
    Kill,
}

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct File {
    /// The lock file. Its directory must be there.
    #[arg(required = true)]
    pub(crate) path: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) claims: Claims,

    #[command(flatten)]
    pub(crate) holding: Option<Holding>,

    #[command(subcommand)]
    pub(crate) action: Option<FileAction>,
}

/// How those who want a lock file name themselves.
#[derive(Args, Debug)]
pub(crate) struct Claims {
    /// This machine's name among those who share the file. Two containers need two names [default:
    /// its host name].
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,

    /// What stands between the fields of a claim's name, the same for all who share the file; the
    /// path must not contain it [default: |].
    #[arg(long, value_name = "TEXT")]
    pub(crate) separator: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum FileAction {
    /// Show who holds a lock file; exits with 124 while it is held, and with 0 if it can be taken.
    Status {
        /// The lock file.
        path: PathBuf,
        #[command(flatten)]
        claims: Claims,
    },
    /// Take a lock file away from any holder. The holder's lease is lost.
    Break {
        /// The lock file.
        path: PathBuf,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
        #[command(flatten)]
        claims: Claims,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Stats {
    /// Print JSON: what the protocol's `stats` says, of all servers together.
    #[arg(long)]
    pub(crate) json: bool,

    /// Show each server by itself, also when others cannot be reached.
    #[arg(long)]
    pub(crate) all_shards: bool,

    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Args, Debug)]
pub(crate) struct Top {
    /// How often to ask the servers.
    #[arg(long, short, value_name = "TIME", default_value = "1s", value_parser = duration)]
    pub(crate) interval: Duration,

    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Args, Debug)]
pub(crate) struct Ping {
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Args, Debug)]
pub(crate) struct Shard {
    /// The key.
    pub(crate) key: String,

    #[command(flatten)]
    pub(crate) connection: Connection,
}

/// The whole command, for parsing, for completions and for man pages.
pub(crate) fn command() -> clap::Command {
    Cli::command()
}

pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let args: Vec<_> = args.into_iter().collect();
    let command = without_contradicting_variables(without_empty_variables(command()), &args);
    let mut matches = command.try_get_matches_from(args)?;
    Cli::from_arg_matches_mut(&mut matches)
}

/// An empty variable is how scripts and compose files say "not set".
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| {
        let empty = |name| std::env::var_os(name).is_some_and(|value| value.is_empty());
        if arg.get_env().is_some_and(empty) { arg.env(Resettable::Reset) } else { arg }
    });
    command.mut_subcommands(without_empty_variables)
}

/// The fault in one line, with the place that tells more.
pub(crate) fn fault(error: &clap::Error) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join(", ")),
        _ => None,
    };
    let mut text = error.to_string();
    let unknown = (error.kind() == ErrorKind::UnknownArgument).then_some(ContextKind::InvalidArg);
    for kind in [ContextKind::InvalidValue, ContextKind::InvalidSubcommand].into_iter().chain(unknown) {
        if let Some(given) = context(kind).filter(|given| may_be_secret(given)) {
            text = text.replace(&given, &format!("a text of {} bytes", given.len()));
        }
    }
    let first = text.lines().next().unwrap_or_default();
    let first = first.strip_prefix("error: ").unwrap_or(first).to_owned();
    let line = match (error.kind(), context(ContextKind::InvalidArg)) {
        (ErrorKind::MissingRequiredArgument, Some(missing)) => format!("{missing} is missing"),
        (ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand, _) => {
            "what is to be done is missing".to_owned()
        }
        _ => first,
    };
    let command = std::env::args().nth(1).filter(|word| command().find_subcommand(word).is_some());
    let help =
        command.map_or_else(|| "dflock --help".to_owned(), |command| format!("dflock {command} --help"));
    format!("{}; see {help}", exit::one_line(&line))
}

/// Returns `true` for what may be a key or a token in the wrong place: it is long, and no flag.
fn may_be_secret(given: &str) -> bool {
    const LONGEST_VALUE: usize = 19;
    let is_flag = given.starts_with('-') && given.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'-'));
    given.len() > LONGEST_VALUE && !is_flag
}

/// A time as people write it: `90s`, `2m`, `1h 30m`, `250ms`, or seconds as a bare number.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|_| text.starts_with(|c: char| c.is_ascii_digit()));
    let time = match seconds {
        Some(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        None => humantime::parse_duration(text).ok(),
    };
    time.ok_or_else(|| "it takes a time, such as 90s, 2m or 1h30m".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Action, clap::Error> {
        parse(line.split(' ').map(OsString::from)).map(|cli| cli.action)
    }

    #[test]
    fn the_command_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, millis) in
            [("90s", 90_000), ("2m", 120_000), ("1h30m", 5_400_000), ("7", 7000), ("0.5", 500)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "-1", "x", "5 parsecs", "inf", "nan", "1e300"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn flags_after_the_command_are_the_commands() {
        for line in ["dflock run --ttl 5s k -- ls --try -n", "dflock run k --ttl 5s -- ls --try -n"] {
            let Ok(Action::Run(run)) = parsed(line) else { panic!("{line}") };
            assert_eq!(run.holding.command, ["ls", "--try", "-n"]);
            assert_eq!(run.holding.ttl, Some(Duration::from_secs(5)));
            assert!(!run.holding.at_once);
        }
    }

    #[test]
    fn a_lock_file_is_run_under_or_looked_at() {
        let Ok(Action::File(file)) = parsed("dflock file --try a.lck -- ls -l") else { panic!("run") };
        assert_eq!(file.path, Some("a.lck".into()));
        assert_eq!(file.holding.expect("what to run").command, ["ls", "-l"]);
        let Ok(Action::File(file)) = parsed("dflock file status a.lck") else { panic!("status") };
        assert!(matches!(file.action, Some(FileAction::Status { path, .. }) if path == *"a.lck"));
        assert!(parsed("dflock file a.lck").is_err());
    }
}
