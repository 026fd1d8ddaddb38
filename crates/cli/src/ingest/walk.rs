//! The files of a folder, in bounded memory and without loops.
//!
//! Symbolic links that are found are not followed: what they lead to may be outside, a loop, or a file that is read anyway.
//! One that is given by name is.

use std::path::{Path, PathBuf};

/// Folders in folders.
const DEPTH: usize = 64;
/// Entries of a folder that are held, and sorted, at once: a folder of more is read in pieces.
const AT_ONCE: usize = 1 << 16;

/// What was met on the way.
pub(crate) enum Met<'a> {
    File(&'a Path),
    /// Before what is in it. The answer says whether to go in.
    Folder(&'a Path),
    /// What is not looked at, and why.
    Left(&'a Path, String),
}

/// Gives all that is at `path` to `meet`, which answers whether to go on (for a folder: into it).
pub(crate) fn walk(
    path: &Path,
    meet: &mut dyn FnMut(Met<'_>) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    match std::fs::metadata(path) {
        Err(e) => {
            meet(Met::Left(path, format!("it cannot be read: {e}")))?;
        }
        Ok(meta) if meta.is_dir() => folder(path, 0, meet)?,
        Ok(meta) if meta.is_file() => {
            meet(Met::File(path))?;
        }
        Ok(_) => {
            meet(Met::Left(
                path,
                "it is neither a file nor a folder".to_owned(),
            ))?;
        }
    }
    Ok(())
}

fn folder(
    path: &Path,
    depth: usize,
    meet: &mut dyn FnMut(Met<'_>) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    if depth > DEPTH {
        meet(Met::Left(
            path,
            format!("it is more than {DEPTH} folders deep"),
        ))?;
        return Ok(());
    }
    if !meet(Met::Folder(path))? {
        return Ok(());
    }
    let mut entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) => {
            meet(Met::Left(path, format!("it cannot be read: {e}")))?;
            return Ok(());
        }
    };
    loop {
        let mut names: Vec<PathBuf> = Vec::new();
        for entry in entries.by_ref().take(AT_ONCE) {
            match entry {
                Ok(entry) => names.push(entry.path()),
                Err(e) => {
                    meet(Met::Left(
                        path,
                        format!("an entry of it cannot be read: {e}"),
                    ))?;
                }
            }
        }
        if names.is_empty() {
            return Ok(());
        }
        names.sort_unstable();
        for name in names {
            match std::fs::symlink_metadata(&name).map(|m| m.file_type()) {
                Err(e) => {
                    meet(Met::Left(&name, format!("it cannot be read: {e}")))?;
                }
                Ok(kind) if kind.is_dir() => folder(&name, depth + 1, meet)?,
                Ok(kind) if kind.is_file() => {
                    meet(Met::File(&name))?;
                }
                Ok(kind) if kind.is_symlink() => {
                    meet(Met::Left(
                        &name,
                        "it is a symbolic link: name it to have it read".to_owned(),
                    ))?;
                }
                Ok(_) => {
                    meet(Met::Left(
                        &name,
                        "it is neither a file nor a folder".to_owned(),
                    ))?;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_depth_end_and_files_come_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir(root.join("b")).unwrap();
        for file in ["c", "a", "b/d"] {
            std::fs::write(root.join(file), "x").unwrap();
        }
        std::os::unix::fs::symlink(root, root.join("b/loop")).unwrap();
        std::os::unix::fs::symlink(root.join("a"), root.join("link")).unwrap();
        let mut deep = root.join("z");
        for _ in 0..DEPTH + 3 {
            std::fs::create_dir(&deep).unwrap();
            deep.push("z");
        }
        let (mut files, mut left) = (Vec::new(), Vec::new());
        walk(root, &mut |met| {
            match met {
                Met::File(path) => {
                    files.push(path.strip_prefix(root).unwrap().display().to_string())
                }
                Met::Left(path, _) => {
                    left.push(path.strip_prefix(root).unwrap().display().to_string())
                }
                Met::Folder(_) => {}
            }
            Ok(true)
        })
        .unwrap();
        assert_eq!(files, ["a", "b/d", "c"]);
        assert_eq!(
            (left.len(), left[0].as_str(), left[1].as_str()),
            (3, "b/loop", "link")
        );
        assert_eq!(left[2].matches('z').count(), DEPTH + 1);
    }
}
