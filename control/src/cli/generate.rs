//! What packagers install beside the program: completions and manual pages.

use super::{Cli, CompletionsArgs, ManArgs};
use crate::Error;
use clap::{Command, CommandFactory};
use std::io::Write;
use std::process::ExitCode;

const NAME: &str = "ipop-fast";

/// Prints a completion script.
///
/// # Errors
/// If it cannot be written.
pub fn completions(args: &CompletionsArgs) -> Result<ExitCode, Error> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), NAME, &mut script);
    crate::admin::view::print(&script)
}

/// Prints a manual page, or writes all of them.
///
/// # Errors
/// If it cannot be written, or there is no such command.
pub fn man(args: &ManArgs) -> Result<ExitCode, Error> {
    if let Some(directory) = &args.directory {
        let what = || format!("write manual pages into {}", directory.display());
        std::fs::create_dir_all(directory).map_err(|e| Error::io(what(), e))?;
        clap_mangen::generate_to(Cli::command(), directory).map_err(|e| Error::io(what(), e))?;
        return Ok(ExitCode::SUCCESS);
    }
    let page = page(args.command.as_deref())?;
    crate::admin::view::print(&page)
}

fn page(command: Option<&str>) -> Result<Vec<u8>, Error> {
    let mut program = Cli::command();
    program.build();
    let command: Command = match command {
        None => program,
        Some(name) => {
            let found = program.find_subcommand(name).cloned();
            found.ok_or_else(|| Error::Client(format!("there is no command {name}: see {NAME} --help")))?
        }
    };
    let mut page = Vec::new();
    let rendered = clap_mangen::Man::new(command).manual("ipop-fast").render(&mut page).and_then(|()| page.flush());
    rendered.map_err(|e| Error::io("make the manual page", e))?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn every_command_has_a_page_and_is_completed() {
        let dir = tempfile::tempdir().expect("directory");
        let all = ManArgs { command: None, directory: Some(dir.path().join("man1")) };
        assert_eq!(man(&all).map(|c| format!("{c:?}")).ok(), Some(format!("{:?}", ExitCode::SUCCESS)));
        let text = |command| String::from_utf8(page(command).expect("page")).expect("text");
        assert!(text(None).contains(".TH ipop-fast 1") && text(None).contains("wg\\-quick"));
        for shell in clap_complete::Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), NAME, &mut script);
            let script = String::from_utf8(script).expect("text");
            assert!(script.contains("completions") && script.contains("accept"), "{shell}");
        }
        let mut bash = Vec::new();
        clap_complete::generate(clap_complete::Shell::Bash, &mut Cli::command(), NAME, &mut bash);
        let bash = String::from_utf8_lossy(&bash).into_owned();
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            assert!(dir.path().join(format!("man1/ipop-fast-{name}.1")).exists(), "{name}");
            assert!(bash.contains(&format!("ipop__fast,{name})")), "{name}");
            assert!(text(Some(name)).contains("SYNOPSIS"), "{name}");
        }
        assert!(page(Some("fly")).is_err());
    }
}
