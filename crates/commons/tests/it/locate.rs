//! `locate`: points, witnesses, misreports, and what is refused.

use std::fs;

use serde_json::Value;

use crate::Place;

const SEVEN: &str =
    "x,group,w\n0,a,1\n0,a,1\n0,a,1\n0,a,1\n0,a,1\n0,a,1\n0,a,1\n1,b,1\n1,b,1\n1,b,1\n";

fn place() -> Place {
    let place = Place::new();
    fs::write(place.path("p.csv"), SEVEN).unwrap();
    place
}

fn axiom<'a>(json: &'a Value, name: &str) -> &'a Value {
    let verdicts = json["points"][0]["fairness"].as_array().unwrap();
    verdicts.iter().find(|v| v["axiom"] == name).unwrap()
}

#[test]
fn the_json_has_its_schema() {
    let place = place();
    let json = place.json("locate --input p.csv --column x --group group");
    assert_eq!(json["mechanism"], "uniform-phantom");
    assert_eq!(json["agents"], 10);
    assert_eq!(json["range"], serde_json::json!([0., 1.]));
    assert_eq!(json["exact"], false);
    let point = &json["points"][0];
    assert_eq!(point["column"], "x");
    assert!((point["point"].as_f64().unwrap() - 0.3).abs() < 1e-12);
    for key in [
        "social_welfare",
        "total_cost",
        "best_welfare",
        "least_cost",
        "welfare_ratio",
        "cost_ratio",
    ] {
        assert!(point["welfare"][key].is_number(), "{key}");
    }
    for name in [
        "unanimity",
        "individual-fair-share",
        "proportionality",
        "unanimous-fair-share",
        "proportional-fairness",
    ] {
        assert_eq!(axiom(&json, name)["holds"], true, "{name}");
    }
    assert_eq!(point["groups"][1]["group"], "b");
    assert_eq!(point["groups"][1]["below_fair_share"], false);
    let m = &point["manipulation"];
    assert_eq!((&m["strategyproof"], &m["distinct"]), (&true.into(), &2.into()));
    assert_eq!(m["misreports"], serde_json::json!([]));
}

#[test]
fn fractions_are_exact_and_witnesses_are_named() {
    let place = place();
    let json = place.json("locate --input p.csv --column x --exact --mechanism constrained-median");
    assert_eq!((&json["exact"], &json["points"][0]["fraction"]), (&true.into(), &"1/10".into()));
    assert_eq!(axiom(&json, "individual-fair-share")["holds"], true);
    let witness = &axiom(&json, "unanimous-fair-share")["witness"];
    assert_eq!(witness["rows"], serde_json::json!([8, 9, 10]));
    assert!((witness["distance"].as_f64().unwrap() - 0.9).abs() < 1e-12);
    assert!((witness["allowed"].as_f64().unwrap() - 0.7).abs() < 1e-12);
    let shown = place.ok("locate --input p.csv --column x --mechanism median").out;
    assert!(shown.contains("3 agents (rows 8, 9, 10)"), "{shown}");
}

#[test]
fn weights_ranges_and_several_columns() {
    let place = Place::new();
    fs::write(place.path("w.csv"), "hours,days,votes\n0,1,2\n60,3,1\n").unwrap();
    let json = place.json("locate --input w.csv --column hours --range 0 60 --weight votes");
    assert!((json["points"][0]["point"].as_f64().unwrap() - 20.).abs() < 1e-9, "{json}");
    let json = place.json("locate -i w.csv -c hours -c days --range 0 60 --report welfare");
    assert_eq!(json["points"].as_array().unwrap().len(), 2);
    assert!(json["points"][0].get("fairness").is_none(), "{json}");
}

#[test]
fn the_mean_is_manipulable_and_the_best_lie_is_shown() {
    let place = Place::new();
    fs::write(place.path("m.csv"), "x\n0.2\n0.4\n0.9\n").unwrap();
    let json = place.json("locate --input m.csv --column x --mechanism mean --report manipulation");
    let m = &json["points"][0]["manipulation"];
    assert_eq!(m["strategyproof"], false);
    assert!(m["misreports"][0]["gain"].as_f64().unwrap() > 0.05, "{m}");
    let shown = place.ok("locate --input m.csv --column x --mechanism mean").out;
    assert!(shown.contains("gain by a misreport"), "{shown}");
}

#[test]
fn mechanisms_stand_side_by_side() {
    let place = place();
    let rows = place.json("locate compare --input p.csv --column x --group group --exact");
    let row = |name: &str| {
        rows.as_array().unwrap().iter().find(|r| r["mechanism"] == name).unwrap().clone()
    };
    assert_eq!(row("uniform-phantom")["fraction"], "3/10");
    assert_eq!(row("nash")["proportional_fairness"], true);
    assert!(row("nash").get("fraction").is_none(), "Nash's point is not exact");
    assert_eq!(row("median")["groups_below_fair_share"], serde_json::json!(["b"]));
    assert_eq!(row("midpoint")["unanimous_fair_share"], false);
    assert!(row("random dictator")["point"].is_null());
    let shown =
        place.ok("locate compare --simulate n=40 dist=bimodal --mechanism phantoms:0.2,0.5");
    assert!(shown.out.contains("phantoms:0.2,0.5") && shown.out.contains("nash"), "{}", shown.out);
    let again =
        place.ok("locate compare --simulate n=40 dist=bimodal --mechanism phantoms:0.2,0.5");
    assert_eq!(shown.out, again.out);
}

#[test]
fn budgets_and_plots() {
    let place = Place::new();
    fs::write(place.path("b.csv"), "rent,food,books\n1,0,0\n0,1,0\n0,0.5,0.5\n").unwrap();
    let json = place.json("locate -i b.csv -c rent -c food -c books --simplex");
    let sum: f64 =
        ["rent", "food", "books"].iter().map(|c| json["shares"][c].as_f64().unwrap()).sum();
    assert!((sum - 1.).abs() < 1e-9, "{json}");
    place.ok("locate -i b.csv -c rent --plot line.svg");
    assert!(fs::read_to_string(place.path("line.svg")).unwrap().starts_with("<svg"));
}

#[test]
fn bad_input_is_refused_with_row_and_column() {
    let place = Place::new();
    let write = |text: &str| fs::write(place.path("p.csv"), text).unwrap();
    place.refused("locate", &["--input"]);
    place.refused("locate --input none.csv --column x", &["none.csv"]);
    write("x,w,g\n0.5,1,a\n0.2,1,a\n");
    place.refused("locate --input p.csv", &["--column", "is missing"]);
    place.refused("locate --input p.csv --column y", &["p.csv", "column `y`", "columns: x, w, g"]);
    place.refused("locate -i p.csv -c x --mechanism medain", &["medain", "uniform-phantom"]);
    place.refused("locate -i p.csv -c x --mechanism phantoms:0.5,0.2", &["phantoms", "sort"]);
    place.refused("locate -i p.csv -c x --range 1 0", &["--range", "1 is not below 0"]);
    place.refused("locate -i p.csv -c x --set a=1", &["`locate` has no settings"]);
    place.refused("locate -i p.csv -c x --simplex", &["--simplex", "two columns"]);
    place.refused("locate --simulate n=0", &["--simulate n=0", "dist=bimodal"]);
    write("x\n0.5\n1.5\n");
    place.refused("locate -i p.csv -c x", &["row 2 (line 3), column `x`", "1.5 is not in 0 to 1"]);
    place.refused("locate -i p.csv -c x --exact", &["row 2", "3/2 is not in 0 to 1", "--range"]);
    write("x\n0.5\nNaN\n");
    place.refused("locate -i p.csv -c x", &["row 2", "column `x`", "not finite"]);
    place.refused("locate -i p.csv -c x --exact", &["row 2", "`NaN` is not a number"]);
    write("x,w\n0.5,1\n0.6,0\n");
    place.refused("locate -i p.csv -c x -w w", &["row 2", "column `w`", "0 is not above 0"]);
    write("x,g\n0.5,a\n0.6,\n");
    place.refused("locate -i p.csv -c x -g g --plot l.svg", &["row 2", "column `g`", "is empty"]);
    assert!(!place.path("l.svg").exists());
    write("x\n");
    place.refused("locate -i p.csv -c x", &["p.csv", "holds no rows"]);
}
