//! Users and groups as an image's own `/etc/passwd` and `/etc/group` define them.

use std::path::Path;

use crate::error::{Error, Result};
use crate::view::View;

/// Largest `passwd` or `group` file that is read.
const MAX_BYTES: u64 = 4 << 20;

/// Who a process of a container runs as; ids are those inside the container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Further groups, from `/etc/group`; none where the group was given.
    pub groups: Vec<u32>,
    /// Home directory, `/` where the user has no entry.
    pub home: String,
    /// Login name, where the user has an entry.
    pub name: Option<String>,
}

fn table(view: &View, path: &str) -> Result<Vec<Vec<String>>> {
    let content = view
        .read_file(Path::new(path), MAX_BYTES)
        .map_err(|cause| Error::io("read the image's", path, cause))?;
    let content = content.unwrap_or_default();
    let text = String::from_utf8_lossy(&content);
    Ok(text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(':').map(str::to_owned).collect())
        .collect())
}

fn field(row: &[String], at: usize) -> &str {
    row.get(at).map_or("", String::as_str)
}

/// Resolves `USER[:GROUP]`, names or numbers, as Docker does for `USER`. Empty is root.
pub(crate) fn resolve(view: &View, spec: &str) -> Result<User> {
    let (user, group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (spec, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let passwd = table(view, "etc/passwd")?;
    let groups = table(view, "etc/group")?;
    let number: Option<u32> = user.parse().ok();
    let row = passwd
        .iter()
        .find(|row| field(row, 0) == user)
        .or_else(|| passwd.iter().find(|row| number.is_some() && field(row, 2).parse().ok() == number));
    let mut found = match (row, number) {
        (Some(row), _) => User {
            uid: field(row, 2).parse().unwrap_or(0),
            gid: field(row, 3).parse().unwrap_or(0),
            groups: Vec::new(),
            home: match field(row, 5) {
                "" => "/".to_owned(),
                home => home.to_owned(),
            },
            name: Some(field(row, 0).to_owned()),
        },
        (None, Some(uid)) => User { uid, gid: 0, groups: Vec::new(), home: "/".to_owned(), name: None },
        (None, None) => return Err(Error::UnknownUser { kind: "user", name: user.to_owned() }),
    };
    if row.is_some_and(|row| field(row, 2).parse::<u32>().is_err() || field(row, 3).parse::<u32>().is_err()) {
        return Err(Error::UnknownUser { kind: "valid entry for user", name: user.to_owned() });
    }
    match group.filter(|group| !group.is_empty()) {
        Some(group) => found.gid = group_id(&groups, group)?,
        None => {
            if let Some(name) = &found.name {
                let member = |row: &&Vec<String>| field(row, 3).split(',').any(|member| member == name);
                found.groups =
                    groups.iter().filter(member).filter_map(|row| field(row, 2).parse().ok()).collect();
            }
        }
    }
    Ok(found)
}

/// Resolves the owner of `--chown=USER[:GROUP]`: without a group, the user's own; a bare number counts for both.
pub(crate) fn resolve_owner(view: &View, spec: &str) -> Result<(u32, u32)> {
    let user = resolve(view, spec)?;
    match spec.parse::<u32>() {
        Ok(number) => Ok((number, number)),
        Err(_) => Ok((user.uid, user.gid)),
    }
}

fn group_id(groups: &[Vec<String>], name: &str) -> Result<u32> {
    let row = groups.iter().find(|row| field(row, 0) == name);
    match row.map_or_else(|| name.parse(), |row| field(row, 2).parse()) {
        Ok(gid) => Ok(gid),
        Err(_) => Err(Error::UnknownUser { kind: "group", name: name.to_owned() }),
    }
}
