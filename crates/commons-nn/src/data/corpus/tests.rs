//! The corpus is what its documentation says: every line is read back and answered anew.

use std::collections::{BTreeMap, BTreeSet};

use commons_core::Seed;
use proptest::prelude::*;

use super::*;

const SPLITS: [Split; 3] = [Split::Train, Split::Validation, Split::Test];

fn sample(split: Split, n: usize) -> Vec<Document> {
    documents(Seed::new(7), split).take(n).collect()
}

/// Answers a line of the corpus from its text alone, by replaying a story or doing the task.
fn solve(kind: Kind, prompt: &str) -> String {
    let prompt = prompt.trim_end();
    let number = |text: &str| text.parse::<u32>().unwrap();
    match kind {
        Kind::Story => replay(prompt),
        Kind::Add => {
            let (a, b) = prompt.strip_suffix('=').unwrap().split_once('+').unwrap();
            (number(a) + number(b)).to_string()
        }
        Kind::Subtract => {
            let (a, b) = prompt.strip_suffix('=').unwrap().split_once('-').unwrap();
            (number(a) - number(b)).to_string()
        }
        Kind::Sort => {
            let mut items: Vec<char> = argument(prompt, "sort ").chars().collect();
            items.sort_unstable();
            items.into_iter().collect()
        }
        Kind::Copy => argument(prompt, "copy ").to_owned(),
        Kind::Reverse => argument(prompt, "reverse ").chars().rev().collect(),
        Kind::Count => {
            let (letter, text) = argument(prompt, "count ").split_once(" in ").unwrap();
            text.split(letter).count().checked_sub(1).unwrap().to_string()
        }
    }
}

fn argument<'a>(prompt: &'a str, verb: &str) -> &'a str {
    prompt
        .strip_prefix(verb)
        .and_then(|rest| rest.strip_suffix(':'))
        .unwrap_or_else(|| panic!("{prompt:?} is no `{verb}` task"))
}

/// Reads a story sentence by sentence, as a person would, and answers its question.
fn replay(prompt: &str) -> String {
    let (story, question) = prompt.rsplit_once(". ").unwrap();
    let mut place: BTreeMap<&str, &str> = BTreeMap::new();
    let mut owner: BTreeMap<&str, &str> = BTreeMap::new();
    let mut lies: BTreeMap<&str, &str> = BTreeMap::new();
    let mut color: BTreeMap<&str, &str> = BTreeMap::new();
    for sentence in story.split(". ") {
        let words: Vec<&str> = sentence.split(' ').collect();
        match words.as_slice() {
            [.., a, "and", b, "met", "in", "the", spot] => {
                place.extend([(*a, *spot), (*b, *spot)]);
            }
            [who, "had", "a", shade, what] => {
                owner.insert(what, who);
                color.insert(what, shade);
            }
            [who, "gave", "the", what, "to", whom] => {
                assert_eq!(owner[what], *who, "gives what is not theirs: {story}");
                assert_eq!(place[who], place[whom], "gives across places: {story}");
                owner.insert(what, whom);
            }
            [who, "left", "the", what, "in", "the", spot] => {
                assert_eq!(owner.remove(what), Some(*who), "{story}");
                assert_eq!(place[who], *spot, "{story}");
                lies.insert(what, spot);
            }
            [who, "found", "the", what] => {
                assert_eq!(lies.remove(what), Some(place[who]), "{story}");
                owner.insert(what, who);
            }
            [who, "went", "to", "the", spot] => {
                assert_ne!(place.insert(who, spot), Some(*spot), "{story}");
            }
            [who, "followed", whom, "to", "the", spot] => {
                assert_eq!(place[whom], *spot, "{story}");
                place.insert(who, spot);
            }
            _ => panic!("no sentence of the grammar: {sentence}"),
        }
    }
    let question: Vec<&str> = question.trim_end_matches('?').split(' ').collect();
    match question.as_slice() {
        ["Who", "has", "the", what] => owner[what],
        ["What", "color", "is", "the", what] => color[what],
        ["Where", "is", "the", what] => {
            lies.get(what).copied().unwrap_or_else(|| place[owner[what]])
        }
        ["Where", "is", who] => place[who],
        other => panic!("no question of the grammar: {other:?}"),
    }
    .to_owned()
}

#[test]
fn every_answer_follows_from_its_prompt() {
    for document in SPLITS.iter().flat_map(|&split| sample(split, 2000)) {
        let answer = solve(document.kind, &document.prompt);
        assert_eq!(document.answer, answer, "{}", document.prompt);
    }
}

#[test]
fn every_document_is_one_short_line_of_ascii() {
    let mut longest = 0;
    for document in sample(Split::Train, 20_000) {
        let text = document.text();
        assert!(text.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\n')));
        assert_eq!(text.matches('\n').count(), 1);
        assert!(!document.answer.is_empty() && !document.answer.contains(' '));
        longest = longest.max(text.len());
    }
    assert!(longest <= MAX_DOCUMENT_BYTES, "{longest} bytes");
}

#[test]
fn the_longest_possible_story_fits() {
    let length = |words: &[&str]| words.iter().map(|word| word.len()).max().unwrap();
    let (name, thing) = (length(&NAMES), length(&THINGS));
    let (color, place) = (length(&COLORS), length(&PLACES));
    let opening = length(&TIMES) + 2 * name + place + " and  met in the . ".len() - 1;
    let property = name + color + thing + "  had a  .".len();
    let follow = 2 * name + place + "  followed  to the .".len();
    let leave = name + thing + place + "  left the  in the .".len();
    let question = thing + place.max(color).max(name) + " What color is the ? \n".len();
    let total = opening + 2 * property + 3 * follow.max(leave) + question;
    assert!(total <= MAX_DOCUMENT_BYTES, "{total} bytes");
}

#[test]
fn splits_share_no_problem_and_no_text() {
    let mut keys: Vec<BTreeSet<String>> = Vec::new();
    let mut prompts: Vec<BTreeSet<String>> = Vec::new();
    for split in SPLITS {
        // Another seed for each, as in use.
        let drawn = documents(Seed::new(split as u64), split).take(5_000);
        let (k, p) = drawn.map(|document| (document.key, document.prompt)).unzip();
        keys.push(k);
        prompts.push(p);
    }
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        assert!(keys[a].is_disjoint(&keys[b]));
        assert!(prompts[a].is_disjoint(&prompts[b]));
    }
}

#[test]
fn keys_forget_the_order_of_what_may_be_exchanged() {
    let mut rng = Seed::new(3).rng();
    let mut by_key: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for _ in 0..100_000 {
        let document = tasks::add(&mut rng);
        by_key.entry(document.key).or_default().insert(document.prompt);
    }
    assert_eq!(by_key["add 27 58"].len(), 2, "{:?}", by_key["add 27 58"]);
    let mut sorted: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for _ in 0..20_000 {
        let document = tasks::sort(&mut rng);
        sorted.entry(document.key).or_default().insert(document.prompt);
    }
    assert_eq!(sorted["sort abc"].len(), 6, "{:?}", sorted["sort abc"]);
}

#[test]
fn splits_have_the_sizes_promised() {
    let mut rng = Seed::new(5).rng();
    for kind in Kind::ALL {
        let mut keys = BTreeSet::new();
        for _ in 0..20_000 {
            keys.insert(Document::draw(kind, &mut rng).key);
        }
        let share = |split| {
            let members = keys.iter().filter(|key| Split::of(key) == split).count();
            members as f64 / keys.len() as f64
        };
        assert!((share(Split::Train) - 0.8).abs() < 0.04, "{kind}: {}", share(Split::Train));
        assert!((share(Split::Test) - 0.1).abs() < 0.03, "{kind}: {}", share(Split::Test));
    }
}

#[test]
fn the_stream_never_changes() {
    // Weights trained on this text are kept in the repository: another text would belie them.
    let text = generate(Seed::new(0), Split::Train, 4096);
    let head: Vec<&str> = text.lines().take(6).collect();
    let golden = [
        "91+18=109",
        "One night Hana and Clara met in the hall. Hana had a green key. Clara had a yellow ring. \
         Hana left the key in the hall. Clara went to the cave. What color is the key? green",
        "count d in cbcaac: 0",
        "78-38=40",
        "reverse affeh: heffa",
        "count c in abbbbd: 0",
    ];
    assert_eq!(head, golden);
    assert_eq!(hash(&text), 4_709_119_990_995_914_206);
}

#[test]
fn all_kinds_of_document_question_and_event_occur() {
    let text = generate(Seed::new(1), Split::Train, 200_000);
    for part in [
        "Who has",
        "Where is the",
        "What color",
        " gave the ",
        " left the ",
        " found the ",
        " went to ",
        " followed ",
        "+",
        "-",
        "sort ",
        "copy ",
        "reverse ",
        "count ",
    ] {
        assert!(text.contains(part), "no {part:?} in the corpus");
    }
    let of = |words: &[&'static str]| words.iter().all(|word| text.contains(word));
    assert!(of(&NAMES) && of(&THINGS) && of(&COLORS) && of(&PLACES) && of(&TIMES));
    let stories: usize = text.lines().filter(|line| line.contains('?')).map(str::len).sum();
    let share = stories as f64 / text.len() as f64;
    assert!((0.6..0.8).contains(&share), "stories are {share:.2} of the bytes");
}

#[test]
fn text_ends_just_below_the_length_asked_for() {
    for bytes in [0, 10, 1000, 5000] {
        let text = generate(Seed::new(2), Split::Test, bytes);
        assert!(text.len() <= bytes && text.len() + MAX_DOCUMENT_BYTES > bytes);
        assert!(text.is_empty() || text.ends_with('\n'));
    }
}

#[test]
fn questions_have_one_right_choice_among_different_ones() {
    for kind in Kind::ALL {
        let asked = questions(Split::Test, kind, 200);
        assert_eq!(asked.len(), 200, "{kind}");
        let mut places = [0usize; CHOICES];
        let mut prompts = BTreeSet::new();
        for question in &asked {
            let choices: BTreeSet<&String> = question.choices.iter().collect();
            assert_eq!(choices.len(), CHOICES, "{question:?}");
            let right = solve(kind, &question.prompt);
            assert_eq!(question.choices[question.answer], right, "{}", question.prompt);
            places[question.answer] += 1;
            prompts.insert(&question.prompt);
        }
        assert_eq!(prompts.len(), asked.len(), "{kind} asks something twice");
        assert!(places.iter().all(|&count| count > 25), "{kind}: {places:?}");
    }
}

#[test]
fn questions_belong_to_their_split() {
    let trained: BTreeSet<String> =
        sample(Split::Train, 20_000).into_iter().map(|document| document.prompt).collect();
    for kind in Kind::ALL {
        for question in questions(Split::Test, kind, 100) {
            assert!(!trained.contains(&question.prompt), "{}", question.prompt);
        }
    }
}

#[test]
fn a_small_split_gives_fewer_questions_and_ends() {
    let asked = questions(Split::Test, Kind::Add, 3000);
    assert!(asked.len() < 3000 && asked.len() > 500, "{}", asked.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn equal_seeds_give_equal_text(seed: u64) {
        let a = generate(Seed::new(seed), Split::Train, 2000);
        let b = generate(Seed::new(seed), Split::Train, 3000);
        prop_assert!(b.starts_with(&a));
        let other = generate(Seed::new(seed.wrapping_add(1)), Split::Train, 2000);
        prop_assert_ne!(a, other);
    }

    #[test]
    fn any_seed_gives_answers_that_follow(seed: u64) {
        for document in documents(Seed::new(seed), Split::Test).take(20) {
            prop_assert_eq!(&document.answer, &solve(document.kind, &document.prompt));
        }
    }
}
