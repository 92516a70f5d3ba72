//! `fair-stream`: one decision per row, resumption, sweeps, and what is refused.

use std::io::Write;
use std::process::Stdio;

use commons_core::Seed;

use crate::Place;

fn rows(count: usize) -> String {
    let mut rng = Seed::new(2).rng();
    let mut text = "x,kind,sex,y\n".to_owned();
    for _ in 0..count {
        let (sex, kind) = (*rng.choose(&["f", "m"]).unwrap(), *rng.choose(&["p", "q"]).unwrap());
        let x = rng.normal() + if sex == "m" { 0.7 } else { -0.7 };
        text +=
            &format!("{x},{kind},{sex},{}\n", u8::from(rng.chance(1. / (1. + (-3. * x).exp()))));
    }
    text
}

const COLUMNS: &str = "--target y --sensitive sex";

#[test]
fn every_row_is_decided_before_it_is_learnt() {
    let place = Place::new();
    std::fs::write(place.path("s.csv"), rows(1000)).unwrap();
    let out = place.ok(&format!("fair-stream fit --input s.csv {COLUMNS}")).out;
    assert_eq!(out.lines().count(), 1000);
    assert!(out.starts_with("1,"), "{out:.40}");
    let line =
        format!("fair-stream fit --input s.csv {COLUMNS} --metrics m.jsonl --predictions p.csv");
    let json = place.json(&line);
    assert_eq!(json["scores"]["count"].as_u64(), Some(1000));
    assert!(json["scores"]["accuracy"].as_f64().unwrap() > 0.55, "{}", json["scores"]);
    assert!(json["scores"]["dp"].is_number() && json["nodes"][0].as_array().unwrap().len() == 45);
    assert_eq!(std::fs::read_to_string(place.path("m.jsonl")).unwrap().lines().count(), 10);
    let saved = std::fs::read_to_string(place.path("p.csv")).unwrap();
    assert_eq!(saved, format!("row,positive,probability\n{out}"));
}

#[test]
fn standard_input_is_a_stream_and_a_state_goes_on() {
    let place = Place::new();
    let text = rows(400);
    let lines: Vec<&str> = text.lines().collect();
    let feed = |line: &str, text: String| {
        let mut child =
            place.command(line).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success());
        String::from_utf8(out.stdout).unwrap()
    };
    let whole = feed(&format!("fair-stream fit --input - {COLUMNS}"), text.clone());
    let first = feed(
        &format!("fair-stream fit --input - {COLUMNS} --state s.json"),
        lines[..201].join("\n"),
    );
    let rest = format!("{}\n{}", lines[0], lines[201..].join("\n"));
    let second = feed("fair-stream fit --input - --resume s.json --state s.json", rest);
    assert_eq!(first + &second, whole);
}

#[test]
fn a_sweep_shows_the_trade_off() {
    let place = Place::new();
    std::fs::write(place.path("s.csv"), rows(3000)).unwrap();
    let line = format!("fair-stream sweep --input s.csv {COLUMNS} --lambdas 0,1 --html c.html");
    let json = place.json(&line);
    let dp = |i: usize| json[i]["scores"]["dp"].as_f64().unwrap();
    assert!(dp(1) < dp(0), "{json}");
    assert!(std::fs::read_to_string(place.path("c.html")).unwrap().contains("<svg"));
    let file = place.json(&format!("{line} --normalise file --drop-sensitive --metric eopp"));
    assert_eq!(file.as_array().unwrap().len(), 2);
}

#[test]
fn bad_streams_are_refused_without_output() {
    let place = Place::new();
    let fit = |input: &str| {
        format!("fair-stream fit --input {input} {COLUMNS} --predictions p.csv --state s.json")
    };
    place.refused(&fit("none.csv"), &["none.csv"]);
    for (name, text, words) in [
        ("column", "x,sex\n1,f\n", ["`y`", "missing"]),
        ("nan", "x,sex,y\n1,f,1\nnan,m,0\n", ["row 2 (line 3)", "`x`"]),
        ("hole", "x,sex,y\n1,f,1\n,m,0\n", ["row 2 (line 3)", "empty"]),
        ("third", "x,sex,y\n1,f,1\n1,m,0\n1,d,0\n", ["row 3 (line 4)", "--groups"]),
        ("label", "x,sex,y\n1,f,yes\n1,m,no\n", ["row 2 (line 3)", "--positive"]),
    ] {
        std::fs::write(place.path(name), text).unwrap();
        place.refused(&fit(name), &words);
    }
    assert!(!place.path("p.csv").exists() && !place.path("s.json").exists());
    std::fs::write(place.path("s.csv"), rows(20)).unwrap();
    place.refused("fair-stream fit --input s.csv", &["target"]);
    place.refused(&format!("fair-stream fit --input s.csv {COLUMNS} --trees 0"), &["trees"]);
    place.refused(&format!("fair-stream sweep --input - {COLUMNS}"), &["--input -"]);
    std::fs::write(place.path("bad.json"), "{}").unwrap();
    place.refused("fair-stream fit --input s.csv --resume bad.json", &["bad.json", "state"]);
}

#[test]
fn the_smoke_recipe_runs() {
    let place = Place::new();
    let json = place.json("run aranyani --recipe smoke");
    assert_eq!(json["result"]["claims"].as_array().unwrap().len(), 5);
}
