//! What the numbers were measured on.

use serde::{Deserialize, Serialize};
use std::fs;

/// The machine of a run. Fields that the system does not tell are empty or zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// Processor model, as the system names it.
    pub cpu: String,
    /// Logical processors this process may use.
    pub cores: usize,
    /// Threads of the rayon pool.
    pub threads: usize,
    /// The widest vector instructions used: `avx512`, `avx2`, `neon` or `none`.
    pub simd: String,
    /// Physical memory in bytes.
    pub memory: u64,
    /// Operating system and architecture, as in `linux x86_64`.
    pub system: String,
    /// Whether the program was built with optimisation.
    pub optimised: bool,
}

impl Machine {
    /// Reads it from the system.
    pub fn detect() -> Self {
        Self {
            cpu: cpu_model(&read("/proc/cpuinfo")),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            threads: rayon::current_num_threads(),
            simd: simd().to_owned(),
            memory: kibibytes(&read("/proc/meminfo"), "MemTotal:"),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            optimised: !cfg!(debug_assertions),
        }
    }
}

/// Most memory this process has held at once, in bytes; 0 where the system does not tell.
pub fn peak_memory() -> u64 {
    kibibytes(&read("/proc/self/status"), "VmHWM:")
}

/// Memory this process holds now, in bytes; 0 where the system does not tell.
pub fn resident_memory() -> u64 {
    kibibytes(&read("/proc/self/status"), "VmRSS:")
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn cpu_model(cpuinfo: &str) -> String {
    let value = |key: &str| {
        cpuinfo.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            (name.trim() == key).then(|| value.trim().to_owned())
        })
    };
    // x86 names the model; ARM kernels mostly give only numbers.
    value("model name").or_else(|| value("Model")).unwrap_or_default()
}

/// The value in bytes of a line such as `VmHWM:    1234 kB`.
fn kibibytes(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    number.unwrap_or(0) * 1024
}

fn simd() -> &'static str {
    struct Lanes;
    impl pulp::WithSimd for Lanes {
        type Output = usize;

        fn with_simd<S: pulp::Simd>(self, _: S) -> usize {
            S::F32_LANES
        }
    }
    match pulp::Arch::new().dispatch(Lanes) {
        16 => "avx512",
        8 => "avx2",
        4 => "neon",
        _ => "none",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_proc() {
        assert_eq!(
            cpu_model("processor : 0\nmodel name\t: Some CPU @ 2.0GHz\n"),
            "Some CPU @ 2.0GHz"
        );
        assert_eq!(cpu_model(""), "");
        assert_eq!(kibibytes("VmPeak:\t 9 kB\nVmHWM:\t  1234 kB\n", "VmHWM:"), 1234 * 1024);
        assert_eq!(kibibytes("VmHWM: many", "VmHWM:"), 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn detects_this_machine() {
        let machine = Machine::detect();
        assert!(machine.cores > 0 && machine.memory > 1 << 20);
        assert!(peak_memory() >= resident_memory() && resident_memory() > 0);
    }
}
