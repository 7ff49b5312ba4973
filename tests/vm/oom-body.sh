#!/bin/bash
# Runs as the user whom it is about: a service that is killed for memory says so, and what services use is read from
# their cgroups.
# shellcheck source=tests/vm/expect.sh disable=SC2016,SC2317
. "$(dirname "$0")/expect.sh"

work=$(mktemp -d /tmp/oom.XXXXXX)
cd "$work" || die "no $work"
export INCEPTION_DATA_DIR=$work/d INCEPTION_RUNTIME_DIR=$work/r
trap 'inception-run down -v >/dev/null 2>&1; cd /; rm -rf "$work"' EXIT

mkdir -p rootfs/{bin,dev,etc,proc,sys,tmp}
cp /bin/busybox rootfs/bin/
for name in sh dd echo sleep; do ln -s busybox "rootfs/bin/$name"; done
cat >stack.toml <<'TOML'
name = "oom"

# Its own program is killed.
[services.hog]
rootfs = "rootfs"
command = ["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"]
network_mode = "none"
mem_limit = "32m"

# A child of it is killed, and it goes on.
[services.parent]
rootfs = "rootfs"
command = ["sh", "-c", "dd if=/dev/zero of=/dev/null bs=200M count=1; echo went on; exec sleep 100000"]
stop_signal = "SIGKILL"
network_mode = "none"
mem_limit = "40m"

# One without limits beside them.
[services.free]
rootfs = "rootfs"
command = ["sleep", "100000"]
stop_signal = "SIGKILL"
network_mode = "none"
TOML

succeeds inception-run up -d --strict || finish
# row SERVICE : its object of `ps --format json` on one line.
row() { inception-run ps --format json | tr -d '\n' | grep -o "{[^{}]*\"service\": \"$1\"[^{}]*}"; }
row_has() { row "$1" | grep -Eq "$2"; }
logged() { inception-run logs --no-log-prefix "$1" | grep -Eq "$2"; }

eventually 20 'the service whose program was killed has exited' row_has hog '"state": "exited"'
has 'in JSON' '"oom_killed": true' "$(row hog)"
has 'ps' 'hog +exited \(137, out of memory\)' "$(inception-run ps)"
has 'inspect' '"oom_killed": true' "$(inception-run inspect hog)"
has 'its log' 'inception-run: the kernel killed a process of this service: out of memory \(the limit is 32 MiB\)' \
	"$(inception-run logs hog 2>&1)"

eventually 20 'the service whose child was killed goes on' logged parent '^went on$'
has 'its log' 'the kernel killed a process of this service: out of memory \(the limit is 40 MiB\)' \
	"$(inception-run logs parent 2>&1)"
has 'its row' '"state": "running"' "$(row parent)"
has 'its row' '"oom_killed": false' "$(row parent)"
if logged free 'out of memory'; then wrong 'the third service is told of'; else ok 'the third service is not concerned'; fi

# What is stopped was not killed for memory, even if a child of it once was.
succeeds inception-run stop parent
has 'after a stop' '"oom_killed": false' "$(row parent)"
succeeds inception-run start parent

# Statistics.
stats=$(inception-run stats --no-stream --format json parent)
has 'memory is read from' '"origin": "cgroup"' "$stats"
has 'the limit' '"value": 41943040' "$stats"
has 'it is enforced' '"enforced": true' "$stats"
has 'kills of this run are counted' '"oom_kills": [0-9]' "$stats"
has 'pressure is read' '"avg10": [0-9]' "$stats"
table=$(inception-run stats --no-stream)
has 'the table' '^parent +[0-9.]+% +[0-9.]+[KM]iB / 40MiB +[0-9.]+% .* cpu [0-9]+% mem [0-9]+% io [0-9]+%' "$table"
has 'one without limits is counted in a cgroup too' '^free +[0-9.]+% +[0-9.]+[KM]iB / unlimited .* cpu [0-9]+%' "$table"
has 'top, without a terminal' 'hog +exited \(137, out of memory\)' "$(inception-run top)"

# A one-off container.
out=$(inception-run run -T hog 2>&1)
same 'a one-off container that is killed ends with' 137 $?
has 'and says why' 'out of memory' "$out"
succeeds inception-run down -v

# The report at the end of a foreground `up`, and that of `--wait`.
sed '/^# A child/,$d' stack.toml >hog.toml
out=$(inception-run -f hog.toml up 2>&1)
same 'up ends with' 1 $?
has 'its report' 'service `hog` was killed: out of memory, its limit is 32 MiB' "$out"
has 'its hint' 'hint: .*mem_limit' "$out"
check='healthcheck = { test = ["CMD", "sh", "-c", "exit 1"], interval = "1s", start_period = "60s" }'
sed -i "s/^command = .*/&\n$check/" hog.toml
out=$(inception-run -f hog.toml up --wait 2>&1)
same 'up --wait ends with' 1 $?
has 'its report' 'service `hog` was killed: out of memory, its limit is 32 MiB' "$out"
succeeds inception-run -f hog.toml down -v

# A limit that somebody sets for the whole stack is reached before the service's own.
cat >whole.toml <<'TOML'
name = "whole"
[services.hog]
rootfs = "rootfs"
command = ["sh", "-c", "until [ -e /tmp/go ]; do sleep 0.1; done; exec dd if=/dev/zero of=/dev/null bs=200M count=1"]
network_mode = "none"
mem_limit = "400m"
TOML
export COMPOSE_FILE=whole.toml
succeeds inception-run up -d --strict
group=$(sed -n 's/^0:://p' "/proc/$(row hog | grep -o '"pid": [0-9]*' | tr -dc 0-9)/cgroup")
echo 64M >"/sys/fs/cgroup${group%/*}/memory.max" || wrong "no limit for the stack above $group"
succeeds inception-run exec -T hog sh -c ': >/tmp/go'
eventually 20 'the service was killed for the limit of the stack' row_has hog '"oom_killed": true'
has 'its log' 'out of memory \(the limit of the whole stack is 64 MiB\)' "$(inception-run logs hog 2>&1)"
has 'the event' 'the limit of the whole stack is 64 MiB' "$(inception-run events --recent --no-follow 2>&1)"
succeeds inception-run down -v
finish
