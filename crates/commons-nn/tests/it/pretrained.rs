//! Real pretrained models, when they are in the local cache (`commons pull smollm2-135m
//! minilm-l6`); without them these tests have nothing to compare and say so.

use std::path::PathBuf;
use std::time::Instant;

use commons_nn::bank::Bank;
use commons_nn::hub;
use commons_nn::model::{Bert, BertConfig, Loaded, ids_tensor};
use commons_nn::tokenizer::Tokenizer;

use crate::{data, floats, ids, json, max_difference};

fn cached(name: &str) -> Option<PathBuf> {
    let found = hub::cached_model(name);
    if found.is_none() {
        eprintln!("skipped: {name} is not in the cache (commons pull {name})");
    }
    found
}

#[test]
fn smollm2_equals_transformers() {
    let Some(path) = cached("smollm2-135m") else { return };
    let began = Instant::now();
    let Loaded { model, tokenizer, .. } = Loaded::open(&path).unwrap();
    eprintln!("smollm2-135m ready in {:.2} s", began.elapsed().as_secs_f64());
    for case in json(data("smollm2-135m.golden.json")).as_array().unwrap() {
        let prompt = case["prompt"].as_str().unwrap();
        let expected = ids(&case["ids"]);
        assert_eq!(tokenizer.encode(prompt, true).unwrap(), expected, "{prompt}");
        let hidden = model.forward(&ids_tensor(&[&expected], &model.bank).unwrap(), None).unwrap();
        let logits = model.logits(&hidden).unwrap().squeeze(0).unwrap().to_vec2::<f32>().unwrap();
        let stride = case["stride"].as_u64().unwrap() as usize;
        let ours: Vec<f32> = logits[logits.len() - 3..]
            .iter()
            .flat_map(|row| row.iter().step_by(stride).copied())
            .collect();
        let difference = max_difference(&ours, &floats(&case["logits"]));
        assert!(difference <= 1e-3, "{prompt}: {difference}");
        let best: Vec<u32> = logits
            .iter()
            .map(|row| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32)
            .collect();
        assert_eq!(best, ids(&case["argmax"]), "{prompt}");
    }
}

#[test]
fn minilm_equals_transformers() {
    let Some(path) = cached("minilm-l6") else { return };
    let folder = if path.is_dir() { path } else { path.parent().unwrap().to_path_buf() };
    let config = BertConfig::from_json(&json(folder.join("config.json"))).unwrap();
    let model = Bert::new(config, Bank::open(&folder).unwrap()).unwrap();
    let tokenizer = Tokenizer::open(&folder).unwrap();
    for case in json(data("minilm-l6.golden.json")).as_array().unwrap() {
        let expected = ids(&case["ids"]);
        assert_eq!(tokenizer.encode(case["text"].as_str().unwrap(), true).unwrap(), expected);
        let batch = ids_tensor(&[&expected], &model.bank).unwrap();
        let embedding = model.sentence_embeddings(&batch, &[expected.len()]).unwrap();
        let ours = embedding.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let difference = max_difference(&ours, &floats(&case["embedding"]));
        assert!(difference <= 1e-3, "{difference}");
    }
}
