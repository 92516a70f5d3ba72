use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use proptest::prelude::*;

use super::*;

fn file(json: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn open(bytes: Vec<u8>) -> Result<SafeTensors> {
    SafeTensors::from_bytes(Bytes::from_vec("m.safetensors", bytes))
}

fn refused(json: &str, data: &[u8]) -> String {
    open(file(json, data)).unwrap_err().to_string()
}

#[test]
fn hostile_headers_are_refused_with_tensor_and_offset() {
    let cases = [
        (
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
            4,
            "tensor `a`",
            "does not match",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}"#,
            6,
            "tensor `b`",
            "overlaps",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}"#,
            12,
            "tensor `b`",
            "gap",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#,
            4,
            "tensor `a`",
            "after its end",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
            2,
            "tensor `a`",
            "past the 2 bytes",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
            9,
            "5 bytes follow",
            "byte 66",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
            4,
            "tensor `a`",
            "twice",
        ),
        (
            r#"{"a":{"dtype":"Q9","shape":[1],"data_offsets":[0,4]}}"#,
            4,
            "tensor `a`",
            "Q9",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#,
            0,
            "tensor `a`",
            "does not match",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,0]}}"#,
            0,
            "tensor `a`",
            "byte",
        ),
        (r#"{"a":"#, 0, "m.safetensors", "not a valid tensor table"),
    ];
    for (json, length, subject, reason) in cases {
        let message = refused(json, &vec![0; length]);
        assert!(
            message.contains(subject) && message.contains(reason),
            "{message}"
        );
    }
    let mut not_text = file(r#"{"a":1}"#, &[]);
    not_text[10] = 0xff;
    assert!(
        open(not_text)
            .unwrap_err()
            .to_string()
            .contains("at byte 10: the header is not UTF-8")
    );
    for length in [u64::MAX, 100_000_001, 1000] {
        let mut bytes = file("{}", &[]);
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        assert!(
            open(bytes)
                .unwrap_err()
                .to_string()
                .contains("claims a header of")
        );
    }
    assert!(
        open(vec![1, 2, 3])
            .unwrap_err()
            .to_string()
            .contains("too few")
    );
}

#[test]
fn every_element_type_reads_to_the_asked_type() {
    let data: Vec<(&str, &str, Vec<u8>)> = vec![
        (
            "F64",
            "f64",
            [1.5f64, -2.0]
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .collect(),
        ),
        (
            "F32",
            "f32",
            [1.5f32, -2.0]
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .collect(),
        ),
        (
            "F16",
            "f16",
            [1.5f32, -2.0]
                .iter()
                .flat_map(|&v| f16::from_f32(v).to_le_bytes())
                .collect(),
        ),
        (
            "BF16",
            "bf16",
            [1.5f32, -2.0]
                .iter()
                .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
                .collect(),
        ),
    ];
    for (dtype, name, bytes) in data {
        let json = format!(
            r#"{{"{name}":{{"dtype":"{dtype}","shape":[2],"data_offsets":[0,{}]}}}}"#,
            bytes.len()
        );
        let opened = open(file(&json, &bytes)).unwrap();
        for wanted in [DType::F32, DType::F64, DType::BF16, DType::F16] {
            let tensor = opened
                .tensor(name)
                .unwrap()
                .to_tensor(Some(wanted))
                .unwrap();
            assert_eq!(tensor.dtype(), wanted);
            let values = tensor
                .to_dtype(DType::F32)
                .unwrap()
                .to_vec1::<f32>()
                .unwrap();
            assert_eq!(values, [1.5, -2.0]);
        }
    }
    let ints: Vec<(&str, Vec<u8>, i64)> = vec![
        ("I8", vec![0xff], -1),
        ("U8", vec![0xff], 255),
        ("BOOL", vec![7], 1),
        ("I16", (-3i16).to_le_bytes().to_vec(), -3),
        ("U16", 65535u16.to_le_bytes().to_vec(), 65535),
        ("I32", (-3i32).to_le_bytes().to_vec(), -3),
        ("U32", 70000u32.to_le_bytes().to_vec(), 70000),
        ("I64", (-3i64).to_le_bytes().to_vec(), -3),
        ("U64", 9u64.to_le_bytes().to_vec(), 9),
    ];
    for (dtype, bytes, expected) in ints {
        let json = format!(
            r#"{{"t":{{"dtype":"{dtype}","shape":[1],"data_offsets":[0,{}]}}}}"#,
            bytes.len()
        );
        let opened = open(file(&json, &bytes)).unwrap();
        let view = opened.tensor("t").unwrap();
        let tensor = view.to_tensor(Some(DType::I64)).unwrap();
        assert_eq!(tensor.to_vec1::<i64>().unwrap(), [expected], "{dtype}");
        view.to_tensor(None).unwrap();
        view.check_finite().unwrap();
    }
}

#[test]
fn not_a_number_is_named_with_index_and_offset() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let bad = Tensor::from_vec(vec![0f32, 1.0, f32::NAN, 2.0], (2, 2), &Device::Cpu).unwrap();
    save(&path, [("bad", &bad)], &BTreeMap::new()).unwrap();
    let message = Checkpoint::open(&path)
        .unwrap()
        .check_finite()
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("tensor `bad`") && message.contains("value 2 of shape [2, 2] is NaN"),
        "{message}"
    );
}

fn samples() -> Vec<(String, Tensor)> {
    let make = |n: usize, dtype| {
        Tensor::from_vec(
            (0..n).map(|i| i as f32).collect::<Vec<_>>(),
            (n,),
            &Device::Cpu,
        )
        .unwrap()
        .to_dtype(dtype)
        .unwrap()
    };
    vec![
        ("w.1".into(), make(5, DType::F32)),
        ("w.2".into(), make(3, DType::U8)),
        ("w.3".into(), make(7, DType::BF16)),
        ("a".into(), make(2, DType::I64)),
        ("empty".into(), make(0, DType::F64)),
    ]
}

fn save_samples(folder: &Path, max_bytes: u64) -> Vec<std::path::PathBuf> {
    let tensors = samples();
    let specs: Vec<_> = tensors.iter().map(|(n, t)| TensorSpec::of(n, t)).collect();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    save_sharded(
        folder,
        &specs,
        &metadata,
        ShardOptions { max_bytes },
        |spec| {
            Ok(tensors
                .iter()
                .find(|(n, _)| *n == spec.name)
                .unwrap()
                .1
                .clone())
        },
    )
    .unwrap()
}

#[test]
fn shards_and_single_file_round_trip_and_replace_each_other() {
    let folder = tempfile::tempdir().unwrap();
    for (max_bytes, files) in [(20, 3), (1 << 20, 1), (1, 5)] {
        assert_eq!(save_samples(folder.path(), max_bytes).len(), files);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(checkpoint.files().len(), files);
        assert_eq!(checkpoint.metadata()["format"], "pt");
        for (name, tensor) in samples() {
            let read = checkpoint.tensor(&name).unwrap().to_tensor(None).unwrap();
            assert_eq!(read.dtype(), tensor.dtype());
            assert_eq!(
                convert::encode(&read).unwrap(),
                convert::encode(&tensor).unwrap()
            );
        }
    }
    // What was written is what the reference implementation reads.
    save_samples(folder.path(), 1 << 20);
    let bytes = std::fs::read(folder.path().join(SINGLE_FILE)).unwrap();
    let reference = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(reference.len(), 5);
    assert_eq!(reference.tensor("w.3").unwrap().shape(), [7]);
}

#[test]
fn index_must_stay_in_its_folder_and_match_its_shards() {
    let folder = tempfile::tempdir().unwrap();
    save_samples(folder.path(), 20);
    let index = folder.path().join(INDEX_FILE);
    let text = std::fs::read_to_string(&index).unwrap();
    for hostile in [
        "../up.safetensors",
        "/etc/passwd",
        "sub/x.safetensors",
        "..",
    ] {
        std::fs::write(
            &index,
            text.replacen("model-00001-of-00003.safetensors", hostile, 1),
        )
        .unwrap();
        let message = Checkpoint::open(folder.path()).unwrap_err().to_string();
        assert!(message.contains("outside its folder"), "{message}");
    }
    std::fs::write(&index, text.replace("\"w.1\"", "\"w.9\"")).unwrap();
    let message = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(
        message.contains("tensor `w.9`") && message.contains("absent"),
        "{message}"
    );
    std::fs::remove_file(&index).unwrap();
    assert!(Checkpoint::open(folder.path()).is_err());
}

#[test]
fn a_tensor_unlike_its_spec_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let spec = TensorSpec {
        name: "a".into(),
        dtype: DType::F32,
        shape: vec![3],
    };
    let other = Tensor::zeros((4,), DType::F32, &Device::Cpu).unwrap();
    assert!(
        write_file(
            &path,
            std::slice::from_ref(&spec),
            &BTreeMap::new(),
            |_| Ok(other.clone())
        )
        .is_err()
    );
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let twice = [spec.clone(), spec];
    assert!(write_file(&path, &twice, &BTreeMap::new(), |_| Ok(other.clone())).is_err());
}

proptest! {
    /// Damaged files are refused or read; they never panic, and reading never exceeds the file.
    #[test]
    fn damaged_files_are_handled(cut in 0usize..400, edits in prop::collection::vec((0usize..400, any::<u8>()), 0..4)) {
        let json = r#"{"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},"c":{"dtype":"I8","shape":[],"data_offsets":[32,33]}}"#;
        let mut bytes = file(json, &[0x3c; 33]);
        for (place, value) in edits {
            if let Some(b) = bytes.get_mut(place) { *b = value; }
        }
        if cut < bytes.len() && cut % 3 == 0 { bytes.truncate(cut); }
        if let Ok(opened) = open(bytes) {
            for view in opened.tensors() {
                let _ = view.to_tensor(Some(DType::F32));
                let _ = view.check_finite();
            }
        }
    }
}
