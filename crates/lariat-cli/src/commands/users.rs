//! Names of users, from `/etc/passwd` alone: the C library's way asks the network too, and can take for ever.

use std::collections::BTreeMap;

/// The names that are known.
#[derive(Default)]
pub(super) struct Users {
    names: BTreeMap<u32, String>,
}

impl Users {
    /// Reads them. Where the file cannot be read, numbers are shown.
    pub(super) fn read() -> Self {
        Self::parse(&std::fs::read("/etc/passwd").unwrap_or_default())
    }

    fn parse(bytes: &[u8]) -> Self {
        let mut names = BTreeMap::new();
        for line in String::from_utf8_lossy(bytes).lines() {
            let mut fields = line.split(':');
            if let (Some(name), Some(Ok(uid))) = (fields.next(), fields.nth(1).map(str::parse)) {
                // The first of two with one number counts, as for getpwuid(3).
                names.entry(uid).or_insert_with(|| name.to_owned());
            }
        }
        Self { names }
    }

    /// Returns the name of a user, if it is known.
    pub(super) fn name(&self, uid: u32) -> Option<&str> {
        self.names.get(&uid).map(String::as_str)
    }

    /// Returns the name of a user, or the number.
    pub(super) fn shown(&self, uid: u32) -> String {
        self.name(uid).map_or_else(|| uid.to_string(), str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_what_is_none_is_left_out() {
        let users = Users::parse(
            b"root:x:0:0::/root:/bin/sh\n\nbad\nme:x:1000\nbad:x:many:\ntoor:x:0:0\n\xff:x:7:\n",
        );
        assert_eq!(users.name(0), Some("root"));
        assert_eq!(users.shown(1000), "me");
        assert_eq!(users.shown(1001), "1001");
        assert_eq!(users.name(7), Some("\u{fffd}"));
    }
}
