//! The image file: loading, appending, rewriting.

use super::format::{self, FormatError, Reader, Record};
use crate::array::DirtyPage;
use crate::chip::{Chip, ChipError, ChipState, FrameReport, Lasting};
use crate::sim::Observer;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Rewritten when the changes are longer than this and than the image itself.
const LEAST_REWRITE_BYTES: u64 = 4 << 20;

/// What can go wrong with an image file.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file cannot be read or written.
    #[error("{}: {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// Its bytes are wrong.
    #[error("{}: {source}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: FormatError,
    },
    /// It is not of this chip.
    #[error("{}: {source}", path.display())]
    Chip {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        source: ChipError,
    },
    /// A part of it does not fit.
    #[error("{}: {what}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
}

struct Place<'a>(&'a Path);

impl Place<'_> {
    fn io(&self, action: &'static str) -> impl FnOnce(std::io::Error) -> ImageError + use<> {
        let path = self.0.to_path_buf();
        move |source| ImageError::Io { path, action, source }
    }

    fn format(&self, source: FormatError) -> ImageError {
        ImageError::Format { path: self.0.to_path_buf(), source }
    }

    fn content(&self, what: String) -> ImageError {
        ImageError::Content { path: self.0.to_path_buf(), what }
    }
}

/// What a file held besides the array.
struct Loaded {
    lasting: Option<Lasting>,
    state: Option<ChipState>,
    whole: bool,
    /// Bytes that are good, and of them those of the image itself.
    good_bytes: u64,
    image_bytes: u64,
    torn_bytes: u64,
}

/// Puts a file's array into a chip, and returns the rest.
fn read_into(chip: &mut Chip, path: &Path) -> Result<Loaded, ImageError> {
    let place = Place(path);
    let bytes = std::fs::read(path).map_err(place.io("cannot be read"))?;
    let mut reader = Reader::new(&bytes).map_err(|error| place.format(error))?;
    let mut loaded =
        Loaded { lasting: None, state: None, whole: false, good_bytes: 0, image_bytes: 0, torn_bytes: 0 };
    while let Some(record) = reader.next_record().map_err(|error| place.format(error))? {
        let json =
            |what: &str, error: serde_json::Error| place.content(format!("the record of {what}: {error}"));
        match record {
            Record::Lasting(text) => {
                loaded.lasting =
                    Some(serde_json::from_slice(&text).map_err(|error| json("registers", error))?);
            }
            Record::State(text) => {
                loaded.state = Some(serde_json::from_slice(&text).map_err(|error| json("the state", error))?);
            }
            Record::Unit { unit, content } => {
                if unit >= chip.array().unit_count() || !chip.array().fits(&content) {
                    let (name, units) = (&chip.part().name, chip.array().unit_count());
                    let what = format!("sector {unit} does not fit {name}, which has {units} of other sizes");
                    return Err(place.content(what));
                }
                chip.array_mut().restore_unit(unit, content);
            }
            Record::Page { unit, page, meta, data } => {
                chip.array_mut().restore_page(unit, page, &data, meta);
            }
            Record::Whole => {
                loaded.whole = true;
                loaded.image_bytes = reader.position() as u64;
            }
            Record::Unknown { tag } => log::warn!("{}: a record of tag {tag:#x} is skipped", path.display()),
        }
    }
    loaded.good_bytes = reader.position() as u64;
    loaded.torn_bytes = bytes.len() as u64 - loaded.good_bytes;
    if !loaded.whole {
        return Err(place.content("the image was not written to its end; there is no whole one in it".into()));
    }
    Ok(loaded)
}

/// Loads an image into a chip that was just made, without changing the file. Returns the bytes of a tail that was torn.
///
/// # Errors
/// A file that cannot be read, is no image, is damaged before its end, or is one of another part or seed.
pub fn load(chip: &mut Chip, path: &Path) -> Result<u64, ImageError> {
    let loaded = read_into(chip, path)?;
    let lasting =
        loaded.lasting.ok_or_else(|| Place(path).content("it has no record of registers".into()))?;
    chip.revive(lasting).map_err(|source| ImageError::Chip { path: path.to_path_buf(), source })?;
    Ok(loaded.torn_bytes)
}

/// Loads a snapshot into a chip that was just made: it goes on in the middle of its frame or operation.
///
/// # Errors
/// As [`load`]; and an image that is no snapshot.
pub fn load_snapshot(chip: &mut Chip, path: &Path) -> Result<(), ImageError> {
    let loaded = read_into(chip, path)?;
    let state = loaded.state.ok_or_else(|| Place(path).content("it is an image, not a snapshot".into()))?;
    chip.restore(state).map_err(|source| ImageError::Chip { path: path.to_path_buf(), source })
}

/// Writes a whole file of a chip; with `state`, a snapshot.
fn write_whole(chip: &Chip, path: &Path, snapshot: bool) -> Result<(File, u64), ImageError> {
    let place = Place(path);
    let new = path.with_file_name(format!(
        "{}.new",
        path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    ));
    let file = File::create(&new).map_err(Place(&new).io("cannot be created"))?;
    let mut out = std::io::BufWriter::with_capacity(1 << 20, file);
    let mut bytes = format::head().to_vec();
    let json =
        |result: Result<Vec<u8>, serde_json::Error>| result.map_err(|error| place.content(error.to_string()));
    format::encode(&Record::Lasting(json(serde_json::to_vec(&chip.lasting()))?), &mut bytes);
    let mut written = 0;
    let array = chip.array();
    for unit in 0..array.unit_count() {
        // Units that nothing has happened to are not stored.
        if let Some(content) = array.unit(unit).filter(|content| **content != crate::array::Unit::default()) {
            format::encode(&Record::Unit { unit, content: content.clone() }, &mut bytes);
        }
        if bytes.len() > 1 << 20 {
            out.write_all(&bytes).map_err(Place(&new).io("cannot be written"))?;
            written += bytes.len() as u64;
            bytes.clear();
        }
    }
    if snapshot {
        format::encode(&Record::State(json(serde_json::to_vec(&chip.save()))?), &mut bytes);
    }
    format::encode(&Record::Whole, &mut bytes);
    out.write_all(&bytes).map_err(Place(&new).io("cannot be written"))?;
    written += bytes.len() as u64;
    let file = out.into_inner().map_err(|error| Place(&new).io("cannot be written")(error.into_error()))?;
    file.sync_all().map_err(Place(&new).io("cannot be made durable"))?;
    std::fs::rename(&new, path).map_err(place.io("cannot be replaced"))?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Place(dir).io("cannot be made durable"))?;
    Ok((file, written))
}

/// Writes a snapshot: the chip as it is now, in the middle of a frame or operation, whole and durable before it has its name.
///
/// # Errors
/// A file that cannot be written.
pub fn save_snapshot(chip: &Chip, path: &Path) -> Result<(), ImageError> {
    write_whole(chip, path, true).map(|_| ())
}

/// The image file of a chip while it runs: an [`Observer`] that appends what has changed after every frame.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    file: File,
    select: u8,
    lasting: Lasting,
    image_bytes: u64,
    length: u64,
    buffer: Vec<u8>,
    /// Set by the first failure: a bad disk must not end the chip, and must not write on.
    failed: bool,
}

impl Store {
    /// Opens the image of a chip that was just made, or makes one; what it holds is put into the chip. A torn tail is cut off.
    ///
    /// # Errors
    /// As [`load`], and a file that cannot be written.
    pub fn open(chip: &mut Chip, select: u8, path: &Path) -> Result<Store, ImageError> {
        let place = Place(path);
        let (file, image_bytes, length) = if path.exists() {
            let loaded = read_into(chip, path)?;
            let lasting =
                loaded.lasting.ok_or_else(|| place.content("it has no record of registers".into()))?;
            chip.revive(lasting).map_err(|source| ImageError::Chip { path: path.to_path_buf(), source })?;
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .open(path)
                .map_err(place.io("cannot be written"))?;
            if loaded.torn_bytes > 0 {
                log::warn!("{}: {} bytes of a torn record are cut off", path.display(), loaded.torn_bytes);
                file.set_len(loaded.good_bytes).map_err(place.io("cannot be cut"))?;
            }
            file.seek(SeekFrom::End(0)).map_err(place.io("cannot be sought"))?;
            (file, loaded.image_bytes, loaded.good_bytes)
        } else {
            let (file, written) = write_whole(chip, path, false)?;
            (file, written, written)
        };
        chip.array_mut().track();
        chip.array_mut().take_dirty();
        let (path, lasting) = (path.to_path_buf(), chip.lasting());
        Ok(Store { path, file, select, lasting, image_bytes, length, buffer: Vec::new(), failed: false })
    }

    /// Appends what has changed since the last call.
    ///
    /// # Errors
    /// A file that cannot be written; nothing is written after that.
    pub fn append(&mut self, chip: &mut Chip) -> Result<(), ImageError> {
        if self.failed {
            return Ok(());
        }
        let result = self.try_append(chip);
        self.failed = result.is_err();
        result
    }

    fn try_append(&mut self, chip: &mut Chip) -> Result<(), ImageError> {
        let dirty = chip.array_mut().take_dirty();
        let lasts = chip.lasts_as(&self.lasting);
        if dirty.is_empty() && lasts {
            return Ok(());
        }
        self.buffer.clear();
        for DirtyPage { unit, page } in dirty {
            self.encode_dirty(chip, unit, page);
        }
        if !lasts {
            self.lasting = chip.lasting();
            let text = serde_json::to_vec(&self.lasting)
                .map_err(|error| Place(&self.path).content(error.to_string()))?;
            format::encode(&Record::Lasting(text), &mut self.buffer);
        }
        self.file.write_all(&self.buffer).map_err(Place(&self.path).io("cannot be written"))?;
        self.length += self.buffer.len() as u64;
        if self.length - self.image_bytes > self.image_bytes.max(LEAST_REWRITE_BYTES) {
            self.rewrite(chip)?;
        }
        Ok(())
    }

    fn encode_dirty(&mut self, chip: &Chip, unit: u32, page: Option<u32>) {
        let array = chip.array();
        let Some(content) = array.unit(unit) else { return };
        let bytes = array.page_bytes();
        let page_of = |page: u32| content.data()?.get(page as usize * bytes..(page as usize + 1) * bytes);
        match page.and_then(|page| Some((page, page_of(page)?))) {
            Some((page, data)) => {
                let (meta, data) = (array.page(unit, page), data.to_vec());
                format::encode(&Record::Page { unit, page, meta, data }, &mut self.buffer);
            }
            None => format::encode(&Record::Unit { unit, content: content.clone() }, &mut self.buffer),
        }
    }

    fn rewrite(&mut self, chip: &Chip) -> Result<(), ImageError> {
        let (file, written) = write_whole(chip, &self.path, false)?;
        (self.file, self.image_bytes, self.length) = (file, written, written);
        self.lasting = chip.lasting();
        Ok(())
    }

    /// Writes the whole image anew, with the chip's time and statistics, and makes it durable: for an orderly end.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn close(&mut self, chip: &mut Chip) -> Result<(), ImageError> {
        if self.failed {
            return Ok(());
        }
        chip.array_mut().take_dirty();
        self.rewrite(chip)
    }

    fn note(&mut self, select: u8, chip: &mut Chip) {
        if select == self.select
            && let Err(error) = self.append(chip)
        {
            log::error!("{error}; the image is not kept up any more");
        }
    }
}

impl Observer for Store {
    fn deselected(&mut self, select: u8, chip: &mut Chip, _report: Option<&FrameReport>) {
        self.note(select, chip);
    }

    fn settled(&mut self, select: u8, chip: &mut Chip) {
        self.note(select, chip);
    }

    fn ended(&mut self, select: u8, chip: &mut Chip) {
        if select == self.select
            && let Err(error) = self.close(chip)
        {
            log::error!("{error}; the image is as it was before the end");
        }
    }
}
