//! What a compression did, as a table, as JSON and as the card of the result.

use std::collections::BTreeMap;

use commons_core::table::Table;
use commons_nn::eval::Perplexity;
use commons_nn::model::Decoder;
use commons_weights::Shared;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::settings::CompressConfig;
use crate::cli::App;
use crate::error::Result;
use crate::model::{Cost, size_on_disk};
use crate::output::Grid;
use crate::verbs::inspect::{Line, describe, query_groups, show_sharing};
use commons_core::format::{bytes, grouped, number, si};

/// Name of the report in the result.
pub const FILE: &str = "report.json";

/// A model at one stage.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// What it costs.
    #[serde(flatten)]
    pub cost: Cost,
    /// How well it predicts.
    #[serde(flatten)]
    pub quality: Perplexity,
    /// Tokens per second of greedy generation.
    pub tokens_per_second: f64,
}

/// What healing did.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Healing {
    /// Steps done.
    pub steps: usize,
    /// Loss of the first step.
    pub first_loss: f64,
    /// Loss of the last step.
    pub last_loss: f64,
    /// Tokens trained on.
    pub tokens: usize,
    /// Wall time of this process in healing, seconds.
    pub seconds: f64,
}

/// The report of a compression.
#[derive(Debug, Serialize)]
pub struct Report {
    pub model: String,
    pub method: String,
    pub out: String,
    pub settings: Value,
    pub text: Value,
    pub original: Measured,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tied: Option<Measured>,
    pub shared: Measured,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healed: Option<Measured>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healing: Option<Healing>,
    pub sharing: Vec<Line>,
    pub tables: Vec<Table>,
    pub seconds: f64,
}

/// The plan of a decoder in lines.
///
/// # Errors
/// Never for a decoder that was made.
pub fn lines(model: &Decoder) -> Result<Vec<Line>> {
    let shapes: BTreeMap<&str, &[usize]> =
        model.bank.stored_vars().map(|(n, v)| (n, v.dims())).collect();
    let mut lines = describe(model.bank.plan(), &shapes);
    lines.extend(query_groups(&model.config.query_heads_per_kv_head));
    Ok(lines)
}

impl Report {
    fn stages(&self) -> Vec<(&'static str, Measured)> {
        let mut stages = vec![("original", self.original)];
        stages.extend(self.tied.map(|m| ("tied, rank 0", m)));
        stages.push(("shared", self.shared));
        stages.extend(self.healed.map(|m| ("healed", m)));
        stages
    }

    fn grid(&self) -> Grid {
        let stages = self.stages();
        let titles: Vec<String> = stages.iter().map(|(name, _)| format!(">{name}")).collect();
        let columns: Vec<&str> =
            [""].into_iter().chain(titles.iter().map(String::as_str)).collect();
        let mut grid = Grid::new(&columns);
        let mut row = |label: &str, cell: &dyn Fn(&Measured) -> String| {
            grid.row([label.to_owned()].into_iter().chain(stages.iter().map(|(_, m)| cell(m))));
        };
        row("stored parameters", &|m| grouped(m.cost.stored as i64));
        row("logical parameters", &|m| grouped(m.cost.logical as i64));
        row("stored bytes (f32)", &|m| bytes(m.cost.bytes as u64));
        row("of the original", &|m| {
            format!(
                "{:.1} %",
                100. * m.cost.stored as f64 / self.original.cost.stored.max(1) as f64
            )
        });
        row("perplexity", &|m| number(m.quality.perplexity));
        row("bits per byte", &|m| number(m.quality.bits_per_byte));
        row("generation, tokens/s", &|m| number(m.tokens_per_second));
        row("FLOPs per token", &|m| si(m.cost.flops_per_token as f64));
        grid
    }

    /// Shows the report.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn show(&self, app: &App) -> Result<()> {
        if app.out.json {
            return app.out.json(self);
        }
        app.out.text(&app.out.bold(&format!("{} by {}", self.model, self.method)))?;
        app.out.text("")?;
        app.out.grid(&self.grid())?;
        show_sharing(app, &self.sharing)?;
        app.out.text("")?;
        if let Some(h) = &self.healing {
            app.out.text(&format!(
                "healed in {} steps, {} tokens: loss {} → {}",
                h.steps,
                grouped(h.tokens as i64),
                number(h.first_loss),
                number(h.last_loss),
            ))?;
        }
        app.out.text(&format!(
            "measured on {} tokens; {}",
            grouped(self.shared.quality.tokens as i64),
            self.apart()
        ))?;
        let size = size_on_disk(self.out.as_ref())?;
        app.out.text(&format!("wrote {} ({})", app.out.bold(&self.out), bytes(size)))?;
        app.out.text(&app.out.dim(&format!(
            "look at it: commons inspect {0}    use it: commons generate {0}",
            self.out
        )))
    }

    fn apart(&self) -> &str {
        self.text["apart"].as_str().unwrap_or_default()
    }

    /// The README of the result.
    pub fn card(&self) -> String {
        format!(
            "# {model}, {method}\n\n\
             Compressed with `commons compress`; `commons inspect` shows how the weights are shared, \
             `commons materialize` writes a plain checkpoint for other programs.\n\n\
             ```text\n{table}```\n\n\
             Measured on {tokens} tokens; {apart}. The settings are in `{settings}`, everything measured in `{FILE}`.\n",
            model = self.model,
            method = self.method,
            table = self.grid().render(100, false),
            tokens = grouped(self.shared.quality.tokens as i64),
            apart = self.apart(),
            settings = crate::work::SETTINGS,
        )
    }
}

/// What a compression would store.
#[derive(Debug, Serialize)]
pub struct Plan {
    model: String,
    method: String,
    options: Value,
    original: Cost,
    shared: Cost,
    sharing: Vec<Line>,
    tables: Vec<Table>,
}

impl Plan {
    /// The plan of a model that was shared.
    ///
    /// # Errors
    /// When the plan does not fit the bank.
    pub fn new(config: &CompressConfig, original: Cost, shared: &Shared) -> Result<Self> {
        Ok(Self {
            model: config.model.clone(),
            method: config.method.clone(),
            options: config.options.clone(),
            original,
            shared: Cost::of(&shared.model)?,
            sharing: lines(&shared.model)?,
            tables: shared.tables.clone(),
        })
    }

    /// Shows the plan.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn show(&self, app: &App) -> Result<()> {
        if app.out.json {
            return app.out.json(self);
        }
        app.out.text(&app.out.bold(&format!("{} by {}, planned", self.model, self.method)))?;
        app.out.text("")?;
        let mut grid = Grid::new(&["", ">original", ">shared"]);
        let both = |cell: &dyn Fn(&Cost) -> String| [cell(&self.original), cell(&self.shared)];
        let mut row =
            |label: &str, cells: [String; 2]| grid.row([label.to_owned()].into_iter().chain(cells));
        row("stored parameters", both(&|c| grouped(c.stored as i64)));
        row("logical parameters", both(&|c| grouped(c.logical as i64)));
        row("stored bytes (f32)", both(&|c| bytes(c.bytes as u64)));
        row("FLOPs per token", both(&|c| si(c.flops_per_token as f64)));
        app.out.grid(&grid)?;
        show_sharing(app, &self.sharing)?;
        for table in &self.tables {
            app.out.text("")?;
            app.out.text(&app.out.bold(&table.title))?;
            app.out.text(&table.to_text())?;
        }
        Ok(())
    }
}
