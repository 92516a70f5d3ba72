//! Readers on small files: whole, cut short, and wrong in one place.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::parquet::basic::Compression;
use ::parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use candle_core::{DType, Device};

use super::csv::Dialect;
use super::*;
use crate::error::Error;

/// A file of `bytes` in a folder of its own.
pub(crate) struct Held {
    path: PathBuf,
    // The folder goes when this does.
    _folder: tempfile::TempDir,
}

impl Held {
    pub(crate) fn new(name: &str, bytes: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        Self { path, _folder: folder }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

/// Asserts that `result` is an error with every one of `words` in its message.
fn refused<T: std::fmt::Debug>(result: Result<T, Error>, words: &[&str]) {
    let message = result.unwrap_err().to_string();
    assert!(words.iter().all(|w| message.contains(w)), "{words:?} are not all in: {message}");
}

/// An IDX file.
pub(crate) fn idx_file(kind: u8, dims: &[u32], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, kind, dims.len() as u8];
    dims.iter().for_each(|d| bytes.extend(d.to_be_bytes()));
    bytes.extend(data);
    bytes
}

/// An npy file.
pub(crate) fn npy_file(descr: &str, fortran: bool, shape: &str, data: &[u8]) -> Vec<u8> {
    let order = if fortran { "True" } else { "False" };
    let mut header =
        format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// An npz archive.
pub(crate) fn npz_file(arrays: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in arrays {
        zip.start_file(format!("{name}.npy"), zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// A Parquet file with a text, a whole number, a number with a gap and an image per row.
pub(crate) fn parquet_file(images: &[Vec<u8>], compression: Compression) -> Vec<u8> {
    let schema = "message m { required binary text (UTF8); required int64 label; \
         optional double score; optional group image { optional binary bytes; } }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let n = images.len();
    let texts: Vec<ByteArray> =
        (0..n).map(|i| ByteArray::from(format!("row {i}").into_bytes())).collect();
    let labels: Vec<i64> = (0..n as i64).map(|i| i % 10).collect();
    let scores: Vec<f64> = (0..n.saturating_sub(1)).map(|i| i as f64 / 2.).collect();
    let mut present = vec![1; n];
    if let Some(last) = present.last_mut() {
        *last = 0;
    }
    let images: Vec<ByteArray> = images.iter().map(|b| ByteArray::from(b.clone())).collect();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int64Type>().write_batch(&labels, None, None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<DoubleType>().write_batch(&scores, Some(&present), None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(&images, Some(&vec![2; n]), None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    bytes
}

/// A PNG file of `width` by `height` pixels, coloured by position.
pub(crate) fn png(width: u32, height: u32) -> Vec<u8> {
    let image = image::RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, 7]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// A WAV file of 16-bit samples.
pub(crate) fn wav(rate: u32, channels: u16, samples: &[i16]) -> Vec<u8> {
    let size = 2 * samples.len() as u32;
    let mut bytes = b"RIFF".to_vec();
    bytes.extend((36 + size).to_le_bytes());
    bytes.extend(b"WAVEfmt ");
    bytes.extend(16u32.to_le_bytes());
    bytes.extend(1u16.to_le_bytes());
    bytes.extend(channels.to_le_bytes());
    bytes.extend(rate.to_le_bytes());
    bytes.extend((rate * u32::from(channels) * 2).to_le_bytes());
    bytes.extend((channels * 2).to_le_bytes());
    bytes.extend(16u16.to_le_bytes());
    bytes.extend(b"data");
    bytes.extend(size.to_le_bytes());
    samples.iter().for_each(|s| bytes.extend(s.to_le_bytes()));
    bytes
}

/// Checksum with the polynomial `poly` of `bits` bits, most significant bit first.
fn crc(bytes: &[u8], bits: u32, poly: u32) -> u32 {
    let step = |crc: u32, &byte: &u8| {
        (0..8).fold(crc ^ u32::from(byte) << (bits - 8), |c, _| {
            let next = c << 1;
            (if c >> (bits - 1) & 1 == 1 { next ^ poly } else { next }) & ((1 << bits) - 1)
        })
    };
    bytes.iter().fold(0, step)
}

/// A FLAC file of one channel of 16-bit samples at 8000 Hz, in frames of 100, not compressed.
pub(crate) fn flac(samples: &[i16], md5: [u8; 16]) -> Vec<u8> {
    let mut bytes = b"fLaC\x80\0\0\x22\0\x64\0\x64\0\0\0\0\0\0".to_vec();
    // Rate (20 bits), channels - 1 (3), bits - 1 (5), samples (36).
    bytes.extend((8000u64 << 44 | 15 << 36 | samples.len() as u64).to_be_bytes());
    bytes.extend(md5);
    for (i, block) in samples.chunks(100).enumerate() {
        let mut frame = vec![0xff, 0xf8, 0x70, 0x00, i as u8];
        frame.extend((block.len() as u16 - 1).to_be_bytes());
        frame.push(crc(&frame, 8, 0x07) as u8);
        frame.push(0x02);
        block.iter().for_each(|s| frame.extend(s.to_be_bytes()));
        let check = crc(&frame, 16, 0x8005) as u16;
        frame.extend(check.to_be_bytes());
        bytes.extend(frame);
    }
    bytes
}

#[test]
fn flac_is_decoded_and_its_checksum_compared() {
    let samples: Vec<i16> = (0..400).map(|i| i * 80 - 16_000).collect();
    let md5 = 0xe9b85117a0e45fcd3498c8f2813da003u128.to_be_bytes();
    let bytes = flac(&samples, md5);
    let sound = audio::read(Held::new("a.flac", &bytes).path()).unwrap();
    assert_eq!((sound.channels, sound.rate, sound.frames()), (1, 8000, 400));
    for (read, &written) in sound.samples.iter().zip(&samples) {
        assert!((read - f32::from(written) / 32768.).abs() < 1e-6);
    }
    let other = flac(&samples, [7; 16]);
    refused(audio::read(Held::new("a.flac", &other).path()), &["a.flac", "recorded checksum"]);
    let cut = Held::new("a.flac", &bytes[..bytes.len() - 300]);
    refused(audio::read(cut.path()), &["a.flac: frame ", "cut short"]);
}

#[test]
fn idx_arrays_round_trip_and_lies_about_size_are_caught() {
    let values: Vec<u8> = [1i32, -2, 3, 70000].iter().flat_map(|v| v.to_be_bytes()).collect();
    let bytes = idx_file(0x0c, &[2, 2], &values);
    let array = idx::parse(Path::new("a"), &bytes).unwrap();
    assert_eq!((array.shape(), array.to_i64().unwrap()), (&[2, 2][..], vec![1, -2, 3, 70000]));
    let tensor = array.to_tensor(DType::F32, &Device::Cpu).unwrap();
    assert_eq!(tensor.to_vec2::<f32>().unwrap(), [[1., -2.], [3., 70000.]]);
    let packed = Held::new("a.gz", &gzip(&bytes));
    assert_eq!(idx::read(packed.path()).unwrap(), array);

    let cut = gzip(&bytes);
    refused(idx::read(Held::new("a.gz", &cut[..cut.len() / 2]).path()), &["a.gz", "gzip", "again"]);
    refused(idx::parse(Path::new("a"), &bytes[..20]), &["a at byte 12", "[2, 2]", "but 8 bytes"]);
    refused(idx::parse(Path::new("a"), &bytes[..7]), &["a at byte 7", "2 dimensions"]);
    let huge = idx_file(0x0e, &[u32::MAX; 8], &[0; 16]);
    refused(idx::parse(Path::new("a"), &huge), &["more than any file"]);
    refused(idx::parse(Path::new("a"), &idx_file(0x0a, &[1], &[0])), &["a at byte 2", "0x0a"]);
    refused(idx::parse(Path::new("a"), b"PK"), &["does not begin"]);
}

#[test]
fn images_and_labels_must_belong_together() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: Vec<u8>| std::fs::write(folder.path().join(name), bytes).unwrap();
    put(
        "train-images-idx3-ubyte.gz",
        gzip(&idx_file(8, &[2, 2, 2], &[0, 51, 102, 255, 1, 2, 3, 4])),
    );
    put("train-labels-idx1-ubyte", idx_file(8, &[2], &[7, 3]));
    let images = idx::mnist(folder.path(), true).unwrap();
    assert_eq!((images.len(), &images.labels[..]), (2, &[7, 3][..]));
    let (pixels, labels) = images.batch(&[1, 0], &Device::Cpu).unwrap();
    assert_eq!(pixels.dims(), [2, 1, 2, 2]);
    assert_eq!(labels.to_vec1::<u32>().unwrap(), [3, 7]);
    let values = pixels.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(values[4..], [0., 0.2, 0.4, 1.]);
    refused(images.batch(&[2], &Device::Cpu), &["no image 2 among 2"]);
    refused(idx::mnist(folder.path(), false), &["t10k-images-idx3-ubyte", "not there"]);
    put("train-labels-idx1-ubyte", idx_file(8, &[3], &[7, 3, 1]));
    refused(idx::mnist(folder.path(), true), &["train-images", "3 labels"]);
    put("train-labels-idx1-ubyte", idx_file(8, &[2, 1], &[7, 3]));
    refused(idx::mnist(folder.path(), true), &["train-labels", "[2, 1]"]);
}

#[test]
fn cifar_batches_are_counted_in_records() {
    let record = |label: u8| [vec![label], vec![label; 3072]].concat();
    let batch = Held::new("test_batch.bin", &[record(3), record(9)].concat());
    let folder = batch.path().parent().unwrap();
    let images = cifar::read_folder(folder, cifar::Set::Cifar10, false).unwrap();
    assert_eq!((images.channels, images.height, images.width), (3, 32, 32));
    assert_eq!((images.labels[..].to_vec(), images.pixels[3072]), (vec![3, 9], 9));
    let fine = Held::new("b.bin", &[vec![19, 99], vec![0; 3072]].concat());
    assert_eq!(cifar::read(&[fine.path()], cifar::Set::Cifar100).unwrap().labels, [99]);

    let cut = Held::new("b.bin", &record(1)[..3000]);
    let read = |held: &Held| cifar::read(&[held.path()], cifar::Set::Cifar10);
    refused(read(&cut), &["b.bin: record 1 at byte 0", "3000 bytes"]);
    let wrong = Held::new("b.bin", &[record(1), record(10)].concat());
    refused(read(&wrong), &["record 2 at byte 3073", "class 10"]);
}

#[test]
fn numpy_arrays_of_numbers_are_read_and_others_are_not() {
    let f64s: Vec<u8> = [1f64, 2., 3., 4., 5., 6.].iter().flat_map(|v| v.to_le_bytes()).collect();
    let rows = npy::parse(Path::new("a"), &npy_file("<f8", false, "(2, 3)", &f64s)).unwrap();
    assert_eq!((rows.shape(), rows.to_f64()), (&[2, 3][..], vec![1., 2., 3., 4., 5., 6.]));
    let columns = npy::parse(Path::new("a"), &npy_file("<f8", true, "(2, 3)", &f64s)).unwrap();
    assert_eq!(columns.to_f64(), [1., 3., 5., 2., 4., 6.]);
    let big: Vec<u8> = [-5i16, 300].iter().flat_map(|v| v.to_be_bytes()).collect();
    let big = npy::parse(Path::new("a"), &npy_file(">i2", false, "(2,)", &big)).unwrap();
    assert_eq!(big.to_i64().unwrap(), [-5, 300]);
    let scalar = npy::parse(Path::new("a"), &npy_file("|b1", false, "()", &[1])).unwrap();
    assert_eq!((scalar.shape().len(), scalar.to_i64().unwrap()), (0, vec![1]));

    let bytes = npz_file(&[
        ("energies", npy_file("<f8", false, "(2, 3)", &f64s)),
        ("names", npy_file("|O", false, "(1,)", b"\x80\x04.")),
    ]);
    let refusal = npy::parse_npz(Path::new("a.npz"), &bytes);
    refused(refusal, &["a.npz", "array `names`", "pickled and never read", "dtype=float"]);
    let bytes = npz_file(&[("energies", npy_file("<f8", false, "(2, 3)", &f64s))]);
    assert_eq!(npy::read_npz(Held::new("a.npz", &bytes).path()).unwrap()["energies"], rows);
    refused(npy::parse_npz(Path::new("a.npz"), &bytes[..bytes.len() - 9]), &["a.npz", "again"]);
    let lie = npz_file(&[("x", npy_file("<f8", false, "(4000000000, 3)", &f64s))]);
    refused(npy::parse_npz(Path::new("a.npz"), &lie), &["array `x`", "4000000000", "beyond"]);
    let cut = npy_file("<f8", false, "(2, 3)", &f64s[..40]);
    refused(npy::parse(Path::new("a"), &cut), &["a at byte 168", "40 of 48"]);
    let long = npy_file("<f8", false, "(2, 2)", &f64s);
    refused(npy::parse(Path::new("a"), &long), &["goes on after"]);
    refused(npy::parse(Path::new("a"), b"\x93NUMPZ\x01\0aa"), &["does not begin"]);
    let text = npy_file("<U4", false, "(1,)", &[0; 16]);
    refused(npy::parse(Path::new("a"), &text), &["<U4", "plain numbers"]);
}

#[test]
fn csv_columns_take_their_type_from_their_cells() {
    let text = "id,price,name,gap\n1,2.5,\"a, b\",\n2,3,\"c\nd\",4\n";
    let records = csv::parse(Path::new("t.csv"), text.as_bytes(), Dialect::default()).unwrap();
    assert_eq!(records.names().collect::<Vec<_>>(), ["id", "price", "name", "gap"]);
    assert_eq!(records.column("id").unwrap(), &Column::Integers(vec![1, 2]));
    assert_eq!(records.numbers("price").unwrap(), [2.5, 3.]);
    assert_eq!(records.text("name").unwrap(), ["a, b", "c\nd"]);
    assert!(records.numbers("gap").unwrap()[0].is_nan());
    refused(records.labels("price"), &["column `price`", "numbers, not whole"]);
    refused(records.column("nmae"), &["column `nmae`", "id, price, name, gap"]);

    let parse = |bytes: &[u8]| csv::parse(Path::new("t.csv"), bytes, Dialect::default());
    refused(parse(b"a,b\n1,2\n3\n"), &["t.csv at line 3", "1 fields", "first row has 2"]);
    refused(parse(b"a,b\n1,\xff\n"), &["t.csv: column `b` at line 2", "UTF-8"]);
    refused(parse(b"a,a\n1,2\n"), &["column `a`", "two columns"]);
    let bars = Dialect { delimiter: b'|', header: false, quotes: false };
    let records = csv::parse(Path::new("m"), b"LJ1|say \"x|3\nLJ2|y|4\n", bars).unwrap();
    assert_eq!(records.text("2").unwrap(), ["say \"x", "y"]);
    assert_eq!(records.labels("3").unwrap(), [3, 4]);
    let packed = Held::new("t.tsv.gz", &gzip(b"a\tb\n1\tx\n"));
    let records = csv::read(packed.path(), Dialect::of(packed.path())).unwrap();
    assert_eq!(records.text("b").unwrap(), ["x"]);
    assert!(parse(b"").unwrap().is_empty());
}

#[test]
fn json_lines_are_columns_with_gaps() {
    let text = "{\"a\": \"x\", \"n\": 1}\n\n{\"n\": 2.5, \"b\": [1, 2]}\n";
    let records = jsonl::parse(Path::new("t.jsonl"), text.as_bytes()).unwrap();
    assert_eq!(records.names().collect::<Vec<_>>(), ["a", "n", "b"]);
    assert_eq!(records.numbers("n").unwrap(), [1., 2.5]);
    assert_eq!(records.column("b").unwrap(), &Column::Text(vec![None, Some("[1,2]".into())]));
    refused(records.text("a"), &["t.jsonl: column `a` at line 3", "no value"]);
    let parse = |bytes: &[u8]| jsonl::parse(Path::new("t.jsonl"), bytes);
    refused(parse(b"{}\n[1]\n"), &["t.jsonl at line 2", "not an object"]);
    refused(parse(b"{}\n{\"a\": \n"), &["t.jsonl at line 2", "not JSON"]);
    refused(parse(b"{\"a\": \"\xe4\"}"), &["t.jsonl at byte 7", "UTF-8"]);
    let square: String = (0..3000).map(|i| format!("{{\"{i}\":1}}\n")).collect();
    refused(parse(square.as_bytes()), &["different fields"]);
}

#[test]
fn text_is_read_up_to_a_limit() {
    let held = Held::new("t.txt", "\u{feff}größer".as_bytes());
    assert_eq!(text::read(held.path(), 100).unwrap(), "größer");
    refused(text::read(held.path(), 5), &["t.txt", "more than the 5 bytes"]);
    let packed = Held::new("t.txt.gz", &gzip(&vec![b'a'; 100_000]));
    assert_eq!(text::read(packed.path(), 100_000).unwrap().len(), 100_000);
    refused(text::read(packed.path(), 99_999), &["t.txt.gz", "99999"]);
    let latin = Held::new("t.txt", b"gr\xf6\xdfer");
    refused(text::read(latin.path(), 100), &["t.txt at byte 2", "iconv"]);
    refused(text::read(latin.path().with_file_name("none"), 9), &["none", "open"]);
}

#[test]
fn parquet_gives_text_numbers_and_images() {
    let images: Vec<Vec<u8>> = (0..3).map(|_| png(4, 2)).collect();
    for packing in
        [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(Default::default())]
    {
        let held = Held::new("t.parquet", &parquet_file(&images, packing));
        assert_eq!(
            parquet::columns(held.path()).unwrap(),
            ["text", "label", "score", "image.bytes"]
        );
        let records = parquet::read(held.path(), None).unwrap();
        assert_eq!(records.text("text").unwrap(), ["row 0", "row 1", "row 2"]);
        assert_eq!(records.labels("label").unwrap(), [0, 1, 2]);
        let scores = records.numbers("score").unwrap();
        assert!(scores[..2] == [0., 0.5] && scores[2].is_nan());
        assert_eq!(records.bytes("image.bytes").unwrap()[1], images[1]);
        let decoded = Images::from_parquet(held.path()).unwrap();
        assert_eq!((decoded.channels, decoded.height, decoded.width), (3, 2, 4));
        assert_eq!(decoded.pixels[..8], [0, 1, 2, 3, 0, 1, 2, 3]);
        assert_eq!(decoded.pixels[8..16], [0, 0, 0, 0, 1, 1, 1, 1]);
    }
    let bytes = parquet_file(&images, Compression::SNAPPY);
    let held = Held::new("t.parquet", &bytes);
    refused(parquet::read(held.path(), Some(&["txet"])), &["column `txet`", "text, label, score"]);
    let cut = Held::new("t.parquet", &bytes[..bytes.len() - 5]);
    refused(parquet::read(cut.path(), None), &["t.parquet", "not a Parquet file", "again"]);
    let mut odd = images.clone();
    odd[1] = png(4, 3);
    let odd = Held::new("t.parquet", &parquet_file(&odd, Compression::SNAPPY));
    refused(Images::from_parquet(odd.path()), &["column `image.bytes` at row 2", "4x3"]);
    let mut broken = images;
    broken[2].truncate(40);
    let broken = Held::new("t.parquet", &parquet_file(&broken, Compression::SNAPPY));
    refused(Images::from_parquet(broken.path()), &["column `image.bytes` at row 3"]);
}

#[test]
fn sound_keeps_its_samples_rate_and_channels() {
    let samples: Vec<i16> = (0..400).map(|i| (i * 80) as i16).collect();
    let held = Held::new("a.wav", &wav(8000, 2, &samples));
    let sound = audio::read(held.path()).unwrap();
    assert_eq!((sound.channels, sound.rate, sound.frames()), (2, 8000, 200));
    assert!((sound.seconds() - 0.025).abs() < 1e-12);
    assert!((sound.samples[399] - samples[399] as f32 / 32768.).abs() < 1e-6);
    assert!((sound.mono()[0] - 40. / 32768.).abs() < 1e-6);
    let bytes = wav(8000, 2, &samples);
    refused(
        audio::read(Held::new("a.wav", &bytes[..444]).path()),
        &["a.wav", "frame", "cut short"],
    );
    refused(audio::read(Held::new("a.wav", b"not sound at all").path()), &["a.wav", "ffmpeg"]);
    refused(audio::read(Held::new("a.flac", b"fLaC\0\0\0").path()), &["a.flac"]);
    refused(audio::read(held.path().parent().unwrap()), &["regular file"]);
}
