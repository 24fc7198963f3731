//! Into the background, but only when the mount answers: the program that was typed waits until
//! the process that stays says so, and ends with its verdict.

use std::io::{self, PipeReader, PipeWriter, Read, Write};

use super::exit::{Failure, Status};
use super::{log, system};

/// Told by whoever serves, once, when the mount answers.
pub(crate) enum Ready {
    /// Nobody waits.
    Foreground,
    Background(PipeWriter),
}

impl Ready {
    /// The mount answers. An error means that the one who waited is gone.
    pub(crate) fn tell(self) -> io::Result<()> {
        let Self::Background(mut pipe) = self else { return Ok(()) };
        pipe.write_all(&[0])?;
        log::leave_terminal();
        system::close_standard_streams()
    }
}

/// Runs `serve` in a process of its own. Returns when that one is ready or has failed.
pub(crate) fn start(
    serve: impl FnOnce(&mut Option<Ready>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let failed =
        |error: io::Error| Failure::other(format!("cannot start in the background: {error}"));
    let (reader, writer) = io::pipe().map_err(failed)?;
    match system::fork().map_err(failed)? {
        system::Side::Parent => {
            drop(writer);
            verdict(reader)
        }
        system::Side::Child => {
            drop(reader);
            let _ = system::leave_terminal();
            let mut ready = Some(Ready::Background(writer));
            let result = serve(&mut ready);
            if let (Err(failure), Some(Ready::Background(mut pipe))) = (&result, ready) {
                let _ = pipe.write_all(&[failure.status as u8]);
                let _ = pipe.write_all(failure.message.as_bytes());
            }
            std::process::exit(result.err().map_or(0, |failure| failure.status as i32))
        }
    }
}

fn verdict(mut pipe: PipeReader) -> Result<(), Failure> {
    let mut said = Vec::new();
    let read = pipe.read_to_end(&mut said);
    match (read, said.split_first()) {
        (Ok(_), Some((0, _))) => Ok(()),
        (Ok(_), Some((number, message))) => {
            Err(Failure::new(Status::from_number(*number), String::from_utf8_lossy(message)))
        }
        _ => Err(Failure::other("ended before the mount answered; try --foreground -v")),
    }
}
