//! Parquet: columns of text, numbers or bytes.
//!
//! A column inside groups has a name with dots, such as `image.bytes`. Lists and maps are not read.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parquet::basic::{ConvertedType, LogicalType};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::ColumnDescriptor;

use super::table::{Column, Records};
use crate::error::{Error, Place, Result};

/// Rows read at a time.
const BATCH: usize = 4096;
/// Rows that a file may claim whatever its size.
const FREE_ROWS: u64 = 1 << 20;
/// Rows that a file may claim per byte: repeated values are stored as little more than their count.
const ROWS_PER_BYTE: u64 = 256;

type Reader = SerializedFileReader<File>;

/// Names of the columns that can be read.
///
/// # Errors
/// When the file cannot be read or is not Parquet.
pub fn columns(path: impl AsRef<Path>) -> Result<Vec<String>> {
    let path = path.as_ref();
    Ok(readable(&open(path)?))
}

/// Reads the columns `names` in this order, or all that can be read.
///
/// # Errors
/// When the file cannot be read, is damaged, or lacks a column; names column and row.
pub fn read(path: impl AsRef<Path>, names: Option<&[&str]>) -> Result<Records> {
    let path = path.as_ref();
    let reader = open(path)?;
    check_claims(path, &reader)?;
    let all = readable(&reader);
    let wanted: Vec<String> = match names {
        Some(names) => names.iter().map(|n| (*n).to_owned()).collect(),
        None => all.clone(),
    };
    let mut columns = Vec::new();
    for name in wanted {
        let index = reader
            .metadata()
            .file_metadata()
            .schema_descr()
            .columns()
            .iter()
            .position(|c| c.path().string() == name)
            .filter(|_| all.contains(&name))
            .ok_or_else(|| {
                Error::malformed(path, "is not there, or is a list")
                    .item(format!("column `{name}`"))
                    .remedy(format!("its columns are: {}", all.join(", ")))
            })?;
        // On damaged pages the library can fail an assertion of its own.
        let column = catch_unwind(AssertUnwindSafe(|| read_column(path, &reader, index, &name)))
            .unwrap_or_else(|_| {
                Err(Error::malformed(path, "has a page that cannot be decoded")
                    .item(format!("column `{name}`"))
                    .remedy("the file is damaged; fetch it again"))
            })?;
        columns.push((name, column));
    }
    Records::new(path, columns, Vec::new())
}

fn open(path: &Path) -> Result<Reader> {
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    SerializedFileReader::new(file).map_err(|e| {
        Error::malformed(path, format!("is not a Parquet file: {}", reason(&e)))
            .remedy("fetch the file again: it is cut short or damaged")
    })
}

/// The message without the library's prefix.
fn reason(error: &ParquetError) -> String {
    match error {
        ParquetError::General(text) | ParquetError::NYI(text) | ParquetError::EOF(text) => {
            text.clone()
        }
        other => other.to_string(),
    }
}

fn readable(reader: &Reader) -> Vec<String> {
    let columns = reader.metadata().file_metadata().schema_descr().columns();
    columns.iter().filter(|c| c.max_rep_level() == 0).map(|c| c.path().string()).collect()
}

/// Holds what is claimed against the size of the file: where columns lie, and the number of rows, for
/// runs of one value cost nothing there, but memory here.
fn check_claims(path: &Path, reader: &Reader) -> Result<()> {
    let size = std::fs::metadata(path).map_err(|e| Error::io(path, "read the size", e))?.len();
    let claimed = reader.metadata().row_groups().iter().map(|g| g.num_rows().max(0) as u64);
    let rows = claimed.fold(0u64, u64::saturating_add);
    if rows > FREE_ROWS.max(size.saturating_mul(ROWS_PER_BYTE)) {
        let reason = format!("claims {rows} rows in {size} bytes");
        return Err(Error::malformed(path, reason).remedy("the file is damaged; fetch it again"));
    }
    // The library asserts what is checked here.
    for chunk in reader.metadata().row_groups().iter().flat_map(|g| g.columns()) {
        let start = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
        let length = chunk.compressed_size();
        let end = start.checked_add(length);
        if start < 0 || length < 0 || end.is_none_or(|end| end as u64 > size) {
            let reason = format!("claims {length} bytes from byte {start} on, of {size}");
            return Err(Error::malformed(path, reason)
                .item(format!("column `{}`", chunk.column_path().string()))
                .remedy("the file is damaged; fetch it again"));
        }
    }
    Ok(())
}

fn read_column(path: &Path, reader: &Reader, index: usize, name: &str) -> Result<Column> {
    let descriptor = reader.metadata().file_metadata().schema_descr().column(index);
    let mut column = Growing::new(&descriptor);
    for group in 0..reader.num_row_groups() {
        let before = column.rows();
        let fault = |row: usize, e: &ParquetError| {
            Error::malformed(path, format!("cannot be decoded: {}", reason(e)))
                .item(format!("column `{name}`"))
                .at(Place::Row(row as u64 + 1))
                .remedy("fetch the file again, or write it with snappy, zstd or no compression")
        };
        let group = reader.get_row_group(group).map_err(|e| fault(before, &e))?;
        let rows = usize::try_from(group.metadata().num_rows()).unwrap_or(0);
        let chunk = group.get_column_reader(index).map_err(|e| fault(before, &e))?;
        let optional = descriptor.max_def_level();
        column.fill(chunk, rows, optional).map_err(|e| fault(column.rows(), &e))?;
        if column.rows() - before != rows {
            let found = column.rows() - before;
            let text = format!("a group of {rows} rows ends after {found}");
            return Err(fault(column.rows(), &ParquetError::General(text)));
        }
    }
    column.finish().map_err(|row| {
        Error::malformed(path, "is not UTF-8 text")
            .item(format!("column `{name}`"))
            .at(Place::Row(row as u64 + 1))
    })
}

/// A column as it is read.
enum Growing {
    Whole { unsigned: bool, values: Vec<Option<i64>> },
    Real(Vec<Option<f64>>),
    Bytes { text: bool, values: Vec<Option<Vec<u8>>> },
}

impl Growing {
    fn new(column: &ColumnDescriptor) -> Self {
        use parquet::basic::Type;
        let text = matches!(
            column.logical_type_ref(),
            Some(LogicalType::String | LogicalType::Json | LogicalType::Enum)
        ) || matches!(
            column.converted_type(),
            ConvertedType::UTF8 | ConvertedType::JSON | ConvertedType::ENUM
        );
        let unsigned = matches!(
            column.converted_type(),
            ConvertedType::UINT_8 | ConvertedType::UINT_16 | ConvertedType::UINT_32
        );
        match column.physical_type() {
            Type::BOOLEAN | Type::INT32 | Type::INT64 => {
                Self::Whole { unsigned, values: Vec::new() }
            }
            Type::FLOAT | Type::DOUBLE => Self::Real(Vec::new()),
            Type::INT96 | Type::BYTE_ARRAY | Type::FIXED_LEN_BYTE_ARRAY => {
                Self::Bytes { text, values: Vec::new() }
            }
        }
    }

    fn rows(&self) -> usize {
        match self {
            Self::Whole { values, .. } => values.len(),
            Self::Real(values) => values.len(),
            Self::Bytes { values, .. } => values.len(),
        }
    }

    /// Appends at most `rows` rows of a chunk; a value is there where its level is `optional`.
    fn fill(
        &mut self,
        chunk: ColumnReader,
        rows: usize,
        optional: i16,
    ) -> Result<(), ParquetError> {
        use ColumnReader as C;
        let bytes = |b: ByteArray| b.data().to_vec();
        match (self, chunk) {
            (Self::Whole { values, .. }, C::BoolColumnReader(r)) => {
                append(r, rows, optional, values, i64::from)
            }
            (Self::Whole { unsigned: true, values }, C::Int32ColumnReader(r)) => {
                append(r, rows, optional, values, |v| i64::from(v as u32))
            }
            (Self::Whole { values, .. }, C::Int32ColumnReader(r)) => {
                append(r, rows, optional, values, i64::from)
            }
            (Self::Whole { values, .. }, C::Int64ColumnReader(r)) => {
                append(r, rows, optional, values, |v| v)
            }
            (Self::Real(values), C::FloatColumnReader(r)) => {
                append(r, rows, optional, values, f64::from)
            }
            (Self::Real(values), C::DoubleColumnReader(r)) => {
                append(r, rows, optional, values, |v| v)
            }
            (Self::Bytes { values, .. }, C::ByteArrayColumnReader(r)) => {
                append(r, rows, optional, values, bytes)
            }
            (Self::Bytes { values, .. }, C::FixedLenByteArrayColumnReader(r)) => {
                append(r, rows, optional, values, |v| bytes(v.into()))
            }
            _ => Err(ParquetError::General("96-bit times are not supported".into())),
        }
    }

    /// The column, or the row that is not text.
    fn finish(self) -> Result<Column, usize> {
        Ok(match self {
            Self::Whole { values, .. } if values.iter().all(Option::is_some) => {
                Column::Integers(values.into_iter().flatten().collect())
            }
            Self::Whole { values, .. } => Column::Numbers(
                values.into_iter().map(|v| v.map_or(f64::NAN, |v| v as f64)).collect(),
            ),
            Self::Real(values) => {
                Column::Numbers(values.into_iter().map(|v| v.unwrap_or(f64::NAN)).collect())
            }
            Self::Bytes { text: false, values } => Column::Bytes(values),
            Self::Bytes { text: true, values } => {
                let text = |(row, v): (usize, Option<Vec<u8>>)| {
                    v.map(String::from_utf8).transpose().map_err(|_| row)
                };
                Column::Text(values.into_iter().enumerate().map(text).collect::<Result<_, _>>()?)
            }
        })
    }
}

/// Appends at most `rows` rows of `reader` to `out`.
fn append<T: DataType, V>(
    mut reader: ColumnReaderImpl<T>,
    rows: usize,
    optional: i16,
    out: &mut Vec<Option<V>>,
    convert: impl Fn(T::T) -> V,
) -> Result<(), ParquetError> {
    let mut left = rows;
    let (mut levels, mut values) = (Vec::new(), Vec::new());
    while left > 0 {
        levels.clear();
        values.clear();
        let (read, _, _) =
            reader.read_records(left.min(BATCH), Some(&mut levels), None, &mut values)?;
        if read == 0 {
            break;
        }
        left = left.saturating_sub(read);
        let mut values = values.drain(..).map(&convert);
        if optional == 0 {
            out.extend(values.map(Some));
        } else {
            out.extend(levels.iter().map(|&l| if l == optional { values.next() } else { None }));
        }
    }
    Ok(())
}
