//! What can be wrong with a NAND profile or a workload.

use std::io;

/// An error in what the user gave: a profile, an override, a workload. One line each.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NandError {
    /// A number of a profile that cannot be.
    #[error("profile {profile}: {field} is {value}: {rule}")]
    Field {
        /// The profile's name.
        profile: String,
        /// Section and field.
        field: &'static str,
        /// What it was.
        value: String,
        /// What would be right.
        rule: String,
    },
    /// Neither a built-in profile nor a file that can be read.
    #[error("profile {path}: {source} (built-in profiles: {names})")]
    Read {
        /// What was asked for.
        path: String,
        /// Why the file could not be read.
        source: io::Error,
        /// The built-in profiles.
        names: String,
    },
    /// A file that is not a profile.
    #[error("profile {path}, line {line}: {why}")]
    Parse {
        /// The file, or the built-in's name.
        path: String,
        /// The line in it, from 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// An override that cannot be applied.
    #[error("{assignment}: {why}")]
    Set {
        /// What was asked for.
        assignment: String,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// A workload that cannot be predicted.
    #[error("workload: {field} is {value}: {rule}")]
    Workload {
        /// The field.
        field: &'static str,
        /// What it was.
        value: String,
        /// What would be right.
        rule: String,
    },
}
