//! The server: the only room that names suppaftp.
//!
//! Invariants: one owner for each session; a session returns to the pool only with no reply
//! unread, or with one that its next user reads first; nothing is complete before its 226 or 250,
//! which catches cut listings too; names go through byte for byte; only what may be done twice is
//! retried, once, on a fresh session. No inode and no errno is known here.

mod connect;
mod error;
mod facts;
mod flow;
#[cfg(test)]
mod fuzz;
mod lane;
mod listing;
mod network;
mod open;
mod path;
mod pool;
mod proxy;
mod secret;
mod server;
mod session;
mod store;
mod stream;
mod tls;
mod transfer;
mod trust;
mod upload;

pub use connect::Target;
pub use error::{Error, Reply};
pub use lane::Look;
pub use listing::{Brief, Entries, Entry, Kind, Precision, Timestamp};
pub use network::{Active, NetworkSettings};
pub use path::{BadName, RemotePath, check_name};
pub use pool::{Ends, Fetched, LentTurn, Pool, PoolSnapshot, Reserved, Spare, TailHabit};
pub use proxy::Proxy;
pub use secret::Secret;
pub use session::{Session, Stat};
pub use store::{Guard, Placement, Renamed, Store, StoreOutcome, Stored};
pub use tls::{Authorities, Identity, TlsMode, TlsSettings};
pub use transfer::{Checked, Download, Upload};
pub use trust::{Fingerprint, Trust};
