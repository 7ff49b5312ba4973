//! Users and groups as the image's own `/etc/passwd` and `/etc/group` name them.
//!
//! Both files belong to the image and are hostile: read with a limit, only when they are regular files.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;

/// Bytes read of an account file at the most.
const LIMIT: u64 = 4 << 20;

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// User id inside.
    pub uid: u32,
    /// Primary group id inside.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
}

/// Resolves Docker's user syntax: `user`, `uid`, `user:group`, `uid:gid` and mixtures; empty is root.
/// A numeric user that has no entry is itself with group 0 and home `/`.
///
/// # Errors
/// `NotFound` for a name that has no entry, and what reading the files reports.
pub fn resolve(user: &str) -> io::Result<Account> {
    let passwd = read("/etc/passwd")?;
    let group = read("/etc/group")?;
    lookup(user, &passwd, &group)
        .ok_or_else(|| io::Error::from_raw_os_error(rustix::io::Errno::NOENT.raw_os_error()))
}

/// The number of a group of the image's, or the number that `name` is.
///
/// # Errors
/// As [`resolve`].
pub fn group(name: &str) -> io::Result<u32> {
    find_group(name, &read("/etc/group")?)
        .ok_or_else(|| io::Error::from_raw_os_error(rustix::io::Errno::NOENT.raw_os_error()))
}

fn find_group(wanted: &str, text: &str) -> Option<u32> {
    let entry = text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, gid, ..] = fields[..] else { return None };
        (name == wanted).then(|| gid.parse().ok())?
    });
    entry.or_else(|| wanted.parse().ok())
}

fn read(path: &str) -> io::Result<String> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        other => other?,
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::from_raw_os_error(rustix::io::Errno::INVAL.raw_os_error()));
    }
    let mut bytes = Vec::new();
    file.take(LIMIT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn lookup(user: &str, passwd: &str, group: &str) -> Option<Account> {
    let (user, wanted_group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (user, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let entry = passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, ..] = fields[..] else { return None };
        (name == user || uid == user).then_some((name, uid, gid, home))
    });
    let (name, uid, gid, home) = match entry {
        Some((name, uid, gid, home)) => (name, uid.parse().ok()?, gid.parse().ok()?, home),
        None => ("", user.parse().ok()?, 0, "/"),
    };
    let groups = || {
        group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _, gid, members) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
            Some((name, gid.parse::<u32>().ok()?, members))
        })
    };
    let (gid, supplementary) = match wanted_group {
        Some(wanted) => {
            let gid = groups()
                .find(|(name, gid, _)| *name == wanted || gid.to_string() == wanted)
                .map(|(_, gid, _)| gid)
                .or_else(|| wanted.parse().ok())?;
            (gid, Vec::new())
        }
        None => {
            let member = |members: &str| !name.is_empty() && members.split(',').any(|m| m == name);
            (gid, groups().filter(|(_, _, members)| member(members)).map(|(_, gid, _)| gid).collect())
        }
    };
    let home = if home.is_empty() { "/" } else { home };
    Some(Account { uid, gid, groups: supplementary, home: home.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:/bin/false\nbroken\n";
    const GROUP: &str = "root:x:0:\nwww-data:x:33:\nssl:x:101:www-data,other\n";

    #[test]
    fn docker_user_forms() {
        let account = |user| lookup(user, PASSWD, GROUP);
        let www = Account { uid: 33, gid: 33, groups: vec![101], home: "/var/www".into() };
        assert_eq!(account("www-data"), Some(www.clone()));
        assert_eq!(account("33"), Some(www));
        assert_eq!(account("").unwrap().home, "/root");
        assert_eq!(account("1000").unwrap(), Account { uid: 1000, gid: 0, groups: vec![], home: "/".into() });
        assert_eq!(account("33:ssl").unwrap().gid, 101);
        assert_eq!(account("33:7").unwrap().gid, 7);
        assert_eq!(find_group("ssl", GROUP), Some(101));
        assert_eq!(find_group("4242", GROUP), Some(4242));
        assert_eq!(find_group("nogroup", GROUP), None);
        assert_eq!(account("nobody"), None);
        assert_eq!(account("33:nogroup"), None);
    }
}
