#!/bin/bash
# Runs as the ordinary user: the five services, their limits, and one of them at its memory limit.
# shellcheck source=tests/vm/expect.sh disable=SC2016
. "$(dirname "$0")/expect.sh"

mkdir -p ~/site
cd ~/site || die 'no home'
cp -r /inception/bundles /inception/scripts .
# An emulated processor is thirty times slower than what these were chosen for.
sed -E -e 's/start_period = "[0-9]+s"/start_period = "600s"/' -e 's/timeout = "[0-9]+s"/timeout = "60s"/' \
	/inception/stack.toml >stack.toml
scripts/env
export INCEPTION_DATA_DIR=/stack INCEPTION_RUNTIME_DIR=$HOME/r
trap 'inception-run down -v >/dev/null 2>&1' EXIT

begin=$SECONDS
succeeds timeout 600 inception-run up -d --wait --strict --base debian || {
	inception-run ps
	inception-run logs | tail -n 30
	finish
}
echo "all five are up after $((SECONDS - begin)) s"
page() { curl -ks --max-time 60 https://localhost:8443/; }
has 'the page' '<title>Inception' "$(page)"

# cgroup SERVICE : where it is.
cgroup() {
	local pid
	pid=$(inception-run ps --format json | tr -d '\n' | sed 's/}/}\n/g' | grep "\"service\": *\"$1\"" | field pid)
	echo "/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$pid/cgroup")"
}
limits() { cat "$1"/{memory.max,cpu.max,pids.max} | tr '\n' ' '; }
m=$((1 << 20))
same 'limits of nginx' "$((128 * m)) 100000 100000 64 " "$(limits "$(cgroup nginx)")"
same 'limits of wordpress' "$((512 * m)) 200000 100000 128 " "$(limits "$(cgroup wordpress)")"
same 'limits of mariadb' "$((512 * m)) 200000 100000 128 " "$(limits "$(cgroup mariadb)")"
same 'limits of redis' "$((128 * m)) 100000 100000 32 " "$(limits "$(cgroup redis)")"
same 'limits of ftp' "$((64 * m)) 100000 100000 64 " "$(limits "$(cgroup ftp)")"

# Redis takes what it may have: a process beside the server asks for more, and is killed for it.
redis=$(cgroup redis)
inception-run exec redis sh -c 'tail /dev/zero' >/dev/null 2>&1
same 'a process that takes all memory ends with' 137 $?
above 'processes of redis killed for memory' 0 "$(sed -n 's/^oom_kill //p' "$redis/memory.events")"
above 'most memory that redis had, in MB' 100 "$(($(cat "$redis/memory.peak" 2>/dev/null || echo $((128 * m))) / m))"
has 'the page after that' '<title>Inception' "$(page)"
for service in nginx wordpress mariadb ftp; do
	same "killed in $service" 0 "$(sed -n 's/^oom_kill //p' "$(cgroup $service)/memory.events")"
done
succeeds inception-run down -v
same 'processes left' '' "$(pgrep -u student -x inception-init)"
finish
