//! `report.html`: a run on one page that needs no other file, in light and dark; [`Page`] for
//! results that are no run.

mod axis;
mod heat;
mod plot;

pub use plot::Plot;

use crate::{
    evidence::{ClaimResult, Paper, RunResult, Series, Verdict},
    format,
    table::Table,
};
use std::{borrow::Cow, collections::BTreeMap, fmt::Write, time::Duration};

const PAGE_STYLE: &str = include_str!("page.css");

/// The page of a run: claims, plots (`plots` first, then one per logged quantity), tables, notes,
/// measures, settings and machine.
pub(crate) fn html(
    paper: &Paper,
    result: &RunResult,
    series: &BTreeMap<String, Series>,
    plots: &[Plot],
) -> String {
    let mut page = String::with_capacity(1 << 16);
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{} · {}</title>\n<style>\n{}{PAGE_STYLE}</style>\n</head>\n<body>\n<main>\n",
        escape(paper.slug),
        escape(&result.date.to_string()),
        plot::STYLE,
    );
    header(&mut page, paper, result);
    if !result.claims.is_empty() {
        claims(&mut page, &result.claims);
    }
    let curves = curves(series);
    if !plots.is_empty() || !curves.is_empty() {
        page.push_str("<h2>Plots</h2>\n<div class=\"plots\">\n");
        plots.iter().chain(&curves).for_each(|plot| figure(&mut page, plot));
        page.push_str("</div>\n");
    }
    for shown in &result.tables {
        let _ = writeln!(page, "<h2>{}</h2>", escape(&shown.title));
        table(&mut page, shown);
    }
    if !result.notes.is_empty() {
        page.push_str("<h2>Notes</h2>\n<ul>\n");
        for note in &result.notes {
            let _ = writeln!(page, "<li>{}</li>", escape(note));
        }
        page.push_str("</ul>\n");
    }
    if !result.measures.is_empty() {
        page.push_str("<h2>Measures</h2>\n");
        table(&mut page, &result.measure_table());
    }
    let _ = writeln!(page, "<h2>Settings</h2>\n<pre>{}</pre>", escape(result.config.trim_end()));
    machine(&mut page, result);
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

/// A page of plots, tables and remarks that needs no other file, in the style of a run's report.
///
/// ```
/// use commons_core::report::{Page, Plot};
///
/// let plots = [Plot::new("Two points").line("a", [(0.0, 1.0), (1.0, 2.0)])];
/// let page = Page { title: "Audit", lead: "of a < b", plots: &plots, ..Page::default() };
/// assert!(page.to_html().contains("of a &lt; b"));
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Page<'a> {
    /// Heading, and title of the window.
    pub title: &'a str,
    /// A sentence below it.
    pub lead: &'a str,
    /// Names and values in a row: rows read, seed, version.
    pub facts: &'a [(String, String)],
    /// Remarks, before everything else: what a reader should take away.
    pub notes: &'a [String],
    /// Drawings.
    pub plots: &'a [Plot],
    /// Tables, below the drawings.
    pub tables: &'a [Table],
}

impl Page<'_> {
    /// The page as one HTML file.
    pub fn to_html(&self) -> String {
        let mut page = String::with_capacity(1 << 15);
        let _ = write!(
            page,
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{}</title>\n<style>\n{}{PAGE_STYLE}</style>\n</head>\n<body>\n<main>\n\
             <h1>{0}</h1>\n<p class=\"lead\">{}</p>\n<ul class=\"facts\">",
            escape(self.title),
            plot::STYLE,
            escape(self.lead),
        );
        for (name, value) in self.facts {
            let _ = write!(page, "<li>{} <b>{}</b></li>", escape(name), escape(value));
        }
        page.push_str("</ul>\n");
        if !self.notes.is_empty() {
            page.push_str("<ul>\n");
            self.notes.iter().for_each(|note| {
                let _ = writeln!(page, "<li>{}</li>", escape(note));
            });
            page.push_str("</ul>\n");
        }
        if !self.plots.is_empty() {
            page.push_str("<div class=\"plots\">\n");
            self.plots.iter().for_each(|plot| figure(&mut page, plot));
            page.push_str("</div>\n");
        }
        for shown in self.tables {
            let _ = writeln!(page, "<h2>{}</h2>", escape(&shown.title));
            table(&mut page, shown);
        }
        page.push_str("</main>\n</body>\n</html>\n");
        page
    }
}

fn header(page: &mut String, paper: &Paper, result: &RunResult) {
    let _ = write!(
        page,
        "<div class=\"slug\">{}</div>\n<h1>{}</h1>\n<p class=\"lead\">{} · shares {}{}</p>\n<ul class=\"facts\">",
        escape(paper.slug),
        escape(paper.title),
        paper.year,
        escape(paper.shares),
        match safe_link(paper.link) {
            Some(link) => format!(" · <a href=\"{}\">paper</a>", escape(link)),
            None => String::new(),
        },
    );
    let mut fact = |name: &str, value: &str| {
        let _ = write!(page, "<li>{name} <b>{}</b></li>", escape(value));
    };
    fact("date", &result.date.to_string());
    if let Some(recipe) = &result.recipe {
        fact("recipe", recipe);
    }
    fact("seed", &result.seed.to_string());
    fact("took", &format::duration(seconds(result.wall_seconds)));
    if result.peak_memory > 0 {
        fact("peak memory", &format::bytes(result.peak_memory));
    }
    fact("version", &result.version);
    page.push_str("</ul>\n");
}

fn claims(page: &mut String, claims: &[ClaimResult]) {
    page.push_str(
        "<h2>Claims</h2>\n<div class=\"scroll\"><table>\n<thead><tr><th>claim</th><th>paper</th>\
         <th class=\"number\">measured</th><th class=\"number\">baseline</th><th>needed</th><th>verdict</th></tr></thead>\n<tbody>\n",
    );
    for claim in claims {
        let class = match claim.verdict {
            Verdict::Holds => " holds",
            Verdict::Fails => " fails",
            Verdict::NotComparable => "",
        };
        let measured = claim.measured.map_or_else(|| "–".to_owned(), format::number);
        let baseline = claim.baseline.as_ref().map_or_else(
            || "–".to_owned(),
            |baseline| {
                format!(
                    "{}<small>{}</small>",
                    format::number(baseline.value),
                    escape(&baseline.metric)
                )
            },
        );
        let _ = writeln!(
            page,
            "<tr><td>{}<small>{}</small></td><td>{}</td><td class=\"number\">{measured}<small>{}</small></td>\
             <td class=\"number\">{baseline}</td><td>{}<small>{}</small></td>\
             <td><span class=\"verdict{class}\">{}</span><small>{}</small></td></tr>",
            escape(&claim.sentence),
            escape(&claim.id),
            escape(&claim.paper.to_string()),
            escape(&claim.metric),
            escape(&claim.requirement()),
            escape(&evidence(claim)),
            claim.verdict,
            escape(claim.reason.as_deref().unwrap_or_default()),
        );
    }
    page.push_str("</tbody>\n</table></div>\n");
}

/// What was held against the bound, and how sure that is.
fn evidence(claim: &ClaimResult) -> String {
    let Some(compared) = claim.compared else {
        return "not measured".to_owned();
    };
    let mut text = format!("here {}", format::number(compared));
    match claim.interval {
        Some(interval) => {
            let _ = write!(text, " {interval} over {} repeats", claim.repeats);
            if claim.verdict != Verdict::NotComparable && !claim.settled {
                text.push_str(", not settled");
            }
        }
        None => text.push_str(", one repeat"),
    }
    text
}

/// One plot per quantity, the last part of the key; its curves are named by what comes before.
fn curves(series: &BTreeMap<String, Series>) -> Vec<Plot> {
    let mut groups: BTreeMap<&str, Vec<(&str, &Series)>> = BTreeMap::new();
    for (key, curve) in series {
        let (name, quantity) = key.rsplit_once('/').unwrap_or((key, key));
        groups.entry(quantity).or_default().push((name, curve));
    }
    let plot = |(quantity, curves): (&str, Vec<(&str, &Series)>)| {
        let start = Plot::new(quantity).x("step").y(quantity);
        curves.into_iter().fold(start, |plot, (name, curve)| {
            let points = curve.points().into_iter().map(|(step, value)| (step as f64, value));
            plot.line(name, points)
        })
    };
    groups.into_iter().map(plot).collect()
}

fn figure(page: &mut String, plot: &Plot) {
    let _ = writeln!(page, "<figure><h3>{}</h3>", escape(&plot.title));
    let legend = plot.legend();
    // One curve of the plot's own name needs no legend.
    if legend.len() > 1 || legend.first().is_some_and(|(_, name)| *name != plot.title) {
        page.push_str("<ul class=\"legend\">");
        for (index, name) in legend {
            let class = plot::class(index);
            let _ = write!(page, "<li><i class=\"{class}\"></i>{}</li>", escape(name));
        }
        page.push_str("</ul>\n");
    }
    let _ = writeln!(page, "{}</figure>", plot.fragment());
}

fn table(page: &mut String, table: &Table) {
    let class = |column: usize| {
        if table.is_numeric(column) { " class=\"number\"" } else { "" }
    };
    page.push_str("<div class=\"scroll\"><table>\n<thead><tr>");
    for (index, column) in table.columns.iter().enumerate() {
        let _ = write!(page, "<th{}>{}</th>", class(index), escape(&column.name));
    }
    page.push_str("</tr></thead>\n<tbody>\n");
    for row in 0..table.rows.len() {
        page.push_str("<tr>");
        for column in 0..table.columns.len() {
            let _ = write!(page, "<td{}>{}</td>", class(column), escape(&table.shown(row, column)));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody>\n</table></div>\n");
}

fn machine(page: &mut String, result: &RunResult) {
    let machine = &result.machine;
    let build = if machine.optimised { "release" } else { "debug" };
    let facts = [
        ("processor", machine.cpu.clone()),
        ("cores", machine.cores.to_string()),
        ("threads", machine.threads.to_string()),
        ("vector instructions", machine.simd.clone()),
        ("memory", format::bytes(machine.memory)),
        ("system", machine.system.clone()),
        ("build", build.to_owned()),
    ];
    page.push_str("<h2>Machine</h2>\n<ul class=\"facts\">");
    for (name, value) in facts {
        let _ = write!(page, "<li>{name} <b>{}</b></li>", escape(&value));
    }
    page.push_str("</ul>\n");
}

fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or_default()
}

/// Only web addresses become links.
fn safe_link(link: &str) -> Option<&str> {
    (link.starts_with("https://") || link.starts_with("http://")).then_some(link)
}

/// Text inside HTML or SVG, in elements and in quoted attributes.
fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(['&', '<', '>', '"', '\'']) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    Cow::Owned(out)
}
