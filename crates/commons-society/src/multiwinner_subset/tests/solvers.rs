//! Solvers against each other, and the consensus ranking against all orders.

use proptest::prelude::*;

use super::{random_groups, random_rankings, subsets};
use crate::multiwinner_subset::exact::{Limits, solve};
use crate::multiwinner_subset::kemeny::{EXACT, consensus, disagreement, of_margins};
use crate::multiwinner_subset::simulate::margins;
use crate::multiwinner_subset::{
    Bounds, Group, Rankings, Score, Solver, greedy, greedy_scored, numbered, select,
};

fn orders(m: usize) -> Vec<Vec<usize>> {
    if m == 0 {
        return vec![Vec::new()];
    }
    let longer = |order: Vec<usize>| {
        (0..m).map(move |at| {
            let mut order = order.clone();
            order.insert(at, m - 1);
            order
        })
    };
    orders(m - 1).into_iter().flat_map(longer).collect()
}

#[test]
fn large_consensus_is_an_order_no_single_move_improves() {
    let m = EXACT + 6;
    let rankings = random_rankings(m, 9, 2);
    let (order, exact) = consensus(&rankings);
    let margin = margins(&rankings);
    let cost = disagreement(&order, &margin);
    assert!(!exact);
    for from in 0..m {
        for to in 0..m {
            let mut moved = order.clone();
            let c = moved.remove(from);
            moved.insert(to, c);
            assert!(disagreement(&moved, &margin) >= cost - 1e-9);
        }
    }
}

#[test]
fn what_a_solver_cannot_do_is_refused() {
    let rankings = random_rankings(8, 5, 1);
    let group = |name: &str, members: &[usize]| Group {
        name: name.into(),
        members: members.to_vec(),
        min: 1,
        max: 2,
    };
    let overlapping = vec![group("a", &[0, 1, 2]), group("b", &[2, 3, 4])];
    let overlapping = Bounds::new(8, overlapping).unwrap();
    let refused = |score: &Score, bounds: &Bounds| {
        select(&rankings, score, 3, bounds, Solver::ContinuousGreedy).unwrap_err().to_string()
    };
    let harmonic: Score = "owa:harmonic".parse().unwrap();
    assert!(refused(&harmonic, &Bounds::none(8)).contains("only the best item counts"));
    assert!(refused(&Score::CC, &overlapping).contains("do not overlap"));
    let large = random_rankings(50, 2_100, 0);
    let error = select(&large, &Score::CC, 3, &Bounds::none(50), Solver::Milp).unwrap_err();
    assert!(error.to_string().contains("use exact"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn consensus_has_the_fewest_disagreements(m in 1..6_usize, n in 1..7_usize, seed in 0..10_000_u64) {
        let margin = margins(&random_rankings(m, n, seed));
        let (order, exact) = of_margins(m, &margin);
        let fewest = orders(m).iter().map(|o| disagreement(o, &margin)).fold(f64::MAX, f64::min);
        prop_assert!(exact && (disagreement(&order, &margin) - fewest).abs() < 1e-9);
    }

    #[test]
    fn a_linear_program_confirms_branch_and_bound(
        m in 3..8_usize, n in 1..8_usize, k in 1..4_usize, seed in 0..10_000_u64,
        which in 0..4_usize, overlapping: bool,
    ) {
        let rankings = random_rankings(m, n, seed);
        let score: Score = ["cc", "owa:harmonic", "owa:1,0.5", "borda"][which].parse().unwrap();
        let bounds = random_groups(m, k, seed, overlapping).unwrap_or(Bounds::none(m));
        let best = solve(&score.matrix(&rankings, k).unwrap(), k, &bounds, Limits::default()).unwrap();
        let found = select(&rankings, &score, k, &bounds, Solver::Milp).unwrap();
        prop_assert!((found.score - best.score).abs() < 1e-6, "{} {}", found.score, best.score);
        prop_assert!(bounds.admits(&found.subset));
        prop_assert!(!best.ties.complete || best.ties.committees.contains(&found.subset));
    }

    #[test]
    fn continuous_greedy_keeps_its_promise(
        m in 4..10_usize, n in 1..12_usize, k in 1..5_usize, seed in 0..10_000_u64,
    ) {
        prop_assume!(k <= m);
        let rankings = random_rankings(m, n, seed);
        let bounds = random_groups(m, k, seed, false).unwrap_or(Bounds::none(m));
        let matrix = Score::CC.matrix(&rankings, k).unwrap();
        let admitted = subsets(m, k).into_iter().filter(|s| bounds.admits(s));
        let best = admitted.map(|s| matrix.of(&s)).fold(0., f64::max);
        let found = select(&rankings, &Score::CC, k, &bounds, Solver::ContinuousGreedy).unwrap();
        prop_assert!(bounds.admits(&found.subset));
        // A hundred steps lose a little of 1 − 1/e.
        prop_assert!(found.score >= 0.62 * best, "{} of {best}", found.score);
    }

    #[test]
    fn sorting_lists_the_ties_that_branch_and_bound_finds(
        m in 2..9_usize, n in 1..6_usize, k in 1..5_usize, seed in 0..10_000_u64, which in 0..3_usize,
    ) {
        prop_assume!(k <= m);
        let rankings = random_rankings(m, n, seed);
        let score = [Score::BORDA, Score::SNTV, Score::BLOC][which].clone();
        let free = Bounds::none(m);
        let sorted = select(&rankings, &score, k, &free, Solver::Exact).unwrap();
        let searched = solve(&score.matrix(&rankings, k).unwrap(), k, &free, Limits::default()).unwrap();
        prop_assert_eq!(sorted.ties, searched.ties);
        prop_assert_eq!(sorted.subset, searched.subset);
    }

    #[test]
    fn lazy_greedy_is_greedy(
        m in 2..9_usize, n in 1..30_usize, k in 1..6_usize, seed in 0..10_000_u64,
        which in 0..4_usize, overlapping: bool,
    ) {
        prop_assume!(k <= m);
        let rankings: Rankings = random_rankings(m, n, seed);
        let score: Score = ["cc", "owa:harmonic", "sntv", "borda"][which].parse().unwrap();
        let bounds = random_groups(m, k, seed, overlapping).unwrap_or(Bounds::none(m));
        let matrix = score.matrix(&rankings, k).unwrap();
        let (lazy, plain) =
            (greedy_scored(&matrix, k, &bounds).unwrap(), greedy(&matrix, k, &bounds).unwrap());
        prop_assert_eq!(lazy.order, plain.order);
        prop_assert_eq!(lazy.ties, plain.ties);
    }
}

#[test]
fn equal_ballots_are_merged_and_approvals_counted() {
    let rankings =
        Rankings::from_orders(numbered(3), &[vec![0, 1, 2], vec![0, 1, 2], vec![2, 1, 0]]);
    let matrix = Score::CC.matrix(&rankings.unwrap(), 1).unwrap();
    assert_eq!((matrix.ballots(), matrix.weights()), (2, &[2., 1.][..]));
    let ballots = [(2., vec![0, 2]), (1., vec![]), (1., vec![2])];
    let approvals = Rankings::from_approvals(numbered(3), &ballots).unwrap();
    let pav: Score = "pav".parse().unwrap();
    assert_eq!(pav.singles(&approvals, 2).unwrap(), [2., 0., 3.]);
}
