//! The scripted server itself: what the other tests rely on, seen through
//! plain sockets and through suppaftp.

mod client;
mod faults;
mod verbs;
