//! Measures the claims.

use commons_core::cells;
use commons_core::evidence::{Bound, Claim, Compare, Experiment, Figure, Paper, Recipe, Run};
use commons_core::report::Plot;
use commons_core::table::Table;
use commons_core::{Seed, fs};
use num_rational::Ratio;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::welfare::{constrained_median_bound, uniform_phantom_bound, welfare, worst_case};
use super::{
    Axiom, Mechanism, Profile, Scalar, Spread, best_deviation, groups, manipulation,
    strategyproof_on_grid, survivors,
};
use crate::csv_input::CsvTable;
use crate::tabular::ADULT;
use crate::{Error, Result};

/// The evidence for the Uniform Phantom.
#[derive(Debug, Clone, Copy, Default)]
pub struct Evidence;

/// What the evidence is measured on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Repeats of everything that is drawn by lot, each from a seed of its own.
    pub repeats: usize,
    /// Numbers of agents for which all phantom vectors are tried.
    pub unique_for: Vec<usize>,
    /// Numbers of agents for which all profiles of a grid are tried for welfare.
    pub welfare_for: Vec<usize>,
    /// Steps of that grid.
    pub welfare_steps: usize,
    /// Random profiles of a repeat, for each kind of spread.
    pub profiles: usize,
    /// Most agents of a random profile; the least is 2.
    pub most_agents: usize,
    /// `excerpt` (300 embedded rows of Adult) or the path of UCI's `adult.data`.
    pub data: String,
    /// Agents of a committee drawn from the data.
    pub committee: usize,
    /// Committees of a repeat.
    pub committees: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            repeats: 3,
            unique_for: vec![2, 3],
            welfare_for: vec![2, 3, 4],
            welfare_steps: 6,
            profiles: 20,
            most_agents: 9,
            data: EXCERPT_NAME.into(),
            committee: 15,
            committees: 50,
        }
    }
}

/// Name of the embedded rows.
const EXCERPT_NAME: &str = "excerpt";

/// The first 300 rows with an occupation of UCI Adult (Becker & Kohavi 1996, CC BY 4.0).
const EXCERPT: &str = include_str!("adult-excerpt.csv");

/// The number wished for, its range, and the groups.
const WISH: (&str, f64, f64) = ("education-num", 1., 16.);
const GROUP: &str = "occupation";

/// Mechanisms compared, with the word for each in the names of measures.
const COMPARED: [(Mechanism, &str); 6] = [
    (Mechanism::UniformPhantom, "up"),
    (Mechanism::ConstrainedMedian, "cm"),
    (Mechanism::Median, "median"),
    (Mechanism::Mean, "mean"),
    (Mechanism::Midpoint, "midpoint"),
    (Mechanism::Nash, "nash"),
];

const THEOREM: Figure = Figure::text("theorem");

impl Experiment for Evidence {
    const PAPER: Paper = Paper {
        slug: "facility-location",
        title: "Strategyproof and Proportionally Fair Facility Location",
        year: 2021,
        shares: "one point among agents with different wishes, by a rule nobody gains by lying to",
        link: "https://arxiv.org/abs/2111.01566",
    };

    const CLAIMS: &'static [Claim] = &[
        Claim::new(
            "unique",
            "of all anonymous strategyproof mechanisms of a grid exactly one meets unanimous fair \
             share, and it is the Uniform Phantom",
            Figure::Number(1.),
            "survivors_ufs",
            Bound::Within { low: 1., high: 1. },
        ),
        Claim::new(
            "band",
            "those with unanimity and individual fair share are exactly those whose interior \
             phantoms lie within 1/n to 1 − 1/n (share of the enumerated mechanisms told right)",
            THEOREM,
            "band_agreement",
            Bound::AtLeast(1.),
        ),
        Claim::new(
            "strategyproof",
            "no agent gains by a misreport under the Uniform Phantom (share of agents who could)",
            THEOREM,
            "manipulators_up",
            Bound::AtMost(0.),
        ),
        Claim::new(
            "truth-pays",
            "at least half the agents could gain by a misreport under the average, none under the \
             Uniform Phantom",
            Figure::text("the average is not strategyproof"),
            "manipulators_up",
            Bound::AtMost(-0.5),
        )
        .against("manipulators_mean", Compare::Difference),
        Claim::new(
            "fair",
            "the Uniform Phantom never violates proportional fairness (share of random profiles)",
            THEOREM,
            "violations_up",
            Bound::AtMost(0.),
        ),
        Claim::new(
            "median-unfair",
            "the median violates proportional fairness in a quarter of the profiles or more",
            Figure::text("the median is not fair (no rate given)"),
            "violations_up",
            Bound::AtMost(-0.25),
        )
        .against("violations_median", Compare::Difference),
        Claim::new(
            "welfare-bound",
            "the worst welfare ratio over a grid equals max_k kn/(k² + (n−k)²)",
            THEOREM,
            "worst_welfare_up",
            Bound::Within { low: 1. - 1e-12, high: 1. + 1e-12 },
        )
        .against("bound_welfare_up", Compare::Ratio),
        Claim::new(
            "welfare-limit",
            "the worst welfare ratio of large electorates is (1+√2)/2",
            Figure::Number(1.2071),
            "limit_welfare_up",
            Bound::Within { low: 1.207, high: 1.2072 },
        ),
        Claim::new(
            "best-of-fair",
            "no fair mechanism compared here (mean, Nash) has a better worst welfare ratio",
            THEOREM,
            "worst_welfare_up",
            Bound::AtMost(0.),
        )
        .against("worst_welfare_fair", Compare::Difference),
        Claim::new(
            "equilibrium",
            "agents who answer each other's lies under the average end at the Uniform Phantom's \
             point (largest distance)",
            Figure::Number(0.),
            "equilibrium_distance_mean",
            Bound::AtMost(1e-6),
        ),
        Claim::new(
            "equilibrium-blend",
            "so they do under half average, half Uniform Phantom",
            Figure::Number(0.),
            "equilibrium_distance_blend",
            Bound::AtMost(1e-6),
        ),
        Claim::new(
            "adult",
            "committees of Adult rows: proportional fairness is violated at least five times as \
             often by the median",
            Figure::text("none: our data"),
            "adult_violations_up",
            Bound::AtMost(0.2),
        )
        .against("adult_violations_median", Compare::Ratio),
    ];

    const RECIPES: &'static [Recipe] =
        &[Recipe::smoke(include_str!("smoke.toml")), Recipe::full(include_str!("full.toml"))];

    type Config = Settings;

    fn run(&self, settings: &Settings, run: &mut Run) -> commons_core::Result<()> {
        Ok(measure(settings, run)?)
    }
}

impl Settings {
    /// # Errors
    /// Naming the setting that cannot be used.
    fn check(&self) -> Result<()> {
        let too_few = |field: &str, least: usize| {
            Err(Error::config(field, format!("is too small; give at least {least}")))
        };
        match self {
            s if s.repeats < 2 => too_few("repeats", 2),
            s if s.unique_for.is_empty() => too_few("unique_for (its length)", 1),
            s if s.welfare_for.is_empty() => too_few("welfare_for (its length)", 1),
            s if s.profiles == 0 => too_few("profiles", 1),
            s if s.most_agents < 2 => too_few("most_agents", 2),
            s if s.committee < 2 => too_few("committee", 2),
            s if s.committees == 0 => too_few("committees", 1),
            s if s.unique_for.iter().any(|n| !(1..=5).contains(n)) => {
                Err(Error::config("unique_for", "numbers of agents are 1 to 5"))
            }
            _ => Ok(()),
        }
    }
}

fn measure(settings: &Settings, run: &mut Run) -> Result<()> {
    settings.check()?;
    // Before the long work: a missing file should not cost it.
    let adult = Adult::load(&settings.data)?;
    enumerate(settings, run)?;
    worst_cases(settings, run)?;
    for repeat in 0..settings.repeats {
        run.check_stop()?;
        let seed = run.seed().fork("repeat", repeat as u64);
        random_profiles(settings, seed.fork("profiles", 0), run)?;
        equilibria(settings, seed.fork("equilibria", 0), run)?;
        committees(settings, &adult, seed.fork("committees", 0), run)?;
    }
    run.table(adult.table()?);
    Ok(())
}

/// Claims about all mechanisms: each number of agents is one repeat.
fn enumerate(settings: &Settings, run: &mut Run) -> Result<()> {
    let mut table = Table::new("Anonymous strategyproof mechanisms of the grid 1/2n").columns([
        "agents",
        "mechanisms",
        "UFS",
        "PF",
        "proportional, unanimous",
        "IFS, unanimous",
        "profitable misreports of UP",
        "misreports tried",
    ]);
    for &n in &settings.unique_for {
        run.check_stop()?;
        let found = survivors(n)?;
        let uniform: Vec<Ratio<i64>> = (0..=n).map(|k| Ratio::<i64>::ratio(k, n)).collect();
        let is_up = found.ufs.iter().chain(&found.pf).chain(&found.proportional);
        let strangers = is_up.filter(|alpha| **alpha != uniform).count();
        run.measure("survivors_ufs", (found.ufs.len() + strangers) as f64);
        let inside = |alpha: &&Vec<Ratio<i64>>| {
            let (low, high) = (Ratio::<i64>::ratio(1, n), Ratio::<i64>::ratio(n - 1, n));
            alpha[1..n].iter().all(|a| *a >= low && *a <= high)
        };
        let ends =
            |alpha: &&Vec<Ratio<i64>>| alpha[0] == Scalar::whole(0) && alpha[n] == Scalar::whole(1);
        let right = found.ifs.iter().filter(inside).filter(ends).count();
        // Interior phantoms take the values n/n·1 … on the grid 1/2n: multisets of n − 1 of them.
        let expected = band_mechanisms(n);
        run.measure(
            "band_agreement",
            f64::from(u8::from(right == found.ifs.len() && right == expected)),
        );
        let (profitable, tried) = strategyproof_on_grid(&Mechanism::UniformPhantom, n, 8)?;
        table.push(cells![
            n,
            found.candidates,
            found.ufs.len(),
            found.pf.len(),
            found.proportional.len(),
            found.ifs.len(),
            profitable,
            tried
        ]);
    }
    run.table(table);
    Ok(())
}

/// Multisets of `n − 1` interior phantoms on the grid `1/2n` within `1/n` to `1 − 1/n`.
fn band_mechanisms(n: usize) -> usize {
    if n == 1 {
        return 1;
    }
    let (picks, values) = (n - 1, 2 * n - 3);
    (1..=picks).fold(1, |c, i| c * (values + i - 1) / i)
}

/// Worst welfare over a grid; each number of agents is one repeat.
fn worst_cases(settings: &Settings, run: &mut Run) -> Result<()> {
    let mut table = Table::new("Worst ratios over all profiles of a grid").columns([
        "agents",
        "mechanism",
        "welfare",
        "bound",
        "at",
        "total cost",
        "profiles",
    ]);
    for &n in &settings.welfare_for {
        let mut fair = f64::INFINITY;
        for (mechanism, key) in &COMPARED {
            run.check_stop()?;
            let (ratio, at, cost, profiles) = if matches!(mechanism, Mechanism::Nash) {
                let w = worst_case::<f64>(mechanism, n, settings.welfare_steps)?;
                let at = w.welfare_profile.iter().map(|x| (x * 1e4).round() / 1e4);
                (w.welfare_ratio, shown(&at.collect::<Vec<_>>()), w.cost_ratio, w.profiles)
            } else {
                let w = worst_case::<Ratio<i64>>(mechanism, n, settings.welfare_steps)?;
                let (r, c) = (w.welfare_ratio.to_f64(), w.cost_ratio.to_f64());
                (r, shown(&w.welfare_profile), c, w.profiles)
            };
            let bound = match mechanism {
                Mechanism::UniformPhantom => Some(uniform_phantom_bound::<f64>(n)),
                Mechanism::ConstrainedMedian => Some(constrained_median_bound::<f64>(n)),
                _ => None,
            };
            if matches!(mechanism, Mechanism::Mean | Mechanism::Nash) {
                fair = fair.min(ratio);
            }
            run.measure(&format!("worst_welfare_{key}"), ratio);
            run.measure(&format!("worst_cost_{key}"), cost);
            if let Some(bound) = bound {
                run.measure(&format!("bound_welfare_{key}"), bound);
            }
            table.push(cells![n, mechanism.to_string(), ratio, bound, at, cost, profiles]);
        }
        run.measure("worst_welfare_fair", fair);
    }
    run.table(table);
    let sizes = [2, 3, 4, 5, 6, 8, 10, 15, 20, 50, 100, 1000];
    let curve = |bound: fn(usize) -> f64| sizes.map(|n| (n as f64, bound(n)));
    run.plot(
        Plot::new("Worst welfare ratio against the number of agents")
            .x("agents")
            .y("best welfare / achieved")
            .log_x()
            .line("Uniform Phantom", curve(uniform_phantom_bound))
            .line("constrained median", curve(constrained_median_bound))
            .mark("(1+√2)/2", 0.5 + std::f64::consts::FRAC_1_SQRT_2),
    );
    limits(run)
}

/// Large electorates at their worst profile, `k ≈ n/√2` agents at 0 and the rest at 1.
fn limits(run: &mut Run) -> Result<()> {
    for n in [100_usize, 1_000, 10_000] {
        let k = (n as f64 * std::f64::consts::FRAC_1_SQRT_2).round() as usize;
        let mut x = vec![0.; k];
        x.resize(n, 1.);
        let profile = Profile::new(x)?;
        let y = Mechanism::UniformPhantom.outcome(&profile)?;
        run.measure("limit_welfare_up", welfare(&profile, &y)?.welfare_ratio.unwrap_or(f64::NAN));
    }
    Ok(())
}

fn shown<T: std::fmt::Display>(profile: &[T]) -> String {
    profile.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

fn random_profiles(settings: &Settings, seed: Seed, run: &mut Run) -> Result<()> {
    let profiles = draw_profiles(settings, seed)?;
    for (mechanism, key) in &COMPARED {
        let (mut violated, mut liars, mut agents, mut gain) = (0, 0, 0, 0_f64);
        for profile in &profiles {
            let y = mechanism.outcome(profile)?;
            violated += usize::from(Axiom::ProportionalFairness.check(profile, &y).is_err());
            for i in 0..profile.len() {
                agents += 1;
                if let Some(deviation) = best_deviation(mechanism, profile, i)? {
                    liars += 1;
                    gain = gain.max(deviation.gain);
                }
            }
        }
        run.measure(&format!("violations_{key}"), violated as f64 / profiles.len() as f64);
        run.measure(&format!("manipulators_{key}"), liars as f64 / agents as f64);
        run.measure(&format!("largest_gain_{key}"), gain);
    }
    Ok(())
}

fn draw_profiles(settings: &Settings, seed: Seed) -> Result<Vec<Profile<f64>>> {
    let mut profiles = Vec::new();
    for (s, spread) in Spread::ALL.into_iter().enumerate() {
        for p in 0..settings.profiles {
            let seed = seed.fork(spread.name(), p as u64);
            let sizes = settings.most_agents as u64 - 1;
            let n = 2 + seed.fork("agents", s as u64).rng().below(sizes) as usize;
            profiles.push(Profile::new(spread.draw(n, seed))?);
        }
    }
    Ok(profiles)
}

/// Rounds of best responses before a profile counts as not converging.
const ROUNDS: usize = 20_000;

fn equilibria(settings: &Settings, seed: Seed, run: &mut Run) -> Result<()> {
    let (mut average, mut blend) = (0_f64, 0_f64);
    let blended = |r: &[f64]| -> Result<f64> {
        let profile = Profile::new(r.to_vec())?;
        let mean = Mechanism::Mean.outcome(&profile)?;
        Ok(0.5 * (mean + Mechanism::UniformPhantom.outcome(&profile)?))
    };
    for (p, profile) in draw_profiles(settings, seed)?.into_iter().enumerate() {
        let up = Mechanism::UniformPhantom.outcome(&profile)?;
        let end = manipulation::average_equilibrium(&profile, ROUNDS);
        average = average.max((end.outcome - up).abs());
        // Bisection in bisection is slow: a part of the profiles says as much.
        if p % 4 == 0 {
            let end = manipulation::equilibrium(blended, profile.positions(), 2_000, 1e-9)?;
            blend = blend.max((end.outcome - up).abs());
        }
    }
    run.measure("equilibrium_distance_mean", average);
    run.measure("equilibrium_distance_blend", blend);
    Ok(())
}

/// Wishes of real people, with a group for each.
struct Adult {
    wishes: Vec<f64>,
    groups: Vec<String>,
}

impl Adult {
    fn load(name: &str) -> Result<Self> {
        let table = if name == EXCERPT_NAME {
            CsvTable::parse(EXCERPT_NAME, EXCERPT)?
        } else {
            CsvTable::parse_headerless(name, &fs::read_text(name, 1 << 26)?, &ADULT)?
        };
        let (column, low, high) = WISH;
        let wishes = table.numbers(column)?;
        let groups = table.texts(GROUP)?;
        let known = wishes.iter().zip(&groups).filter(|(_, g)| **g != "?");
        let scaled = |(w, g): (&f64, &&str)| ((w - low) / (high - low), (*g).to_owned());
        let (wishes, groups) = known.map(scaled).unzip();
        Ok(Self { wishes, groups })
    }

    /// All rows at once: the point and the groups of each mechanism.
    fn table(&self) -> Result<Table> {
        let (column, low, high) = WISH;
        let mut table = Table::new(format!("Adult, {column} by {GROUP}, all rows")).columns([
            "mechanism",
            "point",
            "mean distance",
            "welfare ratio",
            "groups below fair share",
            "largest violation of PF",
        ]);
        let profile = Profile::new(self.wishes.clone())?;
        for (mechanism, _) in &COMPARED {
            let y = mechanism.outcome(&profile)?;
            let w = welfare(&profile, &y)?;
            let groups = groups::group_shares(&profile, &self.groups, &y)?;
            let excess = Axiom::ProportionalFairness.check(&profile, &y).err().map(|w| w.excess());
            table.push(cells![
                mechanism.to_string(),
                low + (high - low) * y,
                (high - low) * w.total_cost / profile.len() as f64,
                w.welfare_ratio,
                groups.iter().filter(|g| g.below_fair_share).count(),
                excess
            ]);
        }
        Ok(table)
    }
}

/// Small committees of real people: where fairness to a few matters.
fn committees(settings: &Settings, adult: &Adult, seed: Seed, run: &mut Run) -> Result<()> {
    let draws: Vec<Vec<usize>> = (0..settings.committees)
        .map(|c| seed.fork("draw", c as u64).rng().sample(adult.wishes.len(), settings.committee))
        .collect();
    for (mechanism, key) in &COMPARED {
        let (mut violated, mut ratio) = (0, 0.);
        for draw in &draws {
            // The range is that of the committee, so that the wishes are at odds.
            let wishes: Vec<f64> = draw.iter().map(|&i| adult.wishes[i]).collect();
            let (low, high) = wishes.iter().fold((1_f64, 0_f64), |(l, h), &w| (l.min(w), h.max(w)));
            let width = (high - low).max(f64::MIN_POSITIVE);
            let profile = Profile::new(wishes.iter().map(|w| (w - low) / width).collect())?;
            let y = mechanism.outcome(&profile)?;
            violated += usize::from(Axiom::ProportionalFairness.check(&profile, &y).is_err());
            ratio += welfare(&profile, &y)?.welfare_ratio.unwrap_or(f64::NAN);
        }
        let count = draws.len() as f64;
        run.measure(&format!("adult_violations_{key}"), violated as f64 / count);
        run.measure(&format!("adult_welfare_ratio_{key}"), ratio / count);
    }
    Ok(())
}
