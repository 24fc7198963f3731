//! The integration tests, one binary: the scripted server and what is tested
//! against it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]
// Nothing is exported from a test binary.
#![allow(unreachable_pub)]

mod ahead;
mod arrows;
mod budget;
mod cache;
mod drivers;
mod faults;
mod full;
mod functional;
mod grace;
mod hostile;
mod lane;
mod matrix;
mod model;
mod network;
mod streams;
mod support;
mod together;
mod trouble;
mod wire_server;
mod writing;
