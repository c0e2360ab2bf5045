//! Which file is meant when none was named: the nearest one upward.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::diagnostic::{Code, Diagnostic};
use crate::read::about;

/// The names that are looked for in each directory, in this order.
pub const NAMES: [&str; 2] = ["lariat.toml", "Procfile"];

/// Finds the configuration for a directory: in it, then in each directory above, `lariat.toml` before `Procfile`.
///
/// The search goes on across the borders of file systems up to `/`: inside containers a project's own folders are
/// often mounts. What protects from a file that somebody else put into a shared directory such as `/tmp` is its
/// owner: one that belongs neither to this user, nor to root, nor to the owner of the starting directory is refused,
/// since it would be commands of theirs run as us. What has one of the names and is no file (a directory) ends the search:
/// somebody meant it, and to use another one further up would be a surprise. A file named with `-f` is not asked for its owner.
///
/// Blocks for as long as the file system does.
///
/// # Errors
/// One diagnostic with [`Code::NotFound`], [`Code::Untrusted`], or [`Code::Unreadable`] when a directory on the way
/// cannot be searched or what is found is no file.
pub fn find(start: &Path) -> Result<PathBuf, Vec<Diagnostic>> {
    let us = rustix::process::geteuid().as_raw();
    find_as(start, us)
}

fn find_as(start: &Path, us: u32) -> Result<PathBuf, Vec<Diagnostic>> {
    let start_owner = std::fs::metadata(start).map(|metadata| metadata.uid());
    for dir in start.ancestors() {
        for name in NAMES {
            let path = dir.join(name);
            match std::fs::metadata(&path) {
                Ok(found) if !found.is_file() => return Err(vec![no_file(&path, &found)]),
                Ok(found) => return trusted(path, &found, us, start_owner.ok()),
                Err(error) if is_absent(&error) => {}
                Err(error) => {
                    let message =
                        format!("cannot look at {}: {}", path.display(), crate::read::cause(&error));
                    let mut diagnostic = about(&path, Code::Unreadable, message);
                    diagnostic.help("name the file with `-f`");
                    return Err(vec![diagnostic]);
                }
            }
        }
    }
    let message = format!("there is no {} in {} or above", NAMES.join(" or "), start.display());
    let mut diagnostic = about(start, Code::NotFound, message);
    diagnostic.help("write one with `lariat init`, or name one with `-f`");
    Err(vec![diagnostic])
}

fn no_file(path: &Path, found: &Metadata) -> Diagnostic {
    let kind = if found.is_dir() { "a directory" } else { "not a regular file" };
    let mut diagnostic = about(path, Code::Unreadable, format!("{} is {kind}", path.display()));
    diagnostic.help("rename it, or name a file with `-f`");
    diagnostic
}

fn is_absent(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    // A directory that may not be searched holds nothing that could be read either; those above it may.
    matches!(error.kind(), NotFound | NotADirectory | PermissionDenied)
}

fn trusted(
    path: PathBuf,
    found: &Metadata,
    us: u32,
    start_owner: Option<u32>,
) -> Result<PathBuf, Vec<Diagnostic>> {
    let owner = found.uid();
    if owner == us || owner == 0 || start_owner == Some(owner) {
        return Ok(path);
    }
    let shown = path.display();
    let message = format!("{shown} belongs to another user (number {owner}), and was only found, not named");
    let help = format!("if you trust it, name it: `-f {shown}`");
    let mut diagnostic = about(&path, Code::Untrusted, message);
    diagnostic.note("its commands would run with your rights").help(help);
    Err(vec![diagnostic])
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_nearest_file_wins_and_toml_before_procfile() {
        let dir = tempfile::tempdir().expect("a directory");
        let deep = dir.path().join("a/b/c");
        fs::create_dir_all(&deep).expect("directories");
        let us = rustix::process::geteuid().as_raw();
        let code = |result: Result<PathBuf, Vec<Diagnostic>>| result.expect_err("none")[0].code;
        assert_eq!(code(find_as(&deep, us)), Code::NotFound);
        fs::write(dir.path().join("lariat.toml"), "").expect("a file");
        assert_eq!(find_as(&deep, us).ok(), Some(dir.path().join("lariat.toml")));
        fs::write(dir.path().join("a/Procfile"), "").expect("a file");
        assert_eq!(find_as(&deep, us).ok(), Some(dir.path().join("a/Procfile")));
        fs::write(dir.path().join("a/lariat.toml"), "").expect("a file");
        assert_eq!(find_as(&deep, us).ok(), Some(dir.path().join("a/lariat.toml")));
    }

    #[test]
    fn a_directory_of_that_name_is_said_to_be_one_and_hides_what_is_further_up() {
        let dir = tempfile::tempdir().expect("a directory");
        let us = rustix::process::geteuid().as_raw();
        for name in NAMES {
            let (here, odd) =
                (dir.path().join(name).join("here"), dir.path().join(name).join("here").join(name));
            fs::create_dir_all(&odd).expect("directories");
            fs::write(dir.path().join(name).join("Procfile"), "web: true").expect("a file");
            let refused = find_as(&here, us).expect_err("a directory is no configuration");
            assert_eq!(refused[0].code, Code::Unreadable);
            assert_eq!(refused[0].message, format!("{} is a directory", odd.display()));
            // The other name beside it counts by its order.
            fs::write(here.join("lariat.toml"), "").ok();
            assert_eq!(find_as(&here, us).is_ok(), name == "Procfile");
        }
    }

    #[test]
    fn a_file_of_another_user_is_not_taken_unasked() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lariat.toml");
        fs::write(&path, "").expect("a file");
        let found = fs::metadata(&path).expect("its data");
        let (owner, stranger) = (found.uid(), found.uid() + 1);
        assert!(trusted(path.clone(), &found, owner, None).is_ok(), "ours");
        assert!(trusted(path.clone(), &found, stranger, Some(owner)).is_ok(), "the project's owner's");
        let refused = trusted(path, &found, stranger, Some(stranger));
        // Run as root, the file is root's, which is trusted by everyone.
        assert_eq!(refused.is_ok(), owner == 0);
    }
}
