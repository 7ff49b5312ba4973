//! What the tests stand on: a store of their own, archives made by hand, a runner that needs no sandbox.

use std::collections::BTreeMap;
use std::fs;
use std::io::{PipeReader, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use image::{
    BoxError, BuildEvent, BuildRequest, Digest, GitSource, Image, ImportOptions, Reference, RunStep, Runner,
    Running, Store, default_config,
};
use tempfile::TempDir;

/// True in an ordinary user's process: the test has then been run in a user namespace instead.
pub(crate) fn delegated(test: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return false;
    }
    let own = std::env::current_exe().unwrap();
    let unshare = |options: &[&str], command: &[&str]| {
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user", "--mount"]).args(options).args(command);
        unshare
    };
    // With subordinate ids, if this user has any and the tools to use them.
    let many = unshare(&["--map-auto"], &["true"]).output().is_ok_and(|done| done.status.success());
    let options: &[&str] = if many { &["--map-auto"] } else { &[] };
    let status = unshare(options, &[own.to_str().unwrap(), "--exact", test, "--nocapture"]).status();
    assert!(status.unwrap().success(), "{test} failed in its user namespace");
    true
}

/// Whether files can belong to others than root here.
pub(crate) fn has_many_ids(test: &str) -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap();
    let ids: u64 =
        map.lines().map(|line| line.split_whitespace().last().unwrap().parse::<u64>().unwrap()).sum();
    if ids < 65536 {
        eprintln!("skipped: {test}: the user namespace has {ids} id(s) only");
    }
    ids >= 65536
}

/// A file of the fixtures folder; none (and a note) where there is none.
pub(crate) fn fixtures(test: &str) -> Option<PathBuf> {
    let dir = std::env::var_os("INCEPTION_FIXTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures"),
        PathBuf::from,
    );
    if dir.is_dir() {
        return Some(dir);
    }
    eprintln!("skipped: {test}: no fixtures in {} (set INCEPTION_FIXTURES)", dir.display());
    None
}

pub(crate) struct Place {
    pub(crate) temp: TempDir,
    pub(crate) store: Store,
}

impl Place {
    pub(crate) fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(&temp.path().join("data")).unwrap();
        fs::create_dir(temp.path().join("context")).unwrap();
        fs::create_dir(temp.path().join("outside")).unwrap();
        Self { temp, store }
    }

    pub(crate) fn outside(&self) -> PathBuf {
        self.temp.path().join("outside")
    }

    pub(crate) fn data(&self) -> &Path {
        self.store.data_dir()
    }

    /// Writes a file of the build context.
    pub(crate) fn context(&self, name: &str, content: &str) {
        let path = self.temp.path().join("context").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub(crate) fn context_dir(&self) -> PathBuf {
        self.temp.path().join("context")
    }

    /// Nothing half made and nothing finished.
    pub(crate) fn assert_untouched(&self) {
        for dir in ["tmp", "l", "images", "tags", "cache"] {
            assert_eq!(list(&self.data().join(dir)), Vec::<String>::new(), "{dir}");
        }
        assert_eq!(list(&self.outside()), Vec::<String>::new());
    }

    pub(crate) fn import(&self, name: &str, archive: &[u8]) -> image::Result<Image> {
        let options = ImportOptions {
            source: "test.tar".to_owned(),
            config: default_config(),
            ..ImportOptions::default()
        };
        self.store.import_tarball(&name.parse().unwrap(), archive, &options)
    }

    /// The directory of an image's layer, counted from the top.
    pub(crate) fn layer(&self, image: &Image, from_top: usize) -> PathBuf {
        let id = &image.layers[image.layers.len() - 1 - from_top];
        self.data().join(self.store.layer_path(id))
    }

    /// A small base called `base:1`, with `/lib` a link as in Debian.
    pub(crate) fn base(&self) -> Image {
        let mut tar = Archive::new();
        tar.dir("./").dir("etc/").dir("usr/").dir("usr/lib/").dir("tmp/");
        tar.link("lib", "usr/lib");
        tar.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/sh\n");
        tar.file("etc/group", b"root:x:0:\nweb:x:34:\nlog:x:50:web,other\n");
        tar.file("usr/lib/a", b"a");
        self.import("base:1", &tar.finish()).unwrap()
    }

    pub(crate) fn build(&self, dockerfile: &str) -> Built {
        self.build_with(dockerfile, |_| {})
    }

    pub(crate) fn build_with(&self, dockerfile: &str, change: impl FnOnce(&mut BuildRequest)) -> Built {
        let path = self.temp.path().join("Dockerfile");
        fs::write(&path, dockerfile).unwrap();
        let mut request = BuildRequest {
            context: self.context_dir(),
            dockerfile: path,
            dockerfile_name: Some("Dockerfile".to_owned()),
            args: BTreeMap::new(),
            // The tests' servers are there.
            reaches_host: true,
            ..BuildRequest::default()
        };
        change(&mut request);
        let mut runner = Shell::new(self.data());
        let recalled = image::recall(&self.store, &request);
        let mut events = Vec::new();
        let result = image::build(&self.store, &request, &mut runner, &mut |event| events.push(event));
        assert_eq!(list(&self.data().join("tmp")), Vec::<String>::new());
        // What a look says, the build must say, too, and make nothing for it.
        let recalled = recalled.map(|(image, told)| {
            assert_eq!(result.as_ref().unwrap(), &image, "a look found another image");
            assert_eq!((runner.steps.len(), runner.fetched.len()), (0, 0));
            assert_eq!(timeless(&told), timeless(&events));
            image
        });
        Built { result, recalled, steps: runner.steps, fetched: runner.fetched, events }
    }
}

/// Events without how long things took.
fn timeless(events: &[BuildEvent]) -> Vec<BuildEvent> {
    let timeless = |event: &BuildEvent| match event {
        BuildEvent::StepDone { step, .. } => BuildEvent::StepDone { step: *step, seconds: 0.0 },
        other => other.clone(),
    };
    events.iter().map(timeless).collect()
}

pub(crate) struct Built {
    pub(crate) result: image::Result<Image>,
    /// What a look found before.
    pub(crate) recalled: Option<Image>,
    pub(crate) steps: Vec<RunStep>,
    pub(crate) fetched: Vec<String>,
    pub(crate) events: Vec<BuildEvent>,
}

impl Built {
    pub(crate) fn image(self) -> Image {
        self.result.unwrap()
    }

    /// The error with its causes, as one text.
    pub(crate) fn error(self) -> String {
        chain(&self.result.unwrap_err())
    }

    /// The texts of the steps that were found in the cache.
    pub(crate) fn cached(&self) -> Vec<String> {
        let mut begun = BTreeMap::new();
        let mut cached = Vec::new();
        for event in &self.events {
            match event {
                BuildEvent::StepStarted { step, text, .. } => drop(begun.insert(*step, text.clone())),
                BuildEvent::StepCached { step } => cached.push(begun[step].clone()),
                _ => {}
            }
        }
        cached
    }
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// Runs the last word of a command line with the host's shell inside the upper directory: enough for
/// layers, and no sandbox is needed.
pub(crate) struct Shell {
    data: PathBuf,
    pub(crate) steps: Vec<RunStep>,
    /// Commits of repositories that were fetched.
    pub(crate) fetched: Vec<String>,
}

impl Shell {
    pub(crate) fn new(data: &Path) -> Self {
        Self { data: data.to_owned(), steps: Vec::new(), fetched: Vec::new() }
    }

    fn repository(&self, branch: &str) -> PathBuf {
        self.data.with_file_name("outside").join(branch)
    }
}

impl Runner for Shell {
    fn start(&mut self, step: &RunStep) -> Result<Box<dyn Running>, BoxError> {
        self.steps.push(step.clone());
        let mut child = Command::new("/bin/sh");
        child.arg("-c").arg(step.argv.last().unwrap()).current_dir(self.data.join(&step.upper)).env_clear();
        child.envs(step.env.iter().map(|(name, value)| (name, value)));
        Process::start(child)
    }

    /// A repository is a directory, whose branches are directories in it.
    fn git_commit(&mut self, source: &GitSource) -> Result<String, BoxError> {
        let name = source.reference.as_deref().unwrap_or("main");
        let digest = Digest::of(fs::read_to_string(self.repository(name).join("file"))?.as_bytes());
        Ok(digest.hex()[..40].to_owned())
    }

    fn git_fetch(&mut self, source: &GitSource, commit: &str, directory: &Path) -> Result<i64, BoxError> {
        self.fetched.push(commit.to_owned());
        let name = source.reference.as_deref().unwrap_or("main");
        let copied =
            Command::new("cp").arg("-r").arg(self.repository(name).join(".")).arg(directory).status()?;
        assert!(copied.success());
        Ok(784_111_777)
    }
}

/// A process of the host's, whose output is read.
pub(crate) struct Process {
    child: Child,
    output: PipeReader,
}

impl Process {
    pub(crate) fn start(mut command: Command) -> Result<Box<dyn Running>, BoxError> {
        let (output, input) = std::io::pipe()?;
        let child = command.stdout(input.try_clone()?).stderr(input).spawn()?;
        Ok(Box::new(Self { child, output }))
    }
}

impl Running for Process {
    fn output(&self) -> BorrowedFd<'_> {
        self.output.as_fd()
    }

    fn wait(&mut self) -> Result<i32, BoxError> {
        Ok(self.child.wait()?.code().unwrap_or(128))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

pub(crate) fn list(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub(crate) fn reference(name: &str) -> Reference {
    name.parse().unwrap()
}

/// An archive made header by header, so that it can hold what no honest program writes.
pub(crate) struct Archive(Vec<u8>);

impl Archive {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn raw(
        &mut self,
        kind: u8,
        name: &[u8],
        link: &[u8],
        content: &[u8],
        change: impl FnOnce(&mut tar::Header),
    ) -> &mut Self {
        let mut header = tar::Header::new_ustar();
        header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name);
        old.linkname[..link.len()].copy_from_slice(link);
        old.linkflag = [kind];
        change(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(&mut self, name: &str, content: &[u8]) -> &mut Self {
        self.raw(b'0', name.as_bytes(), b"", content, |_| {})
    }

    pub(crate) fn dir(&mut self, name: &str) -> &mut Self {
        self.raw(b'5', name.as_bytes(), b"", b"", |_| {})
    }

    pub(crate) fn link(&mut self, name: &str, target: &str) -> &mut Self {
        self.raw(b'2', name.as_bytes(), target.as_bytes(), b"", |_| {})
    }

    pub(crate) fn hard(&mut self, name: &str, target: &str) -> &mut Self {
        self.raw(b'1', name.as_bytes(), target.as_bytes(), b"", |_| {})
    }

    pub(crate) fn pax(&mut self, key: &str, value: &str) -> &mut Self {
        let rest = key.len() + value.len() + 3;
        let length = (rest + 1..rest + 8).find(|length| rest + length.to_string().len() == *length).unwrap();
        let record = format!("{length} {key}={value}\n");
        self.raw(b'x', b"pax", b"", record.as_bytes(), |_| {})
    }

    pub(crate) fn finish(&mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        std::mem::take(&mut self.0)
    }
}

pub(crate) fn xz(bytes: &[u8]) -> Vec<u8> {
    let options = lzma_rust2::XzOptions::with_preset(1);
    let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
