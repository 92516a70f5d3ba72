//! Tasks with one right answer each.

use commons_core::Rng;

use super::{Document, Kind, below};

/// Letters of strings.
pub(super) const LETTERS: &[u8] = b"abcdefgh";
/// Digits to sort.
pub(super) const DIGITS: &[u8] = b"0123456789";
/// Letters of strings to count in: few, so that they repeat.
const COUNTED: &[u8] = b"abcd";

/// `27+58=85`; one problem in six has single digits only.
pub(super) fn add(rng: &mut Rng) -> Document {
    let (a, b) = operands(rng);
    Document {
        kind: Kind::Add,
        key: format!("add {} {}", a.min(b), a.max(b)),
        prompt: format!("{a}+{b}="),
        answer: (a + b).to_string(),
    }
}

/// `91-34=57`.
pub(super) fn subtract(rng: &mut Rng) -> Document {
    let (a, b) = operands(rng);
    let (larger, smaller) = (a.max(b), a.min(b));
    Document {
        kind: Kind::Subtract,
        key: format!("subtract {larger} {smaller}"),
        prompt: format!("{larger}-{smaller}="),
        answer: (larger - smaller).to_string(),
    }
}

/// `sort fbda: abdf`. The key is the sorted string: no order of the same items is seen elsewhere.
pub(super) fn sort(rng: &mut Rng) -> Document {
    let alphabet = if rng.below(2) == 0 { LETTERS } else { DIGITS };
    let length = 3 + below(rng, 4);
    let text = string(rng, alphabet, length);
    let mut bytes = text.clone().into_bytes();
    bytes.sort_unstable();
    let answer: String = bytes.into_iter().map(char::from).collect();
    Document {
        kind: Kind::Sort,
        key: format!("sort {answer}"),
        prompt: format!("sort {text}: "),
        answer,
    }
}

/// `copy gabhe: gabhe`.
pub(super) fn copy(rng: &mut Rng) -> Document {
    let length = 3 + below(rng, 6);
    let text = string(rng, LETTERS, length);
    Document {
        kind: Kind::Copy,
        key: format!("copy {text}"),
        prompt: format!("copy {text}: "),
        answer: text,
    }
}

/// `reverse gabh: hbag`.
pub(super) fn reverse(rng: &mut Rng) -> Document {
    let length = 3 + below(rng, 4);
    let text = string(rng, LETTERS, length);
    Document {
        kind: Kind::Reverse,
        key: format!("reverse {text}"),
        prompt: format!("reverse {text}: "),
        answer: text.chars().rev().collect(),
    }
}

/// `count b in abcb: 2`.
pub(super) fn count(rng: &mut Rng) -> Document {
    let length = 4 + below(rng, 5);
    let text = string(rng, COUNTED, length);
    let letter = char::from(COUNTED[below(rng, COUNTED.len())]);
    Document {
        kind: Kind::Count,
        key: format!("count {letter} {text}"),
        prompt: format!("count {letter} in {text}: "),
        answer: text.matches(letter).count().to_string(),
    }
}

fn operands(rng: &mut Rng) -> (u32, u32) {
    let bound = if rng.below(6) == 0 { 10 } else { 100 };
    (rng.below(bound) as u32, rng.below(bound) as u32)
}

fn string(rng: &mut Rng, alphabet: &[u8], length: usize) -> String {
    let letter = |_| char::from(alphabet[below(rng, alphabet.len())]);
    (0..length).map(letter).collect()
}
