//! What can be wrong with what the error model is given.

use std::io;

/// An error of the reliability model's inputs or outputs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReliabilityError {
    /// A parameter that cannot be.
    #[error("{place}: {field} is {value}: {rule}")]
    Parameter {
        /// The file or option it came from.
        place: String,
        /// The parameter.
        field: String,
        /// What it was.
        value: String,
        /// What would be right.
        rule: String,
    },
    /// A parameter file that does not fit.
    #[error("{file}, line {line}, column {column}: {why}")]
    Toml {
        /// Which file.
        file: String,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What is wrong.
        why: String,
    },
    /// A name that no parameter set, parameter or pattern has.
    #[error("no {kind} {name:?}: it must be one of {known}")]
    Unknown {
        /// What was looked for.
        kind: &'static str,
        /// The name.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A measurement that cannot be read.
    #[error("{file}, line {line}, column {column}: {why}")]
    Csv {
        /// Which file.
        file: String,
        /// Line, from 1.
        line: usize,
        /// The column's name, or its number where the line has none of that name.
        column: String,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// Measurements from which parameters cannot be found.
    #[error("fit: {0}")]
    Fit(String),
    /// A table could not be written, or a file not read.
    #[error("{what}: {source}")]
    Io {
        /// Doing what.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}
