//! Measures the claims.

use commons_core::evidence::{Bound, Claim, Compare, Experiment, Figure, Paper, Recipe, Run};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::study::{Arm, Healing, Ranking, Removals, Study};
use super::{GroupPlan, tables};
use crate::Result;
use crate::material::{Material, MaterialConfig};

/// The evidence for [`super::FoldGpt`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Evidence;

/// What the evidence is measured on.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Model and texts.
    pub material: MaterialConfig,
    /// What is compared.
    pub study: Study,
}

/// The abstract gives directions, no figure that could be checked.
const DIRECTION: Figure = Figure::text("direction only (abstract)");

impl Experiment for Evidence {
    const PAPER: Paper = Paper {
        slug: "foldgpt",
        title: "FoldGPT: Simple and Effective Large Language Model Compression Scheme",
        year: 2024,
        shares: "one block's matrices among neighbouring blocks, after deleting others",
        link: "https://arxiv.org/abs/2407.00928",
    };

    const CLAIMS: &'static [Claim] = &[
        Claim::new(
            "gates",
            "blocks chosen by learned gates cost no more loss than those of lowest influence",
            DIRECTION,
            "loss_gates",
            Bound::AtMost(0.),
        )
        .against("loss_influence", Compare::Difference),
        Claim::new(
            "not-random",
            "blocks chosen by learned gates cost at least 0.3 nats less than random ones",
            DIRECTION,
            "loss_gates",
            Bound::AtMost(-0.3),
        )
        .against("loss_random", Compare::Difference),
        Claim::new(
            "healing",
            "a short healing takes at least 0.1 nats off the loss of a model whose pairs share",
            DIRECTION,
            "loss_shared_healed",
            Bound::AtMost(-0.1),
        )
        .against("loss_shared", Compare::Difference),
        Claim::new(
            "distillation",
            "healing with tail distillation ends no worse than with cross-entropy alone",
            DIRECTION,
            "loss_shared_healed",
            Bound::AtMost(0.),
        )
        .against("loss_shared_no_teacher_healed", Compare::Difference),
        Claim::new(
            "own-norms",
            "after healing, members with their own norms end no worse than with the parent's",
            DIRECTION,
            "loss_shared_healed",
            Bound::AtMost(0.),
        )
        .against("loss_shared_norms_healed", Compare::Difference),
        Claim::new(
            "over-removal",
            "at equal stored parameters, removal with sharing ends no worse than removal alone",
            DIRECTION,
            "loss_both_healed",
            Bound::AtMost(0.),
        )
        .against("loss_removed_healed", Compare::Difference),
    ];

    const RECIPES: &'static [Recipe] = &[
        Recipe::smoke(include_str!("smoke.toml")),
        Recipe::full(include_str!("full.toml")),
        Recipe {
            name: "scratch",
            about: "a decoder of ten million parameters trained from scratch (about 5 minutes)",
            toml: include_str!("scratch.toml"),
        },
    ];

    type Config = Settings;

    fn run(&self, settings: &Settings, run: &mut Run) -> commons_core::Result<()> {
        Ok(measure(settings, run)?)
    }
}

fn measure(settings: &Settings, run: &mut Run) -> Result<()> {
    let study = &settings.study;
    study.check()?;
    let material = settings.material.prepare(run.seed(), run)?;
    let original = score_original(study, &material, run)?;
    let similarity = study.similarity(&material.model, &material, run)?;
    let removals = study.removals(&material, &similarity, run.seed(), run)?;
    report_removals(study, &removals, original.before, run);
    let Some(gates) = removals.gates.first() else { return Ok(()) };
    let least = gates.lowest(study.blocks_saved)?;
    run.plot(tables::influence_plot(&similarity, &least));
    run.plot(tables::gate_plot(gates, &least));
    let mut healings = Vec::with_capacity(Arm::ALL.len());
    for arm in Arm::ALL {
        let healing = study.heal(arm, &material, &similarity, gates, run)?;
        run.measure(&format!("loss_{}", arm.key()), healing.before);
        run.measure(&format!("loss_{}_healed", arm.key()), healing.after);
        run.measure(&format!("stored_{}", arm.key()), healing.stored as f64);
        healings.push(healing);
    }
    if let Some(shared) = healings.iter().find(|h| h.arm == Arm::Shared) {
        run.plot(tables::similarity_plot(&similarity, &least, &shared.groups));
    }
    run.table(tables::stage_table(&original, &healings));
    Ok(())
}

/// The original as the first line of the table of stages.
fn score_original(study: &Study, material: &Material, run: &mut Run) -> Result<Healing> {
    let began = run.elapsed();
    let loss = study.loss(&material.model, material)?;
    let seconds = run.elapsed().saturating_sub(began).as_secs_f64().max(1e-6);
    run.measure("loss_original", loss);
    let config = &material.model.config;
    Ok(Healing {
        arm: Arm::Removed,
        stored: material.model.bank.stored(),
        blocks: config.num_hidden_layers,
        active: config.active_parameters(),
        removed: Vec::new(),
        groups: GroupPlan::default(),
        before: loss,
        after: loss,
        speed: study.eval_tokens as f64 / seconds,
    })
}

/// Each rate is one repeat of the claims about rankings.
fn report_removals(study: &Study, removals: &Removals, original: f64, run: &mut Run) {
    for ranking in Ranking::ALL {
        for point in removals.points.iter().filter(|p| p.ranking == ranking) {
            run.measure(&format!("loss_{}", ranking.key()), point.loss);
        }
    }
    run.plot(tables::removal_plot(study, removals));
    run.table(tables::removal_table(removals, original));
    for (rate, gates) in study.rates.iter().zip(&removals.gates) {
        let share = gates.polarised(0.05);
        run.note(format!(
            "deleting {:.0} %: {:.0} % of the gates ended within 0.05 of 0 or 1",
            100. * rate,
            100. * share
        ));
    }
}
