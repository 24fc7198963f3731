//! ftpfs mounts an FTP server as a folder.
//!
//! One request of a program goes down through the rooms, and its answer comes back up:
//!
//! ```text
//! cli    what is typed: arguments, secrets, signals, messages; builds the rest
//!  |
//! fuse   kernel request -> one Vfs call -> one reply; the only errno table
//!  |
//! vfs    the file system: inodes, listings kept, readers, files being written
//!  |
//! ftp    the server: connections, sessions, transfers, listings, names
//! ```
//!
//! No room knows one above it; a test reads the sources to make sure. Each says its invariants at
//! the top of its `mod.rs`. In reading order:

pub mod cli;
pub mod ftp;
pub mod fuse;
pub mod vfs;
