//! Training-free conversion of a pretrained decoder: Matrix PCA over groups of blocks, then a
//! whitened low-rank term per weight for what the atoms leave.

use std::ops::Range;

use commons_nn::bank::Bank;
use commons_nn::model::Decoder;
use commons_ops::Tensor;
use rayon::prelude::*;

use super::calibrate::{Calibration, cut};
use super::dictionary::{self, Projection};
use super::pca::MatrixPca;
use super::{Config, Ranks, Trainable};
use crate::compress::{Context, check_own};
use crate::linalg::{TruncatedSvd, Whitening, truncated_svd};
use crate::{Error, Result};

/// The weights of one projection in one group of blocks, and their dictionary.
#[derive(Debug, Clone)]
pub struct Family {
    /// Which projection.
    pub projection: Projection,
    /// Blocks of the group.
    pub blocks: Range<usize>,
    /// Atoms kept; as many as blocks means that the weights stay as they are.
    pub atoms: usize,
    /// Eigenvalues and directions.
    pub pca: MatrixPca,
    /// Mean square of an input, by which the squared errors of different projections compare.
    input_energy: f64,
    /// Elements of one weight.
    elements: usize,
}

impl Family {
    /// Whether the weights stay as they are.
    pub fn is_whole(&self) -> bool {
        self.atoms == self.blocks.len()
    }

    /// Parameters of the dictionary.
    fn stored(&self) -> usize {
        if self.is_whole() || self.atoms == 0 {
            return self.atoms * self.elements;
        }
        self.atoms * (self.elements + self.blocks.len())
    }

    fn key(&self) -> String {
        format!("{}.{}", self.projection.letter(), self.blocks.start)
    }
}

/// What became of one weight. Errors are relative, in the norm in which the residual is cut:
/// `‖(W − Ŵ) L‖ / ‖W L‖`, with `L` the identity without whitening.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Which projection.
    pub projection: Projection,
    /// Block.
    pub block: usize,
    /// Rank of the low-rank term.
    pub rank: usize,
    /// Error of the atoms alone.
    pub atoms_error: f64,
    /// Error with the low-rank term.
    pub error: f64,
}

/// A converted model and what the conversion found.
#[derive(Debug)]
pub struct Converted {
    /// The model.
    pub model: Decoder,
    /// Drift between consecutive blocks, if calibration was needed.
    pub drift: Vec<f64>,
    /// Groups of blocks.
    pub groups: Vec<Range<usize>>,
    /// Dictionaries.
    pub families: Vec<Family>,
    /// Weights, by projection and block.
    pub outcomes: Vec<Outcome>,
    /// Parameters the shared projections had, may have, and have.
    pub budget: Budget,
}

/// Parameters of the shared projections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Before.
    pub original: usize,
    /// At most, by the ratio.
    pub allowed: usize,
    /// Stored: atoms, coefficients and low-rank terms.
    pub stored: usize,
}

/// One weight on its way.
struct Residual {
    family: usize,
    block: usize,
    name: String,
    svd: TruncatedSvd,
    whole_norm: f64,
    shape: [usize; 2],
    rank: usize,
}

impl Residual {
    fn cost(&self) -> usize {
        self.shape[0] + self.shape[1]
    }

    /// Ranks above this cost more than the whole matrix.
    fn most(&self) -> usize {
        self.svd.a.dims()[0]
    }
}

/// Refuses options out of range, and projections that are made from others: a dictionary of theirs
/// would leave parts behind that nobody reads, and under the names of a dictionary there already.
pub(super) fn check(config: &Config, model: &Decoder) -> Result<()> {
    config.check(&model.config)?;
    let names = config.share.iter().flat_map(|p| p.of_decoder(&model.config));
    check_own(model, names, ", or leave this projection out of `share`")
}

/// Converts `model`.
///
/// # Errors
/// When an option is out of range, the calibration text is too short, the model's layers differ in
/// shape, or one of them is shared already.
pub fn convert(config: &Config, model: &Decoder, context: &mut Context<'_>) -> Result<Converted> {
    check(config, model)?;
    let refine = config.atoms_share < 1.;
    let calibrated = config.groups > 1 || (config.whiten && refine);
    let calibration =
        if calibrated { Some(Calibration::measure(model, config.seq_len, context)?) } else { None };
    let layers = model.config.num_hidden_layers;
    let groups = match &calibration {
        Some(c) => cut(&c.drift, config.groups)?,
        None => std::iter::once(0..layers).collect(),
    };
    let mut families = families(config, model, &groups, calibration.as_ref(), context)?;
    let original = families.iter().map(|f| f.blocks.len() * f.elements).sum::<usize>();
    let allowed = ((1. - config.ratio) * original as f64).floor() as usize;
    let atoms_budget = (config.atoms_share * allowed as f64).floor() as usize;
    choose_atoms(&mut families, atoms_budget, !refine);
    let mut bank = model.bank.deep_clone()?;
    for family in families.iter_mut().filter(|f| !f.is_whole() && f.atoms > 0) {
        let members = members(model, family);
        let weights = weights(model, &members)?;
        let (atoms, coefficients) = family.pca.dictionary(&weights, family.atoms)?;
        if atoms.is_empty() {
            let why = "is zero in all layers of its group: leave this projection out of `share`";
            return Err(Error::config(members[0].as_str(), why));
        }
        let (atoms, coefficients) = rescaled(&family.pca, members.len(), atoms, coefficients)?;
        family.atoms = atoms.len();
        dictionary::share(&mut bank, &family.key(), &members, atoms, &coefficients)?;
    }
    let mut residuals = residuals(config, model, &bank, &families, calibration.as_ref(), context)?;
    choose_ranks(config, &mut residuals, &families, allowed)?;
    let mut spent: usize = families.iter().map(Family::stored).sum();
    spent += residuals.iter().map(|r| r.rank * r.cost()).sum::<usize>();
    if spent > allowed {
        let why = format!(
            "leaves {allowed} parameters, and rank 1 for every weight takes {spent}: lower it, or take \
             ranks adaptive"
        );
        return Err(Error::config("ratio", why));
    }
    add_terms(config, &mut bank, &residuals, &families, calibration.as_ref())?;
    if config.trainable == Trainable::Shared {
        bank.freeze(|name| !name.starts_with(commons_nn::bank::PART));
    }
    let outcomes = residuals.iter().map(|r| outcome(r, &families)).collect::<Result<_>>()?;
    Ok(Converted {
        model: Decoder::new(model.config.clone(), bank)?,
        drift: calibration.map(|c| c.drift).unwrap_or_default(),
        groups,
        families,
        outcomes,
        budget: Budget { original, allowed, stored: spent },
    })
}

/// The same dictionary with atoms of the weights' own root mean square. Orthonormal ones have
/// elements of `1/√(dh)`, and steps of Adam, which are as large whatever the scale, would turn them
/// over before they moved a coefficient.
fn rescaled(
    pca: &MatrixPca,
    members: usize,
    atoms: Vec<Tensor>,
    mut coefficients: Vec<Vec<f32>>,
) -> Result<(Vec<Tensor>, Vec<Vec<f32>>)> {
    // All eigenvalues together are all squares of all weights.
    let scale = (pca.error(0) / members as f64).sqrt();
    let atoms = atoms.iter().map(|a| Ok(a.affine(scale, 0.)?)).collect::<Result<_>>()?;
    coefficients.iter_mut().flatten().for_each(|c| *c /= scale as f32);
    Ok((atoms, coefficients))
}

fn members(model: &Decoder, family: &Family) -> Vec<String> {
    family.projection.of_decoder(&model.config)[family.blocks.clone()].to_vec()
}

fn weights(model: &Decoder, names: &[String]) -> Result<Vec<Tensor>> {
    names.iter().map(|name| Ok(model.bank.weight(name)?.detach())).collect()
}

/// The autocorrelation of what a projection of `block` reads.
fn autocorrelation(calibration: &Calibration, projection: Projection, block: usize) -> &[f64] {
    match projection {
        Projection::O => &calibration.heads[block],
        _ => &calibration.inputs[block],
    }
}

fn families(
    config: &Config,
    model: &Decoder,
    groups: &[Range<usize>],
    calibration: Option<&Calibration>,
    context: &mut Context<'_>,
) -> Result<Vec<Family>> {
    let mut families = Vec::with_capacity(groups.len() * config.share.len());
    for &projection in &config.share {
        for blocks in groups {
            context.tick("matrix PCA", families.len(), groups.len() * config.share.len())?;
            let names = projection.of_decoder(&model.config)[blocks.clone()].to_vec();
            let weights = weights(model, &names)?;
            let energy = |block| {
                let Some(c) = calibration else { return 1. };
                let r = autocorrelation(c, projection, block);
                let n = (r.len() as f64).sqrt() as usize;
                (0..n).map(|i| r[i * n + i]).sum::<f64>() / n.max(1) as f64
            };
            families.push(Family {
                projection,
                blocks: blocks.clone(),
                atoms: 0,
                pca: MatrixPca::new(&weights)?,
                input_energy: blocks.clone().map(energy).sum::<f64>() / blocks.len() as f64,
                elements: weights.first().map_or(0, Tensor::elem_count),
            });
        }
    }
    Ok(families)
}

/// Takes atom after atom, each time the one that removes the most squared output error (eigenvalue
/// times mean square input) per parameter, while it fits the budget. Where there will be no
/// low-rank terms (`one_each`), every family first gets the one atom it cannot do without.
fn choose_atoms(families: &mut [Family], budget: usize, one_each: bool) {
    let mut spent = 0;
    for f in families.iter_mut().filter(|_| one_each) {
        f.atoms = 1;
        spent += f.stored();
    }
    loop {
        let mut best: Option<(f64, usize, usize)> = None;
        for (i, f) in families.iter_mut().enumerate() {
            if f.atoms >= f.blocks.len() {
                continue;
            }
            let before = f.stored();
            f.atoms += 1;
            let cost = f.stored().saturating_sub(before);
            f.atoms -= 1;
            let gain = f.pca.eigenvalues[f.atoms] * f.input_energy / cost.max(1) as f64;
            if spent + cost <= budget && best.is_none_or(|(g, _, _)| gain > g) {
                best = Some((gain, i, cost));
            }
        }
        let Some((_, i, cost)) = best else { return };
        families[i].atoms += 1;
        spent += cost;
    }
}

/// Decomposes what the atoms leave of every weight.
fn residuals(
    config: &Config,
    model: &Decoder,
    bank: &Bank,
    families: &[Family],
    calibration: Option<&Calibration>,
    context: &mut Context<'_>,
) -> Result<Vec<Residual>> {
    let mut todo = Vec::new();
    for (i, family) in families.iter().enumerate().filter(|(_, f)| !f.is_whole()) {
        for (block, name) in family.blocks.clone().zip(members(model, family)) {
            todo.push((i, block, name));
        }
    }
    let mut done = Vec::with_capacity(todo.len());
    // A few at a time, so that progress shows and a stop is obeyed.
    for part in todo.chunks(8) {
        context.tick("decomposing what is left", done.len(), todo.len())?;
        let part: Vec<Residual> = part
            .par_iter()
            .map(|(i, block, name)| {
                let family = &families[*i];
                let weight = model.bank.weight(name)?.detach();
                let mut left = weight.clone();
                if family.atoms > 0 {
                    left = (&left - bank.weight(name)?.detach())?;
                }
                let white = whitening(config, calibration, family.projection, *block)?;
                let (whole, left) = match &white {
                    Some(white) => (white.apply(&weight)?, white.apply(&left)?),
                    None => (weight, left),
                };
                let (out, input) = left.dims2()?;
                let svd = truncated_svd(&left, (out * input / (out + input)).max(1))?;
                let square = whole.flatten_all()?.to_vec1::<f32>()?;
                let whole_norm = square.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
                let name = name.clone();
                let shape = [out, input];
                Ok(Residual { family: *i, block: *block, name, svd, whole_norm, shape, rank: 0 })
            })
            .collect::<Result<_>>()?;
        done.extend(part);
    }
    Ok(done)
}

fn whitening(
    config: &Config,
    calibration: Option<&Calibration>,
    projection: Projection,
    block: usize,
) -> Result<Option<Whitening>> {
    let Some(calibration) = calibration.filter(|_| config.whiten) else { return Ok(None) };
    let r = autocorrelation(calibration, projection, block);
    let n = (r.len() as f64).sqrt() as usize;
    Whitening::new(r, n, config.ridge).map(Some)
}

/// Spends what the dictionaries leave of the `allowed` parameters on low-rank terms.
fn choose_ranks(
    config: &Config,
    residuals: &mut [Residual],
    families: &[Family],
    allowed: usize,
) -> Result<()> {
    // A weight without atoms is nothing but its term.
    let stored: usize = families.iter().map(Family::stored).sum();
    if stored > allowed {
        return Err(Error::config(
            "groups",
            format!(
                "one atom for each of {} dictionaries stores {stored} parameters, {allowed} are \
                 allowed: use fewer groups or a lower ratio",
                families.len()
            ),
        ));
    }
    let mut left = allowed - stored;
    for r in residuals.iter_mut().filter(|r| families[r.family].atoms == 0) {
        r.rank = 1;
        left = left.checked_sub(r.cost()).ok_or_else(|| {
            Error::config(
                "ratio",
                "leaves less than rank 1 for every weight without atoms: lower it, or raise \
                 atoms_share",
            )
        })?;
    }
    if config.atoms_share >= 1. {
        return Ok(());
    }
    match config.ranks {
        Ranks::Uniform => {
            let whole: usize = residuals.iter().map(|r| r.shape[0] * r.shape[1]).sum();
            let share = (allowed - stored) as f64 / whole.max(1) as f64;
            for r in residuals {
                let fair = share * (r.shape[0] * r.shape[1]) as f64 / r.cost() as f64;
                r.rank = (fair.floor() as usize).clamp(r.rank, r.most());
            }
        }
        Ranks::Adaptive => {
            let gain = |r: &Residual, k: usize| {
                f64::from(r.svd.singular_values[k]).powi(2) / r.cost() as f64
            };
            let mut steps: Vec<(f64, usize)> = Vec::new();
            for (i, r) in residuals.iter().enumerate() {
                steps.extend((r.rank..r.most()).map(|k| (gain(r, k), i)));
            }
            // Gains of one weight fall with the rank, so sorting keeps them in order.
            steps.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            for (gain, i) in steps {
                let cost = residuals[i].cost();
                if gain > 0. && cost <= left {
                    residuals[i].rank += 1;
                    left -= cost;
                }
            }
        }
    }
    Ok(())
}

/// Puts the low-rank terms on the bank.
fn add_terms(
    config: &Config,
    bank: &mut Bank,
    residuals: &[Residual],
    families: &[Family],
    calibration: Option<&Calibration>,
) -> Result<()> {
    for r in residuals.iter().filter(|r| r.rank > 0) {
        let family = &families[r.family];
        let mut a = r.svd.a.narrow(0, 0, r.rank)?.contiguous()?;
        let b = r.svd.b.narrow(1, 0, r.rank)?.contiguous()?;
        if let Some(white) = whitening(config, calibration, family.projection, r.block)? {
            a = white.undo(&a)?;
        }
        if family.atoms == 0 {
            bank.factor(&r.name, a, b)?;
        } else {
            bank.add_low_rank(&r.name, a, b, 1.)?;
        }
    }
    Ok(())
}

fn outcome(r: &Residual, families: &[Family]) -> Result<Outcome> {
    let norm = |from: usize| {
        let rest = &r.svd.singular_values[from..];
        rest.iter().map(|&s| f64::from(s).powi(2)).sum::<f64>().sqrt()
    };
    let whole = r.whole_norm.max(f64::MIN_POSITIVE);
    Ok(Outcome {
        projection: families[r.family].projection,
        block: r.block,
        rank: r.rank,
        atoms_error: norm(0) / whole,
        error: norm(r.rank) / whole,
    })
}
