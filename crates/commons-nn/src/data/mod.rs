//! Data sets: a corpus that is generated, and readers for the files that data comes in.
//!
//! | files | reader | what it gives |
//! | --- | --- | --- |
//! | plain text, `.gz` or not | [`text::read`] | `String` |
//! | CSV and relatives, `.gz` or not | [`csv::read`] | [`Records`] |
//! | JSON lines, `.gz` or not | [`jsonl::read`] | [`Records`] |
//! | Parquet | [`parquet::read`] | [`Records`] |
//! | IDX (MNIST and relatives), `.gz` or not | [`idx::read`], [`idx::mnist`] | [`Array`], [`Images`] |
//! | CIFAR's binary batches | [`cifar::read`] | [`Images`] |
//! | Parquet of PNG or JPEG files | [`Images::from_parquet`] | [`Images`] |
//! | NumPy's npy and npz | [`npy::read`], [`npy::read_npz`] | [`Array`] |
//! | WAV, FLAC | [`audio::read`] | [`Audio`] |
//!
//! A reader believes no size that a file claims: it is compared with the size of the file first.
//! Errors name the file and the record, row, column or byte concerned. Pickles are never read.

mod array;
pub mod audio;
pub mod cifar;
pub mod corpus;
pub mod csv;
pub mod idx;
mod images;
pub mod jsonl;
pub mod npy;
pub mod parquet;
#[cfg(test)]
mod real;
mod source;
mod table;
#[cfg(test)]
pub(crate) mod tests;
pub mod text;

pub use array::{Array, Number};
pub use audio::Audio;
pub use images::Images;
pub use table::{Column, Records};
