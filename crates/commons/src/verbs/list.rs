//! `list`: the methods, their recipes and what became of their claims.

use clap::Args;
use commons_weights::COMPRESSORS;
use serde_json::json;

use crate::cli::{App, Done};
use crate::error::Result;
use crate::evidence::{Verdicts, methods, published};
use crate::examples;
use crate::output::Grid;

pub const EXAMPLES: &str = examples![
    "$ commons list",
    "$ commons list --json",
];

/// Options of `list`.
#[derive(Debug, Args)]
pub struct ListArgs {}

/// Lists the methods.
///
/// # Errors
/// When standard output cannot be written.
pub fn run(app: &App, _: &ListArgs) -> Result<Done> {
    app.no_settings("list")?;
    let compresses = |slug: &str| COMPRESSORS.iter().any(|c| c.slug() == slug);
    if app.out.json {
        let entries: Vec<_> = methods()
            .map(|m| {
                let paper = m.paper();
                json!({
                    "slug": paper.slug,
                    "title": paper.title,
                    "year": paper.year,
                    "shares": paper.shares,
                    "link": paper.link,
                    "compresses": compresses(paper.slug),
                    "recipes": m.recipes(),
                    "verdicts": published(paper.slug).map(|r| Verdicts::of(&r)),
                })
            })
            .collect();
        app.out.json(&entries)?;
        return Ok(Done::Well);
    }
    let mut grid = Grid::new(&["method", "recipes", "claims", "shares"]);
    for method in methods() {
        let paper = method.paper();
        let recipes: Vec<&str> = method.recipes().iter().map(|r| r.name).collect();
        let verdicts = published(paper.slug).map_or_else(
            || format!("{} unmeasured", method.claims().len()),
            |result| Verdicts::of(&result).text(),
        );
        grid.row([paper.slug, &recipes.join(" "), &verdicts, paper.shares]);
    }
    app.out.grid(&grid)?;
    app.out.text("")?;
    let hint = "commons papers METHOD shows its card, commons run METHOD --recipe smoke measures it";
    app.out.text(&app.out.dim(hint))?;
    Ok(Done::Well)
}
