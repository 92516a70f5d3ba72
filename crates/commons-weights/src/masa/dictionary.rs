//! Which weights share a dictionary, and the plan that says so.

use commons_core::Seed;
use commons_nn::bank::{Bank, Entry, PART, Share};
use commons_nn::model::{DecoderConfig, VitConfig, layer_prefix};
use commons_ops::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A projection of attention; each kind has dictionaries of its own.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Projection {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// The output projection.
    O,
}

impl Projection {
    /// All four: MASA-QKVO.
    pub const ALL: [Self; 4] = [Self::Q, Self::K, Self::V, Self::O];

    /// All but the output projection: MASA-QKV.
    pub const QKV: [Self; 3] = [Self::Q, Self::K, Self::V];

    /// `q`, `k`, `v` or `o`.
    pub fn letter(self) -> &'static str {
        match self {
            Self::Q => "q",
            Self::K => "k",
            Self::V => "v",
            Self::O => "o",
        }
    }

    /// Names of this projection in the layers of a decoder.
    pub fn of_decoder(self, config: &DecoderConfig) -> Vec<String> {
        let name = |l| format!("{}self_attn.{}_proj.weight", layer_prefix(l), self.letter());
        (0..config.num_hidden_layers).map(name).collect()
    }

    /// Names of this projection in the layers of a vision transformer.
    pub fn of_vit(self, config: &VitConfig) -> Vec<String> {
        let module = match self {
            Self::Q => "attention.attention.query",
            Self::K => "attention.attention.key",
            Self::V => "attention.attention.value",
            Self::O => "attention.output.dense",
        };
        let name = |l| format!("vit.encoder.layer.{l}.{module}.weight");
        (0..config.num_hidden_layers).map(name).collect()
    }
}

/// Stored name of atom `s` of the dictionary `key`.
pub fn atom_part(key: &str, s: usize) -> String {
    format!("{PART}masa.{key}.atom.{s}")
}

/// Stored name of the coefficients `[S]` of member `l` of the dictionary `key`.
pub fn coefficient_part(key: &str, l: usize) -> String {
    format!("{PART}masa.{key}.coefficients.{l}")
}

/// Makes `members[l] = Σ_s coefficients[l][s] · atoms[s]` in `bank`; what was stored under the
/// members' names is dropped.
///
/// # Errors
/// When there are more atoms than members, or shapes or counts do not match.
pub fn share(
    bank: &mut Bank,
    key: &str,
    members: &[String],
    atoms: Vec<Tensor>,
    coefficients: &[Vec<f32>],
) -> Result<()> {
    check(bank, key, members, atoms.len())?;
    if coefficients.len() != members.len() {
        let (c, m) = (coefficients.len(), members.len());
        return Err(Error::config(key, format!("{c} rows of coefficients for {m} weights")));
    }
    let names: Vec<String> = (0..atoms.len()).map(|s| atom_part(key, s)).collect();
    for (name, atom) in names.iter().zip(atoms) {
        bank.insert(name.clone(), atom)?;
    }
    for (l, (member, row)) in members.iter().zip(coefficients).enumerate() {
        let row = Tensor::from_slice(row, row.len(), bank.device())?;
        bank.insert(coefficient_part(key, l), row)?;
        let share = Share::Combine { atoms: names.clone(), coefficients: coefficient_part(key, l) };
        bank.share(member, share.into())?;
    }
    Ok(())
}

/// Checks that `members` have one shape and are not fewer than `atoms`.
fn check(bank: &Bank, key: &str, members: &[String], atoms: usize) -> Result<Vec<usize>> {
    if atoms == 0 || atoms > members.len() {
        return Err(Error::config(
            "atoms",
            format!(
                "{atoms} atoms for {} weights of dictionary `{key}`: use 1 to {} (as many as \
                 weights saves nothing)",
                members.len(),
                members.len()
            ),
        ));
    }
    let first = bank.shape(&members[0])?;
    for member in members {
        let shape = bank.shape(member)?;
        if shape != first {
            return Err(Error::config(
                member,
                format!(
                    "is {shape:?}, `{}` is {first:?}: weights of one dictionary need one shape; \
                     leave this projection out of `share`",
                    members[0]
                ),
            ));
        }
    }
    Ok(first)
}

/// How the layers' coefficients start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// Nearly one atom alone: that of the layer's place in the depth, `s = ⌊l·S/L⌋`.
    #[default]
    Nearest,
    /// `1/√S` for every atom: all layers begin alike.
    Uniform,
}

/// Share of the energy that a layer takes of the atoms of other places. With much more the layers
/// begin alike, all atoms get nearly one gradient, and what they have in common learns too fast.
const OTHERS: f32 = 0.03;

impl Start {
    /// The coefficients of layer `l` of `layers`, of norm one.
    pub fn coefficients(self, l: usize, layers: usize, atoms: usize) -> Vec<f32> {
        match self {
            Self::Uniform => vec![1. / (atoms as f32).sqrt(); atoms],
            Self::Nearest if atoms == 1 => vec![1.],
            Self::Nearest => {
                let mut c = vec![(OTHERS / (atoms - 1) as f32).sqrt(); atoms];
                c[l * atoms / layers] = (1. - OTHERS).sqrt();
                c
            }
        }
    }
}

/// Replaces freshly initialised weights by a fresh dictionary of `atoms` atoms.
///
/// Atoms are normal with the members' own root mean square; as coefficients start with norm one,
/// the weights they make have the variance the members had.
///
/// # Errors
/// As [`share`].
pub fn initialise(
    bank: &mut Bank,
    key: &str,
    members: &[String],
    atoms: usize,
    start: Start,
    seed: Seed,
) -> Result<()> {
    let shape = check(bank, key, members, atoms)?;
    let (mut square, mut count) = (0f64, 0usize);
    for member in members {
        let values = bank.weight(member)?.detach().flatten_all()?.to_vec1::<f32>()?;
        square += values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
        count += values.len();
    }
    let sigma = (square / count.max(1) as f64).sqrt() as f32;
    let atom = |s: usize| -> Result<Tensor> {
        let mut v = vec![0f32; shape.iter().product()];
        seed.fork(key, s as u64).normal(0, &mut v);
        v.iter_mut().for_each(|x| *x *= sigma);
        Ok(Tensor::from_vec(v, shape.clone(), bank.device())?)
    };
    let drawn = (0..atoms).map(atom).collect::<Result<Vec<_>>>()?;
    let rows: Vec<Vec<f32>> =
        (0..members.len()).map(|l| start.coefficients(l, members.len(), atoms)).collect();
    share(bank, key, members, drawn, &rows)
}

/// Which earlier weight a layer copies, when whole weights are shared instead of combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copying {
    /// Neighbours are equal: `0 0 0 1 1 1 …`.
    Sequential,
    /// The first layers are repeated over all others: `0 1 2 0 1 2 …`.
    RepeatAllOver,
}

impl Copying {
    /// The atom of layer `l`.
    pub fn atom(self, l: usize, layers: usize, atoms: usize) -> usize {
        match self {
            Self::Sequential => l * atoms / layers,
            Self::RepeatAllOver => l % atoms,
        }
    }

    /// One-hot coefficients of every layer: with them a dictionary is this way of copying.
    pub fn coefficients(self, layers: usize, atoms: usize) -> Vec<Vec<f32>> {
        let row = |l| {
            let mut row = vec![0.; atoms];
            row[self.atom(l, layers, atoms)] = 1.;
            row
        };
        (0..layers).map(row).collect()
    }

    /// Ties `members` to `atoms` whole weights: the first member that uses an atom gives it.
    ///
    /// # Errors
    /// As [`share`].
    pub fn tie(self, bank: &mut Bank, key: &str, members: &[String], atoms: usize) -> Result<()> {
        check(bank, key, members, atoms)?;
        let places: Vec<usize> =
            (0..members.len()).map(|l| self.atom(l, members.len(), atoms)).collect();
        for (l, member) in members.iter().enumerate() {
            let part = atom_part(key, places[l]);
            if !places[..l].contains(&places[l]) {
                let weight = bank.weight(member)?.detach();
                bank.insert(part.clone(), weight)?;
            }
            bank.share(member, Entry::same(part))?;
        }
        Ok(())
    }
}
