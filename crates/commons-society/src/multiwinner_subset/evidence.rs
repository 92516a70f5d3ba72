//! Measures the claims.

use commons_core::evidence::{Bound, Claim, Compare, Experiment, Figure, Paper, Recipe, Run};
use commons_core::report::Plot;
use commons_core::table::Table;
use commons_core::{Seed, cells};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::exact::{self, Limits};
use super::simulate::mean_of;
use super::smoothness::{Model, Smoothness, estimate};
use super::{Bias, Bounds, Latent, Rankings, Ratios, Score, Simulation, greedy_scored, numbered};
use crate::{Error, Result};

mod real;

/// The evidence for bounds in subset selection.
#[derive(Debug, Clone, Copy, Default)]
pub struct Evidence;

/// What the evidence is measured on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Repeats, each from a seed of its own.
    pub repeats: usize,
    /// Elections of a repeat.
    pub elections: usize,
    /// Numbers of rankings in the experiment on utility bias, rising; the claims look at the first
    /// and the last.
    pub sizes: Vec<usize>,
    /// Factors on the group's utilities in that experiment; the claims look at the last.
    pub thetas: Vec<f64>,
    /// Numbers of rankings in the experiment on swap bias.
    pub swap_sizes: Vec<usize>,
    /// Parts of the pairs that are swapped, rising; tried with the most of those rankings.
    pub lambdas: Vec<f64>,
    /// Samples from which smoothness is estimated.
    pub iterations: usize,
    /// Random instances on which greedy and exact Chamberlin–Courant are compared, per repeat.
    pub instances: usize,
    /// Real rankings in a PrefLib format (`count,item,item,…` a line); empty for none.
    pub rankings: String,
    /// Voters drawn from them for one election.
    pub real_voters: usize,
    /// The published file `adult.data`; empty for none.
    pub adult: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            repeats: 3,
            elections: 10,
            sizes: vec![10, 250],
            thetas: vec![0.5, 0.2],
            swap_sizes: vec![10],
            lambdas: vec![0., 0.5, 1.],
            iterations: 300,
            instances: 20,
            rankings: String::new(),
            real_voters: 100,
            adult: String::new(),
        }
    }
}

const FUNCTIONS: [Score; 3] = [Score::BORDA, Score::BLOC, Score::SNTV];

const DIRECTION: Figure = Figure::text("direction (abstract)");

impl Experiment for Evidence {
    const PAPER: Paper = Paper {
        slug: "multiwinner-subset",
        title: "Subset Selection Based On Multiple Rankings in the Presence of Bias: Effectiveness \
                of Fairness Constraints for Multiwinner Voting Score Functions",
        year: 2023,
        shares: "one shortlist among many voters, with places kept for a group that bias ranks low",
        link: "https://arxiv.org/abs/2306.09835",
    };

    const CLAIMS: &'static [Claim] = &[
        Claim::new(
            "bounds-help",
            "with halved utilities of one group, the proportional bound raises Borda's latent \
             score by at least 0.03 of the best",
            DIRECTION,
            "utility_borda_proportional_mild",
            Bound::AtLeast(0.03),
        )
        .against("utility_borda_unconstrained_mild", Compare::Difference),
        Claim::new(
            "borda-few",
            "with strong bias, ten rankings and the bound give Borda 98 % of the best",
            Figure::text("polynomially many rankings"),
            "utility_borda_proportional_few",
            Bound::AtLeast(0.98),
        ),
        Claim::new(
            "sntv-many",
            "with strong bias, the most rankings tried and the bound give SNTV less than 80 %",
            Figure::text("exponentially many rankings"),
            "utility_sntv_proportional_many",
            Bound::AtMost(0.8),
        ),
        Claim::new(
            "separation",
            "at the most rankings tried SNTV stays at least 0.15 below Borda at the fewest",
            Figure::text("exponential against polynomial"),
            "utility_sntv_proportional_many",
            Bound::AtMost(-0.15),
        )
        .against("utility_borda_proportional_few", Compare::Difference),
        Claim::new(
            "random-bound",
            "the bound is no cure by itself: a random pick that meets it is at least 0.2 worse \
             than Borda with it",
            Figure::text("none: our check"),
            "utility_borda_proportional_few",
            Bound::AtLeast(0.2),
        )
        .against("utility_borda_random_few", Compare::Difference),
        Claim::new(
            "alpha-borda",
            "under swap bias (φ 0.5, λ 0.9) the least visible item keeps a constant part of \
             Borda's score (0.22 computed independently)",
            Figure::text("0.42 (official notebook, positions counted upwards)"),
            "alpha_borda",
            Bound::Within { low: 0.18, high: 0.26 },
        ),
        Claim::new(
            "alpha-sntv",
            "but nothing of SNTV's",
            Figure::Number(0.01),
            "alpha_sntv",
            Bound::AtMost(0.01),
        ),
        Claim::new(
            "swap-borda",
            "under swap bias on Plackett–Luce rankings the best bound gives Borda 98 % at the \
             fewest rankings",
            Figure::text("polynomially many rankings"),
            "swap_borda_best_few",
            Bound::AtLeast(0.98),
        ),
        Claim::new(
            "swap-sntv",
            "and SNTV at least 0.2 less",
            Figure::text("exponentially many rankings"),
            "swap_sntv_best_few",
            Bound::AtMost(-0.2),
        )
        .against("swap_borda_best_few", Compare::Difference),
        Claim::new(
            "greedy",
            "greedy Chamberlin–Courant stays above 1 − 1/e of the exact optimum (least ratio)",
            Figure::Number(0.632),
            "greedy_ratio_cc",
            Bound::AtLeast(0.632),
        ),
        Claim::new(
            "real-rankings",
            "on real rankings of sushi with swap bias, the proportional bound raises Borda's \
             latent score",
            DIRECTION,
            "real_borda_proportional",
            Bound::AtLeast(0.),
        )
        .against("real_borda_unconstrained", Compare::Difference),
        Claim::new(
            "adult-women",
            "on people of Adult ranked by noisy features, the proportional bound puts more women \
             on Borda's shortlist",
            Figure::text("none: our check"),
            "adult_borda_women_proportional",
            Bound::AtLeast(0.),
        )
        .against("adult_borda_women_unconstrained", Compare::Difference),
        Claim::new(
            "adult-quality",
            "and costs at most 0.05 of its latent score (income over 50 K)",
            DIRECTION,
            "adult_borda_proportional",
            Bound::AtLeast(-0.05),
        )
        .against("adult_borda_unconstrained", Compare::Difference),
    ];

    const RECIPES: &'static [Recipe] =
        &[Recipe::smoke(include_str!("smoke.toml")), Recipe::full(include_str!("full.toml"))];

    type Config = Settings;

    fn run(&self, settings: &Settings, run: &mut Run) -> commons_core::Result<()> {
        Ok(measure(settings, run)?)
    }
}

impl Settings {
    fn check(&self) -> Result<()> {
        let too_few = |field: &str, least: usize| {
            Err(Error::config(field, format!("is too small; give at least {least}")))
        };
        match self {
            s if s.repeats < 2 => too_few("repeats", 2),
            s if s.elections == 0 => too_few("elections", 1),
            s if s.sizes.is_empty() => too_few("sizes (its length)", 1),
            s if s.thetas.is_empty() => too_few("thetas (its length)", 1),
            s if s.swap_sizes.is_empty() => too_few("swap_sizes (its length)", 1),
            s if s.lambdas.is_empty() => too_few("lambdas (its length)", 1),
            s if s.iterations < 2 => too_few("iterations", 2),
            s if s.instances == 0 => too_few("instances", 1),
            s if s.real_voters == 0 => too_few("real_voters", 1),
            _ => Ok(()),
        }
    }
}

fn measure(settings: &Settings, run: &mut Run) -> Result<()> {
    settings.check()?;
    // Before the long work: a missing file should not cost it.
    let real = match settings.rankings.as_str() {
        "" => None,
        path => Some(real::sushi(path)?),
    };
    let adult = match settings.adult.as_str() {
        "" => None,
        path => Some(real::Adult::read(path)?),
    };
    let mut board = Board::default();
    let mut smooth = Vec::new();
    for repeat in 0..settings.repeats {
        run.check_stop()?;
        let seed = run.seed().fork("repeat", repeat as u64);
        utility_bias(settings, seed.fork("utility", 0), run, &mut board)?;
        swap_bias(settings, seed.fork("swap", 0), run, &mut board)?;
        smoothness(settings, seed.fork("smoothness", 0), run, &mut smooth)?;
        greedy_against_exact(settings, seed.fork("greedy", 0), run)?;
        if let Some(rankings) = &real {
            real::rankings(settings, rankings, seed.fork("real", 0), run, &mut board)?;
        }
        if let Some(adult) = &adult {
            adult.measure(settings, seed.fork("adult", 0), run, &mut board)?;
        }
    }
    if adult.is_none() {
        for claim in ["adult-women", "adult-quality"] {
            run.not_comparable(claim, "this recipe has no file of people")?;
        }
    }
    if real.is_none() {
        run.not_comparable("real-rankings", "this recipe has no file of real rankings")?;
    }
    board.report(run);
    board.report_strengths(run);
    report_smoothness(&smooth, run);
    Ok(())
}

/// What is tried: experiment, function, number of rankings.
type Cell = (String, String, usize);

/// Ratios of all repeats by what was tried.
#[derive(Default)]
struct Board {
    cells: Vec<(Cell, Vec<Ratios>)>,
    /// By strength of swap bias: λ, function.
    strengths: Vec<((f64, String), Vec<Ratios>)>,
}

impl Board {
    fn strength(&mut self, lambda: f64, score: &Score, ratios: Ratios) {
        let key = (lambda, score.to_string());
        match self.strengths.iter_mut().find(|(k, _)| *k == key) {
            Some((_, list)) => list.push(ratios),
            None => self.strengths.push((key, vec![ratios])),
        }
    }

    /// Ratios against the strength of swap bias.
    fn report_strengths(&self, run: &mut Run) {
        let mut table = Table::new("Latent score against the strength of swap bias").columns([
            "λ",
            "function",
            "unconstrained",
            "proportional",
            "best l (oracle)",
        ]);
        let mut plot = Plot::new("Latent score against the strength of swap bias")
            .x("λ, part of the pairs that is swapped")
            .y("part of the best");
        for function in FUNCTIONS.map(|f| f.to_string()) {
            let of = self.strengths.iter().filter(|((_, f), _)| *f == function);
            let at: Vec<(f64, Ratios)> =
                of.map(|((lambda, _), list)| (*lambda, mean_of(list))).collect();
            for (lambda, r) in &at {
                let function = function.clone();
                table.push(cells![*lambda, function, r.unconstrained, r.proportional, r.best_l]);
            }
            plot = plot
                .line(format!("{function}, bound"), at.iter().map(|(l, r)| (*l, r.proportional)))
                .line(format!("{function}, none"), at.iter().map(|(l, r)| (*l, r.unconstrained)));
        }
        run.plot(plot);
        run.table(table);
    }

    fn add(&mut self, experiment: &str, score: &Score, n: usize, ratios: Ratios) {
        let cell = (experiment.to_owned(), score.to_string(), n);
        match self.cells.iter_mut().find(|(c, _)| *c == cell) {
            Some((_, list)) => list.push(ratios),
            None => self.cells.push((cell, vec![ratios])),
        }
    }

    fn report(&self, run: &mut Run) {
        let mut table = Table::new("Latent score as a part of the best possible").columns([
            "bias",
            "function",
            "rankings",
            "unconstrained",
            "proportional",
            "best l (oracle)",
            "random within",
            "Kemeny",
            "Copeland",
            "median rank",
            "reciprocal rank",
        ]);
        for ((experiment, score, n), list) in &self.cells {
            let r = mean_of(list);
            table.push(cells![
                experiment.clone(),
                score.clone(),
                *n,
                r.unconstrained,
                r.proportional,
                r.best_l,
                r.random,
                r.kemeny,
                r.copeland,
                r.median_rank,
                r.reciprocal_rank
            ]);
        }
        run.table(table);
        let mut experiments: Vec<&String> = self.cells.iter().map(|((e, _, _), _)| e).collect();
        experiments.dedup();
        for experiment in experiments {
            let of = |function: &str| -> Vec<(usize, Ratios)> {
                let own = |(e, s, _): &(String, String, usize)| e == experiment && s == function;
                let cells = self.cells.iter().filter(|(key, _)| own(key));
                cells.map(|((_, _, n), list)| (*n, mean_of(list))).collect()
            };
            let several = of(&FUNCTIONS[0].to_string()).len() > 1;
            let title = if several { "Latent score against rankings" } else { "Latent score" };
            let mut plot = Plot::new(format!("{title}, {experiment}")).y("part of the best");
            if several {
                plot = plot.x("rankings").log_x();
            }
            for function in FUNCTIONS.map(|f| f.to_string()) {
                let at = of(&function);
                let values: [(&str, fn(&Ratios) -> f64); 2] =
                    [("bound", |r| r.proportional), ("none", |r| r.unconstrained)];
                for (bounds, value) in values {
                    let name = format!("{function}, {bounds}");
                    plot = match at.as_slice() {
                        [(_, only)] => plot.bar(name, value(only), None),
                        all => plot.line(name, all.iter().map(|(n, r)| (*n as f64, value(r)))),
                    };
                }
            }
            run.plot(plot);
        }
    }
}

/// Experiment 1: utilities `w_c·η_vc`, those of half the items times `θ`; 10 of 50 are chosen.
fn utility_bias(settings: &Settings, seed: Seed, run: &mut Run, board: &mut Board) -> Result<()> {
    let (first, last) = (settings.sizes[0], settings.sizes[settings.sizes.len() - 1]);
    let strong = settings.thetas[settings.thetas.len() - 1];
    let mild = settings.thetas[0];
    for &theta in &settings.thetas {
        for &n in &settings.sizes {
            for score in &FUNCTIONS {
                run.check_stop()?;
                let simulation = Simulation {
                    latent: Latent::Utility,
                    bias: Bias::Utility { theta },
                    m: 50,
                    k: 10,
                    minority: 25,
                    n,
                    repetitions: settings.elections,
                };
                let ratios = simulation.run(score, seed)?;
                board.add(&format!("utilities × {theta}"), score, n, ratios);
                if theta == mild && n == last && *score == Score::BORDA {
                    run.measure("utility_borda_proportional_mild", ratios.proportional);
                    run.measure("utility_borda_unconstrained_mild", ratios.unconstrained);
                }
                for (size, word) in [(first, "few"), (last, "many")] {
                    if theta == strong && n == size {
                        let key = |what: &str| format!("utility_{score}_{what}_{word}");
                        run.measure(&key("proportional"), ratios.proportional);
                        run.measure(&key("unconstrained"), ratios.unconstrained);
                        run.measure(&key("random"), ratios.random);
                    }
                }
            }
        }
    }
    Ok(())
}

/// Experiment 2: Plackett–Luce rankings with swapped pairs; 6 of 30 are chosen.
fn swap_bias(settings: &Settings, seed: Seed, run: &mut Run, board: &mut Board) -> Result<()> {
    let simulation = |n: usize, lambda: f64| Simulation {
        latent: Latent::PlackettLuce,
        bias: Bias::Swap { phi: 0.5, lambda },
        m: 30,
        k: 6,
        minority: 15,
        n,
        repetitions: settings.elections,
    };
    for score in &FUNCTIONS {
        for &n in &settings.swap_sizes {
            run.check_stop()?;
            let ratios = simulation(n, 0.9).run(score, seed)?;
            board.add("swaps, λ 0.9", score, n, ratios);
            if n == settings.swap_sizes[0] {
                run.measure(&format!("swap_{score}_best_few"), ratios.best_l);
                run.measure(&format!("swap_{score}_proportional_few"), ratios.proportional);
            }
        }
        for &lambda in &settings.lambdas {
            run.check_stop()?;
            let n = settings.swap_sizes[settings.swap_sizes.len() - 1];
            board.strength(lambda, score, simulation(n, lambda).run(score, seed)?);
        }
    }
    Ok(())
}

/// Latent models of the official tool.
const MODELS: [Latent; 5] = [
    Latent::Ic,
    Latent::Urn { alpha: 0.1 },
    Latent::Mallows { phi: 0.5 },
    Latent::NormMallows { norm: 0.5 },
    Latent::Conitzer,
];

/// Swap strengths for impartial culture; the other models are looked at with the last.
const LAMBDAS: [f64; 3] = [0., 0.5, 0.9];

/// Function, latent model, λ, estimate.
type Smooth = (Score, Latent, f64, Smoothness);

fn smoothness(settings: &Settings, seed: Seed, run: &mut Run, all: &mut Vec<Smooth>) -> Result<()> {
    for score in [Score::BORDA, Score::BLOC, Score::SNTV] {
        for latent in MODELS {
            for lambda in LAMBDAS {
                if latent != Latent::Ic && lambda != LAMBDAS[LAMBDAS.len() - 1] {
                    continue;
                }
                run.check_stop()?;
                let bias = Bias::Swap { phi: 0.5, lambda };
                let model = Model { latent, bias, m: 10, n: 10, iterations: settings.iterations };
                let found = estimate(&score, &model, seed)?;
                if latent == Latent::Ic {
                    let suffix = if lambda == 0.9 { String::new() } else { format!("_{lambda}") };
                    run.measure(&format!("alpha_{score}{suffix}"), found.alpha);
                }
                all.push((score.clone(), latent, lambda, found));
            }
        }
    }
    Ok(())
}

fn report_smoothness(all: &[Smooth], run: &mut Run) {
    let mut table = Table::new("Smoothness, swap bias φ 0.5, 10 items, 10 rankings (first repeat)")
        .columns(["function", "latent", "λ", "α", "± standard error", "γ(0.5)"]);
    let mut plot =
        Plot::new("γ(β): clearly worse stays worse where it is below 1").x("β").y("γ(β)");
    let mut seen: Vec<(String, String, f64)> = Vec::new();
    for (score, latent, lambda, found) in all {
        let key = (score.to_string(), latent.to_string(), *lambda);
        if seen.contains(&key) {
            continue;
        }
        let half = found.gamma.iter().rev().find(|(b, _)| *b <= 0.5).map(|(_, g)| *g);
        table.push(cells![
            key.0.clone(),
            key.1.clone(),
            *lambda,
            found.alpha,
            found.alpha_error,
            half
        ]);
        if matches!(latent, Latent::Mallows { .. }) {
            plot = plot.line(key.0.clone(), found.gamma.iter().copied());
        }
        seen.push(key);
    }
    run.table(table);
    run.plot(plot);
}

fn greedy_against_exact(settings: &Settings, seed: Seed, run: &mut Run) -> Result<()> {
    let (mut least, mut sum) = (1_f64, 0.);
    for i in 0..settings.instances {
        run.check_stop()?;
        let seed = seed.fork("instance", i as u64);
        let mut rng = seed.rng();
        let (m, n) = (6 + rng.below(15) as usize, 5 + rng.below(40) as usize);
        let k = 2 + rng.below(4) as usize;
        let latent = MODELS[i % MODELS.len()];
        let rankings = Rankings::from_orders(numbered(m), &latent.draw(m, n, seed)?)?;
        let scored = Score::CC.matrix(&rankings, k)?;
        let free = Bounds::none(m);
        let best = exact::solve(&scored, k, &free, Limits::default())?;
        let ratio = greedy_scored(&scored, k, &free)?.score / best.score;
        least = least.min(ratio);
        sum += ratio;
    }
    run.measure("greedy_ratio_cc", least);
    run.measure("greedy_mean_ratio_cc", sum / settings.instances as f64);
    Ok(())
}
