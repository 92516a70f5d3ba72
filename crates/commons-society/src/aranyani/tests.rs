//! Golden forward pass, gradients against finite differences, running means against batch means,
//! equality of forms, resumption, and what is refused.

use std::path::Path;

use commons_core::Seed;
use proptest::prelude::*;

use super::baseline::{Hoeffding, Mlp};
use super::*;
use crate::tabular::People;

fn golden_forest() -> Forest {
    Forest {
        trees: 1,
        depth: 2,
        width: 2,
        classes: 2,
        splits: vec![1., -0.5, 0.1, 0.5, 1., -0.2, 0.25, -1., 0.3],
        leaves: vec![0.2, 0.8, 0.5, 0.5, 0.9, 0.1, 0.3, 0.7],
    }
}

/// The golden case lists `W` as `[width, nodes]`.
fn golden_columns() -> Forest {
    let w = [[1., -0.5, 0.25], [0.5, 1., -1.]];
    let b = [0.1, -0.2, 0.3];
    let splits = (0..3).flat_map(|i| [w[0][i], w[1][i], b[i]]).collect();
    Forest { splits, ..golden_forest() }
}

fn close(got: &[f64], wanted: &[f64], tolerance: f64) {
    assert_eq!(got.len(), wanted.len());
    for (g, w) in got.iter().zip(wanted) {
        assert!((g - w).abs() < tolerance, "{got:?} against {wanted:?}");
    }
}

#[test]
fn the_forward_pass_is_golden() {
    let (forest, x) = (golden_columns(), [0.6, -0.4]);
    let mut trace = Trace::default();
    forest.forward(&x, &mut trace);
    close(&trace.nodes, &[0.62245933, 0.28905050, 0.70056714], 1e-8);
    close(&trace.reach, &[0.17992218, 0.44253715, 0.26449259, 0.11304808], 1e-8);
    // Θ of the golden case passes through a softmax, as everywhere.
    close(&trace.probabilities, &[0.51288359, 0.48711641], 1e-8);
    assert!((-trace.probabilities[1].ln() - 0.71925215).abs() < 1e-8);
    let n = trace.nodes[0];
    close(&x.map(|x| n * (1. - n) * x), &[0.14100223, -0.09400148], 1e-8);
}

#[test]
fn the_mask_form_equals_the_product() {
    for depth in 2..=6 {
        let forest = Forest::init(1, depth, 3, 2, Seed::new(u64::from(depth)));
        let mut trace = Trace::default();
        forest.forward(&[0.3, -1.2, 0.8], &mut trace);
        close(&masked_reach(depth, &trace.nodes), &trace.reach, 1e-14);
        assert!((trace.reach.iter().sum::<f64>() - 1.).abs() < 1e-12);
    }
}

proptest! {
    #[test]
    fn gradients_are_finite_differences(
        seed in 0u64..1000, depth in 1u32..4, trees in 1usize..4, classes in 2usize..4,
    ) {
        let mut forest = Forest::init(trees, depth, 3, classes, Seed::new(seed));
        let (x, y) = ([0.7, -0.4, 1.1], seed as usize % classes);
        let mut trace = Trace::default();
        forest.forward(&x, &mut trace);
        let mut slope = vec![0.; classes];
        slope[y] = -1. / trace.probabilities[y];
        let (mut splits, mut leaves) = (vec![0.; forest.splits.len()], vec![0.; forest.leaves.len()]);
        forest.gradients_of(&x, &trace, &slope, &mut splits, &mut leaves);
        let mut loss = |forest: &Forest| {
            forest.forward(&x, &mut trace);
            -trace.probabilities[y].ln()
        };
        const H: f64 = 1e-5;
        for i in 0..splits.len() {
            let kept = forest.splits[i];
            forest.splits[i] = kept + H;
            let up = loss(&forest);
            forest.splits[i] = kept - H;
            let down = loss(&forest);
            forest.splits[i] = kept;
            prop_assert!(((up - down) / (2. * H) - splits[i]).abs() < 1e-6);
        }
        for i in 0..leaves.len() {
            let kept = forest.leaves[i];
            forest.leaves[i] = kept + H;
            let up = loss(&forest);
            forest.leaves[i] = kept - H;
            let down = loss(&forest);
            forest.leaves[i] = kept;
            prop_assert!(((up - down) / (2. * H) - leaves[i]).abs() < 1e-6);
        }
    }
}

/// The penalty `Σ H(F)` of frozen parameters over a batch, for differences.
fn penalty(forest: &Forest, people: &People, delta: f64) -> f64 {
    let nodes = forest.trees * forest.nodes();
    let (mut sums, mut counts) = (vec![[0.; 2]; nodes], [0.; 2]);
    let mut trace = Trace::default();
    for i in 0..people.len() {
        forest.forward(people.features.row(i), &mut trace);
        counts[people.group[i]] += 1.;
        sums.iter_mut().zip(&trace.nodes).for_each(|(s, n)| s[people.group[i]] += n);
    }
    let huber = |f: f64| if f.abs() < delta { f * f / 2. } else { delta * (f.abs() - delta / 2.) };
    sums.iter().map(|s| huber(s[1] / counts[1] - s[0] / counts[0])).sum()
}

#[test]
fn running_means_are_batch_gradients_when_parameters_stand_still() {
    let people = People::generated(200, Seed::new(4)).unwrap();
    let width = people.features.width();
    for averaging in [Averaging::Mean, Averaging::Ema] {
        // γ close to 1 makes EMA a plain mean of a short stream.
        let gamma = 1. - 1e-12;
        let config = ForestConfig {
            depth: 2,
            huber: Huber::Exact,
            delta: 0.05,
            learning_rate: 1e-300,
            averaging,
            gamma,
            ..ForestConfig::default()
        };
        let mut learner = FairForest::new(config, width, Seed::new(5)).unwrap();
        for i in 0..people.len() {
            learner.learn(people.features.row(i), 0, people.group[i]).unwrap();
        }
        let mut got = vec![0.; learner.forest.splits.len()];
        let slope = |gap| Huber::Exact.slope(gap, 0.05);
        learner.statistics.add_penalty(1., Contrast::Pairwise, slope, &mut got);
        let mut forest = learner.forest.clone();
        const H: f64 = 1e-5;
        let tolerance = if averaging == Averaging::Mean { 1e-8 } else { 1e-3 };
        for i in 0..got.len() {
            let kept = forest.splits[i];
            forest.splits[i] = kept + H;
            let up = penalty(&forest, &people, 0.05);
            forest.splits[i] = kept - H;
            let down = penalty(&forest, &people, 0.05);
            forest.splits[i] = kept;
            let wanted = (up - down) / (2. * H);
            assert!((got[i] - wanted).abs() < tolerance, "{averaging:?} {i}: {} {wanted}", got[i]);
        }
    }
}

fn decisions(config: ForestConfig, people: &People) -> (Vec<f64>, Scores, usize) {
    let mut learner = FairForest::new(config, people.features.width(), Seed::new(7)).unwrap();
    let mut scores = Prequential::new(2, 2);
    let mut out = Vec::new();
    for i in 0..people.len() {
        let (y, a) = (usize::from(people.label[i]), people.group[i]);
        let p = learner.learn(people.features.row(i), y, a).unwrap();
        scores.record(a, y, decide(&p));
        out.push(p[1]);
    }
    (out, scores.scores(), learner.statistics.size())
}

#[test]
fn without_a_constraint_groups_change_nothing() {
    let people = People::generated(400, Seed::new(1)).unwrap();
    let free = ForestConfig { lambda: 0., ..ForestConfig::default() };
    let mut swapped = people.clone();
    swapped.group.iter_mut().for_each(|g| *g = 1 - *g);
    let (a, ..) = decisions(free.clone(), &people);
    let (b, ..) = decisions(ForestConfig { metric: Metric::Eo, ..free }, &swapped);
    assert!(a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits()));
}

#[test]
fn the_constraint_narrows_the_gap_in_constant_memory() {
    let people = People::generated(5000, Seed::new(2)).unwrap();
    let run = |lambda, metric, constraint| {
        let config = ForestConfig { lambda, metric, constraint, ..ForestConfig::default() };
        decisions(config, &people)
    };
    let (_, free, size) = run(0., Metric::Dp, Constraint::Node);
    let (_, fair, same) = run(1., Metric::Dp, Constraint::Node);
    assert_eq!(size, same);
    assert_eq!(size, 2 * 3 * 15 * (6 + 2) + 2);
    assert!(fair.dp.unwrap() < 0.6 * free.dp.unwrap(), "{fair:?} {free:?}");
    assert!(free.accuracy.unwrap() > 0.65, "{free:?}");
    let (_, leaf, _) = run(1., Metric::Dp, Constraint::Leaf);
    assert!(leaf.dp.unwrap() < free.dp.unwrap(), "{leaf:?}");
    let (_, odds, _) = run(1., Metric::Eo, Constraint::Node);
    assert!(odds.eo.unwrap() < free.eo.unwrap(), "{odds:?} {free:?}");
    let (_, chance, _) = run(1., Metric::Eopp, Constraint::Node);
    assert!(chance.eopp.unwrap() < free.eopp.unwrap() + 0.01, "{chance:?} {free:?}");
}

#[test]
fn contrasts_agree_for_two_groups_up_to_scale() {
    let mut statistics = Statistics::new(1, 2, 1, 1, Averaging::Mean, 0.9);
    for (a, v) in [(0, 0.2), (1, 0.9), (1, 0.7)] {
        statistics.observe(0, a, &[v], |_, out, keep, scale| out[0] = keep * out[0] + scale * v);
    }
    assert_eq!(statistics.gap(0, 0).map(|g| (g * 1e9).round()), Some(6e8));
    let gradient = |contrast| {
        let mut out = [0.];
        statistics.add_penalty(1., contrast, |gap| gap, &mut out);
        out[0]
    };
    assert!((gradient(Contrast::Pairwise) - 0.6 * 0.6).abs() < 1e-12);
    assert!((gradient(Contrast::Mean) - 0.5 * gradient(Contrast::Pairwise)).abs() < 1e-12);
}

#[test]
fn baselines_learn() {
    let people = People::generated(4000, Seed::new(3)).unwrap();
    let width = people.features.width();
    let mut tree = Hoeffding::new(width);
    let config = ForestConfig { lambda: 0., learning_rate: 1e-2, ..ForestConfig::default() };
    let mut mlp = Mlp::new(config, width, Seed::new(1));
    let (mut right_tree, mut right_mlp) = (0, 0);
    for i in 0..people.len() {
        let (x, y) = (people.features.row(i), usize::from(people.label[i]));
        let tree = tree.learn(x, y) > 0.5;
        let mlp = mlp.learn(x, y, people.group[i]) > 0.5;
        if i >= 2000 {
            right_tree += usize::from(tree == people.label[i]);
            right_mlp += usize::from(mlp == people.label[i]);
        }
    }
    assert!(tree.size() > 1 && right_tree > 1200, "{right_tree} by {} nodes", tree.size());
    assert!(right_mlp > 1350, "{right_mlp}");
}

fn csv(rows: usize) -> String {
    let people = People::generated(rows, Seed::new(6)).unwrap();
    let mut text = "x0,x1,kind,sex,income\n".to_owned();
    for i in 0..rows {
        let x = people.features.row(i);
        let kind = ["red", "green", "blue"][i % 3];
        let (sex, income) =
            (["f", "m"][people.group[i]], if people.label[i] { ">50K" } else { "<=50K" });
        text += &format!("{},{},{kind},{sex},{income}\n", x[0], x[2]);
    }
    text
}

fn config() -> StreamConfig {
    StreamConfig {
        target: "income".into(),
        sensitive: "sex".into(),
        positive: ">50K".into(),
        ..StreamConfig::default()
    }
}

fn stream(pipeline: &mut Pipeline, text: &str) -> crate::Result<Vec<Decision>> {
    let mut all = Vec::new();
    pipeline.run(text.as_bytes(), Path::new("s.csv"), |_, d| {
        all.push(d.clone());
        Ok(())
    })?;
    Ok(all)
}

#[test]
fn an_interrupted_stream_goes_on_bit_for_bit() {
    let text = csv(300);
    let mut whole = Pipeline::new(config(), 3).unwrap();
    let wanted = stream(&mut whole, &text).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let (first, second) =
        (lines[..151].join("\n"), format!("{}\n{}", lines[0], lines[151..].join("\n")));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.json");
    let mut part = Pipeline::new(config(), 3).unwrap();
    let mut got = stream(&mut part, &first).unwrap();
    part.save(&path).unwrap();
    let mut resumed = Pipeline::load(&path).unwrap();
    let size = std::fs::metadata(&path).unwrap().len();
    got.extend(stream(&mut resumed, &second).unwrap());
    assert_eq!(got, wanted);
    resumed.save(&path).unwrap();
    let grown = std::fs::metadata(&path).unwrap().len();
    // Counters have more digits; nothing else grows.
    assert!(grown <= size + 64, "{size} became {grown}");
}

#[test]
fn bad_rows_are_refused_with_their_place() {
    let refused = |text: &str, words: &[&str]| {
        let mut pipeline = Pipeline::new(config(), 0).unwrap();
        let error = stream(&mut pipeline, text).unwrap_err().to_string();
        assert!(words.iter().all(|w| error.contains(w)), "{error}");
    };
    refused("x,sex\n1,f\n", &["s.csv", "`income`", "missing", "columns: x, sex"]);
    refused("x,sex,income\n1,f,>50K\nNaN,m,no\n", &["row 2 (line 3)", "`x`", "finite"]);
    refused("x,sex,income\n1,f,>50K\n,m,no\n", &["row 2 (line 3)", "`x`", "empty"]);
    refused("x,sex,income\n1,f,a\n1,m,b\n", &["row 2", "`income`", "`b`", "--positive"]);
    refused("x,sex,income\n1,f,a\n1,m,a\n2,d,a\n", &["row 3", "`sex`", "`d`", "--groups"]);
    refused("x,sex,income\n1,f\n", &["row 1 (line 2)", "2 cells"]);
    refused("x,x,sex,income\n1,2,f,a\n", &["`x`", "twice"]);
    refused("x,sex,income\n", &["no rows"]);
    for (field, bad) in [
        ("trees", ForestConfig { trees: 0, ..ForestConfig::default() }),
        ("depth", ForestConfig { depth: 40, ..ForestConfig::default() }),
        ("lambda", ForestConfig { lambda: f64::NAN, ..ForestConfig::default() }),
        ("gamma", ForestConfig { gamma: 1., ..ForestConfig::default() }),
    ] {
        let error = FairForest::new(bad, 2, Seed::new(0)).unwrap_err().to_string();
        assert!(error.contains(field), "{error}");
    }
    let mut forest = FairForest::new(ForestConfig::default(), 2, Seed::new(0)).unwrap();
    assert!(forest.predict(&[1.]).is_err() && forest.predict(&[1., f64::NAN]).is_err());
    assert!(forest.learn(&[1., 1.], 2, 0).is_err() && forest.learn(&[1., 1.], 0, 2).is_err());
    assert_eq!(forest.fairness().gaps[0][0], None);
}

proptest! {
    /// A mangled state is read or refused, never a panic.
    #[test]
    fn mangled_states_are_refused(at in 0usize..9000, cut in 0usize..40, put in "[\\[\\]{}\",0-9a-z]{0,5}") {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let small = ForestConfig { trees: 1, depth: 1, ..ForestConfig::default() };
        let mut pipeline = Pipeline::new(StreamConfig { forest: small, ..config() }, 3).unwrap();
        stream(&mut pipeline, &csv(9)).unwrap();
        pipeline.save(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let from = at % text.len();
        let to = (from + cut).min(text.len());
        std::fs::write(&path, format!("{}{put}{}", &text[..from], &text[to..])).unwrap();
        if let Ok(mut pipeline) = Pipeline::load(&path) {
            let _ = stream(&mut pipeline, &csv(9));
        }
    }
}

#[test]
fn trade_offs_reward_accuracy_at_equal_parity() {
    use super::study::{Point, trade_off};
    let point = |dp, accuracy| Point { at: 0., accuracy, dp };
    let good = [point(0.1, 0.8), point(0.2, 0.9)];
    let poor = [point(0.15, 0.8), point(0.2, 0.85)];
    assert!(trade_off(&good, 0.2, 0.7) > trade_off(&poor, 0.2, 0.7));
    assert!((trade_off(&[], 0.2, 0.7) - 0.7).abs() < 1e-12);
}
