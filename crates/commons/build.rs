//! Collects the published results of all methods, so that `commons list` and `commons papers` show
//! them without the source tree.

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    let crates = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("..").canonicalize()?;
    let mut table = String::from("&[\n");
    for source in folders(&crates)?.iter().map(|c| c.join("src")).filter(|s| s.is_dir()) {
        // A new result in a method's folder changes that folder, a new method changes `src`.
        println!("cargo::rerun-if-changed={}", source.display());
        for method in folders(&source)? {
            let result = method.join("result.json");
            if result.is_file() {
                println!("cargo::rerun-if-changed={}", result.display());
                writeln!(table, "    include_str!({:?}),", result.display().to_string())?;
            }
        }
    }
    table.push_str("]\n");
    fs::write(Path::new(&env::var("OUT_DIR")?).join("results.rs"), table)?;
    Ok(())
}

/// Folders in `folder`, in order.
fn folders(folder: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
