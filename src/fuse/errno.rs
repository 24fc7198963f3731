//! The only errno table, and what of a failure is worth a line.

use fuser::Errno;

use crate::vfs::Error;

/// What programs do all day (looking for what is not there) is not worth a line.
pub(super) fn log_failure(name: &str, error: &Error, errno: Errno) {
    match error {
        Error::NotFound | Error::Exists | Error::NoAttribute | Error::NotEmpty => {
            log::debug!("{name}: {error}");
        }
        Error::Denied(_)
        | Error::NoSpace(_)
        | Error::Quota(_)
        | Error::Stale(_)
        | Error::TimedOut(_)
        | Error::Unreachable(_)
        | Error::Io(_)
        | Error::Local(_) => log::warn!("{name}: {error} (errno {})", errno.code()),
        Error::NotADirectory
        | Error::IsADirectory
        | Error::ReadOnly
        | Error::BadName(_)
        | Error::NameTooLong
        | Error::Unsupported
        | Error::Invalid
        | Error::NotOwner
        | Error::BadHandle => log::info!("{name}: {error} (errno {})", errno.code()),
    }
}

/// The errno table.
pub(super) fn errno(error: &Error) -> Errno {
    match error {
        Error::NotFound => Errno::ENOENT,
        Error::Exists => Errno::EEXIST,
        Error::NotADirectory => Errno::ENOTDIR,
        Error::IsADirectory => Errno::EISDIR,
        Error::NotEmpty => Errno::ENOTEMPTY,
        Error::Denied(_) => Errno::EACCES,
        Error::ReadOnly => Errno::EROFS,
        Error::NoSpace(_) => Errno::ENOSPC,
        Error::Quota(_) => Errno::EDQUOT,
        Error::Stale(_) => Errno::ESTALE,
        Error::TimedOut(_) => Errno::ETIMEDOUT,
        Error::Unreachable(_) | Error::Io(_) => Errno::EIO,
        Error::BadName(_) | Error::Invalid => Errno::EINVAL,
        Error::NameTooLong => Errno::ENAMETOOLONG,
        Error::Unsupported => Errno::EOPNOTSUPP,
        Error::NotOwner => Errno::EPERM,
        Error::NoAttribute => Errno::ENODATA,
        Error::BadHandle => Errno::EBADF,
        // The staging directory's own reason: ENOSPC and EDQUOT are what the writer must know.
        Error::Local(error) => Errno::from_i32(error.raw_os_error().unwrap_or(libc::EIO)),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_local_disk_that_is_full_is_told_as_such() {
        let full = Error::Local(io::Error::from_raw_os_error(libc::ENOSPC));
        assert_eq!(errno(&full).code(), libc::ENOSPC);
        assert_eq!(errno(&Error::Local(io::Error::other("?"))).code(), libc::EIO);
    }
}
