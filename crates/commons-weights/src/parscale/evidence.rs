//! Measures the claims.

use commons_core::evidence::{Bound, Claim, Compare, Experiment, Figure, Paper, Recipe, Run};
use commons_core::table::{Table, Unit};
use commons_core::{Seed, cells, stats};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::law::{self, Fit, Point, Released};
use super::study::{FrozenStudy, ScratchStudy, Trained, mixture, train};
use crate::material::{MaterialConfig, logged};
use crate::{Error, Result};

/// The evidence for [`super::ParScale`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Evidence;

/// What the evidence is measured on. A part that is left out is not measured.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The texts, and the model of `frozen`. Decoders from scratch read the same texts.
    pub material: MaterialConfig,
    /// Decoders trained from scratch.
    pub scratch: Option<ScratchStudy>,
    /// Streams added to a frozen model.
    pub frozen: Option<FrozenStudy>,
    /// Repeats of what is trained from scratch; the first is that of the frozen model.
    pub seeds: Vec<u64>,
}

const SCRATCH: Figure = Figure::text("1.1722, 1.1507, 1.1354 at 0.5 B (code, P = 1, 2, 4)");
const FROZEN: Figure = Figure::text("direction (section 4)");

impl Experiment for Evidence {
    const PAPER: Paper = Paper {
        slug: "parscale",
        title: "Parallel Scaling Law for Language Models",
        year: 2025,
        shares: "all layers among parallel streams of one input",
        link: "https://arxiv.org/abs/2505.10475",
    };

    const CLAIMS: &'static [Claim] = &[
        Claim::new(
            "law-code",
            "the released losses on code give k = 0.3935",
            Figure::Number(0.3935),
            "k_stack",
            Bound::Within { low: 0.3885, high: 0.3985 },
        ),
        Claim::new(
            "law-text",
            "the released losses on text give k = 0.3344",
            Figure::Number(0.3344),
            "k_pile",
            Bound::Within { low: 0.3294, high: 0.3394 },
        ),
        Claim::new(
            "two-streams",
            "from scratch, two streams reach a lower loss than one in the same steps",
            SCRATCH,
            "loss_2",
            Bound::AtMost(0.),
        )
        .against("loss_1", Compare::Difference),
        Claim::new(
            "four-streams",
            "from scratch, four streams reach a lower loss than two in the same steps",
            SCRATCH,
            "loss_4",
            Bound::AtMost(0.),
        )
        .against("loss_2", Compare::Difference),
        Claim::new(
            "frozen-two",
            "on a frozen model, two streams beat a prefix alone",
            FROZEN,
            "frozen_loss_2",
            Bound::AtMost(0.),
        )
        .against("frozen_loss_1", Compare::Difference),
        Claim::new(
            "frozen-four",
            "on a frozen model, four streams beat two",
            FROZEN,
            "frozen_loss_4",
            Bound::AtMost(0.),
        )
        .against("frozen_loss_2", Compare::Difference),
        Claim::new(
            "dynamic",
            "from scratch, shares of each token's own beat equal shares of four streams",
            Figure::text("not given"),
            "loss_4",
            Bound::AtMost(0.),
        )
        .against("loss_equal_shares", Compare::Difference),
        Claim::new(
            "decode-two",
            "at batch 1, a token takes two streams at most 1.5 times as long as one",
            Figure::text("small at small batches (section 3.3)"),
            "decode_seconds_2",
            Bound::AtMost(1.5),
        )
        .against("decode_seconds_1", Compare::Ratio),
        Claim::new(
            "decode-over-deeper",
            "at batch 1, two streams take less time than the layers they are worth by the law",
            Figure::text("up to 6 times less additional latency (abstract)"),
            "decode_seconds_2",
            Bound::AtMost(1.),
        )
        .against("decode_seconds_deeper_2", Compare::Ratio),
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
    check(settings)?;
    released(run)?;
    match &settings.scratch {
        Some(study) => scratch(settings, study, run)?,
        None => skip(run, &["two-streams", "four-streams", "dynamic"])?,
    }
    match &settings.frozen {
        Some(study) => frozen(settings, study, run)?,
        None => skip(run, &["frozen-two", "frozen-four", "decode-two", "decode-over-deeper"])?,
    }
    Ok(())
}

/// Numbers of streams that claims compare.
const CLAIMED: [usize; 3] = [1, 2, 4];

/// Checks that what claims compare is trained at all.
fn check(settings: &Settings) -> Result<()> {
    let scratch = settings.scratch.as_ref();
    let frozen = settings.frozen.as_ref();
    let given = scratch.map(|s| ("scratch.streams", &s.streams)).into_iter();
    for (field, streams) in given.chain(frozen.map(|s| ("frozen.streams", &s.streams))) {
        if let Some(missing) = CLAIMED.iter().find(|p| !streams.contains(p)) {
            let reason = format!("must contain {missing}, which claims compare");
            return Err(Error::config(field, reason));
        }
    }
    match scratch {
        Some(s) if !s.widths.contains(&s.scratch.hidden_size) => {
            let reason = format!("must contain scratch.hidden_size, {}", s.scratch.hidden_size);
            Err(Error::config("scratch.widths", reason))
        }
        _ => Ok(()),
    }
}

fn skip(run: &mut Run, claims: &[&str]) -> Result<()> {
    for claim in claims {
        run.not_comparable(claim, "this recipe leaves the part out that measures it")?;
    }
    Ok(())
}

fn law_table(title: &str) -> Table {
    Table::new(title)
        .column("losses", Unit::Plain)
        .column("k", Unit::Plain)
        .column("E", Unit::Plain)
        .column("alpha", Unit::Plain)
        .column("A", Unit::Si)
        .column("R²", Unit::Plain)
}

fn law_row(table: &mut Table, name: &str, fit: &Fit) {
    let l = fit.law;
    let k = if fit.k_at_bound() { 0. } else { l.k };
    table.push(cells![name, k, l.e, l.alpha, l.a, fit.r_squared]);
}

fn released(run: &mut Run) -> Result<()> {
    let mut table = law_table("Law of the released losses");
    for data in Released::ALL {
        let fit = law::fit(&data.points())?;
        run.measure(&format!("k_{}", data.name()), fit.law.k);
        run.measure(&format!("r_squared_{}", data.name()), fit.r_squared);
        law_row(&mut table, data.name(), &fit);
    }
    run.table(table);
    Ok(())
}

fn scratch(settings: &Settings, study: &ScratchStudy, run: &mut Run) -> Result<()> {
    let mut all: Vec<(u64, Trained)> = Vec::new();
    for &seed in &settings.seeds {
        let (text, test) = settings.material.byte_texts(Seed::new(seed))?;
        for &width in &study.widths {
            for &streams in &study.streams {
                let stop = run.stop().flag();
                let label = format!("width-{width}-streams-{streams}-{seed}");
                let t = logged(run, &label, |observe| {
                    study.train((width, streams), &text, &test, seed, stop, observe)
                })?;
                if width == study.scratch.hidden_size {
                    run.measure(&format!("loss_{streams}"), t.loss);
                }
                all.push((seed, t));
            }
        }
        let stop = run.stop().flag();
        let equal = logged(run, &format!("equal-shares-{seed}"), |observe| {
            study.equal_shares(&text, &test, seed, stop, observe)
        })?;
        run.measure("loss_equal_shares", equal.loss);
    }
    let mut table = Table::new("From scratch")
        .column("width", Unit::Plain)
        .column("streams", Unit::Plain)
        .column("seed", Unit::Plain)
        .column("parameters", Unit::Si)
        .column("nats per byte", Unit::Plain)
        .column("ms per step", Unit::Plain);
    for (seed, t) in &all {
        table.push(cells![t.width, t.streams, *seed, t.parameters, t.loss, 1e3 * t.step_seconds]);
    }
    run.table(table);
    for &streams in study.streams.iter().filter(|&&s| s > 1) {
        run.note(worth_note(study, &all, streams));
    }
    own_law(settings, &all, run)
}

/// How many parameters of a plain decoder `streams` are worth, by the plain decoders of all widths.
fn worth_note(study: &ScratchStudy, all: &[(u64, Trained)], streams: usize) -> String {
    let width = study.scratch.hidden_size;
    let of = |width: usize, streams: usize| {
        let these: Vec<&Trained> = all
            .iter()
            .map(|(_, t)| t)
            .filter(|t| t.width == width && t.streams == streams)
            .collect();
        let loss = stats::mean(&these.iter().map(|t| t.loss).collect::<Vec<_>>());
        these.first().map(|t| (t.parameters as f64, loss))
    };
    let plain: Vec<(f64, f64)> = study.widths.iter().filter_map(|&w| of(w, 1)).collect();
    let equal = of(width, streams)
        .zip(of(width, 1))
        .and_then(|(wide, one)| Some(size_of_loss(&plain, wide.1)? / one.0));
    match equal {
        Some(times) => format!(
            "{streams} streams at width {width} reach the loss of a plain decoder of {times:.2} times \
             the parameters (between the widths trained, by their logarithms)."
        ),
        None => format!(
            "The loss of {streams} streams at width {width} is outside what plain decoders of the \
             widths trained reach."
        ),
    }
}

/// The size at which `plain` (size and loss) passes `loss`, linear between their logarithms.
pub(super) fn size_of_loss(plain: &[(f64, f64)], loss: f64) -> Option<f64> {
    let mut plain = plain.to_vec();
    plain.sort_by(|a, b| a.0.total_cmp(&b.0));
    plain.windows(2).find(|w| w[0].1 >= loss && loss >= w[1].1).map(|w| {
        let share = (w[0].1.ln() - loss.ln()) / (w[0].1.ln() - w[1].1.ln()).max(f64::MIN_POSITIVE);
        (w[0].0.ln() + share * (w[1].0.ln() - w[0].0.ln())).exp()
    })
}

/// The law of our own losses, if there are enough sizes and stream counts to speak of one.
fn own_law(settings: &Settings, all: &[(u64, Trained)], run: &mut Run) -> Result<()> {
    let mut table = law_table("Law of the losses measured here");
    let (mut ks, mut at_bound) = (Vec::new(), 0);
    for &seed in &settings.seeds {
        let points: Vec<Point> = all
            .iter()
            .filter(|(s, _)| *s == seed)
            .map(|(_, t)| Point {
                parameters: t.parameters as f64,
                streams: t.streams as f64,
                loss: t.loss,
            })
            .collect();
        match law::fit(&points) {
            Ok(fit) if fit.is_law() => {
                at_bound += usize::from(fit.k_at_bound());
                run.measure("k_scratch", if fit.k_at_bound() { 0. } else { fit.law.k });
                ks.push(fit.law.k);
                law_row(&mut table, &format!("seed {seed}"), &fit);
            }
            _ => {
                run.note("Too few sizes or stream counts were trained to fit a law of their own.");
                return Ok(());
            }
        }
    }
    run.table(table);
    if at_bound > 0 {
        run.note(format!(
            "The fit finds no positive k for {at_bound} of {} seeds: more streams did not lower the \
             losses of the decoders trained here.",
            ks.len()
        ));
    } else if let Ok(interval) = stats::t_interval(&ks, 0.95) {
        run.note(format!(
            "k of the decoders trained here: {:.3} to {:.3} (95 % over seeds).",
            interval.low, interval.high
        ));
    }
    Ok(())
}

fn frozen(settings: &Settings, study: &FrozenStudy, run: &mut Run) -> Result<()> {
    let seed = settings.seeds[0];
    let mut config = settings.material.clone();
    config.scratch.train.seed = seed;
    let material = config.prepare(Seed::new(seed), run)?;
    let score = |model: &commons_nn::model::Decoder| -> Result<f64> {
        Ok(material.score(model, study.context, study.eval_tokens)?.loss)
    };
    let original = score(&material.model)?;
    run.measure("frozen_loss_original", original);
    study.speed.measure(study, &material.model, &material.test, run)?;
    let mut table = Table::new(format!("Frozen model, loss {original:.4} by itself"))
        .column("streams", Unit::Plain)
        .column("parameters added", Unit::Si)
        .column("loss before training", Unit::Plain)
        .column("after", Unit::Plain)
        .column("shares", Unit::Plain)
        .column("entropy", Unit::Plain)
        .column("cosine of streams", Unit::Plain);
    for &streams in &study.streams {
        let wide = study.wide(&material.model, streams, seed)?;
        let before = score(&wide)?;
        let mut steps = study.train.clone();
        steps.seed = seed;
        let stop = run.stop().flag();
        logged(run, &format!("frozen-streams-{streams}"), |observe| {
            train(&wide, &material.train, &steps, stop, observe)
        })?;
        let after = score(&wide)?;
        run.measure(&format!("frozen_loss_{streams}"), after);
        let window = &material.test[..study.context.min(material.test.len())];
        let mixed = if streams > 1 { Some(mixture(&wide, window)?) } else { None };
        let shares = mixed
            .as_ref()
            .map(|m| m.shares.iter().map(|s| format!("{s:.3}")).collect::<Vec<_>>().join(" "));
        let added = wide.bank.stored() - material.model.bank.stored();
        let (entropy, cosine) =
            (mixed.as_ref().map(|m| m.entropy), mixed.as_ref().map(|m| m.cosine));
        table.push(cells![
            streams,
            added,
            before,
            after,
            shares.unwrap_or_default(),
            entropy,
            cosine
        ]);
    }
    run.table(table);
    Ok(())
}
