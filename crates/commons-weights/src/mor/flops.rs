//! Arithmetic of a training step.

use commons_nn::model::{DecoderConfig, RecursionCache};

/// Floating-point operations per token of a forward and a backward pass over sequences of `seq`
/// tokens: two for each weight a token is multiplied with and four for each channel of each key a
/// query sees, three times over. Where tokens are routed, the share of tokens in each recursion
/// counts.
pub fn training_flops(config: &DecoderConfig, seq: usize) -> f64 {
    let (h, d) = (config.hidden_size as f64, config.head_dim as f64);
    let (q, kv) = (config.num_attention_heads as f64 * d, config.num_key_value_heads as f64 * d);
    let queries = 2. * h * q + 3. * h * config.intermediate_size as f64;
    let (keys, seen) = (2. * h * kv, (seq + 1) as f64 / 2.);
    let full = 2. * (queries + keys) + 4. * seen * q;
    let layers = config.num_hidden_layers as f64;
    let blocks = match &config.mixture_of_recursions {
        None => layers * full,
        Some(mixture) => {
            let ends = (2 * mixture.sharing.ends()) as f64;
            let block = (layers - ends) / mixture.recursions as f64;
            let shared = mixture.kv_cache == RecursionCache::Shared;
            let pass = |r: usize| {
                let c = mixture.capacity(r);
                // Shared keys are made once and all seen; own keys are those of the tokens taken.
                let keys = if shared && r > 0 { 0. } else { keys };
                let seen = if shared { seen } else { c * seen };
                c * (2. * (queries + keys) + 4. * seen * q)
            };
            ends * full + block * (0..mixture.recursions).map(pass).sum::<f64>()
        }
    };
    3. * (blocks + 2. * h * config.vocab_size as f64)
}
