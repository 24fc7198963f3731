//! Transfers, and the way their data takes.

use std::net::IpAddr;
use std::time::Instant;

use super::Done;
use crate::support::dialect::{EarlyEnd, Pasv, Rest};
use crate::support::hub::Gone;
use crate::support::session::Session;
use crate::support::storage::{Cause, Start};
use crate::support::transfer::{Data, Finish, Then, Way, parse_eprt, parse_port, wait_released};

impl Session {
    pub(super) fn way_verb(&mut self, verb: &str, argument: &[u8]) -> Done {
        self.way = Way::Unset;
        let text = String::from_utf8_lossy(argument).to_ascii_uppercase();
        match verb {
            "EPSV" | "EPRT" if !self.dialect.epsv => self.unsupported(),
            "PASV" if self.dialect.pasv == Pasv::Absent => self.unsupported(),
            // RFC 2428 section 4.
            "EPSV" if text == "ALL" => {
                self.epsv_only = true;
                self.reply(200, "EPSV ALL ok.")
            }
            "EPSV" if text.parse::<u8>().is_ok_and(|family| family != 1) => {
                self.reply(522, "Network protocol not supported, use (1)")
            }
            "EPSV" | "PASV" => {
                if verb == "PASV" && self.epsv_only {
                    return self.reply(503, "EPSV ALL was sent.");
                }
                let Ok((way, port)) = Way::passive(&self.hub, self.id, self.local.ip()) else {
                    return self.reply(425, "Cannot open a passive connection.");
                };
                self.way = way;
                if verb == "EPSV" {
                    let text = format!("Entering Extended Passive Mode (|||{port}|)");
                    return self.reply(229, text);
                }
                let address = match (self.dialect.pasv, self.local.ip()) {
                    (Pasv::Address(address), _) | (_, IpAddr::V4(address)) => address,
                    _ => return self.reply(425, "PASV knows IPv4 only."),
                };
                let [a, b, c, d] = address.octets();
                let (high, low) = (port / 256, port % 256);
                self.reply(227, format!("Entering Passive Mode ({a},{b},{c},{d},{high},{low})."))
            }
            _ => {
                let target = if verb == "PORT" { parse_port(&text) } else { parse_eprt(&text) };
                // RFC 2577 section 3: no bouncing to others.
                match target.filter(|target| target.ip() == self.peer) {
                    Some(target) => {
                        self.way = Way::Active(target);
                        self.reply(200, format!("{verb} command successful."))
                    }
                    None => self.reply(500, format!("Illegal {verb} command.")),
                }
            }
        }
    }
}

impl Session {
    pub(super) fn transfer_verb(&mut self, verb: &str, argument: &[u8]) -> Done {
        match verb {
            "REST" if self.dialect.rest == Rest::Absent => self.unsupported(),
            "REST" => match std::str::from_utf8(argument).unwrap_or("").parse::<u64>() {
                Ok(offset) => {
                    self.rest = if self.dialect.rest == Rest::Ignored { 0 } else { offset };
                    self.reply(350, format!("Restart position accepted ({offset})."))
                }
                Err(_) => self.reply(501, "Bad restart position."),
            },
            "ABOR" => {
                self.way = Way::Unset;
                self.reply(226, "ABOR successful.")
            }
            "RETR" => self.retrieve(argument),
            "APPE" if !self.dialect.appe => self.unsupported(),
            _ => self.store(verb, argument),
        }
    }

    fn retrieve(&mut self, argument: &[u8]) -> Done {
        let rest = std::mem::take(&mut self.rest);
        let path = self.path(argument);
        let opened = self.hub.storage.open(&path);
        let (content, size) = match opened.and_then(|c| Ok((c, self.hub.storage.stat(&path)?.size)))
        {
            Ok(opened) => opened,
            Err(cause) => {
                self.way = Way::Unset;
                return self.refuse("RETR", cause, argument);
            }
        };
        let name = String::from_utf8_lossy(argument);
        let mode = if self.ascii { "ASCII" } else { "BINARY" };
        let text = format!("Opening {mode} mode data connection for {name} ({size} bytes).");
        let Some(mut data) = self.open_data(&text)? else { return Ok(()) };
        if self.dialect.answers_at_once {
            self.answer_at_once()?;
            // The question for another data connection ends this one, and nothing is said of it.
            if !matches!(self.way, Way::Unset) {
                data.close(&Finish::Broken);
                return Ok(());
            }
        }
        let early_end = self.dialect.early_end;
        if early_end != EarlyEnd::Unseen && data.ended_early() {
            self.hub.change(|state| state.early_ends += 1);
            if early_end == EarlyEnd::Aborts {
                return self.finish(data, Finish::Broken, 226, "");
            }
        }
        let finish = data.send(rest, |offset, block| content.read_at(offset, block))?;
        self.finish(data, finish, 226, "Transfer complete.")
    }

    fn store(&mut self, verb: &str, argument: &[u8]) -> Done {
        let rest = std::mem::take(&mut self.rest);
        let start = match (verb, rest) {
            ("APPE", _) => Start::Append,
            (_, 0) => Start::Truncate,
            (_, offset) => Start::At(offset),
        };
        let opened = if self.dialect.read_only {
            Err(Cause::Denied)
        } else {
            self.hub.storage.create(&self.path(argument), start, self.hub.now())
        };
        let (content, mut offset) = match opened {
            Ok(opened) => opened,
            Err(cause) => {
                self.way = Way::Unset;
                return self.refuse(verb, cause, argument);
            }
        };
        self.hub.touch();
        // Only now comes to the disk what was cut before.
        for (content, at, bytes) in self.hub.change(|state| std::mem::take(&mut state.late)) {
            let _ = content.write_at(at, &bytes, self.hub.now());
            if start == Start::Append {
                offset += bytes.len() as u64;
            }
        }
        let Some(mut data) = self.open_data("Ok to send data.")? else { return Ok(()) };
        if self.dialect.answers_at_once {
            self.answer_at_once()?;
        }
        let hub = self.hub.clone();
        let finish = data.receive(|bytes| {
            content.write_at(offset, bytes, hub.now())?;
            offset += bytes.len() as u64;
            Ok(())
        })?;
        if let Finish::Cut(Then::DrainLate(length)) = finish {
            let bytes = data.beyond(length);
            self.hub.change(|state| state.late.push((content, offset, bytes)));
        }
        // The delay of the last reply counts from the last byte.
        self.arrived = Instant::now();
        let stored = self.dialect.stored;
        self.finish(data, finish, stored, "Transfer complete.")
    }

    /// Opens the data connection and announces it; answers 425 when it fails.
    pub(super) fn open_data(&mut self, text: &str) -> Result<Option<Data>, Gone> {
        let way = std::mem::take(&mut self.way);
        if matches!(way, Way::Unset) {
            self.reply(425, "Use PORT or PASV first.")?;
            return Ok(None);
        }
        let cut = self.cut.take();
        match Data::open(&self.hub, self.id, way, self.peer, cut, self.ascii)? {
            Some(data) => {
                self.reply(150, text)?;
                Ok(Some(data))
            }
            None => {
                self.reply(425, "Failed to establish connection.")?;
                Ok(None)
            }
        }
    }

    pub(super) fn finish(&mut self, data: Data, finish: Finish, code: u16, text: &str) -> Done {
        if matches!(finish, Finish::Complete) && self.hub.look(|state| state.dialect.lingers) {
            data.linger();
        }
        data.close(&finish);
        match finish {
            Finish::Complete => self.reply(code, text),
            Finish::Broken => self.reply(426, "Failure on the data connection."),
            Finish::Cut(Then::Reply(code, text)) => self.reply(code, text),
            // Released, it says what it should have said before.
            Finish::Cut(Then::Silence | Then::Stall) => {
                wait_released(&self.hub, self.id)?;
                self.reply(426, "Failure on the data connection.")
            }
            Finish::Cut(Then::Close) => Err(Gone),
            Finish::Cut(Then::Reset | Then::DrainLate(_)) => self.reset(),
        }
    }
}
