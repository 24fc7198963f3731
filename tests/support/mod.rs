//! What the integration tests share: a scripted FTP server on loopback.
//!
//! `server` is what a test starts and talks to; `dialect` is how the server
//! behaves and `faults` what goes wrong on purpose. Behind them: `hub` what the
//! threads share, `session` the conversation of one control connection, `verbs`
//! what each command does, `transfer` the data connections, `listing` the text
//! of listings, `storage` the files (`tree` in memory, or on disk), `path`
//! their names, `ports` where to listen. Nothing here knows the file system under test.

// One binary uses one half of the switches, another the other half.
#![allow(dead_code, unreachable_pub, missing_docs)]

pub mod dialect;
pub mod faults;
pub mod hub;
pub mod listing;
pub mod path;
pub mod ports;
pub mod server;
pub mod session;
pub mod storage;
pub mod transfer;
pub mod tree;
pub mod verbs;
