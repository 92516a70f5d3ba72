//! From multi-head to grouped-query attention: key and value heads are replaced by the mean of each
//! run of consecutive ones (Ainslie et al. 2023, section 2.1), however the weight is stored.

use std::collections::BTreeSet;

use commons_nn::bank::{Bank, Share};
use commons_ops::Tensor;

use super::allocation::check_groups;
use crate::{Error, Result};

/// Means over runs of consecutive heads: `w: [heads · d, ..]` → `[groups · d, ..]`.
///
/// # Errors
/// When `groups` does not divide `heads`, or `heads` the rows.
pub fn mean_pool(w: &Tensor, heads: usize, groups: usize) -> Result<Tensor> {
    check_groups(heads, groups)?;
    let mut shape = w.dims().to_vec();
    let rows = shape.first().copied().unwrap_or(0);
    if rows == 0 || !rows.is_multiple_of(heads) {
        return Err(Error::config("heads", format!("{heads} do not divide {rows} rows")));
    }
    shape[0] = rows / heads * groups;
    let runs = w.detach().contiguous()?.reshape((groups, heads / groups, ()))?;
    Ok(runs.mean(1)?.reshape(shape)?)
}

/// Pools the heads of the weights `names`, all of `heads` heads.
///
/// Pooling is linear in the rows, so it is done to what the weights are made of: an owner that
/// several layers share stays shared, atoms stay atoms, and of a low-rank term `B·A` only `B`
/// shrinks. What other weights read too, or what has no rows of its own (hashed, sliced, noisy), is
/// written out first.
///
/// # Errors
/// When the heads do not pool.
pub fn pool_weights(bank: &mut Bank, names: &[String], heads: usize, groups: usize) -> Result<()> {
    let pooled: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    for name in names {
        if !poolable(bank, name, &pooled) {
            let plain = bank.weight(name)?;
            bank.remove(name);
            bank.insert(name, plain)?;
        }
    }
    let mut stored = BTreeSet::new();
    for name in names {
        let entry = bank.plan().get(name).cloned().unwrap_or_default();
        match &entry.share {
            Share::Same { owner } => stored.insert(owner.clone()),
            Share::Combine { atoms, .. } => {
                stored.extend(atoms.iter().cloned());
                true
            }
            _ => stored.insert(name.clone()),
        };
        stored.extend(entry.plus.iter().map(|p| p.b.clone()));
    }
    bank.prune();
    for name in stored {
        let w = bank.stored_var(&name)?.as_tensor().clone();
        bank.insert(&name, mean_pool(&w, heads, groups)?)?;
    }
    Ok(())
}

/// Whether everything with rows that makes `name` is read by `pooled` weights only.
fn poolable(bank: &Bank, name: &str, pooled: &BTreeSet<&str>) -> bool {
    let Some(entry) = bank.plan().get(name) else { return true };
    let rows: Vec<&String> = match &entry.share {
        Share::Own => Vec::new(),
        Share::Same { owner } => vec![owner],
        Share::Combine { atoms, .. } => atoms.iter().collect(),
        _ => return false,
    };
    let rows: BTreeSet<&str> = rows
        .into_iter()
        .chain(entry.plus.iter().map(|p| &p.b))
        .map(String::as_str)
        .chain((entry.share == Share::Own).then_some(name))
        .collect();
    let others = bank.plan().iter().filter(|(n, _)| !pooled.contains(n));
    let mut read = others.flat_map(|(n, e)| e.reads(n));
    let weights = rows.iter().all(|r| r.starts_with(commons_nn::bank::PART) || pooled.contains(r));
    weights && !read.any(|r| rows.contains(r))
}
