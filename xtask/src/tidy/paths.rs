//! Nothing in the repository may work on one machine only.

use super::Breach;
use crate::tree::Tree;

/// Where people and build machines keep their things: never a path that a reader of the
/// repository has as well.
const PRIVATE_FOLDERS: &[&str] =
    &["/home/", "/root/", "/Users/", "/opt/", "/mnt/", "/work/", "/workspace/", "/builds/"];

/// Package hosts. The user's own clients know theirs, mirrors included, so no name is written down.
const PACKAGE_HOSTS: &[&str] = &[
    "index.crates.io",
    "static.crates.io",
    "pypi.org/simple",
    "files.pythonhosted.org",
    "registry.npmjs.org",
    "registry.yarnpkg.com",
    "deb.debian.org",
    "proxy.golang.org",
];

/// Files made by other tools, and this one with its tests, which have to name what they forbid.
const EXEMPT: &[&str] = &["Cargo.lock", "xtask/src/tidy/paths.rs", "xtask/src/tidy/tests.rs"];

/// Rule `portable`.
pub fn portable(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for file in &tree.files {
        if EXEMPT.contains(&file.path.as_str()) {
            continue;
        }
        for (index, line) in file.text.lines().enumerate() {
            if let Some(folder) = PRIVATE_FOLDERS.iter().find(|folder| is_path(line, folder)) {
                let message = format!("a path under {folder} exists on one machine only");
                breaches.push(Breach::new(&file.path, index + 1, message));
            }
            if let Some(host) = PACKAGE_HOSTS.iter().find(|host| line.contains(**host)) {
                let message = format!("{host}: leave the package host to the user's client");
                breaches.push(Breach::new(&file.path, index + 1, message));
            }
        }
    }
    breaches
}

/// Whether an absolute path under `folder` begins somewhere in `line`: `/opt/x` but neither
/// `~/opt/x` nor `https://example.org/opt/x`.
fn is_path(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + folder.len()..].chars().next();
        let continues = |c: char| c.is_alphanumeric() || "_-.~/}>*".contains(c);
        !before.is_some_and(continues) && after.is_some_and(|c| c.is_alphanumeric())
    })
}
