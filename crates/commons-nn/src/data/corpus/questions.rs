//! The corpus as a multiple-choice test.

use std::collections::BTreeSet;

use commons_core::{Rng, Seed};

use super::tasks::{DIGITS, LETTERS};
use super::{Document, Kind, Split, below, story};

/// Choices of each question; a model that knows nothing is right once in so many times.
pub const CHOICES: usize = 4;

/// A prompt with four continuations, one of them right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// What it is about.
    pub kind: Kind,
    /// Text to continue.
    pub prompt: String,
    /// Continuations to score, all different.
    pub choices: Vec<String>,
    /// Index of the right one.
    pub answer: usize,
}

/// The first `n` different questions of a kind. They are the same for everybody; there are fewer
/// if the split has not that many different problems.
///
/// Wrong choices are near misses: sums off by one or ten, lists with two items exchanged or one
/// replaced; for stories the other words of the story that would fit, then words it does not
/// mention. Answering a story with any mentioned word of the right kind is thus right about every
/// second time; compare with that, not with one in four.
pub fn questions(split: Split, kind: Kind, n: usize) -> Vec<Question> {
    let seed = Seed::new(0x9e57_1035).fork(kind.name(), split as u64);
    let mut seen = BTreeSet::new();
    let mut questions = Vec::with_capacity(n);
    // Every tenth problem fits a small split, and late in a small one most have been seen.
    for index in 0..200 * n as u64 {
        if questions.len() == n {
            break;
        }
        let mut rng = seed.fork("question", index).rng();
        let (document, wrong) = problem(kind, &mut rng);
        if document.split() == split && seen.insert(document.prompt.clone()) {
            questions.push(pose(document, wrong, &mut rng));
        }
    }
    questions
}

/// A problem and [`CHOICES`] - 1 wrong answers.
fn problem(kind: Kind, rng: &mut Rng) -> (Document, Vec<String>) {
    if kind == Kind::Story {
        let story = story::draw(rng);
        let wrong = other_words(&story, rng);
        return (story.document, wrong);
    }
    let document = Document::draw(kind, rng);
    let mut wrong = Vec::with_capacity(CHOICES - 1);
    while wrong.len() < CHOICES - 1 {
        let miss = match kind {
            Kind::Add | Kind::Subtract => near_number(&document.answer, &[1, 2, 10, 11], rng),
            Kind::Count => near_number(&document.answer, &[1, 2, 3], rng),
            _ => near_string(&document.answer, rng),
        };
        if miss != document.answer && !wrong.contains(&miss) {
            wrong.push(miss);
        }
    }
    (document, wrong)
}

fn pose(document: Document, wrong: Vec<String>, rng: &mut Rng) -> Question {
    let mut choices = wrong;
    let answer = below(rng, choices.len() + 1);
    choices.insert(answer, document.answer);
    Question { kind: document.kind, prompt: document.prompt, choices, answer }
}

/// Words that would fit the question of a story: those it mentions first.
fn other_words(story: &story::Story, rng: &mut Rng) -> Vec<String> {
    let mut candidates = story.mentioned.clone();
    let mut rest = story.words.to_vec();
    rng.shuffle(&mut rest);
    candidates.extend(rest);
    let mut wrong: Vec<String> = Vec::with_capacity(CHOICES - 1);
    for word in candidates {
        let new = word != story.document.answer && !wrong.iter().any(|other| other == word);
        if new && wrong.len() < CHOICES - 1 {
            wrong.push(word.to_owned());
        }
    }
    wrong
}

/// A number that lies one of `steps` beside `answer`, above it or (if not below zero) below it.
fn near_number(answer: &str, steps: &[i64], rng: &mut Rng) -> String {
    let step = steps[below(rng, steps.len())];
    let sign = if rng.below(2) == 0 { 1 } else { -1 };
    let value: i64 = answer.parse().unwrap_or(0);
    let near = value + sign * step;
    if near < 0 { value + step } else { near }.to_string()
}

/// `answer` with two neighbours exchanged or one item replaced.
fn near_string(answer: &str, rng: &mut Rng) -> String {
    let mut bytes = answer.as_bytes().to_vec();
    let at = below(rng, bytes.len() - 1);
    if rng.below(2) == 0 {
        bytes.swap(at, at + 1);
    } else {
        let alphabet = if bytes[at].is_ascii_digit() { DIGITS } else { LETTERS };
        bytes[at] = alphabet[below(rng, alphabet.len())];
    }
    bytes.into_iter().map(char::from).collect()
}
