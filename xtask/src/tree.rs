//! The workspace as the rules see it: packages with their dependencies, and text files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::source;

/// A workspace read into memory.
pub struct Tree {
    /// Absolute root of the workspace.
    pub root: PathBuf,
    /// Members of the workspace, by name.
    pub packages: Vec<Package>,
    /// Text files under version control (or to be put there), sorted by path.
    pub files: Vec<File>,
    /// Paths of all files, also those that are not text.
    pub paths: BTreeSet<String>,
}

/// A member of the workspace.
#[derive(Debug)]
pub struct Package {
    /// Name, such as `commons-core`.
    pub name: String,
    /// Path of its folder from the root, with forward slashes.
    pub folder: String,
    /// What its manifest asks for, of all kinds.
    pub dependencies: Vec<Dependency>,
}

/// One dependency of a package.
#[derive(Debug, Deserialize)]
pub struct Dependency {
    /// Name of the package depended on.
    pub name: String,
    /// Features asked for, those inherited from the workspace included.
    pub features: Vec<String>,
}

/// One text file.
pub struct File {
    /// Path from the root, with forward slashes.
    pub path: String,
    /// Contents.
    pub text: String,
    /// For Rust files the contents without comments and literals, else empty.
    pub code: String,
    /// `code` without what is compiled for tests only.
    pub shipped: String,
}

impl Tree {
    /// Reads the workspace at `root`.
    ///
    /// # Errors
    /// If `cargo metadata` fails there, or a listed file cannot be read.
    pub fn load(root: &Path) -> Result<Self> {
        let root =
            root.canonicalize().with_context(|| format!("{}: no such folder", root.display()))?;
        let packages = packages(&root)?;
        let paths = list_files(&root)?;
        let mut files = Vec::new();
        for path in &paths {
            let bytes = match std::fs::read(root.join(path)) {
                Ok(bytes) => bytes,
                // Listed by git, yet deleted in the working tree.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error).with_context(|| path.clone()),
            };
            if let Ok(text) = String::from_utf8(bytes) {
                files.push(File::new(path.clone(), text));
            }
        }
        Ok(Self { root, packages, files, paths })
    }

    /// The text file at `path`.
    pub fn file(&self, path: &str) -> Option<&File> {
        self.files
            .binary_search_by(|file| file.path.as_str().cmp(path))
            .ok()
            .map(|index| &self.files[index])
    }

    /// The Rust files.
    pub fn rust(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|file| file.path.ends_with(".rs"))
    }

    /// The Rust files of the libraries: everything in `crates/` but the binary, build scripts,
    /// integration tests and examples.
    pub fn libraries(&self) -> impl Iterator<Item = &File> {
        self.rust().filter(|file| {
            let mut parts = file.path.split('/');
            parts.next() == Some("crates")
                && parts.next().is_some_and(|name| name != "commons")
                && parts.next() == Some("src")
        })
    }
}

impl File {
    fn new(path: String, text: String) -> Self {
        let (mut code, mut shipped) = (String::new(), String::new());
        if path.ends_with(".rs") {
            code = source::blank_literals(&text);
            if !is_test(&path) {
                shipped = source::blank_tests(&code);
            }
        }
        Self { path, text, code, shipped }
    }

    /// Name of the package whose folder the file lies in, judged by its path.
    pub fn package(&self) -> &str {
        let mut parts = self.path.split('/');
        match parts.next() {
            Some("crates") => parts.next().unwrap_or(""),
            first => first.unwrap_or(""),
        }
    }
}

/// Whether all of a Rust file is compiled for tests or benchmarks only.
fn is_test(path: &str) -> bool {
    let mut folders = path.split('/').rev();
    let name = folders.next().unwrap_or("");
    name == "tests.rs" || folders.any(|folder| matches!(folder, "tests" | "benches" | "examples"))
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<MetadataPackage>,
}

#[derive(Deserialize)]
struct MetadataPackage {
    name: String,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
}

fn packages(root: &Path) -> Result<Vec<Package>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
        .arg("--manifest-path")
        .arg(root.join("Cargo.toml"))
        .output()
        .context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).context("cargo metadata's answer")?;
    let mut packages = Vec::new();
    for package in metadata.packages {
        let folder = package
            .manifest_path
            .parent()
            .and_then(|folder| folder.strip_prefix(root).ok())
            .with_context(|| format!("package {} lies outside the root", package.name))?;
        packages.push(Package {
            name: package.name,
            folder: with_slashes(folder),
            dependencies: package.dependencies,
        });
    }
    packages.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(packages)
}

/// Paths of the files git knows or would add; outside a git work tree, of all files.
fn list_files(root: &Path) -> Result<BTreeSet<String>> {
    let mut paths = BTreeSet::new();
    if root.join(".git").exists() {
        let output = Command::new("git")
            .arg("-C")
            .arg(root)
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .output()
            .context("cannot run git ls-files")?;
        if !output.status.success() {
            bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr));
        }
        let listed = String::from_utf8_lossy(&output.stdout).into_owned();
        paths.extend(listed.split_terminator('\0').map(String::from));
    } else {
        walk(root, root, &mut paths)?;
    }
    Ok(paths)
}

fn walk(root: &Path, folder: &Path, paths: &mut BTreeSet<String>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if !path.is_dir() {
            paths.insert(with_slashes(path.strip_prefix(root)?));
        } else if !path.ends_with("target") {
            walk(root, &path, paths)?;
        }
    }
    Ok(())
}

fn with_slashes(path: &Path) -> String {
    path.components().map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}
