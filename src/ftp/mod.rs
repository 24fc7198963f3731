//! The server: the only room that names suppaftp.
pub mod listing;
pub mod path;
