//! What a fold did, as tables and plots.

use commons_core::cells;
use commons_core::report::Plot;
use commons_core::table::{Table, Unit};

use super::study::{Healing, Ranking, Removals, Study};
use super::{BlockGates, Folded, GroupPlan, Similarity};

impl Folded {
    /// One line for each block of the original: influence, gate, what became of it.
    pub fn tables(&self) -> Vec<Table> {
        let mut table = Table::new("Blocks")
            .column("block", Unit::Plain)
            .column("influence", Unit::Plain)
            .column("gate", Unit::Plain)
            .column("fate", Unit::Plain);
        let gates = self.gates.as_ref().map(BlockGates::values);
        for (block, influence) in self.before.influence().into_iter().enumerate() {
            let gate = gates.as_ref().map(|g| g[block]);
            table.push(cells![block, influence, gate, self.fate(block)]);
        }
        vec![table]
    }

    /// What became of a block of the original.
    fn fate(&self, block: usize) -> String {
        let Some(place) = self.kept.iter().position(|&k| k == block) else {
            return "deleted".into();
        };
        match self.groups.group_of(place) {
            None => format!("layer {place}"),
            Some(g) if self.groups.groups[g].parent == place => {
                format!("layer {place}, parent of group {g}")
            }
            Some(g) => format!("layer {place}, uses group {g}"),
        }
    }
}

/// Influence of every block, with the deleted ones named.
pub fn influence_plot(similarity: &Similarity, removed: &[usize]) -> Plot {
    let start = Plot::new("Block influence (1 − cosine of input and output)");
    similarity.influence().into_iter().enumerate().fold(start, |plot, (block, bi)| {
        let mark = if removed.contains(&block) { " deleted" } else { "" };
        plot.bar(format!("{block}{mark}"), bi, None)
    })
}

/// Gates over the steps: the blocks that end lowest, one by one, and the mean of the others.
pub fn gate_plot(gates: &BlockGates, removed: &[usize]) -> Plot {
    let steps = |pick: &dyn Fn(&[f64]) -> f64| -> Vec<(f64, f64)> {
        let value = |(i, s): (usize, &super::gates::GateStep)| (i as f64 + 1., pick(&s.gates));
        gates.trace().iter().enumerate().map(value).collect()
    };
    let mut plot = Plot::new("Gates while they are learned").x("step").y("gate");
    for &block in removed {
        plot = plot.line(format!("block {block}"), steps(&|g| g[block]));
    }
    let others = |g: &[f64]| {
        let kept: Vec<f64> =
            g.iter().enumerate().filter(|(l, _)| !removed.contains(l)).map(|(_, g)| *g).collect();
        kept.iter().sum::<f64>() / kept.len().max(1) as f64
    };
    plot.line("mean of the others", steps(&others))
}

/// Perplexity by rate and ranking.
pub fn removal_plot(study: &Study, removals: &Removals) -> Plot {
    let start = Plot::new("Perplexity without some blocks").x("share deleted").y("perplexity").log_y();
    Ranking::ALL.into_iter().fold(start, |plot, ranking| {
        let points = removals.points.iter().filter(|p| p.ranking == ranking);
        plot.line(ranking.key(), points.map(|p| (p.rate, p.loss.exp())).take(study.rates.len()))
    })
}

/// The same as a table, with the blocks.
pub fn removal_table(removals: &Removals, original: f64) -> Table {
    let title = format!("Removal without healing (original: perplexity {:.2})", original.exp());
    let mut table = Table::new(title)
        .column("share deleted", Unit::Percent)
        .column("ranking", Unit::Plain)
        .column("perplexity", Unit::Plain)
        .column("deleted blocks", Unit::Plain);
    for p in &removals.points {
        table.push(cells![p.rate, p.ranking.key(), p.loss.exp(), list(&p.removed)]);
    }
    table
}

/// Stages of compression: size, compute and quality.
pub fn stage_table(original: &Healing, healings: &[Healing]) -> Table {
    let mut table = Table::new("At equal stored parameters")
        .column("model", Unit::Plain)
        .column("stored", Unit::Si)
        .column("bytes (f32)", Unit::Bytes)
        .column("blocks passed", Unit::Plain)
        .column("FLOPs per token", Unit::Si)
        .column("perplexity", Unit::Plain)
        .column("healed", Unit::Plain)
        .column("tokens/s", Unit::Plain)
        .column("deleted", Unit::Plain)
        .column("groups", Unit::Plain);
    for (name, h) in std::iter::once(("original", original))
        .chain(healings.iter().map(|h| (h.arm.label(), h)))
    {
        let healed = (name != "original").then(|| h.after.exp());
        let (bytes, flops) = (4 * h.stored, 2 * h.active);
        let groups = spans(&h.groups);
        table.push(cells![
            name,
            h.stored,
            bytes,
            h.blocks,
            flops,
            h.before.exp(),
            healed,
            h.speed,
            list(&h.removed),
            groups
        ]);
    }
    table
}

fn list(blocks: &[usize]) -> String {
    blocks.iter().map(usize::to_string).collect::<Vec<_>>().join(" ")
}

fn spans(groups: &GroupPlan) -> String {
    let span = |g: &super::Group| format!("{}–{}", g.members.start, g.members.end - 1);
    groups.groups.iter().map(span).collect::<Vec<_>>().join(" ")
}
