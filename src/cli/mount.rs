//! `ftpfs mount`: checks, connects, mounts, serves, and ends with nothing lost.

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::config::MountConfig;
use super::control::{Ahead, Connections, Control, Report, Served, Unsent};
use super::daemon::{self, Ready};
use super::exit::{Failure, Status};
use super::{control, log as messages, mounts, pin, refresh, system};
use crate::ftp::{self, Pool};
use crate::fuse::{self, KernelCache, Mounted};
use crate::vfs::{self, Pending, Pinning, Refresh, Vfs};

pub(crate) fn run(config: MountConfig) -> Result<(), Failure> {
    check_mountpoint(&config)?;
    check_fuse(&config)?;
    if config.fake {
        return Ok(());
    }
    if let Some(path) = &config.log {
        messages::to_file(path)?;
    }
    if config.foreground {
        serve(&config, &mut Some(Ready::Foreground))
    } else {
        daemon::start(|ready| serve(&config, ready))
    }
}

/// Mounted here: a live mount is occupied, a dead one of ours is replaced.
fn check_mountpoint(config: &MountConfig) -> Result<(), Failure> {
    let path = &config.mountpoint;
    let unusable =
        |why: String| Failure::new(Status::MountPoint, format!("{}: {why}", path.display()));
    let mounted = mounts::at(path).map_err(|error| unusable(error.to_string()))?;
    if let Some(mount) = mounted {
        if mount.is_ours() && mount.is_dead() {
            log::warn!("{}: replacing a mount whose process has ended", path.display());
            system::unmount(path, true)
                .map_err(|error| unusable(format!("cannot remove the dead mount: {error}")))?;
        } else {
            let what = if mount.is_ours() { &mount.source } else { &mount.file_system };
            return Err(unusable(format!("{what} is mounted there already")));
        }
    }
    let found = fs::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => unusable("does not exist; make it with mkdir".into()),
        _ => unusable(error.to_string()),
    })?;
    if !found.is_dir() {
        return Err(unusable("is not a directory".into()));
    }
    let is_empty = || fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    if !config.non_empty && !is_empty() {
        return Err(unusable(
            "is not empty, and what it holds would be hidden; choose an empty directory, or say \
             -o nonempty"
                .into(),
        ));
    }
    Ok(())
}

fn check_fuse(config: &MountConfig) -> Result<(), Failure> {
    let missing = |why: &str| Failure::new(Status::Fuse, why);
    system::open_fuse_device().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => missing("/dev/fuse is missing: load FUSE with modprobe fuse"),
        _ => Failure::new(Status::Fuse, format!("/dev/fuse cannot be opened: {error}")),
    })?;
    if system::user_id() == 0 {
        return Ok(());
    }
    let on_path = |name: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|directory| directory.join(name).is_file())
    };
    if !on_path("fusermount3") {
        return Err(missing("fusermount3 is missing: install the package fuse3"));
    }
    let allows_others = || {
        let text = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
        text.lines().any(|line| line.trim() == "user_allow_other")
    };
    if config.settings.allow_other && !allows_others() {
        return Err(missing("allow_other needs the line user_allow_other in /etc/fuse.conf"));
    }
    Ok(())
}

/// Why the loop ends.
enum End {
    Unmounted(io::Result<()>),
    /// Programs hold files open, and we were told to end all the same.
    InUse,
    /// Told twice: nothing more is waited for.
    Forced,
}

/// From the first connection to the last upload. `ready` is taken when the mount answers.
fn serve(config: &MountConfig, ready: &mut Option<Ready>) -> Result<(), Failure> {
    // Registered before there is a mount that an early Ctrl-C could leave behind.
    let signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(|error| Failure::other(format!("signals: {error}")))?;
    let pool = Pool::open(config.target.clone()).map_err(|error| connect_failure(&error))?;
    make_private(&config.options.staging_dir)?;
    if let Some(dir) = &config.options.cache_dir {
        check_cache(dir)
            .map_err(|error| Failure::other(format!("--cache {}: {error}", dir.display())))?;
    }
    let vfs = Vfs::new(Arc::clone(&pool), config.options.clone())
        .map(Arc::new)
        .map_err(|error| local_failure(&config.options.staging_dir, &error))?;
    // Programs see what is unsent as it will be.
    let taken_up = if config.options.read_only { None } else { Some(vfs.take_up()) };
    let mounted = fuse::mount(Arc::clone(&vfs), &config.mountpoint, &config.settings)
        .map_err(|error| mount_failure(config, &error))?;
    vfs.start_write_back().map_err(|error| Failure::other(format!("threads: {error}")))?;
    let (tell, ends) = mpsc::channel();
    let kernel_cache = mounted.kernel_cache();
    watch(mounted, tell.clone());
    obey(signals, config.mountpoint.clone(), Arc::clone(&vfs), tell);
    let leave = Arc::new(AtomicBool::new(false));
    let state = State {
        config: config.clone(),
        vfs: Arc::clone(&vfs),
        kernel_cache,
        leave: Arc::clone(&leave),
    };
    let control = Control::listen(Arc::new(state))
        .map_err(|error| log::warn!("ftpfs status will not know this mount: {error}"));
    if let Some(taken_up) = taken_up {
        // In the background: a mount must not wait for gigabytes of yesterday.
        let vfs = Arc::clone(&vfs);
        std::thread::spawn(move || {
            vfs.try_patching();
            vfs.send_taken_up(taken_up);
        });
    }
    log::info!("{} is mounted at {}", config.settings.source, config.mountpoint.display());
    if ready.take().is_some_and(|ready| ready.tell().is_err()) {
        // Who typed the command has ended it meanwhile.
        let _ = system::unmount(&config.mountpoint, true);
    }
    let end = ends.recv().unwrap_or(End::Forced);
    if let End::Unmounted(Err(error)) = &end {
        log::error!("the connection to the kernel broke: {error}");
    }
    if !matches!(end, End::Unmounted(Ok(()))) {
        let _ = system::unmount(&config.mountpoint, true);
    }
    let sends = !matches!(end, End::Forced) && !leave.load(Ordering::Relaxed);
    let sent = if sends { finish(&vfs, vfs.drain()) } else { leave_unsent(&vfs) };
    drop(control);
    sent
}

/// Sends what is left; what the server does not take stays on the local disk.
fn finish(vfs: &Vfs, sent: vfs::Result<()>) -> Result<(), Failure> {
    vfs.release_all();
    vfs.settle_cache();
    let kept = vfs.keep_unsent();
    vfs.pool().close();
    for pending in &kept {
        log::error!(
            "not on the server: {}; kept as {} and sent at the next mount",
            pending.path,
            pending.local.display()
        );
    }
    let why = sent.as_ref().err().map_or_else(String::new, |error| format!(": {error}"));
    match kept.first() {
        Some(first) => Err(Failure::new(
            Status::Pending,
            format!(
                "{} files are not on the server, such as {}, kept as {} and sent at the next \
                 mount{why}",
                kept.len(),
                first.path,
                first.local.display()
            ),
        )),
        None => sent.map_err(|error| Failure::other(error.to_string())),
    }
}

/// What is unsent stays on the local disk, as the user wished.
fn leave_unsent(vfs: &Vfs) -> Result<(), Failure> {
    vfs.settle_cache();
    let kept = vfs.keep_unsent();
    vfs.pool().close();
    for pending in kept {
        log::warn!("{} is kept here and sent at the next mount", pending.path);
    }
    Ok(())
}

/// Tells when the kernel's side ends, by whatever unmounted it.
fn watch(mounted: Mounted, tell: Sender<End>) {
    std::thread::spawn(move || tell.send(End::Unmounted(mounted.wait())));
}

/// The first signal sends everything and unmounts; a second one while that lasts stops waiting.
fn obey(mut signals: Signals, mountpoint: std::path::PathBuf, vfs: Arc<Vfs>, tell: Sender<End>) {
    std::thread::spawn(move || {
        let mut signals = signals.forever();
        if signals.next().is_none() {
            return;
        }
        let ending = tell.clone();
        std::thread::spawn(move || {
            // `finish` tries again and tells; here it only comes before the unmounting, so that
            // `umount` of a busy mount still finds everything sent.
            let _ = vfs.drain();
            match system::unmount_soon(&mountpoint) {
                Ok(()) => {}
                Err(error) => {
                    let users = mounts::users(&mountpoint, 3).join(", ");
                    log::warn!("unmounted while in use ({error}) by {users}");
                    let _ = ending.send(End::InUse);
                }
            }
        });
        if signals.next().is_some() {
            let _ = tell.send(End::Forced);
        }
    });
}

/// Makes a directory, and those above it that are missing, for this user alone.
fn make_private(path: &Path) -> Result<(), Failure> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| local_failure(path, &error))
}

/// Somebody else who may write there could put bytes into our files.
fn check_cache(dir: &Path) -> io::Result<()> {
    let blocks = dir.join("blocks");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&blocks)?;
    for place in [dir, &blocks] {
        let found = fs::symlink_metadata(place)?;
        if found.uid() != system::user_id() || found.mode() & 0o022 != 0 {
            let message = "must be yours, and writable for nobody else";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
    }
    tempfile::tempfile_in(&blocks).map(drop)
}

fn local_failure(path: &Path, error: &io::Error) -> Failure {
    Failure::other(format!("{}, where files being written are kept: {error}", path.display()))
}

fn connect_failure(error: &ftp::Error) -> Failure {
    let status = match error {
        ftp::Error::Login(_) | ftp::Error::NeedAccount(_) => Status::Login,
        ftp::Error::NoDirectory(_) => Status::Directory,
        ftp::Error::Tls(_) | ftp::Error::DataTls(_) => Status::Tls,
        ftp::Error::BadName(_) => Status::Usage,
        ftp::Error::Refused(_)
        | ftp::Error::Closing(_)
        | ftp::Error::Broken(_)
        | ftp::Error::TimedOut(_)
        | ftp::Error::Resolve { .. }
        | ftp::Error::Connect { .. }
        | ftp::Error::TooMany(_)
        | ftp::Error::Down(_)
        | ftp::Error::WrongSize { .. }
        | ftp::Error::Cancelled
        | ftp::Error::ListingTooLarge => Status::Connect,
    };
    Failure::new(status, error.to_string())
}

fn mount_failure(config: &MountConfig, error: &io::Error) -> Failure {
    let path = config.mountpoint.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            Failure::new(Status::Fuse, format!("not allowed to mount at {path}: {error}"))
        }
        _ => Failure::new(Status::Fuse, format!("cannot mount at {path}: {error}")),
    }
}

/// What `status` and `umount` ask about.
struct State {
    config: MountConfig,
    vfs: Arc<Vfs>,
    kernel_cache: KernelCache,
    /// Nothing is sent when the mount ends.
    leave: Arc<AtomicBool>,
}

impl Served for State {
    fn report(&self) -> Report {
        let pool = self.vfs.pool();
        let snapshot = pool.snapshot();
        let ahead = self.vfs.ahead();
        Report {
            mountpoint: self.config.mountpoint.clone(),
            source: self.config.settings.source.clone(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            read_only: self.config.options.read_only,
            ttl_seconds: self.config.options.ttl.as_secs_f64(),
            welcome: pool.welcome(),
            protection: pool.protection(),
            trouble: pool.trouble(),
            connections: Connections {
                limit: snapshot.limit,
                open: snapshot.open,
                free: snapshot.free,
                parked: snapshot.parked,
                leased: snapshot.leased,
            },
            read_ahead: Ahead {
                fetched_bytes: ahead.fetched,
                read_bytes: ahead.read,
                unread_bytes: ahead.unread,
            },
            cache: self.vfs.cache_report().map(|cache| control::Cache {
                directory: cache.dir,
                limit_bytes: cache.limit,
                used_bytes: cache.used,
                hit_bytes: cache.hits,
                miss_bytes: cache.misses,
                pins: cache.pins.iter().map(|pin| shown(pin)).collect(),
            }),
            pending: self.vfs.pending().into_iter().map(unsent).collect(),
        }
    }

    fn drain(&self) -> Result<(), String> {
        self.vfs.drain().map_err(|error| error.to_string())
    }

    fn leave(&self) {
        self.leave.store(true, Ordering::Relaxed);
    }

    fn refresh(&self, path: &[u8], how: Refresh) -> Result<(), Failure> {
        let mut outdated = Vec::new();
        let result = self.vfs.refresh(path, how, &mut outdated);
        self.kernel_cache.forget(&outdated);
        result.map_err(|error| Failure::new(refresh::status(&error), error.to_string()))
    }

    fn pin(&self, path: &[u8], told: &dyn Fn(Pinning) -> ControlFlow<()>) -> Result<(), Failure> {
        pin::outcome(self.vfs.pin(path, told))
    }

    fn unpin(&self, path: &[u8]) -> Result<(), Failure> {
        self.vfs.unpin_path(path).map_err(|error| match error {
            vfs::Error::NotFound => Failure::new(Status::Directory, "is not pinned"),
            error => pin::failure(&error),
        })
    }
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

fn unsent(Pending { path, bytes, error, local }: Pending) -> control::Unsent {
    Unsent { path, bytes, error, local }
}
