//! Files of rankings and of groups.

use std::collections::{BTreeMap, HashMap};
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
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    match format {
        Format::Csv => csv(path, text),
        Format::PrefLib => preflib(path, text),
        Format::Jsonl => jsonl(path, text),
        Format::AbcYaml => Ok(abc_yaml(path, text)?.rankings),
    }
}

/// Numbers names in the order they are first met.
#[derive(Default)]
struct Names<'a> {
    index: HashMap<&'a str, usize>,
    list: Vec<&'a str>,
}

impl<'a> Names<'a> {
    /// Number of each of `names`. Most files hold the rows of one voter together, so the last name
    /// is looked at first.
    fn number(&mut self, names: &[&'a str]) -> Vec<usize> {
        let mut last = usize::MAX;
        let one = |name: &&'a str| {
            if self.list.get(last) != Some(name) {
                last = *self.index.entry(name).or_insert_with(|| {
                    self.list.push(name);
                    self.list.len() - 1
                });
            }
            last
        };
        names.iter().map(one).collect()
    }
}

fn csv(path: &Path, text: &str) -> Result<Rankings> {
    let table = CsvTable::parse(path, text)?;
    let (voters, items) = (table.texts("voter")?, table.texts("item")?);
    let ranks = table.numbers("rank")?;
    let (mut voter_names, mut item_names) = (Names::default(), Names::default());
    let (voter_of, item_of) = (voter_names.number(&voters), item_names.number(&items));
    let (n, m) = (voter_names.list.len(), item_names.list.len());
    every_voter_has_rows(&table, &voter_names.list, &item_names.list, &voter_of, &item_of)?;
    // Row that ranks item c for voter v, and the row that gives voter v the rank r.
    let mut at_rank = vec![usize::MAX; n * m];
    let mut of_item = vec![usize::MAX; n * m];
    for row in 0..table.len() {
        let (v, c) = (voter_of[row], item_of[row]);
        let clash = |old: usize, column: &str, what: &str| {
            let problem =
                format!("voter `{}` has {what} already in {}", voters[row], table.place(old));
            table.error(row, column, problem, "give every item one rank, and every rank once")
        };
        let item_slot = v * m + c;
        if of_item[item_slot] != usize::MAX {
            return Err(clash(of_item[item_slot], "item", &format!("item `{}`", items[row])));
        }
        let rank = ranks[row];
        if !(rank.fract() == 0. && rank >= 1. && rank <= m as f64) {
            let problem = format!("{rank} is no rank of {m} items");
            let remedy = format!("ranks are 1 (best) to {m}, the number of different items");
            return Err(table.error(row, "rank", problem, remedy));
        }
        let rank_slot = v * m + rank as usize - 1;
        if at_rank[rank_slot] != usize::MAX {
            return Err(clash(at_rank[rank_slot], "rank", &format!("rank {rank}")));
        }
        (of_item[item_slot], at_rank[rank_slot]) = (row, row);
    }
    let order = |rows: &[usize]| rows.iter().map(|&r| item_of[r]).collect();
    let orders: Vec<Vec<usize>> = at_rank.chunks(m).map(order).collect();
    let names = item_names.list.iter().map(|&n| n.to_owned()).collect();
    Rankings::from_orders(names, &orders)
}

/// Refuses a voter with fewer rows than items, before anything of the size `n · m` is made.
fn every_voter_has_rows(
    table: &CsvTable,
    voters: &[&str],
    items: &[&str],
    voter_of: &[usize],
    item_of: &[usize],
) -> Result<()> {
    let mut counts = vec![0_usize; voters.len()];
    voter_of.iter().for_each(|&v| counts[v] += 1);
    let Some(short) = counts.iter().position(|&c| c < items.len()) else { return Ok(()) };
    let mut ranked = vec![false; items.len()];
    let mut last = 0;
    for row in (0..table.len()).filter(|&r| voter_of[r] == short) {
        (ranked[item_of[row]], last) = (true, row);
    }
    let missing = ranked.iter().position(|r| !r).map_or("", |c| items[c]);
    let problem = format!("voter `{}` does not rank item `{missing}`", voters[short]);
    let remedy = "rank every item; incomplete rankings are read from .soi or .jsonl";
    Err(table.error(last, "item", problem, remedy))
}

/// A line of PrefLib data: how many voters, the items, and where the blocks of tied ones end;
/// without ties the ends are left out.
struct Counted {
    weight: f64,
    items: Vec<usize>,
    ends: Option<Vec<usize>>,
}

impl Counted {
    fn blocks(self) -> Vec<Vec<usize>> {
        let Some(ends) = self.ends else {
            return self.items.into_iter().map(|c| vec![c]).collect();
        };
        let starts = [0].into_iter().chain(ends.iter().copied());
        starts.zip(&ends).map(|(from, &to)| self.items[from..to].to_vec()).collect()
    }
}

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
    let largest = data.iter().flat_map(|(_, d)| &d.items).max().copied();
    let m = declared.unwrap_or_else(|| largest.unwrap_or(0));
    few_enough(path, m)?;
    if data.is_empty() {
        return Err(whole(path, "", "holds no orders", "lines such as `12: 3,1,{2,4}`"));
    }
    let mut seen = vec![0; m];
    for (line, counted) in &mut data {
        zero_based(path, *line, &mut seen, &mut counted.items)?;
    }
    let items = (1..=m).map(|c| names.remove(&c).unwrap_or_else(|| c.to_string())).collect();
    if data.iter().all(|(_, d)| d.ends.is_none() && d.items.len() == m) {
        let (orders, weights): (Vec<_>, Vec<_>) =
            data.into_iter().map(|(_, d)| (d.items, d.weight)).unzip();
        return Rankings::from_orders(items, &orders)?.weighted(weights);
    }
    let ballots: Vec<Ballot> =
        data.into_iter().map(|(_, d)| Ballot { weight: d.weight, blocks: d.blocks() }).collect();
    Rankings::from_ballots(items, &ballots)
}

fn few_enough(path: &Path, m: usize) -> Result<()> {
    if m <= MOST_ITEMS {
        return Ok(());
    }
    let problem = format!("has {m} items, more than the {MOST_ITEMS} that are read");
    Err(whole(path, "", problem, "fewer items, numbered from 1"))
}

/// Checks the items of one line and counts them from 0. `seen` holds the line each was last on.
fn zero_based(path: &Path, line: usize, seen: &mut [usize], items: &mut [usize]) -> Result<()> {
    let m = seen.len();
    for c in items {
        let place = || format!("line {line}, item {c}");
        match c.checked_sub(1).and_then(|c| seen.get_mut(c)) {
            None => {
                let problem = format!("there are items 1 to {m} only");
                return Err(whole(path, place(), problem, "an item by its number from 1"));
            }
            Some(at) if *at == line => {
                return Err(whole(path, place(), "stands twice", "every item once"));
            }
            Some(at) => *at = line,
        }
        *c -= 1;
    }
    Ok(())
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
    if !rest.contains(['{', '}']) {
        let words = rest.split(',').filter(|w| !w.trim().is_empty());
        let items = words.map(|w| count(path, line, w)).collect::<Result<_>>()?;
        return Ok(Counted { weight, items, ends: None });
    }
    let (mut items, mut ends): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
    let mut open = false;
    let brace = |found: &str| {
        let problem = format!("has a {found} out of place");
        whole(path, format!("line {line}"), problem, "ties as {2,4}")
    };
    for part in rest.split(',') {
        let mut part = part.trim();
        if let Some(inner) = part.strip_prefix('{') {
            if open {
                return Err(brace("`{`"));
            }
            (open, part) = (true, inner);
        }
        let (word, closes) = part.strip_suffix('}').map_or((part, false), |p| (p, true));
        if closes && !open {
            return Err(brace("`}`"));
        }
        if !word.trim().is_empty() {
            items.push(count(path, line, word)?);
        }
        open &= !closes;
        if !open && ends.last().copied().unwrap_or(0) < items.len() {
            ends.push(items.len());
        }
    }
    if open {
        return Err(brace("`{`"));
    }
    Ok(Counted { weight, items, ends: Some(ends) })
}

/// A line of JSON that is no array.
#[derive(Deserialize)]
struct Line {
    ranking: Option<Vec<Name>>,
    approve: Option<Vec<Name>>,
    #[serde(default = "one")]
    weight: f64,
}

/// An item: a text or a whole number.
struct Name(String);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Name;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an item: a text or a whole number")
            }

            fn visit_str<E>(self, text: &str) -> Result<Name, E> {
                Ok(Name(text.to_owned()))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Name, E> {
                Ok(Name(number.to_string()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

fn one() -> f64 {
    1.
}

/// A line of JSON: items, weight, whether they are approved rather than ranked.
fn ballot_line(text: &str) -> Result<(Vec<Name>, f64, bool), String> {
    let wrong = |e: serde_json::Error| format!("is no ranking: {e}");
    if text.trim_start().starts_with('[') {
        return Ok((serde_json::from_str(text).map_err(wrong)?, 1., false));
    }
    let line: Line = serde_json::from_str(text).map_err(wrong)?;
    match (line.ranking, line.approve) {
        (Some(list), None) => Ok((list, line.weight, false)),
        (None, Some(list)) => Ok((list, line.weight, true)),
        _ => Err("has not one of the keys `ranking` and `approve`".into()),
    }
}

fn jsonl(path: &Path, text: &str) -> Result<Rankings> {
    const SHAPE: &str = r#"["b","a"] or {"ranking":["b","a"],"weight":2} or {"approve":["a"]}"#;
    let mut index: HashMap<String, usize> = HashMap::new();
    let (mut names, mut ballots): (Vec<String>, Vec<(f64, Vec<usize>)>) = (Vec::new(), Vec::new());
    // The line each item was last on.
    let mut seen: Vec<usize> = Vec::new();
    let mut approvals = None;
    for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let place = |what: &str| format!("line {}{what}", i + 1);
        let (list, weight, approval) =
            ballot_line(line).map_err(|problem| whole(path, place(""), problem, SHAPE))?;
        if *approvals.get_or_insert(approval) != approval {
            let problem = "mixes rankings and approvals";
            return Err(whole(path, place(""), problem, "one kind of ballot in a file"));
        }
        if !(weight > 0. && weight.is_finite()) {
            let problem = format!("{weight} is not above 0");
            return Err(whole(path, place(", field `weight`"), problem, "a number above 0"));
        }
        let mut ballot: Vec<usize> = Vec::with_capacity(list.len());
        for Name(name) in list {
            let c = index.get(&name).copied().unwrap_or(names.len());
            if c == names.len() {
                index.insert(name.clone(), c);
                names.push(name);
                seen.push(0);
            } else if seen[c] == i + 1 {
                let place = place(&format!(", item `{name}`"));
                return Err(whole(path, place, "stands twice", "every item once"));
            }
            seen[c] = i + 1;
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
    if ballots.iter().all(|(_, b)| b.len() == names.len()) {
        let (weights, orders): (Vec<f64>, Vec<Vec<usize>>) = ballots.into_iter().unzip();
        return Rankings::from_orders(names, &orders)?.weighted(weights);
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
