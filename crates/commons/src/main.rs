//! The commons binary.
fn main() {}
