//! What an image is called: tags, by which people mean it, and the digests that registries have it under.
//!
//! Both are references in `tags/`, but no equals. A tag keeps its image, and may come to mean another one. A digest
//! (`REPOSITORY@sha256:...`) always means this one, keeps nothing, and goes with the last tag of its repository.

use crate::digest::Digest;
use crate::reference::Reference;

/// All that one image is called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// With a tag, sorted.
    pub tags: Vec<Reference>,
    /// With the digest of a manifest or an index, sorted.
    pub digests: Vec<Reference>,
}

/// A line in a list of images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameLine<'a> {
    /// The name.
    pub reference: &'a Reference,
    /// Its tag; none for a digest of which the repository has no tag here.
    pub tag: Option<&'a str>,
    /// The digests that the repository has the image under, as far as they are known: one for each manifest that was
    /// pulled or pushed.
    pub digests: Vec<&'a Digest>,
}

impl Names {
    pub(crate) fn new(names: impl IntoIterator<Item = Reference>) -> Self {
        let (mut tags, mut digests): (Vec<_>, Vec<_>) =
            names.into_iter().partition(|name| name.digest().is_none());
        tags.sort();
        digests.sort();
        Self { tags, digests }
    }

    /// Tags, then digests.
    pub fn all(&self) -> impl Iterator<Item = &Reference> {
        self.tags.iter().chain(&self.digests)
    }

    /// Each tag with the digests of its repository, and each digest of a repository without a tag.
    pub fn lines(&self) -> Vec<NameLine<'_>> {
        let tagged = self.tags.iter().map(|reference| NameLine {
            reference,
            tag: Some(reference.tag()),
            digests: self
                .digests
                .iter()
                .filter(|pin| pin.name() == reference.name())
                .filter_map(Reference::digest)
                .collect(),
        });
        let alone = self.digests.iter().filter(|pin| self.tags.iter().all(|tag| tag.name() != pin.name()));
        let alone = alone.map(|reference| NameLine {
            reference,
            tag: None,
            digests: reference.digest().into_iter().collect(),
        });
        tagged.chain(alone).collect()
    }

    /// What goes when one of them is taken away: with the last tag of a repository its digests, too.
    pub(crate) fn going_with(&self, name: &Reference) -> Self {
        let is_last = name.digest().is_none()
            && self.tags.iter().all(|other| other == name || other.name() != name.name());
        let pins = self.digests.iter().filter(|pin| is_last && pin.name() == name.name());
        Self::new([name].into_iter().chain(pins).cloned())
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.tags.len() + self.digests.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Names {
        Names::new(list.iter().map(|name| name.parse().unwrap()))
    }

    #[test]
    fn digests_stand_beside_the_tags_of_their_repository_or_alone() {
        let mut pins = ["1", "2", "3"].map(|text| Digest::of(text.as_bytes()));
        pins.sort();
        let [one, two, three] = pins;
        let pin = |name: &str, digest: &Digest| format!("{name}@{digest}");
        let names = names(&["a:2", &pin("a", &two), "c:1", &pin("b", &three), "a:1", &pin("a", &one)]);
        let lines: Vec<_> = names
            .lines()
            .into_iter()
            .map(|line| (line.reference.to_string(), line.tag.map(str::to_owned), line.digests))
            .collect();
        let line =
            |name: &str, tag: Option<&str>, digests| (name.to_owned(), tag.map(str::to_owned), digests);
        assert_eq!(
            lines,
            [
                line("a:1", Some("1"), vec![&one, &two]),
                line("a:2", Some("2"), vec![&one, &two]),
                line("c:1", Some("1"), vec![]),
                line(&pin("b", &three), None, vec![&three]),
            ]
        );
    }

    #[test]
    fn a_digest_goes_with_the_last_tag_of_its_repository() {
        let pin = |name: &str| format!("{name}@{}", Digest::of(b"manifest"));
        let all = names(&["a:1", "a:2", "b:1", &pin("a"), &pin("b"), &pin("c")]);
        let going = |names: &Names, name: &str| names.going_with(&name.parse().unwrap());
        assert_eq!(going(&all, "a:1"), names(&["a:1"]));
        assert_eq!(going(&all, "b:1"), names(&["b:1", &pin("b")]));
        assert_eq!(going(&all, &pin("a")), names(&[&pin("a")]));
        assert_eq!(going(&names(&["a:1", "b:1", &pin("a")]), "a:1"), names(&["a:1", &pin("a")]));
    }
}
