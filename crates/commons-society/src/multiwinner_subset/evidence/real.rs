//! Experiment 3: rankings that people gave, and people ranked by what is known of them.

use std::path::Path;

use commons_core::Seed;
use commons_core::evidence::Run;

use super::{Board, FUNCTIONS, Settings};
use crate::Result;
use crate::multiwinner_subset::files::{Format, read_as};
use crate::multiwinner_subset::simulate::mean_of;
use crate::multiwinner_subset::{
    Ballot, Bias, Bounds, Latent, Order, Rankings, Ratios, Score, Simulation, by_utility, numbered,
    top,
};
use crate::tabular::{Encoding, Matrix, adult, encode};

/// Where the file of rankings comes from, for messages.
const SUSHI_SOURCE: &str = "get the 5,000 rankings of ten kinds of sushi of Kamishima's data set \
     (`sushi3a.5000.10.order`; PrefLib 00014-00000001.soc), as lines `count,item,item,…`";

/// Rankings of sushi.
///
/// # Errors
/// When the file is not there or holds no rankings.
pub(super) fn sushi(path: &str) -> Result<Rankings> {
    if !Path::new(path).is_file() {
        let error = commons_core::Error::file(path, "", "is not there", SUSHI_SOURCE);
        return Err(error.into());
    }
    read_as(path, Format::PrefLib)
}

/// Voters drawn from a file, half of its items swapped down; 4 of 10 are chosen.
pub(super) fn rankings(
    settings: &Settings,
    file: &Rankings,
    seed: Seed,
    run: &mut Run,
    board: &mut Board,
) -> Result<()> {
    let m = file.items();
    let simulation = Simulation {
        latent: Latent::Ic,
        bias: Bias::Swap { phi: 0.5, lambda: 0.9 },
        m,
        k: (2 * m / 5).max(1),
        minority: (m / 2).max(1),
        n: settings.real_voters,
        repetitions: settings.elections,
    };
    simulation.check()?;
    for score in &FUNCTIONS {
        let mut all = Vec::new();
        for e in 0..settings.elections {
            let seed = seed.fork("election", e as u64);
            let minority = seed.fork("group", 0).rng().sample(m, simulation.minority);
            let (latent, biased) = draw_voters(file, &simulation, &minority, seed)?;
            all.push(simulation.judge(
                score,
                &latent,
                &biased,
                &minority,
                seed.fork("random", 0),
            )?);
        }
        let ratios = mean_of(&all);
        board.add("real rankings, swaps, λ 0.9", score, settings.real_voters, ratios);
        run.measure(&format!("real_{score}_proportional"), ratios.proportional);
        run.measure(&format!("real_{score}_unconstrained"), ratios.unconstrained);
        run.measure(&format!("real_{score}_best"), ratios.best_l);
    }
    Ok(())
}

fn draw_voters(
    file: &Rankings,
    simulation: &Simulation,
    minority: &[usize],
    seed: Seed,
) -> Result<(Rankings, Rankings)> {
    let m = file.items();
    let mut group = vec![false; m];
    minority.iter().for_each(|&c| group[c] = true);
    let mut rng = seed.fork("voters", 0).rng();
    let orders: Vec<Order> =
        (0..simulation.n).map(|_| file.order(rng.weighted(file.weights()))).collect();
    let biased = orders.iter().enumerate().map(|(v, order)| {
        let mut utility = vec![0.; m];
        order.iter().enumerate().for_each(|(p, &c)| utility[c] = (m - p) as f64);
        simulation.bias.apply(&utility, &group, seed.fork("bias", v as u64))
    });
    let biased = biased.collect::<Result<Vec<_>>>()?;
    Ok((
        Rankings::from_orders(file.names().to_vec(), &orders)?,
        Rankings::from_orders(file.names().to_vec(), &biased)?,
    ))
}

/// Features by which people of Adult are ranked; more is better.
const FEATURES: [&str; 5] =
    ["age", "education-num", "hours-per-week", "capital-gain", "capital-loss"];

/// People on offer in an election.
const PEOPLE: usize = 50;
/// Those chosen.
const CHOSEN: usize = 10;
/// Rankers, all of whom see other noise.
const RANKERS: usize = 50;

/// People, ranked by voters of whom each looks at features with weights and noise of its own, and
/// judged by whether they earn over 50 K.
pub(super) struct Adult {
    features: Matrix,
    woman: Vec<bool>,
    rich: Vec<bool>,
}

impl Adult {
    /// # Errors
    /// When the file is not there or is another one.
    pub(super) fn read(path: &str) -> Result<Self> {
        let table = adult(Path::new(path))?;
        let mut features = encode(&table, &FEATURES, Encoding::Label)?;
        features.standardise();
        Ok(Self {
            features,
            woman: table.texts("sex")?.iter().map(|s| *s == "Female").collect(),
            rich: table.texts("income")?.iter().map(|i| i.contains('>')).collect(),
        })
    }

    pub(super) fn measure(
        &self,
        settings: &Settings,
        seed: Seed,
        run: &mut Run,
        board: &mut Board,
    ) -> Result<()> {
        for score in &FUNCTIONS {
            run.check_stop()?;
            let (mut all, mut women): (Vec<Ratios>, [Vec<f64>; 2]) =
                (Vec::new(), Default::default());
            for e in 0..settings.elections {
                let (ratios, shares) = self.election(score, seed.fork("election", e as u64))?;
                all.push(ratios);
                women.iter_mut().zip(shares).for_each(|(list, share)| list.push(share));
            }
            let ratios = mean_of(&all);
            board.add("Adult by noisy features", score, RANKERS, ratios);
            run.measure(&format!("adult_{score}_proportional"), ratios.proportional);
            run.measure(&format!("adult_{score}_unconstrained"), ratios.unconstrained);
            run.measure(&format!("adult_{score}_random"), ratios.random);
            for (name, shares) in ["unconstrained", "proportional"].into_iter().zip(&women) {
                let share = commons_core::stats::mean(shares);
                run.measure(&format!("adult_{score}_women_{name}"), share);
            }
        }
        Ok(())
    }

    /// One draw of people and rankers: ratios, and the share of women among the chosen without and
    /// with the proportional bound.
    fn election(&self, score: &Score, seed: Seed) -> Result<(Ratios, [f64; 2])> {
        let people = seed.fork("people", 0).rng().sample(self.rich.len(), PEOPLE);
        let women: Vec<usize> = (0..PEOPLE).filter(|&c| self.woman[people[c]]).collect();
        let simulation = Simulation {
            latent: Latent::Ic,
            bias: Bias::None,
            m: PEOPLE,
            k: CHOSEN,
            minority: women.len(),
            n: RANKERS,
            repetitions: 1,
        };
        simulation.check()?;
        let ranker = |v: usize| {
            let mut rng = seed.fork("ranker", v as u64).rng();
            let weights: Vec<f64> = FEATURES.iter().map(|_| rng.uniform()).collect();
            let mut seen = |&i: &usize| {
                let merit = self.features.row(i).iter().zip(&weights).map(|(x, w)| x * w);
                merit.sum::<f64>() + rng.normal()
            };
            by_utility(&people.iter().map(&mut seen).collect::<Vec<_>>())
        };
        let seen: Vec<Order> = (0..RANKERS).map(ranker).collect();
        let seen = Rankings::from_orders(numbered(PEOPLE), &seen)?;
        let half = |rich: bool| (0..PEOPLE).filter(|&c| self.rich[people[c]] == rich).collect();
        let blocks: Vec<Vec<usize>> =
            [half(true), half(false)].into_iter().filter(|b: &Vec<usize>| !b.is_empty()).collect();
        let truth = Ballot { weight: RANKERS as f64, blocks };
        let truth = Rankings::from_ballots(numbered(PEOPLE), &[truth])?;
        let ratios = simulation.judge(score, &truth, &seen, &women, seed.fork("random", 0))?;
        let singles = score.singles(&seen, CHOSEN)?;
        let share = |bounds: &Bounds| -> Result<f64> {
            let chosen = top(&singles, CHOSEN, bounds)?.subset;
            let some = chosen.iter().filter(|c| women.contains(c)).count();
            Ok(some as f64 / CHOSEN as f64)
        };
        let bound = Bounds::exactly(PEOPLE, &women, simulation.proportional())?;
        Ok((ratios, [share(&Bounds::none(PEOPLE))?, share(&bound)?]))
    }
}
