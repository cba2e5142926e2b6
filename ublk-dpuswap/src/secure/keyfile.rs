//! The file that holds the shared key: two lines of text, the second is the key in 64 hexadecimal digits.
//!
//! Invariant: a key that others can read or change is refused, and one that is created never was readable by others.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom, SystemRandom};

use super::{KEY_BYTES, Key};

const FIRST_LINE: &str = "storlab-dpuswap-key 1";
const MAX_FILE_BYTES: u64 = 4096;

/// Why there is no key. Each names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// It does not exist.
    #[error(
        "key file {0}: it does not exist; copy a node's key file there (scp -p), or name one with --key-file"
    )]
    Missing(PathBuf),
    /// Reading or making it failed.
    #[error("key file {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Others may read or write it.
    #[error(
        "key file {path}: others may use it (mode {mode:04o}); it was meant to be secret: chmod 600 it, or make a new key"
    )]
    Loose {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It belongs to another user.
    #[error(
        "key file {path}: it belongs to user {owner}; it must belong to root or to the user that reads it"
    )]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// It is not a regular file.
    #[error("key file {0}: not a regular file")]
    Kind(PathBuf),
    /// Its content is something else.
    #[error("key file {0}: not a key: the lines \"{FIRST_LINE}\" and 64 hexadecimal digits are expected")]
    Format(PathBuf),
    /// Neither `--key-file` nor a home directory names a place.
    #[error("no place for a key file: neither XDG_CONFIG_HOME nor HOME is set; name one with --key-file")]
    NoPlace,
}

/// A key and where it comes from.
#[derive(Debug, Clone)]
pub struct KeyFile {
    /// The file.
    pub path: PathBuf,
    /// The key.
    pub key: Key,
    /// Whether it was made just now.
    pub created: bool,
}

impl KeyFile {
    /// Where the key is when no other place is named: /etc/storlab/dpuswap.key for root, else storlab/dpuswap.key in
    /// the user's configuration directory.
    ///
    /// # Errors
    /// [`KeyFileError::NoPlace`].
    pub fn default_path() -> Result<PathBuf, KeyFileError> {
        if nix::unistd::geteuid().is_root() {
            return Ok(PathBuf::from("/etc/storlab/dpuswap.key"));
        }
        let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let config = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")));
        Ok(config.ok_or(KeyFileError::NoPlace)?.join("storlab/dpuswap.key"))
    }

    /// Reads the key; with `create`, makes file, key and directory when they are missing. Of several that create at the
    /// same time one wins, and all get its key.
    ///
    /// # Errors
    /// There is no key, or none that can be trusted; says what to do.
    pub fn load_or_create(path: &Path, create: bool) -> Result<Self, KeyFileError> {
        match Self::load(path) {
            Err(KeyFileError::Missing(_)) if create => {
                let created = Self::create(path)
                    .map_err(|source| KeyFileError::Io { path: path.to_owned(), source })?;
                Ok(Self { created, ..Self::load(path)? })
            }
            other => other,
        }
    }

    fn load(path: &Path) -> Result<Self, KeyFileError> {
        let named = || path.to_owned();
        let io = |source: io::Error| match source.kind() {
            ErrorKind::NotFound => KeyFileError::Missing(named()),
            _ => KeyFileError::Io { path: named(), source },
        };
        // Not blocking: a pipe in the file's place must not hang the program.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(io)?;
        let about = file.metadata().map_err(io)?;
        if !about.is_file() {
            return Err(KeyFileError::Kind(named()));
        }
        let (mode, owner) = (about.mode() & 0o7777, about.uid());
        if mode & 0o077 != 0 {
            return Err(KeyFileError::Loose { path: named(), mode });
        }
        if owner != 0 && owner != nix::unistd::geteuid().as_raw() {
            return Err(KeyFileError::Owner { path: named(), owner });
        }
        let mut text = String::new();
        match file.take(MAX_FILE_BYTES).read_to_string(&mut text) {
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                return Err(KeyFileError::Format(named()));
            }
            other => other.map_err(io)?,
        };
        let bytes = parse(&text).ok_or_else(|| KeyFileError::Format(named()))?;
        Ok(Self { path: named(), key: Key::new(bytes), created: false })
    }

    /// Gives whether the file is ours, and not one that somebody else was faster to make.
    fn create(path: &Path) -> io::Result<bool> {
        let mut bytes = [0; KEY_BYTES];
        let no_random = |_| io::Error::other("the system has no random numbers");
        SystemRandom::new().fill(&mut bytes).map_err(no_random)?;
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        // Written whole under another name first: nobody ever reads half a key.
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.new", std::process::id()));
        let temporary = path.with_file_name(name);
        let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        let written =
            file.write_all(format!("{FIRST_LINE}\n{digits}\n").as_bytes()).and_then(|()| file.sync_all());
        let linked = written.and_then(|()| match fs::hard_link(&temporary, path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            other => other.map(|()| true),
        });
        fs::remove_file(&temporary)?;
        linked
    }
}

fn parse(text: &str) -> Option<[u8; KEY_BYTES]> {
    let digits = text.strip_prefix(FIRST_LINE)?.strip_prefix('\n')?.trim_end().as_bytes();
    let mut key = [0; KEY_BYTES];
    if digits.len() != 2 * KEY_BYTES {
        return None;
    }
    for (byte, pair) in key.iter_mut().zip(digits.as_chunks::<2>().0) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_made_once_with_mode_0600_and_is_the_same_when_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/dir/key");
        assert!(matches!(KeyFile::load_or_create(&path, false), Err(KeyFileError::Missing(_))));
        let made = KeyFile::load_or_create(&path, true).unwrap();
        let read = KeyFile::load_or_create(&path, true).unwrap();
        assert!(made.created && !read.created && made.key == read.key);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file is left");
        let other = KeyFile::load_or_create(&dir.path().join("other"), true).unwrap();
        assert!(other.key != made.key);
    }

    #[test]
    fn all_who_create_at_the_same_time_get_one_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        // Of one process, so the temporary name is the same: create until only one is left to win.
        let made = KeyFile::create(&path).unwrap();
        assert!(made && !KeyFile::create(&path).unwrap(), "the second finds the first's");
    }

    #[test]
    fn a_key_that_others_may_read_or_that_is_none_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let refused = |text: &str, mode: u32| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = KeyFile::load_or_create(&path, true).unwrap_err().to_string();
            assert!(error.contains(path.to_str().unwrap()) && error.lines().count() == 1, "{error}");
            error
        };
        let good = format!("{FIRST_LINE}\n{}\n", "aB".repeat(32));
        for mode in [0o640, 0o604, 0o620, 0o666] {
            assert!(refused(&good, mode).contains("chmod 600"));
        }
        let short = format!("{FIRST_LINE}\n{}\n", "ab".repeat(31));
        let other = good.replace("key 1", "key 2");
        let letters = good.replace('a', "g");
        let signs = good.replace("aB", "+1");
        for text in ["", "hello", &short, &other, &letters, &signs, &"x".repeat(10_000)] {
            assert!(refused(text, 0o600).contains("64 hexadecimal digits"));
        }
        fs::write(&path, &good).unwrap();
        assert!(KeyFile::load_or_create(&path, false).unwrap().key == Key::new([0xab; 32]));
        assert!(matches!(KeyFile::load_or_create(dir.path(), true), Err(KeyFileError::Kind(_))));
    }
}
