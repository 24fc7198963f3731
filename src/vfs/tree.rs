//! The inode table: which inode is which name in which directory.
//!
//! A node stores its parent and its name, never a path, so that a rename moves one node and open
//! handles follow. Numbers are never used again.

use std::collections::HashMap;
use std::sync::Arc;

/// An inode number, as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

/// The root of the mount; the kernel's FUSE_ROOT_ID.
pub const ROOT: Ino = Ino(1);

/// One name that the kernel, an open handle or another node knows.
#[derive(Debug)]
struct Node {
    parent: Ino,
    name: Arc<[u8]>,
    /// How often the kernel was told of it, less what it forgot.
    lookups: u64,
    /// Open handles and child nodes: the node stays while there are any.
    pins: u64,
    /// False after unlink or rmdir: the number lives on for open handles, the name is free.
    linked: bool,
}

/// The inode table. No I/O, no locks of its own.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: HashMap<Ino, Node>,
    names: HashMap<(Ino, Arc<[u8]>), Ino>,
    next: u64,
}

impl Tree {
    pub(crate) fn new() -> Self {
        let root =
            Node { parent: ROOT, name: Arc::from(&b""[..]), lookups: 1, pins: 1, linked: true };
        Self { nodes: HashMap::from([(ROOT, root)]), names: HashMap::new(), next: ROOT.0 + 1 }
    }

    /// The inode of a name, made if need be. `lookups` is what the kernel is about to be told: 1
    /// for an entry in a reply, 0 for our own use.
    pub(crate) fn intern(&mut self, parent: Ino, name: &[u8], lookups: u64) -> Ino {
        if let Some(ino) = self.find(parent, name) {
            if let Some(node) = self.nodes.get_mut(&ino) {
                node.lookups += lookups;
            }
            return ino;
        }
        let ino = Ino(self.next);
        self.next += 1;
        let name: Arc<[u8]> = Arc::from(name);
        self.names.insert((parent, Arc::clone(&name)), ino);
        self.nodes.insert(ino, Node { parent, name, lookups, pins: 0, linked: true });
        self.pin(parent);
        ino
    }

    /// The inode of a name, if it has one.
    pub(crate) fn find(&self, parent: Ino, name: &[u8]) -> Option<Ino> {
        self.names.get(&(parent, Arc::from(name)) as &(Ino, Arc<[u8]>)).copied()
    }

    /// Parent and name of a node that still has its name.
    pub(crate) fn place(&self, ino: Ino) -> Option<(Ino, Arc<[u8]>)> {
        let node = self.nodes.get(&ino).filter(|node| node.linked)?;
        Some((node.parent, Arc::clone(&node.name)))
    }

    /// The names from the root down to the node; `None` when it, or a directory above it, is gone.
    pub(crate) fn names(&self, ino: Ino) -> Option<Vec<Arc<[u8]>>> {
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
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.lookups = node.lookups.saturating_sub(count);
        }
        self.collect(ino)
    }

    /// Keeps the node, for an open handle.
    pub(crate) fn pin(&mut self, ino: Ino) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.pins += 1;
        }
    }

    /// The other end of [`Tree::pin`].
    pub(crate) fn unpin(&mut self, ino: Ino) -> bool {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.pins = node.pins.saturating_sub(1);
        }
        self.collect(ino)
    }

    /// The name is gone from the server; the number stays while anybody holds it.
    pub(crate) fn unlink(&mut self, parent: Ino, name: &[u8]) {
        let Some(ino) = self.names.remove(&(parent, Arc::from(name)) as &(Ino, Arc<[u8]>)) else {
            return;
        };
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.linked = false;
        }
        self.unpin(parent);
        self.collect(ino);
    }

    /// The file moved, over whatever had the new name.
    pub(crate) fn relink(&mut self, from: (Ino, &[u8]), to: (Ino, &[u8])) {
        let Some(ino) = self.find(from.0, from.1) else {
            return self.unlink(to.0, to.1);
        };
        if self.find(to.0, to.1) == Some(ino) {
            return;
        }
        self.unlink(to.0, to.1);
        let name: Arc<[u8]> = Arc::from(to.1);
        self.names.remove(&(from.0, Arc::from(from.1)) as &(Ino, Arc<[u8]>));
        self.names.insert((to.0, Arc::clone(&name)), ino);
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.parent = to.0;
            node.name = name;
        }
        self.pin(to.0);
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

    /// How many nodes there are.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Removes a node that nobody holds any more, and then perhaps its parent.
    fn collect(&mut self, ino: Ino) -> bool {
        let unused = |node: &Node| node.lookups == 0 && node.pins == 0;
        if ino == ROOT || !self.nodes.get(&ino).is_some_and(unused) {
            return false;
        }
        if let Some(node) = self.nodes.remove(&ino)
            && node.linked
        {
            self.names.remove(&(node.parent, node.name));
            self.unpin(node.parent);
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
                known.retain(|ino| tree.nodes.contains_key(ino));
                for ((parent, name), ino) in &tree.names {
                    prop_assert_eq!(tree.place(*ino), Some((*parent, Arc::clone(name))));
                }
                for (ino, node) in &tree.nodes {
                    let children = tree.names.keys().filter(|(parent, _)| parent == ino).count();
                    let own = u64::from(*ino == ROOT);
                    prop_assert_eq!(node.pins, children as u64 + own);
                }
            }
        }
    }
}
