//! How the memory for contents of files is shared out. Pure.

use std::path::Path;

use super::Options;

impl Options {
    /// 32 MiB for what is fetched ahead, and as much for open files: four that are read at full
    /// speed with windows of 4 MiB, and as much again for those that rest.
    pub const MEMORY: usize = 64 * 1024 * 1024;
}

/// The shares in [`Options::memory`].
pub(super) struct Memory {
    /// For files fetched before they are read.
    pub(super) ahead: usize,
    /// For what open files keep behind their last read.
    pub(super) readers: usize,
    /// For what is on its way to the cache on the disk.
    pub(super) unwritten: usize,
}

impl Memory {
    pub(super) fn of(options: &Options) -> Self {
        Self::shared(options.memory, options.cache_dir.as_deref())
    }

    fn shared(all: usize, cache_dir: Option<&Path>) -> Self {
        // 8 MiB of 64: at 1 GiB/s that bridges 8 ms, the pauses of a disk that keeps up.
        let unwritten = if cache_dir.is_some() { all / 8 } else { 0 };
        let half = (all - unwritten) / 2;
        Self { ahead: half, readers: half, unwritten }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_are_the_whole() {
        let shares = |cache_dir: Option<&Path>| {
            let memory = Memory::shared(Options::MEMORY, cache_dir);
            (memory.ahead >> 20, memory.readers >> 20, memory.unwritten >> 20)
        };
        assert_eq!(shares(None), (32, 32, 0));
        assert_eq!(shares(Some(Path::new("/x"))), (28, 28, 8));
    }
}
