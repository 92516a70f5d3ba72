//! Files over HTTP, resumed where an earlier attempt stopped.
//!
//! Bytes go to `NAME.part`; beside it `NAME.part.tag` says which version of the file they belong to.
//! Only a complete file that matches the announced length and checksum gets its name, so nothing
//! that ends a download, not even the process being killed, leaves a file taken for whole.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use commons_core::{Progress, Stop};
use sha2::{Digest, Sha256};
use ureq::http::{Response, StatusCode, Uri};
use ureq::{Agent, Body};

use crate::error::{Error, Result};

/// An unreachable hub must not keep users waiting: other sources follow.
const CONNECT: Duration = Duration::from_secs(5);
/// Silence of a connected server after which an attempt is given up.
const SILENCE: Duration = Duration::from_secs(30);
/// Attempts per file; each resumes the one before.
const ATTEMPTS: u32 = 4;
const REDIRECTS: usize = 5;
/// Longest JSON answer accepted.
const MAX_JSON: u64 = 32 << 20;

/// What is known about a finished file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fetched {
    pub bytes: u64,
    pub sha256: String,
}

/// A client for one endpoint.
#[derive(Debug, Clone)]
pub(super) struct Client {
    agent: Agent,
    token: Option<String>,
}

/// An answer after redirects.
struct Answer {
    response: Response<Body>,
    /// Identifies the version of the file; the first answer's, before any redirect.
    tag: Option<String>,
}

impl Client {
    pub fn new(token: Option<String>) -> Self {
        let config = Agent::config_builder()
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("commons/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { agent: config.new_agent(), token }
    }

    /// A JSON document.
    pub fn json(&self, url: &str) -> Result<serde_json::Value> {
        let mut answer = self.get(url, 0)?;
        check_status(url, answer.response.status())?;
        let text = answer
            .response
            .body_mut()
            .with_config()
            .limit(MAX_JSON)
            .read_to_vec()
            .map_err(|e| transport(url, e))?;
        serde_json::from_slice(&text)
            .map_err(|e| Error::invalid(url, format!("did not answer with JSON: {e}")))
    }

    /// One request for the bytes from `offset` on, following redirects. The token is only shown to
    /// the host that was asked first.
    fn get(&self, url: &str, offset: u64) -> Result<Answer> {
        let first: Uri = parse(url)?;
        let (mut target, mut tag) = (first.clone(), None);
        for _ in 0..=REDIRECTS {
            let mut request = self.agent.get(&target);
            if let Some(token) =
                self.token.as_ref().filter(|_| target.authority() == first.authority())
            {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if offset > 0 {
                request = request.header("range", format!("bytes={offset}-"));
            }
            let response = request.call().map_err(|e| transport(url, e))?;
            let header =
                |name: &str| response.headers().get(name)?.to_str().ok().map(str::to_owned);
            if tag.is_none() {
                tag = header("x-linked-etag").or_else(|| header("etag"));
            }
            match header("location") {
                Some(location) if response.status().is_redirection() => {
                    target = resolve(&target, &location)?;
                }
                _ => {
                    let tag = tag.map(|t| t.trim_start_matches("W/").trim_matches('"').to_owned());
                    return Ok(Answer { response, tag });
                }
            }
        }
        Err(Error::invalid(url, "redirects without end"))
    }

    /// Fetches `url` to `path`, which appears complete or not at all; `sha256` is checked if given.
    ///
    /// # Errors
    /// When the file cannot be had completely after some attempts, has the wrong checksum, or a stop
    /// was requested; the part received stays for the next time unless its checksum is wrong.
    pub fn fetch(
        &self,
        url: &str,
        path: &Path,
        sha256: Option<&str>,
        progress: &dyn Progress,
        stop: &Stop,
    ) -> Result<Fetched> {
        let download = Download::new(url, path)?;
        let mut task = None;
        let mut last = None;
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                std::thread::sleep(Duration::from_millis(250 << attempt));
            }
            let answer = match self.get(url, download.received()?) {
                Ok(answer) => answer,
                // A server that cannot be reached at all is not waited for: other sources follow.
                Err(error) if attempt == 0 => return Err(error),
                Err(error) => {
                    last = Some(error);
                    continue;
                }
            };
            if let Some(kept) = kept(path, &answer)? {
                return Ok(kept);
            }
            let outcome = download.accept(answer, |received, total| {
                stop.check()?;
                task.get_or_insert_with(|| progress.transfer(&download_label(path), total))
                    .update(received, "");
                Ok(())
            });
            match outcome {
                Ok(tag) => {
                    return download.finish(sha256.or(tag.as_deref().filter(|t| is_sha256(t))));
                }
                // Trying again mends a broken transfer, but not a refusal or a wish to stop.
                Err(error @ (Error::Invalid { .. } | Error::Core(_))) => return Err(error),
                Err(error) if is_absent(&error) => return Err(error),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::invalid(url, "cannot be fetched")))
    }
}

/// The file at `path`, if it is already the one that `answer` offers: an earlier attempt may have
/// ended after it, with others of its entry still to come.
fn kept(path: &Path, answer: &Answer) -> Result<Option<Fetched>> {
    match answer.tag.as_deref().filter(|tag| is_sha256(tag)) {
        Some(tag) if answer.response.status().is_success() && path.is_file() => {
            Ok(Some(measure(path)?).filter(|found| found.sha256.eq_ignore_ascii_case(tag)))
        }
        _ => Ok(None),
    }
}

fn download_label(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn is_sha256(tag: &str) -> bool {
    tag.len() == 64 && tag.bytes().all(|b| b.is_ascii_hexdigit())
}

fn parse(url: &str) -> Result<Uri> {
    url.parse().map_err(|e| Error::invalid(url, format!("is not an address: {e}")))
}

/// The address that `location` means when `from` redirects to it.
fn resolve(from: &Uri, location: &str) -> Result<Uri> {
    if !location.starts_with('/') {
        return parse(location);
    }
    let scheme = from.scheme_str().unwrap_or("https");
    let authority = from.authority().map_or("", |a| a.as_str());
    parse(&format!("{scheme}://{authority}{location}"))
}

fn transport(url: &str, error: ureq::Error) -> Error {
    Error::io(url, "fetch", std::io::Error::other(error))
}

fn check_status(url: &str, status: StatusCode) -> Result<()> {
    if status.is_success() {
        return Ok(());
    }
    let error = Error::invalid(url, format!("the server answered {status}"));
    Err(match status.as_u16() {
        401 | 403 => error.remedy("set HF_TOKEN to a token that may read it, and accept its terms"),
        404 => {
            let absent =
                std::io::Error::new(std::io::ErrorKind::NotFound, "the server has no such file");
            Error::io(url, "fetch", absent)
        }
        // Worth another attempt.
        429 | 500..=599 => {
            Error::io(url, "fetch", std::io::Error::other(format!("the server answered {status}")))
        }
        _ => error,
    })
}

/// Whether the server answered that there is no such file.
pub(super) fn is_absent(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
}

/// A file on its way.
struct Download<'a> {
    url: &'a str,
    path: &'a Path,
    part: PathBuf,
    tag: PathBuf,
}

impl<'a> Download<'a> {
    fn new(url: &'a str, path: &'a Path) -> Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|e| Error::io(folder, "create the folder", e))?;
        }
        let beside = |suffix: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        Ok(Self { url, path, part: beside(".part"), tag: beside(".part.tag") })
    }

    /// How many bytes earlier attempts left. Without a tag they cannot be trusted to belong to the
    /// same version.
    fn received(&self) -> Result<u64> {
        if !self.tag.is_file() {
            self.forget();
            return Ok(0);
        }
        Ok(fs::metadata(&self.part).map_or(0, |m| m.len()))
    }

    fn forget(&self) {
        let _ = fs::remove_file(&self.part);
        let _ = fs::remove_file(&self.tag);
    }

    /// Appends the body of `answer` to the part. Returns the version tag once the file is complete.
    fn accept(
        &self,
        answer: Answer,
        mut report: impl FnMut(u64, Option<u64>) -> Result<()>,
    ) -> Result<Option<String>> {
        let status = answer.response.status();
        let received = self.received()?;
        let stored = fs::read_to_string(&self.tag).unwrap_or_default();
        let same = answer.tag.as_deref().is_some_and(|tag| tag == stored);
        if status == StatusCode::RANGE_NOT_SATISFIABLE
            || (status == StatusCode::PARTIAL_CONTENT && !same)
        {
            self.forget();
            return Err(self.interrupted("the file changed since the last attempt; starting over"));
        }
        check_status(self.url, status)?;
        let header =
            |name: &str| answer.response.headers().get(name)?.to_str().ok().map(str::to_owned);
        let (mut at, total) = if status == StatusCode::PARTIAL_CONTENT {
            let range = header("content-range").and_then(|text| content_range(&text));
            match range {
                Some((begin, total)) if begin == received => (received, Some(total)),
                _ => {
                    self.forget();
                    return Err(self.interrupted("the server sent another part than asked for"));
                }
            }
        } else {
            (0, header("content-length").and_then(|text| text.parse().ok()))
        };
        let mut file = self.open(at, answer.tag.as_deref())?;
        let mut body = answer.response.into_body().into_reader();
        let mut buffer = vec![0u8; 1 << 17];
        loop {
            report(at, total)?;
            let count = body.read(&mut buffer).map_err(|e| Error::io(self.url, "fetch", e))?;
            if count == 0 {
                break;
            }
            file.write_all(&buffer[..count]).map_err(|e| Error::io(&self.part, "write", e))?;
            at += count as u64;
        }
        file.sync_all().map_err(|e| Error::io(&self.part, "flush to disk", e))?;
        match total {
            Some(total) if total != at => {
                Err(self.interrupted(&format!("{at} of {total} bytes arrived")))
            }
            _ => Ok(answer.tag),
        }
    }

    fn interrupted(&self, reason: &str) -> Error {
        Error::io(self.url, "fetch", std::io::Error::other(reason.to_owned()))
    }

    /// Opens the part for the bytes from `at` on, and notes the version they belong to.
    fn open(&self, at: u64, tag: Option<&str>) -> Result<File> {
        if at > 0 {
            return OpenOptions::new()
                .append(true)
                .open(&self.part)
                .map_err(|e| Error::io(&self.part, "open", e));
        }
        self.forget();
        let file = File::create(&self.part).map_err(|e| Error::io(&self.part, "create", e))?;
        if let Some(tag) = tag {
            fs::write(&self.tag, tag).map_err(|e| Error::io(&self.tag, "write", e))?;
        }
        Ok(file)
    }

    /// Checks the complete part and gives it its name.
    fn finish(self, sha256: Option<&str>) -> Result<Fetched> {
        let fetched = measure(&self.part)?;
        if let Some(expected) = sha256.filter(|e| !e.eq_ignore_ascii_case(&fetched.sha256)) {
            self.forget();
            return Err(Error::malformed(
                self.path,
                format!("has the SHA-256 {} instead of {expected}", fetched.sha256),
            )
            .remedy("it was damaged on the way and has been removed; try again"));
        }
        fs::rename(&self.part, self.path)
            .map_err(|e| Error::io(self.path, "rename into place", e))?;
        let _ = fs::remove_file(&self.tag);
        Ok(fetched)
    }
}

/// First byte and total length of `bytes 100-199/300`.
fn content_range(text: &str) -> Option<(u64, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (begin, _) = range.split_once('-')?;
    Some((begin.trim().parse().ok()?, total.trim().parse().ok()?))
}

/// Length and SHA-256 of a file.
pub(super) fn measure(path: &Path) -> Result<Fetched> {
    let mut file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0u8; 1 << 17];
    let mut bytes = 0;
    loop {
        let count = file.read(&mut buffer).map_err(|e| Error::io(path, "read", e))?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
        bytes += count as u64;
    }
    Ok(Fetched { bytes, sha256: hex(&hash.finalize()) })
}

/// Lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}
