//! Stories: a small world is played forward and told as it goes, so that every answer is a fact
//! of the world and not of the wording.

use commons_core::Rng;

use super::{Document, Kind, below};

/// The people.
pub const NAMES: [&str; 16] = [
    "Ann", "Ben", "Clara", "Dan", "Emma", "Finn", "Gus", "Hana", "Ivy", "Jack", "Kim", "Leo",
    "Mia", "Nico", "Olga", "Paul",
];

/// What they own.
pub const THINGS: [&str; 16] = [
    "ball", "book", "cup", "drum", "flute", "hat", "key", "kite", "lamp", "map", "pen", "ring",
    "rope", "shell", "spoon", "vase",
];

/// Colors of things.
pub const COLORS: [&str; 8] = ["black", "blue", "brown", "green", "pink", "red", "white", "yellow"];

/// Where the stories take place.
pub const PLACES: [&str; 12] = [
    "barn", "cave", "field", "garden", "hall", "kitchen", "library", "market", "mill", "park",
    "school", "tower",
];

/// When they begin.
pub const TIMES: [&str; 6] =
    ["One day", "One morning", "One night", "At noon", "In May", "Last week"];

/// A story and what a question about it may be answered with.
pub(super) struct Story {
    /// The story, its question and the answer.
    pub document: Document,
    /// Words the answer is one of.
    pub words: &'static [&'static str],
    /// Those of them that the story mentions, the answer included.
    pub mentioned: Vec<&'static str>,
}

/// Where a thing is.
#[derive(Clone, Copy, PartialEq)]
enum Spot {
    With(usize),
    At(usize),
}

/// Two people and two things, by their place in the story; places by their index in [`PLACES`].
struct World {
    names: [&'static str; 2],
    things: [&'static str; 2],
    colors: [&'static str; 2],
    people_at: [usize; 2],
    things_at: [Spot; 2],
    visited: Vec<usize>,
}

enum Event {
    Give { giver: usize, thing: usize },
    Leave { person: usize, thing: usize },
    Find { person: usize, thing: usize },
    Go { person: usize, place: usize },
    Follow { person: usize },
}

/// A story drawn at random.
pub(super) fn draw(rng: &mut Rng) -> Story {
    let mut world = World::draw(rng);
    let key = world.key();
    let mut text = world.opening(TIMES[below(rng, TIMES.len())]);
    for _ in 0..2 + below(rng, 2) {
        let event = world.next_event(rng);
        text.push(' ');
        text.push_str(&world.tell(&event));
        world.play(&event);
    }
    world.ask(text, key, rng)
}

impl World {
    fn draw(rng: &mut Rng) -> Self {
        let names = two(rng, &NAMES);
        let things = two(rng, &THINGS);
        let colors = two(rng, &COLORS);
        let place = below(rng, PLACES.len());
        Self {
            names,
            things,
            colors,
            people_at: [place; 2],
            things_at: [Spot::With(0), Spot::With(1)],
            visited: vec![place],
        }
    }

    /// Who owns what at the beginning, whoever is told of first.
    fn key(&self) -> String {
        let mut facts =
            [0, 1].map(|i| format!("{} {} {}", self.names[i], self.colors[i], self.things[i]));
        facts.sort();
        format!("story {}", facts.join(" "))
    }

    fn opening(&self, time: &str) -> String {
        let [a, b] = self.names;
        let [c, d] = self.colors;
        let [x, y] = self.things;
        let place = PLACES[self.people_at[0]];
        format!("{time} {a} and {b} met in the {place}. {a} had a {c} {x}. {b} had a {d} {y}.")
    }

    /// One of the events that can happen now, each kind equally likely.
    fn next_event(&self, rng: &mut Rng) -> Event {
        let together = self.people_at[0] == self.people_at[1];
        loop {
            let (person, thing) = (below(rng, 2), below(rng, 2));
            let held = self.things_at[thing] == Spot::With(person);
            let lies_here = self.things_at[thing] == Spot::At(self.people_at[person]);
            match below(rng, 4) {
                0 if held && together => {
                    return Event::Give { giver: person, thing };
                }
                1 if held => return Event::Leave { person, thing },
                2 if lies_here => return Event::Find { person, thing },
                3 if together => {
                    let place = below(rng, PLACES.len());
                    if place != self.people_at[person] {
                        return Event::Go { person, place };
                    }
                }
                3 => return Event::Follow { person },
                _ => {}
            }
        }
    }

    fn tell(&self, event: &Event) -> String {
        let name = |person: usize| self.names[person];
        match *event {
            Event::Give { giver, thing } => {
                let (thing, to) = (self.things[thing], name(1 - giver));
                format!("{} gave the {thing} to {to}.", name(giver))
            }
            Event::Leave { person, thing } => {
                let place = PLACES[self.people_at[person]];
                format!("{} left the {} in the {place}.", name(person), self.things[thing])
            }
            Event::Find { person, thing } => {
                format!("{} found the {}.", name(person), self.things[thing])
            }
            Event::Go { person, place } => {
                format!("{} went to the {}.", name(person), PLACES[place])
            }
            Event::Follow { person } => {
                let place = PLACES[self.people_at[1 - person]];
                format!("{} followed {} to the {place}.", name(person), name(1 - person))
            }
        }
    }

    fn play(&mut self, event: &Event) {
        match *event {
            Event::Give { giver, thing } => self.things_at[thing] = Spot::With(1 - giver),
            Event::Leave { person, thing } => {
                self.things_at[thing] = Spot::At(self.people_at[person]);
            }
            Event::Find { person, thing } => self.things_at[thing] = Spot::With(person),
            Event::Go { person, place } => {
                self.people_at[person] = place;
                self.visited.push(place);
            }
            Event::Follow { person } => self.people_at[person] = self.people_at[1 - person],
        }
    }

    /// Ends `text` with a question about the world as it is now.
    fn ask(&self, text: String, key: String, rng: &mut Rng) -> Story {
        let (person, thing) = (below(rng, 2), below(rng, 2));
        let place_of = |spot: Spot| match spot {
            Spot::With(owner) => self.people_at[owner],
            Spot::At(place) => place,
        };
        let places = || self.visited.iter().map(|&place| PLACES[place]).collect();
        let held_by = match self.things_at[thing] {
            Spot::With(owner) => Some(owner),
            Spot::At(_) => None,
        };
        let (question, answer, words, mentioned): (_, _, &'static [&'static str], Vec<_>) =
            match (below(rng, 4), held_by) {
                (0, Some(owner)) => (
                    format!("Who has the {}?", self.things[thing]),
                    self.names[owner],
                    &NAMES,
                    self.names.to_vec(),
                ),
                (2, _) => (
                    format!("Where is {}?", self.names[person]),
                    PLACES[self.people_at[person]],
                    &PLACES,
                    places(),
                ),
                (3, _) => (
                    format!("What color is the {}?", self.things[thing]),
                    self.colors[thing],
                    &COLORS,
                    self.colors.to_vec(),
                ),
                (_, _) => (
                    format!("Where is the {}?", self.things[thing]),
                    PLACES[place_of(self.things_at[thing])],
                    &PLACES,
                    places(),
                ),
            };
        Story {
            document: Document {
                kind: Kind::Story,
                key,
                prompt: format!("{text} {question} "),
                answer: answer.to_owned(),
            },
            words,
            mentioned,
        }
    }
}

/// Two different words.
fn two(rng: &mut Rng, words: &[&'static str]) -> [&'static str; 2] {
    let first = below(rng, words.len());
    let second = (first + 1 + below(rng, words.len() - 1)) % words.len();
    [words[first], words[second]]
}
