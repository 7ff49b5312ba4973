#!/bin/bash
# engine.sh NAME RUNTIME COMMAND... : has the engine COMMAND (docker, podman, with options) do what its users do,
# on a runtime, and compares what it says with transcripts/NAME.txt.
# shellcheck source=tests/vm/expect.sh disable=SC2016
. "$(dirname "$0")/expect.sh"
here=$(cd "$(dirname "$0")" && pwd)
name=$1 runtime=$2
engine=("${@:3}")
transcript=$(mktemp)
trap 'rm -f "$transcript"' EXIT

# What differs from run to run gets a name.
steady() { sed -E -e 's/\r//g' -e 's/(sha256:)?[0-9a-f]{64}/ID/g' -e "s,$runtime,RUNTIME,g" \
	-e 's/(containers-default)-[0-9.]+/\1/'; }

# record WORDS COMMAND... : one command: how it is shown, what it says, and how it ends if not well.
record() {
	{
		local status=0
		printf '$ %s\n' "${1//"$FIXTURES"\//}"
		timeout 120 "${@:2}" 2>&1 </dev/null || status=$?
		[ $status = 0 ] || echo "(exit code $status)"
	} | steady | tee -a "$transcript"
}
# e WORD... : a command of the engine, whose own options are not part of what is compared.
e() { record "ENGINE $*" "${engine[@]}" "$@"; }

# typed KEYS WORD... : in a terminal, as `exec -it` wants one, with keys pressed.
typed() {
	local keys=$1
	shift
	{
		printf '$ ENGINE %s\n' "$*"
		local status=0
		# The shell inside echoes what is typed; what it computes is what counts.
		printf '%b' "$keys" | timeout 120 script -qec "stty cols 77 rows 21; $(printf '%q ' "${engine[@]}" "$@")" /dev/null |
			tr -d '\r' | grep -o 'computed-[0-9][0-9 /a-z]*$' || status=$?
		[ $status = 0 ] || echo "(exit code $status)"
	} | steady | tee -a "$transcript"
}

# Answers when it has read the request, and says so when it is stopped.
answer='while read -r line && [ ${#line} -gt 1 ]; do :; done; printf "HTTP/1.0 200 OK\r\n\r\nhello\n"'
server='trap "echo stopping; exit 3" TERM; nc -lk -p 80 -e sh -c "$ANSWER" & while :; do wait; done'
fixture=$(echo "$FIXTURES"/alpine-minirootfs-3.20.*)
[ -e "$fixture" ] || skip "no base tarball of Alpine in the fixtures"

e import "$fixture" alpine:test
e run --rm alpine:test cat /etc/alpine-release
e run -d --name web --memory 64m --pids-limit 50 --cpus 0.5 -p 127.0.0.1:8099:80 -e ANSWER="$answer" alpine:test sh -c "$server"
record 'curl http://127.0.0.1:8099/' \
	curl -sS --max-time 10 --retry 20 --retry-connrefused --retry-delay 1 http://127.0.0.1:8099/
e exec web cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max /sys/fs/cgroup/cpu.max
e exec web cat /proc/1/attr/current /proc/self/attr/current
e exec --user 1234:5678 --workdir /tmp --env A=b web sh -c 'id -u; id -g; pwd; echo $A; grep -E "CapEff|NoNewPrivs|Seccomp:" /proc/self/status'
typed 'echo computed-$((40 + 2)) $(tty)\nstty size | sed s/^/computed-/\nexit\n' exec -it web sh
e exec web sh -c 'exit 9'
e exec web sh -c 'tail /dev/zero'
e pause web
e inspect -f '{{.State.Status}}' web
e unpause web
e inspect -f '{{.State.Status}}' web
e update --memory 96m --memory-swap 96m web
e exec web cat /sys/fs/cgroup/memory.max
e stop --time 20 web
e inspect -f '{{.State.Status}} {{.State.ExitCode}}' web
e logs web
e rm web
e run --rm --read-only --user 99 --cap-drop all --network none --hostname box alpine:test \
	sh -c 'hostname; id -u; grep CapEff /proc/self/status; touch /x; ls /sys/class/net; cat /proc/1/cgroup'
e run --rm --tmpfs /t:size=1m --ulimit nofile=100:200 --sysctl net.ipv4.ip_forward=1 alpine:test \
	sh -c 'df /t | tail -n 1 | tr -s " " | cut -d" " -f2,6; ulimit -Sn; ulimit -Hn; cat /proc/sys/net/ipv4/ip_forward'
# Everybody has words of their own for this one.
e run --rm alpine:test /no/such/program >/dev/null
sed -i '\,^[^$].*/no/such/program,s,.*,(it names the program),' "$transcript"
e ps -a --format '{{.Names}}'

if diff -u "$here/transcripts/$name.txt" "$transcript"; then
	ok 'the transcript is the expected one'
else
	wrong 'the transcript differs from the expected one'
fi
finish
