//! The whole audit of a table of counts: metrics of groups, the decomposition, intervals on every
//! number, and sentences that say what it means.

use std::collections::BTreeMap;

use commons_core::Seed;
use commons_core::report::{Page, Plot};
use commons_core::table::{Table, Unit};
use commons_core::{cells, format};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bootstrap::replicate;
use super::broja::{GAP, Pid, pid_broja_to};
use super::counts::Counts;
use super::joint::Joint;
use super::metrics::{Confusion, DISPARITIES, Estimate, RATES, by_group, disparities, overall};
use crate::{Error, Result};

/// Gap asked of bootstrap replicates, bits: far below what resampling changes.
const REPLICATE_GAP: f64 = 1e-6;

/// Differences of selection rates below this count as parity in sentences.
const PARITY: f64 = 0.01;

/// Names of the informations of a grouping, in the order measured.
const TERMS: [&str; 8] = [
    "unique",
    "redundant",
    "masked",
    "global",
    "local",
    "client",
    "global_corrected",
    "local_corrected",
];

/// How an audit is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AuditConfig {
    /// The class whose share is the selection rate; the greatest one if absent.
    pub positive: Option<String>,
    /// Bootstrap replicates; 0 for no intervals.
    pub bootstrap: usize,
    /// Confidence of the intervals.
    pub level: f64,
    /// Groups and cells with fewer samples get a warning.
    pub min_size: u64,
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self { positive: None, bootstrap: 200, level: 0.95, min_size: 30 }
    }
}

/// The result of [`audit`], and the schema of the JSON report. Numbers are [`Estimate`]s:
/// `{"value", "low", "high"}`, each `null` where it is not defined.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Audit {
    /// Version of this schema.
    pub schema: u32,
    /// Samples.
    pub rows: u64,
    /// The class counted as positive.
    pub positive: String,
    /// Confidence of the intervals.
    pub level: f64,
    /// Bootstrap replicates behind them.
    pub replicates: usize,
    /// Rates of all samples together, by the names of [`RATES`].
    pub overall: BTreeMap<&'static str, Estimate>,
    /// One per sensitive column and, with several, one of their intersections.
    pub groupings: Vec<Grouping>,
    /// What to be careful about.
    pub warnings: Vec<String>,
}

/// The audit of one way to form groups.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Grouping {
    /// The sensitive columns.
    pub attributes: Vec<String>,
    /// Rates of each group.
    pub groups: Vec<Group>,
    /// Differences and ratios between groups, by the names of [`DISPARITIES`].
    pub disparities: BTreeMap<&'static str, Estimate>,
    /// Bits: `unique`, `redundant`, `masked`, `global`, `local`, `client` (`I(Z;S)`), and the two
    /// disparities less their bias (Miller–Madow). `null` if the table is too large.
    pub information: Option<BTreeMap<&'static str, Estimate>>,
    /// How far `unique` may be above the minimum, bits.
    pub gap: Option<f64>,
    /// Each client for itself.
    pub clients: Vec<Client>,
    /// What the numbers say.
    pub sentences: Vec<String>,
}

/// Rates of a group.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Group {
    /// Values of the sensitive columns.
    pub name: String,
    /// Samples.
    pub count: u64,
    /// By the names of [`RATES`].
    pub metrics: BTreeMap<&'static str, Estimate>,
}

/// The disparity inside one client.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Client {
    /// The client.
    pub name: String,
    /// Samples.
    pub count: u64,
    /// Between the groups of this client.
    pub demographic_parity_difference: Estimate,
    /// `I(Z; Ŷ | S = s)`, bits.
    pub information: Estimate,
}

/// Audits a table of counts.
///
/// # Errors
/// When a setting is out of range, `positive` is no class, there is only one group or class, or
/// the table is empty.
pub fn audit(counts: &Counts, config: &AuditConfig, seed: Seed) -> Result<Audit> {
    let positive = check(counts, config)?;
    let values = Numbers::of(counts, positive, GAP)?;
    let replicates = replicate(&counts.counts, config.bootstrap, seed, |n| {
        let counts = Counts { counts: n, ..counts.clone() };
        Numbers::of(&counts, positive, REPLICATE_GAP).map(|n| n.flat).unwrap_or_default()
    });
    let replicates: Vec<Vec<f64>> =
        replicates.into_iter().filter(|r| r.len() == values.flat.len()).collect();
    let mut reader =
        Reader { values: &values.flat, replicates: &replicates, level: config.level, at: 0 };
    let overall = reader.map(&RATES);
    let mut groupings = Vec::new();
    for (counts, pid) in groupings_of(counts)?.iter().zip(&values.pids) {
        groupings.push(grouping(counts, positive, *pid, &mut reader));
    }
    Ok(Audit {
        schema: 1,
        rows: counts.total(),
        positive: counts.classes[positive].clone(),
        level: config.level,
        replicates: replicates.len(),
        overall,
        warnings: warnings(&groupings_of(counts)?, config.min_size, &values.pids),
        groupings,
    })
}

fn check(counts: &Counts, config: &AuditConfig) -> Result<usize> {
    if !(config.level > 0. && config.level < 1.) {
        return Err(Error::config("level", format!("{} is not between 0 and 1", config.level)));
    }
    if counts.total() == 0 {
        return Err(Error::config("counts", "are all 0: there is nothing to audit"));
    }
    if counts.groups.len() < 2 {
        let reason = format!(
            "has the one value {}: an audit compares groups",
            counts.groups.first().map(|g| g.join(" / ")).unwrap_or_default()
        );
        return Err(Error::config(counts.attributes.join(", "), reason));
    }
    if counts.classes.len() < 2 {
        return Err(Error::config("label and prediction", "have one class between them"));
    }
    match &config.positive {
        None => Ok(counts.classes.len() - 1),
        Some(name) => counts.classes.iter().position(|c| c == name).ok_or_else(|| {
            let reason = format!("`{name}` is no class; classes: {}", counts.classes.join(", "));
            Error::config("positive", reason)
        }),
    }
}

/// The table by each attribute, then by all together.
fn groupings_of(counts: &Counts) -> Result<Vec<Counts>> {
    if counts.attributes.len() == 1 {
        return Ok(vec![counts.clone()]);
    }
    let mut all: Vec<Counts> =
        (0..counts.attributes.len()).map(|a| counts.by_attribute(a)).collect::<Result<_>>()?;
    all.push(counts.clone());
    Ok(all)
}

/// Every number of an audit in one row, so that intervals need not know what the numbers are.
struct Numbers {
    flat: Vec<f64>,
    pids: Vec<Option<Pid>>,
}

impl Numbers {
    fn of(counts: &Counts, positive: usize, gap: f64) -> Result<Self> {
        let mut flat = overall(&by_group(counts, positive, None)).rates().to_vec();
        let mut pids = Vec::new();
        for counts in groupings_of(counts)? {
            let groups = by_group(&counts, positive, None);
            groups.iter().for_each(|g| flat.extend(g.rates()));
            flat.extend(disparities(&groups));
            let joint = counts.joint()?;
            let pid = pid_broja_to(&joint, gap).ok();
            let (global, local) = corrected(&joint, counts.total());
            let terms = pid.map_or([f64::NAN; 8], |p| {
                [p.unique, p.redundant, p.masked, p.global, p.local, p.client, global, local]
            });
            flat.extend(terms);
            for (client, (_, information)) in joint.by_client().into_iter().enumerate() {
                let groups = by_group(&counts, positive, Some(client));
                flat.push(disparities(&groups)[0]);
                flat.push(information.unwrap_or(f64::NAN));
            }
            pids.push(pid);
        }
        Ok(Self { flat, pids })
    }
}

/// `I(Z; Ŷ)` and `I(Z; Ŷ | S)` with the bias of plug-in entropies taken off (Miller and Madow):
/// each entropy is too low by (occupied cells − 1)/(2n) nats.
fn corrected(joint: &Joint, total: u64) -> (f64, f64) {
    let occupied = |p: &[f64]| p.iter().filter(|p| **p > 0.).count() as f64;
    let unit = std::f64::consts::LOG2_E / (2. * total as f64);
    let (ny, ns) = (joint.ny, joint.ns);
    let z = occupied(&joint.marginal(joint.nz, |z, _, _| z));
    let y = occupied(&joint.marginal(ny, |_, y, _| y));
    let s = occupied(&joint.marginal(ns, |_, _, s| s));
    let zy = occupied(&joint.marginal(joint.nz * ny, |z, y, _| z * ny + y));
    let zs = occupied(&joint.marginal(joint.nz * ns, |z, _, s| z * ns + s));
    let ys = occupied(&joint.marginal(ny * ns, |_, y, s| y * ns + s));
    let global = joint.global() + unit * (z + y - zy - 1.);
    let local = joint.local() + unit * (zs + ys - occupied(&joint.p) - s);
    (global, local)
}

/// Takes numbers off the row in the order they were put on.
struct Reader<'a> {
    values: &'a [f64],
    replicates: &'a [Vec<f64>],
    level: f64,
    at: usize,
}

impl Reader<'_> {
    fn next(&mut self) -> Estimate {
        let at = self.at;
        self.at += 1;
        let replicates: Vec<f64> = self.replicates.iter().map(|r| r[at]).collect();
        Estimate::new(self.values.get(at).copied().unwrap_or(f64::NAN), &replicates, self.level)
    }

    fn map(&mut self, names: &[&'static str]) -> BTreeMap<&'static str, Estimate> {
        names.iter().map(|&name| (name, self.next())).collect()
    }
}

fn grouping(
    counts: &Counts,
    positive: usize,
    pid: Option<Pid>,
    reader: &mut Reader<'_>,
) -> Grouping {
    let confusions = by_group(counts, positive, None);
    let group = |(g, confusion): (usize, &Confusion)| Group {
        name: counts.group_name(g),
        count: confusion.count(),
        metrics: reader.map(&RATES),
    };
    let groups: Vec<Group> = confusions.iter().enumerate().map(group).collect();
    let disparities = reader.map(&DISPARITIES);
    let information = reader.map(&TERMS);
    let client = |c: usize| Client {
        name: counts.clients[c].clone(),
        count: overall(&by_group(counts, positive, Some(c))).count(),
        demographic_parity_difference: reader.next(),
        information: reader.next(),
    };
    let clients: Vec<Client> = (0..counts.clients.len()).map(client).collect();
    let mut grouping = Grouping {
        attributes: counts.attributes.clone(),
        groups,
        disparities,
        information: pid.map(|_| information),
        gap: pid.map(|p| p.gap),
        clients,
        sentences: Vec::new(),
    };
    grouping.sentences = pid.map(|pid| sentences(&grouping, &pid)).unwrap_or_default();
    grouping
}

fn sentences(grouping: &Grouping, pid: &Pid) -> Vec<String> {
    let bits = |v: f64| format!("{} bit", format::number(v));
    let total = pid.unique + pid.redundant + pid.masked;
    let mut out = Vec::new();
    let shown = |key: &str| grouping.information.as_ref().and_then(|i| i[key].value).unwrap_or(0.);
    if shown("global_corrected") <= 0. && shown("local_corrected") <= 0. {
        out.push("No disparity beyond what sampling alone would show.".to_owned());
        return out;
    }
    let (name, value, meaning) = [
        ("Unique", pid.unique, "it is in the decisions whatever the client, and visible both in every client and globally"),
        ("Redundant", pid.redundant, "groups are spread unevenly over clients, and decisions follow the client: it is visible globally, not inside clients"),
        ("Masked", pid.masked, "clients treat groups in opposite ways: it is visible inside clients and cancels globally"),
    ]
    .into_iter()
    .max_by(|a, b| a.1.total_cmp(&b.1))
    .unwrap_or(("Unique", 0., ""));
    out.push(format!(
        "{name} disparity dominates ({} of {}): {meaning}.",
        bits(value),
        bits(total)
    ));
    let worst =
        grouping.clients.iter().filter_map(|c| Some((c, c.demographic_parity_difference.value?)));
    let worst = worst.max_by(|a, b| a.1.total_cmp(&b.1));
    let gap = grouping.disparities["demographic_parity_difference"].value.unwrap_or(0.);
    if let Some((client, difference)) = worst.filter(|_| grouping.clients.len() > 1) {
        if difference < PARITY && gap >= PARITY {
            out.push(format!(
                "Every client is fair but the federation is not: Redundant disparity, which needs \
                 attribute and client to be dependent (I(Z;S) = {}).",
                bits(pid.client)
            ));
        } else if difference >= PARITY && gap < PARITY {
            out.push(format!(
                "The federation is fair but its clients are not: at {} selection rates differ by {}.",
                client.name,
                format::number(difference)
            ));
        } else {
            out.push(format!(
                "Within clients selection rates differ by up to {} (at {}), over all by {}.",
                format::number(difference),
                client.name,
                format::number(gap)
            ));
        }
        out.push(if pid.client < 1e-3 {
            "Groups are spread evenly over clients (I(Z;S) ≈ 0): making every client fair makes the \
             federation fair."
                .to_owned()
        } else {
            format!(
                "Groups are spread unevenly over clients (I(Z;S) = {}): making every client fair \
                 need not make the federation fair.",
                bits(pid.client)
            )
        });
    }
    out
}

fn warnings(groupings: &[Counts], min_size: u64, pids: &[Option<Pid>]) -> Vec<String> {
    let mut out = Vec::new();
    for (counts, pid) in groupings.iter().zip(pids) {
        let by = counts.attributes.join(" × ");
        for (g, confusion) in by_group(counts, 0, None).iter().enumerate() {
            if confusion.count() < min_size {
                out.push(format!(
                    "{by}: group {} has {} samples, fewer than {min_size}: its rates say little",
                    counts.group_name(g),
                    confusion.count()
                ));
            }
        }
        for (c, client) in counts.clients.iter().enumerate().filter(|_| counts.clients.len() > 1) {
            let groups = by_group(counts, 0, Some(c));
            let named = |wanted: &dyn Fn(u64) -> bool| -> Vec<String> {
                let few = (0..groups.len()).filter(|&g| wanted(groups[g].count()));
                few.map(|g| counts.group_name(g)).collect()
            };
            let absent = named(&|n| n == 0);
            if !absent.is_empty() {
                out.push(format!("{by}: client {client} has no samples of {}", absent.join(", ")));
            }
            let few = named(&|n| n > 0 && n < min_size);
            if !few.is_empty() {
                out.push(format!(
                    "{by}: client {client} has fewer than {min_size} samples of {}",
                    few.join(", ")
                ));
            }
        }
        if pid.is_none() {
            out.push(format!("{by}: too many groups × clients for the decomposition; merge some"));
        }
    }
    out
}

impl Audit {
    /// The report as a page that needs no other file.
    pub fn to_html(&self, version: &str) -> String {
        let facts = [
            ("samples".to_owned(), format::grouped(self.rows as i64)),
            ("positive class".to_owned(), self.positive.clone()),
            ("bootstrap replicates".to_owned(), self.replicates.to_string()),
            ("confidence".to_owned(), format::percent(self.level)),
            ("version".to_owned(), version.to_owned()),
        ];
        let mut notes: Vec<String> = Vec::new();
        for grouping in &self.groupings {
            let by = grouping.attributes.join(" × ");
            notes.extend(grouping.sentences.iter().map(|s| format!("{by}: {s}")));
        }
        notes.extend(self.warnings.iter().map(|w| format!("Warning: {w}.")));
        let plots: Vec<Plot> = self.groupings.iter().flat_map(Grouping::plots).collect();
        let tables: Vec<Table> = self.groupings.iter().flat_map(Grouping::tables).collect();
        let page = Page {
            title: "Fairness audit",
            lead: "Rates of groups, disparities between them, and where the disparity comes from",
            facts: &facts,
            notes: &notes,
            plots: &plots,
            tables: &tables,
        };
        page.to_html()
    }
}

impl Grouping {
    /// The decomposition, selection rates, and clients as bars.
    pub fn plots(&self) -> Vec<Plot> {
        let by = self.attributes.join(" × ");
        let bar = |plot: Plot, name: &str, e: &Estimate| match e.value {
            Some(value) => plot.bar(name, value, e.low.zip(e.high)),
            None => plot,
        };
        let mut plots = Vec::new();
        if let Some(terms) = &self.information {
            let plot = Plot::new(format!("Disparity by {by}")).y("bits");
            plots.push(TERMS[..6].iter().fold(plot, |plot, &t| bar(plot, t, &terms[t])));
        }
        let plot = Plot::new(format!("Selection rate by {by}")).y("share selected");
        plots.push(
            self.groups
                .iter()
                .fold(plot, |plot, g| bar(plot, &g.name, &g.metrics["selection_rate"])),
        );
        if self.clients.len() > 1 {
            let plot = Plot::new(format!("Difference of selection rates in each client, by {by}"));
            plots.push(self.clients.iter().fold(plot.y("difference"), |plot, c| {
                bar(plot, &c.name, &c.demographic_parity_difference)
            }));
        }
        plots
    }

    /// Groups, disparities and informations as tables.
    pub fn tables(&self) -> Vec<Table> {
        let by = self.attributes.join(" × ");
        let mut groups = Table::new(format!("Groups by {by}"))
            .columns(["group"])
            .column("count", Unit::Plain)
            .columns(RATES);
        for g in &self.groups {
            let mut row = cells![g.name.clone(), g.count];
            row.extend(RATES.iter().map(|&r| g.metrics[r].value.into()));
            groups.push(row);
        }
        let interval = |e: &Estimate| match e.low.zip(e.high) {
            Some((low, high)) => format!("[{}, {}]", format::number(low), format::number(high)),
            None => String::new(),
        };
        let mut numbers =
            Table::new(format!("Disparities by {by}")).columns(["quantity", "value", "interval"]);
        let terms = self.information.iter().flat_map(|i| TERMS.iter().map(|&t| (t, &i[t])));
        for (name, e) in DISPARITIES.iter().map(|&d| (d, &self.disparities[d])).chain(terms) {
            numbers.push(cells![name, e.value, interval(e)]);
        }
        let mut clients = Table::new(format!("Clients by {by}"))
            .columns(["client"])
            .column("count", Unit::Plain)
            .columns(["demographic_parity_difference", "interval", "information (bits)"]);
        for c in &self.clients {
            let difference = &c.demographic_parity_difference;
            clients.push(cells![
                c.name.clone(),
                c.count,
                difference.value,
                interval(difference),
                c.information.value
            ]);
        }
        vec![numbers, groups, clients]
    }
}
