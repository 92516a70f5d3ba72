//! Tables a stranger brings to the verbs about people, and the JSON they get back.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;

use crate::Place;

/// One line per verb; `TABLE` is the file.
const LINES: [(&str, &str); 5] = [
    ("locate --input TABLE --column x --group g --json", "x,g\n0.25,a\n0.5,b\n0.75,b\n"),
    ("allocate plan --groups TABLE --budget 100 --json", "name,a,b\nu,1,0.5\nv,2,1\n"),
    ("allocate fit --curve TABLE --json", "group,n,loss\nu,10,0.5\nu,20,0.4\nu,40,0.3\n"),
    (
        "fair-stream fit --target y --sensitive g --input TABLE --json",
        "x,g,y\n0.5,a,1\n1,b,0\n2,a,0\n",
    ),
    (
        "audit fairness TABLE --sensitive g --client c --label y --pred p --bootstrap 5 --json",
        "g,c,y,p\na,s,1,1\nb,s,0,1\na,t,1,0\nb,t,0,0\na,s,0,0\nb,t,1,1\n",
    ),
];

fn as_json_lines(text: &str) -> String {
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next().unwrap().split(',').collect();
    lines.fold(String::new(), |mut out, line| {
        let cells = names.iter().zip(line.split(',')).map(|(name, cell)| {
            let value = cell.parse::<f64>().map_or(format!("\"{cell}\""), |_| cell.to_owned());
            format!("\"{name}\": {value}")
        });
        writeln!(out, "{{{}}}", cells.collect::<Vec<_>>().join(", ")).unwrap();
        out
    })
}

#[test]
fn the_same_table_in_other_clothes_gives_the_same() {
    let place = Place::new();
    for (line, text) in LINES {
        fs::write(place.path("t.csv"), text).unwrap();
        let plain = place.ok(&line.replace("TABLE", "t.csv")).out;
        let windows = format!("\u{feff}{}", text.replace('\n', "\r\n"));
        let quoted = text.lines().map(|l| format!("\"{}\"\n", l.replace(',', "\",\"")));
        let others = [
            ("t.csv", windows),
            ("t.csv", text.replace(',', ";")),
            ("t.tsv", text.replace(',', "\t")),
            ("t.csv", quoted.collect()),
            ("t.jsonl", as_json_lines(text)),
        ];
        for (name, other) in others {
            fs::write(place.path(name), &other).unwrap();
            let got = place.ok(&line.replace("TABLE", name)).out;
            assert_eq!(got, plain, "{line}, {other}");
        }
    }
}

#[test]
fn cells_without_a_value_are_found() {
    let place = Place::new();
    for (line, text) in LINES {
        let (head, body) = text.split_once('\n').unwrap();
        let (first, rest) = body.split_once('\n').unwrap();
        // The last column of the second row.
        let second = rest.lines().next().unwrap();
        let cut = second.rfind(',').unwrap() + 1;
        let column = format!("column `{}`", head.rsplit(',').next().unwrap());
        for gap in ["", "NaN"] {
            let words = [second.get(..cut).unwrap(), gap].concat();
            let group = gap == "NaN" && line.starts_with("locate");
            fs::write(place.path("t.csv"), format!("{head}\n{first}\n{words}\n")).unwrap();
            if group {
                // A group may be called so.
                continue;
            }
            let line =
                line.replace("TABLE", "t.csv").replace("--bootstrap", "--out o.json --bootstrap");
            if line.starts_with("fair-stream") && gap == "NaN" {
                // Any two words are labels.
                continue;
            }
            place.refused(&line, &["t.csv", "row 2 (line 3)", &column]);
            assert!(!place.path("o.json").exists());
        }
        fs::write(place.path("t.csv"), format!("{head}\n{first}\n")).unwrap();
        fs::write(place.path("u.csv"), format!("{head}\n{first},1\n")).unwrap();
        place.refused(&line.replace("TABLE", "u.csv"), &["u.csv", "row 1 (line 2)", "cells"]);
        fs::write(place.path("u.csv"), format!("{head}\n")).unwrap();
        place.refused(&line.replace("TABLE", "u.csv"), &["u.csv", "no rows"]);
    }
}

#[test]
fn negative_and_repeated_values_are_found() {
    let place = Place::new();
    for (text, words) in [
        ("name,a,b\nu,1,1\nu,1,1\n", ["row 2 (line 3)", "`u` stands in row 1 (line 2)"]),
        ("name,a,b\nu,1,1\nv,-1,1\n", ["row 2 (line 3), column `a`", "above 0"]),
        ("name,a,b,cost\nu,1,1,0\n", ["row 1 (line 2), column `cost`", "above 0"]),
        ("name,a,b,owned\nu,1,1,-2\n", ["row 1 (line 2), column `owned`", "below 0"]),
    ] {
        fs::write(place.path("g.csv"), text).unwrap();
        place.refused("allocate plan --groups g.csv --budget 9 --out o.csv", &words);
    }
    fs::write(place.path("g.csv"), "name,a,b\nu,1,1\n").unwrap();
    place.refused("allocate plan --groups g.csv --budget -3", &["budget", "-3"]);
    fs::write(place.path("r.csv"), "voter,item,rank\na,x,1\na,x,2\n").unwrap();
    place.refused("shortlist -r r.csv -k 1", &["row 2 (line 3), column `item`", "row 1"]);
    fs::write(
        place.path("p.csv"),
        (0..3000).fold("g,y,p\n".to_owned(), |mut text, i| {
            writeln!(text, "g{},{},{}", i % 2, f64::from(i) / 7., i).unwrap();
            text
        }),
    )
    .unwrap();
    let line = "audit fairness p.csv --sensitive g --label y --pred p";
    // Each seventh label is a whole number, and a prediction too.
    place.refused(line, &["p.csv, column `y`", "5571 different values"]);
}

/// Keys that a section of the documentation names at the top of an object: must, may.
fn documented(text: &str, verb: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let section = text.split("\n## ").find(|s| s.starts_with(&format!("{verb}\n"))).unwrap();
    let (mut must, mut may) = (BTreeSet::new(), BTreeSet::new());
    let items = section.split("\n- ").skip(1).map(|i| i.split("\n\n").next().unwrap());
    for item in items {
        // What stands in parentheses or below is about what is inside.
        let mut depth = 0;
        let top = item.split("\n  - ").next().unwrap().split(": `").next().unwrap();
        let top: String = top
            .chars()
            .filter(|c| {
                depth += i32::from(*c == '(');
                let kept = depth == 0;
                depth -= i32::from(*c == ')');
                kept
            })
            .collect();
        let mut parts = top.split('`').skip(1);
        while let (Some(key), after) = (parts.next(), parts.next()) {
            let list = if after.is_some_and(|a| a.starts_with('?')) { &mut may } else { &mut must };
            list.insert(key.to_owned());
        }
    }
    (must, may)
}

#[test]
fn the_documented_json_is_true() {
    let place = Place::new();
    let text =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/json.md")).unwrap();
    for (name, (_, table)) in ["l", "p", "c", "f", "a"].iter().zip(LINES) {
        fs::write(place.path(&format!("{name}.csv")), table).unwrap();
    }
    fs::write(place.path("g.csv"), "name,cost\nu,1\nv,1\n").unwrap();
    fs::write(place.path("r.jsonl"), "[0,1,2]\n[2,1,0]\n").unwrap();
    let columns = "--sensitive g --client c --label y --pred p";
    let cases = [
        ("locate", "locate --input l.csv --column x".to_owned()),
        ("locate compare", "locate compare --input l.csv --column x --group g".into()),
        ("shortlist", "shortlist -r r.jsonl -k 1".into()),
        ("shortlist smoothness", "shortlist smoothness --iterations 5".into()),
        ("shortlist simulate", "shortlist simulate -m 6 -k 2 --sizes 3 --repetitions 2".into()),
        ("allocate plan", "allocate plan --groups p.csv --budget 100".into()),
        ("allocate fit", "allocate fit --curve c.csv".into()),
        ("allocate next", "allocate next --state s --groups g.csv --budget 500".into()),
        (
            "allocate simulate",
            "allocate simulate prs --variants 40 --budget 200 --warm-up 20 --seeds 1 --strategy equal".into(),
        ),
        ("fair-stream fit", "fair-stream fit --input f.csv --target y --sensitive g".into()),
        ("fair-stream sweep", "fair-stream sweep --input f.csv --target y --sensitive g".into()),
        ("audit fairness", format!("audit fairness a.csv {columns} --bootstrap 5")),
        ("audit limits", format!("audit limits a.csv {columns} --eps-grid 0:0.1:2")),
        ("audit counts", "audit counts a.csv --sensitive g --label y --pred p --out o.json".into()),
    ];
    for (verb, line) in cases {
        let found = place.json(&line);
        let object = found.as_array().map_or(&found, |list| &list[0]);
        let keys: BTreeSet<String> = object.as_object().unwrap().keys().cloned().collect();
        let (must, may) = documented(&text, verb);
        let missing: Vec<_> = must.difference(&keys).collect();
        let known: BTreeSet<String> = must.union(&may).cloned().collect();
        let new: Vec<_> = keys.difference(&known).collect();
        assert!(missing.is_empty() && new.is_empty(), "{verb}: without {missing:?}, new {new:?}");
    }
    // The objects inside.
    let found = place.json("locate --input l.csv --column x --group g");
    let section = text.split("\n## ").find(|s| s.starts_with("locate\n")).unwrap();
    for (key, value) in found["points"][0].as_object().unwrap() {
        assert!(section.contains(&format!("`{key}`")), "{key}");
        let object = value.as_array().and_then(|l| l.first()).unwrap_or(value);
        for key in object.as_object().into_iter().flat_map(|o| o.keys()) {
            assert!(section.contains(&format!("`{key}`")), "{key}");
        }
    }
}
