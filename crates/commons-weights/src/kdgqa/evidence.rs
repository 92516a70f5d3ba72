//! Measures the claims.

use commons_core::cells;
use commons_core::evidence::{Bound, Claim, Compare, Experiment, Figure, Paper, Recipe, Run};
use commons_core::report::Plot;
use commons_core::stats::{Summary, mean};
use commons_core::table::{Table, Unit};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Scheme;
use super::allocation::{dead, entropy};
use super::study::{Arm, DecoderStudy, Study};
use crate::images::ImagesConfig;
use crate::{Error, Result};

/// The evidence for [`super::Kdgqa`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Evidence;

/// What the evidence is measured on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Images of the vision transformer.
    pub images: ImagesConfig,
    /// Training and comparison.
    pub study: Study,
    /// Repeats, each with a network of its own.
    pub seeds: Vec<u64>,
    /// The decoder.
    pub decoder: DecoderStudy,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            images: ImagesConfig::default(),
            study: Study::default(),
            seeds: vec![0, 1, 2],
            decoder: DecoderStudy::default(),
        }
    }
}

const GAIN: Figure = Figure::text("up to +8 % (ViT-L, abstract)");

impl Experiment for Evidence {
    const PAPER: Paper = Paper {
        slug: "kdgqa",
        title: "Beyond Uniform Query Distribution: Key-Driven Grouped Query Attention",
        year: 2024,
        shares: "one key and value head among as many query heads as its keys' norm earns",
        link: "https://arxiv.org/abs/2408.08454",
    };

    const CLAIMS: &'static [Claim] = &[
        Claim::new(
            "dgqa-ema",
            "after up-training, DGQA with EMA is no less accurate than equal groups",
            GAIN,
            "accuracy_dgqa_ema",
            Bound::AtLeast(0.),
        )
        .against("accuracy_gqa", Compare::Difference),
        Claim::new(
            "kdgqa",
            "after up-training, KDGQA is no less accurate than equal groups",
            GAIN,
            "accuracy_kdgqa",
            Bound::AtLeast(0.),
        )
        .against("accuracy_gqa", Compare::Difference),
        Claim::new(
            "norms",
            "counts given by norms beat the same counts in random order",
            Figure::text("not in the paper"),
            "accuracy_kdgqa",
            Bound::AtLeast(0.),
        )
        .against("accuracy_random", Compare::Difference),
        Claim::new(
            "more-heads",
            "more key heads are better: mean over schemes, most against fewest",
            Figure::text("holds for all variants"),
            "accuracy_most_heads",
            Bound::AtLeast(0.),
        )
        .against("accuracy_fewest_heads", Compare::Difference),
        Claim::new(
            "up-training",
            "up-training takes equal groups to within two points of the multi-head network",
            Figure::text("direction only"),
            "accuracy_gqa",
            Bound::AtLeast(-0.02),
        )
        .against("accuracy_mha", Compare::Difference),
        Claim::new(
            "decoder",
            "a short healing more than halves the perplexity of a decoder with pooled heads",
            Figure::text("not in the paper"),
            "perplexity_pooled_healed",
            Bound::AtMost(0.5),
        )
        .against("perplexity_pooled", Compare::Ratio),
    ];

    const RECIPES: &'static [Recipe] =
        &[Recipe::smoke(include_str!("smoke.toml")), Recipe::full(include_str!("full.toml"))];

    type Config = Settings;

    fn run(&self, settings: &Settings, run: &mut Run) -> commons_core::Result<()> {
        Ok(measure(settings, run)?)
    }
}

fn measure(settings: &Settings, run: &mut Run) -> Result<()> {
    settings.study.check()?;
    if settings.seeds.is_empty() {
        return Err(Error::config("seeds", "give at least one"));
    }
    if settings.study.groups.len() < 2 {
        run.not_comparable("more-heads", "one number of key heads was tried")?;
    }
    let mut arms = Vec::new();
    for &seed in &settings.seeds {
        arms.extend(repeat(settings, seed, run)?);
    }
    run.table(arm_table(&arms));
    run.table(allocation_table(&arms));
    run.plot(arm_plot(&arms));
    let (original, decoded) = settings.decoder.measure(run)?;
    run.measure("perplexity_original", original);
    let mut table = Table::new("Decoder")
        .columns(["model", "kv heads"])
        .column("stored", Unit::Si)
        .columns(["perplexity before", "after healing"]);
    for (d, key) in decoded.iter().zip(["pooled", "key_driven"]) {
        run.measure(&format!("perplexity_{key}"), d.before);
        run.measure(&format!("perplexity_{key}_healed"), d.after);
        table.push(cells![d.label, d.kv_heads, d.stored, d.before, d.after]);
    }
    run.table(table);
    Ok(())
}

/// One network and everything made of it. A scheme is judged by its mean over the numbers of key
/// heads: these share a network and are no repeats of their own.
fn repeat(settings: &Settings, seed: u64, run: &mut Run) -> Result<Vec<Arm>> {
    let study = &settings.study;
    let seed = run.seed().fork("repeat", seed);
    let sets = settings.images.prepare(seed.fork("images", 0))?;
    let base = study.base(&sets, seed, run)?;
    let all = study.vit.num_attention_heads;
    let mha = study.arm(&base, None, all, &sets, seed, run)?;
    run.measure("accuracy_before_conversion", mha.before);
    run.measure("accuracy_mha", mha.after);
    let mut arms = Vec::new();
    for scheme in Scheme::ALL {
        let made = study
            .groups
            .iter()
            .map(|&groups| study.arm(&base, Some(scheme), groups, &sets, seed, run))
            .collect::<Result<Vec<_>>>()?;
        let over = |of: fn(&Arm) -> f64| mean(&made.iter().map(of).collect::<Vec<_>>());
        run.measure(&format!("accuracy_{}", scheme.key()), over(|a| a.after));
        run.measure(&format!("accuracy_{}_converted", scheme.key()), over(|a| a.before));
        arms.extend(made);
    }
    let over = |groups: Option<&usize>| {
        let chosen = arms.iter().filter(|a| Some(&a.groups) == groups).map(|a| a.after);
        mean(&chosen.collect::<Vec<_>>())
    };
    if study.groups.len() > 1 {
        run.measure("accuracy_most_heads", over(study.groups.last()));
        run.measure("accuracy_fewest_heads", over(study.groups.first()));
    }
    if !study.groups.contains(&1) {
        arms.push(study.arm(&base, Some(Scheme::Gqa), 1, &sets, seed, run)?);
    }
    arms.push(mha);
    Ok(arms)
}

fn label(arm: &Arm) -> &'static str {
    match arm.scheme {
        None => "multi-head",
        Some(_) if arm.groups == 1 => "multi-query",
        Some(scheme) => scheme.key(),
    }
}

/// Arms of one scheme and number of key heads together, in the order first met.
fn gathered(arms: &[Arm]) -> Vec<Vec<&Arm>> {
    let mut all: Vec<Vec<&Arm>> = Vec::new();
    for arm in arms {
        let like = |of: &&mut Vec<&Arm>| of[0].scheme == arm.scheme && of[0].groups == arm.groups;
        match all.iter_mut().find(like) {
            Some(of) => of.push(arm),
            None => all.push(vec![arm]),
        }
    }
    all
}

fn arm_table(arms: &[Arm]) -> Table {
    let mut table = Table::new("Accuracy, mean over seeds")
        .columns(["scheme", "kv heads"])
        .column("converted", Unit::Percent)
        .column("up-trained", Unit::Percent)
        .column("95 % ±", Unit::Percent)
        .column("kv bytes per token", Unit::Bytes)
        .columns(["ms per step", "of it grouping"]);
    for of in gathered(arms) {
        let value = |f: fn(&Arm) -> f64| of.iter().map(|a| f(a)).collect::<Vec<_>>();
        let after = value(|a| a.after);
        let spread = Summary::of(&after).ok().and_then(|s| s.interval).map(|i| i.half_width());
        table.push(cells![
            label(of[0]),
            of[0].groups,
            mean(&value(|a| a.before)),
            mean(&after),
            spread,
            of[0].kv_bytes,
            mean(&value(|a| a.step_ms)),
            mean(&value(|a| a.allocation_ms)),
        ]);
    }
    table
}

fn allocation_table(arms: &[Arm]) -> Table {
    let mut table = Table::new("Query heads per key head at the end, layers in order, first seed")
        .columns(["scheme", "kv heads", "allocation", "mean entropy, bits", "unread heads"]);
    for of in gathered(arms) {
        let rows = &of[0].allocation;
        let join =
            |row: &Vec<usize>| row.iter().map(ToString::to_string).collect::<Vec<_>>().join("+");
        let entropies: Vec<f64> = rows.iter().map(|r| entropy(r)).collect();
        let unread: usize = rows.iter().map(|r| dead(r)).sum();
        let shown: Vec<String> = rows.iter().map(join).collect();
        table.push(cells![label(of[0]), of[0].groups, shown.join(" "), mean(&entropies), unread]);
    }
    table
}

fn arm_plot(arms: &[Arm]) -> Plot {
    let mut plot = Plot::new("Accuracy after up-training").y("accuracy");
    for of in gathered(arms) {
        let after: Vec<f64> = of.iter().map(|a| a.after).collect();
        let interval = Summary::of(&after).ok().and_then(|s| s.interval).map(|i| (i.low, i.high));
        plot = plot.bar(format!("{} {}", label(of[0]), of[0].groups), mean(&after), interval);
    }
    plot
}
