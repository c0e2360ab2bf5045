//! Where execvp(3) would look for a program.

use std::ffi::{CStr, CString};

use crate::{Errno, Result};

/// What the C library searches without a `PATH`.
const DEFAULT_PATH: &[u8] = b"/bin:/usr/bin";
/// The longest name that a file can have.
const NAME_MAX: usize = 255;
/// The longest path that the kernel takes, its NUL included.
const PATH_MAX: usize = 4096;

/// Returns the paths to try, in order, exactly as the C library's execvp(3) tries them.
///
/// The environment is the program's own, so that a service with a `PATH` of its own is found along that.
///
/// # Errors
/// [`Errno::NOENT`] for an empty name, [`Errno::NAMETOOLONG`] for one that no file can have.
pub(super) fn candidates(file: &CStr, env: &[CString]) -> Result<Vec<CString>> {
    let name = file.to_bytes();
    if name.is_empty() {
        return Err(Errno::NOENT);
    }
    if name.contains(&b'/') {
        return Ok(vec![file.to_owned()]);
    }
    if name.len() > NAME_MAX {
        return Err(Errno::NAMETOOLONG);
    }
    // The first entry counts where there are several, as for getenv(3).
    let path = env.iter().find_map(|entry| entry.to_bytes().strip_prefix(b"PATH=")).unwrap_or(DEFAULT_PATH);
    // An element that is too long is passed over; an empty one is the working directory. (After one that is too long
    // glibc tries the working directory as well, by mistake; that is not copied.)
    let elements = path.split(|byte| *byte == b':').filter(|element| element.len() < PATH_MAX - 1);
    let mut candidates = Vec::new();
    for element in elements {
        let separator: &[u8] = if element.is_empty() { b"" } else { b"/" };
        candidates.push(CString::new([element, separator, name].concat()).map_err(|_| Errno::INVAL)?);
    }
    Ok(candidates)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(file: &CStr, path: Option<&[u8]>) -> Vec<String> {
        let env: Vec<CString> = path
            .map(|path| CString::new([b"PATH=", path].concat()).unwrap())
            .into_iter()
            .chain([c"PATH=/second".to_owned()].into_iter().filter(|_| path.is_some()))
            .collect();
        candidates(file, &env).unwrap().into_iter().map(|path| path.into_string().unwrap()).collect()
    }

    #[test]
    fn elements_in_order_and_empty_ones_are_the_directory() {
        assert_eq!(tried(c"x", Some(b"/a:/b/")), ["/a/x", "/b//x"]);
        assert_eq!(tried(c"x", Some(b":/a")), ["x", "/a/x"]);
        assert_eq!(tried(c"x", Some(b"/a:")), ["/a/x", "x"]);
        assert_eq!(tried(c"x", Some(b"/a::/b")), ["/a/x", "x", "/b/x"]);
        assert_eq!(tried(c"x", Some(b"")), ["x"]);
        assert_eq!(tried(c"x", Some(b"rel")), ["rel/x"]);
    }

    #[test]
    fn without_a_path_the_default_is_searched() {
        assert_eq!(tried(c"x", None), ["/bin/x", "/usr/bin/x"]);
    }

    #[test]
    fn a_slash_switches_the_search_off() {
        assert_eq!(tried(c"./x", Some(b"/a")), ["./x"]);
        assert_eq!(tried(c"/a/b", None), ["/a/b"]);
    }

    #[test]
    fn impossible_names_and_long_elements() {
        assert_eq!(candidates(c"", &[]), Err(Errno::NOENT));
        let name = CString::new(vec![b'x'; 256]).unwrap();
        assert_eq!(candidates(&name, &[]), Err(Errno::NAMETOOLONG));
        let long = [vec![b'y'; PATH_MAX], b":/a".to_vec()].concat();
        assert_eq!(tried(c"x", Some(&long)), ["/a/x"]);
    }
}
