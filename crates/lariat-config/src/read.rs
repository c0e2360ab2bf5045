//! A file to text: opened once, limited in size, checked to be UTF-8.
//!
//! Only regular files are read: a pipe would hold up the command that opens it, and the stack's root is the
//! directory that the file is in.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

use crate::Origin;
use crate::diagnostic::{Code, Diagnostic, Severity, Source};

/// The largest file that is read, in bytes. Thousands of services fit in it.
pub const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Reads a file. Blocks no longer than the file system does.
pub(crate) fn file(path: &Path) -> Result<(Origin, Vec<u8>), Vec<Diagnostic>> {
    let bytes = open(path).and_then(|file| {
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Err(io::Error::from(ErrorKind::IsADirectory));
        }
        if !metadata.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    });
    let bytes = bytes.map_err(|error| vec![unreadable(path, &error)])?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let mut diagnostic = about(path, Code::TooLarge, format!("{} is larger than 1 MiB", path.display()));
        diagnostic.help("is this the right file? give another one with `-f`");
        return Err(vec![diagnostic]);
    }
    let root = root(path).map_err(|error| vec![unreadable(path, &error)])?;
    Ok((Origin { file: path.to_owned(), root }, bytes))
}

fn unreadable(path: &Path, error: &io::Error) -> Diagnostic {
    let shown = path.display();
    let mut diagnostic = about(path, Code::Unreadable, format!("cannot read {shown}: {}", cause(error)));
    match error.kind() {
        ErrorKind::NotFound => diagnostic.help("give another one with `-f`, or write one with `lariat init`"),
        ErrorKind::PermissionDenied => diagnostic.help(format!("look at its permissions: `ls -ld {shown}`")),
        _ => &mut diagnostic,
    };
    diagnostic
}

/// Returns an error about a file of which there is no text.
pub(crate) fn about(file: &Path, code: Code, message: String) -> Diagnostic {
    let source = Source { file: file.to_owned(), text: String::new() };
    Diagnostic::new(Severity::Error, code, message, Arc::new(source))
}

/// Opens without waiting for the other side, should it be a pipe.
fn open(path: &Path) -> io::Result<File> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// Returns the directory that the file is in, absolute and without links, so that one project has one root however
/// it was reached. A link to a file counts where the link is.
fn root(path: &Path) -> io::Result<PathBuf> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::canonicalize(parent)
}

/// Returns the reason of an error in plain words, without the number.
pub(crate) fn cause(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "there is no such file or directory".to_owned(),
        ErrorKind::PermissionDenied => "permission denied".to_owned(),
        ErrorKind::IsADirectory => "it is a directory".to_owned(),
        ErrorKind::NotADirectory => "a part of the path is not a directory".to_owned(),
        _ => {
            let text = error.to_string();
            let end = text.find(" (os error").unwrap_or(text.len());
            text[..end].to_lowercase()
        }
    }
}

/// Turns bytes into text without a byte order mark.
pub(crate) fn text(file: &Path, bytes: Vec<u8>) -> Result<Arc<Source>, Vec<Diagnostic>> {
    let file = file.to_owned();
    let mut bytes = bytes;
    if bytes.starts_with(b"\xef\xbb\xbf") {
        bytes.drain(..3);
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Arc::new(Source { file, text })),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let bytes = error.as_bytes();
            let odd = bytes.get(at).copied().unwrap_or_default();
            let is_wide = bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff");
            let text = String::from_utf8_lossy(bytes).into_owned();
            let message = format!("{} is not UTF-8 text", file.display());
            let source = Arc::new(Source { file, text });
            let mut diagnostic = Diagnostic::new(Severity::Error, Code::NotUtf8, message, source);
            if is_wide {
                diagnostic.note("it looks like UTF-16").help("save it as UTF-8");
            } else {
                diagnostic
                    .at(at..at + '\u{fffd}'.len_utf8(), format!("the byte 0x{odd:02X}"))
                    .help("save it as UTF-8");
            }
            Err(vec![diagnostic])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_permission_is_said_so() {
        // Made up, since a test run as root can read everything.
        let refused = unreadable(Path::new("lariat.toml"), &io::Error::from_raw_os_error(13));
        assert_eq!(refused.message, "cannot read lariat.toml: permission denied");
        let help = refused.help.map(|help| help.message);
        assert_eq!(help.as_deref(), Some("look at its permissions: `ls -ld lariat.toml`"));
    }

    #[test]
    fn causes_have_no_number() {
        assert_eq!(cause(&io::Error::from_raw_os_error(40)), "too many levels of symbolic links");
    }
}
