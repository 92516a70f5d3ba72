//! Made-up preferences.

use commons_core::{Rng, Seed};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How ideal points are spread over [0, 1].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Spread {
    /// Evenly.
    #[default]
    Uniform,
    /// Two camps around 0.2 and 0.8, the first twice as large.
    Bimodal,
    /// Everyone at 0 or 1, a third at 1.
    Polarised,
    /// Around the middle.
    Central,
    /// Most near 0, a long tail to 1.
    Skewed,
}

impl Spread {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Uniform, Self::Bimodal, Self::Polarised, Self::Central, Self::Skewed];

    /// Its name in options and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Bimodal => "bimodal",
            Self::Polarised => "polarised",
            Self::Central => "central",
            Self::Skewed => "skewed",
        }
    }

    /// `n` ideal points.
    pub fn draw(self, n: usize, seed: Seed) -> Vec<f64> {
        let mut rng = seed.rng();
        (0..n).map(|_| self.one(&mut rng)).collect()
    }

    fn one(self, rng: &mut Rng) -> f64 {
        let near = |rng: &mut Rng, centre: f64, sd: f64| (centre + sd * rng.normal()).clamp(0., 1.);
        match self {
            Self::Uniform => rng.uniform(),
            Self::Bimodal => {
                let centre = if rng.below(3) == 0 { 0.8 } else { 0.2 };
                near(rng, centre, 0.08)
            }
            Self::Polarised => f64::from(u8::from(rng.below(3) == 0)),
            Self::Central => near(rng, 0.5, 0.12),
            // The square of a uniform: density 1 / (2√x).
            Self::Skewed => rng.uniform().powi(2),
        }
    }
}
