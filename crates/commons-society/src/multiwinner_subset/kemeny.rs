//! Kemeny's consensus ranking: the order with the fewest disagreements with the voters, pair by
//! pair.

use super::Rankings;
use super::simulate::margins;

/// Most items for which the best of all orders is found.
pub const EXACT: usize = 14;

/// A consensus order, best first, and whether it is certainly one of fewest disagreements.
///
/// Up to [`EXACT`] items by dynamic programming over sets: the cost of an order whose first items
/// are the set `S` is that of `S` without its last item, and of the pairs that item is last in.
/// Beyond, the order by Borda is improved by moving single items until that helps no more.
pub fn consensus(rankings: &Rankings) -> (Vec<usize>, bool) {
    of_margins(rankings.items(), &margins(rankings))
}

/// As [`consensus`], of the `[m, m]` pairwise [`margins`].
pub fn of_margins(m: usize, margin: &[f64]) -> (Vec<usize>, bool) {
    match m <= EXACT {
        true => (over_sets(m, margin), true),
        false => (by_moves(m, margin), false),
    }
}

/// Majorities against an order: `Σ` over pairs `a` before `b` of `max(0, votes for b − votes for a)`,
/// which differs from the number of disagreements by what no order can avoid.
pub fn disagreement(order: &[usize], margin: &[f64]) -> f64 {
    let m = order.len();
    let against = |(p, &a): (usize, &usize)| {
        order[p + 1..].iter().map(|&b| (-margin[a * m + b]).max(0.)).sum::<f64>()
    };
    order.iter().enumerate().map(against).sum()
}

/// `margin[a, b]` is votes for `a` above `b` less those for `b` above `a`.
fn over_sets(m: usize, margin: &[f64]) -> Vec<usize> {
    let sets = 1_usize << m;
    let (mut cost, mut last) = (vec![f64::INFINITY; sets], vec![0_u8; sets]);
    cost[0] = 0.;
    for set in 1..sets {
        for c in (0..m).filter(|c| set >> c & 1 == 1) {
            let before = set & !(1 << c);
            let above = (0..m).filter(|b| before >> b & 1 == 1);
            let pairs: f64 = above.map(|b| (-margin[b * m + c]).max(0.)).sum();
            // At equal cost the later index goes last.
            if cost[before] + pairs <= cost[set] {
                (cost[set], last[set]) = (cost[before] + pairs, c as u8);
            }
        }
    }
    let mut order = Vec::with_capacity(m);
    let mut set = sets - 1;
    while set != 0 {
        let c = usize::from(last[set]);
        order.push(c);
        set &= !(1 << c);
    }
    order.reverse();
    order
}

fn by_moves(m: usize, margin: &[f64]) -> Vec<usize> {
    let merit = |c: usize| margin[c * m..(c + 1) * m].iter().sum::<f64>();
    let mut order: Vec<usize> = (0..m).collect();
    order.sort_by(|&a, &b| merit(b).total_cmp(&merit(a)).then(a.cmp(&b)));
    // Each round makes the sum of majorities agreed with larger; the bound is for safety only.
    for _ in 0..m * m {
        let mut moved = false;
        for c in 0..m {
            let Some(from) = order.iter().position(|&o| o == c) else { continue };
            let (mut best, mut to) = (1e-9, from);
            let mut gain = 0.;
            for at in (0..from).rev() {
                gain += margin[c * m + order[at]];
                if gain > best {
                    (best, to) = (gain, at);
                }
            }
            gain = 0.;
            for (at, &other) in order.iter().enumerate().skip(from + 1) {
                gain -= margin[c * m + other];
                if gain > best {
                    (best, to) = (gain, at);
                }
            }
            if to != from {
                order.remove(from);
                order.insert(to, c);
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    order
}
