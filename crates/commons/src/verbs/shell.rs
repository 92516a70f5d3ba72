//! `completions` and `man`: what a package installs beside the binary.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use clap_complete::{Shell, generate};
use commons_core::fs::{create_folder, write_atomic};

use crate::cli::{App, Done, command};
use crate::error::{Failure, Result};
use crate::examples;

pub const COMPLETIONS_EXAMPLES: &str = examples![
    "# bash, for this user",
    "$ commons completions bash > ~/.local/share/bash-completion/completions/commons",
    "# zsh, in a folder of $fpath",
    "$ commons completions zsh > ~/.zfunc/_commons",
    "# fish",
    "$ commons completions fish > ~/.config/fish/completions/commons.fish",
];

pub const MAN_EXAMPLES: &str = examples![
    "# one page for the tool and one per verb",
    "$ commons man ~/.local/share/man/man1",
    "# the page of the tool itself",
    "$ commons man | man -l -",
];

/// Options of `completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Options of `man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Folder to write commons.1 and a page per verb into; without it the main page is printed
    pub folder: Option<PathBuf>,
}

/// Writes the completion script of a shell.
///
/// # Errors
/// When standard output cannot be written.
pub fn completions(app: &App, args: &CompletionsArgs) -> Result<Done> {
    app.no_settings("completions")?;
    let mut script = Vec::new();
    generate(args.shell, &mut command(), "commons", &mut script);
    app.out.text(&String::from_utf8_lossy(&script))?;
    Ok(Done::Well)
}

/// Writes manual pages.
///
/// # Errors
/// When the folder cannot be written.
pub fn man(app: &App, args: &ManArgs) -> Result<Done> {
    app.no_settings("man")?;
    let Some(folder) = &args.folder else {
        app.out.text(&page(command())?)?;
        return Ok(Done::Well);
    };
    create_folder(folder)?;
    let mut root = command();
    root.build();
    let mut pages = vec![("commons.1".to_owned(), page(command())?)];
    for verb in root.get_subcommands().filter(|v| !v.is_hide_set()) {
        // Building gave every verb its full name.
        pages.push((format!("commons-{}.1", verb.get_name()), page(verb.clone())?));
    }
    for (name, text) in &pages {
        write_atomic(folder.join(name), text)?;
    }
    app.progress.note(format!("{} pages in {}", pages.len(), folder.display()));
    if app.out.json {
        let names: Vec<&str> = pages.iter().map(|(n, _)| n.as_str()).collect();
        app.out.json(&serde_json::json!({ "folder": folder, "pages": names }))?;
    }
    Ok(Done::Well)
}

fn page(command: clap::Command) -> Result<String> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command)
        .render(&mut text)
        .and_then(|()| text.flush())
        .map_err(|e| Failure::failed(format!("the manual page cannot be made: {e}")))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
