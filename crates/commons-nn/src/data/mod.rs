//! Data sets.

pub mod corpus;
