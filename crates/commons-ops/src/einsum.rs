//! Einstein summation for one and two operands, by way of one batched matrix product.

use candle_core::{DType, Result, Tensor, bail};

use crate::slices::{Real, direct, with_elements};
use crate::tape::{Cx, Op, record};

/// Einstein summation: `einsum("bqhd,bkhd->bhqk", &[&q, &k])`.
///
/// Letters name dimensions; a letter absent from the result is summed over. One or two operands;
/// no letter twice within one operand, no ellipsis. Without `->` the result has the letters that
/// occur once, in alphabetical order. Two operands become one batched matrix product.
///
/// # Errors
/// If the specification is malformed or the shapes contradict it.
pub fn einsum(spec: &str, operands: &[&Tensor]) -> Result<Tensor> {
    let spec = Spec::parse(spec, operands)?;
    let cpu = operands.iter().all(|x| direct(x) && x.dtype() == operands[0].dtype());
    let value = || {
        let detached: Vec<Tensor> = operands.iter().map(|x| x.detach()).collect();
        spec.evaluate(&detached.iter().collect::<Vec<_>>())
    };
    match operands[0].dtype() {
        DType::F32 if cpu => spec.clone().record::<f32>(operands, &value()?),
        DType::F64 if cpu => spec.clone().record::<f64>(operands, &value()?),
        _ => spec.evaluate(operands),
    }
}

/// A parsed specification.
#[derive(Clone, Debug)]
struct Spec {
    inputs: Vec<Vec<char>>,
    output: Vec<char>,
    /// Size of every letter.
    sizes: Vec<(char, usize)>,
}

impl Spec {
    fn parse(text: &str, operands: &[&Tensor]) -> Result<Self> {
        let compact: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let (left, right) = match compact.split_once("->") {
            Some((left, right)) => (left, Some(right)),
            None => (&*compact, None),
        };
        let inputs: Vec<Vec<char>> = left.split(',').map(|s| s.chars().collect()).collect();
        if inputs.len() != operands.len() || inputs.len() > 2 {
            bail!(
                "einsum: '{text}' names {} operands, {} given (one or two are supported)",
                inputs.len(),
                operands.len()
            )
        }
        let mut sizes: Vec<(char, usize)> = Vec::new();
        for (letters, operand) in inputs.iter().zip(operands) {
            if letters.len() != operand.rank() {
                bail!("einsum: '{text}' does not fit the shape {:?}", operand.dims())
            }
            for (at, (&letter, &size)) in letters.iter().zip(operand.dims()).enumerate() {
                if !letter.is_ascii_alphabetic() || letters[..at].contains(&letter) {
                    bail!("einsum: '{letter}' in '{text}' is no letter or repeated in an operand")
                }
                match sizes.iter().find(|(l, _)| *l == letter) {
                    Some((_, known)) if *known != size => {
                        bail!("einsum: '{letter}' in '{text}' is {known} and {size}")
                    }
                    Some(_) => {}
                    None => sizes.push((letter, size)),
                }
            }
        }
        let output: Vec<char> = match right {
            Some(right) => right.chars().collect(),
            None => {
                let once = |l: &char| inputs.iter().flatten().filter(|&c| c == l).count() == 1;
                let mut letters: Vec<char> = sizes.iter().map(|s| s.0).filter(once).collect();
                letters.sort_unstable();
                letters
            }
        };
        for (at, letter) in output.iter().enumerate() {
            if !sizes.iter().any(|(l, _)| l == letter) || output[..at].contains(letter) {
                bail!("einsum: '{letter}' in the result of '{text}' is unknown or repeated")
            }
        }
        Ok(Self { inputs, output, sizes })
    }

    fn size(&self, letter: char) -> usize {
        self.sizes.iter().find(|(l, _)| *l == letter).map_or(1, |s| s.1)
    }

    fn dims(&self, letters: &[char]) -> Vec<usize> {
        letters.iter().map(|&l| self.size(l)).collect()
    }

    fn count(&self, letters: &[char]) -> usize {
        self.dims(letters).iter().product()
    }

    /// The value by candle's ops, differentiable wherever the operands are.
    fn evaluate(&self, operands: &[&Tensor]) -> Result<Tensor> {
        match *operands {
            [x] => {
                let (x, letters) = self.reduce(x, &self.inputs[0], &[])?;
                arrange(&x, &letters, &self.output)?.contiguous()
            }
            [x, y] => {
                let (x, left) = self.reduce(x, &self.inputs[0], &self.inputs[1])?;
                let (y, right) = self.reduce(y, &self.inputs[1], &self.inputs[0])?;
                self.product((&x, &left), (&y, &right))
            }
            _ => bail!("einsum: one or two operands are supported"),
        }
    }

    /// Sums over the letters that neither the result nor `other` has.
    fn reduce(&self, x: &Tensor, letters: &[char], other: &[char]) -> Result<(Tensor, Vec<char>)> {
        let kept = |l: &&char| self.output.contains(l) || other.contains(l);
        let (stay, go): (Vec<char>, Vec<char>) = letters.iter().partition(kept);
        if go.is_empty() {
            return Ok((x.clone(), stay));
        }
        let order: Vec<char> = stay.iter().chain(&go).copied().collect();
        let x = arrange(x, letters, &order)?.contiguous()?;
        let x = x.reshape((self.count(&stay), self.count(&go)))?.sum(1)?;
        Ok((x.reshape(self.dims(&stay))?, stay))
    }

    fn product(&self, left: (&Tensor, &[char]), right: (&Tensor, &[char])) -> Result<Tensor> {
        let pick = |from: &[char], f: &dyn Fn(&char) -> bool| -> Vec<char> {
            from.iter().filter(|l| f(l)).copied().collect()
        };
        let (a, b) = (left.1, right.1);
        let batch = pick(a, &|l| b.contains(l) && self.output.contains(l));
        let inner = pick(a, &|l| b.contains(l) && !self.output.contains(l));
        let rows = pick(a, &|l| !b.contains(l));
        let cols = pick(b, &|l| !a.contains(l));
        let matrix = |(x, letters): (&Tensor, &[char]), first: &[char], second: &[char]| {
            let order = [&batch, first, second].concat();
            let shape = (self.count(&batch), self.count(first), self.count(second));
            arrange(x, letters, &order)?.contiguous()?.reshape(shape)
        };
        let product = matrix(left, &rows, &inner)?.matmul(&matrix(right, &inner, &cols)?)?;
        let letters = [batch, rows, cols].concat();
        arrange(&product.reshape(self.dims(&letters))?, &letters, &self.output)?.contiguous()
    }

    fn record<T: Real>(self, operands: &[&Tensor], value: &Tensor) -> Result<Tensor> {
        let data = with_elements::<T, _>(value, <[T]>::to_vec)?;
        record(self, operands, T::to_cpu_storage_owned(data), value.shape())
    }

    /// The gradient of operand `i`: the summation with result and operand exchanged. What was
    /// summed out of the operand alone is repeated.
    fn gradient(&self, args: &[Tensor], grad: &Tensor, i: usize) -> Result<Tensor> {
        let own = &self.inputs[i];
        let other = (self.inputs.len() > 1).then(|| 1 - i);
        let mut inputs = vec![self.output.clone()];
        let mut operands = vec![grad.clone()];
        if let Some(o) = other {
            inputs.push(self.inputs[o].clone());
            operands.push(args[o].detach());
        }
        let known: Vec<char> =
            own.iter().filter(|l| inputs.iter().any(|s| s.contains(l))).copied().collect();
        let spec = Self { inputs, output: known.clone(), sizes: self.sizes.clone() };
        let dx = spec.evaluate(&operands.iter().collect::<Vec<_>>())?;
        let missing: Vec<char> = own.iter().filter(|l| !known.contains(l)).copied().collect();
        let order = [&known[..], &missing].concat();
        let shape: Vec<usize> =
            self.dims(&known).into_iter().chain(missing.iter().map(|_| 1)).collect();
        let dx = dx.reshape(shape)?.broadcast_as(self.dims(&order))?;
        arrange(&dx, &order, own)?.contiguous()
    }
}

/// Permutes dimensions named `from` into the order `to`.
fn arrange(x: &Tensor, from: &[char], to: &[char]) -> Result<Tensor> {
    let order: Vec<usize> =
        to.iter().filter_map(|l| from.iter().position(|f| f == l)).collect();
    if order.iter().copied().eq(0..from.len()) { Ok(x.clone()) } else { x.permute(order) }
}

impl Op for Spec {
    fn name(&self) -> &'static str {
        "einsum"
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        for i in 0..self.inputs.len() {
            if cx.wants(i) {
                let grad = self.gradient(cx.args, cx.grad, i)?;
                cx.give(i, grad)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{agree, distance, randn};
    use crate::{Device, no_grad};

    /// The definition: a loop over every assignment of the letters.
    fn naive(spec: &str, operands: &[&Tensor]) -> Tensor {
        let spec = Spec::parse(spec, operands).unwrap();
        let data: Vec<Vec<f64>> = operands.iter().map(|x| crate::testing::values(x)).collect();
        let mut out = vec![0.0; spec.count(&spec.output)];
        let total: usize = spec.sizes.iter().map(|s| s.1).product();
        for at in 0..total {
            let mut rest = at;
            let place: Vec<(char, usize)> = spec
                .sizes
                .iter()
                .map(|&(l, n)| {
                    let v = rest % n;
                    rest /= n;
                    (l, v)
                })
                .collect();
            let offset = |letters: &[char]| {
                letters.iter().fold(0, |sum, l| {
                    sum * spec.size(*l) + place.iter().find(|p| p.0 == *l).unwrap().1
                })
            };
            let product: f64 =
                spec.inputs.iter().zip(&data).map(|(letters, data)| data[offset(letters)]).product();
            out[offset(&spec.output)] += product;
        }
        Tensor::from_vec(out, spec.dims(&spec.output), &Device::Cpu).unwrap()
    }

    #[test]
    fn values_and_gradients_match_the_definition() {
        let size = |l: char| [2, 3, 4, 5, 1, 6][l as usize % 6];
        for spec in [
            "ij,jk->ik", "bij,bjk->bik", "bqhd,bkhd->bhqk", "bhqk,bkhd->bqhd", "i,j->ij", "i,i->",
            "ij,ij->j", "ij->ji", "ij->", "ijk->j", "abc,cd->dab", "ab,cd->ac", "ab,ab", "ba,ac",
            "ijk,k->ij", "a,b->",
        ] {
            let left = spec.split("->").next().unwrap();
            let operands: Vec<Tensor> = left
                .split(',')
                .enumerate()
                .map(|(i, s)| randn(i as u64, &s.chars().map(size).collect::<Vec<_>>()))
                .collect();
            let refs: Vec<&Tensor> = operands.iter().collect();
            let y = einsum(spec, &refs).unwrap();
            assert!(distance(&y, &naive(spec, &refs)) < 1e-5, "{spec}");
            let run = |t: &[Tensor]| einsum(spec, &t.iter().collect::<Vec<_>>());
            let composed = |t: &[Tensor]| {
                let refs: Vec<&Tensor> = t.iter().collect();
                Spec::parse(spec, &refs)?.evaluate(&refs)
            };
            agree(&refs, run, composed, 1e-5);
        }
    }

    #[test]
    fn strided_and_repeated_operands() {
        let x = randn(1, &[4, 3]);
        agree(
            &[&x],
            |t| einsum("ij,kj->ik", &[&t[0], &t[0]]),
            |t| t[0].matmul(&t[0].t()?),
            1e-5,
        );
        agree(
            &[&x],
            |t| einsum("ij,jk->ik", &[&t[0].t()?, &t[0]]),
            |t| t[0].t()?.matmul(&t[0]),
            1e-5,
        );
        let y = no_grad(|| einsum("ij->ji", &[&x])).unwrap();
        assert_eq!(y.dims(), [3, 4]);
    }

    #[test]
    fn malformed_specifications_are_refused() {
        let (x, y) = (randn(1, &[2, 3]), randn(2, &[4, 5]));
        for (spec, operands) in [
            ("ij,jk->ik", &[&x, &y][..]),
            ("ii->i", &[&x]),
            ("ij->ik", &[&x]),
            ("ijk->i", &[&x]),
            ("ij,kl->ik", &[&x]),
            ("i.->i", &[&x]),
            ("ij->ii", &[&x]),
        ] {
            assert!(einsum(spec, operands).is_err(), "{spec}");
        }
    }
}
