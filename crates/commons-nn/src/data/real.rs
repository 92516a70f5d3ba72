//! Readers on published data. These tests do nothing unless `COMMONS_TEST_DATA` names a folder that
//! holds it, each set in a folder of its own name.

use std::path::PathBuf;

use super::csv::Dialect;
use super::*;

/// The folder of `set`, if it is there.
fn folder(set: &str) -> Option<PathBuf> {
    let folder = PathBuf::from(std::env::var_os("COMMONS_TEST_DATA")?).join(set);
    folder.is_dir().then_some(folder)
}

#[test]
fn mnist() {
    let Some(folder) = folder("mnist") else { return };
    let (train, test) = (idx::mnist(&folder, true).unwrap(), idx::mnist(&folder, false).unwrap());
    assert_eq!((train.len(), test.len(), train.height, train.width), (60_000, 10_000, 28, 28));
    // The first training image is a five; the mean brightness of the set is well known.
    assert_eq!((train.labels[0], test.labels[0]), (5, 7));
    let sum: f64 = train.pixels.iter().map(|&p| f64::from(p)).sum();
    assert!((sum / train.pixels.len() as f64 / 255. - 0.1307).abs() < 1e-4);
}

#[test]
fn cifar10() {
    let Some(folder) = folder("cifar10") else { return };
    let test = Images::from_parquet(folder.join("test.parquet")).unwrap();
    assert_eq!((test.len(), test.channels, test.height, test.width), (10_000, 3, 32, 32));
    for class in 0..10 {
        assert_eq!(test.labels.iter().filter(|&&l| l == class).count(), 1000);
    }
    let mean = |c: usize| {
        let planes = test.pixels.chunks_exact(1024).skip(c).step_by(3);
        planes.flatten().map(|&p| f64::from(p)).sum::<f64>() / (10_000. * 1024. * 255.)
    };
    // Means of the channels of the test images, to the loss of their compression.
    for (c, known) in [0.4942, 0.4851, 0.4504].into_iter().enumerate() {
        assert!((mean(c) - known).abs() < 2e-3, "channel {c}: {}", mean(c));
    }
    assert_eq!(Images::from_parquet(folder.join("train.parquet")).unwrap().len(), 50_000);
}

#[test]
fn ljspeech() {
    let Some(folder) = folder("ljspeech") else { return };
    let dialect = Dialect { delimiter: b'|', header: false, quotes: false };
    let clips = csv::read(folder.join("metadata.csv"), dialect).unwrap();
    assert_eq!(clips.len(), 186);
    let mut seconds = 0.;
    for name in clips.text("1").unwrap() {
        let clip = audio::read(folder.join("wavs").join(format!("{name}.flac"))).unwrap();
        assert_eq!((clip.channels, clip.rate), (1, 22_050), "{name}");
        assert!(clip.samples.iter().all(|s| s.abs() <= 1.));
        seconds += clip.seconds();
    }
    assert!((1190. ..1210.).contains(&seconds), "{seconds} s");
    let first = std::fs::read(folder.join("wavs/LJ001-0001.flac")).unwrap();
    let half = tests::Held::new("half.flac", &first[..first.len() / 2]);
    let message = audio::read(half.path()).unwrap_err().to_string();
    assert!(message.contains("half.flac: frame "), "{message}");
}

#[test]
fn texts_and_tables() {
    if let Some(folder) = folder("text") {
        let text = text::read(folder.join("tinyshakespeare.txt"), 2 << 20).unwrap();
        assert!(text.starts_with("First Citizen:"));
    }
    if let Some(folder) = folder("gsm8k") {
        let records = jsonl::read(folder.join("test.jsonl")).unwrap();
        assert_eq!(records.names().collect::<Vec<_>>(), ["question", "answer"]);
        assert!(records.text("answer").unwrap().iter().all(|a| a.contains("#### ")));
        assert_eq!(records.len(), 1319);
    }
    if let Some(folder) = folder("nyctaxi") {
        let path = folder.join("taxis.csv");
        let trips = csv::read(&path, Dialect::of(&path)).unwrap();
        assert_eq!(trips.len(), 6433);
        let fares = trips.numbers("fare").unwrap();
        assert!(fares.iter().all(|f| (1. ..=150.).contains(f)));
        assert_eq!(trips.column("passengers").unwrap().kind(), "whole numbers");
    }
}

#[test]
fn rmd17() {
    let Some(folder) = folder("rmd17") else { return };
    let arrays = npy::read_npz(folder.join("rmd17_aspirin_train_01.npz")).unwrap();
    let coords = &arrays["coords"];
    assert_eq!(coords.shape()[1..], [21, 3]);
    assert_eq!(arrays["forces"].shape(), coords.shape());
    let charges = arrays["nuclear_charges"].to_i64().unwrap();
    // Aspirin is C9H8O4.
    let count = |z: i64| charges.iter().filter(|&&c| c == z).count();
    assert_eq!((count(6), count(1), count(8)), (9, 8, 4));
    assert!(arrays["energies"].to_f64().iter().all(|e| e.is_finite()));
}
