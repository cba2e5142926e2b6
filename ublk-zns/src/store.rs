//! The media: one shared mapping that holds every zone's state and data.
//!
//! The file behind it lies in memory (tmpfs or a memfd), so that a device in RAM survives its daemon: a killed daemon's
//! successor maps the same file. Layout, little-endian (docs/formats.md): a header page with the geometry and its crc32c,
//! then one `u64` per zone, then the data, zone after zone.
//!
//! The invariant: a zone's word is one atomic value and holds all that lasts of a zone (state and written sectors), so
//! that a reader or a successor never sees half a change; it is stored before the write it describes is completed.

use crate::{
    error::ZnsError,
    geometry::{Geometry, SECTOR_BYTES, ZoneId},
    zones::ZoneState,
};
use std::{
    ffi::c_void,
    fs::File,
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

const MAGIC: [u8; 8] = *b"STORLZNS";
const VERSION: u32 = 1;
const HEADER_BYTES: u64 = 4096;
/// Magic, version, four 4-byte and five 8-byte fields, then the crc.
const CRC_AT: usize = 8 + 4 + 4 * 4 + 5 * 8;

/// A device's media.
pub struct Store {
    file: File,
    path: PathBuf,
    map: NonNull<u8>,
    map_bytes: usize,
    table_at: usize,
    data_at: usize,
    zone_bytes: usize,
    zones: u32,
}

// SAFETY: the mapping is shared memory reached through atomics (the table) or raw copies (the data), never through
// references that would promise exclusive access.
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

impl Store {
    /// New media without a name: gone with the process.
    ///
    /// # Errors
    /// [`ZnsError::Media`].
    pub fn anonymous(geometry: &Geometry) -> Result<Store, ZnsError> {
        let path = PathBuf::from("memory");
        let fd = nix::sys::memfd::memfd_create(c"storlab-zns", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
            .map_err(|e| media(&path, "making", e.into()))?;
        Store::format(File::from(fd), path, geometry)
    }

    /// New media in the file `path`, in place of any that is there.
    ///
    /// # Errors
    /// [`ZnsError::Media`].
    pub fn create(path: &Path, geometry: &Geometry) -> Result<Store, ZnsError> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(media(path, "removing what was there", error));
            }
            _ => {}
        }
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|e| media(path, "making", e))?;
        Store::format(file, path.to_owned(), geometry).inspect_err(|_| {
            // What could not be made must not stay.
            let _ = std::fs::remove_file(path);
        })
    }

    /// The media that a device of this geometry left in the file `path`.
    ///
    /// # Errors
    /// [`ZnsError::Media`] if it cannot be opened or is another user's, [`ZnsError::Format`] if it is not such a device's.
    pub fn open(path: &Path, geometry: &Geometry) -> Result<Store, ZnsError> {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map_err(|e| media(path, "opening", e))?;
        let meta = file.metadata().map_err(|e| media(path, "looking at it", e))?;
        if meta.uid() != nix::unistd::geteuid().as_raw() {
            return Err(media(path, "opening", io::Error::from_raw_os_error(libc::EPERM)));
        }
        let mut found = [0u8; HEADER_BYTES as usize];
        let bad = |offset: u64, why: String| ZnsError::Format { path: path.to_owned(), offset, why };
        file.read_exact_at(&mut found, 0).map_err(|_| bad(meta.len(), "it ends within the header".into()))?;
        check_header(&found, &header(geometry)).map_err(|(offset, why)| bad(offset, why))?;
        let expected = Layout::of(geometry).total;
        if meta.len() != expected {
            return Err(bad(meta.len(), format!("it ends here, and should be {expected} bytes long")));
        }
        Store::map(file, path.to_owned(), geometry)
    }

    fn format(file: File, path: PathBuf, geometry: &Geometry) -> Result<Store, ZnsError> {
        file.set_len(Layout::of(geometry).total).map_err(|e| media(&path, "sizing", e))?;
        file.write_all_at(&header(geometry), 0).map_err(|e| media(&path, "writing the header", e))?;
        Store::map(file, path, geometry)
    }

    fn map(file: File, path: PathBuf, geometry: &Geometry) -> Result<Store, ZnsError> {
        let layout = Layout::of(geometry);
        let too_big = || media(&path, "mapping", io::Error::from_raw_os_error(libc::EFBIG));
        let map_bytes = usize::try_from(layout.total).map_err(|_| too_big())?;
        // SAFETY: a fresh shared mapping of our own file, unmapped in drop.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                map_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(media(&path, "mapping", io::Error::last_os_error()));
        }
        let Some(map) = NonNull::new(at.cast()) else { return Err(too_big()) };
        Ok(Store {
            file,
            path,
            map,
            map_bytes,
            table_at: HEADER_BYTES as usize,
            data_at: layout.data as usize,
            zone_bytes: (geometry.zone_sectors() * SECTOR_BYTES) as usize,
            zones: geometry.zones(),
        })
    }

    /// Where the media is, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn word(&self, zone: ZoneId) -> Option<&AtomicU64> {
        if zone.0 >= self.zones {
            return None;
        }
        // SAFETY: the table lies in the mapping, 8-byte aligned, `zones` words long, and is only used as atomics.
        Some(unsafe { self.map.add(self.table_at).cast::<AtomicU64>().add(zone.0 as usize).as_ref() })
    }

    /// Remembers a zone's state.
    pub fn publish(&self, zone: ZoneId, state: ZoneState, written: u64) {
        if let Some(word) = self.word(zone) {
            word.store(encode_word(state, written), Ordering::Release);
        }
    }

    /// What is remembered of a zone, without any lock.
    ///
    /// # Errors
    /// [`ZnsError::Format`] for a word that no device wrote.
    pub fn load(&self, zone: ZoneId) -> Result<(ZoneState, u64), ZnsError> {
        let word = self.word(zone).map_or(u64::MAX, |word| word.load(Ordering::Acquire));
        decode_word(word).ok_or_else(|| ZnsError::Format {
            path: self.path.clone(),
            offset: HEADER_BYTES + u64::from(zone.0) * 8,
            why: format!("zone {}: {:#x} is no zone state", zone.0, word),
        })
    }

    /// Where `sectors` at `offset` of a zone lie in memory; `None` outside the zone.
    ///
    /// The pointer is valid for reads and writes as long as the store. Others may access the bytes at the same time:
    /// use it only for copies where a torn value is acceptable.
    pub fn data(&self, zone: ZoneId, offset_sectors: u64, sectors: u64) -> Option<(NonNull<u8>, usize)> {
        let offset = usize::try_from(offset_sectors.checked_mul(SECTOR_BYTES)?).ok()?;
        let bytes = usize::try_from(sectors.checked_mul(SECTOR_BYTES)?).ok()?;
        if zone.0 >= self.zones || offset.checked_add(bytes)? > self.zone_bytes {
            return None;
        }
        // SAFETY: inside the mapping, which is data_at + zones * zone_bytes long.
        let at = unsafe { self.map.add(self.data_at + zone.0 as usize * self.zone_bytes + offset) };
        Some((at, bytes))
    }

    /// Gives the memory of a zone's data back; it reads as zeroes from then on.
    ///
    /// # Errors
    /// [`ZnsError::Media`].
    pub fn deallocate(&self, zone: ZoneId) -> Result<(), ZnsError> {
        let offset = self.data_at + zone.0 as usize * self.zone_bytes;
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: fallocate on our own file with a range inside it.
        let done = unsafe {
            libc::fallocate(
                self.file.as_raw_fd(),
                mode,
                offset as libc::off_t,
                self.zone_bytes as libc::off_t,
            )
        };
        if done < 0 {
            return Err(media(&self.path, "deallocating a zone", io::Error::last_os_error()));
        }
        Ok(())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length; `data` pointers are documented to end with the store.
        unsafe { libc::munmap(self.map.as_ptr().cast::<c_void>(), self.map_bytes) };
    }
}

fn media(path: &Path, what: &'static str, source: io::Error) -> ZnsError {
    ZnsError::Media { path: path.to_owned(), what, source }
}

struct Layout {
    data: u64,
    total: u64,
}

impl Layout {
    fn of(geometry: &Geometry) -> Layout {
        let table = (u64::from(geometry.zones()) * 8).next_multiple_of(4096);
        let data = HEADER_BYTES + table;
        Layout { data, total: data + geometry.sectors() * SECTOR_BYTES }
    }
}

fn header(geometry: &Geometry) -> [u8; HEADER_BYTES as usize] {
    let mut bytes = Vec::with_capacity(HEADER_BYTES as usize);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    let small = [geometry.zones(), geometry.conventional_zones(), geometry.max_open(), geometry.max_active()];
    small.iter().for_each(|field| bytes.extend_from_slice(&field.to_le_bytes()));
    let large = [
        geometry.zone_sectors(),
        geometry.sequential_capacity_sectors(),
        geometry.block_sectors(),
        geometry.max_append_sectors(),
        HEADER_BYTES,
    ];
    large.iter().for_each(|field| bytes.extend_from_slice(&field.to_le_bytes()));
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    let mut page = [0; HEADER_BYTES as usize];
    page[..bytes.len()].copy_from_slice(&bytes);
    page
}

/// Checks a found header against the one this device would write; says where it differs first.
fn check_header(found: &[u8], expected: &[u8]) -> Result<(), (u64, String)> {
    if found.get(..8) != Some(&MAGIC[..]) {
        return Err((0, "not media of ublk-zns (no magic)".into()));
    }
    if found.get(8..12) != expected.get(8..12) {
        return Err((8, format!("its version is not {VERSION}")));
    }
    let (Some(body), Some(sum)) = (found.get(..CRC_AT), found.get(CRC_AT..CRC_AT + 4)) else {
        return Err((0, "it ends within the header".into()));
    };
    if crc32c::crc32c(body).to_le_bytes() != sum {
        return Err((CRC_AT as u64, "the header's checksum is wrong".into()));
    }
    match found.iter().zip(expected).take(CRC_AT).position(|(a, b)| a != b) {
        Some(at) => Err((at as u64, "it was made with other sizes or limits".into())),
        None => Ok(()),
    }
}

const STATES: [ZoneState; 7] = [
    ZoneState::Empty,
    ZoneState::ImplicitlyOpen,
    ZoneState::ExplicitlyOpen,
    ZoneState::Closed,
    ZoneState::Full,
    ZoneState::ReadOnly,
    ZoneState::Offline,
];

/// State in the top byte, written sectors below. An empty zone is 0, which is what fresh media holds.
fn encode_word(state: ZoneState, written: u64) -> u64 {
    let code = STATES.iter().position(|other| *other == state).unwrap_or(0) as u64;
    code << 56 | (written & ((1 << 56) - 1))
}

fn decode_word(word: u64) -> Option<(ZoneState, u64)> {
    Some((*STATES.get((word >> 56) as usize)?, word & ((1 << 56) - 1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::ZnsConfig;
    use proptest::prelude::*;

    fn geometry() -> Geometry {
        let config = ZnsConfig { size_bytes: 4 << 20, zone_size_bytes: 1 << 20, ..Default::default() };
        Geometry::new(&config).unwrap()
    }

    proptest! {
        #[test]
        fn a_zones_word_survives_the_trip(code in 0usize..7, written in 0u64..(1 << 56)) {
            let word = encode_word(STATES[code], written);
            prop_assert_eq!(decode_word(word), Some((STATES[code], written)));
        }

        #[test]
        fn arbitrary_headers_never_panic_and_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(check_header(&bytes, &header(&geometry())).is_err());
        }

        #[test]
        fn any_flipped_bit_of_the_header_is_found(byte in 0usize..CRC_AT + 4, bit in 0u8..8) {
            let mut found = header(&geometry());
            found[byte] ^= 1 << bit;
            prop_assert!(check_header(&found, &header(&geometry())).is_err());
        }
    }

    #[test]
    fn states_and_data_survive_closing_and_opening_again() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("media");
        let store = Store::create(&path, &geometry()).unwrap();
        store.publish(ZoneId(2), ZoneState::Closed, 16);
        let (at, bytes) = store.data(ZoneId(2), 8, 8).unwrap();
        // SAFETY: nobody else uses the store.
        unsafe { at.write_bytes(0x5a, bytes) };
        drop(store);
        let store = Store::open(&path, &geometry()).unwrap();
        assert_eq!(store.load(ZoneId(2)).unwrap(), (ZoneState::Closed, 16));
        assert_eq!(store.load(ZoneId(0)).unwrap(), (ZoneState::Empty, 0));
        let (at, _) = store.data(ZoneId(2), 8, 8).unwrap();
        // SAFETY: as above.
        assert_eq!(unsafe { at.read() }, 0x5a);
        store.deallocate(ZoneId(2)).unwrap();
        // SAFETY: as above.
        assert_eq!(unsafe { at.read() }, 0);
    }

    #[test]
    fn media_of_other_sizes_cut_short_or_foreign_are_refused_by_name_and_offset() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("media");
        let error = || Store::open(&path, &geometry()).err().unwrap().to_string();
        assert!(error().contains("opening"), "{}", error());
        std::fs::write(&path, "hello").unwrap();
        assert!(error().contains("ends within the header"), "{}", error());
        std::fs::write(&path, [0; 8192]).unwrap();
        assert!(error().contains("no magic"), "{}", error());
        let other = ZnsConfig { size_bytes: 8 << 20, zone_size_bytes: 1 << 20, ..Default::default() };
        drop(Store::create(&path, &Geometry::new(&other).unwrap()).unwrap());
        assert!(error().contains("byte 12") && error().contains("other sizes"), "{}", error());
        drop(Store::create(&path, &geometry()).unwrap());
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(100_000).unwrap();
        assert!(error().contains("should be 4202496 bytes"), "{}", error());
        file.set_len(4_202_496).unwrap();
        let store = Store::open(&path, &geometry()).unwrap();
        file.write_all_at(&[0xff; 8], HEADER_BYTES).unwrap();
        let error = store.load(ZoneId(0)).unwrap_err().to_string();
        assert!(error.contains("byte 4096") && error.contains("zone 0"), "{error}");
    }

    #[test]
    fn data_outside_a_zone_has_no_place() {
        let store = Store::anonymous(&geometry()).unwrap();
        assert!(store.data(ZoneId(3), 0, 2048).is_some());
        assert!(store.data(ZoneId(3), 1, 2048).is_none());
        assert!(store.data(ZoneId(4), 0, 1).is_none());
        assert!(store.data(ZoneId(0), u64::MAX, 1).is_none());
    }
}
