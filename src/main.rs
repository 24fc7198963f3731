//! The program: everything is in the library, see `ftpfs::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ftpfs::cli::run()
}
