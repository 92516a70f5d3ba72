//! Golden cases in exact arithmetic, axioms against all subsets, properties of the mechanisms.

use commons_core::Seed;
use num_rational::{BigRational, Ratio};
use proptest::prelude::*;

use super::manipulation::{average_equilibrium, equilibrium};
use super::markets::{coordinatewise, independent_markets};
use super::welfare::{constrained_median_bound, uniform_phantom_bound, welfare, worst_case};
use super::*;

type Q = Ratio<i64>;

fn q(text: &str) -> Q {
    <Q as Scalar>::parse(text).unwrap()
}

fn qs(text: &str) -> Vec<Q> {
    text.split_whitespace().map(q).collect()
}

fn exact(text: &str) -> Profile<Q> {
    Profile::new(qs(text)).unwrap()
}

/// Positions, then UP, CM, lower median, average, midpoint, SW(UP), TC(UP).
const GOLDEN: [(&str, &str); 6] = [
    ("0 0 1", "1/3 1/3 0 1/3 1/2 5/3 4/3"),
    ("1/5 3/10 9/10", "1/3 1/3 3/10 7/15 11/20 34/15 11/15"),
    ("0 0 0 1", "1/4 1/4 0 1/4 1/2 5/2 3/2"),
    ("1/10 1/10 2/5 4/5 1", "2/5 2/5 2/5 12/25 11/20 17/5 8/5"),
    ("1/2 1/2 1/2 1/2", "1/2 1/2 1/2 1/2 1/2 4 0"),
    ("0 0 0 0 0 0 0 1 1 1", "3/10 1/10 0 3/10 1/2 29/5 21/5"),
];

#[test]
fn golden_points_and_welfare() {
    for (x, wanted) in GOLDEN {
        let (profile, wanted) = (exact(x), qs(wanted));
        for (mechanism, want) in Mechanism::PLAIN.iter().zip(&wanted).take(5) {
            assert_eq!(mechanism.outcome(&profile).unwrap(), *want, "{mechanism} at {x}");
        }
        let w = welfare(&profile, &wanted[0]).unwrap();
        assert_eq!((w.social_welfare, w.total_cost), (wanted[5], wanted[6]), "{x}");
    }
}

#[test]
fn golden_nash() {
    for (x, want) in [("0 0 1", 0.3333), ("1/5 3/10 9/10", 0.3491), ("1/10 1/10 2/5 4/5 1", 0.4224)]
    {
        let got = Mechanism::Nash.outcome(&exact(x)).unwrap().to_f64();
        assert!((got - want).abs() < 1e-4, "{x}: {got}");
    }
}

#[test]
fn golden_verdicts() {
    let verdicts = |x: &str, m: &Mechanism| {
        let profile = exact(x);
        let y = m.outcome(&profile).unwrap();
        [axioms::ifs(&profile, &y), axioms::ufs(&profile, &y), axioms::pf(&profile, &y)]
            .map(|v| v.is_ok())
    };
    let seven = GOLDEN[5].0;
    assert_eq!(verdicts(seven, &Mechanism::UniformPhantom), [true, true, true]);
    assert_eq!(verdicts(seven, &Mechanism::ConstrainedMedian), [true, false, false]);
    assert_eq!(verdicts(seven, &Mechanism::Median), [false, false, false]);
    assert_eq!(verdicts(seven, &Mechanism::Midpoint), [true, false, false]);
    assert!(!verdicts("0 0 1", &Mechanism::Median)[0]);
    assert!(!verdicts("0 0 1", &Mechanism::Midpoint)[1]);
    for mechanism in &Mechanism::PLAIN[..5] {
        assert_eq!(verdicts(GOLDEN[1].0, mechanism), [true; 3], "{mechanism}");
    }
}

#[test]
fn a_witness_names_the_wronged() {
    let profile = exact("0 0 1 1 1");
    let witness = axioms::ufs(&profile, &q("0")).unwrap_err();
    assert_eq!(witness.agents, [2, 3, 4]);
    assert_eq!((witness.distance, witness.allowed, witness.share), (q("1"), q("2/5"), q("3/5")));
    assert_eq!(witness.excess(), q("3/5"));
    // Floats that are equal but for rounding are one group.
    let profile = Profile::new(vec![0.1 + 0.2, 0.3, 1.]).unwrap();
    assert_eq!(profile.clusters().len(), 2);
}

#[test]
fn worst_welfare_on_grids_equals_the_bounds() {
    let up = ["1", "6/5", "6/5", "20/17", "6/5"];
    let cm = ["1", "6/5", "6/5", "20/17", "15/13"];
    for n in 2..=6 {
        let steps = if n < 5 { 12 } else { 6 };
        let worst = |m: &Mechanism| worst_case::<Q>(m, n, steps).unwrap();
        let (u, c) = (worst(&Mechanism::UniformPhantom), worst(&Mechanism::ConstrainedMedian));
        assert_eq!(u.welfare_ratio, uniform_phantom_bound::<Q>(n), "{n}");
        assert_eq!(c.welfare_ratio, constrained_median_bound::<Q>(n), "{n}");
        assert_eq!(u.cost_ratio, Q::whole(if n == 2 { 1 } else { n - 1 }), "{n}");
        if n > 2 {
            assert_eq!((u.welfare_ratio, c.welfare_ratio), (q(up[n - 2]), q(cm[n - 2])), "{n}");
        }
    }
    let limit = uniform_phantom_bound::<f64>(5_000);
    assert!((limit - (1. + 2_f64.sqrt()) / 2.).abs() < 1e-6, "{limit}");
    assert!(worst_case::<f64>(&Mechanism::Mean, 40, 40).is_err());
}

#[test]
fn a_random_dictator_costs_the_mean_over_dictators() {
    let profile = Profile::weighted(qs("1/10 4/5 2/5 1"), qs("1 2 1 3")).unwrap();
    let cost = |i: usize| profile.share(i) * profile.total_cost(&profile.positions()[i]);
    let mean = (0..4).map(cost).fold(q("0"), |a, b| a + b);
    assert_eq!(welfare::random_dictator_cost(&profile), mean);
}

#[test]
fn no_misreport_pays_on_the_grid() {
    let mut tried = 0;
    for n in 2..=4 {
        let (profitable, all) = strategyproof_on_grid(&Mechanism::UniformPhantom, n, 8).unwrap();
        assert_eq!(profitable, 0);
        tried += all;
    }
    assert_eq!(tried, 23_085);
    assert!(strategyproof_on_grid(&Mechanism::Mean, 2, 4).unwrap().0 > 0);
}

#[test]
fn only_the_uniform_phantom_survives() {
    for n in 2..=3 {
        let found = survivors(n).unwrap();
        let uniform: Vec<Q> = (0..=n).map(|k| Q::ratio(k, n)).collect();
        assert_eq!(found.ufs, std::slice::from_ref(&uniform));
        assert_eq!(found.pf, std::slice::from_ref(&uniform));
        assert_eq!(found.proportional, [uniform]);
        let band = |a: &Q| *a >= Q::ratio(1, n) && *a <= Q::ratio(n - 1, n);
        assert!(found.ifs.iter().all(|alpha| alpha[1..n].iter().all(band)));
    }
}

#[test]
fn phantoms_of_ones_own() {
    let profile = exact("0 0 1");
    let own: Mechanism = "phantoms:0.2,0.5".parse().unwrap();
    assert_eq!(own.outcome(&profile).unwrap(), q("1/5"));
    assert_eq!(own.phantoms(&profile).unwrap(), qs("1/5 1/2"));
    let thirds = Mechanism::Phantoms(vec![1. / 3., 2. / 3.]);
    let x = Profile::new(vec![0.1, 0.4, 0.9]).unwrap();
    let up = Mechanism::UniformPhantom.outcome(&x).unwrap();
    assert!((thirds.outcome(&x).unwrap() - up).abs() < 1e-12);
    for wrong in ["phantoms:0.5,0.2", "phantoms:0.5,2"] {
        let mechanism: Mechanism = wrong.parse().unwrap();
        assert!(mechanism.outcome(&profile).is_err(), "{wrong}");
    }
    for wrong in ["medain", "phantoms", "phantoms:a", "dictator:x", "median:1"] {
        let error = wrong.parse::<Mechanism>().unwrap_err().to_string();
        assert!(error.contains(wrong) && error.contains("uniform-phantom"), "{error}");
    }
    assert!(Mechanism::Dictator(3).outcome(&profile).is_err());
}

#[test]
fn a_tie_at_half_with_even_weights_is_the_lower_median() {
    let weighted = Profile::weighted(qs("0 1"), qs("1/2 1/2")).unwrap();
    assert_eq!(Mechanism::Median.outcome(&weighted).unwrap(), q("0"));
    let one = exact("3/4");
    for mechanism in &Mechanism::PLAIN[..5] {
        assert_eq!(mechanism.outcome(&one).unwrap(), q("3/4"), "{mechanism}");
    }
}

#[test]
fn bad_profiles_are_refused() {
    let refused = |x: Vec<f64>, w: Vec<f64>| Profile::weighted(x, w).unwrap_err().to_string();
    assert!(refused(vec![], vec![]).contains("at least one agent"));
    assert!(refused(vec![0., f64::NAN], vec![1., 1.]).contains("agent 2"));
    assert!(refused(vec![0., 1.5], vec![1., 1.]).contains("1.5"));
    assert!(refused(vec![0., 1.], vec![1., 0.]).contains("weight of agent 2"));
    assert!(refused(vec![0., 1.], vec![1.]).contains("one for each"));
}

#[test]
fn equilibria_of_the_average_are_the_uniform_phantom() {
    for p in 0..300_u64 {
        let seed = Seed::new(p);
        let n = 2 + seed.fork("n", 0).rng().below(8) as usize;
        let profile = Profile::new(Spread::ALL[p as usize % 5].draw(n, seed)).unwrap();
        let up = Mechanism::UniformPhantom.outcome(&profile).unwrap();
        let end = average_equilibrium(&profile, 20_000);
        assert!(end.converged && (end.outcome - up).abs() < 1e-6, "{p}: {end:?} {up}");
    }
    let weighted = Profile::weighted(vec![0., 0.6, 1.], vec![3., 1., 2.]).unwrap();
    let up = Mechanism::UniformPhantom.outcome(&weighted).unwrap();
    assert!((average_equilibrium(&weighted, 1_000).outcome - up).abs() < 1e-6);
    let mean = |r: &[f64]| Mechanism::Mean.outcome(&Profile::new(r.to_vec())?);
    let end = equilibrium(mean, &[0.1, 0.4, 0.9, 1.], 500, 1e-9).unwrap();
    assert!((end.outcome - uniform_phantom(&[0.1, 0.4, 0.9, 1.]).unwrap()).abs() < 1e-6);
}

#[test]
fn budgets_add_up_and_two_alternatives_are_the_uniform_phantom() {
    let wishes = [vec![1., 0., 0.], vec![0., 1., 0.], vec![0., 0.5, 0.5]];
    let point = independent_markets(&wishes, &[1.; 3]).unwrap();
    assert!((point.iter().sum::<f64>() - 1.).abs() < 1e-9, "{point:?}");
    let x = [0.1, 0.3, 0.35, 0.9];
    let two: Vec<Vec<f64>> = x.iter().map(|&v| vec![v, 1. - v]).collect();
    let point = independent_markets(&two, &[1.; 4]).unwrap();
    assert!((point[0] - uniform_phantom(&x).unwrap()).abs() < 1e-9, "{point:?}");
    // Single-minded agents get their shares.
    let point = independent_markets(&[vec![1., 0., 0.], vec![0., 0., 1.]], &[3., 1.]).unwrap();
    assert!((point[0] - 0.75).abs() < 1e-9 && (point[2] - 0.25).abs() < 1e-9, "{point:?}");
    let error = independent_markets(&[vec![0.5, 0.2]], &[1.]).unwrap_err().to_string();
    assert!(error.contains("agent 1"), "{error}");
    let profiles = [Profile::new(vec![0., 1.]).unwrap(), Profile::new(vec![0.2, 0.4]).unwrap()];
    assert_eq!(coordinatewise(&Mechanism::Mean, &profiles).unwrap().len(), 2);
}

#[test]
fn groups_below_their_fair_share_are_named() {
    let profile = exact("0 0 0 1 1");
    let names: Vec<String> = ["a", "a", "a", "b", "b"].map(String::from).to_vec();
    let at = |y: &str| groups::group_shares(&profile, &names, &q(y)).unwrap();
    let [a, b] = &at("0")[..] else { panic!() };
    assert!(!a.below_fair_share && b.below_fair_share);
    assert!((b.share - 0.4).abs() < 1e-12 && (b.max_distance - 1.).abs() < 1e-12);
    assert!(at("2/5").iter().all(|g| !g.below_fair_share));
    assert!(groups::group_shares(&profile, &names[1..], &q("0")).is_err());
}

/// Proportional fairness by its definition: every set of agents.
fn pf_by_all_sets(x: &[Q], y: Q) -> bool {
    let n = x.len();
    (1_u32..1 << n).all(|set| {
        let members: Vec<Q> = (0..n).filter(|i| set >> i & 1 == 1).map(|i| x[i]).collect();
        let (low, high) = (*members.iter().min().unwrap(), *members.iter().max().unwrap());
        let allowed = Q::whole(1) - Q::ratio(members.len(), n) + high - low;
        members.iter().all(|m| m.distance(&y) <= allowed)
    })
}

fn positions() -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec(prop_oneof![(0..=8_u8).prop_map(|k| f64::from(k) / 8.), 0.0..=1.0], 1..9)
}

fn grid() -> impl Strategy<Value = Vec<Q>> {
    prop::collection::vec((0..=12_usize).prop_map(|k| Q::ratio(k, 12)), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn uniform_phantom_meets_every_axiom(x in positions(), w in prop::collection::vec(0.1..5.0, 9)) {
        let weights = w[..x.len()].to_vec();
        for profile in [Profile::new(x.clone()).unwrap(), Profile::weighted(x, weights).unwrap()] {
            let y = Mechanism::UniformPhantom.outcome(&profile).unwrap();
            for axiom in Axiom::ALL {
                prop_assert!(axiom.check(&profile, &y).is_ok(), "{axiom:?} {y}");
            }
        }
    }

    #[test]
    fn constrained_median_gives_individual_fair_share(
        x in positions(),
        w in prop::collection::vec(0.1..5.0, 9),
    ) {
        let weights = w[..x.len()].to_vec();
        for profile in [Profile::new(x.clone()).unwrap(), Profile::weighted(x, weights).unwrap()] {
            let y = Mechanism::ConstrainedMedian.outcome(&profile).unwrap();
            prop_assert!(axioms::ifs(&profile, &y).is_ok() && axioms::unanimity(&profile, &y).is_ok());
        }
    }

    #[test]
    fn the_formula_is_the_median_with_phantoms(x in grid()) {
        let n = x.len();
        let mut all = x.clone();
        all.extend((1..n).map(|k| Q::ratio(k, n)));
        all.sort();
        prop_assert_eq!(uniform_phantom(&x).unwrap(), all[n - 1]);
        // Repeating agents is the same as weighting them.
        let w: Vec<Q> = (0..n).map(|i| Q::whole(1 + i % 3)).collect();
        let copies: Vec<Q> = (0..n).flat_map(|i| vec![x[i]; 1 + i % 3]).collect();
        for m in [Mechanism::UniformPhantom, Mechanism::Median, Mechanism::Mean] {
            let weighted = m.outcome(&Profile::weighted(x.clone(), w.clone()).unwrap()).unwrap();
            prop_assert_eq!(weighted, m.outcome(&Profile::new(copies.clone()).unwrap()).unwrap());
        }
    }

    #[test]
    fn proportional_fairness_needs_few_sets(x in grid(), y in 0..=24_usize) {
        let y = Q::ratio(y, 24);
        let profile = Profile::new(x.clone()).unwrap();
        let found = axioms::pf(&profile, &y);
        prop_assert_eq!(found.is_ok(), pf_by_all_sets(&x, y));
        if let Err(w) = found {
            let worst = w.agents.iter().map(|&i| x[i].distance(&y)).max().unwrap();
            prop_assert_eq!(worst, w.distance);
            let allowed = Q::whole(1) - w.share + w.span.1 - w.span.0;
            prop_assert_eq!(allowed, w.allowed);
        }
    }

    #[test]
    fn axioms_imply_each_other(x in grid(), y in 0..=24_usize) {
        let (profile, y) = (Profile::new(x).unwrap(), Q::ratio(y, 24));
        let holds = |a: Axiom| a.check(&profile, &y).is_ok();
        prop_assert!(!holds(Axiom::ProportionalFairness) || holds(Axiom::UnanimousFairShare));
        if holds(Axiom::UnanimousFairShare) {
            for weaker in [Axiom::Unanimity, Axiom::IndividualFairShare, Axiom::Proportionality] {
                prop_assert!(holds(weaker), "{weaker:?}");
            }
        }
    }

    #[test]
    fn mirrored_monotone_and_lipschitz(x in positions(), i in 0..9_usize, r in 0.0..=1.0) {
        let mirrored: Vec<f64> = x.iter().map(|v| 1. - v).collect();
        let y = uniform_phantom(&x).unwrap();
        prop_assert!((uniform_phantom(&mirrored).unwrap() - (1. - y)).abs() < 1e-12);
        let i = i % x.len();
        let mut moved = x.clone();
        moved[i] = r;
        let change = uniform_phantom(&moved).unwrap() - y;
        prop_assert!(change * (r - x[i]) >= 0. && change.abs() <= (r - x[i]).abs() + 1e-12);
        let mut turned = x.clone();
        turned.reverse();
        prop_assert_eq!(uniform_phantom(&turned).unwrap(), y);
    }

    #[test]
    fn strategyproof_mechanisms_are(x in positions(), w in prop::collection::vec(0.1..5.0, 9)) {
        let profile = Profile::weighted(x.clone(), w[..x.len()].to_vec()).unwrap();
        for m in [
            Mechanism::UniformPhantom,
            Mechanism::ConstrainedMedian,
            Mechanism::Median,
            Mechanism::Phantoms(vec![0.2, 0.5]),
            Mechanism::Constant(0.3),
        ] {
            for i in 0..x.len() {
                prop_assert_eq!(best_deviation(&m, &profile, i).unwrap(), None, "{}", m);
            }
        }
    }

    #[test]
    fn somebody_gains_under_the_mean(x in prop::collection::vec(0.05..0.95_f64, 2..8)) {
        let profile = Profile::new(x.clone()).unwrap();
        let y = Mechanism::Mean.outcome(&profile).unwrap();
        prop_assume!(x.iter().any(|v| (v - y).abs() > 1e-6));
        let gains = (0..x.len()).any(|i| best_deviation(&Mechanism::Mean, &profile, i).unwrap().is_some());
        prop_assert!(gains);
    }

    #[test]
    fn rationals_and_floats_agree(x in grid()) {
        let float: Vec<f64> = x.iter().map(Scalar::to_f64).collect();
        let big: Vec<BigRational> =
            x.iter().map(|v| <BigRational as Scalar>::parse(&v.to_string()).unwrap()).collect();
        for m in &Mechanism::PLAIN {
            let a = m.outcome(&Profile::new(float.clone()).unwrap()).unwrap();
            let b = m.outcome(&Profile::new(big.clone()).unwrap()).unwrap();
            prop_assert!((a - Scalar::to_f64(&b)).abs() < 1e-9, "{m}");
        }
    }
}
