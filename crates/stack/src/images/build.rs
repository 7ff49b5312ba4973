//! Builds of several images at the same time, each in a storage worker of its own.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::Path;
use std::str::FromStr;
use std::time::SystemTime;

use ::network::plan::NetworkPlan;
use image::Digest;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};

use super::job::Job;
use super::network::{self, Networks, WayOut};
use super::{Options, Progress, base, checkout};
use crate::netd::Starter;
use crate::paths::Paths;
use crate::plan::{Build, BuildContext};
use crate::remote::{Context, RemoteError};
use crate::storage::{self, Handles, Word, Worker};

/// How often the passing of time is told.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// An image that is being built.
struct Building<'a> {
    service: &'a str,
    build: &'a Build,
    network: &'a NetworkPlan,
    worker: Worker,
    way_out: WayOut,
}

/// Builds images, each known by the name of its service, and returns their ids. What several builds have in common is
/// built once.
///
/// # Errors
/// The first build that failed, after those that were under way have ended.
pub fn build(
    paths: &Paths,
    stack: &str,
    builds: &[(&str, &Build)],
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> Result<BTreeMap<String, String>, RemoteError> {
    checkout::with_local(builds, progress, |builds, progress| local(paths, stack, builds, options, progress))
}

/// Builds images whose contexts are all here.
fn local(
    paths: &Paths,
    stack: &str,
    builds: &[(&str, &Build)],
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> Result<BTreeMap<String, String>, RemoteError> {
    // What one of them makes anew is new for the others as well.
    let begun = SystemTime::now();
    let store = paths.store()?;
    let choice = base::choose(paths, &store, builds, progress)?;
    // Made for the first worker.
    let network = OnceCell::new();
    let starter = Starter { stack: stack.to_owned(), lock: None };
    let mut waiting: Vec<(&str, &Build)> = builds.to_vec();
    let mut running: Vec<Building<'_>> = Vec::new();
    // The handles outlive the workers, which inherit their descriptors.
    let mut handles = Handles::default();
    let mut ids: BTreeMap<String, String> = BTreeMap::new();
    let mut failed = None;
    // What holds for all builds is said once.
    let mut warned = BTreeSet::new();
    let mut tell = |event: Progress| match event {
        Progress::Warning(text) if !warned.insert(text.clone()) => {}
        event => progress(event),
    };
    loop {
        let known = ids.len();
        let (ready_now, later): (Vec<_>, Vec<_>) = waiting
            .into_iter()
            .partition(|(_, build)| awaited(build, builds).all(|name| ids.contains_key(name)));
        waiting = later;
        for (service, build) in ready_now {
            if failed.is_some() {
                break;
            }
            let building = || format!("build the image of service `{service}`");
            let mut job = Job::new(build, choice.of(build)?, options, begun, &ids).context(building)?;
            if let Some((id, told)) = job.recall(&store, service) {
                told.into_iter().for_each(&mut tell);
                tell(Progress::Built { service: service.to_owned(), id: id.clone() });
                ids.insert(service.to_owned(), id);
                continue;
            }
            job.hand_over(&mut handles).context(building)?;
            let network: &NetworkPlan = match network.get() {
                Some(network) => network,
                None => {
                    let plan = network::of_this_host()?;
                    network.get_or_init(|| plan)
                }
            };
            let (way_out, command) = WayOut::pair()?;
            let mut way_out = Some(way_out);
            let worker = storage::start(paths, |store, tell: &mut dyn FnMut(Progress)| {
                // The worker's copy: with it the worker would wait for an answer when there is no command any more.
                drop(way_out.take());
                job.carry_out(store, service, Networks::new(network, &command), tell)
            })?;
            // Still there: only the worker's copy was emptied.
            let Some(way_out) = way_out else {
                return Err(RemoteError::message("the worker's channel is gone"));
            };
            running.push(Building { service, build, network, worker, way_out });
        }
        // Others may have waited for those.
        if ids.len() > known {
            continue;
        }
        if running.is_empty() {
            break;
        }
        let ready = ready(&running, options.tick)?;
        if options.tick {
            tell(Progress::Tick);
        }
        for index in ready.asking {
            let Building { build, network, way_out, .. } = &mut running[index];
            way_out.answer(&starter, network, &build.ssh).context(|| "answer a storage worker".into())?;
        }
        for index in ready.telling.into_iter().rev() {
            let Building { service, worker, .. } = &running[index];
            let last = match worker.next::<Progress, String>() {
                Ok(Word::Event(event)) => {
                    tell(event);
                    continue;
                }
                Ok(Word::Last(last)) => last,
                Err(error) => Err(error),
            };
            match last {
                Ok(id) => {
                    tell(Progress::Built { service: (*service).to_owned(), id: id.clone() });
                    ids.insert((*service).to_owned(), id);
                }
                Err(error) => {
                    failed.get_or_insert(choice.failed(service, error));
                }
            }
            running.swap_remove(index).way_out.close().context(|| "end the build's netd".into())?;
        }
    }
    match (failed, waiting.first()) {
        (Some(error), _) => Err(error),
        (None, Some((service, _))) => Err(RemoteError::message(format!(
            "the builds of service `{service}` and of its additional contexts need each other"
        ))),
        (None, None) => Ok(ids),
    }
}

/// The services among `builds` whose images a build reads from.
fn awaited<'a>(build: &'a Build, builds: &'a [(&str, &Build)]) -> impl Iterator<Item = &'a str> {
    let services = build.contexts.values().filter_map(BuildContext::service);
    services.filter(|name| builds.iter().any(|(other, _)| other == name))
}

/// Which workers have something to say, by their index.
struct Ready {
    telling: Vec<usize>,
    /// These ask for something that only the command can do.
    asking: Vec<usize>,
}

/// Waits for one; with `tick`, for a moment only.
fn ready(running: &[Building<'_>], tick: bool) -> io::Result<Ready> {
    let workers = running.iter().map(|building| PollFd::new(&building.worker, PollFlags::IN));
    let ways_out = running.iter().map(|building| PollFd::new(&building.way_out, PollFlags::IN));
    let mut polled: Vec<PollFd<'_>> = workers.chain(ways_out).collect();
    match rustix::event::poll(&mut polled, tick.then_some(&TICK)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let (workers, ways_out) = polled.split_at(running.len());
    let with = |polled: &[PollFd<'_>], flag: Option<PollFlags>| -> Vec<usize> {
        let fired = |at: &usize| {
            let events = polled[*at].revents();
            flag.map_or(!events.is_empty(), |flag| events.contains(flag))
        };
        (0..polled.len()).filter(fired).collect()
    };
    // The end of a worker is told by its other channel.
    Ok(Ready { telling: with(workers, None), asking: with(ways_out, Some(PollFlags::IN)) })
}

/// Writes all files of an image as a tar archive, in the ids of containers.
///
/// # Errors
/// When the image is not there, or cannot be written.
pub fn export_tar(paths: &Paths, id: &str, mut out: File) -> Result<(), RemoteError> {
    let id = Digest::from_str(id)?;
    storage::run(paths, |store| {
        let image = store.image_by_id(&id)?.ok_or_else(|| RemoteError::message("the image is gone"))?;
        Ok(store.export_files(&image.layers, &mut out)?)
    })
}

/// Writes all files of an image into a directory, as files of the caller's.
///
/// # Errors
/// When the image is not there, or cannot be written.
pub fn export_directory(paths: &Paths, id: &str, directory: &Path) -> Result<(), RemoteError> {
    std::fs::create_dir_all(directory).context(|| format!("create {}", directory.display()))?;
    // Without a name: it goes with us.
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let archive = rustix::fs::open(directory, flags, Mode::from_raw_mode(0o600)).map_err(io::Error::from);
    let archive = File::from(archive.context(|| format!("write to {}", directory.display()))?);
    export_tar(paths, id, archive.try_clone()?)?;
    (&archive).seek(SeekFrom::Start(0))?;
    let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Ok(image::unpack_files(archive, directory, owner)?)
}
