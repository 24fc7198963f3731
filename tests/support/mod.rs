//! What the integration tests share: a scripted FTP server on loopback.
//!
//! `server` is what a test starts and talks to, `session` the conversation of
//! one control connection, `verbs` what each command does, `transfer` the data
//! connections, `listing` the text of LIST, NLST, MLSD and MLST, `tree` the
//! files, `dialect` how the server behaves, and `faults` what goes wrong on
//! purpose. Nothing here knows the file system under test.

// One binary uses one half of the switches, another the other half.
#![allow(dead_code, unreachable_pub, missing_docs)]

pub mod dialect;
pub mod faults;
pub mod listing;
pub mod server;
pub mod session;
pub mod transfer;
pub mod tree;
pub mod verbs;
