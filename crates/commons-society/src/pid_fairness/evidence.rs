//! Measures the claims.

use commons_core::cells;
use commons_core::evidence::{Bound, Claim, Compare, Experiment, Figure, Paper, Recipe, Run};
use commons_core::report::Plot;
use commons_core::table::{Table, Unit};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::metrics::{by_group, disparities, overall};
use super::study::{Split, Study};
use super::{Behaviour, Joint, Limit, Pid, Predictors, pid_broja};
use crate::Result;

/// The evidence for the decomposition and its limits.
#[derive(Debug, Clone, Copy, Default)]
pub struct Evidence;

/// What the evidence is measured on.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// What is trained, and on what.
    pub study: Study,
}

/// The paper shows the decomposition in figures; no number of it is quoted.
const FIGURE: Figure = Figure::text("dominates (figure)");

impl Experiment for Evidence {
    const PAPER: Paper = Paper {
        slug: "pid-fairness",
        title: "Demystifying Local and Global Fairness Trade-offs in Federated Learning Using \
                Partial Information Decomposition",
        year: 2024,
        shares: "tables of counts among clients, outcomes among groups",
        link: "https://arxiv.org/abs/2307.11333",
    };

    const CLAIMS: &'static [Claim] = &[
        Claim::new(
            "canonical",
            "the three canonical examples are wholly unique, redundant and masked (error, bits)",
            Figure::Number(0.),
            "canonical_error",
            Bound::AtMost(1e-9),
        ),
        Claim::new(
            "unique-iid",
            "with clients alike, unique disparity is most of the disparity",
            FIGURE,
            "unique_share_iid",
            Bound::AtLeast(0.5),
        ),
        Claim::new(
            "redundant-heterogeneity",
            "with groups spread unevenly, redundant disparity is most of the disparity",
            FIGURE,
            "redundant_share_heterogeneity",
            Bound::AtLeast(0.5),
        ),
        Claim::new(
            "masked-synergy",
            "with opposite correlations in the clients, masked disparity is most of the disparity",
            FIGURE,
            "masked_share_synergy",
            Bound::AtLeast(0.5),
        ),
        Claim::new(
            "limit",
            "no model is more accurate than AGLFOP allows at its own two disparities",
            Figure::text("bound (theorem)"),
            "accuracy",
            Bound::AtMost(0.),
        )
        .against("accuracy_limit", Compare::Difference),
        Claim::new(
            "local-remedy",
            "with groups spread unevenly, reweighing inside clients takes away less than half of \
             the global disparity",
            Figure::text("local fairness need not give global fairness (theorem)"),
            "global_heterogeneity_reweighed",
            Bound::AtLeast(0.5),
        )
        .against("global_heterogeneity", Compare::Ratio),
    ];

    const RECIPES: &'static [Recipe] =
        &[Recipe::smoke(include_str!("smoke.toml")), Recipe::full(include_str!("full.toml"))];

    type Config = Settings;

    fn run(&self, settings: &Settings, run: &mut Run) -> commons_core::Result<()> {
        Ok(measure(settings, run)?)
    }
}

fn measure(settings: &Settings, run: &mut Run) -> Result<()> {
    let study = &settings.study;
    study.check()?;
    canonical(run)?;
    let people = study.people(run.seed())?;
    let mut table = Table::new("Federated averaging, first repeat")
        .columns(["split", "training"])
        .column("accuracy", Unit::Percent)
        .column("limit", Unit::Percent)
        .columns(["SP gap", "unique", "redundant", "masked", "redundant by MMI", "I(Z;S)"]);
    for repeat in 0..study.repeats {
        let seed = run.seed().fork("repeat", repeat as u64);
        for split in Split::ALL {
            run.check_stop()?;
            let clients = study.split(&people, split, seed);
            for reweigh in [false, true] {
                let counts = study.train(&people, &clients, reweigh, seed)?;
                let joint = counts.joint()?;
                let pid = pid_broja(&joint)?;
                let groups = by_group(&counts, 1, None);
                let accuracy = overall(&groups).rates()[1];
                let behaviour = Behaviour::new(&counts, Predictors::Any)?;
                let limit = behaviour.limit(pid.global, pid.local)?;
                report(run, split, reweigh, &pid, accuracy, &limit);
                if repeat == 0 {
                    let how = if reweigh { "reweighed" } else { "plain" };
                    let (key, gap) = (split.key(), disparities(&groups)[0]);
                    let mmi = pid.global.min(pid.client);
                    let (u, r, m) = (pid.unique, pid.redundant, pid.masked);
                    table.push(cells![
                        key,
                        how,
                        accuracy,
                        limit.accuracy,
                        gap,
                        u,
                        r,
                        m,
                        mmi,
                        pid.client
                    ]);
                }
                if repeat == 0 && !reweigh {
                    pictures(run, study, split, &pid, &behaviour)?;
                }
            }
        }
    }
    run.table(table);
    Ok(())
}

/// Ŷ = Z with S apart; Ŷ = S = Z; Ŷ = Z xor S.
fn canonical(run: &mut Run) -> Result<()> {
    let cases = [
        [1., 1., 0., 0., 0., 0., 1., 1.],
        [1., 0., 0., 0., 0., 0., 0., 1.],
        [1., 0., 0., 1., 0., 1., 1., 0.],
    ];
    let mut error = 0f64;
    for (case, weights) in cases.iter().enumerate() {
        let pid = pid_broja(&Joint::from_weights(2, 2, 2, weights)?)?;
        for (term, value) in [pid.unique, pid.redundant, pid.masked].into_iter().enumerate() {
            error = error.max((value - f64::from(u8::from(term == case))).abs());
        }
    }
    run.measure("canonical_error", error);
    Ok(())
}

fn report(run: &mut Run, split: Split, reweigh: bool, pid: &Pid, accuracy: f64, limit: &Limit) {
    let key = split.key();
    run.measure("accuracy", accuracy);
    run.measure("accuracy_limit", limit.accuracy);
    if reweigh {
        run.measure(&format!("global_{key}_reweighed"), pid.global);
        run.measure(&format!("local_{key}_reweighed"), pid.local);
        return;
    }
    let total = (pid.unique + pid.redundant + pid.masked).max(1e-300);
    run.measure(&format!("unique_share_{key}"), pid.unique / total);
    run.measure(&format!("redundant_share_{key}"), pid.redundant / total);
    run.measure(&format!("masked_share_{key}"), pid.masked / total);
    run.measure(&format!("global_{key}"), pid.global);
    run.measure(&format!("local_{key}"), pid.local);
}

fn pictures(
    run: &mut Run,
    study: &Study,
    split: Split,
    pid: &Pid,
    behaviour: &Behaviour,
) -> Result<()> {
    let plot = Plot::new(format!("Disparity, {}", split.key())).y("bits");
    run.plot(
        plot.bar("unique", pid.unique, None)
            .bar("redundant", pid.redundant, None)
            .bar("masked", pid.masked, None),
    );
    let most = behaviour.limit(f64::INFINITY, f64::INFINITY)?;
    let top = most.global.max(most.local).max(1e-6);
    let step = top / study.grid as f64;
    let grid: Vec<f64> = (0..=study.grid).map(|i| step * i as f64).collect();
    let limits = behaviour.surface(&grid, &grid)?;
    let rows = limits.chunks(grid.len()).map(|r| r.iter().map(|l| l.accuracy).collect()).collect();
    let labels = grid.iter().map(|e| format!("{e:.3}"));
    let title =
        format!("Highest accuracy, {}: rows global bound, columns local bound (bits)", split.key());
    run.plot(Plot::new(title).heat(rows, labels));
    Ok(())
}
