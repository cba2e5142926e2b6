//! An LSM key-value store that deletes within a deadline: the in-memory table.
