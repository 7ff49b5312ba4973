#!/bin/bash
# network-body.sh USER : runs as root; the stack is that user's, and the outside of it is ours: an address of the machine
# (`vm`), and a client in a network namespace.
# shellcheck source=tests/vm/expect.sh disable=SC2016
. "$(dirname "$0")/expect.sh"
ask=$(dirname "$0")/ask
user=$1

readonly VM=198.51.100.1 CLIENT=198.51.100.9 VM6=2001:db8:1::1 CLIENT6=2001:db8:1::9
work=$(mktemp -d /tmp/network.XXXXXX)
cd "$work" || die "no $work"
export INCEPTION_DATA_DIR=$work/d INCEPTION_RUNTIME_DIR=$work/r
server=
# shellcheck disable=SC2317 # called by the trap
end() {
	run down -v >/dev/null 2>&1
	[ -z "$server" ] || kill "$server"
	ip netns delete client
	cd / && rm -rf "$work"
}
trap end EXIT

# run ARGUMENT... : inception-run, as the user.
run() { setpriv --reuid "$user" --regid "$user" --init-groups env HOME="$work" inception-run "$@"; }
# from SERVICE QUESTION... / outside QUESTION... : asked from a service, or as the client; a line as answer to each.
from() { run exec "$1" /bin/ask "${@:2}"; }
outside() { ip netns exec client "$ask" "$@"; }
part() { echo "--- after $SECONDS s: $1"; }
modules() { cut -d' ' -f1 /proc/modules | sort; }

modules >modules.before
ip netns add client
ip link add outside type veth peer name eth0 netns client
for end in "$VM $VM6 outside" "$CLIENT $CLIENT6 eth0 -n client"; do
	read -r four six link where <<<"$end"
	# shellcheck disable=SC2086 # two words or none
	for address in "$four/24" "$six/64 nodad"; do ip $where address add $address dev "$link"; done
	# shellcheck disable=SC2086
	ip $where link set "$link" up
done
hostname vm
# As systemd has it.
echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range
"$ask" serve 7000 7001 &
server=$!

# A root file system of busybox, and perl for `ask`.
mkdir -p rootfs/{bin,dev,etc,proc,sys,tmp,lib64}
cp /bin/busybox "$ask" rootfs/bin/
for name in sh sleep ping nslookup; do ln -s busybox rootfs/bin/$name; done
cp -rL --parents /usr/bin/perl /usr/lib/x86_64-linux-gnu/perl-base rootfs
for library in $(ldd /usr/bin/perl | grep -o '/[^ ]*'); do cp -L --parents "$library" rootfs; done

stack() {
	cat <<-TOML
		name = "net"
		[networks.default]
		enable_ipv6 = true
		[services.web]
		rootfs = "rootfs"
		command = ["/bin/ask", "serve", "80"]
		environment = { VERSION = "$1" }
		stop_grace_period = "10s"
		replicas = 2
		ports = ["0.0.0.0:8080:80", "0.0.0.0:8080:80/udp", "[::]:8080:80"]
		healthcheck = { test = ["TCP", "80"], interval = "500ms", timeout = "10s", start_period = "60s" }
		[services.direct]
		rootfs = "rootfs"
		command = ["/bin/ask", "serve", "80"]
		ports = [{ target = 80, published = 8081, host_ip = "0.0.0.0", mode = "direct" }]
	TOML
	for policy in 'app "all"' "some [\"$VM:7000\"]" 'none "none"'; do
		printf '[services.%s]\nrootfs = "rootfs"\ncommand = ["sleep", "100000"]\nstop_signal = "SIGKILL"\n' "${policy% *}"
		echo "egress = ${policy#* }"
	done
}
stack 1 >stack.toml
chown -R "$user": "$work"

out=$(run doctor)
for finding in 'nftables +transparent proxies' netem; do has doctor "ok +$finding" "$out"; done
same 'doctor warns of' '' "$(grep -E '(warning|error) +(networks|nft|ping)' <<<"$out")"

out=$(run up -d --wait 2>&1) || die "up: $out"$'\n'"$(run logs; run doctor)"
# Debian lets nobody but root put a filter on a TCP socket either.
[ "$user" = root ] || warned="warning: service \`direct\` has a port in direct mode and could connect from the host's network \
with it: put a filter on a TCP socket: Operation not permitted (os error 1)"
same 'up warns of' "${warned:-}" "$(grep warning <<<"$out")"

part 'the way out'
mapfile -t answers < <(from app "$VM 7000" "-u $VM 7000" "$VM6 7000" "$VM 7009")
same 'TCP' "vm $VM" "${answers[0]}"
same 'UDP' "vm $VM" "${answers[1]}"
same 'TCP over IPv6' "vm $VM6" "${answers[2]}"
same 'a closed port' 'Connection refused' "${answers[3]}"
has 'ping' '1 packets received' "$(run exec app ping -c 1 -w 20 $VM 2>&1)"
mapfile -t answers < <(from some "$VM 7000" "$VM 7001")
same 'what a list allows' "vm $VM" "${answers[0]}"
same 'what it does not' 'Connection refused' "${answers[1]}"
same 'nothing is allowed' 'Connection refused' "$(from none "$VM 7000")"
has 'ping, with nothing allowed' '0 packets received' "$(run exec none ping -c 1 -W 1 $VM 2>&1)"
out=$(run events --recent --no-follow)
has 'events' "some egress refused: tcp $VM:7001" "$out"
has 'events' "none egress refused: tcp $VM:7000" "$out"

part 'the way in'
mapfile -t answers < <(outside "$VM 8080" "-u $VM 8080" "$VM6 8080" "$VM 8081")
has 'TCP' "^web(-2)? $CLIENT\$" "${answers[0]}"
has 'UDP' "^web(-2)? $CLIENT\$" "${answers[1]}"
has 'TCP over IPv6' "^web(-2)? $CLIENT6\$" "${answers[2]}"
same 'directly' "direct $CLIENT" "${answers[3]}"

part 'names, and the address that replicas share'
mapfile -t answers < <(from app 'web-1 80' 'web-2 80' 'tasks.web 80' 'direct 80' 'web 80' 'web 80' 'web 80' 'web 80')
same 'web-1' web "${answers[0]% *}"
same 'web-2' web-2 "${answers[1]% *}"
has 'tasks.web' '^web(-2)? ' "${answers[2]}"
same 'direct' direct "${answers[3]% *}"
same 'web' 'web web-2' "$(printf '%s\n' "${answers[@]:4}" | cut -d' ' -f1 | sort -u | xargs)"
has 'IPv6 addresses' 'Address.*: fd' "$(run exec app nslookup -type=aaaa web 2>&1)"

# load WHAT COMMAND... : while the command runs, every connection to the published port is answered.
load() {
	local what=$1 client
	shift
	rm -f .ended
	outside -until .ended "$VM 8080" >load.log &
	client=$!
	eventually 20 "$what: clients" grep -q begun load.log
	succeeds "$@"
	touch .ended
	wait $client
	same "$what: failures" '' "$(grep failed load.log)"
	above "$what: connections" 1 "$(sed -n 's/asked: //p' load.log)"
}
part 'changes under load'
load 'scale' run scale web=3
stack 2 >stack.toml
load 'up --rolling' run up -d --rolling
load 'restart' run restart web
pkill -KILL -f '__[n]etd'
has 'the way in, with a new netd' '^web' "$(outside "$VM 8080")"
has 'events' 'netd restarted' "$(run events --recent --no-follow)"
same 'the way out' "vm $VM" "$(from app "$VM 7000")"

faults() {
	part 'faults'
	succeeds run net delay direct 300ms
	above 'a round trip with a delay of 300 ms each way, in ms' 599 "$(from app "-t direct 80")"
	has 'ping' 'min/avg/max = [6-9][0-9][0-9]|min/avg/max = [0-9]{4}' "$(run exec app ping -c 2 -w 20 direct 2>&1)"
	succeeds run net heal
	succeeds run net rate direct 400kbit
	above '50000 bytes at 400 kbit/s, in ms' 900 "$(from app "-t direct 80 50000")"
	succeeds run net heal
	succeeds run net loss direct 100%
	has 'all is lost' '0 packets received' "$(run exec app ping -c 2 -W 1 direct 2>&1)"
	succeeds run net heal
	succeeds run net partition app direct
	has 'a partition' '0 packets received' "$(run exec app ping -c 2 -W 1 direct 2>&1)"
	succeeds run net heal
	same 'healed' 'direct' "$(from app "direct 80" | cut -d' ' -f1)"
}
# The links are as an ordinary user's.
[ "$user" = root ] || faults

succeeds run down -v
same 'processes left' '' "$(pgrep -x inception-init)"
echo "modules that were loaded: $(modules | comm -13 modules.before - | xargs)"
finish
