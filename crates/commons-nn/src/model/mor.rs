//! The forward pass of a mixture of recursions: in every recursion the tokens that take part are
//! gathered, passed through the shared layers at their own positions, and added back.
//!
//! Tokens that take part are held side by side, `[1, n, hidden]`, whatever row they are of; only
//! attention tells rows apart.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use commons_ops::{self as ops, Tensor};

use super::decoder::{Decoder, Rotary, inputs_and_targets, layer_prefix};
use super::kv::{GrowingKv, KvCache};
use super::recursion::{
    MixtureOfRecursions, RECURSION_KEY, RecursionCache, RecursionGate, RouterKind, ThresholdSource,
};
use super::router::{
    Chosen, balance, binary_cross_entropy, chance, highest, index, score, values, z_loss,
};
use crate::{Error, Result};

/// How the tokens of a recursion are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routing {
    /// As in training: expert choice takes the highest scores of the whole sequence, later tokens
    /// included.
    Training,
    /// By a token's own score, as with a cache: the only way that may be scored.
    Threshold,
}

/// What a routed forward pass gives.
#[derive(Debug)]
pub struct Routed {
    /// Hidden states after the final norm, `[batch, seq, hidden]`.
    pub hidden: Tensor,
    /// Auxiliary losses times their weights; `None` unless routing as in training.
    pub auxiliary: Option<Tensor>,
    /// For every recursion and row, the places in `ids` of the tokens that took part.
    pub active: Vec<Vec<Vec<u32>>>,
    /// For every recursion, the router's score `σ(z)` of each candidate, row after row; with token
    /// choice, once, the probability of the depth taken.
    pub scores: Vec<Vec<f32>>,
    /// For every recursion that leaves tokens out, the share of candidates for which a threshold
    /// says the same as what was done.
    pub agreement: Vec<f64>,
    /// Where the time went.
    pub times: RoutedTimes,
}

/// Wall time of the parts of a forward pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RoutedTimes {
    /// Routers, choice, gathering and adding back.
    pub routing: Duration,
    /// The layers.
    pub layers: Duration,
    /// Embedding and final norm.
    pub rest: Duration,
}

impl RoutedTimes {
    /// Names of the parts.
    pub const PARTS: [&'static str; 3] = ["routing", "layers", "rest"];

    /// Seconds of the parts.
    pub fn seconds(&self) -> [f64; 3] {
        [self.routing, self.layers, self.rest].map(|d| d.as_secs_f64())
    }
}

/// The loss of a training step.
#[derive(Debug)]
pub struct RoutedLoss {
    /// Cross-entropy and auxiliary losses.
    pub total: Tensor,
    /// What the pass was like.
    pub routed: Routed,
}

/// The tokens that take part, and the rotary tables at their positions.
#[derive(Debug, Clone)]
struct Spot {
    tokens: Chosen,
    rotary: Rotary,
    start: usize,
}

/// Where keys and values of earlier tokens and recursions are.
enum Memory<'a> {
    /// Whole sequences are passed at once; by depth, what all tokens left in the first recursion,
    /// `[batch, seq, kv_heads, head_dim]`.
    Sequence(BTreeMap<usize, (Tensor, Tensor)>),
    /// Tokens come after those of the cache.
    Cache(&'a mut GrowingKv),
}

/// State of one pass.
struct Pass<'a> {
    mixture: &'a MixtureOfRecursions,
    routing: Routing,
    recompute: bool,
    rotary: Rotary,
    start: usize,
    ids: Vec<u32>,
    memory: Memory<'a>,
    auxiliary: Vec<Tensor>,
    active: Vec<Vec<Vec<u32>>>,
    scores: Vec<Vec<f32>>,
    agreement: Vec<f64>,
    layers: Duration,
}

impl Decoder {
    /// The forward pass of a mixture of recursions for `ids: [batch, seq]`. With a cache, `ids` come
    /// after the tokens in it.
    ///
    /// # Errors
    /// When the model is no mixture of recursions, or a cache is given while routing as in training.
    pub fn forward_routed(
        &self,
        ids: &Tensor,
        routing: Routing,
        kv: Option<&mut KvCache>,
    ) -> Result<Routed> {
        let (_, seq) = ids.dims2()?;
        let start = kv.as_ref().map_or(0, |c| c.len());
        let Some(cache) = kv else {
            return self.routed(ids, routing, (0, Memory::Sequence(BTreeMap::new())), false);
        };
        if routing == Routing::Training && self.mixture()?.router == RouterKind::Expert {
            return Err(Error::config("routing", "the highest scores need the whole sequence"));
        }
        let done = self.routed(ids, routing, (start, Memory::Cache(cache.grow(seq)?)), false)?;
        cache.advance(seq);
        Ok(done)
    }

    /// [`Decoder::forward_routed`] without a cache that keeps only the input of each recursion.
    ///
    /// # Errors
    /// When recursions share keys and values, which would have to be kept.
    pub fn forward_routed_recomputing(&self, ids: &Tensor, routing: Routing) -> Result<Routed> {
        if self.mixture()?.kv_cache == RecursionCache::Shared {
            return Err(Error::config(
                "gradient_checkpointing",
                format!("does not go with {RECURSION_KEY}.kv_cache shared: lower batch_size"),
            ));
        }
        self.routed(ids, routing, (0, Memory::Sequence(BTreeMap::new())), true)
    }

    /// Mean next-token cross-entropy of `ids: [batch, seq + 1]`, routed as in training, plus the
    /// auxiliary losses.
    ///
    /// # Errors
    /// When the model is no mixture of recursions or there are fewer than two tokens.
    pub fn routed_loss(&self, ids: &Tensor, recompute: bool) -> Result<RoutedLoss> {
        let (inputs, targets) = inputs_and_targets(ids)?;
        let routed = if recompute {
            self.forward_routed_recomputing(&inputs, Routing::Training)?
        } else {
            self.forward_routed(&inputs, Routing::Training, None)?
        };
        let mut total = self.loss(&routed.hidden, &targets)?;
        if let Some(auxiliary) = &routed.auxiliary {
            total = ops::add(&total, auxiliary)?;
        }
        Ok(RoutedLoss { total, routed })
    }

    fn mixture(&self) -> Result<&MixtureOfRecursions> {
        self.config
            .mixture_of_recursions
            .as_ref()
            .ok_or_else(|| Error::config(RECURSION_KEY, "the model has none"))
    }

    fn routed(
        &self,
        ids: &Tensor,
        routing: Routing,
        (start, memory): (usize, Memory<'_>),
        recompute: bool,
    ) -> Result<Routed> {
        let began = Instant::now();
        let mixture = self.mixture()?;
        let (batch, seq) = ids.dims2()?;
        let (width, layers) = (self.config.hidden_size, self.config.num_hidden_layers);
        let mut pass = Pass {
            mixture,
            routing,
            recompute,
            rotary: self.rotary(start, seq)?,
            start,
            ids: ids.flatten_all()?.to_vec1()?,
            memory,
            auxiliary: Vec::new(),
            active: Vec::new(),
            scores: Vec::new(),
            agreement: Vec::new(),
            layers: Duration::ZERO,
        };
        let everyone = pass.spot(Chosen::all(batch, seq), self)?;
        let ends = mixture.sharing.ends();
        let mut x = self.embed(ids)?.reshape((1, batch * seq, width))?;
        x = pass.layers(self, 0..ends, &x, &everyone)?;
        let recursions = mixture.sharing.recursions(layers, mixture.recursions);
        let (entered, before) = (Instant::now(), pass.layers);
        x = match mixture.router {
            RouterKind::Token => pass.token_choice(self, &recursions, x, everyone.clone())?,
            _ => pass.expert_choice(self, &recursions, x, everyone.clone())?,
        };
        let routing = entered.elapsed().saturating_sub(pass.layers - before);
        x = pass.layers(self, layers - ends..layers, &x, &everyone)?;
        let hidden = self.final_norm(&x.reshape((batch, seq, width))?)?;
        let mut auxiliary: Option<Tensor> = None;
        for part in pass.auxiliary {
            auxiliary = Some(match auxiliary {
                Some(sum) => ops::add(&sum, &part)?,
                None => part,
            });
        }
        let (active, scores, agreement) = (pass.active, pass.scores, pass.agreement);
        let rest = began.elapsed().saturating_sub(routing + pass.layers);
        let times = RoutedTimes { routing, layers: pass.layers, rest };
        Ok(Routed { hidden, auxiliary, active, scores, agreement, times })
    }

    /// One layer for the tokens `x: [1, n, hidden]` of `spot`; `keys` is the depth whose keys and
    /// values they see.
    fn routed_block(
        &self,
        (depth, keys): (usize, usize),
        x: &Tensor,
        spot: &Spot,
        memory: &mut Memory<'_>,
    ) -> Result<Tensor> {
        let normed = self.rms_norm(&format!("{}input_layernorm", layer_prefix(depth)), x)?;
        let q = self.queries(depth, &normed, &spot.rotary)?;
        let own = (depth == keys).then(|| self.keys_values(depth, &normed, &spot.rotary));
        let y = match memory {
            Memory::Sequence(shared) => {
                self.attend_sequence((depth, keys), &q, own.transpose()?, spot, shared)?
            }
            Memory::Cache(cache) => {
                self.attend_cache((depth, keys), &q, own.transpose()?, spot, cache)?
            }
        };
        let x = ops::add(x, &self.attention_output(depth, &y)?)?;
        let update = self.mlp_update(depth, &x)?;
        Ok(ops::add(&x, &update)?)
    }

    /// Attention of `q: [1, n, heads, head_dim]` within whole sequences.
    fn attend_sequence(
        &self,
        (depth, keys): (usize, usize),
        q: &Tensor,
        own: Option<(Tensor, Tensor)>,
        spot: &Spot,
        shared: &mut BTreeMap<usize, (Tensor, Tensor)>,
    ) -> Result<Tensor> {
        let (tokens, device) = (&spot.tokens, q.device());
        let (batch, width) = (tokens.rows.len(), tokens.width());
        let even = tokens.is_even();
        let (padded, kept) = if even { Default::default() } else { tokens.padded() };
        // [1, n, heads, head_dim] → [batch, width, heads, head_dim].
        let in_rows = |t: &Tensor| -> Result<Tensor> {
            let (_, n, heads, d) = t.dims4()?;
            let t = t.reshape((n, heads * d))?;
            let t = if even { t } else { ops::index_select(&t, &index(&padded, device)?, 0)? };
            Ok(t.reshape((batch, width, heads, d))?)
        };
        let mut options = self.attention_options(depth);
        let (k, v) = match own {
            Some((k, v)) => (in_rows(&k)?, in_rows(&v)?),
            None => {
                // Fewer queries than keys, each at its own place.
                let line = |row: &Vec<u32>| -> Vec<usize> {
                    let filled = row.iter().copied().chain(std::iter::repeat(0));
                    filled.take(width).map(|t| t as usize).collect()
                };
                options.positions = Some(tokens.rows.iter().flat_map(line).collect());
                shared
                    .get(&keys)
                    .cloned()
                    .ok_or_else(|| Error::config(RECURSION_KEY, "no keys from recursion 1"))?
            }
        };
        let y = ops::attention(&in_rows(q)?, &k, &v, &options)?;
        if depth == keys && self.mixture()?.kv_cache == RecursionCache::Shared {
            shared.insert(depth, (k, v));
        }
        let features = self.config.num_attention_heads * self.config.head_dim;
        let y = y.reshape((batch * width, features))?;
        let y = if even { y } else { ops::index_select(&y, &index(&kept, device)?, 0)? };
        Ok(y.unsqueeze(0)?)
    }

    /// Attention of `q: [1, n, heads, head_dim]` to what the cache holds and the tokens themselves.
    fn attend_cache(
        &self,
        (depth, keys): (usize, usize),
        q: &Tensor,
        own: Option<(Tensor, Tensor)>,
        spot: &Spot,
        cache: &mut GrowingKv,
    ) -> Result<Tensor> {
        let tokens = &spot.tokens;
        let features = self.config.num_attention_heads * self.config.head_dim;
        let mut parts = Vec::with_capacity(tokens.rows.len());
        for (b, (row, offset)) in tokens.rows.iter().zip(tokens.offsets()).enumerate() {
            if row.is_empty() {
                continue;
            }
            let positions: Vec<usize> = row.iter().map(|&t| spot.start + t as usize).collect();
            let mut options = self.attention_options(depth);
            match &own {
                Some((k, v)) => {
                    let (k, v) = (k.narrow(1, offset, row.len())?, v.narrow(1, offset, row.len())?);
                    cache.append((depth, b), &positions, &k, &v)?;
                }
                // Every token is in the first recursion: a key's place is its position.
                None => options.positions = Some(positions),
            }
            let (k, v) = cache
                .held((keys, b))?
                .ok_or_else(|| Error::config(RECURSION_KEY, "no keys from recursion 1"))?;
            let q = q.narrow(1, offset, row.len())?.contiguous()?;
            let y = ops::attention(&q, &k.contiguous()?, &v.contiguous()?, &options)?;
            parts.push(y.reshape((1, row.len(), features))?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(&parts, 1)? })
    }

    /// The router's logits of `x: [1, n, hidden]`, `[n, outputs]`.
    fn router_logits(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        let (_, n, width) = x.dims3()?;
        self.bank.linear(name, &x.reshape((n, width))?)
    }
}

impl Pass<'_> {
    fn spot(&self, tokens: Chosen, model: &Decoder) -> Result<Spot> {
        let rotary = self.rotary.at(&index(&tokens.positions(), model.bank.device())?)?;
        Ok(Spot { tokens, rotary, start: self.start })
    }

    /// Depths with keys and values of their own.
    fn layers(
        &mut self,
        model: &Decoder,
        depths: Range<usize>,
        x: &Tensor,
        spot: &Spot,
    ) -> Result<Tensor> {
        let first = depths.start;
        self.recursion(model, depths, first, x, spot)
    }

    /// The layers at `depths`, seeing the keys and values of those that begin at `keys`.
    fn recursion(
        &mut self,
        model: &Decoder,
        depths: Range<usize>,
        keys: usize,
        x: &Tensor,
        spot: &Spot,
    ) -> Result<Tensor> {
        let began = Instant::now();
        let done = self.passed(model, depths, keys, x, spot);
        self.layers += began.elapsed();
        done
    }

    fn passed(
        &mut self,
        model: &Decoder,
        depths: Range<usize>,
        keys: usize,
        x: &Tensor,
        spot: &Spot,
    ) -> Result<Tensor> {
        if self.recompute && !depths.is_empty() {
            let (model, spot) = (model.clone(), spot.clone());
            return Ok(ops::checkpoint(&[x], move |inputs| {
                let mut memory = Memory::Sequence(BTreeMap::new());
                let mut x = inputs[0].clone();
                for depth in depths.clone() {
                    x = model
                        .routed_block((depth, depth), &x, &spot, &mut memory)
                        .map_err(Error::into_tensor_error)?;
                }
                Ok(x)
            })?);
        }
        let mut x = x.clone();
        for (i, depth) in depths.enumerate() {
            x = model.routed_block((depth, keys + i), &x, spot, &mut self.memory)?;
        }
        Ok(x)
    }

    /// The depth whose keys recursion `r` sees.
    fn keys_of(&self, recursions: &[Range<usize>], r: usize) -> usize {
        let r = if self.mixture.kv_cache == RecursionCache::Shared { 0 } else { r };
        recursions[r].start
    }

    fn teach(&mut self, coef: f64, loss: impl FnOnce() -> Result<Tensor>) -> Result<()> {
        if self.routing == Routing::Training && coef > 0. {
            self.auxiliary.push(ops::scale(&loss()?, coef as f32)?);
        }
        Ok(())
    }

    /// `H ← H + α σ(z) Φ(H)` for those chosen among the chosen of the recursion before.
    fn expert_choice(
        &mut self,
        model: &Decoder,
        recursions: &[Range<usize>],
        mut x: Tensor,
        everyone: Spot,
    ) -> Result<Tensor> {
        let device = model.bank.device().clone();
        let width = model.config.hidden_size;
        let mut candidates = everyone;
        for (r, depths) in recursions.iter().enumerate() {
            if candidates.tokens.count() == 0 {
                self.active.push(candidates.tokens.rows.clone());
                self.scores.push(Vec::new());
                continue;
            }
            let mut inside = pick(&x, &candidates.tokens)?;
            let z = model.router_logits(&format!("model.recursion_router.{r}"), &inside)?;
            let keep = self.choose(model, r, &candidates.tokens, &inside, &z)?;
            self.scores.push(values(&ops::sigmoid(&z.detach())?)?);
            let (tokens, places) = candidates.tokens.filter(|at| keep[at]);
            self.active.push(tokens.rows.clone());
            let mut z = z;
            if tokens != candidates.tokens {
                let places = index(&places, &device)?;
                inside = ops::index_select(&inside.squeeze(0)?, &places, 0)?.unsqueeze(0)?;
                z = ops::index_select(&z, &places, 0)?;
                candidates = self.spot(tokens, model)?;
            }
            if candidates.tokens.count() == 0 {
                continue;
            }
            let keys = self.keys_of(recursions, r);
            let mut y = self.recursion(model, depths.clone(), keys, &inside, &candidates)?;
            if self.mixture.gate == RecursionGate::Weighted {
                y = ops::mix(&y, &score(self.mixture, &z)?.unsqueeze(0)?)?;
            }
            x = put(&x, &candidates.tokens, &y.reshape(((), width))?)?;
        }
        Ok(x)
    }

    /// Which candidates take part in recursion `r`, and the losses that teach it.
    fn choose(
        &mut self,
        model: &Decoder,
        r: usize,
        candidates: &Chosen,
        inside: &Tensor,
        z: &Tensor,
    ) -> Result<Vec<bool>> {
        let n = candidates.count();
        self.teach(self.mixture.z_loss_coef(), || z_loss(z))?;
        if self.mixture.takes_all(r) {
            return Ok(vec![true; n]);
        }
        if self.mixture.router == RouterKind::Random {
            let share = self.mixture.capacity(r);
            let (positions, places) = (candidates.positions(), candidates.places());
            let drawn = positions.iter().zip(places);
            return Ok(drawn
                .map(|(&t, at)| chance(self.start + t as usize, self.ids[at as usize]) < share)
                .collect());
        }
        let judge = match self.mixture.threshold {
            ThresholdSource::Router => z.clone(),
            ThresholdSource::AuxiliaryRouter => {
                let name = format!("model.recursion_router.{r}.auxiliary");
                model.router_logits(&name, &inside.detach())?
            }
        };
        let above: Vec<bool> = values(&judge)?.into_iter().map(|z| z >= 0.).collect();
        let keep = match self.routing {
            Routing::Threshold => above,
            Routing::Training => {
                let k = self.mixture.tokens(r, candidates.seq);
                let keep = highest(candidates, &values(z)?, k);
                let same = keep.iter().zip(&above).filter(|(a, b)| a == b).count();
                self.agreement.push(same as f64 / n as f64);
                if n > 0 && keep.iter().any(|&k| !k) {
                    let loss = || binary_cross_entropy(&judge, &keep);
                    self.teach(self.mixture.aux_loss_coef(), loss)?;
                }
                keep
            }
        };
        Ok(keep)
    }

    /// `H ← H + p_i Φ^i(H)` with the depth `i` that the token's router likes best.
    fn token_choice(
        &mut self,
        model: &Decoder,
        recursions: &[Range<usize>],
        mut x: Tensor,
        everyone: Spot,
    ) -> Result<Tensor> {
        let device = model.bank.device().clone();
        let logits = model.router_logits("model.recursion_router", &x)?;
        let (n, width) = (logits.dim(0)?, model.config.hidden_size);
        let probabilities = ops::softmax(&logits)?;
        let depths: Vec<u32> = ops::argmax(&logits.detach())?.flatten_all()?.to_vec1()?;
        let taken = Tensor::from_vec(depths.clone(), (n, 1), &device)?;
        let mut gate = ops::gather(&probabilities, &taken, 1)?;
        self.scores.push(values(&gate)?);
        gate = ops::scale(&gate, self.mixture.alpha() as f32)?;
        self.teach(self.mixture.aux_loss_coef(), || balance(&probabilities, &depths))?;
        self.teach(self.mixture.z_loss_coef(), || z_loss(&logits))?;
        let mut spot = everyone;
        let mut inside = x.clone();
        for (r, range) in recursions.iter().enumerate() {
            self.active.push(spot.tokens.rows.clone());
            if spot.tokens.count() == 0 {
                continue;
            }
            let keys = self.keys_of(recursions, r);
            inside = self.recursion(model, range.clone(), keys, &inside, &spot)?;
            let places = spot.tokens.places();
            let ends = |at: usize| depths[places[at] as usize] as usize <= r;
            let (done, done_at) = spot.tokens.filter(ends);
            let rows = inside.squeeze(0)?;
            if done.count() > 0 {
                let mut y = ops::index_select(&rows, &index(&done_at, &device)?, 0)?;
                if self.mixture.gate == RecursionGate::Weighted {
                    let gate = ops::index_select(&gate, &index(&done.places(), &device)?, 0)?;
                    y = ops::mix(&y.unsqueeze(0)?, &gate.unsqueeze(0)?)?.reshape(((), width))?;
                }
                x = put(&x, &done, &y)?;
            }
            let (on, on_at) = spot.tokens.filter(|at| !ends(at));
            if on.count() > 0 {
                inside = ops::index_select(&rows, &index(&on_at, &device)?, 0)?.unsqueeze(0)?;
            }
            spot = self.spot(on, model)?;
        }
        Ok(x)
    }
}

/// The rows of `x: [1, batch · seq, hidden]` that are `tokens`, `[1, n, hidden]`.
fn pick(x: &Tensor, tokens: &Chosen) -> Result<Tensor> {
    if tokens.is_all() {
        return Ok(x.clone());
    }
    let places = index(&tokens.places(), x.device())?;
    Ok(ops::index_select(&x.squeeze(0)?, &places, 0)?.unsqueeze(0)?)
}

/// `x: [1, batch · seq, hidden]` with `update: [n, hidden]` added to the rows that are `tokens`.
fn put(x: &Tensor, tokens: &Chosen, update: &Tensor) -> Result<Tensor> {
    if tokens.is_all() {
        return Ok(ops::add(x, &update.unsqueeze(0)?)?);
    }
    let places = index(&tokens.places(), x.device())?;
    Ok(ops::index_add(&x.squeeze(0)?, &places, update, 0)?.unsqueeze(0)?)
}
