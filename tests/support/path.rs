//! Paths on the scripted server: bytes, absolute, resolved without looking at
//! the files. Pure.

/// An absolute path as its components; `.` and `..` are already resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerPath(Vec<Vec<u8>>);

impl ServerPath {
    /// The root, or what `bytes` names from the root.
    pub fn absolute(bytes: impl AsRef<[u8]>) -> ServerPath {
        ServerPath::default().join(bytes.as_ref())
    }

    /// What `argument` means for a session that is in this directory.
    pub fn join(&self, argument: &[u8]) -> ServerPath {
        let mut components =
            if argument.first() == Some(&b'/') { Vec::new() } else { self.0.clone() };
        for component in argument.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => {
                    components.pop();
                }
                name => components.push(name.to_vec()),
            }
        }
        ServerPath(components)
    }

    pub fn child(&self, name: &[u8]) -> ServerPath {
        let mut components = self.0.clone();
        components.push(name.to_vec());
        ServerPath(components)
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        if self.0.is_empty() {
            return b"/".to_vec();
        }
        self.0.iter().flat_map(|name| [b"/", name.as_slice()].concat()).collect()
    }

    pub fn components(&self) -> &[Vec<u8>] {
        &self.0
    }

    /// The last component; empty for the root.
    pub fn name(&self) -> &[u8] {
        self.0.last().map_or(b"", Vec::as_slice)
    }

    /// The directory and the name in it; nothing for the root.
    pub fn split(&self) -> Option<(ServerPath, &[u8])> {
        let (name, parents) = self.0.split_last()?;
        Some((ServerPath(parents.to_vec()), name))
    }

    pub fn begins_with(&self, other: &ServerPath) -> bool {
        self.0.starts_with(&other.0)
    }
}
