//! `--data` in every form that text comes in.

use std::fs;

use serde_json::Value;

use crate::Place;

/// Bytes and tokens of `--data data`, as `eval` sees them.
fn measured(place: &Place, data: &str) -> (Value, Value) {
    let json = place.json(&format!("eval m --data {data} --context 32 --max-tokens 200"));
    (json["text"]["data"]["bytes"].clone(), json["text"]["perplexity"].clone())
}

#[test]
fn tables_say_the_same_as_plain_text() {
    let place = Place::new();
    place.model("m", 2);
    let plain = fs::read_to_string(place.text("t.txt", 30)).unwrap();
    let rows: Vec<&str> = plain.lines().collect();
    let jsonl: String = rows
        .iter()
        .map(|row| {
            let (prompt, completion) = row.split_at(row.len() / 2);
            serde_json::json!({"prompt": prompt, "completion": completion}).to_string() + "\n"
        })
        .collect();
    fs::write(place.path("t.jsonl"), jsonl).unwrap();
    let csv: String = rows.iter().map(|row| format!("1,\"{row}\"\n")).collect();
    fs::write(place.path("t.csv"), format!("id,text\n{csv}")).unwrap();
    fs::write(place.path("other.csv"), format!("id,story\n{csv}")).unwrap();
    let whole = measured(&place, "t.txt");
    for data in ["t.jsonl", "t.csv", "t.csv:text", "other.csv:story", "t.jsonl:prompt+completion"] {
        assert_eq!(measured(&place, data), whole, "{data}");
    }
    let line =
        "train --arch nano --steps 2 --batch-size 2 --seq-len 32 -o out --data other.csv:story";
    place.ok(line);
}

#[test]
fn a_column_that_is_not_there_is_named_with_those_that_are() {
    let place = Place::new();
    place.model("m", 2);
    fs::write(place.path("t.csv"), "id,story\n1,a\n2,\n").unwrap();
    place.refused("eval m --data t.csv", &["t.csv", "no column `text`", "id, story"]);
    place.refused("eval m --data t.csv:tale", &["t.csv", "no column `tale`", "id, story"]);
    place.refused("eval m --data t.csv:story", &["t.csv at line 3", "no text in story"]);
    place.refused("eval m --data none.csv:story", &["none.csv"]);
    fs::write(place.path("t.csv"), "id,text\n1,a\n2\n").unwrap();
    place.refused("eval m --data t.csv", &["t.csv at line 3", "1 fields"]);
    fs::write(place.path("t.parquet"), "PAR1 not really PAR1").unwrap();
    place.refused("eval m --data t.parquet", &["t.parquet", "not a Parquet file"]);
    fs::write(place.path("t.txt"), "some text\n").unwrap();
    place.refused("eval m --data t.txt:text", &["t.txt", "no columns"]);
}
