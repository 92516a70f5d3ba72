//! Measures the claims.

use commons_core::evidence::{Bound, Claim, Compare, Experiment, Figure, Paper, Recipe, Run};
use commons_core::table::{Table, Unit};
use commons_core::{Seed, cells};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::study::{ScratchStudy, Stage, Trained, Variant};
use super::vision::VisionStudy;
use super::{Config, Converted, Projection, convert};
use crate::compress::Context;
use crate::heal::{HealRun, heal};
use crate::material::{Material, MaterialConfig, logged};
use crate::{Error, Result};

/// The evidence for [`super::Masa`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Evidence;

/// A pretrained decoder converted in stages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Pretrained {
    /// Options of the conversion, and of the healing of the last stages.
    pub masa: Config,
    /// Tokens of calibration.
    pub calibration_tokens: usize,
    /// Tokens of context while scoring.
    pub context: usize,
    /// Tokens scored.
    pub eval_tokens: usize,
    /// Also heal the method and whitened SVD.
    pub heal: bool,
    /// Shares of the budget for atoms that are tried beside the method's, before healing.
    pub atoms_shares: Vec<f64>,
}

impl Default for Pretrained {
    fn default() -> Self {
        Self {
            masa: Config::default(),
            calibration_tokens: 8192,
            context: 512,
            eval_tokens: 2048,
            heal: false,
            atoms_shares: Vec::new(),
        }
    }
}

/// What the evidence is measured on. A part that is left out is not measured.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The texts, and the model of `pretrained`. Decoders from scratch read the same texts.
    pub material: MaterialConfig,
    /// Decoders trained from scratch.
    pub scratch: Option<ScratchStudy>,
    /// Vision transformers trained from scratch.
    pub vision: Option<VisionStudy>,
    /// A pretrained decoder.
    pub pretrained: Option<Pretrained>,
    /// Repeats of what is trained from scratch.
    pub seeds: Vec<u64>,
}

impl Experiment for Evidence {
    const PAPER: Paper = Paper {
        slug: "masa",
        title: "Share Your Attention: Transformer Weight Sharing via Matrix-based Dictionary Learning",
        year: 2025,
        shares: "a dictionary of matrices among the attention projections of all layers",
        link: "https://arxiv.org/abs/2508.04581",
    };

    const CLAIMS: &'static [Claim] = &[
        Claim::new(
            "qkvo",
            "from scratch, a third of the attention parameters is as good as all (MASA-QKVO)",
            Figure::text("72.8 against 76.1 perplexity (table 1, 110 M)"),
            "perplexity_masa_qkvo",
            Bound::AtMost(1.),
        )
        .against("perplexity_vanilla", Compare::Ratio),
        Claim::new(
            "qkv",
            "from scratch, half of the attention parameters is better than all (MASA-QKV)",
            Figure::text("72.1 against 76.1 (table 1)"),
            "perplexity_masa_qkv",
            Bound::AtMost(1.),
        )
        .against("perplexity_vanilla", Compare::Ratio),
        Claim::new(
            "over-repeat",
            "at equal parameters a dictionary beats repeating the first layers all over",
            Figure::text("72.8 against 79.0 (table 1)"),
            "perplexity_masa_qkvo",
            Bound::AtMost(1.),
        )
        .against("perplexity_repeat", Compare::Ratio),
        Claim::new(
            "over-sequential",
            "at equal parameters a dictionary beats sharing among neighbours",
            Figure::text("72.8 against 80.4 (table 1)"),
            "perplexity_masa_qkvo",
            Bound::AtMost(1.),
        )
        .against("perplexity_sequential", Compare::Ratio),
        Claim::new(
            "over-low-rank",
            "at equal parameters a dictionary beats low-rank projections",
            Figure::text("72.8 against 83.3 (table 1)"),
            "perplexity_masa_qkvo",
            Bound::AtMost(1.),
        )
        .against("perplexity_low_rank", Compare::Ratio),
        Claim::new(
            "step-time",
            "a training step takes at most a tenth longer than with whole projections",
            Figure::text("throughput −8.3 % (section 5)"),
            "step_seconds_masa_qkvo",
            Bound::AtMost(1.1),
        )
        .against("step_seconds_vanilla", Compare::Ratio),
        Claim::new(
            "vision",
            "a vision transformer with a third of the attention loses at most half a point",
            Figure::text("+2.35 points on CIFAR-100 (d = 64, 12 layers)"),
            "accuracy_masa",
            Bound::AtLeast(-0.005),
        )
        .against("accuracy_vanilla", Compare::Difference),
        Claim::new(
            "pretrained",
            "converted at 20 % without training, perplexity is below that of whitened SVD per layer",
            Figure::text("12.6 against 15.1 (Llama-3.2-1B)"),
            "perplexity_refined",
            Bound::AtMost(1.),
        )
        .against("perplexity_whitened_svd", Compare::Ratio),
        Claim::new(
            "refinement",
            "the whitened low-rank terms lower the perplexity of the atoms alone",
            Figure::text("in every ablation"),
            "perplexity_refined",
            Bound::AtMost(1.),
        )
        .against("perplexity_grouped", Compare::Ratio),
    ];

    const RECIPES: &'static [Recipe] =
        &[Recipe::smoke(include_str!("smoke.toml")), Recipe::full(include_str!("full.toml"))];

    type Config = Settings;

    fn run(&self, settings: &Settings, run: &mut Run) -> commons_core::Result<()> {
        Ok(measure(settings, run)?)
    }
}

const OF_SCRATCH: [&str; 6] =
    ["qkvo", "qkv", "over-repeat", "over-sequential", "over-low-rank", "step-time"];
const OF_PRETRAINED: [&str; 2] = ["pretrained", "refinement"];

fn measure(settings: &Settings, run: &mut Run) -> Result<()> {
    if settings.seeds.is_empty() {
        return Err(Error::config("seeds", "give at least one"));
    }
    match &settings.scratch {
        Some(study) => scratch(settings, study, run)?,
        None => skip(run, &OF_SCRATCH)?,
    }
    match &settings.vision {
        Some(study) => vision(settings, study, run)?,
        None => skip(run, &["vision"])?,
    }
    match &settings.pretrained {
        Some(part) => pretrained(settings, part, run)?,
        None => skip(run, &OF_PRETRAINED)?,
    }
    Ok(())
}

fn skip(run: &mut Run, claims: &[&str]) -> Result<()> {
    for claim in claims {
        run.not_comparable(claim, "this recipe leaves the part out that measures it")?;
    }
    Ok(())
}

fn scratch(settings: &Settings, study: &ScratchStudy, run: &mut Run) -> Result<()> {
    let mut results: Vec<(u64, Trained)> = Vec::new();
    let composed = Variant::ALL.iter().map(|&v| composition(study, v, run));
    let composed = composed.collect::<Result<Vec<_>>>()?;
    for &seed in &settings.seeds {
        let (train, test) = settings.material.byte_texts(Seed::new(seed))?;
        for variant in Variant::ALL {
            let stop = run.stop().flag();
            let trained = logged(run, &format!("{}-{seed}", variant.key()), |observe| {
                study.train(variant, &train, &test, seed, stop, observe)
            })?;
            run.measure(&format!("perplexity_{}", variant.key()), trained.perplexity);
            run.measure(&format!("stored_{}", variant.key()), trained.stored as f64);
            run.measure(&format!("step_seconds_{}", variant.key()), trained.time.total());
            results.push((seed, trained));
        }
    }
    run.table(scratch_table(&results));
    run.table(time_table(&results, &composed));
    Ok(())
}

fn scratch_table(results: &[(u64, Trained)]) -> Table {
    let mut table = Table::new("From scratch")
        .column("attention", Unit::Plain)
        .column("seed", Unit::Plain)
        .column("stored", Unit::Si)
        .column("of it attention", Unit::Si)
        .column("perplexity per byte", Unit::Plain);
    for variant in Variant::ALL {
        for (seed, t) in results.iter().filter(|(_, t)| t.variant == variant) {
            table.push(cells![variant.label(), *seed, t.stored, t.attention, t.perplexity]);
        }
    }
    table
}

/// Times the weights are made; the fastest counts.
const ROUNDS: usize = 5;

/// Seconds of making the attention projections of all layers once from what is stored, the
/// coefficient network included; `None` where nothing is made.
fn composition(study: &ScratchStudy, variant: Variant, run: &Run) -> Result<Option<f64>> {
    let composed = [Variant::MasaQkvo, Variant::MasaQkv, Variant::MasaRaw];
    if !composed.contains(&variant) {
        return Ok(None);
    }
    let fresh = study.fresh(variant, Seed::new(0))?;
    let names: Vec<String> = Projection::ALL
        .iter()
        .flat_map(|projection| projection.of_decoder(&fresh.model.config))
        .collect();
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let began = run.elapsed();
        let bank = match &fresh.network {
            Some(network) => network.applied(&fresh.model.bank)?,
            None => fresh.model.bank.clone(),
        };
        for name in &names {
            bank.weight(name)?;
        }
        best = best.min((run.elapsed() - began).as_secs_f64());
    }
    Ok(Some(best))
}

/// Where the time of a step goes; the composition of weights from atoms is in the forward pass,
/// its gradients in the backward pass, and the optimiser has fewer parameters to step.
fn time_table(results: &[(u64, Trained)], composed: &[Option<f64>]) -> Table {
    let mut table = Table::new("Time of a training step, milliseconds (medians)")
        .column("attention", Unit::Plain)
        .column("seed", Unit::Plain)
        .column("forward", Unit::Plain)
        .column("of it weights from atoms", Unit::Plain)
        .column("backward", Unit::Plain)
        .column("optimiser", Unit::Plain)
        .column("all", Unit::Plain)
        .column("of vanilla", Unit::Percent);
    for (seed, t) in results {
        let whole = results.iter().find(|(s, o)| s == seed && o.variant == Variant::Vanilla);
        let share = whole.map(|(_, o)| t.time.total() / o.time.total().max(f64::MIN_POSITIVE));
        let ms = |s: f64| 1e3 * s;
        let (f, b, u) = (ms(t.time.forward), ms(t.time.backward), ms(t.time.update));
        let place = Variant::ALL.iter().position(|v| *v == t.variant);
        let made = place.and_then(|i| composed.get(i).copied().flatten()).map(ms);
        table.push(cells![t.variant.label(), *seed, f, made, b, u, ms(t.time.total()), share]);
    }
    table
}

fn vision(settings: &Settings, study: &VisionStudy, run: &mut Run) -> Result<()> {
    let pictures = study.pictures()?;
    let mut table = Table::new("Vision transformers from scratch")
        .column("attention", Unit::Plain)
        .column("seed", Unit::Plain)
        .column("stored", Unit::Si)
        .column("accuracy", Unit::Percent);
    for &seed in &settings.seeds {
        for (masa, key) in [(false, "vanilla"), (true, "masa")] {
            let stop = run.stop().flag();
            let seen = logged(run, &format!("vit-{key}-{seed}"), |observe| {
                study.train(masa, &pictures, seed, stop, observe)
            })?;
            run.measure(&format!("accuracy_{key}"), seen.accuracy);
            table.push(cells![key, seed, seen.stored, seen.accuracy]);
        }
    }
    run.table(table);
    Ok(())
}

fn pretrained(settings: &Settings, part: &Pretrained, run: &mut Run) -> Result<()> {
    let seed = settings.seeds[0];
    let mut config = settings.material.clone();
    config.scratch.train.seed = seed;
    let material = config.prepare(Seed::new(seed), run)?;
    let score = |model: &commons_nn::model::Decoder| -> Result<f64> {
        Ok(material.score(model, part.context, part.eval_tokens)?.perplexity)
    };
    let original = score(&material.model)?;
    run.measure("perplexity_pretrained", original);
    let mut table = Table::new(format!("Pretrained, original {original:.2}"))
        .column("conversion", Unit::Plain)
        .column("attention stored", Unit::Si)
        .column("of the original", Unit::Percent)
        .column("perplexity", Unit::Plain)
        .column("healed", Unit::Plain);
    for stage in Stage::ALL {
        let config = stage.config(&part.masa);
        let converted = converted(stage.label(), &config, part, &material, seed, run)?;
        let perplexity = score(&converted.model)?;
        run.measure(&format!("perplexity_{}", stage.key()), perplexity);
        let healed = match stage {
            Stage::Refined | Stage::WhitenedSvd if part.heal => {
                healed(&converted.model, &material, &part.masa, run)?;
                let after = score(&converted.model)?;
                run.measure(&format!("perplexity_{}_healed", stage.key()), after);
                Some(after)
            }
            _ => None,
        };
        let b = converted.budget;
        let share = b.stored as f64 / b.original.max(1) as f64;
        table.push(cells![stage.label(), b.stored, share, perplexity, healed]);
        if stage == Stage::Refined {
            super::tables::tables(&converted).into_iter().for_each(|t| run.table(t));
        }
    }
    run.table(table);
    if part.atoms_shares.is_empty() {
        return Ok(());
    }
    let mut table = Table::new("By the share of the budget that atoms get, before healing")
        .columns(["share"])
        .column("attention stored", Unit::Si)
        .columns(["perplexity"]);
    for &atoms_share in &part.atoms_shares {
        let config = Config { atoms_share, ..part.masa.clone() };
        let label = format!("atoms {atoms_share}");
        let converted = converted(&label, &config, part, &material, seed, run)?;
        table.push(cells![atoms_share, converted.budget.stored, score(&converted.model)?]);
    }
    run.table(table);
    Ok(())
}

/// Converts the model of `material` by `config`.
fn converted(
    label: &str,
    config: &Config,
    part: &Pretrained,
    material: &Material,
    seed: u64,
    run: &Run,
) -> Result<Converted> {
    run.check_stop()?;
    let mut shown = run.progress().task(label, None);
    let mut progress = |_: &str, done: usize, _: usize| shown.update(done as u64, "");
    let tokens = part.calibration_tokens.min(material.train.len());
    let mut context = Context {
        calibration: &material.train[..tokens],
        seed,
        stop: run.stop().flag(),
        progress: &mut progress,
    };
    convert(config, &material.model, &mut context)
}

/// Heals `model` with the original as teacher.
fn healed(
    model: &commons_nn::model::Decoder,
    material: &Material,
    config: &Config,
    run: &Run,
) -> Result<()> {
    let mut task = run.progress().task("healing", Some(config.heal.train.steps as u64));
    let obey = HealRun { stop: run.stop().flag(), ..HealRun::default() };
    let tokens = material.train.clone();
    let done = heal(model, Some(&material.model), tokens, &config.heal, &obey, |report| {
        task.update(report.step as u64, "");
    })?;
    match done.outcome {
        commons_nn::train::Outcome::Finished => Ok(()),
        commons_nn::train::Outcome::Interrupted => Err(Error::Interrupted),
    }
}
