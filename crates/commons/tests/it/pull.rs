//! `pull` against a hub on this machine: killed, resumed, checked.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use crate::{Place, Ran};

/// Longest wait for a part of a file.
const PATIENCE: Duration = Duration::from_secs(60);

/// SHA-256 of [`weights`], from another implementation.
const DIGEST: &str = "6e0175cb68d12319c0c68dc4524457aa3ce013d5fe8623d161adb40478a38a80";

/// Bytes of the large file that the slow hub sends before it falls silent.
const HALF: usize = 600_000;

fn weights() -> Vec<u8> {
    (0..1_000_000u32).map(|i| (i * 7 % 251) as u8).collect()
}

/// A hub with one repository, `o/m`.
struct Hub {
    endpoint: String,
    /// Path of each request and the first byte it asked for.
    requests: Arc<Mutex<Vec<(String, Option<usize>)>>>,
}

/// Starts a hub. A slow one sends the first half of the large file and then nothing.
fn hub(slow: bool) -> Hub {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&requests);
    spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let log = Arc::clone(&log);
            spawn(move || answer(stream, slow, &log));
        }
    });
    Hub { endpoint, requests }
}

fn answer(mut stream: TcpStream, slow: bool, log: &Mutex<Vec<(String, Option<usize>)>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let range = lines
        .take_while(|line| !line.is_empty())
        .find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned))
        .map(|range| range.trim_end_matches('-').parse::<usize>().unwrap());
    let path = first.split(' ').nth(1).unwrap().to_owned();
    log.lock().unwrap().push((path.clone(), range));
    let listing = r#"{"siblings":[{"rfilename":"config.json"},{"rfilename":"model.safetensors"}]}"#;
    let (content, tag) = match path.rsplit('/').next() {
        Some("main") => (listing.as_bytes().to_vec(), "listing"),
        Some("config.json") => (b"{}".to_vec(), "config"),
        Some("model.safetensors") => (weights(), DIGEST),
        _ => {
            let _ = write!(stream, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
            return;
        }
    };
    let begin = range.unwrap_or(0);
    let (last, length) = (content.len() - 1, content.len());
    let status = match range {
        Some(_) => {
            format!("206 Partial Content\r\ncontent-range: bytes {begin}-{last}/{length}")
        }
        None => "200 OK".into(),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\netag: \"{tag}\"\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        length - begin
    );
    let _ = stream.write_all(head.as_bytes());
    if slow && length > HALF {
        let _ = stream.write_all(&content[..HALF]);
        let _ = stream.flush();
        let _ = stream.read(&mut [0]);
    } else {
        let _ = stream.write_all(&content[begin..]);
    }
}

/// A command that may use the hub at `endpoint` and no other.
fn command(place: &Place, endpoint: &str, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_commons"));
    command
        .current_dir(place.path(""))
        .env("COMMONS_HOME", place.path("cache"))
        .env("HF_HOME", place.path("other-tools"))
        .env_remove("HF_HUB_CACHE")
        .env_remove("HUGGINGFACE_HUB_CACHE")
        .env_remove("HF_HUB_OFFLINE")
        .env("HF_ENDPOINT", endpoint)
        .env("COLUMNS", "200")
        .env("NO_COLOR", "1")
        .args(line.split_whitespace());
    command
}

fn run(place: &Place, endpoint: &str, line: &str) -> Ran {
    Ran::from(command(place, endpoint, line).output().unwrap())
}

/// Starts `pull o/m` and kills it once half of the large file has arrived.
fn killed_half_way(place: &Place) {
    let slow = hub(true);
    let mut child = command(place, &slow.endpoint, "pull o/m")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let part = place.path("cache/models/o--m/model.safetensors.part");
    let began = Instant::now();
    while fs::metadata(&part).map_or(0, |m| m.len()) < HALF as u64 {
        assert!(child.try_wait().unwrap().is_none(), "the download ended");
        assert!(began.elapsed() < PATIENCE, "no half of the file arrived");
        sleep(Duration::from_millis(5));
    }
    // On Unix this is SIGKILL: the program has no chance to tidy up.
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_killed_download_goes_on_where_it_stopped() {
    let place = Place::new();
    killed_half_way(&place);
    let cache = "cache/models/o--m";
    assert!(!place.path(&format!("{cache}/model.safetensors")).exists());
    assert!(!place.path(&format!("{cache}/manifest.json")).exists());
    place.refused("pull o/m", &["`o/m`", "cannot be found", "not there"]);
    place.refused("inspect o/m", &["`o/m`"]);
    place.refused("pull --verify o/m", &["`o/m`", "not in the cache", "commons pull o/m"]);

    let whole = hub(false);
    let ran = run(&place, &whole.endpoint, "pull o/m --json");
    assert_eq!(ran.code, 0, "{}", ran.err);
    let json: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(json[0]["files"]["model.safetensors"]["sha256"], DIGEST);
    assert_eq!(fs::read(place.path(&format!("{cache}/model.safetensors"))).unwrap(), weights());
    let requests = whole.requests.lock().unwrap().clone();
    let large = requests.iter().find(|(path, _)| path.ends_with("model.safetensors")).unwrap();
    assert_eq!(large.1, Some(HALF), "{requests:?}");
    assert!(ran.err.contains("model.safetensors") && ran.err.contains("/s"), "{}", ran.err);
    assert_eq!(place.list(cache), [".lock", "config.json", "manifest.json", "model.safetensors"]);

    let before = requests.len();
    assert_eq!(run(&place, &whole.endpoint, "pull o/m").code, 0);
    assert_eq!(whole.requests.lock().unwrap().len(), before, "the cache was enough");
}

#[test]
fn a_half_that_was_damaged_is_not_built_upon() {
    let place = Place::new();
    killed_half_way(&place);
    let part = place.path("cache/models/o--m/model.safetensors.part");
    let mut half = fs::read(&part).unwrap();
    half[1000] ^= 1;
    fs::write(&part, half).unwrap();
    let whole = hub(false);
    let ran = run(&place, &whole.endpoint, "pull o/m");
    assert_ne!(ran.code, 0, "{}", ran.out);
    assert!(ran.err.contains("SHA-256"), "{}", ran.err);
    assert!(!place.path("cache/models/o--m/model.safetensors").exists());
    let ran = run(&place, &whole.endpoint, "pull o/m");
    assert_eq!(ran.code, 0, "the next attempt begins anew: {}", ran.err);
}

#[test]
fn verification_names_the_damaged_file_and_the_next_pull_mends_it() {
    let place = Place::new();
    let whole = hub(false);
    assert_eq!(run(&place, &whole.endpoint, "pull o/m").code, 0);
    let listed = place.json("pull --list");
    let entry = listed.as_array().unwrap().iter().find(|e| e["name"] == "o/m").unwrap();
    assert_eq!(entry["cached_bytes"], 1_000_002);
    assert!(place.ok("pull --verify").out.contains("o/m: 2 files"));
    assert_eq!(place.json("pull --verify o/m")[0]["bytes"], 1_000_002);

    let file = place.path("cache/models/o--m/model.safetensors");
    let mut damaged = weights();
    damaged[77] ^= 1;
    fs::write(&file, &damaged).unwrap();
    place.refused("pull --verify", &["model.safetensors", "SHA-256", DIGEST, "commons pull o/m"]);
    assert_eq!(run(&place, &whole.endpoint, "pull o/m").code, 0);
    assert_eq!(fs::read(&file).unwrap(), weights());

    fs::write(&file, &damaged[..10]).unwrap();
    place.refused("pull --verify o/m", &["model.safetensors", "10 bytes instead of 1000000"]);
    fs::remove_file(place.path("cache/models/o--m/config.json")).unwrap();
    assert_eq!(run(&place, &whole.endpoint, "pull o/m").code, 0);
    place.ok("pull --verify o/m");

    fs::remove_file(place.path("cache/models/o--m/config.json")).unwrap();
    place.refused("pull --verify", &["config.json", "is gone"]);
    let before = whole.requests.lock().unwrap().len();
    let ran = run(&place, &whole.endpoint, "pull o/m");
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(
        !ran.err.contains("model.safetensors"),
        "a whole file is not fetched again: {}",
        ran.err
    );
    assert_eq!(whole.requests.lock().unwrap().len(), before + 3);
}
