use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::ftp::{Entries, Entry, Precision, Timestamp};
use crate::vfs::tree::ROOT;

fn entry(name: &str, kind: Kind, size: u64) -> Entry {
    let mtime = Timestamp { seconds: 1, nanos: 0, precision: Precision::Second };
    let size = (kind == Kind::File).then_some(size);
    let name = name.as_bytes().into();
    Entry { name, kind, size, mtime: Some(mtime), mode: None, target: None, facts: None }
}

/// A tree of which some directories were listed.
#[derive(Default)]
struct World {
    listings: HashMap<Ino, Arc<Listing>>,
    inos: HashMap<(Ino, Vec<u8>), Ino>,
    places: HashMap<Ino, (Ino, Vec<u8>)>,
    listed: HashSet<Ino>,
}

impl World {
    fn new() -> Self {
        Self::default()
    }

    fn directory(&mut self, ino: Ino, entries: Vec<Entry>) -> Vec<Ino> {
        let mut packed = Entries::default();
        entries.iter().for_each(|entry| assert!(packed.push(entry)));
        let listing = Arc::new(Listing::new(&packed));
        let mut folders = Vec::new();
        for item in listing.items() {
            if item.entry.kind == Kind::Directory {
                let child = Ino(self.places.len() as u64 + 2);
                let name = item.entry.name.to_vec();
                self.inos.insert((ino, name.clone()), child);
                self.places.insert(child, (ino, name));
                folders.push(child);
            }
        }
        self.listings.insert(ino, listing);
        folders
    }

    /// `width` directories, each with as many below, `depth` levels, and `files` in each.
    fn grow(&mut self, ino: Ino, width: usize, files: usize, depth: usize) {
        let mut entries: Vec<_> =
            (0..files).map(|n| entry(&format!("f{n:03}"), Kind::File, 1000)).collect();
        if depth > 0 {
            entries.extend((0..width).map(|n| entry(&format!("d{n:03}"), Kind::Directory, 0)));
        }
        for folder in self.directory(ino, entries) {
            self.grow(folder, width, files, depth - 1);
        }
    }

    fn folder(&self, ino: Ino) -> Folder {
        let above = self.places.get(&ino).map(|(parent, name)| Above {
            ino: *parent,
            name: Arc::from(name.as_slice()),
            listing: self.listings.get(parent).cloned(),
        });
        Folder { ino, listing: Arc::clone(&self.listings[&ino]), above }
    }

    fn enter(&mut self, plan: &mut Plan, ino: Ino) {
        self.listed.insert(ino);
        plan.entered(&self.folder(ino));
    }

    fn child(&self, ino: Ino, name: &[u8]) -> Ino {
        self.inos[&(ino, name.to_vec())]
    }

    fn steps(&self, plan: &Plan) -> Vec<Step> {
        let known = |parent: Ino, name: &[u8]| {
            let ino = self.child(parent, name);
            self.listed.contains(&ino).then(|| (ino, Arc::clone(&self.listings[&ino])))
        };
        plan.outlook(&known).steps
    }

    fn names(&self, plan: &Plan) -> Vec<String> {
        let name = |step: &Step| {
            let (Step::List { name, .. } | Step::Fetch { name, .. }) = step;
            String::from_utf8_lossy(name).into_owned()
        };
        self.steps(plan).iter().map(name).collect()
    }
}

#[test]
fn looking_at_one_directory_or_two_is_no_walk() {
    let mut world = World::new();
    world.grow(ROOT, 5, 5, 2);
    let mut plan = Plan::default();
    world.enter(&mut plan, ROOT);
    assert!(world.names(&plan).is_empty());
    let first = world.child(ROOT, b"d000");
    world.enter(&mut plan, first);
    assert!(world.names(&plan).is_empty());
    plan.opened(&world.folder(first), b"f000");
    assert!(world.names(&plan).is_empty());
}

#[test]
fn a_walk_goes_down_first_and_then_on() {
    let mut world = World::new();
    world.grow(ROOT, 4, 2, 2);
    let mut plan = Plan::default();
    world.enter(&mut plan, ROOT);
    let first = world.child(ROOT, b"d000");
    world.enter(&mut plan, first);
    world.enter(&mut plan, world.child(first, b"d000"));
    assert_eq!(world.names(&plan), ["d001", "d002", "d003", "d001", "d002", "d003"]);
    let parents: Vec<_> = world
        .steps(&plan)
        .iter()
        .map(|step| match step {
            Step::List { parent, .. } | Step::Fetch { parent, .. } => *parent,
        })
        .collect();
    assert_eq!(parents[..3], [first; 3]);
    assert_eq!(parents[3..], [ROOT; 3]);
}

#[test]
fn a_walk_breadth_first_is_one_too() {
    let mut world = World::new();
    world.grow(ROOT, 3, 0, 2);
    let mut plan = Plan::default();
    world.enter(&mut plan, ROOT);
    let children = ["d000", "d001", "d002"].map(|name| world.child(ROOT, name.as_bytes()));
    for child in children {
        world.enter(&mut plan, child);
    }
    world.enter(&mut plan, world.child(children[0], b"d000"));
    assert_eq!(world.names(&plan)[..2], ["d001", "d002"]);
}

#[test]
fn jumping_about_is_no_walk() {
    let mut world = World::new();
    world.grow(ROOT, 20, 0, 1);
    let mut plan = Plan::default();
    world.enter(&mut plan, ROOT);
    for number in [3, 17, 8, 0, 12, 5, 19] {
        world.enter(&mut plan, world.child(ROOT, format!("d{number:03}").as_bytes()));
        assert!(world.names(&plan).is_empty(), "{number}");
    }
}

#[test]
fn the_window_of_files_grows_with_the_evidence() {
    let mut world = World::new();
    world.grow(ROOT, 0, 100, 0);
    let mut plan = Plan::default();
    let mut ahead = Vec::new();
    for number in 0..8 {
        plan.opened(&world.folder(ROOT), format!("f{number:03}").as_bytes());
        ahead.push(world.names(&plan).len());
    }
    assert_eq!(ahead, [0, 8, 32, 32, 32, 32, 32, 32]);
    assert_eq!(world.names(&plan)[0], "f008");
    plan.opened(&world.folder(ROOT), b"f007");
    assert_eq!(world.names(&plan).len(), 32, "the same again");
    for (name, ahead) in [(b"f010", 32), (b"f013", 8), (b"f016", 0)] {
        plan.opened(&world.folder(ROOT), name);
        assert_eq!(world.names(&plan).len(), ahead, "two were left out");
    }
    plan.opened(&world.folder(ROOT), b"f090");
    assert!(world.names(&plan).is_empty());
}

#[test]
fn files_are_read_on_in_the_next_directories() {
    let mut world = World::new();
    world.grow(ROOT, 3, 2, 1);
    let mut plan = Plan::default();
    world.enter(&mut plan, ROOT);
    for name in ["d000", "d001"] {
        let folder = world.child(ROOT, name.as_bytes());
        world.enter(&mut plan, folder);
        plan.opened(&world.folder(folder), b"f000");
        plan.opened(&world.folder(folder), b"f001");
    }
    assert_eq!(world.names(&plan), ["d002", "f000", "f001"], "those beside d002, too");
    world.listed.insert(world.child(ROOT, b"d002"));
    assert_eq!(world.names(&plan)[..2], ["f000", "f001"]);
}

#[test]
fn large_empty_and_timeless_files_are_left_alone() {
    let mut world = World::new();
    let mut entries: Vec<_> = (0..3).map(|n| entry(&format!("a{n}"), Kind::File, 10)).collect();
    entries.push(entry("b", Kind::File, LARGEST + 1));
    entries.push(entry("c", Kind::File, 0));
    entries.push(Entry { mtime: None, ..entry("d", Kind::File, 10) });
    entries.push(entry("e", Kind::Symlink, 10));
    entries.push(entry("f", Kind::File, LARGEST));
    world.directory(ROOT, entries);
    let mut plan = Plan::default();
    for name in [b"a0", b"a1", b"a2"] {
        plan.opened(&world.folder(ROOT), name);
    }
    assert_eq!(world.names(&plan), ["f"]);
}

proptest! {
    /// Any walk in the order of the listings is followed: from the third directory on the next one
    /// is always foreseen, nothing that is behind is, and the window is kept.
    #[test]
    fn a_walk_is_always_one_step_ahead(
        width in 1usize..6, files in 0usize..6, depth in 1usize..4,
    ) {
        let mut world = World::new();
        world.grow(ROOT, width, files, depth);
        let mut plan = Plan::default();
        let mut order = Vec::new();
        let mut stack = vec![ROOT];
        while let Some(ino) = stack.pop() {
            order.push(ino);
            let items: Vec<_> = world.listings[&ino].items().collect();
            for item in items.iter().rev() {
                if item.entry.kind == Kind::Directory {
                    stack.push(world.child(ino, &item.entry.name));
                }
            }
        }
        for (done, ino) in order.iter().enumerate() {
            let steps = world.steps(&plan);
            prop_assert!(steps.len() <= FOLDERS + FILES);
            let folders: Vec<_> = steps.iter().filter_map(|step| match step {
                Step::List { parent, name } => Some(world.child(*parent, name)),
                Step::Fetch { .. } => None,
            }).collect();
            if done > 2 {
                prop_assert_eq!(folders.first(), Some(ino));
            }
            for folder in folders {
                prop_assert!(!order[..done].contains(&folder));
            }
            world.enter(&mut plan, *ino);
        }
    }

    /// Opens at random cost next to nothing.
    #[test]
    fn opens_at_random_fetch_little(order in Just((0..200usize).collect::<Vec<_>>()).prop_shuffle()) {
        let mut world = World::new();
        world.grow(ROOT, 0, 200, 0);
        let mut plan = Plan::default();
        let mut wanted = HashSet::new();
        for number in &order {
            plan.opened(&world.folder(ROOT), format!("f{number:03}").as_bytes());
            wanted.extend(world.names(&plan));
        }
        prop_assert!(wanted.len() <= 40, "{} of 200", wanted.len());
    }
}
