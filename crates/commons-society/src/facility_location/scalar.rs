//! Numbers the mechanisms compute with: `f64` for data, rationals for proofs by enumeration.

use std::cmp::Ordering;
use std::fmt::{Debug, Display};
use std::str::FromStr;

use num_rational::{BigRational, Ratio};
use num_traits::{FromPrimitive, Num, ToPrimitive};

/// A real number: compared, added, multiplied, divided.
///
/// Implemented by `f64`, by `Ratio<i64>` (fast; its user keeps denominators small, as on a grid) and
/// by [`BigRational`] (exact whatever comes in).
pub trait Scalar: Num + PartialOrd + Clone + Debug + Display + Send + Sync + 'static {
    /// Largest difference of two numbers that count as equal: 10⁻⁹ for `f64`, 0 when exact.
    ///
    /// Locations within it belong to one group, and an axiom is violated by more than it only.
    fn tolerance() -> Self;

    /// Whether arithmetic never rounds.
    const EXACT: bool;

    /// A whole number.
    fn whole(n: usize) -> Self;

    /// The nearest `f64`.
    fn to_f64(&self) -> f64;

    /// The number, if it is finite.
    fn from_f64(value: f64) -> Option<Self>;

    /// Reads `0.25`, `1e-3` or `2/7`.
    fn parse(text: &str) -> Option<Self>;

    /// `numerator / denominator`; the denominator is positive.
    fn ratio(numerator: usize, denominator: usize) -> Self {
        Self::whole(numerator) / Self::whole(denominator)
    }

    /// Total order; NaN, which no constructor lets in, counts as equal.
    fn order(&self, other: &Self) -> Ordering {
        self.partial_cmp(other).unwrap_or(Ordering::Equal)
    }

    /// The larger.
    fn larger(self, other: Self) -> Self {
        if other > self { other } else { self }
    }

    /// The smaller.
    fn smaller(self, other: Self) -> Self {
        if other < self { other } else { self }
    }

    /// `|self − other|`.
    fn distance(&self, other: &Self) -> Self {
        if self > other { self.clone() - other.clone() } else { other.clone() - self.clone() }
    }

    /// Whether `self` exceeds `other` by more than the tolerance.
    fn exceeds(&self, other: &Self) -> bool {
        *self > other.clone() + Self::tolerance()
    }
}

impl Scalar for f64 {
    const EXACT: bool = false;

    fn tolerance() -> Self {
        1e-9
    }

    fn whole(n: usize) -> Self {
        n as f64
    }

    fn to_f64(&self) -> f64 {
        *self
    }

    fn from_f64(value: f64) -> Option<Self> {
        value.is_finite().then_some(value)
    }

    fn parse(text: &str) -> Option<Self> {
        let number = |t: &str| t.trim().parse::<f64>().ok();
        let value = match text.split_once('/') {
            Some((a, b)) => number(a)? / number(b)?,
            None => number(text)?,
        };
        value.is_finite().then_some(value)
    }
}

impl Scalar for Ratio<i64> {
    const EXACT: bool = true;

    fn tolerance() -> Self {
        Self::new_raw(0, 1)
    }

    fn whole(n: usize) -> Self {
        Self::from_integer(i64::try_from(n).unwrap_or(i64::MAX))
    }

    fn to_f64(&self) -> f64 {
        *self.numer() as f64 / *self.denom() as f64
    }

    fn from_f64(value: f64) -> Option<Self> {
        FromPrimitive::from_f64(value)
    }

    fn parse(text: &str) -> Option<Self> {
        let exact = <BigRational as Scalar>::parse(text)?;
        Some(Self::new(exact.numer().to_i64()?, exact.denom().to_i64()?))
    }
}

/// Longest exponent of a decimal that is expanded into digits.
const LONGEST_EXPONENT: u32 = 400;

impl Scalar for BigRational {
    const EXACT: bool = true;

    fn tolerance() -> Self {
        Self::from_integer(0.into())
    }

    fn whole(n: usize) -> Self {
        Self::from_integer(n.into())
    }

    fn to_f64(&self) -> f64 {
        ToPrimitive::to_f64(self).unwrap_or(f64::NAN)
    }

    fn from_f64(value: f64) -> Option<Self> {
        FromPrimitive::from_f64(value)
    }

    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.contains('/') {
            let (a, b) = text.split_once('/')?;
            let (a, b) = (<Self as Scalar>::parse(a)?, <Self as Scalar>::parse(b)?);
            return (b != Self::from_integer(0.into())).then(|| a / b);
        }
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((m, e)) => (m, e.parse::<i32>().ok()?),
            None => (text, 0),
        };
        let (head, tail) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = format!("{head}{tail}");
        let any = digits.chars().any(|c| c.is_ascii_digit());
        let plain = tail.chars().all(|c| c.is_ascii_digit());
        if !any || !plain {
            return None;
        }
        let shift = exponent.checked_sub(i32::try_from(tail.len()).ok()?)?;
        if shift.unsigned_abs() > LONGEST_EXPONENT {
            return None;
        }
        let value = Self::from_str(&digits).ok()?;
        let power = num_traits::pow(Self::from_integer(10.into()), shift.unsigned_abs() as usize);
        Some(if shift < 0 { value / power } else { value * power })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_and_fractions_are_read_exactly() {
        let read = |t: &str| <Ratio<i64> as Scalar>::parse(t);
        assert_eq!(read("0.1"), Some(Ratio::new(1, 10)));
        assert_eq!(read("1/5"), Some(Ratio::new(1, 5)));
        assert_eq!(read("-2.5e-1"), Some(Ratio::new(-1, 4)));
        assert_eq!(read("3e2"), Some(Ratio::new(300, 1)));
        assert_eq!(read(".5"), Some(Ratio::new(1, 2)));
        for wrong in ["", "x", "1/0", "1.-2", "NaN", "inf", "1e999", "."] {
            assert_eq!(<BigRational as Scalar>::parse(wrong), None, "{wrong}");
            if wrong != "1/0" {
                assert_eq!(<f64 as Scalar>::parse(wrong), None, "{wrong}");
            }
        }
        let sum = |a: &str, b: &str| -> BigRational {
            <BigRational as Scalar>::parse(a).unwrap() + <BigRational as Scalar>::parse(b).unwrap()
        };
        assert_eq!(sum("0.1", "0.2"), <BigRational as Scalar>::parse("0.3").unwrap());
    }
}
