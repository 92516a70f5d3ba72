//! Any bytes as a safetensors file: header, then every tensor.
#![no_main]

use candle_core::DType;
use commons_nn::format::safetensors::SafeTensors;
use commons_nn::mmap::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(file) = SafeTensors::from_bytes(Bytes::from_vec("fuzz", data.to_vec())) {
        for tensor in file.tensors() {
            let _ = tensor.check_finite();
            let _ = tensor.to_tensor(Some(DType::F32));
        }
    }
});
