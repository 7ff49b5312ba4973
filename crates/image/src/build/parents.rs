//! `COPY --parents`: the matches of a pattern, together with the directories that lead to them.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::build::item::Item;
use crate::build::source::{Place, Source, Wanted, unescaped};
use crate::error::Result;
use crate::node::MAX_DEPTH;
use crate::pattern::{Pattern, is_pattern};
use crate::view::{Dir, Node};

/// A pattern, name by name.
pub(super) struct Parts(Vec<Part>);

enum Part {
    Name(OsString),
    Pattern(Pattern),
    /// `**`: any number of directories.
    Any,
}

impl Parts {
    pub(super) fn new(names: &[OsString]) -> Result<Self, String> {
        let mut parts = Vec::new();
        for name in names {
            let text = name.to_string_lossy();
            parts.push(match &*text {
                // Several in a row mean no more than one.
                "**" if matches!(parts.last(), Some(Part::Any)) => continue,
                "**" => Part::Any,
                pattern if is_pattern(pattern) => Part::Pattern(Pattern::new(pattern, true)?),
                escaped if escaped.contains('\\') => Part::Name(unescaped(escaped).into()),
                _ => Part::Name(name.clone()),
            });
        }
        Ok(Self(parts))
    }
}

struct Search<'a> {
    source: &'a Source<'a>,
    parts: &'a [Part],
    wanted: &'a Wanted,
    items: &'a mut Vec<Item>,
    /// Directories that were listed on the way to a match.
    led: BTreeSet<PathBuf>,
    /// Matches, and places where a part of the pattern was tried: with several `**` there is more than one way.
    tried: BTreeSet<(PathBuf, usize)>,
}

/// Lists what matches below a directory.
pub(super) fn collect(
    source: &Source<'_>,
    parts: &Parts,
    place: &Place,
    dir: &Dir,
    wanted: &Wanted,
    items: &mut Vec<Item>,
) -> Result<()> {
    let (led, tried) = (BTreeSet::new(), BTreeSet::new());
    let mut search = Search { source, parts: &parts.0, wanted, items, led, tried };
    search.dir(place, dir, 0, &mut Vec::new())
}

impl Search<'_> {
    /// Goes on below a directory, which `above` led to.
    fn dir(&mut self, place: &Place, dir: &Dir, at: usize, above: &mut Vec<Item>) -> Result<()> {
        if !self.tried.insert((place.inner.clone(), at)) || above.len() > MAX_DEPTH {
            return Ok(());
        }
        let Some(part) = self.parts.get(at) else {
            self.lead(above);
            return self.source.collect_dir(place, dir, self.wanted, self.items, above.len());
        };
        let names = match part {
            Part::Name(name) => vec![name.clone()],
            _ => self.source.names(dir, &place.named)?,
        };
        if matches!(part, Part::Any) {
            self.dir(place, dir, at + 1, above)?;
        }
        for name in names {
            let next = match part {
                Part::Pattern(pattern) if !pattern.matches(name.as_bytes()) => continue,
                Part::Any => at,
                _ => at + 1,
            };
            self.child(place, dir, &name, next, above)?;
        }
        Ok(())
    }

    fn child(
        &mut self,
        place: &Place,
        dir: &Dir,
        name: &OsStr,
        next: usize,
        above: &mut Vec<Item>,
    ) -> Result<()> {
        let place = place.child(name);
        let found = self.source.view.child(dir, name);
        match found.map_err(|cause| self.source.read_error(&place.named, cause))? {
            Some(Node::Dir(child)) => {
                // The directory itself is one of its own sources only if the pattern ends there.
                let ends = next == self.parts.len();
                if !ends {
                    above.push(self.source.dir_item(&place, &child, self.wanted, false)?);
                }
                self.dir(&place, &child, next, above)?;
                if !ends {
                    above.pop();
                }
            }
            Some(Node::Leaf(leaf)) => {
                // A last `**` means files, too.
                let matches = next == self.parts.len()
                    || (next + 1 == self.parts.len() && matches!(self.parts[next], Part::Any));
                if matches
                    && !self.source.left_out(&place, self.wanted)
                    && self.tried.insert((place.inner.clone(), usize::MAX))
                {
                    self.lead(above);
                    self.source.collect_leaf(&place, &leaf, self.wanted, self.items)?;
                }
            }
            None => {}
        }
        Ok(())
    }

    /// Lists the directories that lead to a match, each once.
    fn lead(&mut self, above: &[Item]) {
        for item in above {
            if self.led.insert(item.target.clone()) {
                self.items.push(item.clone());
            }
        }
    }
}
