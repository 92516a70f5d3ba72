//! Logistic regression on dense rows: the plain model of the experiments.

use crate::tabular::Matrix;

/// Weights of the features and an intercept.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Logistic {
    /// One weight per feature.
    pub weights: Vec<f64>,
    /// Log odds where every feature is 0.
    pub intercept: f64,
}

/// Moments of Adam for the weights and the intercept.
struct Adam {
    first: Vec<f64>,
    second: Vec<f64>,
    steps: i32,
}

impl Logistic {
    pub fn zeros(width: usize) -> Self {
        Self { weights: vec![0.; width], intercept: 0. }
    }

    /// Log odds of the label.
    pub fn score(&self, x: &[f64]) -> f64 {
        self.intercept + self.weights.iter().zip(x).map(|(w, x)| w * x).sum::<f64>()
    }

    /// Probability of the label.
    pub fn probability(&self, x: &[f64]) -> f64 {
        sigmoid(self.score(x))
    }

    /// Adam over mini-batches of the rows in `order`, each row with its weight.
    pub fn train(
        &mut self,
        x: &Matrix,
        label: &[bool],
        weight: &[f64],
        order: &[usize],
        batch: usize,
        rate: f64,
    ) {
        let width = self.weights.len();
        let mut adam = Adam { first: vec![0.; width + 1], second: vec![0.; width + 1], steps: 0 };
        let mut gradient = vec![0.; width + 1];
        for rows in order.chunks(batch.max(1)) {
            gradient.fill(0.);
            let total: f64 = rows.iter().map(|&i| weight[i]).sum::<f64>().max(1e-12);
            for &i in rows {
                let row = x.row(i);
                let error = (self.probability(row) - f64::from(label[i])) * weight[i] / total;
                gradient.iter_mut().zip(row).for_each(|(g, x)| *g += error * x);
                gradient[width] += error;
            }
            adam.step(self, &gradient, rate);
        }
    }

    /// Maximum likelihood with a ridge penalty `ridge/2·|w|²`, by Newton's method.
    pub fn fit(x: &Matrix, label: &[bool], rows: &[usize], ridge: f64) -> Self {
        let width = x.width();
        let size = width + 1;
        let mut model = Self::zeros(width);
        for _ in 0..12 {
            let mut gradient = vec![0.; size];
            let mut hessian = vec![0.; size * size];
            for &i in rows {
                let row = x.row(i);
                let p = model.probability(row);
                let (error, curvature) = (p - f64::from(label[i]), (p * (1. - p)).max(1e-9));
                for (a, &u) in row.iter().chain([&1.]).enumerate().filter(|(_, u)| **u != 0.) {
                    gradient[a] += error * u;
                    let scaled = curvature * u;
                    let line = &mut hessian[a * size..a * size + a + 1];
                    line.iter_mut()
                        .zip(row.iter().chain([&1.]))
                        .for_each(|(h, v)| *h += scaled * v);
                }
            }
            for a in 0..width {
                gradient[a] += ridge * model.weights[a];
                hessian[a * size + a] += ridge;
            }
            hessian[width * size + width] += 1e-6;
            let step = crate::linear::solve_spd(&mut hessian, size, &gradient);
            let longest = step.iter().fold(0f64, |m, s| m.max(s.abs()));
            let scale = (4. / longest.max(1e-300)).min(1.);
            model.weights.iter_mut().zip(&step).for_each(|(w, s)| *w -= scale * s);
            model.intercept -= scale * step[width];
            if longest < 1e-7 {
                break;
            }
        }
        model
    }

    /// Mean log loss in nats over `rows`.
    pub fn log_loss(&self, x: &Matrix, label: &[bool], rows: &[usize]) -> f64 {
        let one = |&i: &usize| {
            let score = self.score(x.row(i));
            let signed = if label[i] { score } else { -score };
            // ln(1 + e^-s) without overflow.
            if signed > 0. { (-signed).exp().ln_1p() } else { signed.exp().ln_1p() - signed }
        };
        rows.iter().map(one).sum::<f64>() / rows.len() as f64
    }
}

impl Adam {
    fn step(&mut self, model: &mut Logistic, gradient: &[f64], rate: f64) {
        const BETAS: (f64, f64) = (0.9, 0.999);
        self.steps += 1;
        let (c1, c2) = (1. - BETAS.0.powi(self.steps), 1. - BETAS.1.powi(self.steps));
        let parameters = model.weights.iter_mut().chain([&mut model.intercept]);
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((p, g), (m, v)) in parameters.zip(gradient).zip(moments) {
            *m = BETAS.0 * *m + (1. - BETAS.0) * g;
            *v = BETAS.1 * *v + (1. - BETAS.1) * g * g;
            *p -= rate * (*m / c1) / ((*v / c2).sqrt() + 1e-8);
        }
    }
}

pub(crate) fn sigmoid(x: f64) -> f64 {
    1. / (1. + (-x).exp())
}
