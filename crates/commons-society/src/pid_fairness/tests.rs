//! Golden values, identities of the decomposition, equality with linear programmes at ε = 0,
//! metrics by hand, and what is refused.

use commons_core::Seed;
use proptest::prelude::*;

use super::bootstrap::{binomial, resample};
use super::*;
use crate::csv_input::CsvTable;

/// Joints in the order z, s, y as written in the table of golden values.
fn zsy(p: &[f64; 8]) -> Joint {
    let mut weights = [0.; 8];
    for (i, &w) in p.iter().enumerate() {
        let (z, s, y) = (i >> 2, i >> 1 & 1, i & 1);
        weights[(z * 2 + y) * 2 + s] = w;
    }
    Joint::from_weights(2, 2, 2, &weights).unwrap()
}

#[test]
fn decompositions_are_golden() {
    let golden: Vec<([f64; 8], [f64; 5])> =
        serde_json::from_str(include_str!("golden.json")).unwrap();
    assert_eq!(golden.len(), 8);
    for (p, wanted) in golden {
        let pid = pid_broja(&zsy(&p)).unwrap();
        let got = [pid.unique, pid.redundant, pid.masked, pid.global, pid.local];
        for (got, wanted) in got.iter().zip(wanted) {
            assert!((got - wanted).abs() < 1e-6, "{p:?}: {pid:?} against {wanted}");
        }
        assert!(pid.gap <= 1e-9, "{pid:?}");
    }
}

fn labels() -> Behaviour {
    let p = [0.20, 0.10, 0.15, 0.05, 0.05, 0.15, 0.10, 0.20];
    Behaviour::from_labels(2, 2, 2, &p).unwrap()
}

#[test]
fn limits_are_golden() {
    const NO: f64 = f64::INFINITY;
    let behaviour = labels();
    let free = behaviour.limit(NO, NO).unwrap();
    assert!((free.accuracy - 1.).abs() < 1e-7);
    assert!((free.global - 0.118709).abs() < 1e-5 && (free.local - 0.124511).abs() < 1e-5);
    for (g, l, wanted, tolerance) in [
        (0., 0., 0.8, 1e-7),
        (0., NO, 0.8, 1e-7),
        (NO, 0., 5. / 6., 1e-7),
        (0.02, 0.02, 0.88306, 1e-5),
        (0.05, 0.05, 0.93087, 1e-5),
        (0.01, NO, 0.85880, 1e-5),
        (NO, 0.01, 0.88011, 1e-5),
    ] {
        let limit = behaviour.limit(g, l).unwrap();
        assert!((limit.accuracy - wanted).abs() < tolerance, "{g}, {l}: {limit:?}");
        assert!(limit.global <= g.max(1e-8) && limit.local <= l.max(1e-8), "{limit:?}");
    }
    assert!((behaviour.limit(NO, 0.).unwrap().global - 0.003211).abs() < 1e-5);
    assert!(behaviour.limit(-1., 0.).is_err() && behaviour.limit(f64::NAN, 0.).is_err());
}

#[test]
fn surfaces_rise_with_both_bounds() {
    let grid: Vec<f64> = (0..6).map(|i| 0.02 * f64::from(i)).collect();
    let surface = labels().surface(&grid, &grid).unwrap();
    for i in 0..6 {
        for j in 0..6 {
            let at = |i: usize, j: usize| surface[i * 6 + j].accuracy;
            assert!(i == 0 || at(i, j) >= at(i - 1, j) - 1e-6);
            assert!(j == 0 || at(i, j) >= at(i, j - 1) - 1e-6);
        }
    }
}

#[test]
fn one_client_has_only_unique_disparity() {
    let joint = Joint::from_weights(2, 2, 1, &[0.3, 0.2, 0.1, 0.4]).unwrap();
    let pid = pid_broja(&joint).unwrap();
    assert!(pid.redundant == 0. && pid.masked.abs() < 1e-15 && pid.unique == pid.global);
}

/// What the decomposition is, tried against feasible points at random.
fn unique_is_least(joint: &Joint, pid: &Pid, seed: u64) {
    let mut rng = Seed::new(seed).rng();
    for _ in 0..20 {
        let mut p = joint.p.clone();
        for _ in 0..30 {
            let z = rng.below(joint.nz as u64) as usize;
            let two = |n: usize, rng: &mut commons_core::Rng| {
                let picked = rng.sample(n, 2);
                (picked[0], picked[1])
            };
            let ((a, b), (c, d)) = (two(joint.ny, &mut rng), two(joint.ns, &mut rng));
            let at = |y: usize, s: usize| (z * joint.ny + y) * joint.ns + s;
            let most = p[at(a, c)].min(p[at(b, d)]) * rng.uniform();
            p[at(a, c)] -= most;
            p[at(b, d)] -= most;
            p[at(a, d)] += most;
            p[at(b, c)] += most;
        }
        let moved = Joint::from_weights(joint.nz, joint.ny, joint.ns, &p).unwrap();
        assert!(moved.local() >= pid.unique - 1e-9, "{} below {}", moved.local(), pid.unique);
    }
}

proptest! {
    #[test]
    fn terms_are_a_decomposition(
        (nz, ny, ns) in (2usize..4, 2usize..4, 2usize..5),
        raw in proptest::collection::vec(prop_oneof![3 => 0f64..1., 1 => Just(0.), 1 => 0f64..1e-6], 36),
        seed in 0u64..1000,
    ) {
        let weights = &raw[..(nz * ny * ns).min(raw.len())];
        prop_assume!(weights.len() == nz * ny * ns && weights.iter().sum::<f64>() > 0.);
        let joint = Joint::from_weights(nz, ny, ns, weights).unwrap();
        let pid = pid_broja(&joint).unwrap();
        prop_assert!(pid.gap <= 1e-9);
        for term in [pid.unique, pid.redundant, pid.masked, pid.client_only] {
            prop_assert!(term >= -1e-12, "{:?}", pid);
        }
        prop_assert!((pid.unique + pid.redundant - pid.global).abs() < 1e-9);
        prop_assert!((pid.unique + pid.masked - pid.local).abs() < 1e-9);
        prop_assert!(pid.redundant <= pid.global.min(pid.client) + 1e-9);
        let total = pid.unique + pid.redundant + pid.masked + pid.client_only;
        prop_assert!((total - joint.total()).abs() < 1e-8, "{} {:?}", joint.total(), pid);
        unique_is_least(&joint, &pid, seed);
        // Names mean nothing: turn every axis round.
        let turned: Vec<f64> = weights.iter().rev().copied().collect();
        let other = pid_broja(&Joint::from_weights(nz, ny, ns, &turned).unwrap()).unwrap();
        prop_assert!((other.unique - pid.unique).abs() < 2e-9);
    }

    #[test]
    fn accuracy_never_falls_with_a_bound(
        raw in proptest::collection::vec(0.01f64..1., 12), a in 0f64..0.2, b in 0f64..0.2,
    ) {
        let behaviour = Behaviour::from_labels(2, 3, 2, &raw).unwrap();
        let (low, high) = (a.min(b), a.max(b));
        let tight = behaviour.limit(low, low).unwrap();
        let loose = behaviour.limit(high, high).unwrap();
        prop_assert!(tight.accuracy <= loose.accuracy + 1e-6);
        prop_assert!(tight.global <= low.max(1e-8) && tight.local <= low.max(1e-8));
    }

    #[test]
    fn resamples_keep_the_total(counts in proptest::collection::vec(0u64..50, 1..20), seed in 0u64..99) {
        let drawn = resample(&counts, &mut Seed::new(seed).rng());
        prop_assert_eq!(drawn.iter().sum::<u64>(), counts.iter().sum::<u64>());
        prop_assert!(drawn.iter().zip(&counts).all(|(d, c)| *c > 0 || *d == 0));
    }
}

#[test]
fn binomials_have_their_moments() {
    for (n, p) in [(20, 0.3), (1000, 0.004), (1000, 0.4), (1_000_000, 0.75), (50, 0.9)] {
        let mut rng = Seed::new(5).fork("n", n).rng();
        let draws: Vec<f64> = (0..20_000).map(|_| binomial(n, p, &mut rng) as f64).collect();
        let (mean, variance) = (n as f64 * p, n as f64 * p * (1. - p));
        let error = (commons_core::stats::mean(&draws) - mean) / (variance / 20_000.).sqrt();
        assert!(error.abs() < 4., "{n} {p}: mean off by {error} standard errors");
        let ratio = commons_core::stats::variance(&draws) / variance;
        assert!((ratio - 1.).abs() < 0.06, "{n} {p}: variance ratio {ratio}");
    }
}

fn columns() -> Columns {
    Columns {
        sensitive: vec!["sex".into(), "race".into()],
        client: Some("site".into()),
        label: "y".into(),
        prediction: Some("p".into()),
    }
}

fn table() -> CsvTable {
    let mut rng = Seed::new(1).rng();
    let mut text = "sex,race,site,y,p\n".to_owned();
    for _ in 0..400 {
        let (sex, race) =
            (*rng.choose(&["f", "m"]).unwrap(), *rng.choose(&["u", "v", "w"]).unwrap());
        let y = rng.chance(if sex == "m" { 0.6 } else { 0.3 });
        let p = if rng.chance(0.8) { y } else { !y };
        text += &format!("{sex},{race},{},{},{}\n", rng.below(2), u8::from(y), u8::from(p));
    }
    CsvTable::parse("t.csv", &text).unwrap()
}

#[test]
fn an_audit_holds_every_number_with_its_interval() {
    let counts = Counts::from_table(&table(), &columns()).unwrap();
    assert_eq!((counts.groups.len(), counts.clients.len(), counts.total()), (6, 2, 400));
    let audit = audit(&counts, &AuditConfig::default(), Seed::new(3)).unwrap();
    let by: Vec<String> = audit.groupings.iter().map(|g| g.attributes.join("×")).collect();
    assert_eq!(by, ["sex", "race", "sex×race"]);
    let sex = &audit.groupings[0];
    let dp = sex.disparities["demographic_parity_difference"];
    let rates: Vec<f64> =
        sex.groups.iter().map(|g| g.metrics["selection_rate"].value.unwrap()).collect();
    assert!((dp.value.unwrap() - (rates[1] - rates[0]).abs()).abs() < 1e-15);
    assert!(dp.low.unwrap() < dp.value.unwrap() && dp.value.unwrap() < dp.high.unwrap());
    let terms = sex.information.as_ref().unwrap();
    assert!(terms.values().all(|e| e.value.is_some() && e.low <= e.high));
    assert!(!sex.sentences.is_empty());
    assert!(audit.warnings.iter().any(|w| w.contains("fewer than 30")), "{:?}", audit.warnings);
    let html = audit.to_html("0");
    assert!(html.contains("Fairness audit") && !html.contains("NaN"));
    // Equal seeds give equal reports, whatever the threads.
    let again = super::audit(&counts, &AuditConfig::default(), Seed::new(3)).unwrap();
    assert_eq!(again, audit);
}

/// The documented schema of the JSON report.
#[test]
fn the_report_has_its_documented_fields() {
    let counts = Counts::from_table(&table(), &columns()).unwrap();
    let config = AuditConfig { bootstrap: 0, ..AuditConfig::default() };
    let json = serde_json::to_value(audit(&counts, &config, Seed::new(0)).unwrap()).unwrap();
    let keys = |v: &serde_json::Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(
        keys(&json),
        ["schema", "rows", "positive", "level", "replicates", "overall", "groupings", "warnings"]
    );
    assert_eq!(
        keys(&json["groupings"][0]),
        ["attributes", "groups", "disparities", "information", "gap", "clients", "sentences"]
    );
    assert_eq!(keys(&json["overall"]["accuracy"]), ["value", "low", "high"]);
    assert!(json["overall"]["accuracy"]["low"].is_null());
    let mut names: Vec<&str> = RATES.to_vec();
    names.sort_unstable();
    assert_eq!(keys(&json["overall"]), names);
}

#[test]
fn tables_of_clients_add_up_to_the_whole() {
    let whole = Counts::from_table(&table(), &columns()).unwrap();
    let table = table();
    let (site, text) = (table.column("site").unwrap(), |row: usize| {
        (0..5).map(|c| table.cell(row, c)).collect::<Vec<_>>().join(",") + "\n"
    });
    let parts: Vec<Counts> = ["0", "1"]
        .iter()
        .map(|wanted| {
            let rows = (0..table.len()).filter(|&r| table.cell(r, site) == *wanted).map(text);
            let text = "sex,race,site,y,p\n".to_owned() + &rows.collect::<String>();
            Counts::from_table(&CsvTable::parse("part.csv", &text).unwrap(), &columns()).unwrap()
        })
        .collect();
    assert_eq!(Counts::merge(&parts).unwrap(), whole);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.json");
    std::fs::write(&path, serde_json::to_string(&whole).unwrap()).unwrap();
    assert_eq!(Counts::read(&path).unwrap(), whole);
}

#[test]
fn undefined_rates_are_null_not_zero() {
    let text = "z,y,p\na,1,1\na,0,1\nb,1,0\nb,1,1\n";
    let columns = Columns {
        sensitive: vec!["z".into()],
        client: None,
        label: "y".into(),
        prediction: Some("p".into()),
    };
    let counts = Counts::from_table(&CsvTable::parse("t.csv", text).unwrap(), &columns).unwrap();
    let config = AuditConfig { bootstrap: 20, ..AuditConfig::default() };
    let audit = audit(&counts, &config, Seed::new(1)).unwrap();
    let grouping = &audit.groupings[0];
    assert_eq!(grouping.groups[1].metrics["false_positive_rate"].value, None);
    assert_eq!(grouping.disparities["equalized_odds_difference"].value, None);
    assert_eq!(grouping.disparities["equal_opportunity_difference"].value, Some(0.5));
}

#[test]
fn intervals_cover_the_truth() {
    // Two groups with selection rates 0.3 and 0.5: the interval of the difference holds 0.2.
    let mut covered = 0;
    for trial in 0..100u64 {
        let mut rng = Seed::new(9).fork("trial", trial).rng();
        let mut counts = Counts::empty(
            vec!["z".into()],
            vec![vec!["a".into()], vec!["b".into()]],
            vec!["all".into()],
            vec!["0".into(), "1".into()],
        )
        .unwrap();
        for (g, rate) in [(0, 0.3), (1, 0.5)] {
            let selected = binomial(300, rate, &mut rng);
            let (no, yes) = (counts.place(g, 0, 1, 0), counts.place(g, 0, 1, 1));
            counts.counts[no] = 300 - selected;
            counts.counts[yes] = selected;
        }
        let audit = audit(&counts, &AuditConfig::default(), Seed::new(trial)).unwrap();
        let dp = audit.groupings[0].disparities["demographic_parity_difference"];
        covered += usize::from(dp.low.unwrap() <= 0.2 && 0.2 <= dp.high.unwrap());
    }
    assert!((88..=100).contains(&covered), "{covered} of 100");
}

#[test]
fn bad_input_is_refused_with_its_place() {
    let refused = |text: &str, words: &[&str]| {
        let error = Counts::from_table(&CsvTable::parse("t.csv", text).unwrap(), &columns())
            .and_then(|c| audit(&c, &AuditConfig::default(), Seed::new(0)))
            .unwrap_err()
            .to_string();
        assert!(words.iter().all(|w| error.contains(w)), "{error}");
    };
    refused("sex,race,site,y\nf,u,0,1\n", &["t.csv", "`p`", "missing"]);
    refused("sex,race,site,y,p\nf,u,0,1,1\nm,v,0,,1\n", &["row 2 (line 3)", "`y`", "empty"]);
    refused(
        "sex,race,site,y,p\nf,u,0,1,1\nf,u,0,0,1\n",
        &["sex, race", "f / u", "compares groups"],
    );
    refused("sex,race,site,y,p\nf,u,0,1,1\nm,u,0,1,1\n", &["one class"]);
    let counts = Counts::from_table(&table(), &columns()).unwrap();
    let bad = AuditConfig { positive: Some("yes".into()), ..AuditConfig::default() };
    assert!(audit(&counts, &bad, Seed::new(0)).unwrap_err().to_string().contains("`yes`"));
    assert!(Joint::from_weights(2, 2, 2, &[0.; 8]).is_err());
    assert!(Joint::from_weights(2, 2, 2, &[f64::NAN; 8]).is_err());
    assert!(Joint::from_weights(usize::MAX, 2, 2, &[1.; 8]).is_err());
    assert!(pid_broja_to(&Joint::from_weights(2, 2, 2, &[1.; 8]).unwrap(), 0.).is_err());
}

proptest! {
    /// A mangled file of counts is read or refused, never a panic.
    #[test]
    fn mangled_counts_are_refused(at in 0usize..2000, cut in 0usize..30, put in "[\\[\\]{}\",0-9a-z]{0,5}") {
        let text = serde_json::to_string(&Counts::from_table(&table(), &columns()).unwrap()).unwrap();
        let from = at % text.len();
        let to = (from + cut).min(text.len());
        let mangled = format!("{}{put}{}", &text[..from], &text[to..]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.json");
        std::fs::write(&path, mangled).unwrap();
        if let Ok(counts) = Counts::read(&path) {
            let _ = audit(&counts, &AuditConfig { bootstrap: 2, ..AuditConfig::default() }, Seed::new(0));
        }
    }
}
