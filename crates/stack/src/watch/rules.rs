//! What is watched, and what a change of it means: decided once, from the plan and the files that say what to leave out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use image::Ignore;
use image::transfer::changes::Change;
use rustix::fs::{self as kernel, Access};

use crate::plan::{Build, Hook, MountKind, Plan, Service, Source, Watch, WatchAction};
use crate::remote::{Context, RemoteError};

/// What nobody means when they change something: what git keeps for itself, and what editors leave for a moment.
const NEVER: [&str; 8] = [
    "**/.git",
    "**/.idea",
    "**/*___jb_tmp___",
    "**/*___jb_old___",
    "**/.#*",
    "**/*~",
    "**/.*.sw[nopx]",
    "**/4913",
];

/// Everything that is watched.
#[derive(Debug)]
pub struct Rules {
    rules: Vec<Rule>,
    /// What the user should know and that is no error.
    pub warnings: Vec<String>,
}

/// An entry of `develop.watch` of a service.
#[derive(Debug)]
struct Rule {
    service: String,
    /// What is watched, without links.
    path: PathBuf,
    /// The directory above, which tells when the path itself is replaced; or the path, where that one cannot be read.
    top: PathBuf,
    /// It is a directory, and all below it is watched.
    is_directory: bool,
    action: WatchAction,
    target: Option<String>,
    initial_sync: bool,
    exec: Option<Hook>,
    /// What does not count, and which directory the patterns speak of.
    ignored: Vec<(PathBuf, Ignore)>,
    /// The only paths below `path` that count.
    included: Option<Ignore>,
}

/// What is to be done after a change, in this order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Services whose images are built anew.
    pub rebuild: BTreeSet<String>,
    /// What is carried over to the containers of services.
    pub sync: BTreeMap<String, BTreeSet<Change>>,
    /// Services that are restarted.
    pub restart: BTreeSet<String>,
    /// Commands that are run in the containers of services.
    pub exec: Vec<(String, Hook)>,
}

impl Work {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Rules {
    /// Those of services of a plan, with what they depend on (all when none is named).
    ///
    /// # Errors
    /// When nothing is to be watched, or a path or a `.dockerignore` cannot be read.
    pub fn read(plan: &Plan, services: &[String]) -> Result<Self, RemoteError> {
        let concerned = plan.with_dependencies(services);
        let (mut rules, mut warnings) = (Vec::new(), Vec::new());
        for service in plan.services.iter().filter(|service| concerned.contains(&service.name)) {
            for watch in &service.watch {
                if watch.action.syncs()
                    && let Some(target) = bind_mount_of(service, &watch.path)
                {
                    warnings.push(format!(
                        "`{}` is not watched for service `{}`, which has it at {target} by a mount",
                        watch.path.display(),
                        service.name
                    ));
                    continue;
                }
                let rule = Rule::read(service, watch)?;
                if rule.leaves_out_all() {
                    warnings.push(format!(
                        "`{}` is left out by the `.dockerignore` of service `{}`: none of its changes counts",
                        watch.path.display(),
                        service.name
                    ));
                }
                rules.push(rule);
            }
        }
        if rules.is_empty() {
            return Err(RemoteError::message("there is nothing to watch: no service has `develop.watch`")
                .or_hint(
                    "`develop: {watch: [{path: ./src, action: sync, target: /srv/src}]}` of a service",
                ));
        }
        Ok(Self { rules, warnings })
    }

    /// The services that have something watched.
    #[must_use]
    pub fn services(&self) -> BTreeSet<&str> {
        self.rules.iter().map(|rule| rule.service.as_str()).collect()
    }

    /// The directories of which everything that is watched is a part.
    pub(super) fn tops(&self) -> BTreeSet<&Path> {
        self.rules.iter().map(|rule| rule.top.as_path()).collect()
    }

    /// Whether a change of a path can mean anything, or of something below it.
    pub(super) fn want(&self, path: &Path) -> bool {
        self.rules.iter().any(|rule| rule.wants(path))
    }

    /// What changes of these paths mean.
    #[must_use]
    pub fn work<'a>(&self, changed: impl IntoIterator<Item = &'a Path>) -> Work {
        let mut work = Work::default();
        let mut exec = BTreeSet::new();
        for path in changed {
            for (index, rule) in self.rules.iter().enumerate() {
                let Some(inside) = rule.counts(path) else { continue };
                let service = || rule.service.clone();
                if rule.action.syncs()
                    && let Some(change) = rule.change(path, inside)
                {
                    work.sync.entry(service()).or_default().insert(change);
                }
                match rule.action {
                    WatchAction::Rebuild => drop(work.rebuild.insert(service())),
                    WatchAction::Restart | WatchAction::SyncRestart => drop(work.restart.insert(service())),
                    WatchAction::SyncExec => drop(exec.insert(index)),
                    WatchAction::Sync => {}
                }
            }
        }
        let hooks = exec.into_iter().map(|index| &self.rules[index]);
        work.exec = hooks.filter_map(|rule| Some((rule.service.clone(), rule.exec.clone()?))).collect();
        work
    }

    /// What of these paths is carried over when the watch begins (`initial_sync`).
    #[must_use]
    pub fn initial<'a>(&self, paths: impl IntoIterator<Item = &'a Path>) -> Work {
        let mut work = Work::default();
        for path in paths {
            for rule in self.rules.iter().filter(|rule| rule.initial_sync && rule.action.syncs()) {
                if let Some(change) = rule.counts(path).and_then(|inside| rule.change(path, inside)) {
                    work.sync.entry(rule.service.clone()).or_default().insert(change);
                }
            }
        }
        work
    }
}

impl Rule {
    fn read(service: &Service, watch: &Watch) -> Result<Self, RemoteError> {
        let looking = || format!("look at `{}`, which is to be watched", watch.path.display());
        let path = fs::canonicalize(&watch.path).context(looking)?;
        let is_directory = fs::metadata(&path).context(looking)?.is_dir();
        let mut ignored = vec![(path.clone(), ignore("ignore", NEVER)?)];
        ignored.push((path.clone(), ignore("ignore", watch.ignore.iter().map(String::as_str))?));
        if let Source::Build(build) = &service.source {
            ignored.extend(ignored_by_build(build)?);
        }
        let included = match &watch.include[..] {
            [] => None,
            patterns => Some(ignore("include", patterns.iter().map(String::as_str))?),
        };
        let above = path.parent().filter(|above| kernel::access(*above, Access::READ_OK).is_ok());
        Ok(Self {
            service: service.name.clone(),
            top: above.unwrap_or(&path).to_owned(),
            path,
            is_directory,
            action: watch.action,
            target: watch.target.clone(),
            initial_sync: watch.initial_sync,
            exec: watch.exec.clone(),
            ignored,
            included,
        })
    }

    /// The path below the one that is watched, empty for that one itself; none for one that is elsewhere.
    fn below<'a>(&self, path: &'a Path) -> Option<&'a Path> {
        let below = path.strip_prefix(&self.path).ok()?;
        (self.is_directory || below.as_os_str().is_empty()).then_some(below)
    }

    /// The path below the one that is watched, if its change counts. That of a directory that is watched itself does not.
    fn counts<'a>(&self, path: &'a Path) -> Option<&'a Path> {
        let below = self.below(path)?;
        let is_itself = below.as_os_str().is_empty();
        let included = self.included.as_ref().is_none_or(|only| match is_itself {
            true => true,
            false => only.excludes(below.as_os_str().as_bytes()),
        });
        (included && !(is_itself && self.is_directory) && !self.ignores(path, |_| true)).then_some(below)
    }

    /// Whether a change of a path can mean anything, or of something below it.
    fn wants(&self, path: &Path) -> bool {
        self.below(path).is_some() && !self.ignores(path, |patterns| !patterns.has_exceptions())
    }

    /// Whether patterns leave a path out: those lists that `count`.
    fn ignores(&self, path: &Path, count: impl Fn(&Ignore) -> bool) -> bool {
        self.ignored.iter().filter(|(_, patterns)| count(patterns)).any(|(directory, patterns)| {
            let below = path.strip_prefix(directory).unwrap_or(Path::new(""));
            !below.as_os_str().is_empty() && patterns.excludes(below.as_os_str().as_bytes())
        })
    }

    fn leaves_out_all(&self) -> bool {
        self.ignores(&self.path, |patterns| !patterns.has_exceptions())
    }

    /// A change as it is carried over.
    fn change(&self, path: &Path, below: &Path) -> Option<Change> {
        let target = self.target.as_deref()?;
        if self.is_directory {
            let inside = Path::new(target).join(below);
            return Some(Change { root: self.path.clone(), path: below.to_owned(), inside });
        }
        let (directory, name) = (path.parent()?, path.file_name()?);
        let inside = if target.ends_with('/') { Path::new(target).join(name) } else { PathBuf::from(target) };
        Some(Change { root: directory.to_owned(), path: PathBuf::from(name), inside })
    }
}

/// Where a service has a path of the host mounted already.
fn bind_mount_of<'a>(service: &'a Service, path: &Path) -> Option<&'a str> {
    let has = |kind: &MountKind| matches!(kind, MountKind::Bind { source, .. } if path.starts_with(source));
    service.mounts.iter().find(|mount| has(&mount.kind)).map(|mount| mount.target.as_str())
}

fn ignore<'a>(key: &str, patterns: impl IntoIterator<Item = &'a str>) -> Result<Ignore, RemoteError> {
    Ignore::new(patterns.into_iter()).map_err(|(_, problem)| {
        // The file's own were looked at when it was read.
        RemoteError::message(format!("a bad pattern in `{key}`: {problem}"))
    })
}

/// The file that says what a build's context is without: the Dockerfile's own, or the context's. One that leaves out
/// everything but some files says what a build needs and not what is worked on: as with compose it does not count.
fn ignored_by_build(build: &Build) -> Result<Option<(PathBuf, Ignore)>, RemoteError> {
    if build.repository.is_some() {
        return Ok(None);
    }
    let own = build.dockerfiles.first().filter(|_| build.inline.is_none()).map(|dockerfile| {
        let mut path = dockerfile.path.clone().into_os_string();
        path.push(".dockerignore");
        PathBuf::from(path)
    });
    let Ok(context) = fs::canonicalize(&build.context) else { return Ok(None) };
    for path in own.into_iter().chain([context.join(".dockerignore")]) {
        let reading = || format!("read {}", path.display());
        let text = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Ok(metadata) if !metadata.is_file() => continue,
            found => found.and_then(|_| fs::read(&path)).context(reading)?,
        };
        let text = String::from_utf8_lossy(&text);
        if text.lines().any(|line| matches!(line.trim(), "*" | "**")) {
            return Ok(None);
        }
        let ignore = Ignore::parse(&text).map_err(|(line, problem)| {
            RemoteError::message(format!("{}, line {line}: {problem}", path.display()))
        })?;
        return Ok(Some((context, ignore)));
    }
    Ok(None)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A rule for all below a directory.
    pub(in crate::watch) fn rules(path: &Path, ignored: &[&str]) -> Rules {
        Rules { rules: vec![rule(path, WatchAction::Sync, ignored)], warnings: Vec::new() }
    }

    fn rule(path: &Path, action: WatchAction, ignored: &[&str]) -> Rule {
        let patterns = NEVER.iter().chain(ignored).copied();
        Rule {
            service: "web".into(),
            path: path.to_owned(),
            top: path.parent().unwrap().to_owned(),
            is_directory: true,
            action,
            target: Some("/srv".into()),
            initial_sync: false,
            exec: None,
            ignored: vec![(path.to_owned(), Ignore::new(patterns).unwrap())],
            included: None,
        }
    }

    fn hook(command: &str) -> Hook {
        Hook {
            command: vec![command.into()],
            user: None,
            privileged: false,
            working_dir: None,
            environment: BTreeMap::new(),
        }
    }

    fn work(rules: Vec<Rule>, changed: &[&str]) -> Work {
        Rules { rules, warnings: Vec::new() }.work(changed.iter().map(Path::new))
    }

    #[test]
    fn a_change_is_carried_to_the_target() {
        let synced = |rule: Rule, changed: &[&str]| -> Vec<(String, String)> {
            let work = work(vec![rule], changed);
            let changes = work.sync.into_values().flatten();
            changes
                .map(|change| (change.path.display().to_string(), change.inside.display().to_string()))
                .collect()
        };
        let sync = |ignored: &[&str]| rule(Path::new("/p/src"), WatchAction::Sync, ignored);
        assert_eq!(
            synced(sync(&[]), &["/p/src/a/b.js", "/p/other", "/p/src", "/p/srcs/x"]),
            [("a/b.js".to_owned(), "/srv/a/b.js".to_owned())]
        );
        let left_out = ["/p/src/node_modules/x/y", "/p/src/.git/index", "/p/src/a/.b.js.swp", "/p/src/a/b~"];
        assert_eq!(synced(sync(&["node_modules/"]), &left_out), []);
        assert_eq!(synced(sync(&["*.md", "!README.md"]), &["/p/src/README.md", "/p/src/x.md"]).len(), 1);
        let only =
            Rule { included: Some(Ignore::new(["**/*.go"].into_iter()).unwrap()), ..sync(&["**/*_test.go"]) };
        assert_eq!(
            synced(only, &["/p/src/a/b.go", "/p/src/c.go", "/p/src/c_test.go", "/p/src/d.txt"]).len(),
            2
        );
        // A single file is the target, or goes into it.
        for (target, inside) in [("/etc/app.conf", "/etc/app.conf"), ("/etc/", "/etc/conf")] {
            let file = Rule {
                path: "/p/conf".into(),
                is_directory: false,
                target: Some(target.into()),
                ..sync(&[])
            };
            assert_eq!(synced(file, &["/p/conf", "/p/conf/x"]), [("conf".to_owned(), inside.to_owned())]);
        }
    }

    #[test]
    fn each_action_is_done_once_for_all_changes() {
        let path = Path::new("/p");
        let exec = Rule { exec: Some(hook("reload")), ..rule(path, WatchAction::SyncExec, &[]) };
        let elsewhere = Rule { service: "db".into(), ..rule(Path::new("/q"), WatchAction::Restart, &[]) };
        let rules = vec![
            exec,
            rule(path, WatchAction::Rebuild, &[]),
            rule(path, WatchAction::SyncRestart, &[]),
            elsewhere,
        ];
        let done = work(rules, &["/p/a", "/p/b"]);
        assert_eq!(done.rebuild, BTreeSet::from(["web".to_owned()]));
        assert_eq!(done.restart, BTreeSet::from(["web".to_owned()]));
        assert_eq!(done.exec, [("web".to_owned(), hook("reload"))]);
        assert_eq!(done.sync["web"].len(), 2);
        assert!(work(vec![rule(path, WatchAction::Rebuild, &["a"])], &["/p/a"]).is_empty());
    }

    #[test]
    fn only_what_begins_with_a_sync_is_synced_at_first() {
        let path = Path::new("/p");
        let with = |initial_sync, action| Rule { initial_sync, ..rule(path, action, &["x"]) };
        for (rule, expected) in [
            (with(true, WatchAction::SyncExec), 1),
            (with(true, WatchAction::Restart), 0),
            (with(false, WatchAction::Sync), 0),
        ] {
            let rules = Rules { rules: vec![rule], warnings: Vec::new() };
            let work = rules.initial([Path::new("/p/a"), Path::new("/p/x"), Path::new("/q")]);
            assert_eq!(work.sync.values().flatten().count(), expected);
            assert!(work.restart.is_empty() && work.exec.is_empty());
        }
    }

    #[test]
    fn directories_that_are_left_out_are_not_looked_into() {
        let rules = rules(Path::new("/p/src"), &["node_modules"]);
        let wanted = |path: &str| rules.want(Path::new(path));
        assert!(wanted("/p/src") && wanted("/p/src/a") && !wanted("/p/other"));
        assert!(!wanted("/p/src/node_modules") && !wanted("/p/src/.git"));
        let excepted = Rules {
            rules: vec![rule(Path::new("/p"), WatchAction::Sync, &["d", "!d/keep"])],
            warnings: Vec::new(),
        };
        assert!(excepted.want(Path::new("/p/d")), "something below it may count");
        assert!(excepted.work([Path::new("/p/d/x")]).is_empty());
        assert!(!excepted.work([Path::new("/p/d/keep")]).is_empty());
    }

    #[test]
    fn a_dockerignore_counts_unless_it_leaves_out_everything() {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir(top.path().join("src")).unwrap();
        fs::write(top.path().join("Dockerfile"), "FROM scratch\n").unwrap();
        let build = Build {
            context: top.path().to_owned(),
            dockerfiles: vec![crate::plan::BaseDockerfile {
                base: String::new(),
                path: top.path().join("Dockerfile"),
            }],
            ..Build::default()
        };
        assert!(ignored_by_build(&build).unwrap().is_none());
        fs::write(top.path().join(".dockerignore"), "# c\nsrc/*.log\n").unwrap();
        let (directory, ignore) = ignored_by_build(&build).unwrap().unwrap();
        assert!(directory.ends_with(top.path().file_name().unwrap()) && ignore.excludes(b"src/a.log"));
        fs::write(top.path().join("Dockerfile.dockerignore"), "*.tmp\n").unwrap();
        assert!(!ignored_by_build(&build).unwrap().unwrap().1.excludes(b"src/a.log"), "the Dockerfile's own");
        fs::write(top.path().join("Dockerfile.dockerignore"), "*\n!dist\n").unwrap();
        assert!(ignored_by_build(&build).unwrap().is_none());
        fs::write(top.path().join("Dockerfile.dockerignore"), "ok\n[\n").unwrap();
        assert!(ignored_by_build(&build).unwrap_err().to_string().contains("line 2"));
    }
}
