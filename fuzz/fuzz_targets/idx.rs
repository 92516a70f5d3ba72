//! Any bytes as an IDX file.
#![no_main]

use std::path::Path;

use commons_nn::data::idx;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(array) = idx::parse(Path::new("fuzz"), data) {
        let _ = array.to_f64();
    }
});
