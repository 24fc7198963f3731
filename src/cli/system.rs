//! The calls of the operating system for which the standard library has no word.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// The user whose rights count.
pub(crate) fn user_id() -> u32 {
    // SAFETY: takes nothing, cannot fail (geteuid(2)).
    unsafe { libc::geteuid() }
}

/// The group whose rights count.
pub(crate) fn group_id() -> u32 {
    // SAFETY: takes nothing, cannot fail (getegid(2)).
    unsafe { libc::getegid() }
}

/// The file mode creation mask; reading it from /proc does not change it, as umask(2) would.
pub(crate) fn umask() -> u16 {
    fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let value = status.lines().find_map(|line| line.strip_prefix("Umask:"))?;
            u16::from_str_radix(value.trim(), 8).ok()
        })
        .unwrap_or(0o022)
}

/// Which of the two a process is after [`fork`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Parent,
    Child,
}

/// Splits the process. Only while it has one thread.
pub(crate) fn fork() -> io::Result<Side> {
    // SAFETY: fork(2) of a process with one thread leaves the child a whole copy: no lock can be
    // held by a thread that does not exist there. `daemon` calls this before any thread starts.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        _ => Ok(Side::Parent),
    }
}

/// Leaves the terminal: its Ctrl-C and its end no longer reach this process.
pub(crate) fn leave_terminal() -> io::Result<()> {
    // SAFETY: takes nothing (setsid(2)).
    check(unsafe { libc::setsid() })?;
    std::env::set_current_dir("/")
}

/// Points standard input, output and error to nowhere.
pub(crate) fn close_standard_streams() -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    for stream in 0..=2 {
        // SAFETY: both are open descriptors; dup2(2) replaces the second one atomically.
        check(unsafe { libc::dup2(null.as_raw_fd(), stream) })?;
    }
    Ok(())
}

/// No core dump and no debugger of the same user: the password is in memory.
pub(crate) fn forbid_core_dump() -> io::Result<()> {
    // SAFETY: PR_SET_DUMPABLE takes one number (prctl(2)).
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })
}

/// Gives large blocks back to the system when they are freed, and keeps small ones in two heaps
/// instead of one for each thread: a daemon that once read with many threads stays small.
pub(crate) fn limit_heap() {
    // The C library's own first value; naming it stops it from growing to 32 MiB with use
    // (mallopt(3)).
    const MMAP_THRESHOLD: libc::c_int = 128 * 1024;
    #[cfg(target_env = "gnu")]
    // SAFETY: takes two numbers; called before any thread starts.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD);
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// How long a mount in use is waited for: a file manager that looks into a folder just now, or a
/// child of a program between its fork and exec, is done in milliseconds.
const MOMENT: Duration = Duration::from_secs(2);

/// Unmounts, once those who use it only for a moment are done.
pub(crate) fn unmount_soon(mountpoint: &Path) -> io::Result<()> {
    let started = Instant::now();
    loop {
        match unmount(mountpoint, false) {
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy && started.elapsed() < MOMENT =>
            {
                // A twentieth of a second is not noticed by whoever types the command.
                std::thread::sleep(Duration::from_millis(50));
            }
            result => return result,
        }
    }
}

/// Unmounts; `lazy` also while programs use it (MNT_DETACH).
pub(crate) fn unmount(mountpoint: &Path, lazy: bool) -> io::Result<()> {
    let path = CString::new(mountpoint.as_os_str().as_bytes())?;
    let flags = libc::UMOUNT_NOFOLLOW | if lazy { libc::MNT_DETACH } else { 0 };
    // SAFETY: the path is a NUL-ended string that lives until the call returns (umount2(2)).
    let done = check(unsafe { libc::umount2(path.as_ptr(), flags) });
    match done {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => fusermount(mountpoint, lazy),
        result => result,
    }
}

/// The set-uid helper of FUSE, for those who are not root.
fn fusermount(mountpoint: &Path, lazy: bool) -> io::Result<()> {
    let flag = if lazy { "-uz" } else { "-u" };
    let output = std::process::Command::new("fusermount3")
        .args([flag, "--"])
        .arg(mountpoint)
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("fusermount3: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let kind =
        if said.contains("busy") { io::ErrorKind::ResourceBusy } else { io::ErrorKind::Other };
    Err(io::Error::new(kind, said))
}

/// Lets `change` overwrite the bytes of the argument list that /proc shows, in place.
pub(crate) fn change_arguments(change: impl FnOnce(&mut [u8])) {
    let Some((start, length)) = arguments_in_memory() else { return };
    // SAFETY: the kernel tells (proc(5), stat fields 48 and 49) where the argument strings of this
    // process lie: on the stack above main, writable, mapped for its whole life. The standard
    // library has copied nothing by reference but reads them anew in `args_os`, and no other
    // thread runs yet.
    change(unsafe { std::slice::from_raw_parts_mut(start as *mut u8, length) });
}

fn arguments_in_memory() -> Option<(usize, usize)> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is a name in brackets that may hold blanks; the third follows.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(48 - 3);
    let start: usize = fields.next()?.parse().ok()?;
    let end: usize = fields.next()?.parse().ok()?;
    (start != 0).then(|| end.checked_sub(start).map(|length| (start, length)))?
}

/// Is there such a process, and has it not ended already (a zombie has)?
pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state is the first field behind the name in brackets (proc(5)).
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Asks the file system itself, which no cache answers for.
pub(crate) fn statfs(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut about = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the path is NUL-ended; the kernel writes one struct to `about` (statfs(2)), which is
    // not read.
    check(unsafe { libc::statfs(path.as_ptr(), about.as_mut_ptr()) })
}

/// The device through which file systems of programs work.
pub(crate) fn open_fuse_device() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/fuse")
}

/// The user at the other end of a Unix socket.
pub(crate) fn peer_user(socket: &std::os::unix::net::UnixStream) -> io::Result<u32> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = libc::socklen_t::try_from(size_of::<libc::ucred>()).unwrap_or(0);
    // SAFETY: the descriptor is open; the kernel writes at most `length` bytes to `peer`, whose
    // size that is (unix(7), SO_PEERCRED).
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            std::ptr::from_mut(&mut peer).cast(),
            &raw mut length,
        )
    })?;
    Ok(peer.uid)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
