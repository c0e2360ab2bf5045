//! The first file system of a guest: files as the kernel unpacks them (`newc`, kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;

/// Files by their path in the guest.
#[derive(Clone, Default, Debug)]
pub(super) struct Archive {
    entries: BTreeMap<PathBuf, (u32, Vec<u8>)>,
}

impl Archive {
    /// Adds a directory and all above it.
    pub(super) fn directory(&mut self, path: &Path) {
        for path in path.ancestors().filter(|path| path.parent().is_some()) {
            self.entries.entry(path.to_owned()).or_insert((DIRECTORY | 0o755, Vec::new()));
        }
    }

    /// Adds a file with its directories.
    pub(super) fn file(&mut self, path: &Path, mode: u32, content: impl Into<Vec<u8>>) {
        self.directory(path.parent().unwrap_or(Path::new("/")));
        self.entries.insert(path.to_owned(), (FILE | mode, content.into()));
    }

    /// Adds a file of this machine under the same path, what a link points to in place of the link.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn copy(&mut self, path: &Path) -> Result<()> {
        let what = || format!("could not read {}", path.display());
        let content = fs::read(path).with_context(what)?;
        let mode = fs::metadata(path).with_context(what)?.permissions().mode() & 0o777;
        self.file(path, mode, content);
        Ok(())
    }

    /// Returns the archive as bytes.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (number, (path, (mode, content))) in self.entries.iter().enumerate() {
            let name = path.strip_prefix("/").unwrap_or(path).as_os_str().as_encoded_bytes();
            append(&mut out, number + 1, *mode, name, content);
        }
        append(&mut out, 0, 0, b"TRAILER!!!", &[]);
        out
    }
}

fn append(out: &mut Vec<u8>, number: usize, mode: u32, name: &[u8], content: &[u8]) {
    let links = if mode & DIRECTORY != 0 { 2 } else { 1 };
    let mode = usize::try_from(mode).unwrap_or_default();
    // Number, mode, user, group, links, time, size, four device numbers, size of the name with its NUL, check sum.
    let fields = [number, mode, 0, 0, links, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
    out.extend(b"070701");
    out.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
    out.extend(name);
    out.push(0);
    pad(out);
    out.extend(content);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_come_before_what_is_in_them_and_everything_is_aligned() {
        let mut archive = Archive::default();
        archive.file(Path::new("/a/b/c"), 0o755, "text");
        let bytes = archive.bytes();
        let text = String::from_utf8_lossy(&bytes);
        let at = |name: &str| text.find(&format!("{name}\0")).unwrap();
        assert!(at("a") < at("a/b") && at("a/b") < at("a/b/c") && at("a/b/c") < at("TRAILER!!!"));
        assert_eq!(text.matches("070701").count(), 4);
        assert!(bytes.windows(6).enumerate().all(|(at, found)| found != b"070701" || at % 4 == 0));
        assert_eq!(&text[at("a/b/c") + 6..].trim_start_matches('\0')[..4], "text");
    }
}
