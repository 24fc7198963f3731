//! What is in the cache directory, and what goes when its room is used up. The choice is pure.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// One local file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) path: PathBuf,
    /// On the disk; holes do not count.
    pub(crate) bytes: u64,
    /// When it was opened or written last.
    pub(crate) used: SystemTime,
}

/// Everything in a directory.
pub(crate) fn all(dir: &Path) -> io::Result<Vec<Kept>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // One that has just gone takes up nothing.
        let Ok(about) = entry.metadata() else { continue };
        let used = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        all.push(Kept { path: entry.path(), bytes: about.blocks() * 512, used });
    }
    Ok(all)
}

/// Those that go so that `bytes` become free: what was used longest ago first, nothing that is to
/// `stay`.
pub(crate) fn victims(mut all: Vec<Kept>, bytes: u64, stay: impl Fn(&Path) -> bool) -> Vec<Kept> {
    all.sort_by(|a, b| (a.used, &a.path).cmp(&(b.used, &b.path)));
    let mut freed = 0;
    let mut victims = Vec::new();
    for kept in all {
        if freed >= bytes {
            break;
        }
        if !stay(&kept.path) {
            freed += kept.bytes;
            victims.push(kept);
        }
    }
    victims
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Enough goes if there is enough, never what stays, nothing that was used later than
        /// something that could have gone instead, and no more than needed.
        #[test]
        fn the_oldest_go_and_no_more_than_needed(
            files in proptest::collection::vec((0_u64..50, 0_u64..9, any::<bool>()), 0..20),
            wanted in 0_u64..300,
        ) {
            let all: Vec<Kept> = files.iter().enumerate().map(|(index, (bytes, age, _))| Kept {
                path: index.to_string().into(),
                bytes: *bytes,
                used: SystemTime::UNIX_EPOCH + Duration::from_secs(*age),
            }).collect();
            let index = |path: &Path| path.to_str().unwrap().parse::<usize>().unwrap();
            let stay = |path: &Path| files[index(path)].2;
            let gone = victims(all.clone(), wanted, stay);
            prop_assert!(gone.iter().all(|kept| !stay(&kept.path)));
            let freed: u64 = gone.iter().map(|kept| kept.bytes).sum();
            let left: Vec<_> = all.iter().filter(|kept| !gone.contains(kept) && !stay(&kept.path)).collect();
            prop_assert!(freed >= wanted || left.is_empty());
            if let Some(last) = gone.last() {
                prop_assert!(freed - last.bytes < wanted);
                prop_assert!(left.iter().all(|kept| kept.used >= last.used));
            }
        }
    }
}
