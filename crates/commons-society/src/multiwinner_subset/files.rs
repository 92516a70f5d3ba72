//! Files of rankings and of groups.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use commons_core::{Error as CoreError, fs};
use serde::Deserialize;

use super::rankings::{Ballot, Rankings, numbered};
use crate::csv_input::CsvTable;
use crate::{Error, Result};

/// Largest file that is read, bytes.
const LIMIT: u64 = 1 << 30;

/// Items of a file at most: what it claims is not believed without looking.
const MOST_ITEMS: usize = 1_000_000;

/// Kinds of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Columns `voter,item,rank`, rank 1 the best.
    Csv,
    /// PrefLib orders: `.soc`, `.soi`, `.toc`, `.toi`.
    PrefLib,
    /// A JSON array per line, best first, or an object with `ranking` or `approve`, and `weight`.
    Jsonl,
    /// Approval profiles of abcvoting.
    AbcYaml,
}

impl Format {
    /// Names of the formats, for messages.
    pub const NAMES: &'static str = ".csv, .soc, .soi, .toc, .toi, .jsonl, .abc.yaml";

    /// The format that a file's name says.
    ///
    /// # Errors
    /// When it says none.
    pub fn of(path: &Path) -> Result<Self> {
        let name = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
        let extension = name.rsplit('.').next().unwrap_or_default();
        match extension {
            "csv" => Ok(Self::Csv),
            "soc" | "soi" | "toc" | "toi" => Ok(Self::PrefLib),
            "jsonl" | "ndjson" => Ok(Self::Jsonl),
            "yaml" | "yml" => Ok(Self::AbcYaml),
            _ => Err(whole(path, "", "its name tells no format of rankings", Self::NAMES)),
        }
    }
}

fn whole(path: &Path, field: impl Into<String>, problem: impl Into<String>, remedy: &str) -> Error {
    CoreError::file(path, field, problem, format!("give {remedy}")).into()
}

/// Reads rankings in the format that the file's name says.
///
/// # Errors
/// Naming file, line and field, and what would be right.
pub fn read(path: impl AsRef<Path>) -> Result<Rankings> {
    let path = path.as_ref();
    read_as(path, Format::of(path)?)
}

/// Reads rankings in a format.
///
/// # Errors
/// As [`read`].
pub fn read_as(path: impl AsRef<Path>, format: Format) -> Result<Rankings> {
    let path = path.as_ref();
    let text = fs::read_text(path, LIMIT)?;
    match format {
        Format::Csv => csv(path, &text),
        Format::PrefLib => preflib(path, &text),
        Format::Jsonl => jsonl(path, &text),
        Format::AbcYaml => Ok(abc_yaml(path, &text)?.rankings),
    }
}

fn csv(path: &Path, text: &str) -> Result<Rankings> {
    let table = CsvTable::parse(path, text)?;
    let (voters, items) = (table.texts("voter")?, table.texts("item")?);
    let ranks = table.numbers("rank")?;
    let index = |names: &[&str]| {
        let mut seen = HashMap::new();
        let mut list = Vec::new();
        for &name in names {
            if !seen.contains_key(name) {
                seen.insert(name.to_owned(), list.len());
                list.push(name.to_owned());
            }
        }
        (seen, list)
    };
    let ((voter_of, voter_names), (item_of, item_names)) = (index(&voters), index(&items));
    let (n, m) = (voter_names.len(), item_names.len());
    every_voter_has_rows(&table, &voters, &items, &item_names)?;
    // Row that ranks item c for voter v, and the row that gives voter v the rank r.
    let mut at_rank = vec![usize::MAX; n * m];
    let mut of_item = vec![usize::MAX; n * m];
    for row in 0..table.len() {
        let (v, c) = (voter_of[voters[row]], item_of[items[row]]);
        let rank = ranks[row];
        if !(rank.fract() == 0. && rank >= 1. && rank <= m as f64) {
            let problem = format!("{rank} is no rank of {m} items");
            let remedy = format!("ranks are 1 (best) to {m}, the number of different items");
            return Err(table.error(row, "rank", problem, remedy));
        }
        let clash = |old: usize, column: &str, what: &str| {
            let problem =
                format!("voter `{}` has {what} already in {}", voters[row], table.place(old));
            table.error(row, column, problem, "give every item one rank, and every rank once")
        };
        let (rank_slot, item_slot) = (v * m + rank as usize - 1, v * m + c);
        if of_item[item_slot] != usize::MAX {
            return Err(clash(of_item[item_slot], "item", &format!("item `{}`", items[row])));
        }
        if at_rank[rank_slot] != usize::MAX {
            return Err(clash(at_rank[rank_slot], "rank", &format!("rank {rank}")));
        }
        (of_item[item_slot], at_rank[rank_slot]) = (row, row);
    }
    let mut orders = Vec::with_capacity(n);
    for v in 0..n {
        let rows = &at_rank[v * m..(v + 1) * m];
        orders.push(rows.iter().map(|&r| item_of[items[r]]).collect());
    }
    Rankings::from_orders(item_names, &orders)
}

/// Refuses a voter with fewer rows than items, before anything of the size `n · m` is made.
fn every_voter_has_rows(
    table: &CsvTable,
    voters: &[&str],
    items: &[&str],
    names: &[String],
) -> Result<()> {
    let mut rows: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (row, voter) in voters.iter().enumerate() {
        rows.entry(voter).or_default().push(row);
    }
    let Some((voter, rows)) = rows.into_iter().find(|(_, r)| r.len() < names.len()) else {
        return Ok(());
    };
    let ranked: BTreeSet<&str> = rows.iter().map(|&r| items[r]).collect();
    let missing = names.iter().find(|n| !ranked.contains(n.as_str()));
    let problem =
        format!("voter `{voter}` does not rank item `{}`", missing.map_or("", String::as_str));
    let remedy = "rank every item; incomplete rankings are read from .soi or .jsonl";
    Err(table.error(rows.last().copied().unwrap_or(0), "item", problem, remedy))
}

/// A line of PrefLib data: how many voters, and the blocks.
type Counted = (f64, Vec<Vec<usize>>);

/// What the next line of a PrefLib file is.
#[derive(Clone, Copy)]
enum Stage {
    Start,
    /// So many names of items are to come (old format).
    Names(usize),
    /// The line with numbers of voters (old format).
    Counts,
    Data,
}

/// PrefLib orders: the present format (`# KEY: value`, `count: 1,2,{3,4}`), the one before it (the
/// number of items, their names, a line of counts, `count,1,2,{3,4}`), and bare data lines.
fn preflib(path: &Path, text: &str) -> Result<Rankings> {
    let mut names: BTreeMap<usize, String> = BTreeMap::new();
    let mut declared: Option<usize> = None;
    let mut data: Vec<(usize, Counted)> = Vec::new();
    let mut stage = Stage::Start;
    for (i, line) in text.lines().enumerate().map(|(i, l)| (i + 1, l.trim())) {
        if line.is_empty() {
            continue;
        }
        if let Some(comment) = line.strip_prefix('#') {
            let (key, value) = comment.split_once(':').unwrap_or((comment, ""));
            let key = key.trim();
            if key == "NUMBER ALTERNATIVES" {
                declared = Some(count(path, i, value)?);
            } else if let Some(number) = key.strip_prefix("ALTERNATIVE NAME ") {
                names.insert(count(path, i, number)?, value.trim().to_owned());
            }
            continue;
        }
        stage = match stage {
            Stage::Start if line.chars().all(|c| c.is_ascii_digit()) => {
                let m = count(path, i, line)?;
                declared = Some(m);
                if m == 0 { Stage::Counts } else { Stage::Names(m) }
            }
            Stage::Names(left) => {
                let (number, name) = line.split_once(',').unwrap_or((line, ""));
                names.insert(count(path, i, number)?, name.trim().to_owned());
                if left == 1 { Stage::Counts } else { Stage::Names(left - 1) }
            }
            Stage::Counts => Stage::Data,
            Stage::Start | Stage::Data => {
                data.push((i, order(path, i, line)?));
                Stage::Data
            }
        };
    }
    let largest = data.iter().flat_map(|(_, (_, b))| b.iter().flatten()).max().copied();
    let m = declared.unwrap_or_else(|| largest.unwrap_or(0));
    few_enough(path, m)?;
    let mut ballots = Vec::with_capacity(data.len());
    for (line, (weight, blocks)) in data {
        ballots.push(Ballot { weight, blocks: zero_based(path, line, m, blocks)? });
    }
    let items = (1..=m).map(|c| names.remove(&c).unwrap_or_else(|| c.to_string())).collect();
    if ballots.is_empty() {
        return Err(whole(path, "", "holds no orders", "lines such as `12: 3,1,{2,4}`"));
    }
    Rankings::from_ballots(items, &ballots)
}

fn few_enough(path: &Path, m: usize) -> Result<()> {
    if m <= MOST_ITEMS {
        return Ok(());
    }
    let problem = format!("has {m} items, more than the {MOST_ITEMS} that are read");
    Err(whole(path, "", problem, "fewer items, numbered from 1"))
}

/// Checks the items of one line and counts them from 0.
fn zero_based(
    path: &Path,
    line: usize,
    m: usize,
    blocks: Vec<Vec<usize>>,
) -> Result<Vec<Vec<usize>>> {
    let mut seen = vec![false; m];
    for &c in blocks.iter().flatten() {
        let place = format!("line {line}, item {c}");
        match c.checked_sub(1).and_then(|c| seen.get_mut(c)) {
            None => {
                let problem = format!("there are items 1 to {m} only");
                return Err(whole(path, place, problem, "an item by its number from 1"));
            }
            Some(true) => return Err(whole(path, place, "stands twice", "every item once")),
            Some(slot) => *slot = true,
        }
    }
    Ok(blocks.into_iter().map(|b| b.into_iter().map(|c| c - 1).collect()).collect())
}

fn count(path: &Path, line: usize, text: &str) -> Result<usize> {
    text.trim().parse().map_err(|_| {
        let problem = format!("`{}` is not a whole number", text.trim());
        whole(path, format!("line {line}"), problem, "PrefLib orders, as in `12: 3,1,{2,4}`")
    })
}

/// `12: 3,1,{2,4}` or `12,3,1,{2,4}`.
fn order(path: &Path, line: usize, text: &str) -> Result<Counted> {
    let (head, rest) = text.split_once(':').or_else(|| text.split_once(',')).unwrap_or((text, ""));
    let weight = count(path, line, head)? as f64;
    if weight == 0. {
        return Err(whole(path, format!("line {line}"), "is cast by 0 voters", "1 or more"));
    }
    let mut blocks: Vec<Vec<usize>> = Vec::new();
    let mut open: Option<Vec<usize>> = None;
    let brace = |found: &str| {
        let problem = format!("has a {found} out of place");
        whole(path, format!("line {line}"), problem, "ties as {2,4}")
    };
    for part in rest.split(',') {
        let mut part = part.trim();
        if let Some(inner) = part.strip_prefix('{') {
            if open.is_some() {
                return Err(brace("`{`"));
            }
            open = Some(Vec::new());
            part = inner;
        }
        let (word, closes) = part.strip_suffix('}').map_or((part, false), |p| (p, true));
        if !word.trim().is_empty() {
            let item = count(path, line, word)?;
            match &mut open {
                Some(block) => block.push(item),
                None => blocks.push(vec![item]),
            }
        }
        if closes {
            let block = open.take().ok_or_else(|| brace("`}`"))?;
            if !block.is_empty() {
                blocks.push(block);
            }
        }
    }
    if open.is_some() {
        return Err(brace("`{`"));
    }
    Ok((weight, blocks))
}

/// A line of JSON: an array of items, or an object.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Array(Vec<Name>),
    Ranking {
        ranking: Vec<Name>,
        #[serde(default = "one")]
        weight: f64,
    },
    Approval {
        approve: Vec<Name>,
        #[serde(default = "one")]
        weight: f64,
    },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Name {
    Text(String),
    Number(u64),
}

fn one() -> f64 {
    1.
}

impl Name {
    fn text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Number(number) => number.to_string(),
        }
    }
}

fn jsonl(path: &Path, text: &str) -> Result<Rankings> {
    const SHAPE: &str = r#"["b","a"] or {"ranking":["b","a"],"weight":2} or {"approve":["a"]}"#;
    let mut index: HashMap<String, usize> = HashMap::new();
    let (mut names, mut ballots) = (Vec::new(), Vec::new());
    let mut approvals = None;
    for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let place = |what: &str| format!("line {}{what}", i + 1);
        let parsed: Line = serde_json::from_str(line)
            .map_err(|e| whole(path, place(""), format!("is no ranking: {e}"), SHAPE))?;
        let (list, weight, approval) = match parsed {
            Line::Array(list) => (list, 1., false),
            Line::Ranking { ranking, weight } => (ranking, weight, false),
            Line::Approval { approve, weight } => (approve, weight, true),
        };
        if *approvals.get_or_insert(approval) != approval {
            let problem = "mixes rankings and approvals";
            return Err(whole(path, place(""), problem, "one kind of ballot in a file"));
        }
        if !(weight > 0. && weight.is_finite()) {
            let problem = format!("{weight} is not above 0");
            return Err(whole(path, place(", field `weight`"), problem, "a number above 0"));
        }
        let mut ballot: Vec<usize> = Vec::new();
        for name in list.into_iter().map(Name::text) {
            let next = names.len();
            let c = *index.entry(name.clone()).or_insert(next);
            if c == next {
                names.push(name.clone());
            }
            if ballot.contains(&c) {
                return Err(whole(
                    path,
                    place(&format!(", item `{name}`")),
                    "stands twice",
                    "every item once",
                ));
            }
            ballot.push(c);
        }
        ballots.push((weight, ballot));
    }
    if ballots.is_empty() || names.is_empty() {
        return Err(whole(path, "", "holds no rankings", SHAPE));
    }
    // Numbers in their order; words as they came.
    let (names, ballots) = by_number(names, ballots);
    if approvals == Some(true) {
        return Rankings::from_approvals(names, &ballots);
    }
    let blocks = |b: Vec<usize>| b.into_iter().map(|c| vec![c]).collect();
    let ballots: Vec<Ballot> =
        ballots.into_iter().map(|(weight, b)| Ballot { weight, blocks: blocks(b) }).collect();
    Rankings::from_ballots(names, &ballots)
}

/// Items whose names are all numbers are sorted by them.
fn by_number(
    names: Vec<String>,
    ballots: Vec<(f64, Vec<usize>)>,
) -> (Vec<String>, Vec<(f64, Vec<usize>)>) {
    let Some(numbers) = names.iter().map(|n| n.parse().ok()).collect::<Option<Vec<u64>>>() else {
        return (names, ballots);
    };
    let mut order: Vec<usize> = (0..names.len()).collect();
    order.sort_by_key(|&c| numbers[c]);
    let mut place = vec![0; names.len()];
    order.iter().enumerate().for_each(|(new, &old)| place[old] = new);
    let names = order.iter().map(|&c| names[c].clone()).collect();
    let renamed = |b: Vec<usize>| b.into_iter().map(|c| place[c]).collect();
    (names, ballots.into_iter().map(|(w, b)| (w, renamed(b))).collect())
}

/// An approval profile of abcvoting with what it says the rules choose.
#[derive(Debug, Clone)]
pub struct AbcProfile {
    /// The ballots.
    pub rankings: Rankings,
    /// Size of the committee, if the file says.
    pub committee_size: Option<usize>,
    /// Known results: rule, whether one committee of a tie was asked for, committees.
    pub results: Vec<(String, bool, Vec<Vec<usize>>)>,
}

#[derive(Deserialize)]
struct AbcFile {
    profile: Vec<Vec<usize>>,
    num_cand: usize,
    committeesize: Option<usize>,
    #[serde(default)]
    compute: Vec<AbcResult>,
}

#[derive(Deserialize)]
struct AbcResult {
    rule_id: String,
    #[serde(default)]
    resolute: bool,
    result: Option<Vec<Vec<usize>>>,
}

/// Reads the text of an `.abc.yaml` file.
///
/// # Errors
/// Naming the file and what is wrong.
pub fn abc_yaml(path: impl AsRef<Path>, text: &str) -> Result<AbcProfile> {
    let path = path.as_ref();
    let file: AbcFile = serde_saphyr::from_str(text).map_err(|e| {
        whole(path, "", format!("is no abcvoting profile: {e}"), "`profile` and `num_cand`")
    })?;
    few_enough(path, file.num_cand)?;
    for (v, ballot) in file.profile.iter().enumerate() {
        for (i, c) in ballot.iter().enumerate() {
            let place = format!("profile[{v}], candidate {c}");
            if *c >= file.num_cand {
                let problem = format!("there are candidates 0 to {}", file.num_cand as i64 - 1);
                return Err(whole(path, place, problem, "a candidate below num_cand"));
            }
            if ballot[..i].contains(c) {
                return Err(whole(path, place, "stands twice", "every candidate once"));
            }
        }
    }
    let ballots: Vec<(f64, Vec<usize>)> = file.profile.into_iter().map(|b| (1., b)).collect();
    let results = file.compute.into_iter();
    Ok(AbcProfile {
        rankings: Rankings::from_approvals(numbered(file.num_cand), &ballots)?,
        committee_size: file.committeesize,
        results: results.filter_map(|c| Some((c.rule_id, c.resolute, c.result?))).collect(),
    })
}

/// Groups of items from a CSV file with columns `item` and `group`; an item may have several lines.
///
/// # Errors
/// Naming the row whose item is not among the ranked ones.
pub fn groups(path: impl AsRef<Path>, names: &[String]) -> Result<BTreeMap<String, Vec<usize>>> {
    let table = CsvTable::read(path)?;
    let (items, groups) = (table.texts("item")?, table.texts("group")?);
    let index: HashMap<&str, usize> =
        names.iter().enumerate().map(|(c, n)| (n.as_str(), c)).collect();
    let mut found: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (row, (item, group)) in items.iter().zip(&groups).enumerate() {
        let Some(&c) = index.get(item) else {
            let problem = format!("`{item}` is not among the ranked items");
            let some: Vec<&str> = names.iter().take(8).map(String::as_str).collect();
            let remedy = format!("ranked items are {}, …", some.join(", "));
            return Err(table.error(row, "item", problem, remedy));
        };
        let members = found.entry((*group).to_owned()).or_default();
        if !members.contains(&c) {
            members.push(c);
        }
    }
    found.values_mut().for_each(|m| m.sort_unstable());
    Ok(found)
}
