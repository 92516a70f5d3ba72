//! `generate`: continue a prompt, token by token.

use std::io::{IsTerminal, Read};
use std::time::Instant;

use clap::Args;
use commons_nn::generate::{SamplerConfig, generate};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::cli::{App, Done};
use crate::config::{Layer, resolve};
use crate::error::{Failure, Result};
use crate::model::{self, Options};
use commons_core::format;
use crate::examples;

pub const EXAMPLES: &str = examples![
    "$ commons generate tiny --prompt 'sort fbda:' --greedy",
    "$ commons generate smollm2-135m --chat --prompt 'Why is the sky blue?'",
    "$ commons generate ./out --prompt 'Once' --max-tokens 200 --temperature 0.7 --seed 1",
    "# the prompt may come from a pipe",
    "$ commons generate ./out --json",
];

/// Largest prompt read from standard input, bytes.
const PROMPT_LIMIT: u64 = 1 << 20;

/// Options of `generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// Model: a path or a name
    #[arg(default_value = "tiny")]
    pub model: String,
    /// Text to continue; without it standard input is read
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// Wrap the prompt in the model's chat template
    #[arg(long)]
    pub chat: bool,
    /// System message of the chat
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub system: Option<String>,
    /// New tokens at most [default: 128]
    #[arg(short = 'n', long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// Divides the logits; 0 takes the most likely token [default: 0.8]
    #[arg(long, value_name = "X")]
    pub temperature: Option<f32>,
    /// Choose among the N most likely tokens; 0 among all [default: 50]
    #[arg(long, value_name = "N")]
    pub top_k: Option<usize>,
    /// Choose among the likeliest tokens that together reach this probability [default: 0.95]
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,
    /// Drop tokens less likely than this times the likeliest [default: 0]
    #[arg(long, value_name = "P")]
    pub min_p: Option<f32>,
    /// Make tokens that occurred already less likely; 1 does not [default: 1.05]
    #[arg(long, value_name = "X")]
    pub repetition_penalty: Option<f32>,
    /// Always take the most likely token
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p", "min_p"])]
    pub greedy: bool,
}

/// Settings of `generate`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GenerateConfig {
    max_tokens: usize,
    chat: bool,
    sampler: SamplerConfig,
}

impl GenerateArgs {
    fn settings(&self, app: &App) -> Result<GenerateConfig> {
        let sampler = if self.greedy { SamplerConfig::greedy() } else { SamplerConfig::default() };
        let defaults = GenerateConfig { max_tokens: 128, chat: false, sampler };
        let options = Options::default()
            .put("max_tokens", self.max_tokens)
            .put("chat", self.chat.then_some(true))
            .put("sampler.temperature", self.temperature)
            .put("sampler.top_k", self.top_k)
            .put("sampler.top_p", self.top_p)
            .put("sampler.min_p", self.min_p)
            .put("sampler.repetition_penalty", self.repetition_penalty)
            .put("sampler.seed", app.global.seed);
        let layers = Layer::all(app.global.config.as_deref(), &options, &app.global.set)?;
        let config = resolve(&defaults, &layers)?;
        config.sampler.check()?;
        Ok(config)
    }

    fn prompt(&self) -> Result<String> {
        if let Some(prompt) = &self.prompt {
            return Ok(prompt.clone());
        }
        let stdin = std::io::stdin();
        if stdin.is_terminal() {
            return Err(Failure::usage("--prompt", "is missing").help("give --prompt TEXT, or pipe the prompt in"));
        }
        let mut prompt = String::new();
        stdin
            .take(PROMPT_LIMIT)
            .read_to_string(&mut prompt)
            .map_err(|e| Failure::usage("standard input", format!("cannot be read as text: {e}")))?;
        Ok(prompt)
    }
}

/// Continues a prompt.
///
/// # Errors
/// When the model cannot be loaded, the prompt is empty or too long, or an option is out of range.
pub fn run(app: &App, args: &GenerateArgs) -> Result<Done> {
    let config = args.settings(app)?;
    let prompt = args.prompt()?;
    let loaded = model::load(app, &args.model)?;
    let tokenizer = &loaded.tokenizer;
    let written = if config.chat { model::chat_prompt(&loaded, args.system.as_deref(), &prompt)? } else { prompt.clone() };
    // A chat template writes its own first token.
    let ids = tokenizer.encode(&written, !config.chat)?;
    if ids.is_empty() {
        return Err(Failure::usage("--prompt", "is empty").help("give at least one character"));
    }
    let decoder = loaded.model.baked()?;
    let mut stream = tokenizer.stream(true);
    let mut text = String::new();
    let mut failure = None;
    let began = Instant::now();
    let mut first = None;
    if !app.out.json && !config.chat {
        app.out.stream(&app.out.dim(&prompt))?;
    }
    let new = generate(&decoder, &ids, config.max_tokens, &config.sampler, &model::stop_tokens(&loaded), |token| {
        first.get_or_insert_with(|| began.elapsed().as_secs_f64());
        let shown = stream.push(token).map_err(Failure::from).and_then(|piece| {
            text.push_str(&piece);
            if app.out.json { Ok(()) } else { app.out.stream(&piece) }
        });
        failure = shown.err();
        failure.is_none() && !app.stop.raised()
    })?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    let rest = stream.finish()?;
    text.push_str(&rest);
    let seconds = began.elapsed().as_secs_f64();
    let rate = speed(new.len(), seconds, first);
    if app.out.json {
        app.out.json(&json!({
            "prompt": prompt,
            "text": text,
            "prompt_tokens": ids.len(),
            "new_tokens": new.len(),
            "seconds": seconds,
            "seconds_to_first_token": first,
            "tokens_per_second": rate,
            "settings": config,
        }))?;
    } else {
        app.out.text(&rest)?;
        let first = first.map_or_else(|| "none".to_owned(), |s| format!("{:.2} s", s));
        app.progress.note(format!(
            "{} tokens, {} tokens/s, first after {first}",
            new.len(),
            format::number(rate),
        ));
    }
    app.stop.check().map(|()| Done::Well)
}

/// Tokens per second after the first, which has the prompt to work through.
pub fn speed(tokens: usize, seconds: f64, first: Option<f64>) -> f64 {
    match (tokens, first) {
        (0 | 1, _) | (_, None) => tokens as f64 / seconds.max(1e-9),
        (n, Some(first)) => (n - 1) as f64 / (seconds - first).max(1e-9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_token_does_not_count_in_the_rate() {
        assert_eq!(speed(11, 3., Some(1.)), 5.);
        assert_eq!(speed(1, 2., Some(2.)), 0.5);
        assert_eq!(speed(0, 2., None), 0.);
    }
}
