//! Small random models of every family, with gains and biases away from their initial values.

use commons_nn::bank::Bank;
use commons_nn::model::{Bert, BertConfig, Decoder, DecoderConfig, Vit, VitConfig, ids_tensor};
use commons_ops::{Device, Tensor};

use crate::{data, floats, ids, json, max_difference};

fn decoder(name: &str) -> Decoder {
    let config = DecoderConfig::from_json(&json(data(name).join("config.json"))).unwrap();
    Decoder::new(config, Bank::open(&data(name)).unwrap()).unwrap()
}

#[test]
fn decoders_equal_transformers() {
    for name in ["llama", "llama3-rope", "qwen2", "qwen3", "gemma3"] {
        let model = decoder(name);
        let golden = json(data(name).join("golden.json"));
        let row = ids(&golden["ids"]);
        let hidden = model.forward(&ids_tensor(&[&row], &model.bank).unwrap(), None).unwrap();
        let logits =
            model.logits(&hidden).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let difference = max_difference(&logits, &floats(&golden["logits"]));
        assert!(difference < 1e-3, "{name}: {difference}");
    }
}

#[test]
fn a_cache_gives_the_logits_of_the_whole_sequence() {
    for name in ["llama", "gemma3"] {
        let model = decoder(name);
        let golden = json(data(name).join("golden.json"));
        let row = ids(&golden["ids"]);
        let mut cache = model.cache(1, row.len()).unwrap();
        let mut logits = Vec::new();
        for part in [&row[..4], &row[4..5], &row[5..]] {
            let part = ids_tensor(&[part], &model.bank).unwrap();
            let hidden = model.forward(&part, Some(&mut cache)).unwrap();
            logits.extend(
                model.logits(&hidden).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap(),
            );
        }
        let difference = max_difference(&logits, &floats(&golden["logits"]));
        assert!(difference < 1e-3, "{name}: {difference}");
    }
}

#[test]
fn bert_equals_transformers_under_padding() {
    let config = BertConfig::from_json(&json(data("bert").join("config.json"))).unwrap();
    let model = Bert::new(config, Bank::open(&data("bert")).unwrap()).unwrap();
    let golden = json(data("bert").join("golden.json"));
    let rows: Vec<Vec<u32>> = golden["ids"].as_array().unwrap().iter().map(ids).collect();
    let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
    let hidden = model.forward(&ids_tensor(&rows, &model.bank).unwrap(), &[6, 3]).unwrap();
    for (row, valid) in [(0, 6), (1, 3)] {
        let ours = hidden.get(row).unwrap().narrow(0, 0, valid).unwrap();
        let ours = ours.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let difference = max_difference(&ours, &floats(&golden["hidden"][row]));
        assert!(difference < 1e-3, "row {row}: {difference}");
    }
}

#[test]
fn vit_equals_transformers() {
    let raw = json(data("vit").join("config.json"));
    let count = |key: &str| raw[key].as_u64().unwrap() as usize;
    let config = VitConfig {
        image_size: count("image_size"),
        patch_size: count("patch_size"),
        num_channels: count("num_channels"),
        hidden_size: count("hidden_size"),
        num_hidden_layers: count("num_hidden_layers"),
        num_attention_heads: count("num_attention_heads"),
        num_key_value_heads: count("num_attention_heads"),
        intermediate_size: count("intermediate_size"),
        num_labels: 5,
    };
    let model = Vit::new(config, Bank::open(&data("vit")).unwrap()).unwrap();
    let golden = json(data("vit").join("golden.json"));
    let images = Tensor::from_vec(floats(&golden["images"]), (2, 3, 8, 8), &Device::Cpu).unwrap();
    let logits = model.forward(&images).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let difference = max_difference(&logits, &floats(&golden["logits"]));
    assert!(difference < 1e-3, "{difference}");
}

#[test]
fn a_missing_weight_and_a_wrong_shape_are_named() {
    let config = DecoderConfig::from_json(&json(data("llama").join("config.json"))).unwrap();
    let mut bank = Bank::open(&data("llama")).unwrap();
    bank.remove("model.layers.1.mlp.up_proj.weight");
    let message = Decoder::new(config.clone(), bank).unwrap_err().to_string();
    assert!(message.contains("model.layers.1.mlp.up_proj.weight"), "{message}");
    let wider = DecoderConfig { intermediate_size: 41, ..config };
    let message = Decoder::new(wider, Bank::open(&data("llama")).unwrap()).unwrap_err().to_string();
    assert!(message.contains("mlp.gate_proj.weight") && message.contains("[40, 24]"), "{message}");
}
