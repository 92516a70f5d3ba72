//! Measures the claims.

use commons_core::cells;
use commons_core::evidence::{Bound, Claim, Compare, Experiment, Figure, Paper, Recipe, Run};
use commons_core::report::Plot;
use commons_core::stats::{Summary, mean};
use commons_core::table::{Table, Unit};
use commons_nn::model::moe::MoeTimeSums;
use commons_nn::train::TrainConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::encoder::ExpertsConfig;
use super::study::{Repeat, Shape, Trained, Variant};
use crate::images::ImagesConfig;
use crate::material::MaterialConfig;
use crate::{Error, Result};

/// The evidence for WideNet.
#[derive(Debug, Clone, Copy, Default)]
pub struct Evidence;

/// Hidden bytes of a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TextStudy {
    /// The texts; the model is not used.
    pub material: MaterialConfig,
    /// Training.
    pub train: TrainConfig,
    /// What is compared.
    pub variants: Vec<Variant>,
    /// Batches scored.
    pub eval_batches: u64,
}

impl Default for TextStudy {
    fn default() -> Self {
        Self {
            material: MaterialConfig::default(),
            train: TrainConfig::default(),
            variants: COMPARED.to_vec(),
            eval_batches: 8,
        }
    }
}

/// What the claims compare.
const COMPARED: [Variant; 4] =
    [Variant::Plain, Variant::Albert, Variant::Widenet, Variant::SharedNorms];

/// What the evidence is measured on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Widths and depth.
    pub shape: Shape,
    /// The experts.
    pub experts: ExpertsConfig,
    /// Images.
    pub images: ImagesConfig,
    /// Training on images.
    pub train: TrainConfig,
    /// What is compared on images.
    pub variants: Vec<Variant>,
    /// Text.
    pub text: TextStudy,
    /// Repeats.
    pub seeds: Vec<u64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            shape: Shape::default(),
            experts: ExpertsConfig::default(),
            images: ImagesConfig::default(),
            train: TrainConfig { batch_size: 32, ..TrainConfig::default() },
            variants: COMPARED.to_vec(),
            text: TextStudy::default(),
            seeds: vec![0, 1, 2],
        }
    }
}

impl Experiment for Evidence {
    const PAPER: Paper = Paper {
        slug: "widenet",
        title: "Go Wider Instead of Deeper",
        year: 2022,
        shares: "one block with a mixture of experts among all layers, each with its own norms",
        link: "https://arxiv.org/abs/2107.11817",
    };

    const CLAIMS: &'static [Claim] = &[
        Claim::new(
            "over-albert",
            "on images, more accurate than the block shared without experts, norms too",
            Figure::text("part of the ablation (no figure checked)"),
            "accuracy_widenet",
            Bound::AtLeast(0.),
        )
        .against("accuracy_albert", Compare::Difference),
        Claim::new(
            "near-vit",
            "on images, within two points of a transformer that shares nothing",
            Figure::text("+0.8 points at 0.46 of the parameters, ImageNet-1K (abstract)"),
            "accuracy_widenet",
            Bound::AtLeast(-0.02),
        )
        .against("accuracy_plain", Compare::Difference),
        Claim::new(
            "parameters",
            "with at most 0.72 of its parameters",
            Figure::Number(0.72),
            "stored_widenet",
            Bound::AtMost(0.72),
        )
        .against("stored_plain", Compare::Ratio),
        Claim::new(
            "own-norms",
            "norms of its own in every layer are no worse than shared ones",
            Figure::text("shared norms are worse (ablation, no figure checked)"),
            "accuracy_widenet",
            Bound::AtLeast(0.),
        )
        .against("accuracy_shared_norms", Compare::Difference),
        Claim::new(
            "more-experts",
            "with them more tokens visit another expert at another depth",
            Figure::text("the paper's reason for them, not measured there"),
            "changing_widenet",
            Bound::AtLeast(0.),
        )
        .against("changing_shared_norms", Compare::Difference),
        Claim::new(
            "text",
            "hidden bytes are found better than by the block shared without experts",
            Figure::text("+1.8 % over ALBERT on four tasks (abstract)"),
            "text_loss_widenet",
            Bound::AtMost(0.),
        )
        .against("text_loss_albert", Compare::Difference),
    ];

    const RECIPES: &'static [Recipe] =
        &[Recipe::smoke(include_str!("smoke.toml")), Recipe::full(include_str!("full.toml"))];

    type Config = Settings;

    fn run(&self, settings: &Settings, run: &mut Run) -> commons_core::Result<()> {
        Ok(measure(settings, run)?)
    }
}

fn measure(settings: &Settings, run: &mut Run) -> Result<()> {
    if settings.seeds.is_empty() {
        return Err(Error::config("seeds", "give at least one"));
    }
    if settings.text.eval_batches == 0 {
        return Err(Error::config("text.eval_batches", "must be at least 1"));
    }
    for (field, variants) in
        [("variants", &settings.variants), ("text.variants", &settings.text.variants)]
    {
        if let Some(missing) = COMPARED.iter().find(|v| !variants.contains(v)) {
            let reason = format!("must contain {}, which claims compare", missing.key());
            return Err(Error::config(field, reason));
        }
    }
    let (mut images, mut texts) = (Vec::new(), Vec::new());
    for &seed in &settings.seeds {
        let seed = run.seed().fork("repeat", seed);
        let of = |train| Repeat { train, shape: &settings.shape, experts: &settings.experts, seed };
        let sets = settings.images.prepare(seed.fork("images", 0))?;
        for &variant in &settings.variants {
            let trained = of(&settings.train).images(variant, &sets, run)?;
            let key = variant.key();
            run.measure(&format!("accuracy_{key}"), trained.accuracy);
            run.measure(&format!("stored_{key}"), trained.stored() as f64);
            run.measure(&format!("step_seconds_{key}"), trained.step_seconds);
            if let Some(routes) = &trained.routes {
                run.measure(&format!("changing_{key}"), routes.changing());
                run.measure(&format!("dropped_{key}"), trained.dropped);
            }
            images.push(trained);
        }
        let text = &settings.text;
        let bytes = text.material.byte_texts(seed)?;
        for &variant in &text.variants {
            let (trained, loss) = of(&text.train).text(variant, &bytes, text.eval_batches, run)?;
            run.measure(&format!("text_loss_{}", variant.key()), loss);
            texts.push(trained);
        }
    }
    run.table(score_table("Images", &images));
    run.table(score_table("Hidden bytes", &texts));
    run.table(part_table(&images));
    run.table(time_table(&images));
    run.table(route_table(&images));
    run.plot(plot("Accuracy against parameters", "parameters", &images, |t| t.stored() as f64));
    run.plot(plot("Accuracy against work", "multiply-adds of a token", &images, |t| {
        t.multiply_adds as f64
    }));
    Ok(())
}

/// Repeats of one variant together, in the order first met.
fn gathered(all: &[Trained]) -> Vec<Vec<&Trained>> {
    let mut groups: Vec<Vec<&Trained>> = Vec::new();
    for one in all {
        match groups.iter_mut().find(|g| g[0].variant == one.variant) {
            Some(group) => group.push(one),
            None => groups.push(vec![one]),
        }
    }
    groups
}

fn score_table(title: &str, all: &[Trained]) -> Table {
    let mut table = Table::new(format!("{title}, mean over seeds"))
        .columns(["network"])
        .column("parameters", Unit::Si)
        .column("multiply-adds per token", Unit::Si)
        .column("accuracy, or mean probability", Unit::Percent)
        .column("95 % ±", Unit::Percent)
        .columns(["ms per step"])
        .column("dropped", Unit::Percent);
    for of in gathered(all) {
        let value = |f: fn(&Trained) -> f64| of.iter().map(|t| f(t)).collect::<Vec<_>>();
        let scores = value(|t| t.accuracy);
        let spread = Summary::of(&scores).ok().and_then(|s| s.interval).map(|i| i.half_width());
        let dropped = of[0].routes.is_some().then(|| mean(&value(|t| t.dropped)));
        table.push(cells![
            of[0].variant.key(),
            of[0].stored(),
            of[0].multiply_adds,
            mean(&scores),
            spread,
            1e3 * mean(&value(|t| t.step_seconds)),
            dropped,
        ]);
    }
    table
}

fn part_table(all: &[Trained]) -> Table {
    let mut table = Table::new("Parameters by part, and state of AdamW").columns(["network"]);
    if let Some(first) = all.first() {
        table = first.parts.iter().fold(table, |t, (name, _)| t.column(*name, Unit::Si));
    }
    table = table.column("optimiser state", Unit::Bytes);
    for of in gathered(all) {
        let mut row = cells![of[0].variant.key()];
        row.extend(of[0].parts.iter().flat_map(|(_, n)| cells![*n]));
        row.extend(cells![8 * of[0].stored()]);
        table.push(row);
    }
    table
}

fn time_table(all: &[Trained]) -> Table {
    let mut table = Table::new("Forward pass of a mixture while training, microseconds (means)")
        .columns(["network"])
        .columns(MoeTimeSums::PARTS);
    for of in gathered(all) {
        let Some(means) = of[0].times.means() else { continue };
        let mut row = cells![of[0].variant.key()];
        row.extend(means.iter().flat_map(|s| cells![1e6 * s]));
        table.push(row);
    }
    table
}

fn route_table(all: &[Trained]) -> Table {
    let mut table = Table::new("Shares of the experts by depth, test images, first seed")
        .columns(["network", "depth", "shares of the experts, %", "router entropy, nats"])
        .column("tokens that change experts over depth", Unit::Percent);
    for of in gathered(all) {
        let Some(routes) = &of[0].routes else { continue };
        for (l, (shares, entropy)) in routes.shares().iter().zip(routes.entropy()).enumerate() {
            let shares: Vec<String> = shares.iter().map(|s| format!("{:.0}", 100. * s)).collect();
            let changing = (l == 0).then(|| routes.changing());
            table.push(cells![of[0].variant.key(), l, shares.join(" "), entropy, changing]);
        }
    }
    table
}

fn plot(title: &str, x: &str, all: &[Trained], at: impl Fn(&Trained) -> f64) -> Plot {
    let plot = Plot::new(title).x(x).y("accuracy").log_x();
    gathered(all).into_iter().fold(plot, |plot, of| {
        plot.points(of[0].variant.key(), of.iter().map(|t| (at(t), t.accuracy)))
    })
}
