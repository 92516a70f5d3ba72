//! `audit`: metrics, decomposition, limits and tables of counts through the binary.

use commons_core::Seed;

use crate::Place;

/// Predictions of two sites: half as many positives for one sex at both.
fn rows(place: &Place, name: &str, site: &str, count: usize) {
    let mut rng = Seed::new(count as u64).rng();
    let mut text = "sex,race,site,y,yhat\n".to_owned();
    for _ in 0..count {
        let (sex, race) = (*rng.choose(&["f", "m"]).unwrap(), *rng.choose(&["u", "v"]).unwrap());
        let y = rng.chance(if sex == "m" { 0.6 } else { 0.3 });
        let p = if rng.chance(0.85) { y } else { !y };
        text += &format!("{sex},{race},{site},{},{}\n", u8::from(y), u8::from(p));
    }
    std::fs::write(place.path(name), text).unwrap();
}

const COLUMNS: &str = "--sensitive sex --label y --pred yhat";

#[test]
fn a_file_is_audited_with_intervals_and_pages() {
    let place = Place::new();
    rows(&place, "p.csv", "a", 600);
    let line = "audit fairness p.csv --sensitive sex,race --client site --label y --pred yhat \
                --bootstrap 50 --out r.json --html r.html";
    let json = place.json(line);
    assert_eq!((json["schema"].as_u64(), json["rows"].as_u64()), (Some(1), Some(600)));
    assert_eq!(json["groupings"].as_array().unwrap().len(), 3);
    let dp = &json["groupings"][0]["disparities"]["demographic_parity_difference"];
    assert!(dp["value"].as_f64().unwrap() > 0.1 && dp["low"].as_f64() < dp["high"].as_f64());
    let saved: serde_json::Value =
        serde_json::from_slice(&crate::bytes(place.path("r.json"))).unwrap();
    assert_eq!(saved, json);
    assert!(std::fs::read_to_string(place.path("r.html")).unwrap().contains("<svg"));
    let shown = place.ok(&line.replace("--out r.json --html r.html", "")).out;
    assert!(shown.contains("demographic_parity_difference") && shown.contains("Unique"), "{shown}");
    // Equal seeds, equal bytes; another seed moves the intervals and not the numbers.
    let other = place.json(&format!("{line} --seed 5"));
    let other = &other["groupings"][0]["disparities"]["demographic_parity_difference"];
    assert!(other["value"] == dp["value"] && other["low"] != dp["low"]);
}

#[test]
fn tables_of_counts_stand_for_the_rows() {
    let place = Place::new();
    rows(&place, "a.csv", "a", 300);
    rows(&place, "b.csv", "b", 200);
    for site in ["a", "b"] {
        place.ok(&format!("audit counts {site}.csv --name {site} {COLUMNS} --out {site}.json"));
    }
    let from_counts = place.json("audit fairness a.json b.json");
    let from_rows = place.json(&format!("audit fairness a.csv b.csv {COLUMNS}"));
    assert_eq!(from_counts, from_rows);
    let text = std::fs::read_to_string(place.path("a.json")).unwrap();
    assert!(text.len() < 1000, "{text}");
    std::fs::write(place.path("cut.json"), &text[..text.len() / 2]).unwrap();
    place.refused("audit fairness cut.json b.json", &["cut.json", "no table of counts"]);
    std::fs::write(place.path("odd.json"), text.replacen("\"counts\": [", "\"counts\": [7,", 1))
        .unwrap();
    place.refused("audit fairness odd.json", &["odd.json", "counts", "audit counts"]);
}

#[test]
fn limits_rise_from_parity_to_perfection() {
    let place = Place::new();
    rows(&place, "p.csv", "a", 400);
    let line = format!("audit limits p.csv {COLUMNS} --eps-grid 0:0.2:4 --out s.csv --html s.html");
    let json = place.json(&line);
    let limits = json["limits"].as_array().unwrap();
    assert_eq!(limits.len(), 16);
    let accuracy = |i: usize| limits[i]["accuracy"].as_f64().unwrap();
    assert!(accuracy(0) < accuracy(15) && accuracy(15) <= 1.);
    assert_eq!(std::fs::read_to_string(place.path("s.csv")).unwrap().lines().count(), 17);
    assert!(place.path("s.html").exists());
    let after = place.json(&format!("{line} --post-process"));
    assert!(after["limits"][15]["accuracy"].as_f64().unwrap() <= accuracy(15) + 1e-6);
}

#[test]
fn bad_input_is_refused_without_output() {
    let place = Place::new();
    rows(&place, "p.csv", "a", 50);
    let out = "--out r.json";
    place.refused(&format!("audit fairness none.csv {COLUMNS} {out}"), &["none.csv"]);
    place.refused(
        &format!("audit fairness p.csv --sensitive sx --label y --pred yhat {out}"),
        &["p.csv", "`sx`", "columns: sex"],
    );
    place.refused(&format!("audit fairness p.csv --label y --pred yhat {out}"), &["--sensitive"]);
    place
        .refused(&format!("audit fairness p.csv {COLUMNS} --positive yes {out}"), &["yes", "0, 1"]);
    place.refused(&format!("audit fairness p.csv {COLUMNS} --level 2 {out}"), &["level", "2"]);
    place.refused(
        &format!("audit fairness p.csv --sensitive sex --label y --pred y {out}"),
        &["y", "two roles"],
    );
    place
        .refused(&format!("audit limits p.csv {COLUMNS} --eps-grid 0:1"), &["--eps-grid", "three"]);
    place.refused(&format!("audit fairness p.csv {COLUMNS} --set a=1"), &["audit"]);
    std::fs::write(place.path("hole.csv"), "sex,y,yhat\nf,1,1\nm,,0\n").unwrap();
    place.refused(
        &format!("audit fairness hole.csv {COLUMNS} {out}"),
        &["hole.csv", "row 2 (line 3)", "`y`", "empty"],
    );
    assert!(!place.path("r.json").exists());
}

#[test]
fn the_smoke_recipe_runs() {
    let place = Place::new();
    let json = place.json("run pid-fairness --recipe smoke");
    assert_eq!(json["result"]["claims"].as_array().unwrap().len(), 6);
}
