//! What can be wrong with what the reliability model is given.

use std::io;

/// An error of the model's inputs or outputs. Each message names the thing, its place, and what would be right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReliabilityError {
    /// A number that cannot be.
    #[error("{place}: {field} is {value}: {rule}")]
    Value {
        /// The file, option or table it came from.
        place: String,
        /// Which number.
        field: String,
        /// What it was.
        value: String,
        /// What would be right.
        rule: String,
    },
    /// A parameter file that is not one.
    #[error("{file}, line {line}: {why}")]
    Toml {
        /// Which file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// A name that nothing has.
    #[error("there is no {kind} {name:?}: it must be one of {known}")]
    Unknown {
        /// What was looked for.
        kind: &'static str,
        /// The name.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A cell of a table that cannot be read.
    #[error("{file}, line {line}, column {column}: {why}")]
    Csv {
        /// Which file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// The column's name, or its number from 1.
        column: String,
        /// What is wrong.
        why: String,
    },
    /// Measurements that say nothing.
    #[error("fit: {0}")]
    Fit(String),
    /// A file could not be read or a table not written.
    #[error("{what}: {source}")]
    Io {
        /// Doing what.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}
