//! Mounting and the wait for its end.
//!
//! Root mounts by mount(2) itself: fuser 0.18 leaves the type `fuse` without `.ftpfs` then, and
//! unmounts on its own account when a session is dropped, perhaps something else by that time.
//! Everybody else goes through fuser to fusermount3, which has the right to.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};

use super::{Kernel, KernelCache};
use crate::vfs::Vfs;

/// One request as large as the largest read (1 MiB). More was slower where it was measured: at
/// 4 MiB a read of 1 GiB over loopback took twice as long.
const READ_AHEAD_KIB: u32 = 1024;

/// How the kernel sees the mount.
#[derive(Clone, Debug)]
pub struct MountSettings {
    /// Shown as the source in the mount table; without secrets.
    pub source: String,
    pub read_only: bool,
    /// Other users may come in; the kernel then checks permission bits.
    pub allow_other: bool,
    /// No program is run from the mount.
    pub no_exec: bool,
    /// The server's facts are extended attributes. Otherwise the kernel is told that there are none,
    /// as `ls -l` asks for two or three of each file: of 20,000 that took 1.40 s instead of 0.66
    /// (ProFTPD 1.3.8, loopback), 0.98 instead of 0.21 (vsftpd 3.0.3).
    pub facts: bool,
    /// Loops that take requests, each busy while it waits for the server.
    pub threads: usize,
}

/// A mounted file system.
#[derive(Debug)]
pub struct Mounted {
    session: BackgroundSession,
    vfs: Arc<Vfs>,
}

/// Mounts the file system; it answers when this returns.
pub fn mount(vfs: Arc<Vfs>, mountpoint: &Path, settings: &MountSettings) -> io::Result<Mounted> {
    let kernel = Kernel { vfs: Arc::clone(&vfs), shows_facts: settings.facts };
    let acl = if settings.allow_other { SessionACL::All } else { SessionACL::Owner };
    let mut config = Config::default();
    config.acl = acl;
    config.n_threads = Some(settings.threads.max(2));
    config.clone_fd = true;
    let session = if is_root() {
        let device = mount_directly(mountpoint, settings)?;
        Session::from_fd(kernel, device, acl, config)?
    } else {
        config.mount_options = options(settings);
        Session::new(kernel, mountpoint, &config)?
    };
    let session = session.spawn()?;
    widen_read_ahead(mountpoint);
    Ok(Mounted { session, vfs })
}

impl Mounted {
    /// What the kernel remembers of it.
    pub fn kernel_cache(&self) -> KernelCache {
        KernelCache { notifier: self.session.notifier() }
    }

    /// Returns when the kernel's side has ended, by whatever unmounted it.
    pub fn wait(self) -> io::Result<()> {
        let Self { session, vfs } = self;
        let ended = session.join();
        drop(vfs);
        match ended {
            // A loop that has just been given a request when the connection ends is told so
            // (fuse_dev_do_read); the others read ENODEV, which fuser knows as the end. Seen about
            // once in 5,000 unmounts on a loaded machine, Linux 6.18.
            Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => Ok(()),
            ended => ended,
        }
    }
}

fn is_root() -> bool {
    // SAFETY: takes nothing, cannot fail (geteuid(2)).
    unsafe { libc::geteuid() == 0 }
}

/// The kernel offers 128 KiB of read-ahead and takes no more at INIT; root may widen it afterwards.
/// Without the right to, reading works as well, with more requests.
fn widen_read_ahead(mountpoint: &Path) {
    if !is_root() {
        return;
    }
    let widen = || {
        let device = std::fs::symlink_metadata(mountpoint)?.dev();
        let (major, minor) = (libc::major(device), libc::minor(device));
        let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
        std::fs::write(path, READ_AHEAD_KIB.to_string())
    };
    if let Err(error) = widen() {
        log::debug!("read-ahead stays as the kernel has it: {error}");
    }
}

/// For fusermount3.
fn options(settings: &MountSettings) -> Vec<MountOption> {
    let mut options = vec![
        // A comma would begin a further option (fuser 0.18 does not escape it).
        MountOption::FSName(settings.source.replace(',', "_")),
        MountOption::Subtype("ftpfs".into()),
        MountOption::NoDev,
        MountOption::NoSuid,
        MountOption::NoAtime,
    ];
    let optional = [
        (settings.read_only, MountOption::RO),
        (settings.no_exec, MountOption::NoExec),
        (settings.allow_other, MountOption::DefaultPermissions),
    ];
    options.extend(optional.into_iter().filter_map(|(wanted, option)| wanted.then_some(option)));
    options
}

/// mount(2) with the options of the kernel's fuse module (Documentation/filesystems/fuse.rst).
fn mount_directly(mountpoint: &Path, settings: &MountSettings) -> io::Result<OwnedFd> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
    let about = std::fs::metadata(mountpoint)?;
    let mut words = format!(
        "fd={},rootmode={:o},user_id={},group_id={}",
        device.as_raw_fd(),
        about.mode() & libc::S_IFMT,
        user_id(),
        group_id()
    );
    if settings.allow_other {
        words.push_str(",allow_other,default_permissions");
    }
    let optional = [(settings.read_only, libc::MS_RDONLY), (settings.no_exec, libc::MS_NOEXEC)];
    let flags = optional
        .iter()
        .filter(|(wanted, _)| *wanted)
        .fold(libc::MS_NODEV | libc::MS_NOSUID | libc::MS_NOATIME, |all, (_, flag)| all | flag);
    let source = CString::new(settings.source.as_str())?;
    let target = CString::new(mountpoint.as_os_str().as_bytes())?;
    let words = CString::new(words)?;
    // SAFETY: four NUL-ended strings that live until the call returns (mount(2)).
    let done = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            c"fuse.ftpfs".as_ptr(),
            flags,
            words.as_ptr().cast(),
        )
    };
    if done == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(device.into())
}

fn user_id() -> u32 {
    // SAFETY: takes nothing, cannot fail (getuid(2)).
    unsafe { libc::getuid() }
}

fn group_id() -> u32 {
    // SAFETY: takes nothing, cannot fail (getgid(2)).
    unsafe { libc::getgid() }
}
