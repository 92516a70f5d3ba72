//! Members of package archives: wheels (zip), source and npm archives (gzipped tar).

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use flate2::read::GzDecoder;

use crate::error::{Error, Place, Result};

/// No member that is taken out may be larger than this: a guard against decompression bombs.
const MAX_MEMBER: u64 = 8 << 30;
const BLOCK: usize = 512;
/// Longest path in an extended header.
const MAX_PATH: u64 = 64 * 1024;

/// Calls `visit` for every file of the archive, in order, with its path and content.
///
/// # Errors
/// When the archive is malformed or of another kind, or `visit` fails.
pub(super) fn for_each_member(
    archive: &Path,
    mut visit: impl FnMut(&str, &mut dyn Read) -> Result<()>,
) -> Result<()> {
    let file = File::open(archive).map_err(|e| Error::io(archive, "open", e))?;
    let name = archive.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    if name.ends_with(".whl") || name.ends_with(".zip") {
        let fault = |e: zip::result::ZipError| {
            Error::malformed(archive, format!("is not a zip archive: {e}"))
        };
        let mut zip = zip::ZipArchive::new(BufReader::new(file)).map_err(fault)?;
        for i in 0..zip.len() {
            let mut member = zip.by_index(i).map_err(fault)?;
            if member.is_file() {
                let path = member.name().map_err(fault)?.into_owned();
                visit(&path, &mut (&mut member).take(MAX_MEMBER))?;
            }
        }
        Ok(())
    } else if name.ends_with(".tar.gz") || name.ends_with(".tgz") {
        tar_members(archive, GzDecoder::new(BufReader::new(file)), visit)
    } else {
        Err(Error::malformed(archive, "is an archive of an unknown kind"))
    }
}

/// Walks a tar stream: ustar, with GNU and pax long names.
fn tar_members(
    archive: &Path,
    mut stream: impl Read,
    mut visit: impl FnMut(&str, &mut dyn Read) -> Result<()>,
) -> Result<()> {
    let mut at = 0u64;
    let mut long_name: Option<String> = None;
    loop {
        let mut header = [0u8; BLOCK];
        let failed = |e: io::Error| {
            Error::malformed(archive, format!("ends early: {e}")).at(Place::Byte(at))
        };
        stream.read_exact(&mut header).map_err(failed)?;
        if header.iter().all(|&b| b == 0) {
            return Ok(());
        }
        let bad = |reason: &str| Error::malformed(archive, reason).at(Place::Byte(at));
        if !checksum_holds(&header) {
            return Err(bad("has a tar header with a wrong checksum"));
        }
        let size = octal(&header[124..136]).filter(|&s| s <= MAX_MEMBER);
        let size = size.ok_or_else(|| bad("has a tar header with an impossible size"))?;
        let mut content = (&mut stream).take(size);
        match header[156] {
            b'L' => long_name = Some(gnu_name(&mut content).map_err(failed)?),
            b'x' => long_name = pax_path(&mut content).map_err(failed)?.or(long_name),
            b'0' | 0 => {
                let path = long_name.take().unwrap_or_else(|| ustar_name(&header));
                visit(&path, &mut content)?;
            }
            _ => long_name = None,
        }
        io::copy(&mut content, &mut io::sink()).map_err(failed)?;
        let padding = size.next_multiple_of(BLOCK as u64) - size;
        io::copy(&mut (&mut stream).take(padding), &mut io::sink()).map_err(failed)?;
        at += BLOCK as u64 + size + padding;
    }
}

fn text(field: &[u8]) -> String {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

fn ustar_name(header: &[u8; BLOCK]) -> String {
    let (name, prefix) = (text(&header[..100]), text(&header[345..500]));
    if &header[257..262] == b"ustar" && !prefix.is_empty() {
        format!("{prefix}/{name}")
    } else {
        name
    }
}

fn octal(field: &[u8]) -> Option<u64> {
    u64::from_str_radix(text(field).trim(), 8).ok()
}

/// The sum of all bytes, with the checksum field itself read as spaces.
fn checksum_holds(header: &[u8; BLOCK]) -> bool {
    let sum: u64 = header
        .iter()
        .enumerate()
        .map(|(i, &b)| u64::from(if (148..156).contains(&i) { b' ' } else { b }))
        .sum();
    octal(&header[148..156]) == Some(sum)
}

fn gnu_name(content: &mut impl Read) -> io::Result<String> {
    let mut bytes = Vec::new();
    content.take(MAX_PATH).read_to_end(&mut bytes)?;
    Ok(text(&bytes))
}

/// The `path` record of a pax header: lines of `LENGTH key=value`.
fn pax_path(content: &mut impl Read) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    content.take(MAX_PATH).read_to_end(&mut bytes)?;
    let records = String::from_utf8_lossy(&bytes).into_owned();
    Ok(records.lines().find_map(|line| Some(line.split_once(" path=")?.1.to_owned())))
}

/// Copies `content` to `out` and returns how many bytes there were.
pub(super) fn copy(archive: &Path, content: &mut dyn Read, out: &mut impl Write) -> Result<u64> {
    io::copy(content, out)
        .map_err(|e| Error::malformed(archive, format!("a member cannot be unpacked: {e}")))
}
