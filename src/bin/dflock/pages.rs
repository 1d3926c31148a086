//! `dflock completions` and `dflock man`: what packagers and shells want to know.

use std::io::{self, Write};
use std::path::Path;

use crate::args;
use crate::exit::{Failure, OUTPUT, one_line};

pub(crate) fn completions(shell: clap_complete::Shell) -> Result<u8, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut args::command(), "dflock", &mut text);
    print(&text)
}

pub(crate) fn man(subcommand: Option<&str>) -> Result<u8, Failure> {
    let mut command = args::command();
    command.build();
    let page = match subcommand {
        None => command,
        Some(name) => {
            let found = command.find_subcommand(name).cloned();
            found.ok_or_else(|| Failure::usage("there is no such subcommand; see dflock --help"))?
        }
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(page).render(&mut text).map_err(|error| Failure::output(&error))?;
    print(&text)
}

/// Writes every page into `dir`, which is made.
pub(crate) fn man_pages(dir: &Path) -> Result<u8, Failure> {
    let written = std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(args::command(), dir));
    written.map_err(|error| {
        Failure::new(OUTPUT, format!("cannot write {}: {error}", one_line(&dir.display())))
    })?;
    Ok(0)
}

fn print(text: &[u8]) -> Result<u8, Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text).and_then(|()| out.flush()).map_err(|error| Failure::output(&error))?;
    Ok(0)
}
