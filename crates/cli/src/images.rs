//! The images that `up` needs.

use std::collections::BTreeMap;

use stack::images::{self, Options};
use stack::plan::Plan;

use crate::args;
use crate::build_view::View;
use crate::output::Failure;
use crate::session::{Loaded, Session};

/// Provides the images of a plan for `up`.
pub(crate) fn for_up(
    session: &Session,
    loaded: &Loaded,
    arguments: &args::Up,
) -> Result<BTreeMap<String, String>, Failure> {
    let plan = &loaded.plan;
    let options = Options {
        services: plan.concerned(&arguments.services, arguments.no_deps),
        build: arguments.build,
        no_build: arguments.no_build,
        secrets: crate::build::secrets(loaded),
        ..Options::default()
    };
    provide(session, plan, options)
}

/// Provides the images of a plan and shows how it goes.
pub(crate) fn provide(
    session: &Session,
    plan: &Plan,
    mut options: Options,
) -> Result<BTreeMap<String, String>, Failure> {
    let mut view = View::new(session.output, session.builds());
    options.tick = view.is_live();
    let provided = images::provide(&session.paths, plan, &options, &mut |progress| view.show(progress));
    view.finish();
    Ok(provided?)
}

/// `down` of a stack that does not run: what a killed supervisor left goes, and the volumes if asked for.
pub(crate) fn clean(session: &Session, stack: &str, volumes: bool) -> Result<(), Failure> {
    for volume in images::clean(&session.paths, stack, volumes)? {
        session.output.progress(&format!("volume {volume}: removed"));
    }
    Ok(())
}
