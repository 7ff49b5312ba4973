#!/bin/bash
# limits-body.sh [by-hand] : runs as the user whom it is about: limits of a stack are set, can be read, and hold; also
# those of the sandbox that the script of a trace makes by hand, where no systemd has to be asked for a cgroup.
# shellcheck source=tests/vm/expect.sh disable=SC2016
. "$(dirname "$0")/expect.sh"

work=$(mktemp -d /tmp/limits.XXXXXX)
cd "$work" || die "no $work"
# The script of a trace walks here as the container's root.
chmod 755 .
export INCEPTION_DATA_DIR=$work/d INCEPTION_RUNTIME_DIR=$work/r
trap 'inception-run down -v >/dev/null 2>&1; cd /; rm -rf "$work"' EXIT

mkdir -p rootfs/{bin,dev,etc,proc,sys,tmp}
cp /bin/busybox rootfs/bin/
for name in sh cat dd echo sleep seq true; do ln -s busybox "rootfs/bin/$name"; done
cat >stack.toml <<'TOML'
name = "limits"
[services.box]
rootfs = "rootfs"
command = ["sleep", "100000"]
stop_signal = "SIGKILL"
network_mode = "none"
mem_limit = "48m"
cpus = 0.25
pids_limit = 12
mem_reservation = "24m"
memswap_limit = "64m"
cpu_shares = 512
cpuset = "1"
blkio_config = { device_write_bps = [{ path = "/dev/vda", rate = "2m" }] }
TOML

echo "$(id -un) in cgroup $(sed -n 's/^0:://p' /proc/self/cgroup)"
succeeds inception-run up -d --strict || {
	inception-run doctor
	finish
}

pid=$(inception-run ps --format json | field pid)
group=/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$pid/cgroup")
echo "service's cgroup: $group"
same 'memory.max' $((48 << 20)) "$(cat "$group/memory.max")"
same 'cpu.max' '25000 100000' "$(cat "$group/cpu.max")"
same 'pids.max' 12 "$(cat "$group/pids.max")"
same 'memory.low' $((24 << 20)) "$(cat "$group/memory.low")"
same 'memory.swap.max' $((16 << 20)) "$(cat "$group/memory.swap.max")"
at_most 'cpu.weight' 60 "$(cat "$group/cpu.weight")"
same 'cpuset.cpus.effective' 1 "$(cat "$group/cpuset.cpus.effective")"
has 'io.max' '^[0-9]+:0 rbps=max wbps=2097152 riops=max wiops=max' "$(cat "$group/io.max")"
explained=$(inception-run explain box --format json)
has 'explain: the cgroup' "\"directory\": \"$group\"" "$explained"
has 'explain: its own' '"own": true' "$explained"
has 'explain: memory.max' "\"value\": \"$((48 << 20))\"" "$explained"
has 'explain: cpu.max' '"value": "25000 100000"' "$explained"
has 'explain: counted by' '"origin": "cgroup"' "$explained"
count() { sed -n "s/^$2 //p" "$group/$1"; }

inside() { inception-run exec box sh -c "$1"; }
has 'the CPUs that a process may use' '^Cpus_allowed_list:[^0-9]+1$' "$(inside 'cat /proc/self/status')"

# Memory: a buffer of 200 MB that is filled.
inside 'dd if=/dev/zero of=/dev/null bs=200M count=1' >/dev/null 2>&1
same 'a process that takes 200 MB ends with' 137 $?
above 'processes killed for memory' 0 "$(count memory.events oom_kill)"
at_most 'memory' $((48 << 20)) "$(cat "$group/memory.current")"

# Processes: forty are asked for, ten at most are there at a time.
out=$(inside 'for i in $(seq 40); do sleep 2 & done; wait' 2>&1)
has 'the fork that fails' "can't fork|[Rr]esource temporarily unavailable" "$out"
above 'forks refused' 0 "$(count pids.events max)"

# CPU: a busy loop.
before=$(count cpu.stat usage_usec)
start=$(date +%s%N)
inside 'i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done'
wall=$((($(date +%s%N) - start) / 1000))
used=$(($(count cpu.stat usage_usec) - before))
above 'throttled periods' 0 "$(count cpu.stat nr_throttled)"
at_most "a busy loop's CPU time, in per cent of $wall us" 50 $((used * 100 / wall))

# It is a limit of the container, and nobody else's.
same 'the service is' running "$(inception-run ps --format json | field state)"
succeeds inception-run down -v
if [ -e "$group" ]; then wrong "$group is left"; else ok "the cgroup is gone"; fi

[ "${1-}" = by-hand ] || finish

# The script that `up --trace=script` writes makes by hand an equal cgroup, with equal limits.
cgroup_of() { sed -n 's,^0::,/sys/fs/cgroup,p' "/proc/$1/cgroup"; }
limits_of() { (cd "$(cgroup_of "$1")" && grep -s . memory.{max,low,swap.max} cpu.{max,weight} pids.max cpuset.cpus io.max); }
# A quarter of an emulated processor would be too little for a script of a hundred commands.
sed -i 's/^cpus = .*/cpus = 1.5/' stack.toml
succeeds inception-run up -d --trace=script --trace-file sandbox.sh box
pid=$(inception-run ps --format json | field pid)
group=$(cgroup_of "$pid")
wanted=$(limits_of "$pid")
succeeds inception-run down -v
# What it does is shown where it does not succeed.
sed -i 's/^set -eu$/set -eux/' sandbox.sh
sh sandbox.sh sleep 777 >script.log 2>&1 &
script=$!
if eventually 150 'the script runs its program' pgrep -fx 'sleep 777'; then
	pid=$(pgrep -fx 'sleep 777')
	same 'the cgroup made by hand' "$group" "$(cgroup_of "$pid")"
	same 'its limits' "$wanted" "$(limits_of "$pid")"
	kill -KILL "$pid"
else
	cat script.log
	ps axfo pid,stat,wchan:20,args | tail -n 20
	kill "$script" 2>/dev/null
fi
wait "$script"
if [ -e "$group" ]; then wrong "the script leaves $group"; else ok 'it takes the cgroup away'; fi
finish
