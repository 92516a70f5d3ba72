//! What a conversion did, as tables.

use commons_core::cells;
use commons_core::table::{Table, Unit};

use super::convert::Converted;

/// Dictionaries, drift and errors of a conversion.
pub fn tables(c: &Converted) -> Vec<Table> {
    let mut all = vec![budget(c), families(c)];
    if !c.drift.is_empty() {
        all.push(drift(c));
    }
    all.push(outcomes(c));
    all
}

fn budget(c: &Converted) -> Table {
    let mut table = Table::new("Parameters of the shared projections")
        .column("", Unit::Plain)
        .column("parameters", Unit::Si)
        .column("of the original", Unit::Percent);
    let b = c.budget;
    for (what, n) in [("original", b.original), ("allowed", b.allowed), ("stored", b.stored)] {
        table.push(cells![what, n, n as f64 / b.original.max(1) as f64]);
    }
    table
}

fn families(c: &Converted) -> Table {
    let mut table = Table::new("Dictionaries")
        .column("projection", Unit::Plain)
        .column("blocks", Unit::Plain)
        .column("atoms", Unit::Plain)
        .column("energy of the first atom", Unit::Percent)
        .column("energy kept", Unit::Percent);
    for f in &c.families {
        let total = f.pca.error(0).max(f64::MIN_POSITIVE);
        let blocks = format!("{}–{}", f.blocks.start, f.blocks.end - 1);
        let kept = |atoms| 1. - f.pca.error(atoms) / total;
        let atoms = match f.is_whole() {
            true => "as they were".to_owned(),
            false => format!("{} of {}", f.atoms, f.blocks.len()),
        };
        table.push(cells![f.projection.letter(), blocks, atoms, kept(1), kept(f.atoms)]);
    }
    table
}

fn drift(c: &Converted) -> Table {
    let mut table = Table::new("Drift of the prediction between blocks")
        .column("after block", Unit::Plain)
        .column("KL, nats", Unit::Plain)
        .column("cut", Unit::Plain);
    for (block, kl) in c.drift.iter().enumerate() {
        let cut = c.groups.iter().any(|g| g.end == block + 1);
        table.push(cells![block, *kl, if cut { "cut" } else { "" }]);
    }
    table
}

fn outcomes(c: &Converted) -> Table {
    let mut table = Table::new("Error of the weights")
        .column("projection", Unit::Plain)
        .column("block", Unit::Plain)
        .column("rank", Unit::Plain)
        .column("atoms alone", Unit::Percent)
        .column("with the low-rank term", Unit::Percent);
    for o in &c.outcomes {
        table.push(cells![o.projection.letter(), o.block, o.rank, o.atoms_error, o.error]);
    }
    table
}
