//! How much is left, while somebody waits for it: a bar on a terminal, a line now and then
//! elsewhere.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::complain;
use super::control::{Answer, Line, Request};
use super::exit::Failure;
use super::status::size;

/// Between two signs of life of a process that sends; it gives one every half second.
const SILENCE: Duration = Duration::from_secs(20);

/// Asks for everything to be sent and waits, saying how much is left; why not all could be.
pub(crate) fn hear_drain(line: &mut Line, request: Request) -> Result<Option<String>, Failure> {
    let lost = |error: io::Error| Failure::other(format!("its process does not answer: {error}"));
    line.ask(request).map_err(lost)?;
    let mut shown = Shown::default();
    loop {
        match line.hear(SILENCE).map_err(lost)? {
            Some(Answer::Draining { files, bytes }) => shown.left(files, bytes),
            Some(Answer::Status(_) | Answer::Refreshed { .. } | Answer::Pinning { .. }) => {}
            Some(Answer::Drained { error }) => return Ok(error),
            None => return Ok(None),
        }
    }
}

/// Asks for something to be pinned or let go, and waits, saying how much is here; the exit status,
/// and why. Nothing if the other process has ended.
pub(crate) fn hear_pin(line: &mut Line, request: Request) -> io::Result<Option<(u8, String)>> {
    line.ask(request)?;
    let is_terminal = io::stderr().is_terminal();
    let bar = ProgressBar::new_spinner();
    let form = "{spinner} here: {msg}";
    bar.set_style(
        ProgressStyle::with_template(form).unwrap_or_else(|_| ProgressStyle::default_spinner()),
    );
    let mut said = None;
    let done = loop {
        match line.hear(SILENCE)? {
            Some(Answer::Pinning { files, bytes }) if said != Some((files, bytes)) => {
                said = Some((files, bytes));
                let message = format!("{files} files, {}", size(bytes));
                if is_terminal {
                    bar.set_message(message);
                    bar.tick();
                } else {
                    complain(&format!("here: {message}"));
                }
            }
            Some(Answer::Refreshed { status, error }) => break Some((status, error)),
            Some(_) => {}
            None => break None,
        }
    };
    bar.finish_and_clear();
    Ok(done)
}

/// What was said so far.
#[derive(Default)]
struct Shown {
    bar: Option<ProgressBar>,
    total: u64,
    said: Option<(usize, u64)>,
}

impl Shown {
    fn left(&mut self, files: usize, bytes: u64) {
        if self.said == Some((files, bytes)) {
            return;
        }
        self.said = Some((files, bytes));
        if !io::stderr().is_terminal() {
            complain(&format!("sending {files} files, {}", size(bytes)));
            return;
        }
        self.total = self.total.max(bytes);
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::new(bytes);
            let form = "sending {msg} [{bar:40}] {bytes}/{total_bytes} {eta}";
            bar.set_style(
                ProgressStyle::with_template(form)
                    .unwrap_or_else(|_| ProgressStyle::default_bar())
                    .progress_chars("=> "),
            );
            bar
        });
        bar.set_length(self.total);
        bar.set_position(self.total - bytes);
        bar.set_message(format!("{files} files"));
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
