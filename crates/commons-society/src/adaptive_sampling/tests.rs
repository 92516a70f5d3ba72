//! Golden plans, agreement of the cone programme with closed forms, recovery of curves,
//! convergence to the optimum, states, and what is refused.

use commons_core::Seed;
use proptest::prelude::*;

use super::simulate::{Strategy, World, WorldConfig, gaussian};
use super::*;

fn group(name: &str, cost: f64, a: f64, b: f64) -> Group {
    Group { name: name.into(), cost, owned: 0., weight: 1., curve: PowerLaw { e: 0., a, b } }
}

fn three(b: [f64; 3]) -> Vec<Group> {
    let names = [("x", 1., 1.), ("y", 1., 4.), ("z", 2., 9.)];
    names.iter().zip(b).map(|(&(name, cost, a), b)| group(name, cost, a, b)).collect()
}

fn close(got: &[f64], wanted: &[f64], tolerance: f64) {
    for (g, w) in got.iter().zip(wanted) {
        assert!((g - w).abs() < tolerance, "{got:?} against {wanted:?}");
    }
}

#[test]
fn plans_are_golden() {
    for (b, wanted, objective) in [
        ([1.; 3], [82.842712, 165.685425, 175.735931], 0.029142136),
        ([0.5; 3], [66.880656, 168.528692, 182.295326], 0.365661478),
        ([0.5, 1., 0.3], [59.578694, 60.654528, 239.883389], 0.644757878),
    ] {
        let plan = plan(&three(b), 600., Goal::Utilitarian, 0.).unwrap();
        close(&plan.samples, &wanted, 1e-5);
        assert!((plan.utility + objective).abs() < 1e-8, "{}", plan.utility);
    }
    let mixed = plan(&three([0.5, 1., 0.3]), 600., Goal::Utilitarian, 0.).unwrap();
    assert!((mixed.shadow_price - 3.624201e-4).abs() < 1e-8, "{}", mixed.shadow_price);
    let plain = plan(&three([1.; 3]), 600., Goal::Utilitarian, 0.).unwrap();
    assert_eq!(plain.whole, [83, 165, 176]);
    assert!((plain.whole_utility + 0.0291423).abs() < 1e-7);
    let equal = plan(&three([1.; 3]), 600., Goal::MaxMin, 0.).unwrap();
    close(&equal.samples, &[26.086957, 104.347826, 234.782609], 1e-5);
    assert!((equal.utility + 0.0383333).abs() < 1e-7);
    let weights = [1. / 3.; 3];
    let at = |b, n: [f64; 3]| -worth(&three(b), &weights, &n, Goal::Utilitarian, 0.);
    assert!((at([1.; 3], [150.; 3]) - 0.0311111).abs() < 1e-7);
    assert!((at([0.5, 1., 0.3], [200., 200., 100.]) - 0.7838028).abs() < 1e-7);
}

#[test]
fn cone_programmes_meet_the_closed_forms() {
    let groups = three([0.5, 1., 0.3]);
    let utilitarian = plan(&groups, 600., Goal::Utilitarian, 10.).unwrap();
    for goal in [Goal::Ces(0.999_999), Goal::Gap(0.)] {
        let conic = plan(&groups, 600., goal, 10.).unwrap();
        close(&conic.samples, &utilitarian.samples, 0.1);
    }
    let max_min = plan(&groups, 600., Goal::MaxMin, 10.).unwrap();
    let strict = plan(&groups, 600., Goal::Gap(0.999_999), 10.).unwrap();
    close(&strict.samples, &max_min.samples, 0.5);
    // From mean to worst-off: the worst gains, the mean loses.
    let worst = |goal| {
        let plan = plan(&groups, 600., goal, 10.).unwrap();
        let worst = groups.iter().zip(&plan.samples).map(|(g, n)| g.curve.loss(*n));
        worst.fold(0., f64::max)
    };
    let ladder = [Goal::Ces(1.), Goal::Ces(0.), Goal::Ces(-5.), Goal::Ces(-30.), Goal::MaxMin];
    let losses: Vec<f64> = ladder.iter().map(|&g| worst(g)).collect();
    assert!(losses.windows(2).all(|w| w[1] <= w[0] + 1e-6), "{losses:?}");
}

proptest! {
    #[test]
    fn plans_are_affordable_and_not_beaten_by_moves(
        a in proptest::collection::vec(0.1f64..10., 3), b in proptest::collection::vec(0.2f64..1.5, 3),
        cost in proptest::collection::vec(0.5f64..3., 3), which in 0usize..4,
    ) {
        let groups: Vec<Group> =
            (0..3).map(|i| group(&i.to_string(), cost[i], a[i], b[i])).collect();
        let goal = [Goal::Utilitarian, Goal::MaxMin, Goal::Ces(-1.), Goal::Gap(0.5)][which];
        let plan = plan(&groups, 500., goal, 20.).unwrap();
        let spent = |n: &[f64]| n.iter().zip(&cost).map(|(n, c)| n * c).sum::<f64>();
        prop_assert!(spent(&plan.samples) <= 500. * (1. + 1e-9));
        let whole: Vec<f64> = plan.whole.iter().map(|&n| n as f64).collect();
        prop_assert!(spent(&whole) <= 500. + 1e-6);
        prop_assert!(plan.utility >= plan.whole_utility - 1e-6);
        let weights = [1. / 3.; 3];
        for from in 0..3 {
            for to in 0..3 {
                let mut moved = plan.samples.clone();
                let money = 2f64.min(0.5 * moved[from] * cost[from]);
                moved[from] -= money / cost[from];
                moved[to] += money / cost[to];
                prop_assert!(worth(&groups, &weights, &moved, goal, 20.) <= plan.utility + 2e-6);
            }
        }
    }

    #[test]
    fn curves_are_recovered(e in 0f64..0.5, a in 0.5f64..5., b in 0.2f64..1.2) {
        let truth = PowerLaw { e, a, b };
        let points: Vec<Point> =
            (0..7).map(|i| 50. * 2f64.powi(i)).map(|n| Point { n, loss: truth.loss(n) }).collect();
        let curve = fit(&points).unwrap().curve;
        for n in [50., 800., 6400.] {
            prop_assert!((curve.loss(n) - truth.loss(n)).abs() < 1e-4);
        }
    }
}

#[test]
fn the_golden_curve_is_recovered_with_and_without_noise() {
    let truth = PowerLaw { e: 0.1, a: 2., b: 0.6 };
    let sizes: Vec<f64> = (0..7).map(|i| 50. * 2f64.powi(i)).collect();
    let points = |noise: f64| -> Vec<Point> {
        let mut rng = Seed::new(8).rng();
        let one = |&n: &f64| Point { n, loss: truth.loss(n) * (1. + noise * rng.normal()) };
        sizes.iter().map(one).collect()
    };
    let exact = fit(&points(0.)).unwrap();
    close(&[exact.curve.e, exact.curve.a, exact.curve.b], &[0.1, 2., 0.6], 1e-4);
    assert!(!exact.at_bound);
    let noisy = fit(&points(0.02)).unwrap().curve;
    for n in &sizes {
        assert!((noisy.loss(*n) / truth.loss(*n) - 1.).abs() < 0.15);
    }
    assert!(fit(&points(0.)[..2]).is_err());
    assert!(fit(&[Point { n: 0., loss: 1. }; 3]).is_err());
}

#[test]
fn unknown_variances_cost_little() {
    let config = SamplerConfig { budget: 900., warm_up: 10, batch: 10, ..SamplerConfig::default() };
    for rule in [Rule::Greedy, Rule::Replan] {
        let config = SamplerConfig { rule, ..config.clone() };
        let (mut ratio, mut mean) = (0., [0.; 3]);
        for seed in 0..200 {
            let n = gaussian(&[0.2, 1., 3.], &config, Seed::new(seed)).unwrap();
            assert_eq!(n.iter().sum::<u64>(), 900);
            let objective = 0.04 / n[0] as f64 + 1. / n[1] as f64 + 9. / n[2] as f64;
            ratio += objective / 0.0196 / 200.;
            mean.iter_mut().zip(&n).for_each(|(m, n)| *m += *n as f64 / 200.);
        }
        assert!(ratio <= 1.02, "{rule:?}: {ratio}");
        close(&mean, &[42.857, 214.286, 642.857], 8.);
    }
}

#[test]
fn a_saved_state_goes_on_the_same() {
    let source = |name: &str| Source { name: name.into(), cost: 1., weight: 1. };
    let config = SamplerConfig { budget: 300., warm_up: 20, batch: 20, ..SamplerConfig::default() };
    let groups = vec![source("a"), source("b")];
    let mut sampler = AdaptiveSampler::new(config, groups).unwrap();
    let truth = [PowerLaw { e: 0.1, a: 1., b: 0.5 }, PowerLaw { e: 0.1, a: 4., b: 0.5 }];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.json");
    while let Some(batch) = sampler.next_batch().unwrap() {
        let g = batch.group;
        sampler.collect(g, batch.size).unwrap();
        let n = sampler.collected()[g] as f64;
        let points: Vec<Point> = [0.25, 0.5, 1.]
            .iter()
            .map(|s| Point { n: s * n, loss: truth[g].loss(s * n) })
            .collect();
        sampler.observe(g, &points).unwrap();
        sampler.save(&path).unwrap();
        assert_eq!(
            AdaptiveSampler::load(&path).unwrap().next_batch().unwrap(),
            sampler.next_batch().unwrap()
        );
    }
    let n = sampler.collected();
    assert_eq!(n.iter().sum::<u64>(), 300);
    assert!(n[1] > n[0], "{n:?}");
    assert!(sampler.losses().unwrap()[1] < 0.5);
}

#[test]
fn genomes_have_their_heritability_and_scores_learn() {
    let config = GenomeConfig { variants: 80, causal: 20, ..GenomeConfig::default() };
    let genome = Genome::new(config, Seed::new(1)).unwrap();
    let people = genome.cohort(0, "train", 0..2000);
    let variance = commons_core::stats::variance(&people.phenotype);
    assert!((variance - 1.).abs() < 0.12, "{variance}");
    // Any part of a cohort can be made by itself.
    let part = genome.cohort(0, "train", 500..502);
    assert_eq!(part.genotype[..80], people.genotype[500 * 80..501 * 80]);
    let test = genome.cohort(0, "test", 0..1000);
    let r2 =
        |n: usize| genome.r_squared(&genome.score(&people, &(0..n).collect::<Vec<_>>()), &test);
    let (few, many) = (r2(50), r2(2000));
    assert!(few < many && many > 0.35 && many < 0.56, "{few} {many}");
}

#[test]
fn every_strategy_spends_the_budget() {
    let world =
        WorldConfig::Prs(GenomeConfig { variants: 40, causal: 10, ..GenomeConfig::default() });
    let world = World::new(&world, 300, Seed::new(2)).unwrap();
    let config = SamplerConfig { budget: 300., warm_up: 30, batch: 30, ..SamplerConfig::default() };
    for strategy in Strategy::ALL {
        let n = world.spend(strategy, &config).unwrap();
        let total: u64 = n.iter().sum();
        assert!((295..=302).contains(&total), "{strategy:?}: {n:?}");
        assert!(world.losses(&n).iter().all(|l| (0. ..=1.).contains(l)));
    }
}

#[test]
fn bad_input_is_refused_with_group_and_field() {
    let refused = |groups: Vec<Group>, budget: f64, goal: Goal, words: &[&str]| {
        let error = plan(&groups, budget, goal, 1.).unwrap_err().to_string();
        assert!(words.iter().all(|w| error.contains(w)), "{error}");
    };
    let good = || group("a", 1., 1., 1.);
    refused(vec![], 10., Goal::Utilitarian, &["groups"]);
    refused(vec![group("a", 0., 1., 1.)], 10., Goal::Utilitarian, &["group a: cost", "0"]);
    refused(vec![group("a", 1., -1., 1.)], 10., Goal::Utilitarian, &["group a: a", "-1"]);
    refused(vec![group("a", 1., 1., f64::NAN)], 10., Goal::Utilitarian, &["group a: b", "NaN"]);
    refused(vec![good(), good()], 10., Goal::Utilitarian, &["group a", "twice"]);
    refused(vec![Group { owned: 20., ..good() }], 10., Goal::MaxMin, &["budget", "owned"]);
    refused(vec![Group { weight: 0., ..good() }], 10., Goal::MaxMin, &["weight"]);
    let high = Group { curve: PowerLaw { e: 2., a: 1., b: 1. }, ..good() };
    refused(vec![high], 10., Goal::Ces(-1.), &["top", "group a"]);
    for text in ["", "ces", "ces:x", "ces:2", "gap:3", "mean", "maxmin:1", "ces:NaN"] {
        assert!(text.parse::<Goal>().is_err(), "{text}");
    }
    for goal in [Goal::Utilitarian, Goal::MaxMin, Goal::Ces(-1.5), Goal::Gap(0.5)] {
        assert_eq!(goal.to_string().parse::<Goal>().unwrap(), goal);
    }
    let poor = SamplerConfig { budget: 10., warm_up: 50, ..SamplerConfig::default() };
    let source = Source { name: "a".into(), cost: 1., weight: 1. };
    assert!(AdaptiveSampler::new(poor, vec![source]).unwrap_err().to_string().contains("warm-up"));
}

/// Three populations of 40 people and 30 variants in PLINK's format.
fn plink_files(folder: &std::path::Path) -> PlinkConfig {
    let mut rng = Seed::new(8).rng();
    let (mut fam, mut bim, mut bed) = (String::new(), String::new(), vec![0x6c, 0x1b, 0x01]);
    for i in 0..120 {
        fam.push_str(&format!("P{} i{i} 0 0 0 -9\n", i % 3));
    }
    for v in 0..30 {
        bim.push_str(&format!("1 v{v} 0 {v} T A\n"));
        let codes: Vec<u8> = (0..120).map(|_| [0, 1, 2, 3][rng.below(4) as usize]).collect();
        bed.extend(codes.chunks(4).map(|c| c[0] | c[1] << 2 | c[2] << 4 | c[3] << 6));
    }
    let path = folder.join("g");
    for (ending, bytes) in [("fam", fam.as_bytes()), ("bim", bim.as_bytes()), ("bed", &bed[..])] {
        std::fs::write(path.with_extension(ending), bytes).unwrap();
    }
    PlinkConfig {
        path,
        causal: 20,
        effect_correlation: 0.9,
        heritability: 0.9,
        held: 10,
        shares: [("P0", 0.5), ("P1", 0.3), ("P2", 0.2)].map(|(n, s)| (n.to_owned(), s)).into(),
    }
}

#[test]
fn genotypes_from_files_predict_and_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let config = plink_files(folder.path());
    let world = World::new(&WorldConfig::Plink(config.clone()), 100, Seed::new(1)).unwrap();
    assert_eq!((&world.names[1], world.shares[1], world.available[1]), (&"P1".to_owned(), 0.3, 20));
    let loss = |n: u64| (0..3).map(|g| world.test_loss(g, n)).sum::<f64>();
    assert!(loss(20) < 3. && loss(20) > 0.);
    let refused = |config: &PlinkConfig| populations(config, Seed::new(1)).unwrap_err().to_string();
    assert!(refused(&PlinkConfig { causal: 31, ..config.clone() }).contains("1 to 30"));
    assert!(refused(&PlinkConfig { held: 11, ..config.clone() }).contains("`P0` has 40 people"));
    let missing = PlinkConfig { path: folder.path().join("h"), ..config.clone() };
    assert!(refused(&missing).contains("h.fam: is not there"));
    let shares = PlinkConfig { shares: [("P0".to_owned(), 1.)].into(), ..config.clone() };
    let error = World::new(&WorldConfig::Plink(shares), 100, Seed::new(1)).unwrap_err();
    assert!(error.to_string().contains("P0, P1, P2"), "{error}");
    std::fs::write(config.path.with_extension("bed"), [0x6c, 0x1b, 0x01, 0]).unwrap();
    assert!(refused(&config).contains("holds 4 bytes"));
}

#[test]
fn scores_fit_the_people_they_were_trained_on() {
    let folder = tempfile::tempdir().unwrap();
    let config = plink_files(folder.path());
    let population = &populations(&config, Seed::new(1)).unwrap()[0];
    let (trained, held): (Vec<usize>, Vec<usize>) = ((0..25).collect(), (25..40).collect());
    let r = population.r_squared(&trained, &held);
    assert!((0. ..=1.).contains(&r));
    let all: Vec<usize> = (0..40).collect();
    assert!(population.r_squared(&all, &all) > 0.8);
}
