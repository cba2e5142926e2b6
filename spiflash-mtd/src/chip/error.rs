//! Why a chip cannot be made or restored.

use crate::reliability::ReliabilityError;

/// A refusal.
#[derive(Debug, thiserror::Error)]
pub enum ChipError {
    /// The error parameters do not fit the part.
    #[error("the error model: {0}")]
    Reliability(#[from] ReliabilityError),
    /// A state that does not belong to this part.
    #[error("the state does not fit {part}: {what}")]
    State {
        /// The part.
        part: String,
        /// What does not fit.
        what: String,
    },
}
