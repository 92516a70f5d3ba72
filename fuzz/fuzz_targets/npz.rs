//! Any bytes as an npy file and as an npz archive.
#![no_main]

use std::path::Path;

use commons_nn::data::npy;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let file = Path::new("fuzz");
    if let Ok(array) = npy::parse(file, data) {
        let _ = array.to_f64();
    }
    if let Ok(arrays) = npy::parse_npz(file, data) {
        arrays.values().for_each(|array| drop(array.to_f64()));
    }
});
