//! Text of the kernel's about cgroups, taken apart. Total over all bytes.

/// Returns the cgroup v2 path out of `/proc/PID/cgroup`: the line `0::/path`. A process whose group was removed has
/// ` (deleted)` at the end of it.
#[must_use]
pub fn own_path(text: &[u8]) -> Option<Vec<u8>> {
    let path = text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"0::"))?;
    path.starts_with(b"/").then(|| path.to_vec())
}

/// A mount of the cgroup v2 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The part of the hierarchy that is mounted, as a path in it.
    pub root: Vec<u8>,
    /// Where.
    pub point: Vec<u8>,
}

impl Mount {
    /// Returns where a path of the hierarchy is in the file system; `None` if it is not in the part that is mounted.
    #[must_use]
    pub fn place_of(&self, path: &[u8]) -> Option<Vec<u8>> {
        // A path that begins with `/..` is outside of our cgroup namespace.
        if path.split(|byte| *byte == b'/').any(|part| part == b"..") {
            return None;
        }
        let root = self.root.strip_suffix(b"/").unwrap_or(&self.root);
        let rest = path.strip_prefix(root)?;
        if !rest.is_empty() && !rest.starts_with(b"/") {
            return None;
        }
        let rest = rest.strip_suffix(b"/").unwrap_or(rest);
        Some([self.point.strip_suffix(b"/").unwrap_or(&self.point), rest].concat())
    }
}

/// Returns the mounts of cgroup v2 out of `/proc/self/mountinfo` (`proc_pid_mountinfo(5)`), in its order.
#[must_use]
pub fn mounts(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n').filter_map(mount).collect()
}

fn mount(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let root = unescape(fields.nth(3)?);
    let point = unescape(fields.next()?);
    // Optional fields end with a dash; after it comes the kind of file system.
    fields.by_ref().find(|field| *field == b"-")?;
    (fields.next()? == b"cgroup2").then_some(Mount { root, point })
}

/// Undoes the octal escapes with which the kernel hides blanks and backslashes.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|d| *first == b'\\' && d.iter().all(|d| (b'0'..=b'7').contains(d)));
        match digits {
            Some(digits) => {
                let value = digits.iter().fold(0_u32, |value, digit| value * 8 + u32::from(digit - b'0'));
                out.push((value & 0xff) as u8);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// Returns the numbers in `cgroup.procs`. A process that has none in our pid namespace is listed as 0 and left out.
pub fn numbers(text: &[u8]) -> impl Iterator<Item = i32> + '_ {
    let lines = text.split(|byte| *byte == b'\n');
    lines.filter_map(|line| std::str::from_utf8(line).ok()?.parse().ok()).filter(|pid| *pid > 0)
}

/// Returns a value of `cgroup.events`: lines of a key and 0 or 1.
#[must_use]
pub fn event(text: &[u8], key: &str) -> Option<bool> {
    text.split(|byte| *byte == b'\n').find_map(|line| {
        match line.strip_prefix(key.as_bytes())?.strip_prefix(b" ")? {
            b"0" => Some(false),
            b"1" => Some(true),
            _ => None,
        }
    })
}

/// Returns a value of `memory.events`, `pids.events` and their like: lines of a key and a number.
#[must_use]
pub fn count(text: &[u8], key: &str) -> Option<u64> {
    text.split(|byte| *byte == b'\n').find_map(|line| {
        let value = line.strip_prefix(key.as_bytes())?.strip_prefix(b" ")?;
        std::str::from_utf8(value).ok()?.parse().ok()
    })
}

/// Controllers by which what is in a directory can be limited; those of them that lariat knows a limit for.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Controllers {
    /// `memory`.
    pub memory: bool,
    /// `pids`.
    pub pids: bool,
    /// `cpu`.
    pub cpu: bool,
}

impl Controllers {
    /// Every one.
    pub const ALL: Self = Self { memory: true, pids: true, cpu: true };

    /// Reads `cgroup.controllers` or `cgroup.subtree_control`: words between blanks.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        let has = |name: &[u8]| text.split(u8::is_ascii_whitespace).any(|word| word == name);
        Self { memory: has(b"memory"), pids: has(b"pids"), cpu: has(b"cpu") }
    }

    /// Returns those that are in one of the two.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            memory: self.memory || other.memory,
            pids: self.pids || other.pids,
            cpu: self.cpu || other.cpu,
        }
    }

    /// Returns those that `other` lacks.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self {
            memory: self.memory && !other.memory,
            pids: self.pids && !other.pids,
            cpu: self.cpu && !other.cpu,
        }
    }

    /// Says whether there is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// Returns their names.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let named = [(self.memory, "memory"), (self.pids, "pids"), (self.cpu, "cpu")];
        named.into_iter().filter(|(is_in, _)| *is_in).map(|(_, name)| name)
    }

    /// Returns what is written to `cgroup.subtree_control`, with `sign` before each name.
    #[must_use]
    pub fn signed(self, sign: char) -> String {
        self.names().map(|name| format!("{sign}{name}")).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_by_key() {
        let text = b"low 0\nhigh 0\nmax 12\noom 1\noom_kill 3\noom_group_kill 1\n";
        assert_eq!(count(text, "oom"), Some(1));
        assert_eq!(count(text, "oom_kill"), Some(3));
        for missing in ["oom_", "kill", "", "max 12"] {
            assert_eq!(count(text, missing), None, "{missing:?}");
        }
        assert_eq!(count(b"max -1\nmax x\nmax 99999999999999999999\n", "max"), None);
    }

    #[test]
    fn controllers_are_read_compared_and_written() {
        let found = Controllers::parse(b"cpuset cpu io memory hugetlb pidsx\n");
        assert_eq!(found, Controllers { memory: true, pids: false, cpu: true });
        assert_eq!(Controllers::ALL.without(found), Controllers { pids: true, ..Controllers::default() });
        assert_eq!(Controllers::ALL.signed('+'), "+memory +pids +cpu");
        assert_eq!(found.without(Controllers::ALL).signed('-'), "");
        assert!(found.without(found).is_empty() && !found.is_empty());
        assert_eq!(found.or(Controllers::ALL), Controllers::ALL);
        assert!(Controllers::parse(b"").is_empty());
    }

    #[test]
    fn own_paths_are_found_in_both_kinds_of_hierarchy() {
        let hybrid = b"9:name=systemd:/\n4:memory:/process_api/ef\n0::/user.slice/a b\n";
        assert_eq!(own_path(hybrid), Some(b"/user.slice/a b".to_vec()));
        assert_eq!(own_path(b"0::/\n"), Some(b"/".to_vec()));
        for none in ["", "0::", "0::x\n", "1::/\n", "4:memory:/\n"] {
            assert_eq!(own_path(none.as_bytes()), None, "{none:?}");
        }
    }

    #[test]
    fn mounts_are_read_and_other_kinds_left_out() {
        let text = b"30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:9 master:2 - cgroup2 cgroup2 rw\n\
            32 30 0:27 /docker/x /mnt/a\\040b rw - cgroup2 none rw\n\
            33 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            broken\n34 30 0:28 / /x rw cgroup2\n";
        let mount = |root: &str, point: &str| Mount { root: root.into(), point: point.into() };
        assert_eq!(mounts(text), [mount("/", "/sys/fs/cgroup/unified"), mount("/docker/x", "/mnt/a b")]);
    }

    #[test]
    fn a_path_is_placed_below_its_mount_or_nowhere() {
        let mount = |root: &str, point: &str| Mount { root: root.into(), point: point.into() };
        let table = [
            ("/", "/sys/fs/cgroup", "/", Some("/sys/fs/cgroup")),
            ("/", "/sys/fs/cgroup", "/a/b", Some("/sys/fs/cgroup/a/b")),
            ("/a", "/m", "/a", Some("/m")),
            ("/a", "/m", "/a/b", Some("/m/b")),
            ("/a", "/m", "/ab", None),
            ("/a", "/m", "/", None),
            ("/", "/m", "/../x", None),
        ];
        for (root, point, path, expected) in table {
            let found = mount(root, point).place_of(path.as_bytes());
            assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{root} {point} {path}");
        }
    }

    #[test]
    fn members_without_a_number_here_are_left_out() {
        assert_eq!(numbers(b"12\n0\n345\n-3\nx\n\n").collect::<Vec<_>>(), [12, 345]);
    }

    #[test]
    fn events_are_read_by_key() {
        assert_eq!(event(b"populated 1\nfrozen 0\n", "populated"), Some(true));
        assert_eq!(event(b"populated 1\nfrozen 0\n", "frozen"), Some(false));
        assert_eq!(event(b"populated 2\n", "populated"), None);
        assert_eq!(event(b"populatedx 1\n", "populated"), None);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            for mount in mounts(&bytes) {
                let _ = mount.place_of(&bytes);
            }
            let _ = (own_path(&bytes), event(&bytes, "populated"), count(&bytes, "max"), Controllers::parse(&bytes));
            proptest::prop_assert!(numbers(&bytes).all(|pid| pid > 0));
        }
    }
}
