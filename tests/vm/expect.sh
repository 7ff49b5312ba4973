# shellcheck shell=bash
# What tests of the machine say and check. To be sourced.
set -uo pipefail

failed=0

# ok WHAT / wrong WHAT : one line of the report. The test goes on.
ok() { echo "ok: $*"; }
wrong() {
	echo "WRONG: $*"
	failed=1
}

# die WHAT : the test ends here.
die() {
	wrong "$@"
	exit 1
}

# finish : the end of a test.
finish() { exit "$failed"; }

# skip WHY : this cannot be tested here.
skip() {
	echo "skipped: $*"
	exit 77
}

# same WHAT WANTED FOUND
same() {
	if [ "$2" = "$3" ]; then ok "$1: $3"; else wrong "$1: \`$3\`, not \`$2\`"; fi
}

# has WHAT PATTERN TEXT : an extended regular expression.
has() {
	if grep -Eq -- "$2" <<<"$3"; then
		ok "$1: $(grep -E -m1 -- "$2" <<<"$3")"
	else
		wrong "$1: nothing like \`$2\` in:"$'\n'"$3"
	fi
}

# above WHAT LIMIT FOUND / at_most WHAT LIMIT FOUND : numbers.
above() {
	if [ "${3:-0}" -gt "$2" ]; then ok "$1: $3 > $2"; else wrong "$1: \`$3\` is not above $2"; fi
}
at_most() {
	if [ -n "$3" ] && [ "$3" -le "$2" ]; then ok "$1: $3 <= $2"; else wrong "$1: \`$3\` is above $2"; fi
}

# succeeds COMMAND... : its output is shown when it does not.
succeeds() {
	local out status=0
	out=$("$@" 2>&1) || status=$?
	if [ $status = 0 ]; then ok "$*"; else wrong "$* ended with $status: $out"; fi
	return $status
}

# eventually SECONDS WHAT COMMAND... : polls.
eventually() {
	local end=$((SECONDS + $1)) what=$2
	shift 2
	until "$@" >/dev/null 2>&1; do
		if [ $SECONDS -ge $end ]; then
			wrong "in vain: $what"
			return 1
		fi
		sleep 0.2
	done
	ok "$what"
}

# as_student COMMAND... : in a login session of its own, as by ssh; the arguments arrive as they are.
as_student() {
	su -l student -s /bin/bash -c "PATH=$PATH FIXTURES=$FIXTURES exec $(printf '%q ' "$@")"
}

# field NAME : the first value of that name in JSON on standard input, without quotes.
field() { sed -n "s/.*\"$1\": *\"\{0,1\}\([^\",}]*\).*/\1/p" | head -n 1; }

# runtime_or PATH : our runtime, or another one where ours is not built.
runtime_or() {
	local ours=/inception/bin/inception-oci
	if [ -x $ours ]; then echo $ours; else echo "$1"; fi
}
