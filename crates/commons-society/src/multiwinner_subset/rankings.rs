//! Rankings of items by voters: strict, with ties, incomplete, or approvals.

use crate::{Error, Result};

/// Places stored at most: 16 GiB.
const MOST_PLACES: usize = 1 << 31;

/// What `n` voters think of `m` items.
///
/// A ballot is a sequence of blocks of tied items, best first; items it does not name are tied at
/// the bottom. An item's *place* is the number of items in the blocks above its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Rankings {
    items: Vec<String>,
    weights: Vec<f64>,
    /// `[n, m]`
    place: Vec<u32>,
    /// Size of the item's block, `[n, m]`.
    size: Vec<u32>,
    /// Items approved by each ballot, if these are approval ballots.
    approved: Option<Vec<u32>>,
    strict: bool,
}

/// One ballot before it is laid out.
#[derive(Debug, Clone, PartialEq)]
pub struct Ballot {
    /// How many voters cast it.
    pub weight: f64,
    /// Blocks of tied items by index, best first.
    pub blocks: Vec<Vec<usize>>,
}

impl Rankings {
    /// Complete strict rankings: each of `orders` holds every item once, best first.
    ///
    /// # Errors
    /// Naming the ranking that leaves an item out or has one twice.
    pub fn from_orders(items: Vec<String>, orders: &[Vec<usize>]) -> Result<Self> {
        let m = items.len();
        let mut rankings = Self::empty(items, orders.len())?;
        rankings.place.reserve(orders.len() * m);
        for (v, order) in orders.iter().enumerate() {
            let start = rankings.place.len();
            rankings.place.resize(start + m, u32::MAX);
            for (p, &c) in order.iter().enumerate() {
                match rankings.place.get_mut(start + c).filter(|_| c < m) {
                    Some(slot) if *slot == u32::MAX => *slot = p as u32,
                    Some(_) => return Err(ballot_error(v, format!("has item {c} twice"))),
                    None => return Err(ballot_error(v, format!("names item {c} of {m}"))),
                }
            }
            if order.len() != m {
                let reason = format!("ranks {} of {m} items", order.len());
                return Err(ballot_error(v, reason));
            }
        }
        rankings.size = vec![1; rankings.place.len()];
        rankings.weights = vec![1.; orders.len()];
        rankings.nonempty()
    }

    /// The same ballots, cast by as many voters as `weights` says.
    ///
    /// # Errors
    /// When there is not one weight above 0 for each ballot.
    pub fn weighted(mut self, weights: Vec<f64>) -> Result<Self> {
        let fine = |w: &f64| *w > 0. && w.is_finite();
        if weights.len() != self.weights.len() || !weights.iter().all(fine) {
            return Err(Error::config("weights", "are not one number above 0 for each ballot"));
        }
        self.weights = weights;
        Ok(self)
    }

    /// Rankings with ties, possibly incomplete.
    ///
    /// # Errors
    /// Naming the ballot that has an item twice or one that is not there, or whose weight is not
    /// above 0.
    pub fn from_ballots(items: Vec<String>, ballots: &[Ballot]) -> Result<Self> {
        let m = items.len();
        let mut rankings = Self::empty(items, ballots.len())?;
        for (v, ballot) in ballots.iter().enumerate() {
            if !(ballot.weight > 0. && ballot.weight.is_finite()) {
                let reason = format!("weighs {}, which is not above 0", ballot.weight);
                return Err(ballot_error(v, reason));
            }
            let start = rankings.place.len();
            rankings.place.resize(start + m, u32::MAX);
            rankings.size.resize(start + m, 0);
            let mut above = 0;
            for block in &ballot.blocks {
                for &c in block {
                    if c >= m {
                        return Err(ballot_error(v, format!("names item {c} of {m}")));
                    }
                    if rankings.place[start + c] != u32::MAX {
                        return Err(ballot_error(v, format!("has item {c} twice")));
                    }
                    rankings.place[start + c] = above;
                    rankings.size[start + c] = block.len() as u32;
                }
                above += block.len() as u32;
            }
            for c in start..start + m {
                if rankings.place[c] == u32::MAX {
                    rankings.place[c] = above;
                    rankings.size[c] = m as u32 - above;
                }
            }
            rankings.weights.push(ballot.weight);
        }
        rankings.strict = rankings.size.iter().all(|&s| s == 1);
        rankings.nonempty()
    }

    /// Approval ballots: each of `ballots` holds the approved items with its weight.
    ///
    /// # Errors
    /// As [`from_ballots`](Self::from_ballots).
    pub fn from_approvals(items: Vec<String>, ballots: &[(f64, Vec<usize>)]) -> Result<Self> {
        let approved = ballots.iter().map(|(_, a)| a.len() as u32).collect();
        let blocks = |a: &Vec<usize>| if a.is_empty() { vec![] } else { vec![a.clone()] };
        let ballots: Vec<Ballot> =
            ballots.iter().map(|(w, a)| Ballot { weight: *w, blocks: blocks(a) }).collect();
        let mut rankings = Self::from_ballots(items, &ballots)?;
        rankings.approved = Some(approved);
        Ok(rankings)
    }

    fn empty(items: Vec<String>, n: usize) -> Result<Self> {
        if items.is_empty() {
            return Err(Error::config("items", "there are none; give at least one"));
        }
        if items.len().checked_mul(n).is_none_or(|places| places > MOST_PLACES) {
            let reason = format!("{n} ballots over {} items do not fit; take fewer", items.len());
            return Err(Error::config("rankings", reason));
        }
        Ok(Self {
            items,
            weights: Vec::new(),
            place: Vec::new(),
            size: Vec::new(),
            approved: None,
            strict: true,
        })
    }

    fn nonempty(self) -> Result<Self> {
        if self.weights.is_empty() {
            return Err(Error::config("rankings", "there are none; give at least one"));
        }
        Ok(self)
    }

    /// Number of items, `m`.
    pub fn items(&self) -> usize {
        self.items.len()
    }

    /// Names of the items.
    pub fn names(&self) -> &[String] {
        &self.items
    }

    /// Number of different ballots, `n` if none were merged.
    pub fn ballots(&self) -> usize {
        self.weights.len()
    }

    /// Number of voters: the sum of the weights.
    pub fn voters(&self) -> f64 {
        self.weights.iter().sum()
    }

    /// How many voters cast each ballot.
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// Places of all items on ballot `v`, 0 for the best.
    pub fn places(&self, v: usize) -> &[u32] {
        &self.place[v * self.items()..(v + 1) * self.items()]
    }

    /// Sizes of the blocks of all items on ballot `v`.
    pub fn sizes(&self, v: usize) -> &[u32] {
        &self.size[v * self.items()..(v + 1) * self.items()]
    }

    /// Items approved by ballot `v`; `None` if these are no approval ballots.
    pub fn approved(&self, v: usize) -> Option<u32> {
        self.approved.as_ref().and_then(|a| a.get(v).copied())
    }

    /// Whether every ballot ranks every item without ties.
    pub fn is_strict(&self) -> bool {
        self.strict
    }

    /// The items of ballot `v`, best first, ties by index.
    pub fn order(&self, v: usize) -> Vec<usize> {
        let places = self.places(v);
        let mut order: Vec<usize> = (0..self.items()).collect();
        order.sort_by_key(|&c| places[c]);
        order
    }
}

fn ballot_error(v: usize, reason: String) -> Error {
    let remedy = "rank every item once, by its index from 0";
    Error::config(format!("ranking {}", v + 1), format!("{reason}; {remedy}"))
}

/// Names `0`, `1`, … for items that have none.
pub fn numbered(m: usize) -> Vec<String> {
    (0..m).map(|c| c.to_string()).collect()
}
