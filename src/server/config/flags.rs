//! The command line of the binary: Go's one dash, what a value may be, and one line for a fault.

use std::error::Error as _;
use std::ffi::OsString;
use std::io::{self, Write};
use std::process;

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory, FromArgMatches};

use super::ServerConfig;

pub(super) fn parse(args: impl Iterator<Item = OsString>) -> Result<ServerConfig, clap::Error> {
    let mut matches = command().try_get_matches_from(args.map(two_dashes))?;
    ServerConfig::from_arg_matches_mut(&mut matches)
}

/// The arguments are wrong.
const USAGE: i32 = 2;
/// What was asked for could not be written: `EX_IOERR`.
const OUTPUT: i32 = 74;
/// The reader of a pipe has gone, as a shell shows it: 128 and the number of `SIGPIPE`.
const NO_READER: i32 = 141;

/// Answers `--help` and `--version`, and says what is wrong with anything else.
pub(super) fn exit(error: &clap::Error) -> ! {
    // `eprintln!` panics where stderr is gone; the status says it all the same.
    let say = |line: &str| drop(writeln!(io::stderr(), "dflockd: {line}"));
    if error.use_stderr() {
        say(&fault(error));
        process::exit(USAGE)
    }
    match error.print().and_then(|()| io::stdout().flush()) {
        Ok(()) => process::exit(0),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => process::exit(NO_READER),
        Err(error) => {
            say(&format!("could not write the output: {error}"));
            process::exit(OUTPUT)
        }
    }
}

fn command() -> Command {
    // An empty variable is how scripts and compose files say "not set".
    ServerConfig::command().mut_args(|arg| {
        let empty = |name| std::env::var_os(name).is_some_and(|value| value.is_empty());
        if arg.get_env().is_some_and(empty) { arg.env(Resettable::Reset) } else { arg }
    })
}

/// `-port` means `--port`; what has one letter, or is a number, stays as it is.
fn two_dashes(arg: OsString) -> OsString {
    match arg.as_encoded_bytes() {
        [b'-', b'a'..=b'z', _, ..] => {
            let mut long = OsString::from("-");
            long.push(arg);
            long
        }
        _ => arg,
    }
}

/// Takes a whole number from `least` to `most`.
pub(super) fn number<T: TryFrom<u64>>(
    least: u64,
    most: u64,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync {
    move |text| {
        let number = text.parse().ok().filter(|number| (least..=most).contains(number));
        let number = number.and_then(|number| T::try_from(number).ok());
        number.ok_or_else(|| format!("it takes a whole number from {least} to {most}"))
    }
}

pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "t" | "1" => Ok(true),
        "false" | "f" | "0" => Ok(false),
        _ => Err("it takes true or false".into()),
    }
}

/// The fault in one line. No argument that is not a flag's name or a bad number is repeated: it
/// might be a misplaced secret.
pub(super) fn fault(error: &clap::Error) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.as_str(),
        _ => "",
    };
    let flag = context(ContextKind::InvalidArg);
    let named = flag.split([' ', '[', '=']).next().unwrap_or_default();
    match (error.kind(), error.source()) {
        (ErrorKind::ValueValidation, Some(fault)) => {
            let value = shown(context(ContextKind::InvalidValue));
            format!("{} is {value}: {fault}", with_variable(named))
        }
        (ErrorKind::InvalidValue, _) => format!("{} needs a value", with_variable(named)),
        (ErrorKind::UnknownArgument, _) if is_flag(named) => {
            format!("there is no flag {named}: try --help")
        }
        (ErrorKind::UnknownArgument | ErrorKind::TooManyValues, _) => {
            "a value that belongs to no flag: try --help".into()
        }
        _ => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            line.strip_prefix("error: ").unwrap_or(line).to_owned()
        }
    }
}

/// Returns `true` for what may be a flag, and is neither a key nor a token that begins with a dash.
fn is_flag(text: &str) -> bool {
    const LONGEST_FLAG: usize = 40;
    let name = text.trim_start_matches('-');
    let plain = name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'-'));
    text.starts_with('-') && plain && (1..=LONGEST_FLAG).contains(&name.len())
}

/// A bad value, unless it is long and no number: it might be a misplaced secret.
fn shown(value: &str) -> String {
    const LONGEST: usize = 19;
    let is_number = value.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'-' | b'.'));
    if value.len() > LONGEST && !is_number {
        return format!("a text of {} bytes", value.len());
    }
    format!("{value:?}")
}

/// The flag and its environment variable: the bad value may be in either.
fn with_variable(flag: &str) -> String {
    let command = ServerConfig::command();
    let arg = command.get_arguments().find(|arg| arg.get_long() == flag.strip_prefix("--"));
    match arg.and_then(|arg| arg.get_env()) {
        Some(variable) => format!("{flag} ({})", variable.display()),
        None => flag.to_owned(),
    }
}
