//! Golden profile, solvers against enumeration, distributions, files, and what is refused.

use commons_core::Seed;
use proptest::prelude::*;

use super::exact::{Limits, solve};
use super::files::{Format, abc_yaml, groups, read, read_as};
use super::smoothness::{Model, estimate, second_half};
use super::*;

mod solvers;

fn golden(text: &str) -> Rankings {
    let order = |line: &str| line.split_whitespace().map(|c| c.parse().unwrap()).collect();
    let orders: Vec<Order> = text.split('|').map(order).collect();
    Rankings::from_orders(numbered(6), &orders).unwrap()
}

fn latent() -> Rankings {
    golden("0 3 1 4 2 5 | 3 0 4 1 5 2 | 4 1 3 0 5 2 | 1 0 3 4 2 5 | 3 4 0 5 1 2")
}

fn biased() -> Rankings {
    golden("0 1 2 3 4 5 | 0 1 3 2 4 5 | 1 0 4 2 3 5 | 1 0 2 3 4 5 | 0 3 1 2 4 5")
}

fn at_least_one() -> Bounds {
    let group = Group { name: "G2".into(), members: vec![3, 4, 5], min: 1, max: 2 };
    Bounds::new(6, vec![group]).unwrap()
}

#[test]
fn golden_scores_and_selections() {
    let free = Bounds::none(6);
    let cases: [(Score, [f64; 6], [f64; 6], f64, f64, f64); 3] = [
        (Score::BORDA, [18., 15., 2., 20., 16., 4.], [23., 21., 12., 12., 7., 0.], 38., 33., 38.),
        (Score::SNTV, [1., 1., 0., 2., 1., 0.], [3., 2., 0., 0., 0., 0.], 3., 2., 3.),
        (Score::BLOC, [3., 2., 0., 3., 2., 0.], [5., 4., 0., 1., 0., 0.], 6., 5., 6.),
    ];
    for (score, plain, seen, best, without, with) in cases {
        let (l, b) = (latent(), biased());
        let singles = score.singles(&l, 2).unwrap();
        assert_eq!(singles, plain, "{score}");
        assert_eq!(score.singles(&b, 2).unwrap(), seen, "{score}");
        let choose = |r: &Rankings, bounds| select(r, &score, 2, bounds, Solver::Auto).unwrap();
        let opt = choose(&l, &free);
        assert_eq!((opt.subset, opt.score), (vec![0, 3], best), "{score}");
        let worth = |s: &[usize]| s.iter().map(|&c| singles[c]).sum::<f64>();
        let unconstrained = choose(&b, &free).subset;
        assert_eq!((worth(&unconstrained), unconstrained), (without, vec![0, 1]), "{score}");
        let constrained = choose(&b, &at_least_one()).subset;
        assert_eq!((worth(&constrained), constrained), (with, vec![0, 3]), "{score}");
    }
}

#[test]
fn golden_chamberlin_courant() {
    let matrix = Score::CC.matrix(&latent(), 2).unwrap();
    let free = Bounds::none(6);
    let best = solve(&matrix, 2, &free, Limits::default()).unwrap();
    assert_eq!((best.subset, best.score, best.optimal), (vec![1, 3], 23., true));
    let seen = Score::CC.matrix(&biased(), 2).unwrap();
    let unconstrained = solve(&seen, 2, &free, Limits::default()).unwrap().subset;
    assert_eq!((matrix.of(&unconstrained), unconstrained), (21., vec![0, 1]));
    let constrained = solve(&seen, 2, &at_least_one(), Limits::default()).unwrap().subset;
    assert_eq!((matrix.of(&constrained), constrained), (22., vec![0, 3]));
    assert_eq!(greedy_scored(&matrix, 3, &free).unwrap().order, [3, 1, 0]);
    assert_eq!(greedy(&matrix, 3, &free).unwrap().order, [3, 1, 0]);
    let caps =
        |name: &str, members: Vec<usize>| Group { name: name.into(), members, min: 0, max: 1 };
    let caps = Bounds::new(6, vec![caps("a", vec![0, 1, 2]), caps("b", vec![3, 4, 5])]).unwrap();
    assert_eq!(greedy_scored(&seen, 2, &caps).unwrap().order, [0, 3]);
}

#[test]
fn ties_are_reported() {
    let chosen = select(&latent(), &Score::SNTV, 2, &Bounds::none(6), Solver::Top).unwrap();
    assert_eq!(chosen.ties.steps, [TiedStep { step: 2, items: vec![0, 1, 4] }]);
    assert!(chosen.ties.any());
    let chosen = select(&latent(), &Score::SNTV, 2, &Bounds::none(6), Solver::Exact).unwrap();
    assert_eq!(chosen.ties.committees, [[0, 3], [1, 3], [3, 4]]);
    assert!(chosen.ties.complete && chosen.subset == [0, 3]);
    let borda = select(&latent(), &Score::BORDA, 2, &Bounds::none(6), Solver::Top).unwrap();
    assert!(!borda.ties.any());
}

/// All subsets of `k` of `m` items.
fn subsets(m: usize, k: usize) -> Vec<Vec<usize>> {
    (0_u32..1 << m)
        .filter(|s| s.count_ones() as usize == k)
        .map(|s| (0..m).filter(|c| s >> c & 1 == 1).collect())
        .collect()
}

fn random_rankings(m: usize, n: usize, seed: u64) -> Rankings {
    let model = [Latent::Ic, Latent::Urn { alpha: 0.3 }, Latent::Mallows { phi: 0.7 }];
    let orders = model[seed as usize % 3].draw(m, n, Seed::new(seed)).unwrap();
    Rankings::from_orders(numbered(m), &orders).unwrap()
}

fn random_groups(m: usize, k: usize, seed: u64, overlapping: bool) -> Option<Bounds> {
    let mut rng = Seed::new(seed).fork("groups", 0).rng();
    let mut groups: Vec<Group> = Vec::new();
    for g in 0..2 {
        let inside = |c: usize, rng: &mut commons_core::Rng| match overlapping {
            true => rng.chance(0.5),
            false => c % 3 == g,
        };
        let members: Vec<usize> = (0..m).filter(|&c| inside(c, &mut rng)).collect();
        let min = rng.below(3) as usize;
        let max = min + rng.below(3) as usize;
        groups.push(Group { name: format!("g{g}"), members, min, max });
    }
    Bounds::new(m, groups).ok().filter(|b| b.check(m, k).is_ok())
}

#[test]
fn larger_instances_are_solved_and_bounded() {
    let orders = Latent::Ic.draw(30, 60, Seed::new(4)).unwrap();
    let rankings = Rankings::from_orders(numbered(30), &orders).unwrap();
    let matrix = Score::CC.matrix(&rankings, 6).unwrap();
    let best = solve(&matrix, 6, &Bounds::none(30), Limits::default()).unwrap();
    assert!(
        best.optimal && best.score >= greedy_scored(&matrix, 6, &Bounds::none(30)).unwrap().score
    );
    let few = Limits { nodes: 2, ..Limits::default() };
    let cut = solve(&matrix, 6, &Bounds::none(30), few).unwrap();
    assert!(!cut.optimal && cut.bound >= best.score - 1e-9 && cut.score <= best.score + 1e-9);
    let stop = std::sync::atomic::AtomicBool::new(true);
    let limits = Limits { stop: Some(&stop), ..Limits::default() };
    assert!(solve(&matrix, 6, &Bounds::none(30), limits).is_err());
}

#[test]
fn generators_have_their_distributions() {
    // Mallows: the mean Kendall distance from the centre; the centre is where phi = 0 is.
    for phi in [0.3, 0.8] {
        let seed = Seed::new(9);
        let centre = Latent::Mallows { phi: 0. }.draw(6, 1, seed).unwrap().remove(0);
        let orders = Latent::Mallows { phi }.draw(6, 4_000, seed).unwrap();
        let mut place = [0; 6];
        centre.iter().enumerate().for_each(|(p, &c)| place[c] = p);
        let inversions = |o: &Order| {
            (0..6)
                .flat_map(|a| (a + 1..6).map(move |b| (a, b)))
                .filter(|&(a, b)| place[o[a]] > place[o[b]])
                .count() as f64
        };
        let mean = orders.iter().map(inversions).sum::<f64>() / 4_000.;
        assert!((mean - mallows_distance(6, phi)).abs() < 0.1, "{phi}: {mean}");
    }
    // Walsh: each of the 2^(m-1) single-peaked orders is as likely.
    let orders = Latent::Walsh.draw(4, 8_000, Seed::new(2)).unwrap();
    let mut counts = std::collections::BTreeMap::new();
    orders.iter().for_each(|o| *counts.entry(o.clone()).or_insert(0) += 1);
    assert_eq!(counts.len(), 8);
    assert!(counts.values().all(|c| (850..1150).contains(c)), "{counts:?}");
    // Plackett–Luce, Conitzer and urn give permutations; an urn that returns everything is unanimous.
    for latent in [Latent::PlackettLuce, Latent::Conitzer, Latent::Utility, Latent::Ic] {
        for order in latent.draw(7, 20, Seed::new(1)).unwrap() {
            let mut sorted = order;
            sorted.sort_unstable();
            assert_eq!(sorted, (0..7).collect::<Vec<_>>(), "{latent}");
        }
    }
    let urn = Latent::Urn { alpha: 1e12 }.draw(5, 20, Seed::new(3)).unwrap();
    assert!(urn.iter().all(|o| *o == urn[0]));
}

#[test]
fn bias_lowers_the_group_and_keeps_the_order_within() {
    let group = second_half(8);
    for v in 0..50 {
        let utility = Latent::Utility.utilities(8, 1, Seed::new(v)).unwrap().remove(0);
        let plain = by_utility(&utility);
        for same in [Bias::None, Bias::Utility { theta: 1. }, Bias::Swap { phi: 0.5, lambda: 0. }] {
            assert_eq!(same.apply(&utility, &group, Seed::new(v)).unwrap(), plain);
        }
        let seen = Bias::Utility { theta: 0.3 }.apply(&utility, &group, Seed::new(v)).unwrap();
        let within = |o: &Order, g: bool| o.iter().copied().filter(|&c| group[c] == g).collect();
        for g in [false, true] {
            let (a, b): (Vec<usize>, Vec<usize>) = (within(&plain, g), within(&seen, g));
            assert_eq!(a, b);
        }
        let all = Bias::Utility { theta: 0. }.apply(&utility, &group, Seed::new(v)).unwrap();
        assert!(all[..4].iter().all(|&c| !group[c]), "{all:?}");
    }
}

#[test]
fn smoothness_matches_the_computed_figures() {
    let model = |lambda: f64| Model {
        latent: Latent::Ic,
        bias: Bias::Swap { phi: 0.5, lambda },
        m: 10,
        n: 10,
        iterations: 300,
    };
    for (lambda, borda, sntv, wanted) in
        [(0., 0.49, 0.093, 4.5), (0.5, 0.28, 0.001, 2.6), (0.9, 0.22, 0., 2.)]
    {
        let b = estimate(&Score::BORDA, &model(lambda), Seed::new(0)).unwrap();
        let s = estimate(&Score::SNTV, &model(lambda), Seed::new(0)).unwrap();
        assert!((b.alpha - borda).abs() < 0.02, "λ {lambda}: borda {}", b.alpha);
        assert!((s.alpha - sntv).abs() < 0.012, "λ {lambda}: sntv {}", s.alpha);
        let group: f64 = b.biased[5..].iter().sum::<f64>() / 5.;
        assert!((group - wanted).abs() < 0.15, "λ {lambda}: {group}");
    }
}

#[test]
fn strong_bias_is_repaired_for_borda_at_ten_rankings() {
    let simulation = Simulation {
        latent: Latent::Utility,
        bias: Bias::Utility { theta: 0.2 },
        m: 50,
        k: 10,
        minority: 25,
        n: 10,
        repetitions: 20,
    };
    let borda = simulation.run(&Score::BORDA, Seed::new(0)).unwrap();
    assert!((borda.unconstrained - 0.914).abs() < 0.04 && borda.proportional > 0.98, "{borda:?}");
    let sntv = simulation.run(&Score::SNTV, Seed::new(0)).unwrap();
    assert!(sntv.proportional < 0.7 && sntv.best_l <= 1., "{sntv:?}");
}

fn file(name: &str, text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

fn refused(name: &str, text: &str) -> String {
    let (_folder, path) = file(name, text);
    read(&path).unwrap_err().to_string()
}

#[test]
fn every_format_is_read() {
    let load = |name: &str, text: &str| {
        let (_folder, path) = file(name, text);
        read(&path).unwrap()
    };
    let csv = load("r.csv", "voter,item,rank\nv,a,2\nv,b,1\nw,a,1\nw,b,2\n");
    assert_eq!((csv.names().to_vec(), csv.order(0)), (vec!["a".into(), "b".into()], vec![1, 0]));
    let new = "# NUMBER ALTERNATIVES: 3\n# ALTERNATIVE NAME 2: Bea\n2: 2,1,3\n1: 3,{1,2}\n";
    let toc = load("r.toc", new);
    assert_eq!((toc.voters(), toc.names()[1].as_str(), toc.is_strict()), (3., "Bea", false));
    assert_eq!(toc.sizes(1), [2, 2, 1]);
    let old = load("r.soi", "3\n1,Ann\n2,Bea\n3,Cy\n3,3,2\n2,2\n1,3,1\n");
    assert_eq!((old.voters(), old.order(0)), (3., vec![1, 0, 2]));
    assert_eq!((old.places(0), old.sizes(0)), (&[1, 0, 1][..], &[2, 1, 2][..]));
    let bare = load("r.soc", "3,2,1\n1,1,2\n");
    assert_eq!((bare.items(), bare.voters()), (2, 4.));
    let json = load("r.jsonl", "[2, 0, 1]\n{\"ranking\": [1, 2, 0], \"weight\": 2}\n");
    assert_eq!((json.order(0), json.voters()), (vec![2, 0, 1], 3.));
    let approvals = load("r.jsonl", "{\"approve\": [\"x\"]}\n{\"approve\": [\"x\", \"y\"]}\n");
    assert_eq!(approvals.approved(1), Some(2));
    let abc = "profile: [[0, 1], [2], []]\nnum_cand: 3\ncommitteesize: 2\n";
    let yaml = load("r.abc.yaml", abc);
    assert_eq!(yaml.approved(2), Some(0));
    let av: Score = "av".parse().unwrap();
    assert_eq!(av.singles(&yaml, 2).unwrap(), [1., 1., 1.]);
    let (_folder, path) = file("odd.txt", "3,2,1\n");
    assert!(read(&path).is_err() && read_as(&path, Format::PrefLib).is_ok());
}

#[test]
fn bad_files_are_refused_with_place_and_remedy() {
    let cases: [(&str, &str, &[&str]); 18] = [
        ("r.csv", "voter,item\nv,a\n", &["column `rank`", "is missing"]),
        (
            "r.csv",
            "voter,item,rank\nv,a,1\nv,b,1\n",
            &["row 2", "`rank`", "rank 1 already in row 1"],
        ),
        ("r.csv", "voter,item,rank\nv,a,1\nv,a,2\nv,b,2\n", &["row 2", "item `a` already"]),
        ("r.csv", "voter,item,rank\nv,a,1\nv,b,2\nw,a,1\n", &["row 3", "does not rank item `b`"]),
        ("r.csv", "voter,item,rank\nv,a,1\nv,b,3\n", &["row 2", "3 is no rank of 2"]),
        ("r.csv", "voter,item,rank\nv,a,NaN\n", &["row 1", "`rank`", "not finite"]),
        ("r.soc", "# NUMBER ALTERNATIVES: 2\n1: 1,1\n", &["line 2, item 1", "stands twice"]),
        ("r.soc", "# NUMBER ALTERNATIVES: 2\n1: 1,3\n", &["line 2, item 3", "items 1 to 2"]),
        ("r.soc", "1: a,b\n", &["line 1", "`a` is not a whole number"]),
        ("r.toc", "1: 1,{2,3\n", &["line 1", "`{` out of place"]),
        ("r.soc", "0: 1,2\n", &["line 1", "0 voters"]),
        ("r.soc", "# NUMBER ALTERNATIVES: 2\n", &["holds no orders"]),
        ("r.jsonl", "[\"a\", \"a\"]\n", &["line 1, item `a`", "stands twice"]),
        ("r.jsonl", "[1]\n{\"approve\": [1]}\n", &["line 2", "mixes"]),
        ("r.abc.yaml", "profile: [[0, 3]]\nnum_cand: 2\n", &["profile[0], candidate 3", "0 to 1"]),
        ("r.xyz", "", &["tells no format", ".soc"]),
        ("r.soc", "# NUMBER ALTERNATIVES: 99999999999\n1: 1\n", &["99999999999 items, more"]),
        ("r.abc.yaml", "profile: [[0]]\nnum_cand: 99999999999\n", &["99999999999 items, more"]),
    ];
    for (name, text, words) in cases {
        let error = refused(name, text);
        for word in words.iter().chain(&[name]) {
            assert!(error.contains(word), "{text:?}: no `{word}` in {error}");
        }
    }
    assert!(refused("r.jsonl", "{\"ranking\": [1], \"weight\": 0}\n").contains("`weight`"));
    assert!(refused("r.jsonl", "oops\n").contains("line 1"));
    let (_folder, path) = file("g.csv", "item,group\n0,a\n9,a\n");
    let error = groups(&path, &numbered(3)).unwrap_err().to_string();
    assert!(error.contains("row 2") && error.contains("`9`"), "{error}");
}

#[test]
fn bad_bounds_and_scores_are_refused() {
    let fail = |k: usize, groups: Vec<Group>| match Bounds::new(6, groups) {
        Ok(bounds) => select(&latent(), &Score::BORDA, k, &bounds, Solver::Auto).map(|_| ()),
        Err(error) => Err(error),
    };
    let group = |members: Vec<usize>, min: usize, max: usize| {
        vec![Group { name: "G2".into(), members, min, max }]
    };
    for (k, groups, word) in [
        (0, vec![], "k: is 0"),
        (7, vec![], "7 items cannot be chosen from 6"),
        (2, group(vec![], 0, 1), "has no items"),
        (2, group(vec![1], 2, 1), "at least 2 and at most 1"),
        (2, group(vec![1], 2, 2), "has 1 items, but 2"),
        (2, group(vec![1, 2, 3], 3, 3), "no 2 of 6 items meet them (3 to 3 of 3 in `G2`)"),
        (5, group(vec![1, 2, 3], 0, 1), "0 to 1 of 3"),
    ] {
        let error = fail(k, groups).unwrap_err().to_string();
        assert!(error.contains(word), "no `{word}` in {error}");
    }
    for wrong in ["bordo", "bloc:x", "owa", "owa:a", "cc:2"] {
        let error = wrong.parse::<Score>().unwrap_err().to_string();
        assert!(error.contains(wrong) && error.contains("sntv"), "{error}");
    }
    for (score, word) in [("pav", "approval ballots"), ("owa:1,2", "fall"), ("bloc:0", "1 or more")]
    {
        let score: Score = score.parse().unwrap();
        let error = score.singles(&latent(), 2).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    let top = select(&latent(), &Score::CC, 2, &Bounds::none(6), Solver::Top).unwrap_err();
    assert!(top.to_string().contains("greedy or exact"));
    for name in ["borda", "sntv", "bloc", "bloc:3", "cc", "owa:harmonic", "owa:1,0.5", "av", "pav"]
    {
        assert_eq!(name.parse::<Score>().unwrap().to_string(), name);
    }
    assert!(Rankings::from_orders(numbered(2), &[vec![0]]).is_err());
    assert!(Rankings::from_orders(numbered(2), &[vec![0, 0]]).is_err());
    assert!(Rankings::from_orders(numbered(2), &[vec![0, 5]]).is_err());
}

/// Two of the profiles abcvoting is tested with (MIT licence, Martin Lackner and contributors).
const ABC: [&str; 2] = [include_str!("abc-1.yaml"), include_str!("abc-2.yaml")];

#[test]
fn committees_are_those_of_abcvoting() {
    for text in ABC {
        let abc = abc_yaml("abc.yaml", text).unwrap();
        let k = abc.committee_size.unwrap();
        let mut checked = 0;
        for (rule, resolute, wanted) in &abc.results {
            let score: Score = match rule.as_str() {
                "av" => "av".parse().unwrap(),
                "cc" => "approval-cc".parse().unwrap(),
                "pav" => "pav".parse().unwrap(),
                "slav" => "approval-owa:1,1/3,1/5,1/7,1/9,1/11,1/13".parse().unwrap(),
                "geom2" => "approval-owa:1,1/2,1/4,1/8,1/16,1/32".parse().unwrap(),
                _ => continue,
            };
            let bounds = Bounds::none(abc.rankings.items());
            let got = select(&abc.rankings, &score, k, &bounds, Solver::Exact).unwrap();
            assert!(got.ties.complete);
            if *resolute {
                assert!(wanted.contains(&got.subset), "{rule}");
            } else {
                assert_eq!(got.ties.committees, *wanted, "{rule}");
            }
            checked += 1;
        }
        assert!(checked >= 6);
    }
}

#[test]
fn a_report_prices_the_bounds_and_counts_rankings() {
    let found =
        shortlist(&biased(), &Score::BORDA, 2, &at_least_one(), Solver::Auto, Limits::default())
            .unwrap();
    assert_eq!(found.unconstrained.as_ref().unwrap().score, 44.);
    assert_eq!(found.selection.score, 35.);
    assert_eq!(found.judged[0], (Score::BORDA, 35., 35.));
    let needed = found.needed.unwrap();
    assert_eq!((needed.chosen, needed.other), (0, 1));
    assert!((needed.difference - 0.4).abs() < 1e-12 && !needed.enough);
    let tied =
        shortlist(&latent(), &Score::SNTV, 2, &Bounds::none(6), Solver::Auto, Limits::default())
            .unwrap();
    assert_eq!(tied.needed.unwrap().rankings, None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn exact_is_the_best_of_all_subsets(
        m in 3..9_usize, n in 1..8_usize, k in 1..5_usize, seed in 0..10_000_u64,
        which in 0..5_usize, overlapping: bool,
    ) {
        prop_assume!(k <= m);
        let rankings = random_rankings(m, n, seed);
        let score: Score =
            ["cc", "owa:harmonic", "owa:1,0.5", "borda", "sntv"][which].parse().unwrap();
        let bounds = random_groups(m, k, seed, overlapping).unwrap_or(Bounds::none(m));
        let matrix = score.matrix(&rankings, k).unwrap();
        let got = solve(&matrix, k, &bounds, Limits::default()).unwrap();
        let admitted: Vec<Vec<usize>> =
            subsets(m, k).into_iter().filter(|s| bounds.admits(s)).collect();
        let best = admitted.iter().map(|s| matrix.of(s)).fold(0., f64::max);
        prop_assert!((got.score - best).abs() < 1e-9);
        let mut all: Vec<Vec<usize>> =
            admitted.into_iter().filter(|s| (matrix.of(s) - best).abs() < 1e-9).collect();
        all.sort();
        if got.ties.complete {
            prop_assert_eq!(&got.ties.committees, &all);
        }
        if score.is_modular() {
            let sorted = select(&rankings, &score, k, &bounds, Solver::Top).unwrap();
            prop_assert!((sorted.score - best).abs() < 1e-9 && bounds.admits(&sorted.subset));
            prop_assert_eq!(sorted.ties.any(), all.len() > 1);
        }
        let greedy = greedy_scored(&matrix, k, &bounds).unwrap();
        prop_assert!(bounds.admits(&greedy.subset));
        prop_assert!((matrix.of(&greedy.subset) - greedy.score).abs() < 1e-9);
        let least = if bounds.groups().is_empty() { 1. - (-1_f64).exp() } else { 0. };
        prop_assert!(greedy.score >= least * best - 1e-9);
    }

    #[test]
    fn branch_and_bound_with_prices_is_exact(n in 5..30_usize, seed in 0..10_000_u64, which in 0..2_usize) {
        let (m, k) = (14, 4);
        let rankings = random_rankings(m, n, seed);
        let score: Score = ["cc", "owa:harmonic"][which].parse().unwrap();
        let matrix = score.matrix(&rankings, k).unwrap();
        let bounds = random_groups(m, k, seed, false).unwrap_or(Bounds::none(m));
        let got = solve(&matrix, k, &bounds, Limits::default()).unwrap();
        let admitted = subsets(m, k).into_iter().filter(|s| bounds.admits(s));
        let best = admitted.map(|s| matrix.of(&s)).fold(0., f64::max);
        prop_assert!((got.score - best).abs() < 1e-9, "{} {}", got.score, best);
    }

    #[test]
    fn scores_are_monotone_submodular_and_domination_sensitive(
        seed in 0..10_000_u64, which in 0..6_usize,
    ) {
        let (m, n) = (7, 6);
        let rankings = random_rankings(m, n, seed);
        let score: Score =
            ["borda", "sntv", "bloc", "cc", "owa:harmonic", "owa:1,1/2,1/4"][which].parse().unwrap();
        let f = score.matrix(&rankings, 4).unwrap();
        let mut rng = Seed::new(seed).rng();
        let picked = rng.sample(m, 4);
        let (small, large, c) = (&picked[..1], &picked[..3], picked[3]);
        prop_assert!(f.marginal(large, c) >= -1e-12);
        prop_assert!(f.marginal(small, c) >= f.marginal(large, c) - 1e-9);
        let per: f64 = score.per_ballot(&rankings, 4, large).iter().sum();
        prop_assert!((per - f.of(large)).abs() < 1e-9);
        // Moving a member up never lowers the score.
        let mut orders: Vec<Order> = (0..n).map(|v| rankings.order(v)).collect();
        let at = orders[0].iter().position(|&x| x == c).unwrap();
        if at > 0 {
            orders[0].swap(at - 1, at);
            let moved = Rankings::from_orders(numbered(m), &orders).unwrap();
            let better = score.matrix(&moved, 4).unwrap();
            if !picked.contains(&orders[0][at]) {
                prop_assert!(better.of(&picked) >= f.of(&picked) - 1e-9);
            }
        }
    }

    #[test]
    fn swaps_keep_permutations_and_sink_the_group(seed in 0..10_000_u64, lambda in 0.0..=1.0, phi in 0.0001..=1.0) {
        let m = 9;
        let group = second_half(m);
        let utility = Latent::Utility.utilities(m, 1, Seed::new(seed)).unwrap().remove(0);
        let pairs = |o: &Order| {
            let above = |p: usize| o[p + 1..].iter().filter(|&&c| !group[c]).count();
            (0..m).filter(|&p| group[o[p]]).map(above).sum::<usize>()
        };
        let before = by_utility(&utility);
        let after = Bias::Swap { phi, lambda }.apply(&utility, &group, Seed::new(seed)).unwrap();
        let mut sorted = after.clone();
        sorted.sort_unstable();
        prop_assert_eq!(sorted, (0..m).collect::<Vec<_>>());
        prop_assert!(pairs(&after) <= pairs(&before));
        let times = (lambda * pairs(&before) as f64 + 1e-9).floor() as usize;
        prop_assert!(times == 0 || pairs(&after) < pairs(&before));
    }

    #[test]
    fn ties_share_their_places(seed in 0..10_000_u64) {
        // The mean over all ways to break a tie is what a tied ballot scores.
        let m = 5;
        let mut rng = Seed::new(seed).rng();
        let order = { let mut o: Vec<usize> = (0..m).collect(); rng.shuffle(&mut o); o };
        let blocks = vec![vec![order[0]], vec![order[1], order[2]], vec![order[3]]];
        let tied = Rankings::from_ballots(numbered(m), &[Ballot { weight: 2., blocks }]).unwrap();
        let mut other = order.clone();
        other.swap(1, 2);
        let broken = Rankings::from_orders(numbered(m), &[order, other]).unwrap();
        for score in [Score::BORDA, Score::SNTV, Score::BLOC] {
            prop_assert_eq!(score.singles(&tied, 2).unwrap(), score.singles(&broken, 2).unwrap());
        }
    }
}
