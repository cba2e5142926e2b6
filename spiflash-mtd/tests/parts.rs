//! The parts that come with the crate.
#![allow(clippy::unwrap_used, missing_docs)]
use spiflash_mtd::part;

#[test]
fn every_part_of_the_crate_is_a_right_one_and_found_by_its_name() {
    for part in part::all() {
        assert_eq!(part::find(&part.name.to_ascii_lowercase()).unwrap(), part);
    }
}
