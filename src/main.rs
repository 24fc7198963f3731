//! The `ftpfs` program.
fn main() {}
