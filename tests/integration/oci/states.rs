//! The state machine, against a model: whatever order the commands come in, each one succeeds or fails as the
//! specification says, and the status is the model's.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::bundle::{Bundle, can_pause};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Create,
    Start,
    Kill,
    Delete,
    ForceDelete,
    Pause,
    Resume,
    Exec,
}

/// The status after a step that succeeds; `None` for a step that must fail.
fn after(status: &'static str, step: Step) -> Option<&'static str> {
    match (step, status) {
        (Step::Create, "gone") => Some("created"),
        (Step::Start, "created") => Some("running"),
        (Step::Kill, "created" | "running") => Some("stopped"),
        // The signal comes when it goes on; SIGKILL comes at once.
        (Step::Kill, "paused") => Some("stopped"),
        (Step::Delete, "stopped" | "created") => Some("gone"),
        (Step::ForceDelete, _) => Some("gone"),
        (Step::Pause, "created" | "running") => Some("paused"),
        (Step::Resume, "paused") => Some("running"),
        (Step::Exec, "created") => Some("created"),
        (Step::Exec, "running") => Some("running"),
        _ => None,
    }
}

#[test]
fn every_order_of_commands() {
    let pausing = can_pause();
    let mut steps = vec![Step::Create, Step::Start, Step::Kill, Step::Delete, Step::ForceDelete, Step::Exec];
    // Often enough for something to be there.
    steps.extend([Step::Create, Step::Start]);
    if pausing {
        steps.extend([Step::Pause, Step::Resume]);
    }
    let bundle = Bundle::new("exec sleep 1000");
    let mut runner = TestRunner::new(Config { cases: 24, failure_persistence: None, ..Config::default() });
    let sequences = proptest::collection::vec(proptest::sample::select(steps), 1..12);
    runner
        .run(&sequences, |sequence| {
            let id = bundle.id.as_str();
            // What an order that failed has left.
            bundle.run(&["delete", "--force", id]).ok();
            let mut status = "gone";
            // A created container that was frozen is created again when it goes on.
            let mut started = false;
            for step in sequence {
                let code = match step {
                    Step::Create => bundle.create_with(&[]).code,
                    Step::Start => bundle.run(&["start", id]).code,
                    Step::Kill => bundle.run(&["kill", id, "KILL"]).code,
                    Step::Delete => bundle.run(&["delete", id]).code,
                    Step::ForceDelete => bundle.run(&["delete", "--force", id]).code,
                    Step::Pause => bundle.run(&["pause", id]).code,
                    Step::Resume => bundle.run(&["resume", id]).code,
                    Step::Exec => bundle.run(&["exec", id, "true"]).code,
                };
                let mut next = after(status, step);
                if step == Step::Start && next.is_some() {
                    started = true;
                }
                if step == Step::Resume && next.is_some() && !started {
                    next = Some("created");
                }
                prop_assert_eq!(code == 0, next.is_some(), "{:?} when {}", step, status);
                status = next.unwrap_or(status);
                if status == "gone" {
                    started = false;
                }
                if status == "stopped" {
                    bundle.wait_status("stopped");
                }
                prop_assert_eq!(bundle.status(), status, "after {:?}", step);
            }
            bundle.run(&["delete", "--force", id]).ok();
            bundle.nothing_left();
            Ok(())
        })
        .unwrap();
}
