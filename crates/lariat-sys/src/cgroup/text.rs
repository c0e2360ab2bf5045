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

#[cfg(test)]
mod tests {
    use super::*;

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
            let _ = (own_path(&bytes), event(&bytes, "populated"));
            proptest::prop_assert!(numbers(&bytes).all(|pid| pid > 0));
        }
    }
}
