//! Help, completions, manual pages.

use crate::Place;

const VERBS: [&str; 18] = [
    "pull",
    "inspect",
    "materialize",
    "eval",
    "generate",
    "train",
    "compress",
    "locate",
    "shortlist",
    "allocate",
    "audit",
    "fair-stream",
    "fit",
    "list",
    "run",
    "papers",
    "completions",
    "man",
];

#[test]
fn every_verb_explains_itself_and_fits_the_terminal() {
    let place = Place::new();
    for verb in VERBS {
        let help = place.ok(&format!("{verb} --help"));
        assert!(
            help.out.contains("Examples:") && help.out.contains("Global options:"),
            "{}",
            help.out
        );
        let longest = help.out.lines().map(|l| l.chars().count()).max().unwrap();
        assert!(longest <= 110, "{verb}: a line of {longest} columns");
    }
    assert!(place.ok("--version").out.starts_with("commons "));
}

#[test]
fn nothing_to_do_is_a_usage_error() {
    assert_eq!(Place::new().run("").code, 2);
}

#[test]
fn completions_know_every_verb() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = place.ok(&format!("completions {shell}")).out;
        for verb in VERBS {
            assert!(script.contains(verb), "{shell} does not complete {verb}");
        }
    }
}

#[test]
fn manual_pages_are_written_for_every_verb() {
    let place = Place::new();
    let main = place.ok("man").out;
    assert!(main.contains(".TH commons 1") && main.contains("compress"), "{main}");
    place.ok("man pages");
    let pages = place.list("pages");
    assert_eq!(pages.len(), VERBS.len() + 1, "{pages:?}");
    for verb in VERBS {
        let page = std::fs::read_to_string(place.path(&format!("pages/commons-{verb}.1"))).unwrap();
        assert!(page.contains(".SH OPTIONS") && page.contains("Examples"), "{verb}:\n{page}");
    }
}
