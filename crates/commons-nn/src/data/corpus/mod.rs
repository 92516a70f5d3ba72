//! A corpus written by a seeded grammar: stories with facts that can be asked for, and small
//! tasks with exact answers.
//!
//! It exists so that a byte-level model of a million parameters can really learn something in
//! minutes, and so that what it learnt can be measured exactly: every document ends in an answer,
//! and the answers to the test problems occur nowhere in the training text.
//!
//! # Form
//! One document is one line of printable ASCII, at most [`MAX_DOCUMENT_BYTES`] long with its line
//! break: a prompt and then its answer.
//!
//! | kind | a document |
//! | --- | --- |
//! | story | `One day Ann and Ben met in the barn. Ann had a red cup. Ben had a blue key. Ann gave the cup to Ben. Ben went to the mill. Where is the cup? mill` |
//! | add | `27+58=85` |
//! | subtract | `91-34=57` |
//! | sort | `sort fbda: abdf` |
//! | copy | `copy gabhe: gabhe` |
//! | reverse | `reverse gabh: hbag` |
//! | count | `count b in abcb: 2` |
//!
//! # Vocabulary
//! Stories: [`NAMES`], [`THINGS`], [`COLORS`], [`PLACES`], [`TIMES`] and the fixed words of five
//! kinds of sentence (see [`Kind::Story`]). Strings are made of `a` to `h` (counting: `a` to `d`)
//! and have three to eight letters; numbers are at most 99.
//!
//! # Splits
//! A document has a key, the problem it poses without the order of what may be exchanged: `58+27`
//! has the key of `27+58`, `sort badf` that of `sort fbda`, and a story that of any story that
//! begins with the same two people owning the same two things. A hash of the key alone says which
//! [`Split`] the document belongs to, so no choice of seeds can let a test problem into training.
//!
//! ```
//! use commons_core::Seed;
//! use commons_nn::data::corpus::{Kind, Split, generate, questions};
//!
//! let text = generate(Seed::new(0), Split::Train, 10_000);
//! assert!(text.lines().all(|line| line.is_ascii()));
//! let item = &questions(Split::Test, Kind::Add, 10)[0];
//! assert!(!text.contains(&format!("{}{}\n", item.prompt, item.choices[item.answer])));
//! ```

mod questions;
mod story;
mod tasks;
#[cfg(test)]
mod tests;

use std::fmt;

use commons_core::{Rng, Seed};
use serde::{Deserialize, Serialize};

pub use questions::{CHOICES, Question, questions};
pub use story::{COLORS, NAMES, PLACES, THINGS, TIMES};

/// Length of the longest document with its line break, in bytes: a context of this size holds any.
pub const MAX_DOCUMENT_BYTES: usize = 256;

/// What a document is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Two people meet, each owns a colored thing; two or three times somebody gives a thing away,
    /// leaves it, finds it, goes elsewhere or follows the other. The question asks who has a
    /// thing, where a thing or a person is, or what color a thing has.
    Story,
    /// The sum of two numbers up to 99.
    Add,
    /// The difference of two numbers up to 99, never below zero.
    Subtract,
    /// Three to six digits or letters in ascending order.
    Sort,
    /// A string of three to eight letters once more.
    Copy,
    /// A string of three to six letters from back to front.
    Reverse,
    /// How often a letter occurs in a string of four to eight.
    Count,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Story,
        Self::Add,
        Self::Subtract,
        Self::Sort,
        Self::Copy,
        Self::Reverse,
        Self::Count,
    ];

    /// Shares of the documents, in the order of [`Kind::ALL`]. Stories are ten times as long as the
    /// tasks: with these shares they make up about two thirds of the bytes.
    const SHARES: [f64; 7] = [4.0, 5.0, 4.0, 4.0, 2.0, 3.0, 3.0];

    /// Name in lower case, such as `story`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Story => "story",
            Self::Add => "add",
            Self::Subtract => "subtract",
            Self::Sort => "sort",
            Self::Copy => "copy",
            Self::Reverse => "reverse",
            Self::Count => "count",
        }
    }

    fn draw(rng: &mut Rng) -> Self {
        Self::ALL[rng.weighted(&Self::SHARES)]
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Part of the corpus that a problem belongs to: eight tenths of all problems are for training, a
/// tenth each for choosing between models and for the figures reported in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Models see these.
    Train,
    /// Recipes are tuned on these.
    Validation,
    /// Reported figures come from these.
    Test,
}

impl Split {
    /// The split of the problem `key`.
    fn of(key: &str) -> Self {
        match hash(key) % 10 {
            0 => Self::Validation,
            1 => Self::Test,
            _ => Self::Train,
        }
    }
}

/// One line of the corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// What it is about.
    pub kind: Kind,
    /// The problem it poses; decides the split.
    pub key: String,
    /// All up to the answer, its last space included.
    pub prompt: String,
    /// The one right continuation, without the line break.
    pub answer: String,
}

impl Document {
    /// The split that [`Document::key`] puts it in.
    pub fn split(&self) -> Split {
        Split::of(&self.key)
    }

    /// Prompt, answer and line break.
    pub fn text(&self) -> String {
        format!("{}{}\n", self.prompt, self.answer)
    }

    fn draw(kind: Kind, rng: &mut Rng) -> Self {
        match kind {
            Kind::Story => story::draw(rng).document,
            Kind::Add => tasks::add(rng),
            Kind::Subtract => tasks::subtract(rng),
            Kind::Sort => tasks::sort(rng),
            Kind::Copy => tasks::copy(rng),
            Kind::Reverse => tasks::reverse(rng),
            Kind::Count => tasks::count(rng),
        }
    }
}

/// The endless stream of documents of one split. Document `i` depends on `seed` and `i` alone.
pub fn documents(seed: Seed, split: Split) -> impl Iterator<Item = Document> {
    (0..).map(move |index| {
        let mut rng = seed.fork("document", index).rng();
        let kind = Kind::draw(&mut rng);
        loop {
            let document = Document::draw(kind, &mut rng);
            if document.split() == split {
                return document;
            }
        }
    })
}

/// Whole documents of one split, of at most `bytes` bytes in all and less than
/// [`MAX_DOCUMENT_BYTES`] short of it.
pub fn generate(seed: Seed, split: Split, bytes: usize) -> String {
    let mut text = String::with_capacity(bytes);
    for document in documents(seed, split) {
        let line = document.text();
        if text.len() + line.len() > bytes {
            break;
        }
        text.push_str(&line);
    }
    text
}

/// FNV-1a with a final mixing step (murmur3's): fixed for all time, unlike the hashes of `std`.
fn hash(key: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in key.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// A number below `bound`.
fn below(rng: &mut Rng, bound: usize) -> usize {
    rng.below(bound as u64) as usize
}
