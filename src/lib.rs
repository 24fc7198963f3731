//! ftpfs mounts an FTP server as a folder.
#![allow(missing_docs)]
pub mod ftp;
pub mod fuse;
pub mod vfs;
