//! `ftpfs` as a process of its own, and what can be seen of it.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// Nothing announces what is waited for here, so it is looked at this often.
const LOOK: Duration = Duration::from_millis(50);

pub(crate) struct Mount {
    ftpfs: PathBuf,
    work: PathBuf,
    pub(crate) directory: PathBuf,
    child: Child,
}

/// What the process uses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    pub(crate) rss_kib: usize,
    pub(crate) threads: usize,
    pub(crate) descriptors: usize,
    pub(crate) connections: usize,
    /// Connections that are in nobody's hands.
    pub(crate) leased: usize,
    /// Files that are not on the server.
    pub(crate) pending: usize,
}

impl Mount {
    pub(crate) fn start(
        ftpfs: &Path,
        work: &Path,
        server: SocketAddr,
        timeout: Duration,
        log: Option<&Path>,
    ) -> io::Result<Self> {
        let directory = work.join("mnt");
        for name in ["mnt", "home", "run", "cache"] {
            fs::create_dir_all(work.join(name))?;
        }
        let mut command = Command::new(ftpfs);
        private(&mut command, work);
        command.args(["mount", "--foreground", "--timeout", &timeout.as_secs().to_string()]);
        if let Some(log) = log {
            command.arg("-vv").arg("--log").arg(log);
        }
        let messages = fs::File::create(work.join("messages"))?;
        let child = command
            .arg(format!("ftp://user:password@{server}/"))
            .arg(&directory)
            .stdin(Stdio::null())
            .stdout(messages.try_clone()?)
            .stderr(messages)
            .spawn()?;
        // For who cleans up if this program is killed.
        fs::write(work.join("pid"), child.id().to_string())?;
        let mut mount = Self { ftpfs: ftpfs.to_owned(), work: work.to_owned(), directory, child };
        let mounted =
            wait(Duration::from_secs(20), || mount.is_mounted() || mount.ended().is_some());
        if mounted && mount.ended().is_none() {
            return Ok(mount);
        }
        let _ = mount.child.kill();
        Err(io::Error::other(format!("ftpfs does not mount: {}", mount.messages())))
    }

    /// What it said on its standard error.
    pub(crate) fn messages(&self) -> String {
        fs::read_to_string(self.work.join("messages")).unwrap_or_default()
    }

    pub(crate) fn is_mounted(&self) -> bool {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let wanted = self.directory.to_string_lossy();
        mounts.lines().any(|line| line.split(' ').nth(4) == Some(&*wanted))
    }

    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    fn run(&self, words: &[&str]) -> io::Result<Output> {
        let mut command = Command::new(&self.ftpfs);
        private(&mut command, &self.work);
        command.args(words).arg(&self.directory).stdin(Stdio::null()).output()
    }

    pub(crate) fn usage(&self) -> io::Result<Usage> {
        let process = PathBuf::from(format!("/proc/{}", self.child.id()));
        let status = fs::read_to_string(process.join("status"))?;
        let number = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        let descriptors = fs::read_dir(process.join("fd"))?.count();
        let report = self.run(&["status", "--json"])?.stdout;
        let report: serde_json::Value = serde_json::from_slice(&report)?;
        let count = |value: &serde_json::Value| value.as_u64().unwrap_or(0) as usize;
        let connections = &report[0]["connections"];
        Ok(Usage {
            rss_kib: number("VmRSS:"),
            threads: number("Threads:"),
            descriptors,
            connections: count(&connections["open"]),
            leased: count(&connections["leased"]),
            pending: report[0]["pending"].as_array().map_or(0, Vec::len),
        })
    }

    /// What the descriptors of the process are, a line each.
    pub(crate) fn descriptors(&self) -> Vec<String> {
        let directory = format!("/proc/{}/fd", self.child.id());
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| fs::read_link(entry.path()).ok())
            .map(|target| target.display().to_string())
            .collect()
    }

    /// `ftpfs umount`; its message if it fails.
    pub(crate) fn umount(&self) -> Result<(), String> {
        match self.run(&["umount"]) {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let first: Vec<&str> = said.lines().take(6).collect();
                Err(format!("ftpfs umount: {}: {} …", output.status, first.join("\n    ")))
            }
            Err(error) => Err(format!("ftpfs umount: {error}")),
        }
    }

    /// After the unmounting: everything of it that is still there.
    pub(crate) fn left_over(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        if self.is_mounted() {
            left.push("the mount is still there".to_owned());
        }
        wait(Duration::from_secs(10), || self.ended().is_some());
        match self.ended() {
            None => left.push("the process has not ended".into()),
            Some(status) if !status.success() => left.push(format!("the process: {status}")),
            Some(_) => {}
        }
        for directory in ["run", "cache"] {
            for path in files_below(&self.work.join(directory)) {
                left.push(format!("{} is left", path.display()));
            }
        }
        left
    }

    /// Ends it whatever it does: the calls that hang in it fail then.
    pub(crate) fn destroy(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if self.is_mounted() {
            let _ = Command::new("umount").arg("-l").arg(&self.directory).status();
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.ended().is_none() || self.is_mounted() {
            self.destroy();
        }
        let _ = fs::remove_file(self.work.join("pid"));
    }
}

/// Nothing of the user's own settings, and nothing left in them.
fn private(command: &mut Command, work: &Path) {
    command
        .env("HOME", work.join("home"))
        .env("XDG_RUNTIME_DIR", work.join("run"))
        .env("XDG_CACHE_HOME", work.join("cache"));
}

/// Looks until it is so; false if it is not by then.
pub(crate) fn wait(patience: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + patience;
    loop {
        if is_so() {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(LOOK);
    }
}

pub(crate) fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found
}
