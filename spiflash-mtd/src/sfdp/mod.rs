//! SFDP tables (JESD216).

use crate::part::Part;

/// The bytes of a part's tables.
pub fn table(part: &Part) -> Vec<u8> {
    part.sfdp.as_ref().and_then(|sfdp| sfdp.dump_bytes()).unwrap_or_default()
}
