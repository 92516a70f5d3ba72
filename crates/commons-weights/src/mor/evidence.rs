//! Measures the claims.

use std::collections::BTreeMap;

use commons_core::evidence::{Bound, Claim, Compare, Experiment, Figure, Paper, Recipe, Run};
use commons_core::report::Plot;
use commons_core::table::{Table, Unit};
use commons_core::{Seed, cells};
use commons_nn::model::{RoutedTimes, Routing};
use commons_nn::train::StepReport;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::conversion::Conversion;
use super::study::{Contender, Study, Trained, cached, window_loss};
use crate::material::{MaterialConfig, logged};
use crate::{Error, Result};

/// The evidence for mixtures of recursions.
#[derive(Debug, Clone, Copy, Default)]
pub struct Evidence;

/// What the evidence is measured on.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The texts.
    pub material: MaterialConfig,
    /// What is trained on them.
    pub study: Study,
    /// Repeats.
    pub seeds: Vec<u64>,
    /// A pretrained decoder converted, once.
    pub conversion: Conversion,
}

/// Windows passed with a cache; the fastest counts.
const PASSES: usize = 5;

/// Bytes whose depths are shown.
const SHOWN: usize = 48;

const EQUAL: Figure = Figure::text("2.7511 against 2.7824 (360M, N = 2, 16.5e18 operations)");
const DIRECTION: Figure = Figure::text("direction");

const fn lower(
    id: &'static str,
    sentence: &'static str,
    paper: Figure,
    metric: &'static str,
    baseline: &'static str,
) -> Claim {
    Claim::new(id, sentence, paper, metric, Bound::AtMost(0.))
        .against(baseline, Compare::Difference)
}

impl Experiment for Evidence {
    const PAPER: Paper = Paper {
        slug: "mor",
        title: "Mixture-of-Recursions: Learning Dynamic Recursive Depths for Adaptive Token-Level \
                Computation",
        year: 2025,
        shares: "a block of layers among recursions whose number is each token's own",
        link: "https://arxiv.org/abs/2507.10524",
    };

    const CLAIMS: &'static [Claim] = &[
        lower(
            "equal-flops-vanilla",
            "at equal training arithmetic, expert choice reaches a lower loss than the plain model",
            EQUAL,
            "loss_expert",
            "loss_vanilla",
        ),
        lower(
            "equal-flops-recursive",
            "at equal training arithmetic, expert choice reaches a lower loss than plain recursion",
            DIRECTION,
            "loss_expert",
            "loss_recursive",
        ),
        lower(
            "equal-flops-small",
            "at equal training arithmetic, expert choice reaches a lower loss than a plain model of \
             as many parameters",
            DIRECTION,
            "loss_expert",
            "loss_small",
        ),
        lower(
            "beats-chance",
            "expert choice reaches a lower loss than depths by chance",
            DIRECTION,
            "loss_expert",
            "loss_random",
        ),
        lower(
            "expert-over-token",
            "expert choice reaches a lower loss than token choice",
            Figure::text("42.6 % against 40.0 % few-shot (N = 3)"),
            "loss_expert",
            "loss_token",
        ),
        Claim::new(
            "threshold-agrees",
            "a threshold on a token's own score says what the highest scores of the sequence say",
            Figure::text("not given"),
            "agreement_expert",
            Bound::AtLeast(0.9),
        ),
        Claim::new(
            "threshold-close",
            "threshold routing costs less than 1 % of the loss of full-sequence expert choice",
            DIRECTION,
            "window_loss_threshold",
            Bound::AtMost(1.01),
        )
        .against("window_loss_top_k", Compare::Ratio),
        lower(
            "auxiliary-loss",
            "with threshold routing, the auxiliary loss lowers the loss",
            DIRECTION,
            "loss_expert",
            "loss_expert_untaught",
        ),
        Claim::new(
            "cache-recursion",
            "between first and last layer, keys and values of each recursion take (N + 1)/(2N) of the \
             plain model's",
            Figure::Number(2. / 3.),
            "cache_expert",
            Bound::Within { low: 0.6, high: 0.73 },
        )
        .against("cache_vanilla", Compare::Ratio),
        Claim::new(
            "cache-shared",
            "between first and last layer, shared keys and values take 1/N of the plain model's",
            Figure::Number(1. / 3.),
            "cache_expert_shared",
            Bound::Within { low: 0.33, high: 0.34 },
        )
        .against("cache_vanilla", Compare::Ratio),
        Claim::new(
            "training-time",
            "a training step takes less time per token than the plain model's",
            Figure::text("0.81 × (N = 2)"),
            "token_seconds_expert",
            Bound::AtMost(1.),
        )
        .against("token_seconds_vanilla", Compare::Ratio),
        lower(
            "equal-quality",
            "with four fifths of the plain model's training arithmetic, expert choice reaches its loss",
            Figure::text("25 % fewer operations (N = 2, 20e9 tokens)"),
            "loss_expert_fewer",
            "loss_vanilla",
        ),
        Claim::new(
            "equal-quality-time",
            "that training takes less wall time than the plain model's",
            Figure::text("19 % less time (N = 2, 20e9 tokens)"),
            "train_seconds_expert_fewer",
            Bound::AtMost(1.),
        )
        .against("train_seconds_vanilla", Compare::Ratio),
        Claim::new(
            "prefill-time",
            "a trained model reads a text in less time per token than the plain model",
            DIRECTION,
            "prefill_seconds_expert",
            Bound::AtMost(1.),
        )
        .against("prefill_seconds_vanilla", Compare::Ratio),
        Claim::new(
            "conversion",
            "every part of a short training lowers the loss of a converted pretrained decoder: the \
             largest ratio of a loss to the one before",
            DIRECTION,
            "converted_worst_part",
            Bound::AtMost(1.),
        ),
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
    let missing = Contender::ALL.iter().find(|c| !settings.study.contenders.contains(c));
    if let Some(missing) = missing {
        let name = missing.name();
        return Err(Error::config("study.contenders", format!("a claim needs `{name}`")));
    }
    settings.study.check()?;
    let mut table = Table::new("At equal training arithmetic, threshold routing")
        .column("model", Unit::Plain)
        .column("seed", Unit::Plain)
        .column("parameters", Unit::Si)
        .column("operations", Unit::Si)
        .column("steps", Unit::Plain)
        .column("nats per byte", Unit::Plain)
        .column("cache bytes per token", Unit::Plain)
        .column("of it between first and last layer", Unit::Plain)
        .column("training seconds", Unit::Plain)
        .column("training tokens per second", Unit::Plain)
        .column("prefill tokens per second", Unit::Plain);
    let mut depths = Table::new("Share of the test bytes in each recursion")
        .column("model", Unit::Plain)
        .column("seed", Unit::Plain)
        .column("shares", Unit::Plain)
        .column("threshold agrees with top-k in training", Unit::Percent);
    let mut parts = Table::new("Forward pass of a training step, milliseconds (means, first seed)")
        .columns(["model"])
        .columns(RoutedTimes::PARTS);
    let mut curves =
        Plot::new("Training loss by operations, first seed").x("operations").y("nats per byte");
    for &seed in &settings.seeds {
        let texts = settings.material.byte_texts(Seed::new(seed))?;
        for &contender in &settings.study.contenders {
            let (text, test) = (&texts.0, &texts.1);
            let stop = run.stop().flag();
            let mut losses = Vec::new();
            let trained = logged(run, &format!("{}-{seed}", contender.name()), |observe| {
                let mut both = |report: &StepReport| {
                    losses.push(report.loss);
                    observe(report);
                };
                settings.study.train(contender, (text, test), seed, stop, &mut both)
            })?;
            if seed == settings.seeds[0] {
                curves = curves.line(contender.name(), curve(&losses, trained.flops));
            }
            if let Some(seconds) = trained.parts.filter(|_| seed == settings.seeds[0]) {
                let mut row = cells![contender.name()];
                row.extend(seconds.iter().flat_map(|s| cells![1e3 * s]));
                parts.push(row);
            }
            score(settings, contender, &trained, test, seed, run, [&mut table, &mut depths])?;
        }
    }
    run.table(table);
    run.table(depths);
    run.table(parts);
    run.plot(curves);
    converted(&settings.conversion, run)
}

/// Steps whose losses are averaged into a point of a curve.
const AVERAGED: usize = 5;

/// Mean losses of successive steps over the operations spent when the last of them was done.
fn curve(losses: &[f64], flops: f64) -> Vec<(f64, f64)> {
    let per_step = flops / losses.len().max(1) as f64;
    let part = |(i, part): (usize, &[f64])| {
        ((i * AVERAGED + part.len()) as f64 * per_step, commons_core::stats::mean(part))
    };
    losses.chunks(AVERAGED).enumerate().map(part).collect()
}

/// Shares of the router's scores in tenths, for every recursion.
fn histogram(scores: &[Vec<f32>]) -> Plot {
    let mut plot = Plot::new("Router scores of a test window, expert choice").x("score").y("share");
    for (r, scores) in scores.iter().enumerate().filter(|(_, s)| !s.is_empty()) {
        let mut counts = [0usize; 10];
        scores.iter().for_each(|s| counts[((s * 10.) as usize).min(9)] += 1);
        let share =
            |(i, n): (usize, usize)| ((i as f64 + 0.5) / 10., n as f64 / scores.len() as f64);
        plot = plot.line(format!("recursion {}", r + 1), counts.into_iter().enumerate().map(share));
    }
    plot
}

fn converted(conversion: &Conversion, run: &mut Run) -> Result<()> {
    let done = conversion.measure(run)?;
    run.measure("converted_worst_part", done.worst_part());
    let mut table = Table::new("A pretrained decoder converted and trained on, threshold routing")
        .columns(["model", "steps"])
        .column("parameters", Unit::Si)
        .columns(["nats per token", "perplexity"]);
    let [before, after] = done.stored;
    table.push(cells!["original", "", before, done.original.loss, done.original.perplexity]);
    for (step, score) in &done.on_the_way {
        table.push(cells!["converted", *step, after, score.loss, score.perplexity]);
    }
    run.table(table);
    Ok(())
}

fn score(
    settings: &Settings,
    contender: Contender,
    trained: &Trained,
    test: &[u32],
    seed: u64,
    run: &mut Run,
    [table, depths]: [&mut Table; 2],
) -> Result<()> {
    let study = &settings.study;
    let (name, model) = (contender.name(), &trained.model);
    let ends = 2 * study.mixture.sharing.ends();
    let window = &test[..study.context.min(test.len())];
    let passed = cached(model, window, ends)?;
    let mut seconds = f64::INFINITY;
    for _ in 0..PASSES {
        let before = run.elapsed();
        cached(model, window, ends)?;
        seconds = seconds.min((run.elapsed() - before).as_secs_f64());
    }
    run.measure(&format!("loss_{name}"), trained.loss);
    run.measure(&format!("token_seconds_{name}"), trained.token_seconds);
    run.measure(&format!("train_seconds_{name}"), trained.train_seconds);
    run.measure(&format!("cache_{name}"), passed.bytes as f64);
    run.measure(&format!("whole_cache_{name}"), passed.whole as f64);
    run.measure(&format!("prefill_seconds_{name}"), seconds / window.len() as f64);
    table.push(cells![
        name,
        seed,
        model.bank.stored(),
        trained.flops,
        trained.steps,
        trained.loss,
        passed.whole as f64 / window.len() as f64,
        passed.bytes as f64 / window.len() as f64,
        trained.train_seconds,
        1. / trained.token_seconds,
        window.len() as f64 / seconds
    ]);
    let Some(mixture) = &model.config.mixture_of_recursions else { return Ok(()) };
    let n = passed.depths.len().max(1) as f64;
    let share = |r: usize| passed.depths.iter().filter(|&&d| d > r).count() as f64 / n;
    let shares: Vec<f64> = (0..mixture.recursions).map(share).collect();
    let shown: Vec<String> = shares.iter().map(|s| format!("{s:.3}")).collect();
    depths.push(cells![name, seed, shown.join(" "), trained.agreement]);
    if let Some(agreement) = trained.agreement {
        run.measure(&format!("agreement_{name}"), agreement);
    }
    if contender == Contender::Expert {
        let windows = (study.context, study.eval_tokens);
        let by = |routing| window_loss(model, test, windows, routing);
        run.measure("window_loss_threshold", by(Routing::Threshold)?);
        run.measure("window_loss_top_k", by(Routing::Training)?);
        if seed == settings.seeds[0] {
            run.note(spelled(window, &passed.depths));
            run.plot(histogram(&passed.scores));
        }
    }
    Ok(())
}

/// The first bytes of `window` with the depth of each below it, and the bytes that go deepest.
fn spelled(window: &[u32], depths: &[usize]) -> String {
    let show = |&b: &u32| match u8::try_from(b).map(char::from) {
        Ok(c) if c.is_ascii_graphic() => c,
        _ => '·',
    };
    let text: String = window.iter().take(SHOWN).map(show).collect();
    let digits: String = depths.iter().take(SHOWN).map(ToString::to_string).collect();
    let mut by_byte: BTreeMap<char, Vec<f64>> = BTreeMap::new();
    for (b, &d) in window.iter().zip(depths) {
        by_byte.entry(show(b)).or_default().push(d as f64);
    }
    let mut means: Vec<(char, f64)> = by_byte
        .into_iter()
        .filter(|(_, all)| all.len() > 2)
        .map(|(c, all)| (c, commons_core::stats::mean(&all)))
        .collect();
    means.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let ends = |all: &mut dyn Iterator<Item = &(char, f64)>| -> String {
        all.take(6).map(|(c, d)| format!("{c} {d:.1}")).collect::<Vec<_>>().join(", ")
    };
    format!(
        "Depth of each byte, expert choice: `{text}` `{digits}`. Deepest on the mean: {}. \
         Shallowest: {}.",
        ends(&mut means.iter()),
        ends(&mut means.iter().rev()),
    )
}
