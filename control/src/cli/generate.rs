//! What packagers install beside the program: completions and manual pages.

use super::{Cli, CompletionsArgs, ManArgs};
use crate::Error;
use clap::{Command, CommandFactory};
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
    let mut program = Cli::command();
    program.build();
    if let Some(directory) = &args.directory {
        let failed = |e| Error::io(format!("write manual pages into {}", directory.display()), e);
        std::fs::create_dir_all(directory).map_err(failed)?;
        let mut commands = vec![&program];
        while let Some(command) = commands.pop() {
            // The pages of `help` would repeat all others.
            commands.extend(command.get_subcommands().filter(|c| c.get_name() != "help"));
            let name = command.get_display_name().unwrap_or(NAME);
            std::fs::write(directory.join(format!("{name}.1")), page(command)?).map_err(failed)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let command = match args.command.as_deref() {
        None => Some(&program),
        Some(name) => program.find_subcommand(name),
    };
    let missing = || {
        let name = args.command.as_deref().unwrap_or_default();
        Error::Client(format!("there is no command \"{}\": see {NAME} --help", name.escape_debug()))
    };
    crate::admin::view::print(&page(command.ok_or_else(missing)?)?)
}

fn page(command: &Command) -> Result<Vec<u8>, Error> {
    let mut page = Vec::new();
    let source = concat!("ipop-fast ", env!("CARGO_PKG_VERSION"));
    let man = clap_mangen::Man::new(command.clone()).source(source).manual("ipop-fast");
    man.render(&mut page).map_err(|e| Error::io("make the manual page", e))?;
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
        man(&all).expect("written");
        let text = |name: &str| std::fs::read_to_string(dir.path().join("man1").join(name)).expect("page");
        assert!(text("ipop-fast.1").contains(".TH ipop-fast 1") && text("ipop-fast.1").contains("wg\\-quick"));
        assert!(text("ipop-fast-pins-accept.1").contains("JID"));
        for shell in clap_complete::Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), NAME, &mut script);
            let script = String::from_utf8(script).expect("text");
            for command in Cli::command().get_subcommands() {
                assert!(script.contains(command.get_name()), "{shell}: {}", command.get_name());
            }
        }
        for command in Cli::command().get_subcommands() {
            let page = text(&format!("ipop-fast-{}.1", command.get_name()));
            assert!(page.contains("SYNOPSIS") && page.contains(env!("CARGO_PKG_VERSION")), "{page}");
        }
        assert!(man(&ManArgs { command: Some("fly".to_owned()), directory: None }).is_err());
    }
}
