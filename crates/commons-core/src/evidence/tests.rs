use super::{run::RunOptions, *};
use crate::{
    Error, Result, Seed, Stop, cells,
    report::Plot,
    table::{Table, Unit},
};
use schemars::JsonSchema;
use serde::Deserialize;
use std::{
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

struct Toy;

#[derive(Serialize, Deserialize, JsonSchema)]
struct Config {
    repeats: u64,
    steps: u64,
    skip_baseline: bool,
    excuse: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { repeats: 3, steps: 20, skip_baseline: false, excuse: false }
    }
}

impl Experiment for Toy {
    const PAPER: Paper = Paper {
        slug: "toy",
        title: "Toys & <Their> Uses",
        year: 2025,
        shares: "nothing",
        link: "https://example.org",
    };
    const CLAIMS: &'static [Claim] = &[
        Claim::new("small", "it stays small", Figure::text("half"), "size", Bound::AtMost(0.5))
            .against("size_full", Compare::Ratio),
        Claim::new("good", "it gets better", Figure::Number(-12.0), "loss", Bound::AtMost(-10.0))
            .against("loss_before", Compare::Difference),
        Claim::new(
            "fast",
            "it is fast",
            Figure::text("fast"),
            "speed",
            Bound::Within { low: 1.0, high: 2.0 },
        ),
    ];
    const RECIPES: &'static [Recipe] = &[Recipe::smoke("steps = 5"), Recipe::full("repeats = 5")];
    type Config = Config;

    fn run(&self, config: &Config, run: &mut Run) -> Result<()> {
        std::fs::write(run.checkpoints()?.join("step-1"), "weights").unwrap();
        for repeat in 0..config.repeats {
            let mut rng = run.seed().fork("repeat", repeat).rng();
            for step in 0..config.steps {
                run.check_stop()?;
                run.log(step, "ours/loss", 5.0 / (step + 1) as f64 + 0.01 * rng.uniform())?;
            }
            run.measure("size", 40.0 + rng.uniform());
            run.measure("loss", 1.0 + rng.uniform());
            run.measure("speed", 1.5 + 0.1 * rng.uniform());
        }
        if !config.skip_baseline {
            run.measure("size_full", 100.0);
            run.measure("loss_before", 2.0);
        }
        if config.excuse {
            run.not_comparable("small", "the toy is a toy")?;
        }
        let mut table = Table::new("Sizes").column("part", Unit::Plain).column("size", Unit::Bytes);
        table.push(cells!["all", 2048_u64]);
        run.table(table);
        run.note("nothing to add");
        run.plot(Plot::new("Extra").line("a", [(0.0, 1.0), (1.0, 2.0)]));
        Ok(())
    }
}

fn options(root: &Path) -> RunOptions {
    let mut options = RunOptions::new(root, UNIX_EPOCH + Duration::from_secs(1_795_453_449));
    options.seed = Seed::new(11);
    options
}

fn run(root: &Path, sets: &[&str]) -> Result<RunResult> {
    let source = ConfigSource {
        recipe: Some("smoke".into()),
        sets: sets.iter().map(ToString::to_string).collect(),
        ..ConfigSource::default()
    };
    let method: &dyn Method = &Toy;
    method.run(&source, options(root))
}

#[test]
fn a_run_leaves_a_whole_folder() {
    let root = tempfile::tempdir().unwrap();
    let result = run(root.path(), &[]).unwrap();
    let verdicts: Vec<Verdict> = result.claims.iter().map(|claim| claim.verdict).collect();
    assert_eq!(verdicts, [Verdict::Holds, Verdict::Fails, Verdict::Holds]);
    assert_eq!(result.failed().map(|claim| claim.id.as_str()).collect::<Vec<_>>(), ["good"]);
    let small = &result.claims[0];
    assert!(small.settled && small.interval.unwrap().contains(small.compared.unwrap()));
    assert_eq!(small.repeats, 3);
    assert!((small.compared.unwrap() - small.measured.unwrap() / 100.0).abs() < 1e-12);
    assert_eq!(result.date.to_string(), "2026-11-23T17:04:09Z");
    assert_eq!(result.seed, Seed::new(11));
    assert!(result.machine.cores > 0);

    let folder = root.path().join("toy/20261123T170409Z");
    assert_eq!(RunResult::load(folder.join("result.json")).unwrap(), result);
    let config = std::fs::read_to_string(folder.join("config.toml")).unwrap();
    assert_eq!(config, result.config);
    assert!(config.contains("steps = 5"), "{config}");
    let log = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    assert_eq!(log.lines().count(), 15);
    let line: serde_json::Value = serde_json::from_str(log.lines().nth(4).unwrap()).unwrap();
    assert_eq!((line["step"].as_u64(), line["key"].as_str()), (Some(4), Some("ours/loss")));
    let html = std::fs::read_to_string(folder.join("report.html")).unwrap();
    assert!(html.contains("Toys &amp; &lt;Their&gt; Uses") && !html.contains("<Their>"));
    assert!(folder.join("events.out.tfevents.1795453449.commons").exists());
    assert!(!folder.join("checkpoints").exists());

    // A second run within the same second gets its own folder, and the same numbers.
    let again = run(root.path(), &[]).unwrap();
    assert!(root.path().join("toy/20261123T170409Z-2/result.json").exists());
    assert_eq!(again.measures, result.measures);
    let text = result.claim_table().to_text();
    assert!(text.contains("≤ 0.5 × baseline") && text.contains("fails"), "{text}");
}

#[test]
fn claims_without_evidence_are_errors() {
    let root = tempfile::tempdir().unwrap();
    let error = run(root.path(), &["skip_baseline=true"]).unwrap_err();
    assert!(matches!(&error, Error::NoEvidence { .. }));
    let text = error.to_string();
    assert!(text.contains("small (its baseline `size_full` was not measured)"), "{text}");
    assert!(text.contains("good (") && !text.contains("fast"), "{text}");
    assert!(!root.path().join("toy/20261123T170409Z/result.json").exists());
    let error = run(root.path(), &["repeats=0"]).unwrap_err().to_string();
    assert!(error.contains("fast (`speed` was not measured)"), "{error}");
}

#[test]
fn excuses_need_a_reason_and_a_claim() {
    let root = tempfile::tempdir().unwrap();
    let result = run(root.path(), &["excuse=true", "repeats=1"]).unwrap();
    assert_eq!(result.claims[0].verdict, Verdict::NotComparable);
    assert_eq!(result.claims[0].reason.as_deref(), Some("the toy is a toy"));
    assert!(result.claims[0].compared.is_some() && result.claims[0].interval.is_none());
    let mut run = Run::create(Toy::PAPER, Toy::CLAIMS, None, "", options(root.path())).unwrap();
    assert!(run.not_comparable("other", "why").is_err());
    assert!(run.not_comparable("small", "  ").is_err());
}

#[test]
fn stopping_ends_a_run_without_a_result() {
    let root = tempfile::tempdir().unwrap();
    let mut options = options(root.path());
    options.stop = Stop::new();
    options.stop.request();
    let error = Method::run(&Toy, &ConfigSource::default(), options).unwrap_err();
    assert!(matches!(error, Error::Interrupted));
    let folder = root.path().join("toy/20261123T170409Z");
    assert!(!folder.join("result.json").exists() && folder.join("checkpoints/step-1").exists());
}

#[test]
fn methods_describe_themselves() {
    let method: &dyn Method = &Toy;
    assert_eq!(method.schema()["properties"]["steps"]["type"], "integer");
    let source = ConfigSource { recipe: Some("fast".into()), ..ConfigSource::default() };
    let error = method.configure(&source).unwrap_err().to_string();
    assert_eq!(error, "recipe: toy has no recipe \"fast\"; it has: smoke, full");
    assert!(method.configure(&ConfigSource::default()).unwrap().contains("repeats = 3"));
}

#[test]
fn bad_results_are_refused_with_the_field() {
    let root = tempfile::tempdir().unwrap();
    run(root.path(), &[]).unwrap();
    let path = root.path().join("toy/20261123T170409Z/result.json");
    let good: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let refused = |pointer: &str, value: serde_json::Value| {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).unwrap() = value;
        std::fs::write(&path, bad.to_string()).unwrap();
        RunResult::load(&path).unwrap_err().to_string()
    };
    for (pointer, value, message) in [
        ("/claims/1/verdict", "holds".into(), "claims[1].verdict: is \"holds\", which the numbers"),
        ("/claims/0/compared", "NaN".into(), "claims[0].verdict: is \"holds\", which the numbers"),
        ("/claims/0/verdict", "perhaps".into(), "claims[0].verdict: unknown variant `perhaps`"),
        (
            "/claims/0/verdict",
            "not-comparable".into(),
            "claims[0].verdict: is not-comparable without a reason",
        ),
        ("/claims/1/id", "small".into(), "claims[1].id: repeats \"small\""),
        ("/claims/0/interval/high", (-1.0).into(), "claims[0].interval: goes from"),
        ("/measures/loss/values", serde_json::json!([]), "measures.loss.summary.n: speaks of 3"),
        ("/measures/loss/values/0", "many".into(), "measures.loss.values[0]: "),
        ("/format", 99.into(), "format: is 99, but this program reads 1"),
        ("/date", "yesterday".into(), "date: \"yesterday\" is not a date"),
        ("/seed", "x".into(), "seed: invalid value"),
        ("/wall_seconds", (-1.0).into(), "wall_seconds: is -1"),
    ] {
        let error = refused(pointer, value);
        assert!(error.contains(message), "{pointer}: {error}");
        assert!(error.contains("result.json") && error.contains("run the recipe again"), "{error}");
    }
    for text in ["", "{", "[]", "null", "{}", "\u{0}", &"[".repeat(100_000)] {
        std::fs::write(&path, text).unwrap();
        assert!(matches!(RunResult::load(&path), Err(Error::File { .. })), "{text:.20}");
    }
    std::fs::write(&path, good.to_string() + "x").unwrap();
    assert!(RunResult::load(&path).is_err());
    std::fs::write(&path, vec![b' '; 17 << 20]).unwrap();
    assert!(RunResult::load(&path).unwrap_err().to_string().contains("longer"));
}

#[test]
fn bounds_admit_and_settle() {
    let interval = |low, high| crate::stats::Interval { low, high, level: 0.95 };
    assert!(Bound::AtLeast(1.0).admits(1.0) && !Bound::AtLeast(1.0).admits(f64::NAN));
    assert!(
        Bound::AtMost(1.0).settles(interval(0.0, 1.0))
            && Bound::AtMost(1.0).settles(interval(1.1, 2.0))
    );
    assert!(!Bound::AtMost(1.0).settles(interval(0.9, 1.1)));
    let within = Bound::Within { low: 0.0, high: 1.0 };
    assert!(within.settles(interval(0.2, 0.8)) && within.settles(interval(2.0, 3.0)));
    assert!(!within.settles(interval(-1.0, 2.0)) && !within.settles(interval(0.5, 1.5)));
    assert_eq!(within.requirement(Compare::Value), "0 to 1");
    assert_eq!(Bound::AtLeast(-2.0).requirement(Compare::Difference), "≥ baseline − 2");
}

proptest::proptest! {
    /// Whatever is cut out of, or put into, a result, the reader answers without a panic, and what
    /// it accepts contradicts itself in no claim.
    #[test]
    fn mangled_results_never_panic(at in 0_usize..4000, cut in 0_usize..40, put in "[\\[\\]{}\",:0-9a-z.-]{0,6}") {
        let claim = ClaimResult::judge(
            &Toy::CLAIMS[2],
            &[("speed".to_owned(), vec![1.5, 1.6])].into(),
            None,
        ).unwrap();
        let record = result::Record {
            paper: Toy::PAPER,
            recipe: None,
            date: Stamp::from(UNIX_EPOCH),
            seed: Seed::new(1),
            wall_seconds: 1.0,
            measures: [("speed".to_owned(), vec![1.5, 1.6])].into(),
            tables: Vec::new(),
            notes: Vec::new(),
            config: String::new(),
        };
        let text = serde_json::to_string(&RunResult::new(record, vec![claim]).unwrap()).unwrap();
        let from = text.floor_char_boundary(at % text.len());
        let to = text.ceil_char_boundary((from + cut).min(text.len()));
        let mangled = format!("{}{put}{}", &text[..from], &text[to..]);
        if let Ok(result) = RunResult::parse(&mangled) {
            for claim in &result.claims {
                let admitted = claim.compared.is_some_and(|value| claim.bound.admits(value));
                proptest::prop_assert!(claim.verdict != Verdict::Holds || admitted);
            }
        }
    }
}
