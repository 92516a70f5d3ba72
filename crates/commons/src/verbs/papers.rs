//! `papers`: a card for every paper.

use clap::Args;
use commons_core::evidence::{Method, RunResult};
use commons_core::format;
use serde_json::json;

use crate::cli::{App, Done};
use crate::error::Result;
use crate::evidence::{find, methods, published};
use crate::examples;
use crate::output::wrap;

pub const EXAMPLES: &str = examples![
    "$ commons papers",
    "$ commons papers relaxed-recursive",
    "$ commons papers foldgpt --json",
];

/// Columns of the labels of a card.
const INDENT: usize = 10;

/// Options of `papers`.
#[derive(Debug, Args)]
pub struct PapersArgs {
    /// Methods [default: all]
    #[arg(value_name = "METHOD")]
    pub methods: Vec<String>,
}

/// Shows cards.
///
/// # Errors
/// Naming a method there is not.
pub fn run(app: &App, args: &PapersArgs) -> Result<Done> {
    app.no_settings("papers")?;
    let chosen: Vec<&dyn Method> = match args.methods.is_empty() {
        true => methods().collect(),
        false => args.methods.iter().map(|slug| find(slug)).collect::<Result<_>>()?,
    };
    if app.out.json {
        let cards: Vec<_> = chosen
            .iter()
            .map(|m| {
                let claims: Vec<_> = m
                    .claims()
                    .iter()
                    .map(|c| {
                        json!({
                            "id": c.id,
                            "sentence": c.sentence,
                            "paper": c.paper,
                            "metric": c.metric,
                            "needed": c.requirement(),
                        })
                    })
                    .collect();
                json!({ "paper": m.paper(), "claims": claims, "result": published(m.paper().slug) })
            })
            .collect();
        app.out.json(&cards)?;
        return Ok(Done::Well);
    }
    for (i, method) in chosen.iter().enumerate() {
        if i > 0 {
            app.out.text("")?;
        }
        app.out.text(&card(app, *method))?;
    }
    Ok(Done::Well)
}

fn card(app: &App, method: &dyn Method) -> String {
    let paper = method.paper();
    let result = published(paper.slug);
    let mut lines = vec![app.out.bold(paper.slug)];
    let mut field = |label: &str, text: &str| {
        for (i, line) in wrap(text, app.out.width - INDENT - 2).into_iter().enumerate() {
            let label = if i == 0 { label } else { "" };
            lines.push(format!("  {}{line}", app.out.dim(&format!("{label:<INDENT$}"))));
        }
    };
    field("title", &format!("{} ({})", paper.title, paper.year));
    field("link", paper.link);
    field("shares", paper.shares);
    for (i, claim) in method.claims().iter().enumerate() {
        let label = if i == 0 { "claims" } else { "" };
        field(label, &format!("{}: {}", claim.id, claim.sentence));
        field("", &format!("  paper: {}; needed here: {}", claim.paper, claim.requirement()));
        field("", &format!("  {}", measured(result.as_ref(), claim.id)));
    }
    if let Some(result) = &result {
        field("measured", &format!("{}, recipe {}", result.date, result.recipe.as_deref().unwrap_or("none")));
    }
    let recipes: Vec<String> = method.recipes().iter().map(|r| format!("{} ({})", r.name, r.about)).collect();
    field("recipes", &recipes.join(", "));
    field("run", &format!("commons run {} --recipe smoke", paper.slug));
    lines.join("\n")
}

fn measured(result: Option<&RunResult>, id: &str) -> String {
    let Some(claim) = result.and_then(|r| r.claims.iter().find(|c| c.id == id)) else {
        return "not measured yet".into();
    };
    let value = claim.measured.map_or_else(|| "nothing".to_owned(), format::number);
    let against = claim.baseline.as_ref().map_or_else(String::new, |b| format!(" against {}", format::number(b.value)));
    let reason = claim.reason.as_ref().map_or_else(String::new, |r| format!(": {r}"));
    format!("measured: {value}{against}, {}{reason}", claim.verdict)
}
