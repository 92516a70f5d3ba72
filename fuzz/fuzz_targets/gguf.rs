//! Any bytes as a GGUF file: metadata, then every tensor.
#![no_main]

use candle_core::DType;
use commons_nn::format::gguf::Gguf;
use commons_nn::mmap::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(file) = Gguf::from_bytes(Bytes::from_vec("fuzz", data.to_vec())) {
        for name in file.tensors().keys() {
            let _ = file.tensor(name, DType::F32);
        }
        let _ = file.check_finite();
    }
});
