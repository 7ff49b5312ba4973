#!/bin/bash
# Runs as the user whom it is about: what is paused stands still in its frozen cgroup, and can go on and be ended.
# shellcheck source=tests/vm/expect.sh disable=SC2016,SC2317
. "$(dirname "$0")/expect.sh"

work=$(mktemp -d /tmp/pause.XXXXXX)
cd "$work" || die "no $work"
export INCEPTION_DATA_DIR=$work/d INCEPTION_RUNTIME_DIR=$work/r
trap 'inception-run down -v >/dev/null 2>&1; cd /; rm -rf "$work"' EXIT

mkdir -p rootfs/{bin,dev,etc,proc,sys,tmp} seen
cp /bin/busybox rootfs/bin/
for name in sh sleep usleep; do ln -s busybox "rootfs/bin/$name"; done
cat >stack.toml <<'TOML'
name = "pause"
# Counts ten times a second, with a process each time, until it is asked to end.
[services.count]
rootfs = "rootfs"
command = ["sh", "-c", "trap 'echo asked >/seen/end; exit 0' TERM; n=0; while :; do n=$$((n + 1)); echo $$n >/seen/n; usleep 100000; done"]
volumes = ["./seen:/seen"]
network_mode = "none"
mem_limit = "32m"
stop_grace_period = "100s"
# One that is left alone.
[services.other]
rootfs = "rootfs"
command = ["sleep", "100000"]
stop_signal = "SIGKILL"
network_mode = "none"
TOML

echo "$(id -un) in cgroup $(sed -n 's/^0:://p' /proc/self/cgroup)"
succeeds inception-run up -d --strict || finish

row() { inception-run ps --format json | tr -d '\n' | grep -o "{[^{}]*\"service\": \"$1\"[^{}]*}"; }
state() { row "$1" | field state; }
# look : notes PID 1 of the service that counts, and its cgroup.
look() {
	pid=$(row count | field pid)
	group=/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$pid/cgroup")
}
counted() { cat seen/n 2>/dev/null; }
counts_on() { [ "$(counted)" -gt "$1" ]; }
used() { sed -n 's/^usage_usec //p' "$group/cpu.stat"; }

look
eventually 20 'it counts' counts_on 0
said=$(inception-run pause count 2>&1)
same 'what pause says' '' "$(grep -i -e stop -e warning <<<"$said")"
same 'cgroup.freeze' 1 "$(cat "$group/cgroup.freeze")"
has 'cgroup.events' '^frozen 1$' "$(cat "$group/cgroup.events")"
# Ten times as long as it takes to count on, and every process in it has used what it will use.
before="$(counted), $(used) us"
sleep 1
same 'a second later it has counted to, and has used' "$before" "$(counted), $(used) us"
same 'ps: its state' paused "$(state count)"
has 'ps' '^ *count .* paused' "$(inception-run ps)"
same 'the other one is' running "$(state other)"
same 'the other one is frozen' 0 "$(cat "${group%/*}/other/cgroup.freeze")"

before=$(counted)
succeeds inception-run unpause count
same 'cgroup.freeze' 0 "$(cat "$group/cgroup.freeze")"
same 'ps: its state' running "$(state count)"
eventually 20 'it counts on' counts_on "$before"

# Who is to stop is asked, although it stands still, and has the time to answer.
succeeds inception-run pause
same 'the other one is paused, too' paused "$(state other)"
succeeds timeout 60 inception-run stop count
same 'it was' asked "$(cat seen/end)"
same 'ps: its state' exited "$(state count)"
succeeds inception-run start count
look
same 'cgroup.freeze of the next run' 0 "$(cat "$group/cgroup.freeze")"

# A supervisor that dies takes with it who stands still.
succeeds inception-run pause count
supervisor=$(pgrep -u "$(id -u)" -o -f '__supervise pause ')
kill -KILL "$supervisor"
ended() { ! pgrep -u "$(id -u)" -f '__supervise pause ' && [ ! -e "/proc/$pid" ]; }
eventually 20 'with the supervisor all is gone' ended
succeeds inception-run up -d --strict
same 'ps: its state after `up`' running "$(state count)"

rm -f seen/end
succeeds inception-run pause
succeeds timeout 60 inception-run down -v
same 'it was' asked "$(cat seen/end)"
if [ -e "$group" ]; then wrong "$group is left"; else ok 'the cgroup is gone'; fi
same 'processes left' '' "$(pgrep -u "$(id -u)" -f '__supervise pause ')"
finish
