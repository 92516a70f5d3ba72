//! Placeholder until core lands.
use crate::tree::Tree;
use anyhow::Result;
use std::path::Path;
pub struct Edit {
    pub path: String,
    pub text: String,
}
impl Edit {
    pub fn write(&self, _root: &Path) -> Result<()> {
        Ok(())
    }
}
pub fn outdated(_tree: &Tree) -> Result<Vec<Edit>> {
    Ok(Vec::new())
}
