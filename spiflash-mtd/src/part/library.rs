//! The parts that come with the crate.
//!
//! The invariant: each of their files is a right one; a test reads them all.

use super::Part;
use std::sync::LazyLock;

/// The files, by the name of the part.
const FILES: &[(&str, &str)] = &[
    ("W25Q128JV", include_str!("../../parts/w25q128jv.toml")),
    ("W25Q256JV", include_str!("../../parts/w25q256jv.toml")),
    ("W25Q512JV", include_str!("../../parts/w25q512jv.toml")),
    ("MX25L25645G", include_str!("../../parts/mx25l25645g.toml")),
    ("MT25QL256", include_str!("../../parts/mt25ql256.toml")),
    ("S25FL256S", include_str!("../../parts/s25fl256s.toml")),
    ("GD25Q128", include_str!("../../parts/gd25q128.toml")),
    ("IS25LP128", include_str!("../../parts/is25lp128.toml")),
    ("SST25VF016B", include_str!("../../parts/sst25vf016b.toml")),
    ("SST26VF064B", include_str!("../../parts/sst26vf064b.toml")),
    ("W25N01GV", include_str!("../../parts/w25n01gv.toml")),
    ("MR25H40", include_str!("../../parts/mr25h40.toml")),
    ("FM25V20A", include_str!("../../parts/fm25v20a.toml")),
    ("MB85RS2MT", include_str!("../../parts/mb85rs2mt.toml")),
];

static PARTS: LazyLock<Vec<Part>> = LazyLock::new(|| {
    let parse = |(name, text): &(&str, &str)| match Part::from_toml(text, &file_of(name)) {
        Ok(part) => part,
        Err(error) => panic!("a part file of the crate: {error}"),
    };
    FILES.iter().map(parse).collect()
});

fn file_of(name: &str) -> String {
    format!("parts/{}.toml", name.to_ascii_lowercase())
}

/// All parts that come with the crate.
pub fn all() -> &'static [Part] {
    &PARTS
}

/// The part of a name, in upper or lower case; `None`: there is no such part.
pub fn find(name: &str) -> Option<&'static Part> {
    all().iter().find(|part| part.name.eq_ignore_ascii_case(name))
}

/// The file of a part that comes with the crate, by its name in upper or lower case.
pub fn text(name: &str) -> Option<&'static str> {
    FILES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, text)| *text)
}
