//! `allocate`: plans, fits, stepwise use with a saved state, simulations, and what is refused.

use crate::Place;

const GROUPS: &str = "name,cost,owned,weight,a,b,e\nx,1,0,1,1,1,0\ny,1,0,1,4,1,0\nz,2,0,1,9,1,0\n";

#[test]
fn a_plan_is_written_and_shown() {
    let place = Place::new();
    std::fs::write(place.path("g.csv"), GROUPS).unwrap();
    let json = place.json("allocate plan --groups g.csv --budget 600 --out p.csv --html p.html");
    let samples: Vec<u64> =
        json["groups"].as_array().unwrap().iter().map(|g| g["samples"].as_u64().unwrap()).collect();
    assert_eq!(samples, [83, 165, 176]);
    let saved = std::fs::read_to_string(place.path("p.csv")).unwrap();
    assert!(saved.starts_with("group,samples,exact,loss") && saved.contains("\nz,176,"), "{saved}");
    assert!(std::fs::read_to_string(place.path("p.html")).unwrap().contains("<svg"));
    for utility in ["maxmin", "ces:-1", "gap:0.5"] {
        let line = format!("allocate plan --groups g.csv --budget 600 --utility {utility}");
        assert_eq!(place.json(&line)["utility"], utility);
    }
    assert!(place.ok("allocate plan --groups g.csv --budget 600").out.contains("shadow price"));
}

#[test]
fn curves_are_fitted_and_feed_a_plan() {
    let place = Place::new();
    let mut text = "group,n,loss\n".to_owned();
    for (group, a) in [("u", 2f64), ("v", 5.)] {
        for n in [50f64, 100., 200., 400., 800.] {
            text += &format!("{group},{n},{}\n", 0.1 + a * n.powf(-0.6));
        }
    }
    std::fs::write(place.path("c.csv"), text).unwrap();
    let json = place.json("allocate fit --curve c.csv --out g.csv");
    assert!((json[1]["a"].as_f64().unwrap() - 5.).abs() < 1e-3, "{json}");
    let plan = place.json("allocate plan --groups g.csv --budget 500");
    assert!(plan["groups"][1]["samples"].as_u64() > plan["groups"][0]["samples"].as_u64());
}

#[test]
fn a_state_carries_the_collection_from_step_to_step() {
    let place = Place::new();
    std::fs::write(place.path("g.csv"), "name\nu\nv\n").unwrap();
    let begin = "allocate next --state s.json --groups g.csv --budget 120 --warm-up 20 --batch 20";
    let mut step = place.json(begin);
    let mut counts = [0u64; 2];
    for _ in 0..20 {
        let Some(name) = step["next"]["name"].as_str() else { break };
        let size = step["next"]["size"].as_u64().unwrap();
        let g = usize::from(name == "v");
        counts[g] += size;
        // The second group varies three times as much.
        let spread = if g == 1 { 3. } else { 1. };
        let value = |i: u64| spread * if i.is_multiple_of(2) { 1. } else { -1. };
        let rows: String = (0..size).map(|i| format!("{name},{}\n", value(i))).collect();
        std::fs::write(place.path("o.csv"), format!("group,value\n{rows}")).unwrap();
        step = place.json("allocate next --state s.json --observed o.csv");
    }
    assert!(step["next"].is_null(), "{step}");
    assert_eq!(counts, [40, 80]);
    assert_eq!(step["collected"]["v"].as_u64(), Some(80));
}

#[test]
fn strategies_are_compared() {
    let place = Place::new();
    let json = place.json(
        "allocate simulate prs --variants 40 --budget 300 --warm-up 30 --seeds 1 \
         --strategy adaptive,equal,proportional,oracle",
    );
    let names: Vec<&str> =
        json.as_array().unwrap().iter().map(|o| o["strategy"].as_str().unwrap()).collect();
    assert_eq!(names, ["adaptive", "equal", "proportional", "oracle"]);
    place.refused("allocate simulate adult", &["--data", "file"]);
    place.refused("allocate simulate adult --data none.data", &["none.data", "not there"]);
}

#[test]
fn bad_input_is_refused_without_output() {
    let place = Place::new();
    let plan = "allocate plan --groups g.csv --budget 600 --out p.csv";
    place.refused(plan, &["g.csv"]);
    for (text, words) in [
        ("name,a\nx,1\n", ["`b`", "missing"]),
        ("name,a,b\nx,NaN,1\n", ["row 1 (line 2)", "`a`"]),
        ("name,a,b\nx,1,1\nx,1,1\n", ["row 2 (line 3)", "`x` stands in row 1"]),
        ("name,a,b,cost\nx,1,1,0\n", ["column `cost`", "above 0"]),
        ("name,a,b,owned\nx,1,1,900\n", ["budget", "900"]),
    ] {
        std::fs::write(place.path("g.csv"), text).unwrap();
        place.refused(plan, &words);
    }
    std::fs::write(place.path("g.csv"), GROUPS).unwrap();
    place.refused(&format!("{plan} --utility ces:2"), &["ces:2"]);
    assert!(!place.path("p.csv").exists());
    std::fs::write(place.path("c.csv"), "group,n,loss\nu,10,0.5\nu,20,0.4\n").unwrap();
    place.refused("allocate fit --curve c.csv", &["c.csv", "group u", "3 or more"]);
    place.refused("allocate next --state s.json", &["s.json"]);
    std::fs::write(place.path("s.json"), "{\"format\": 1}").unwrap();
    place.refused("allocate next --state s.json", &["s.json", "no state"]);
    let begin = "allocate next --state n.json --groups g.csv --budget 10";
    place.refused(begin, &["budget", "warm-up"]);
    assert!(!place.path("n.json").exists());
    place.ok("allocate next --state n.json --groups g.csv --budget 900");
    std::fs::write(place.path("o.csv"), "group,value\nw,1\n").unwrap();
    place.refused(
        "allocate next --state n.json --observed o.csv",
        &["o.csv", "row 1", "`group`", "w"],
    );
}

#[test]
fn the_smoke_recipe_runs() {
    let place = Place::new();
    let json = place.json("run adaptive-sampling --recipe smoke");
    assert_eq!(json["result"]["claims"].as_array().unwrap().len(), 7);
}
