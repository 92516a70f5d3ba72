//! Rules on the text of Rust files.

use super::layers::at_dependency;
use super::{Breach, named};
use crate::tree::Tree;

/// Longest Rust file, in lines.
const LONGEST: usize = 600;

/// The modules that may hold unsafe code: a file, or a folder with a closing slash.
const UNSAFE_MODULES: &[&str] = &[
    "crates/commons-nn/src/mmap.rs",
    "crates/commons/src/memory.rs",
    "crates/commons-ops/src/simd.rs",
    "crates/commons-ops/src/simd/",
];

/// Library files that may read the clock, because elapsed time is what they report.
const CLOCK_MODULES: &[&str] = &[
    "crates/commons-core/src/evidence/run",
    "crates/commons-nn/src/hub",
    "crates/commons-nn/src/model/moe",
    "crates/commons-nn/src/model/mor",
    "crates/commons-nn/src/train",
    "crates/commons-ops/src/moe/kernel",
    "crates/commons-weights/src/moge/devices",
];

/// Where libraries may open connections.
const NETWORK_MODULES: &[&str] =
    &["crates/commons-nn/src/hub", "crates/commons-swarm/src/transport"];

/// Packages that draw random numbers of their own.
const RANDOM_PACKAGES: &[&str] = &["rand", "rand_core", "rand_distr", "fastrand", "getrandom"];

/// Rule `seeded`.
pub fn seeded(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for package in &tree.packages {
        for dependency in &package.dependencies {
            let name = dependency.name.as_str();
            if RANDOM_PACKAGES.contains(&name) {
                let message = format!("`{name}`: draw from commons_core::Seed instead");
                breaches.push(at_dependency(tree, package, name, message));
            }
        }
    }
    let names = [
        "Tensor::rand",
        "Tensor::randn",
        "Var::rand",
        "Var::randn",
        ".rand_like(",
        ".randn_like(",
        "rand::",
        "fastrand::",
        "thread_rng",
        "getrandom",
        "RandomState",
    ];
    for file in tree.rust() {
        breaches.extend(named(file, &file.code, &names, "draw from commons_core::Seed"));
    }
    breaches
}

/// Rule `unsafe-modules`.
pub fn unsafe_modules(tree: &Tree) -> Vec<Breach> {
    let why = format!("only {} may hold it", UNSAFE_MODULES.join(", "));
    let mut breaches = Vec::new();
    for file in tree.rust() {
        if !under(&file.path, UNSAFE_MODULES) {
            breaches.extend(named(file, &file.code, &["unsafe"], &why));
        }
    }
    breaches
}

/// Rule `silent-libraries`.
pub fn silent_libraries(tree: &Tree) -> Vec<Breach> {
    let names = ["println!", "eprintln!", "print!", "eprint!"];
    let why = "a library returns what it has to say, or emits a tracing event";
    tree.libraries().flat_map(|file| named(file, &file.shipped, &names, why)).collect()
}

/// Rule `finished`.
pub fn finished(tree: &Tree) -> Vec<Breach> {
    let names = ["todo!", "unimplemented!", "dbg!"];
    tree.rust()
        .flat_map(|file| named(file, &file.code, &names, "finish it or leave it out"))
        .collect()
}

/// Rule `clock`.
pub fn clock(tree: &Tree) -> Vec<Breach> {
    let names = ["Instant::now", "SystemTime::now"];
    let why = "take the time as an argument";
    tree.libraries()
        .filter(|file| !under(&file.path, CLOCK_MODULES))
        .flat_map(|file| named(file, &file.shipped, &names, why))
        .collect()
}

/// Rule `network`.
pub fn network(tree: &Tree) -> Vec<Breach> {
    let names = [
        "std::net",
        "tokio::net",
        "TcpStream",
        "TcpListener",
        "UdpSocket",
        "ureq",
        "reqwest",
        "hyper",
        "async_nats",
    ];
    let why = "connections are opened in nn::hub and swarm::transport";
    tree.libraries()
        .filter(|file| !under(&file.path, NETWORK_MODULES))
        .flat_map(|file| named(file, &file.code, &names, why))
        .collect()
}

/// Rule `file-length`.
pub fn file_length(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for file in tree.rust() {
        let lines = file.text.lines().count();
        if lines > LONGEST {
            let message = format!("{lines} lines, at most {LONGEST}; split it by concept");
            breaches.push(Breach::new(&file.path, LONGEST + 1, message));
        }
    }
    breaches
}

/// Whether `path` is one of `modules`: `x/hub` stands for `x/hub.rs` and all of `x/hub/`.
fn under(path: &str, modules: &[&str]) -> bool {
    modules.iter().any(|module| {
        path.strip_prefix(module).is_some_and(|rest| {
            rest.is_empty() || module.ends_with('/') || rest.starts_with('/') || rest == ".rs"
        })
    })
}
