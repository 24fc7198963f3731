//! One control connection: reading command lines, the faults of replies, and
//! the replies themselves. What a command does is in `verbs`.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::dialect::{Dialect, Fact, Limit};
use super::faults::What;
use super::hub::{Command, Ending, Gone, Hub, Line, Received, State, hang_up};
use super::path::ServerPath;
use super::transfer::{Cut, Way, is_over, pass, wait_for, wait_released};

/// One client's conversation. Lives on its own thread.
pub struct Session {
    pub hub: Arc<Hub>,
    pub id: u64,
    control: Arc<TcpStream>,
    pub peer: IpAddr,
    pub local: SocketAddr,

    pub dialect: Dialect,
    pub user: Option<Vec<u8>>,
    pub stage: Stage,
    pub directory: ServerPath,
    /// TYPE A; the default of RFC 959 section 5.1.
    pub ascii: bool,
    pub rest: u64,
    pub rename_from: Option<ServerPath>,
    pub copy_from: Option<ServerPath>,
    pub way: Way,
    pub epsv_only: bool,
    pub facts: Option<Vec<Fact>>,

    /// Another command came in the segment of the one that is carried out.
    has_more: bool,
    /// When the command now being answered arrived, for the delay.
    pub arrived: Instant,
    pub cut: Option<Cut>,
    pub endless_listing: bool,
    /// What is to happen to the final reply of this command.
    spoil: Option<What>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Start,
    NeedPassword,
    NeedAccount,
    LoggedIn,
}

/// Longer lines are cut off and the session ended: nothing that a test sends.
const MAX_LINE: usize = 64 * 1024;
/// How often a write to a client that does not read looks whether the server
/// is being dropped.
const WRITE_LOOK: Duration = Duration::from_millis(100);

impl Session {
    /// Starts the thread of a connection that was just accepted.
    pub fn begin(hub: &Arc<Hub>, control: TcpStream) -> io::Result<()> {
        control.set_nodelay(true)?;
        control.set_write_timeout(Some(WRITE_LOOK))?;
        let (peer, local) = (control.peer_addr()?.ip(), control.local_addr()?);
        let control = Arc::new(control);
        let id = hub.change(|state| {
            state.total += 1;
            let line = Line { control: Arc::downgrade(&control), ..Line::default() };
            state.lines.insert(state.total, line);
            state.peak = state.peak.max(state.lines.len());
            state.total
        });
        let session = Session {
            hub: hub.clone(),
            id,
            control,
            peer,
            local,
            dialect: hub.look(|state| state.dialect.clone()),
            user: None,
            stage: Stage::Start,
            directory: ServerPath::default(),
            ascii: true,
            rest: 0,
            rename_from: None,
            copy_from: None,
            way: Way::Unset,
            epsv_only: false,
            facts: None,
            has_more: false,
            arrived: Instant::now(),
            cut: None,
            endless_listing: false,
            spoil: None,
        };
        let thread = thread::Builder::new()
            .name(format!("ftp-session-{id}"))
            .spawn(move || session.run())?;
        hub.change(|state| state.threads.push(thread));
        Ok(())
    }

    fn run(mut self) {
        let reader = {
            let (hub, id, control) = (self.hub.clone(), self.id, self.control.clone());
            let telnet = self.dialect.telnet;
            thread::Builder::new()
                .name(format!("ftp-reader-{id}"))
                .spawn(move || read_lines(&hub, id, &control, telnet))
        };
        let _ = self.converse();
        let reset = self.hub.look(|state| {
            state.lines.get(&self.id).is_some_and(|line| line.ended == Some(Ending::Reset))
        });
        hang_up(&self.control, if reset { Ending::Reset } else { Ending::Close }, true);
        if let Ok(reader) = reader {
            let _ = reader.join();
        }
        // The socket closes before the session counts as gone.
        let (hub, id) = (self.hub.clone(), self.id);
        drop(self);
        hub.change(|state| state.lines.remove(&id));
    }

    fn converse(&mut self) -> Result<(), Gone> {
        pass(&self.hub, self.id)?;
        self.arrived = Instant::now();
        if self.struck("CONNECT")? {
            self.greet()?;
        }
        while let Some((verb, argument)) = self.next_command()? {
            self.dialect = self.hub.look(|state| state.dialect.clone());
            self.cut = None;
            self.spoil = None;
            self.endless_listing = false;
            if self.struck(&verb)? {
                self.carry_out(&verb, &argument)?;
            }
            if verb == "QUIT" {
                break;
            }
        }
        Ok(())
    }

    fn greet(&mut self) -> Result<(), Gone> {
        let open = self.hub.look(|state| state.lines.len());
        if let Limit::AtGreeting(most, code, text) = self.dialect.limit
            && open > most
        {
            self.reply(code, text)?;
            return Err(Gone);
        }
        let mut greeting = self.dialect.greeting.clone();
        let last = greeting.pop().unwrap_or("Welcome");
        match greeting.split_first() {
            None => self.reply(220, last),
            // RFC 959 section 4.2 leaves the lines between free; most servers
            // repeat the code.
            Some((first, between)) => {
                let between: Vec<Vec<u8>> =
                    between.iter().map(|line| format!("220-{line}").into_bytes()).collect();
                self.reply_lines(220, first, &between, last)
            }
        }
    }

    /// Waits for the next command line; nothing when the client hung up.
    fn next_command(&mut self) -> Result<Option<(String, Vec<u8>)>, Gone> {
        let deadline = self.dialect.idle.map(|idle| Instant::now() + idle);
        let (id, has_more) = (self.id, self.has_more);
        self.hub.change(|state| {
            if let Some(line) = state.lines.get_mut(&id) {
                line.inside = has_more;
            }
        });
        let ready = |state: &mut State| {
            if is_over(state, id) {
                return Some(Err(Gone));
            }
            if state.frozen {
                return None;
            }
            let line = state.lines.get_mut(&id)?;
            match line.inbox.pop_front() {
                Some(received) => {
                    line.inside = true;
                    Some(Ok(Some(received)))
                }
                None => {
                    line.inside = has_more;
                    line.hung_up.then_some(Ok(None))
                }
            }
        };
        match self.hub.wait(deadline, ready) {
            Some(Ok(Some(received))) => {
                self.arrived = received.at;
                self.has_more = received.has_more;
                let (verb, argument) = split_command(&received.line);
                if verb == "ABOR" {
                    self.abort_seen();
                }
                Ok(Some((verb, argument)))
            }
            Some(Ok(None)) => Ok(None),
            Some(Err(gone)) => Err(gone),
            None => {
                self.reply(421, "Timeout.")?;
                Err(Gone)
            }
        }
    }

    /// Carries out what came with a transfer while that is still going on.
    pub fn answer_at_once(&mut self) -> Result<(), Gone> {
        let id = self.id;
        loop {
            let next = self.hub.change(|state| state.lines.get_mut(&id)?.inbox.pop_front());
            let Some(received) = next else { return Ok(()) };
            let (verb, argument) = split_command(&received.line);
            if self.struck(&verb)? {
                self.carry_out(&verb, &argument)?;
            }
        }
    }

    /// The transfer that an ABOR was for is over.
    fn abort_seen(&self) {
        self.hub.change(|state| {
            if let Some(line) = state.lines.get_mut(&self.id) {
                line.aborted = false;
            }
        });
    }

    /// Carries out the part of a fault that comes before the work. True when
    /// the work is still to be done.
    fn struck(&mut self, verb: &str) -> Result<bool, Gone> {
        let Some(what) = self.hub.change(|state| state.faults.take(verb)) else {
            return Ok(true);
        };
        self.cut = Cut::of(&what);
        match what {
            What::Reply(code, text) => {
                self.way = Way::Unset;
                self.reply(code, text)?;
                return if verb == "CONNECT" { Err(Gone) } else { Ok(false) };
            }
            What::Close => return Err(Gone),
            What::Reset => return self.reset(),
            What::Silence => {
                wait_released(&self.hub, self.id)?;
                return Ok(false);
            }
            What::Delay(time) => wait_for(&self.hub, self.id, Instant::now() + time)?,
            What::Garbage(bytes) => {
                self.write(bytes)?;
                return Ok(false);
            }
            What::PreReply(code, text) => self.write(&line_of(code, text.as_bytes()))?,
            What::EndlessListing => self.endless_listing = true,
            _ if self.cut.is_some() => {}
            late => self.spoil = Some(late),
        }
        Ok(true)
    }

    /// Ends the session by RST.
    pub fn reset<R>(&self) -> Result<R, Gone> {
        self.hub.change(|state| {
            if let Some(line) = state.lines.get_mut(&self.id) {
                line.ended = Some(Ending::Reset);
            }
        });
        Err(Gone)
    }

    pub fn reply(&mut self, code: u16, text: impl AsRef<[u8]>) -> Result<(), Gone> {
        self.send(code, &line_of(code, text.as_ref()))
    }

    /// A multi-line reply; `between` comes as it is.
    pub fn reply_lines(
        &mut self,
        code: u16,
        first: &str,
        between: &[Vec<u8>],
        last: &str,
    ) -> Result<(), Gone> {
        let mut bytes = format!("{code}-{first}\r\n").into_bytes();
        for line in between {
            bytes.extend_from_slice(line);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(&line_of(code, last.as_bytes()));
        self.send(code, &bytes)
    }

    fn send(&mut self, code: u16, bytes: &[u8]) -> Result<(), Gone> {
        pass(&self.hub, self.id)?;
        let delay = self.hub.look(|state| state.delay);
        if !delay.is_zero() {
            wait_for(&self.hub, self.id, self.arrived + delay)?;
            pass(&self.hub, self.id)?;
        }
        // A 1xx is not the final reply: RFC 959 section 4.2.1.
        let spoil = if code < 200 { None } else { self.spoil.take() };
        match spoil {
            Some(What::LoseReply) => Err(Gone),
            Some(What::CutReply(length)) => {
                self.write(&bytes[..length.min(bytes.len())])?;
                Err(Gone)
            }
            Some(What::DoubleReply) => self.write(&[bytes, bytes].concat()),
            Some(What::SplitReply) => bytes.chunks(1).try_for_each(|byte| self.write(byte)),
            Some(What::HoldReply(time)) => {
                wait_for(&self.hub, self.id, Instant::now() + time)?;
                self.write(bytes)
            }
            Some(What::EndlessReply) => {
                let line = format!("{code}-This goes on and on and on and on and on.\r\n");
                let block = line.repeat(100).into_bytes();
                loop {
                    self.write(&block)?;
                }
            }
            _ => self.write(bytes),
        }
    }

    fn write(&self, bytes: &[u8]) -> Result<(), Gone> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match (&*self.control).write(rest) {
                Ok(length) => rest = &rest[length..],
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock
                            | io::ErrorKind::TimedOut
                            | io::ErrorKind::Interrupted
                    ) =>
                {
                    if self.hub.look(|state| is_over(state, self.id)) {
                        return Err(Gone);
                    }
                }
                Err(_) => return Err(Gone),
            }
        }
        Ok(())
    }
}

fn line_of(code: u16, text: &[u8]) -> Vec<u8> {
    [format!("{code} ").as_bytes(), text, b"\r\n"].concat()
}

/// The verb in capitals, and everything after the one blank that follows it.
fn split_command(line: &[u8]) -> (String, Vec<u8>) {
    let end = line.iter().position(|byte| *byte == b' ').unwrap_or(line.len());
    let verb = String::from_utf8_lossy(&line[..end]).to_ascii_uppercase();
    (verb, line.get(end + 1..).unwrap_or_default().to_vec())
}

/// Records and queues command lines until the client hangs up.
fn read_lines(hub: &Hub, id: u64, control: &TcpStream, telnet: bool) {
    let mut input = BufReader::new(control);
    let mut raw = Vec::new();
    let mut segment = 0;
    loop {
        raw.clear();
        if input.buffer().is_empty() {
            segment += 1;
        }
        match read_line(&mut input, &mut raw) {
            Ok(true) => {}
            Ok(false) | Err(_) => break,
        }
        let line = if telnet { without_telnet(&raw) } else { without_interrupt(&raw) };
        let (verb, _) = split_command(&line);
        hub.change(|state| {
            let text = if verb == "PASS" { "PASS ***".to_string() } else { printable(&line) };
            state.commands.push(Command { session: id, segment, verb: verb.clone(), line: text });
            let Some(entry) = state.lines.get_mut(&id) else { return };
            let has_more = input.buffer().contains(&b'\n');
            entry.inbox.push_back(Received { line, at: Instant::now(), has_more });
            if verb == "ABOR" {
                entry.aborted = true;
                if let Some(data) = entry.data.upgrade() {
                    let _ = data.shutdown(Shutdown::Both);
                }
                if let Some(passive) = entry.passive.upgrade() {
                    let _ = passive.shutdown(Shutdown::Both);
                }
            }
        });
    }
    hub.change(|state| {
        let Some(entry) = state.lines.get_mut(&id) else { return };
        entry.hung_up = true;
        // Nobody will come any more, unless the connection is on its way and
        // QUIT or a half-close was sent behind the transfer.
        if entry.inbox.is_empty()
            && let Some(passive) = entry.passive.upgrade()
        {
            let _ = passive.shutdown(Shutdown::Both);
        }
    });
}

/// One line without its CRLF or LF; false at the end of the connection.
fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    let mut limited = io::Read::take(&mut *input, MAX_LINE as u64);
    limited.read_until(b'\n', line)?;
    if line.pop() != Some(b'\n') {
        return Ok(false);
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(true)
}

const IAC: u8 = 255;

/// Takes Telnet commands out (RFC 854): IAC IAC is the byte 255, WILL, WONT,
/// DO and DONT (251 to 254) carry one more byte, all others none. CR NUL is CR.
fn without_telnet(raw: &[u8]) -> Vec<u8> {
    let mut rest: VecDeque<u8> = raw.iter().copied().collect();
    let mut line = Vec::with_capacity(raw.len());
    while let Some(byte) = rest.pop_front() {
        match byte {
            IAC => match rest.pop_front() {
                Some(IAC) => line.push(IAC),
                Some(251..=254) => drop(rest.pop_front()),
                _ => {}
            },
            b'\r' if rest.front() == Some(&0) => {
                rest.pop_front();
                line.push(b'\r');
            }
            byte => line.push(byte),
        }
    }
    line
}

/// vsftpd knows only the sequence that goes before ABOR: IAC IP IAC DM.
fn without_interrupt(raw: &[u8]) -> Vec<u8> {
    raw.strip_prefix(&[IAC, 244, IAC, 242]).unwrap_or(raw).to_vec()
}

/// For the record: printable ASCII as it is, the rest escaped.
fn printable(line: &[u8]) -> String {
    line.escape_ascii().to_string().replace("\\'", "'").replace("\\\"", "\"")
}
