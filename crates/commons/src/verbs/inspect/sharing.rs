//! A sharing plan in a few lines: which layers use the same tensors, and what is added to them.

use std::collections::{BTreeMap, BTreeSet};

use commons_nn::bank::{Entry, Share, SharingPlan};
use commons_nn::model::{DecoderConfig, MixtureOfRecursions, RecursionCache, RouterKind};
use serde::Serialize;

/// Groups of layers, and ranks, that are listed one by one; of more only the first and the last are
/// named.
const LISTED: usize = 4;

/// One way of sharing and the weights it makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// `grouped`, `tied`, `low-rank`, `combined`, `factored`, `hashed`, `sliced`, `noise`, `routed`,
    /// `experts`.
    pub kind: &'static str,
    /// Number of weights made this way.
    pub weights: usize,
    /// Which weights, without their layers.
    pub which: String,
    /// Groups of layers, ranks, atoms.
    pub how: String,
}

/// Whether `name` is an output head that is the embedding, which plain checkpoints store once too.
pub fn is_tied_head(name: &str, entry: &Entry) -> bool {
    name.ends_with("lm_head.weight")
        && matches!(entry.share, Share::Same { .. })
        && entry.plus.is_empty()
}

/// Number of elements of the weight an entry makes.
pub fn elements(entry: &Entry, stored: &BTreeMap<&str, u64>) -> u64 {
    let of = |name: &str| stored.get(name).copied().unwrap_or(0);
    match &entry.share {
        Share::Own => 0,
        Share::Same { owner } => of(owner),
        Share::Combine { atoms, .. } => atoms.first().map_or(0, |a| of(a)),
        Share::Hashed { shape, .. } | Share::Zero { shape } => {
            shape.iter().map(|&d| d as u64).product()
        }
        Share::Slice { ranges, .. } => {
            ranges.iter().map(|(s, e)| e.saturating_sub(*s) as u64).product()
        }
        Share::Noise { base, .. } => of(base),
    }
}

/// The plan in lines. `shapes` are those of the stored tensors.
pub fn describe(plan: &SharingPlan, shapes: &BTreeMap<&str, &[usize]>) -> Vec<Line> {
    let mut lines = ties(plan);
    lines.extend(low_rank(plan, shapes));
    lines.extend(other(plan));
    lines
}

/// Unequal groups of query heads, `[layers][kv heads]`, as a line.
pub fn query_groups(rows: &[Vec<usize>]) -> Option<Line> {
    let heads: usize = rows.first()?.iter().sum();
    let mut patterns: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (layer, sizes) in rows.iter().enumerate() {
        let shown: Vec<String> = sizes.iter().map(ToString::to_string).collect();
        patterns.entry(shown.join("+")).or_default().push(layer);
    }
    let mut patterns: Vec<(String, Vec<usize>)> = patterns.into_iter().collect();
    patterns.sort_by_key(|(_, layers)| (std::cmp::Reverse(layers.len()), layers[0]));
    let part = |(sizes, layers): &(String, Vec<usize>)| {
        let layers: Vec<String> = layers.iter().map(ToString::to_string).collect();
        format!("{sizes} in {}", layers.join(" "))
    };
    let shown: Vec<String> = patterns.iter().map(part).collect();
    Some(Line {
        kind: "grouped",
        weights: 2 * rows.len(),
        which: "k v".into(),
        how: format!("{heads} query heads, layers: {}", shown.join("; ")),
    })
}

/// What a router decides, as a line.
pub fn routed(mixture: MixtureOfRecursions) -> Option<Line> {
    let router = match mixture.router {
        RouterKind::Expert => "expert choice",
        RouterKind::Token => "token choice",
        RouterKind::Random => "chance",
    };
    let cache = match mixture.kv_cache {
        RecursionCache::Recursion => "of each recursion",
        RecursionCache::Shared => "of the first",
    };
    // With token choice a token takes any depth: there is no share to keep to.
    let shares = if mixture.router == RouterKind::Token {
        String::new()
    } else {
        let each = (0..mixture.recursions).map(|r| format!(" {:.2}", mixture.capacity(r)));
        format!(", share of tokens{}", each.collect::<String>())
    };
    Some(Line {
        kind: "routed",
        weights: mixture.recursions,
        which: "recursion_router".into(),
        how: format!("{}, {router}{shares}, keys and values {cache}", mixture.sharing.name()),
    })
}

/// Experts behind the routers of a decoder, as a line.
pub fn experts(config: &DecoderConfig) -> Option<Line> {
    let mixture = config.mixture_of_experts.as_ref()?;
    let (experts, active) = (mixture.num_experts, mixture.num_experts_per_tok);
    let each = match mixture.expert_groups {
        1 => format!("a token takes {active} of {experts}"),
        m => format!(
            "a token takes {} of each of {m} groups of {}, {active} of {experts} in all",
            active / m,
            experts / m
        ),
    };
    let width = mixture.expert_width(config.intermediate_size);
    let shared = match mixture.shared_expert_intermediate_size {
        0 => String::new(),
        shared => format!(", a shared one {shared} wide"),
    };
    Some(Line {
        kind: "experts",
        weights: experts * config.num_hidden_layers,
        which: "mlp".into(),
        how: format!("{each}, {width} wide{shared}"),
    })
}

/// Layer and the rest of a name such as `model.layers.3.mlp.up_proj.weight`.
fn split_layer(name: &str) -> Option<(usize, &str)> {
    let (_, rest) = name.split_once("layers.")?;
    let (layer, rest) = rest.split_once('.')?;
    Some((layer.parse().ok()?, rest))
}

/// Weights that are the same tensor, by the set of layers that use it.
fn ties(plan: &SharingPlan) -> Vec<Line> {
    let mut users: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, entry) in plan.iter() {
        if let Share::Same { owner } = &entry.share {
            let users = users.entry(owner).or_default();
            users.insert(name);
            // A plainly stored owner is a user as well, a part of the bank is not.
            if !owner.starts_with(commons_nn::bank::PART) {
                users.insert(owner);
            }
        }
    }
    // Group of layers -> weights tied over exactly that group.
    let mut groups: BTreeMap<Vec<usize>, BTreeSet<&str>> = BTreeMap::new();
    let mut plain = Vec::new();
    for (owner, users) in &users {
        let split: Option<Vec<(usize, &str)>> = users.iter().map(|u| split_layer(u)).collect();
        match split {
            Some(split) if split.iter().all(|(_, rest)| *rest == split[0].1) => {
                let mut layers: Vec<usize> = split.iter().map(|(l, _)| *l).collect();
                layers.sort_unstable();
                groups.entry(layers).or_default().insert(split[0].1);
            }
            _ => plain.push((owner, users)),
        }
    }
    // Weights tied over many groups -> those groups.
    let mut patterns: BTreeMap<BTreeSet<&str>, Vec<Vec<usize>>> = BTreeMap::new();
    for (layers, weights) in groups {
        patterns.entry(weights).or_default().push(layers);
    }
    let mut lines: Vec<Line> = patterns
        .into_iter()
        .map(|(weights, groups)| Line {
            kind: "tied",
            weights: weights.len() * groups.iter().map(Vec::len).sum::<usize>(),
            which: modules(&weights),
            how: layer_groups(&groups),
        })
        .collect();
    lines.extend(plain.into_iter().map(|(owner, users)| Line {
        kind: "tied",
        weights: users.len(),
        which: users.iter().copied().filter(|u| u != owner).collect::<Vec<_>>().join(", "),
        how: format!("the same tensor as {owner}"),
    }));
    lines
}

/// `15 groups of 2 layers: 0+15, 1+16, … 14+29`.
fn layer_groups(groups: &[Vec<usize>]) -> String {
    let mut sizes: Vec<usize> = groups.iter().map(Vec::len).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let size = match sizes.as_slice() {
        [one] => one.to_string(),
        [first, .., last] => format!("{first} to {last}"),
        [] => "0".into(),
    };
    let name = |g: &Vec<usize>| {
        let consecutive = g.len() > 2 && g.windows(2).all(|w| w[1] == w[0] + 1);
        match (g.first(), g.last()) {
            (Some(first), Some(last)) if consecutive => format!("{first}–{last}"),
            _ => g.iter().map(ToString::to_string).collect::<Vec<_>>().join("+"),
        }
    };
    let listed = if groups.len() <= LISTED {
        groups.iter().map(name).collect::<Vec<_>>().join(", ")
    } else {
        format!("{}, {}, … {}", name(&groups[0]), name(&groups[1]), name(&groups[groups.len() - 1]))
    };
    match groups.len() {
        1 => format!("layers {listed}"),
        n => format!("{n} groups of {size} layers: {listed}"),
    }
}

/// Names of weights of one layer, shortened: `q k v o gate up down, 2 norms, 4 experts, router`.
fn modules(weights: &BTreeSet<&str>) -> String {
    const ORDER: [&str; 7] =
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    let module = |w: &str| {
        let w = w.strip_suffix(".weight").unwrap_or(w);
        w.rsplit_once('.').map_or(w, |(_, last)| if last == "bias" { w } else { last }).to_owned()
    };
    let mut short = Vec::new();
    let (mut norms, mut biases, mut rest) = (0, 0, Vec::new());
    let mut experts = BTreeSet::new();
    for w in weights {
        if let Some((_, inside)) = w.split_once("mlp.experts.") {
            experts.extend(inside.split('.').next());
            continue;
        }
        let name = match *w {
            "mlp.gate.weight" => "router".to_owned(),
            w => module(w),
        };
        if w.contains("mlp.shared_experts.") {
            if !rest.contains(&"shared expert".to_owned()) {
                rest.push("shared expert".to_owned());
            }
        } else if ORDER.contains(&name.as_str()) {
            short.push(name);
        } else if name.contains("norm") {
            norms += 1;
        } else if name.ends_with("bias") {
            biases += 1;
        } else {
            rest.push(name);
        }
    }
    short.sort_by_key(|s| ORDER.iter().position(|o| o == s));
    let short: Vec<&str> = short.iter().map(|s| s.trim_end_matches("_proj")).collect();
    let mut parts = Vec::new();
    if !short.is_empty() {
        parts.push(short.join(" "));
    }
    if !experts.is_empty() {
        parts.push(format!("{} experts", experts.len()));
    }
    if norms > 0 {
        parts.push(format!("{norms} norm{}", if norms == 1 { "" } else { "s" }));
    }
    if biases > 0 {
        parts.push(format!("{biases} bias{}", if biases == 1 { "" } else { "es" }));
    }
    parts.extend(rest);
    parts.join(", ")
}

/// Low-rank terms, by rank.
fn low_rank(plan: &SharingPlan, shapes: &BTreeMap<&str, &[usize]>) -> Option<Line> {
    let mut ranks: BTreeMap<usize, usize> = BTreeMap::new();
    let (mut names, mut layers, mut parameters) = (BTreeSet::new(), BTreeSet::new(), 0usize);
    for (name, entry) in plan.iter() {
        for term in &entry.plus {
            let shape = |n: &str| shapes.get(n).copied().unwrap_or(&[]);
            let rank = shape(&term.a).first().copied().unwrap_or(0);
            *ranks.entry(rank).or_default() += 1;
            parameters +=
                shape(&term.a).iter().product::<usize>() + shape(&term.b).iter().product::<usize>();
            match split_layer(name) {
                Some((layer, rest)) => {
                    layers.insert(layer);
                    names.insert(rest);
                }
                None => {
                    names.insert(name);
                }
            }
        }
    }
    if ranks.is_empty() {
        return None;
    }
    let (least, most) = (ranks.keys().next().unwrap_or(&0), ranks.keys().last().unwrap_or(&0));
    let ranks_text = match ranks.len() {
        1 => format!("rank {least}"),
        n if n > LISTED => format!("ranks {least} to {most}"),
        _ => ranks.iter().map(|(r, n)| format!("{n} of rank {r}")).collect::<Vec<_>>().join(", "),
    };
    let where_ =
        if layers.is_empty() { String::new() } else { format!(" in {} layers", layers.len()) };
    Some(Line {
        kind: "low-rank",
        weights: ranks.values().sum(),
        which: modules(&names),
        how: format!(
            "{ranks_text}{where_}, {} parameters",
            commons_core::format::grouped(parameters as i64)
        ),
    })
}

/// Everything that is neither a tie nor a low-rank term.
fn other(plan: &SharingPlan) -> Vec<Line> {
    #[derive(Default)]
    struct Tally<'a> {
        names: BTreeSet<&'a str>,
        weights: usize,
        sources: BTreeSet<&'a str>,
        most: usize,
    }
    let mut tallies: BTreeMap<&'static str, Tally<'_>> = BTreeMap::new();
    for (name, entry) in plan.iter() {
        let (kind, sources): (_, Vec<&str>) = match &entry.share {
            Share::Own | Share::Same { .. } => continue,
            Share::Zero { .. } => ("factored", Vec::new()),
            Share::Combine { atoms, .. } => {
                ("combined", atoms.iter().map(String::as_str).collect())
            }
            Share::Hashed { pool, .. } => ("hashed", vec![pool]),
            Share::Slice { of, .. } => ("sliced", vec![of]),
            Share::Noise { base, .. } => ("noise", vec![base]),
        };
        let tally = tallies.entry(kind).or_default();
        tally.names.insert(split_layer(name).map_or(name, |(_, rest)| rest));
        tally.weights += 1;
        tally.most = tally.most.max(sources.len());
        tally.sources.extend(sources);
    }
    let line = |(kind, t): (&'static str, Tally<'_>)| {
        let n = t.sources.len();
        let how = match kind {
            "combined" => format!("{n} atoms, up to {} in a weight", t.most),
            "hashed" if n == 1 => "numbers looked up in one pool".into(),
            "hashed" => format!("numbers looked up in {n} pools"),
            "factored" => "nothing but their low-rank terms".into(),
            "sliced" => format!("blocks of {n} larger tensors"),
            _ => format!("seeded directions added to {n} tensors"),
        };
        Line { kind, weights: t.weights, which: modules(&t.names), how }
    };
    tallies.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use commons_nn::bank::LowRank;

    use super::*;

    #[test]
    fn a_looped_plan_takes_two_lines() {
        let mut plan = SharingPlan::default();
        for layer in 0..30 {
            for module in ["self_attn.q_proj", "mlp.up_proj", "input_layernorm"] {
                let owner = format!("bank.loop.{}.{module}.weight", layer % 15);
                let mut entry = Entry::same(owner);
                if module != "input_layernorm" {
                    entry.plus.push(LowRank {
                        a: format!("a{layer}{module}"),
                        b: "b".into(),
                        scale: 1.,
                    });
                }
                plan.set(format!("model.layers.{layer}.{module}.weight"), entry);
            }
        }
        plan.set("lm_head.weight", Entry::same("model.embed_tokens.weight"));
        let names: Vec<String> = (0..30)
            .flat_map(|l| ["self_attn.q_proj", "mlp.up_proj"].map(|m| format!("a{l}{m}")))
            .collect();
        let shape = [8usize, 64];
        let shapes = names.iter().map(|n| (n.as_str(), &shape[..])).collect();
        let lines = describe(&plan, &shapes);
        assert_eq!(lines.len(), 3, "{lines:#?}");
        assert_eq!(lines[0].how, "15 groups of 2 layers: 0+15, 1+16, … 14+29");
        assert_eq!((lines[0].which.as_str(), lines[0].weights), ("q up, 1 norm", 90));
        assert_eq!(lines[1].which, "lm_head.weight");
        assert_eq!((lines[2].kind, lines[2].weights), ("low-rank", 60));
        assert!(lines[2].how.starts_with("rank 8 in 30 layers"), "{}", lines[2].how);
    }

    #[test]
    fn unequal_groups_are_gathered_by_pattern() {
        let rows = [vec![1, 5], vec![2, 4], vec![1, 5]];
        let line = query_groups(&rows).unwrap();
        assert_eq!(line.how, "6 query heads, layers: 1+5 in 0 2; 2+4 in 1");
        assert_eq!(query_groups(&[]), None);
    }

    #[test]
    fn grouped_neighbours_read_as_ranges() {
        let mut plan = SharingPlan::default();
        for layer in [4, 5, 7, 8] {
            let parent = if layer < 6 { 3 } else { 6 };
            let owner = format!("model.layers.{parent}.mlp.up_proj.weight");
            plan.set(format!("model.layers.{layer}.mlp.up_proj.weight"), Entry::same(owner));
        }
        let lines = describe(&plan, &BTreeMap::new());
        assert_eq!(lines[0].how, "2 groups of 3 layers: 3–5, 6–8");
    }
}
