//! The inode table: which inode is which name in which directory.
//!
//! A node stores its parent and its name, never a path, so that a rename moves one node and open
//! handles follow. Numbers are never used again.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash, Hasher};
use std::ops::Deref;

/// An inode number, as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

/// The root of the mount; the kernel's FUSE_ROOT_ID.
pub const ROOT: Ino = Ino(1);

/// So long a name takes no memory of its own: 24 bytes are what a box and its kind take anyway.
const SHORT: usize = 22;

/// A name in a node.
#[derive(Clone, Debug)]
pub(crate) enum Name {
    Short { length: u8, bytes: [u8; SHORT] },
    Long(Box<[u8]>),
}

impl Name {
    fn new(name: &[u8]) -> Self {
        let mut bytes = [0; SHORT];
        match (bytes.get_mut(..name.len()), u8::try_from(name.len())) {
            (Some(place), Ok(length)) => {
                place.copy_from_slice(name);
                Self::Short { length, bytes }
            }
            _ => Self::Long(name.into()),
        }
    }
}

impl Deref for Name {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Short { length, bytes } => bytes.get(..usize::from(*length)).unwrap_or_default(),
            Self::Long(name) => name,
        }
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

/// Where a node is in `Tree::nodes`; `NOWHERE` is no place.
type Place = u32;
const NOWHERE: Place = u32::MAX;

/// One name that the kernel, an open handle or another node knows; a free place, if it has no
/// look-ups and no pins.
#[derive(Debug)]
struct Node {
    name: Name,
    /// How often the kernel was told of it, less what it forgot.
    lookups: u64,
    /// `NOWHERE` after unlink or rmdir: the number lives on for open handles, the name is free.
    /// A child pins its parent, so that a place stays the parent's.
    parent: Place,
    /// The next node with the same hash, or the next free place.
    next: Place,
    /// Open handles and child nodes: the node stays while there are any.
    pins: u32,
    /// How often this place was used before.
    round: u32,
}

/// The inode table. No I/O, no locks of its own.
///
/// The kernel knows 100,000 inodes after `ls -l` of as many files: a node takes 48 bytes and its
/// place in `heads` 4 to 8. A number is `round << 32 | place + 1`, so that it is never used again.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    /// The first node of each hash; their number is a power of two.
    heads: Vec<Place>,
    hasher: RandomState,
    /// The first free place.
    free: Place,
    /// Nodes in use.
    count: usize,
}

impl Tree {
    pub(crate) fn new() -> Self {
        let root =
            Node { name: Name::new(b""), lookups: 1, parent: 0, next: NOWHERE, pins: 1, round: 0 };
        Self {
            nodes: vec![root],
            heads: vec![NOWHERE; 64],
            hasher: RandomState::new(),
            free: NOWHERE,
            count: 1,
        }
    }

    /// The inode of a name, made if need be. `lookups` is what the kernel is about to be told: 1
    /// for an entry in a reply, 0 for our own use.
    pub(crate) fn intern(&mut self, parent: Ino, name: &[u8], lookups: u64) -> Ino {
        let Some(above) = self.at(parent) else {
            // Nobody asks below a directory that is not held; a number that leads nowhere is right.
            return Ino(u64::MAX >> 1);
        };
        if let Some(place) = self.search(above, name) {
            if let Some(node) = self.node_mut(place) {
                node.lookups += lookups;
            }
            return self.ino(place);
        }
        let place = self.take_place(above, name, lookups);
        self.link(place);
        self.add_pins(above, 1);
        self.ino(place)
    }

    /// The inode of a name, if it has one.
    pub(crate) fn find(&self, parent: Ino, name: &[u8]) -> Option<Ino> {
        let place = self.search(self.at(parent)?, name)?;
        Some(self.ino(place))
    }

    /// Parent and name of a node that still has its name.
    pub(crate) fn place(&self, ino: Ino) -> Option<(Ino, Name)> {
        let node = self.node(self.at(ino)?)?;
        self.node(node.parent)?;
        Some((self.ino(node.parent), node.name.clone()))
    }

    /// The names from the root down to the node; `None` when it, or a directory above it, is gone.
    pub(crate) fn names(&self, ino: Ino) -> Option<Vec<Name>> {
        let mut names = Vec::new();
        let mut at = ino;
        while at != ROOT {
            let (parent, name) = self.place(at)?;
            names.push(name);
            at = parent;
        }
        names.reverse();
        Some(names)
    }

    /// The kernel drops `count` of its references; true when the node is gone.
    pub(crate) fn forget(&mut self, ino: Ino, count: u64) -> bool {
        let Some(place) = self.at(ino) else { return false };
        if let Some(node) = self.node_mut(place) {
            node.lookups = node.lookups.saturating_sub(count);
        }
        self.collect(place)
    }

    /// Keeps the node, for an open handle.
    pub(crate) fn pin(&mut self, ino: Ino) {
        if let Some(place) = self.at(ino) {
            self.add_pins(place, 1);
        }
    }

    /// The other end of [`Tree::pin`].
    pub(crate) fn unpin(&mut self, ino: Ino) -> bool {
        self.at(ino).is_some_and(|place| self.unpin_at(place))
    }

    /// The name is gone from the server; the number stays while anybody holds it.
    pub(crate) fn unlink(&mut self, parent: Ino, name: &[u8]) {
        let Some(above) = self.at(parent) else { return };
        let Some(place) = self.search(above, name) else { return };
        self.unlink_at(place);
        self.unpin_at(above);
        self.collect(place);
    }

    /// The file moved, over whatever had the new name.
    pub(crate) fn relink(&mut self, from: (Ino, &[u8]), to: (Ino, &[u8])) {
        let Some(ino) = self.find(from.0, from.1) else {
            return self.unlink(to.0, to.1);
        };
        if self.find(to.0, to.1) == Some(ino) {
            return;
        }
        let (Some(place), Some(above)) = (self.at(ino), self.at(to.0)) else { return };
        // Pinned first, as the file that makes way may be all that holds the directory.
        self.add_pins(above, 1);
        self.unlink(to.0, to.1);
        self.unlink_at(place);
        if let Some(node) = self.node_mut(place) {
            node.parent = above;
            node.name = Name::new(to.1);
        }
        self.link(place);
        self.unpin(from.0);
    }

    /// Is `above` the node itself or one of the directories above it?
    pub(crate) fn is_within(&self, ino: Ino, above: Ino) -> bool {
        let mut at = ino;
        loop {
            if at == above {
                return true;
            }
            match self.place(at) {
                Some((parent, _)) if at != ROOT => at = parent,
                _ => return false,
            }
        }
    }

    /// The nodes right below a directory.
    pub(crate) fn children(&self, directory: Ino) -> Vec<Ino> {
        let Some(above) = self.at(directory) else { return Vec::new() };
        self.places().filter(|(_, node)| node.parent == above).map(|(ino, _)| ino).collect()
    }

    /// The nodes below a directory, at any depth.
    pub(crate) fn all_below(&self, directory: Ino) -> Vec<Ino> {
        let mut children: HashMap<Place, Vec<Ino>> = HashMap::new();
        for (ino, node) in self.places() {
            children.entry(node.parent).or_default().push(ino);
        }
        let mut found = Vec::new();
        let mut open = vec![directory];
        while let Some(place) = open.pop().and_then(|ino| self.at(ino)) {
            if let Some(below) = children.remove(&place) {
                open.extend(&below);
                found.extend(below);
            }
        }
        found
    }

    /// All nodes that have a name, but for the root.
    fn places(&self) -> impl Iterator<Item = (Ino, &Node)> {
        let numbered = (0..NOWHERE).zip(&self.nodes).skip(1);
        let named = numbered.filter(|(_, node)| node.parent != NOWHERE);
        named.map(|(place, node)| (self.ino(place), node))
    }

    /// How many nodes there are.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.count
    }

    /// Where a node is that is still held.
    fn at(&self, ino: Ino) -> Option<Place> {
        let place = u32::try_from((ino.0 & 0xFFFF_FFFF).checked_sub(1)?).ok()?;
        let node = self.node(place)?;
        let is_free = place != 0 && node.lookups == 0 && node.pins == 0 && node.parent == NOWHERE;
        (u64::from(node.round) == ino.0 >> 32 && !is_free).then_some(place)
    }

    fn ino(&self, place: Place) -> Ino {
        let round = self.node(place).map_or(0, |node| node.round);
        Ino(u64::from(round) << 32 | (u64::from(place) + 1))
    }

    fn node(&self, place: Place) -> Option<&Node> {
        self.nodes.get(place as usize)
    }

    fn node_mut(&mut self, place: Place) -> Option<&mut Node> {
        self.nodes.get_mut(place as usize)
    }

    /// A place for a new node: one that is free, or one more.
    fn take_place(&mut self, parent: Place, name: &[u8], lookups: u64) -> Place {
        self.count += 1;
        let name = Name::new(name);
        if let Some(node) = self.nodes.get_mut(self.free as usize) {
            let place = self.free;
            self.free = node.next;
            *node = Node { name, lookups, parent, next: NOWHERE, pins: 0, round: node.round };
            return place;
        }
        // 2^32 nodes would take 200 GiB.
        let place = Place::try_from(self.nodes.len()).unwrap_or(NOWHERE);
        self.nodes.push(Node { name, lookups, parent, next: NOWHERE, pins: 0, round: 0 });
        if self.nodes.len() > self.heads.len() {
            self.grow();
        }
        place
    }

    fn head(&self, parent: Place, name: &[u8]) -> usize {
        let mut hasher = self.hasher.build_hasher();
        parent.hash(&mut hasher);
        hasher.write(name);
        usize::try_from(hasher.finish()).unwrap_or(0) & (self.heads.len() - 1)
    }

    fn head_of(&self, place: Place) -> usize {
        self.node(place).map_or(0, |node| self.head(node.parent, &node.name))
    }

    fn search(&self, parent: Place, name: &[u8]) -> Option<Place> {
        let mut place = self.heads.get(self.head(parent, name)).copied()?;
        while let Some(node) = self.node(place) {
            if node.parent == parent && *node.name == *name {
                return Some(place);
            }
            place = node.next;
        }
        None
    }

    /// Puts a node first in the row of its hash.
    fn link(&mut self, place: Place) {
        let head = self.head_of(place);
        let Some(first) = self.heads.get_mut(head) else { return };
        let next = std::mem::replace(first, place);
        if let Some(node) = self.node_mut(place) {
            node.next = next;
        }
    }

    /// Takes a node out of the row of its hash; it has no name then.
    fn unlink_at(&mut self, place: Place) {
        let head = self.head_of(place);
        let Some(node) = self.node_mut(place) else { return };
        let after = std::mem::replace(&mut node.next, NOWHERE);
        node.parent = NOWHERE;
        let mut at = self.heads.get(head).copied().unwrap_or(NOWHERE);
        if at == place {
            if let Some(first) = self.heads.get_mut(head) {
                *first = after;
            }
            return;
        }
        while let Some(node) = self.node_mut(at) {
            if node.next == place {
                node.next = after;
                return;
            }
            at = node.next;
        }
    }

    /// Twice as many heads, so that there is about one for each node.
    fn grow(&mut self) {
        let linked: Vec<Place> = (1..self.nodes.len())
            .filter_map(|place| Place::try_from(place).ok())
            .filter(|place| {
                let is_new = *place as usize == self.nodes.len() - 1;
                !is_new && self.node(*place).is_some_and(|node| node.parent != NOWHERE)
            })
            .collect();
        self.heads = vec![NOWHERE; self.heads.len() * 2];
        for place in linked {
            self.link(place);
        }
    }

    fn add_pins(&mut self, place: Place, pins: u32) {
        if let Some(node) = self.node_mut(place) {
            node.pins += pins;
        }
    }

    fn unpin_at(&mut self, place: Place) -> bool {
        if let Some(node) = self.node_mut(place) {
            node.pins = node.pins.saturating_sub(1);
        }
        self.collect(place)
    }

    /// Removes a node that nobody holds any more, and then perhaps its parent.
    fn collect(&mut self, place: Place) -> bool {
        let unused = |node: &Node| node.lookups == 0 && node.pins == 0;
        if place == 0 || !self.node(place).is_some_and(unused) {
            return false;
        }
        let parent = self.node(place).map_or(NOWHERE, |node| node.parent);
        if parent != NOWHERE {
            self.unlink_at(place);
        }
        let free = self.free;
        if let Some(node) = self.node_mut(place) {
            node.name = Name::new(b"");
            // Used up after 2^31 rounds: it stays empty, as a number is never used again.
            if node.round < u32::MAX >> 1 {
                node.round += 1;
                node.next = free;
                self.free = place;
            }
        }
        self.count -= 1;
        if parent != NOWHERE {
            self.unpin_at(parent);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(tree: &Tree, ino: Ino) -> Option<String> {
        let names = tree.names(ino)?;
        let texts: Vec<_> = names.iter().map(|name| String::from_utf8_lossy(name)).collect();
        Some(format!("/{}", texts.join("/")))
    }

    #[test]
    fn a_rename_moves_everything_below() {
        let mut tree = Tree::new();
        let a = tree.intern(ROOT, b"a", 1);
        let file = tree.intern(a, b"file", 1);
        tree.relink((ROOT, b"a"), (ROOT, b"b"));
        assert_eq!(path(&tree, file).as_deref(), Some("/b/file"));
        assert_eq!(tree.find(ROOT, b"b"), Some(a));
        assert_eq!(tree.find(ROOT, b"a"), None);
    }

    #[test]
    fn a_rename_over_a_file_unlinks_it() {
        let mut tree = Tree::new();
        let old = tree.intern(ROOT, b"old", 1);
        let new = tree.intern(ROOT, b"new", 1);
        tree.relink((ROOT, b"new"), (ROOT, b"old"));
        assert_eq!(tree.place(old), None);
        assert_eq!(path(&tree, new).as_deref(), Some("/old"));
        let again = tree.intern(ROOT, b"new", 1);
        assert_ne!(again, new);
        assert_ne!(again, old);
    }

    #[test]
    fn nodes_go_when_nobody_holds_them() {
        let mut tree = Tree::new();
        let a = tree.intern(ROOT, b"a", 1);
        let b = tree.intern(a, b"b", 2);
        assert!(!tree.forget(a, 1), "its child is still known");
        assert!(!tree.forget(b, 1));
        assert!(tree.forget(b, 1));
        assert_eq!(tree.len(), 1, "the parent went with its last child");
    }

    #[test]
    fn an_unlinked_file_lives_while_it_is_open() {
        let mut tree = Tree::new();
        let file = tree.intern(ROOT, b"f", 1);
        tree.pin(file);
        tree.unlink(ROOT, b"f");
        tree.forget(file, 1);
        let new = tree.intern(ROOT, b"f", 1);
        assert_ne!(new, file);
        assert!(tree.unpin(file));
        assert_eq!(tree.find(ROOT, b"f"), Some(new));
    }

    #[test]
    fn a_number_is_never_used_again() {
        let mut tree = Tree::new();
        let mut seen = std::collections::HashSet::new();
        for round in 0..1000 {
            let ino = tree.intern(ROOT, b"a-name-longer-than-what-fits-into-a-node", 1);
            assert!(seen.insert(ino));
            assert_eq!(tree.find(ROOT, b"a-name-longer-than-what-fits-into-a-node"), Some(ino));
            assert!(tree.forget(ino, 1));
            assert_eq!(tree.place(ino), None, "round {round}");
        }
        assert_eq!(tree.nodes.len(), 2);
    }

    #[test]
    fn many_names_take_little_and_are_found() {
        assert_eq!(size_of::<Node>(), 48);
        let mut tree = Tree::new();
        let name = |number: u32| format!("file-{number:06}.txt").into_bytes();
        let inos: Vec<_> = (0..100_000).map(|number| tree.intern(ROOT, &name(number), 1)).collect();
        for (number, ino) in (0..).zip(&inos) {
            assert_eq!(tree.find(ROOT, &name(number)), Some(*ino));
        }
        assert_eq!(tree.heads.len(), 131_072);
        for ino in inos {
            assert!(tree.forget(ino, 1));
        }
        assert_eq!(tree.len(), 1);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Intern(u8, u8),
        Forget(u8),
        Unlink(u8, u8),
        Relink(u8, u8, u8, u8),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0..4u8, 0..3u8).prop_map(|(dir, name)| Op::Intern(dir, name)),
            (0..8u8).prop_map(Op::Forget),
            (0..4u8, 0..3u8).prop_map(|(dir, name)| Op::Unlink(dir, name)),
            (0..4u8, 0..3u8, 0..4u8, 0..3u8).prop_map(|(a, b, c, d)| Op::Relink(a, b, c, d)),
        ]
    }

    proptest! {
        /// Whatever happens: one inode for a name, one name for an inode, and all pins add up.
        #[test]
        fn names_and_nodes_agree(ops in proptest::collection::vec(op(), 0..60)) {
            let mut tree = Tree::new();
            let mut known = vec![ROOT];
            let pick = |known: &[Ino], index: u8| known[index as usize % known.len()];
            for op in ops {
                match op {
                    Op::Intern(dir, name) => {
                        let parent = pick(&known, dir);
                        if tree.names(parent).is_some() {
                            known.push(tree.intern(parent, &[b'a' + name], 1));
                        }
                    }
                    Op::Forget(index) => { tree.forget(pick(&known, index), 1); }
                    Op::Unlink(dir, name) => tree.unlink(pick(&known, dir), &[b'a' + name]),
                    Op::Relink(from, a, to, b) => {
                        let (from, to) = (pick(&known, from), pick(&known, to));
                        let moved = tree.find(from, &[b'a' + a]);
                        let loops = moved.is_some_and(|moved| tree.is_within(to, moved));
                        if tree.names(to).is_some() && !loops {
                            tree.relink((from, &[b'a' + a]), (to, &[b'a' + b]));
                        }
                    }
                }
                known.retain(|ino| tree.at(*ino).is_some());
                let held: Vec<Place> =
                    (0..tree.nodes.len() as u32).filter(|p| tree.at(tree.ino(*p)).is_some()).collect();
                prop_assert_eq!(held.len(), tree.len());
                for place in &held {
                    let node = tree.node(*place).unwrap();
                    if *place != 0 && node.parent != NOWHERE {
                        let parent = tree.ino(node.parent);
                        prop_assert_eq!(tree.find(parent, &node.name), Some(tree.ino(*place)));
                    }
                    let is_child = |child: &&Place| {
                        **child != 0 && tree.node(**child).unwrap().parent == *place
                    };
                    let children = held.iter().filter(is_child).count();
                    prop_assert_eq!(node.pins as usize, children + usize::from(*place == 0));
                }
            }
        }
    }
}
