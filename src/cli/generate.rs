//! Shell completions and man pages, made from the definition of the command line (`hpml generate PREFIX`).

use std::path::Path;

use clap::CommandFactory;
use clap_complete::{Shell, generate_to};

use super::Cli;
use crate::error::{Error, Result};

/// Places of the completions under the prefix, where each shell looks: folder, name of the file, shell. `None`: the shell's own name.
const COMPLETIONS: [(&str, Option<&str>, Shell); 3] = [
    ("share/bash-completion/completions", Some("hpml"), Shell::Bash),
    ("share/zsh/site-functions", None, Shell::Zsh),
    ("share/fish/vendor_completions.d", None, Shell::Fish),
];
/// Place of the man pages under the prefix.
const MAN: &str = "share/man/man1";

/// Writes completions and man pages under `prefix`, in place of those that are there. Returns the files' folders, one per line.
///
/// # Errors
/// [`Error::Output`] if a file cannot be written.
pub fn generate(prefix: &Path) -> Result<String> {
    let mut folders = Vec::new();
    let mut write = |folder: &str, write: &dyn Fn(&Path) -> std::io::Result<()>| {
        let folder = prefix.join(folder);
        let written = std::fs::create_dir_all(&folder).and_then(|()| write(&folder));
        written.map_err(|error| Error::Output { path: folder.clone(), reason: error.to_string() })?;
        folders.push(folder.display().to_string());
        Ok(())
    };
    for (folder, name, shell) in COMPLETIONS {
        write(folder, &|folder| {
            let path = generate_to(shell, &mut Cli::command(), "hpml", folder)?;
            name.map_or(Ok(()), |name| std::fs::rename(path, folder.join(name)))
        })?;
    }
    write(MAN, &|folder| clap_mangen::generate_to(Cli::command(), folder))?;
    Ok(folders.join("\n"))
}
