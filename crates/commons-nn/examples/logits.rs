//! Prints the logits of a decoder for a prompt, and the continuation by the likeliest token, as one
//! line of JSON: what `scripts/check-exports.py` compares with other programs.
//!
//!     cargo run --release --example logits -- MODEL PROMPT TOKENS
#![allow(clippy::print_stdout)]

use commons_nn::hub;
use commons_nn::model::{Loaded, ids_tensor};
use serde_json::json;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, prompt, tokens] = &arguments[..] else {
        return Err("usage: logits MODEL PROMPT TOKENS".into());
    };
    let Loaded { model, tokenizer, .. } = Loaded::open(&hub::resolve_model(name)?)?;
    let prompt = tokenizer.encode(prompt, false)?;
    let logits = |ids: &[u32]| -> Result<Vec<Vec<f32>>, Box<dyn std::error::Error>> {
        let hidden = model.forward(&ids_tensor(&[ids], &model.bank)?, None)?;
        Ok(model.logits(&hidden)?.squeeze(0)?.to_vec2()?)
    };
    let first = logits(&prompt)?;
    let mut ids = prompt.clone();
    for _ in 0..tokens.parse::<usize>()? {
        let rows = logits(&ids)?;
        let last = rows.last().ok_or("the prompt has no token")?;
        let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap_or(0);
        ids.push(best as u32);
    }
    println!("{}", json!({"ids": prompt, "logits": first, "continuation": ids[prompt.len()..]}));
    Ok(())
}
