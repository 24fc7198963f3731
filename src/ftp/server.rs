//! What is known of the server: what FEAT promised and what it turned out to do.
//!
//! Shared by all sessions; grows while they work. Every entry is learnt from a reply, never from
//! the text of a welcome message.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::flow::Route;
use super::path::RemotePath;

/// A habit of the server that is found out by trying once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Habit {
    /// Answers EPSV (RFC 2428) with a port.
    Epsv,
    /// Lists by MLSD (RFC 3659) as FEAT says.
    Mlsd,
    /// Tells the facts that OPTS MLST chose.
    Facts,
    /// `LIST -a` shows hidden files instead of looking for a file called `-a`.
    ListAll,
    /// Sets times by MFMT.
    Mfmt,
    /// Sets times by MDTM with two arguments (vsftpd, Serv-U, IIS).
    MdtmSet,
    /// Sets times by `SITE UTIME` (Pure-FTPd, ProFTPD's mod_site_misc).
    SiteUtime,
    /// Sets permission bits by `SITE CHMOD`.
    SiteChmod,
    /// Makes symbolic links by `SITE SYMLINK` (ProFTPD's mod_site_misc).
    SiteSymlink,
    /// Renames over an existing file; IIS and FileZilla Server refuse.
    RenameOver,
    /// Begins a transfer at an offset (REST, RFC 3659 §5).
    Rest,
    /// Answers SIZE (RFC 3659 §4).
    Size,
    /// Answers MDTM (RFC 3659 §3).
    Mdtm,
    /// Appends by APPE (RFC 959 §4.1.3).
    Appe,
    /// Keeps what lies behind the bytes that REST and STOR write.
    KeepsTail,
    /// Cuts what lies behind the bytes that REST and STOR write.
    CutsTail,
    /// Some file could not be replaced by a rename.
    InPlace,
    /// Answers several commands sent in one segment, in order. Believed until it fails.
    Pipelines,
    /// Leaves commands that came with a transfer until that is over. pyftpdlib 2.0.1 does not: it
    /// answers them while it receives, so that the size it tells is that of the moment. Yes: a
    /// NOOP was answered after the end of a download that it came with.
    Queues,
    /// Sends a whole file though our end of its data connection is closed from the beginning on.
    /// Believed until it fails.
    EarlyEnd,
    /// Begins TLS by AUTH TLS (RFC 4217).
    Auth,
    /// Resumes TLS 1.3 sessions on data connections as often as it asks for it.
    Tls13,
}

/// How many habits there are.
const HABITS: usize = Habit::Tls13 as usize + 1;

/// What is known of one habit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Unknown = 0,
    Yes = 1,
    No = 2,
}

/// Everything learnt about one server.
#[derive(Debug)]
pub(crate) struct Server {
    /// FEAT lines in capitals, first word only; empty when the server knows no FEAT (RFC 2389).
    features: Mutex<HashSet<String>>,
    /// One [`Verdict`] for each [`Habit`].
    habits: [AtomicU8; HABITS],
    /// Where paths of the mount begin: the directory asked for, below PWD of the first login.
    base: Mutex<Option<RemotePath>>,
    /// Local time of LIST minus UTC, in seconds; `None` until one MDTM told.
    zone_offset: Mutex<Option<i32>>,
    /// The greeting, for `-v`.
    welcome: Mutex<String>,
    /// How connections are protected, for `status`.
    protection: Mutex<String>,
    /// Listing lines that no parser understood, so far.
    odd_lines: AtomicUsize,
    /// A session finds out about [`Habit::Queues`].
    is_probed: AtomicBool,
    /// The line to it.
    route: Route,
}

/// The right of one session to find out whether the server leaves commands alone until a transfer is
/// over. Ends with the value, or the session that has it.
pub(crate) struct Probe(Arc<Server>);

impl Drop for Probe {
    fn drop(&mut self) {
        self.0.is_probed.store(false, Ordering::Release);
    }
}

impl Server {
    /// `None` while another session finds out.
    pub(crate) fn probe(self: &Arc<Self>) -> Option<Probe> {
        let was_probed = self.is_probed.swap(true, Ordering::AcqRel);
        (!was_probed).then(|| Probe(Arc::clone(self)))
    }

    pub(crate) fn new() -> Self {
        Self {
            features: Mutex::default(),
            habits: [const { AtomicU8::new(Verdict::Unknown as u8) }; HABITS],
            base: Mutex::default(),
            zone_offset: Mutex::default(),
            welcome: Mutex::default(),
            protection: Mutex::default(),
            odd_lines: AtomicUsize::new(0),
            is_probed: AtomicBool::new(false),
            route: Route::new(),
        }
    }

    pub(crate) fn route(&self) -> &Route {
        &self.route
    }

    pub(crate) fn verdict(&self, habit: Habit) -> Verdict {
        match self.habits.get(habit as usize).map_or(0, |cell| cell.load(Ordering::Relaxed)) {
            1 => Verdict::Yes,
            2 => Verdict::No,
            _ => Verdict::Unknown,
        }
    }

    pub(crate) fn learn(&self, habit: Habit, verdict: Verdict) {
        if let Some(cell) = self.habits.get(habit as usize) {
            let before = cell.swap(verdict as u8, Ordering::Relaxed);
            if before != verdict as u8 {
                log::info!("learnt about the server: {habit:?} {verdict:?}");
            }
        }
    }

    /// Worth trying: not known to fail.
    pub(crate) fn may(&self, habit: Habit) -> bool {
        self.verdict(habit) != Verdict::No
    }

    /// Takes the lines of a FEAT reply; called before and after login, as some servers tell the
    /// whole truth only to those who are logged in.
    pub(crate) fn learn_features(&self, body: &[u8]) {
        let text = String::from_utf8_lossy(body).to_uppercase();
        let mut features = lock(&self.features);
        for line in text.lines().filter(|line| line.starts_with(' ')) {
            if let Some(word) = line.split_whitespace().next() {
                features.insert(word.to_owned());
            }
            features.insert(line.trim().to_owned());
        }
        let known = |word: &str| features.contains(word);
        let mlsd = known("MLSD") || known("MLST");
        let verdicts = [(Habit::Mlsd, mlsd), (Habit::Mfmt, known("MFMT"))];
        for (habit, offered) in verdicts {
            let verdict = if offered { Verdict::Yes } else { Verdict::No };
            if self.verdict(habit) != Verdict::No || offered {
                self.learn(habit, verdict);
            }
        }
    }

    /// Is this word, or this whole line, in the FEAT reply?
    pub(crate) fn offers(&self, feature: &str) -> bool {
        lock(&self.features).contains(feature)
    }

    /// The FEAT line of MLST with its facts, `*` after those that are on (RFC 3659 §7.8).
    pub(crate) fn mlst_line(&self) -> Option<String> {
        lock(&self.features).iter().find(|line| line.starts_with("MLST ")).cloned()
    }

    pub(crate) fn base(&self) -> Option<RemotePath> {
        lock(&self.base).clone()
    }

    pub(crate) fn set_base(&self, base: RemotePath) {
        *lock(&self.base) = Some(base);
    }

    pub(crate) fn zone_offset(&self) -> Option<i32> {
        *lock(&self.zone_offset)
    }

    pub(crate) fn set_zone_offset(&self, seconds: i32) {
        *lock(&self.zone_offset) = Some(seconds);
    }

    pub(crate) fn welcome(&self) -> String {
        lock(&self.welcome).clone()
    }

    pub(crate) fn set_welcome(&self, text: String) {
        *lock(&self.welcome) = text;
    }

    /// Did the server answer FEAT?
    pub(crate) fn has_features(&self) -> bool {
        !lock(&self.features).is_empty()
    }

    /// Empty where nothing is protected.
    pub(crate) fn protection(&self) -> String {
        lock(&self.protection).clone()
    }

    pub(crate) fn set_protection(&self, text: String) {
        *lock(&self.protection) = text;
    }

    /// Counts listing lines that were not understood and says so once.
    pub(crate) fn count_odd_lines(&self, count: usize, sample: &[u8]) {
        if count > 0 && self.odd_lines.fetch_add(count, Ordering::Relaxed) == 0 {
            log::warn!(
                "a listing line was not understood and is not shown (said once): {}",
                sample.escape_ascii()
            );
        }
    }
}

/// A lock that goes on after a panic elsewhere: every critical section here only copies values.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feat_decides_what_is_tried() {
        let server = Server::new();
        server.learn_features(
            b"211-Features:\r\n MDTM\r\n MLST type*;size*;\r\n UTF8\r\n211 End\r\n",
        );
        assert_eq!(server.verdict(Habit::Mlsd), Verdict::Yes);
        assert_eq!(server.verdict(Habit::Mfmt), Verdict::No);
        assert!(server.offers("UTF8") && !server.offers("TVFS"));
        assert_eq!(server.mlst_line().as_deref(), Some("MLST TYPE*;SIZE*;"));
        server.learn_features(b"211-Features:\r\n MFMT\r\n211 End\r\n");
        assert_eq!(server.verdict(Habit::Mfmt), Verdict::Yes);
    }
}
