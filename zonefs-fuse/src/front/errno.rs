//! The one place where an error becomes an errno.

use fuser::Errno;

use crate::Error;

/// The errno that a program on the mount sees.
pub fn errno(error: &Error) -> Errno {
    match error {
        Error::NotFound => Errno::ENOENT,
        Error::Exists => Errno::EEXIST,
        Error::NotDir => Errno::ENOTDIR,
        Error::IsDir => Errno::EISDIR,
        Error::NotEmpty => Errno::ENOTEMPTY,
        Error::NameTooLong => Errno::ENAMETOOLONG,
        Error::Invalid(_) | Error::NotAppend { .. } => Errno::EINVAL,
        Error::NotPermitted(_) => Errno::EPERM,
        Error::TooManyLinks => Errno::EMLINK,
        Error::NoSpace(_) => Errno::ENOSPC,
        Error::ReadOnly => Errno::EROFS,
        // Everything else is the device or the medium: nothing a program could do about it.
        _ => Errno::EIO,
    }
}
