use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use serde_json::{Map, json};

use super::*;
use crate::format::Weights;

fn golden(name: &str) -> serde_json::Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn unhex(value: &serde_json::Value) -> Vec<u8> {
    let text = value.as_str().unwrap();
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// The reference values come from the `gguf` Python package; equality is exact.
#[test]
fn blocks_decode_as_the_reference_does() {
    let golden = golden("ggml-blocks.json");
    let kinds = [
        GgmlType::Q4_0,
        GgmlType::Q4_1,
        GgmlType::Q5_0,
        GgmlType::Q5_1,
        GgmlType::Q8_0,
        GgmlType::Q4K,
        GgmlType::Q5K,
        GgmlType::Q6K,
    ];
    for kind in kinds {
        let case = &golden[kind.name()];
        let expected = floats(&unhex(&case["values"]));
        let mut out = vec![0f32; expected.len()];
        dequantize(kind, &unhex(&case["bytes"]), &mut out).unwrap();
        for (i, (a, b)) in out.iter().zip(&expected).enumerate() {
            assert_eq!(a.to_bits(), b.to_bits(), "{} weight {i}: {a} is not {b}", kind.name());
        }
    }
    let case = &golden["quantize_Q8_0"];
    let encoded = quantize(GgmlType::Q8_0, &floats(&unhex(&case["values"]))).unwrap();
    assert_eq!(encoded, unhex(&case["bytes"]));
}

#[test]
fn plain_types_decode() {
    let mut out = [0f32; 2];
    dequantize(GgmlType::BF16, &[0x80, 0x3f, 0x00, 0xc0], &mut out).unwrap();
    assert_eq!(out, [1.0, -2.0]);
    dequantize(GgmlType::F16, &[0x00, 0x3c, 0x00, 0xc0], &mut out).unwrap();
    assert_eq!(out, [1.0, -2.0]);
    dequantize(GgmlType::I8, &[1, 0xfe], &mut out).unwrap();
    assert_eq!(out, [1.0, -2.0]);
    assert!(dequantize(GgmlType::F32, &[0; 7], &mut out).is_err());
    assert!(quantize(GgmlType::Q8_0, &[0.0; 31]).is_err());
    assert!(quantize(GgmlType::Q4K, &[0.0; 256]).is_err());
}

#[test]
fn row_order_is_a_bijection_with_the_stated_meaning() {
    // Two heads of four rows: Hugging Face halves become neighbours.
    let rows: Vec<u32> = (0..8).collect();
    let stored = permute_rows(&rows, 8, 2).unwrap();
    assert_eq!(stored, [0, 2, 1, 3, 4, 6, 5, 7]);
    assert_eq!(unpermute_rows(&stored, 8, 2).unwrap(), rows);
    let wide: Vec<u32> = (0..24).collect();
    let stored = permute_rows(&wide, 12, 1).unwrap();
    assert_eq!(stored[..6], [0, 1, 12, 13, 2, 3]);
    assert_eq!(unpermute_rows(&stored, 12, 1).unwrap(), wide);
    assert!(permute_rows(&wide, 6, 2).is_err());
    assert!(permute_rows(&wide, 8, 0).is_err());
}

#[test]
fn names_map_both_ways() {
    let layer =
        ["attn_q.weight", "attn_k.bias", "ffn_down.weight", "attn_norm.weight", "ffn_norm.weight"];
    for arch in Architecture::ALL {
        for part in layer {
            let gguf = format!("blk.12.{part}");
            let hf = arch.to_hf(&gguf).unwrap();
            assert_eq!(arch.to_gguf(&hf).unwrap(), gguf);
        }
        assert_eq!(arch.to_hf("output.weight").unwrap(), "lm_head.weight");
        assert_eq!(arch.to_hf("rope_freqs.weight"), None);
    }
    let gemma = Architecture::Gemma3;
    assert_eq!(
        gemma.to_hf("blk.0.ffn_norm.weight").unwrap(),
        "model.layers.0.pre_feedforward_layernorm.weight"
    );
    assert_eq!(
        gemma.to_hf("blk.0.post_ffw_norm.weight").unwrap(),
        "model.layers.0.post_feedforward_layernorm.weight"
    );
    assert_eq!(Architecture::Qwen2.to_hf("blk.0.attn_q_norm.weight"), None);
}

fn config(arch: Architecture) -> Map<String, serde_json::Value> {
    let mut config = json!({
        "model_type": arch.model_type(), "vocab_size": 272, "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5, "rope_theta": 50000.0, "tie_word_embeddings": false,
    });
    if arch == Architecture::Gemma3 {
        config["sliding_window"] = 8.into();
    }
    config.as_object().unwrap().clone()
}

fn weights(arch: Architecture) -> BTreeMap<String, Tensor> {
    let shapes = [
        ("model.embed_tokens.weight", vec![272, 64]),
        ("model.norm.weight", vec![64]),
        ("lm_head.weight", vec![272, 64]),
        ("model.layers.0.input_layernorm.weight", vec![64]),
        ("model.layers.0.post_attention_layernorm.weight", vec![64]),
        ("model.layers.0.self_attn.q_proj.weight", vec![64, 64]),
        ("model.layers.0.self_attn.k_proj.weight", vec![32, 64]),
        ("model.layers.0.self_attn.v_proj.weight", vec![32, 64]),
        ("model.layers.0.self_attn.o_proj.weight", vec![64, 64]),
        ("model.layers.0.mlp.gate_proj.weight", vec![96, 64]),
        ("model.layers.0.mlp.up_proj.weight", vec![96, 64]),
        ("model.layers.0.mlp.down_proj.weight", vec![64, 96]),
    ];
    let mut extra = Vec::new();
    if arch == Architecture::Qwen2 {
        extra.push(("model.layers.0.self_attn.q_proj.bias", vec![64]));
    }
    if matches!(arch, Architecture::Qwen3 | Architecture::Gemma3) {
        extra.push(("model.layers.0.self_attn.q_norm.weight", vec![16]));
    }
    let mut seed = 1u64;
    shapes
        .into_iter()
        .chain(extra)
        .map(|(name, shape)| {
            let count: usize = shape.iter().product();
            let values: Vec<f32> = (0..count)
                .map(|_| {
                    seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    (seed >> 40) as f32 / (1u64 << 24) as f32 - 0.5
                })
                .collect();
            (name.to_owned(), Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
        })
        .collect()
}

fn exported(arch: Architecture, kind: GgmlType) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let tokenizer = crate::tokenizer::Tokenizer::bytes().unwrap().to_gguf().unwrap();
    export(&path, &config(arch), &tokenizer, &weights(arch), kind).unwrap();
    std::fs::read(path).unwrap()
}

fn read(bytes: Vec<u8>) -> Result<Gguf> {
    Gguf::from_bytes(Bytes::from_vec("m.gguf", bytes))
}

#[test]
fn export_and_import_give_the_model_back() {
    for arch in Architecture::ALL {
        for (kind, tolerance) in
            [(GgmlType::F32, 1e-7), (GgmlType::F16, 3e-4), (GgmlType::Q8_0, 5e-3)]
        {
            let model = GgufModel::new(read(exported(arch, kind)).unwrap()).unwrap();
            let original = weights(arch);
            assert_eq!(model.names(), original.keys().cloned().collect::<Vec<_>>());
            for (name, tensor) in &original {
                let loaded = model.load(name, DType::F32).unwrap();
                assert_eq!(loaded.dims(), tensor.dims());
                let difference = (loaded - tensor).unwrap().abs().unwrap().max_all().unwrap();
                let difference = difference.to_scalar::<f32>().unwrap();
                assert!(difference <= tolerance, "{arch:?} {kind:?} {name}: {difference}");
            }
            let expected = config(arch);
            for (key, value) in &expected {
                assert_eq!(&model.config()[key], value, "{arch:?} {key}");
            }
            model.gguf().check_finite().unwrap();
        }
    }
}

#[test]
fn llama_rows_are_stored_in_pairs() {
    let gguf = read(exported(Architecture::Llama, GgmlType::F32)).unwrap();
    let original = &weights(Architecture::Llama)["model.layers.0.self_attn.q_proj.weight"];
    let original = original.to_vec2::<f32>().unwrap();
    let stored = gguf.tensor("blk.0.attn_q.weight", DType::F32).unwrap().to_vec2::<f32>().unwrap();
    // Head width 16: stored row 1 is the partner of row 0, half a head on.
    assert_eq!(stored[0], original[0]);
    assert_eq!(stored[1], original[8]);
    assert_eq!(stored[2], original[1]);
}

fn header(tensors: u64, keys: u64) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(keys.to_le_bytes());
    bytes
}

fn entry(name: &str, dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    value::put_string(&mut bytes, name);
    bytes.extend((dims.len() as u32).to_le_bytes());
    bytes.extend(dims.iter().flat_map(|d| d.to_le_bytes()));
    bytes.extend(kind.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

fn with_tensors(entries: &[Vec<u8>], data: usize) -> String {
    let mut bytes = header(entries.len() as u64, 0);
    bytes.extend(entries.concat());
    bytes.resize(bytes.len().next_multiple_of(32) + data, 0);
    match read(bytes) {
        Ok(_) => "accepted".into(),
        Err(e) => e.to_string(),
    }
}

#[test]
fn hostile_files_are_refused_by_name() {
    let cases = [
        (read(b"GGUX".to_vec()), "magic"),
        (read(b"GGUF\x01\0\0\0".to_vec()), "version 1"),
        (read(b"GGUF\0\0\0\x03".to_vec()), "big-endian"),
        (read(b"GGUF\x63\0\0\0".to_vec()), "unknown GGUF version 99"),
        (read(header(u64::MAX, 0)), "claims 18446744073709551615 tensors"),
        (read(header(0, u64::MAX / 13)), "metadata keys"),
        (read([header(0, 1), vec![0xff; 40]].concat()), "bytes of text"),
    ];
    for (answer, reason) in cases {
        let message = answer.unwrap_err().to_string();
        assert!(message.contains(reason) && message.starts_with("m.gguf"), "{message}");
    }
    // A string array that claims more entries than the file has bytes.
    let mut bytes = header(0, 1);
    value::put_string(&mut bytes, "k");
    bytes.extend([9u32, 8].iter().flat_map(|v| v.to_le_bytes()));
    bytes.extend((1u64 << 60).to_le_bytes());
    let message = read(bytes).unwrap_err().to_string();
    assert!(message.contains("metadata key `k`") && message.contains("claims"), "{message}");

    let good = || entry("a", &[32, 2], 0, 0);
    assert_eq!(with_tensors(&[good()], 256), "accepted");
    let cases = [
        (with_tensors(&[good()], 255), "past the file's"),
        (with_tensors(&[good(), entry("b", &[32], 0, 128)], 512), "overlaps tensor `a`"),
        (with_tensors(&[good(), good()], 512), "given twice"),
        (with_tensors(&[entry("a", &[32, 2], 0, 8)], 512), "not a multiple of 32"),
        (with_tensors(&[entry("a", &[31], 8, 0)], 512), "not whole Q8_0 blocks"),
        (with_tensors(&[entry("a", &[32], 99, 0)], 512), "element type 99"),
        (with_tensors(&[entry("a", &[1 << 40, 1 << 40], 0, 0)], 512), "impossible dimension"),
        (with_tensors(&[entry("a", &[0, 1 << 40, 1 << 40], 0, 0)], 512), "impossible dimension 0"),
        (with_tensors(&[entry("a", &[1 << 40], 0, 0)], 512), "more than the file can hold"),
        (with_tensors(&[entry("a", &[], 0, 0)], 512), "0 dimensions"),
        (with_tensors(&[entry("a", &[32], 0, u64::MAX - 31)], 512), "past the file's"),
    ];
    for (message, reason) in cases {
        assert!(message.contains("tensor `") && message.contains(reason), "{message}");
    }
}

#[test]
fn a_tensor_the_architecture_does_not_explain_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let gguf = read(exported(Architecture::Llama, GgmlType::F32)).unwrap();
    let mut plans: Vec<TensorPlan> = gguf
        .tensors()
        .iter()
        .map(|(name, t)| TensorPlan { name: name.clone(), kind: t.kind, shape: t.shape.clone() })
        .collect();
    plans.push(TensorPlan {
        name: "rope_freqs.weight".into(),
        kind: GgmlType::F32,
        shape: vec![4],
    });
    write(&path, gguf.metadata(), &plans, |plan| match gguf.weights(&plan.name) {
        Ok(values) => Ok(values),
        Err(_) => Ok(vec![1.0; 4]),
    })
    .unwrap();
    let message = GgufModel::new(Gguf::open(&path).unwrap()).unwrap_err().to_string();
    assert!(message.contains("rope_freqs.weight"), "{message}");
}

/// Exercises everything that reads a file; only errors may come of damage.
fn poke(bytes: Vec<u8>) {
    let Ok(gguf) = read(bytes) else { return };
    for name in gguf.tensors().keys() {
        let _ = gguf.tensor(name, DType::F32);
    }
    let _ = crate::tokenizer::Tokenizer::from_gguf(&gguf);
    if let Ok(model) = GgufModel::new(gguf) {
        for name in model.names() {
            let _ = model.load(&name, DType::F32);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_are_handled(
        cut in 0usize..40_000,
        edits in prop::collection::vec((0usize..12_000, any::<u8>()), 1..6),
        early in prop::collection::vec((0usize..256, any::<u8>()), 0..3),
    ) {
        thread_local! {
            static FILE: Vec<u8> = exported(Architecture::Llama, GgmlType::Q8_0);
        }
        let mut bytes = FILE.with(Clone::clone);
        for (place, value) in edits.into_iter().chain(early) {
            let length = bytes.len();
            bytes[place % length] = value;
        }
        if cut % 2 == 0 {
            bytes.truncate(cut % bytes.len());
        }
        poke(bytes);
    }
}
