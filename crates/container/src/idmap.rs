//! Which host ids the ids inside stand for.

use std::fs;

use nix::unistd::Uid;

use crate::Error;

/// Ids inside: 0 to 65535.
pub const SIZE: u32 = 65536;

/// Lowest range that root uses. High, because distributions hand out subordinate ranges from 100000 up
/// and systemd uses 524288 to 1879048191 for containers of its own.
const ROOT_BASE: u32 = 1_879_048_192;

/// One line of an id map: `count` ids from `inside` on are those from `outside` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First id inside.
    pub inside: u32,
    /// First id of the host.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// The id map of a user namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMap {
    /// User ids.
    pub uids: Vec<Extent>,
    /// Group ids.
    pub gids: Vec<Extent>,
    /// Write it directly (root) rather than through `newuidmap` and `newgidmap`.
    pub direct: bool,
}

impl IdMap {
    /// The map for whoever runs this: root gets a range that overlaps no entry of `/etc/subuid` and
    /// `/etc/subgid`; an ordinary user is 0 inside, followed by their subordinate range.
    ///
    /// # Errors
    /// [`Error::NoSubordinateIds`] for an ordinary user without a range, [`Error::UnmappedIds`] for root of a user
    /// namespace that does not have root's range.
    pub fn current() -> Result<Self, Error> {
        let read = |file| fs::read_to_string(file).unwrap_or_default();
        let (subuid, subgid) = (read("/etc/subuid"), read("/etc/subgid"));
        let uid = Uid::effective();
        if uid.is_root() {
            let base = free_base(&[&subuid, &subgid]);
            for file in ["/proc/self/uid_map", "/proc/self/gid_map"] {
                // Without the file there are no user namespaces, which is an error of its own.
                if fs::read_to_string(file).is_ok_and(|text| !has_range(&text, base)) {
                    return Err(Error::UnmappedIds { file, first: base, last: base + (SIZE - 1) });
                }
            }
            let extent = vec![Extent { inside: 0, outside: base, count: SIZE }];
            return Ok(Self { uids: extent.clone(), gids: extent, direct: true });
        }
        let name = name_of(uid.as_raw(), &read("/etc/passwd"))
            .or_else(|| std::env::var("USER").ok().filter(|name| !name.is_empty()))
            .unwrap_or_else(|| uid.to_string());
        let map = |kind, file, text: &str, own: u32| {
            let range = subordinate(text, &name, uid.as_raw());
            let (start, count) =
                range.ok_or_else(|| Error::NoSubordinateIds { kind, user: name.clone(), file })?;
            Ok::<_, Error>(vec![
                Extent { inside: 0, outside: own, count: 1 },
                Extent { inside: 1, outside: start, count: count.min(SIZE - 1) },
            ])
        };
        Ok(Self {
            uids: map("uid", "/etc/subuid", &subuid, uid.as_raw())?,
            gids: map("gid", "/etc/subgid", &subgid, nix::unistd::Gid::effective().as_raw())?,
            direct: false,
        })
    }

    /// The host's user and group id for root inside.
    pub fn root(&self) -> (u32, u32) {
        (self.uids[0].outside, self.gids[0].outside)
    }
}

/// The name of a user in `/etc/passwd`. The C library's look-up would load plug-ins, which a static program
/// cannot; who is known to a directory service only is named by `USER`, and `newuidmap` has the last word.
fn name_of(uid: u32, passwd: &str) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

fn entries(text: &str) -> impl Iterator<Item = (&str, u32, u32)> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        Some((fields.next()?, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    })
}

/// The largest range of a user, named or numbered.
fn subordinate(text: &str, name: &str, uid: u32) -> Option<(u32, u32)> {
    let uid = uid.to_string();
    entries(text)
        .filter(|(owner, _, _)| *owner == name || *owner == uid)
        .map(|(_, start, count)| (start, count))
        .max_by_key(|(_, count)| *count)
}

fn free_base(files: &[&str]) -> u32 {
    let taken: Vec<(u32, u32)> =
        files.iter().flat_map(|text| entries(text)).map(|(_, start, count)| (start, count)).collect();
    let free = |base: &u32| {
        let end = base + SIZE;
        taken.iter().all(|(start, count)| *start >= end || start.saturating_add(*count) <= *base)
    };
    (0..1024).map(|i| ROOT_BASE + i * SIZE).find(free).unwrap_or(ROOT_BASE)
}

/// Whether a line of a map (inside, outside, count) has all of a range that begins at `base`.
fn has_range(map: &str, base: u32) -> bool {
    map.lines().any(|line| {
        let fields: Option<Vec<u32>> =
            line.split_ascii_whitespace().map(|field| field.parse().ok()).collect();
        let Some([inside, _, count]) = fields.as_deref() else { return false };
        *inside <= base && base - inside <= count.saturating_sub(SIZE)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_a_namespace() {
        assert!(has_range("         0          0 4294967295\n", ROOT_BASE));
        assert!(has_range("0 1000 1\n1 100000 200000\n", 100_000) && has_range("5 0 65536\n", 5));
        for map in ["0 0 1\n", "0 1000 1\n1 100000 65535\n", "6 0 65536\n", "4 0 65536\n", "", "x\n"] {
            assert!(!has_range(map, 5), "{map}");
        }
    }

    #[test]
    fn ranges_of_others_are_left_alone() {
        assert_eq!(free_base(&["a:100000:65536\n"]), ROOT_BASE);
        let taken = format!("a:{ROOT_BASE}:1\nb:{}:10\n", ROOT_BASE + SIZE);
        assert_eq!(free_base(&[&taken]), ROOT_BASE + 2 * SIZE);
    }

    #[test]
    fn users_by_number() {
        let passwd = "root:x:0:0::/root:/bin/sh\nbroken\nme:x:1000:1000::/:/bin/sh\n";
        assert_eq!(name_of(1000, passwd).as_deref(), Some("me"));
        assert_eq!(name_of(1001, passwd), None);
    }

    #[test]
    fn the_largest_range_of_a_user_by_name_or_number() {
        let text = "a:100000:10\n1000:200000:65536\nbroken\nb:1:1\n";
        assert_eq!(subordinate(text, "a", 1000), Some((200_000, 65536)));
        assert_eq!(subordinate(text, "c", 1001), None);
    }
}
