#!/usr/bin/env python3
"""bench/functions.py PROGRAM FILE SECONDS : writes scripts/functions anew: which functions the processes of a stack call.

PROGRAM is an `inception-run` with symbols (`CARGO_PROFILE_RELEASE_STRIP=none scripts/build`), FILE a stack file, which is
brought up with a breakpoint on every function, in all processes of the program. Each counts once in a process, so that
the stack hardly waits for it. After so many seconds the stack is killed. As root, or with subordinate ids; x86-64 only.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time

HEAD = """\
# What the processes of a stack at rest (supervisor, netd, hub) have called since their start: five services with health
# checks, published ports, secrets and volumes, watched for half a minute with a breakpoint on every function
# (bench/functions.py). scripts/cc-in-order puts these beside each other. Names that no program has any more do no harm.
"""
GENERIC = "# Generic functions, of which these processes use one or two of many.\n"

# ptrace(2)
TRACEME, CONT, PEEKUSER, POKEUSER, SETOPTIONS, GETEVENTMSG = 0, 7, 3, 6, 0x4200, 0x4201
FORK, VFORK, CLONE, EXEC = 1, 2, 3, 4
OPTIONS = 1 << FORK | 1 << VFORK | 1 << CLONE | 1 << EXEC | 1 << 20  # the last: all die with us
RIP = 16 * 8  # in `struct user`
BREAKPOINT = b"\xcc"

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def symbols(program):
    """The functions, by address, each with the names that scripts/cc-in-order knows it by."""
    listed = subprocess.run(["nm", "-C", "--defined-only", program], check=True, capture_output=True, text=True).stdout
    found = {}
    for line in listed.splitlines():
        address, kind, name = line.split(" ", 2)
        if kind in "tTwW":
            name = re.sub(r"::h[0-9a-f]{16}$", "", re.sub(r" \[clone .*\]$", "", name))
            found.setdefault(int(address, 16), set()).add(name)
    return found


def segment(program):
    """Where the code lies, as far as the kernel loads it from the file: first and last address."""
    listed = subprocess.run(["readelf", "-lW", program], check=True, capture_output=True, text=True).stdout
    for line in listed.splitlines():
        words = line.split()
        if words[:1] == ["LOAD"] and "E" in words[6:-1]:
            start = int(words[2], 16)
            return start, start + int(words[4], 16)
    sys.exit(f"{program} has no code")


class Watch:
    """The processes that are traced: what they were before and what they have called."""

    def __init__(self, program, functions):
        self.program = os.path.realpath(program)
        self.start, self.end = segment(program)
        self.functions = {at for at in functions if self.start <= at < self.end}
        self.original = {}
        self.resting = set()  # the supervisor, netd, and what they make
        self.called = set()

    def begin(self, pid):
        """A process has executed something: if it is the program, everything in it is to be told."""
        self.resting.discard(pid)
        if os.readlink(f"/proc/{pid}/exe") != self.program:
            return
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            if file.read().split(b"\0")[1:2] in ([b"__supervise"], [b"__netd"]):
                self.resting.add(pid)
        with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(self.start)
            code = bytearray(memory.read(self.end - self.start))
            for at in self.functions:
                self.original[at] = bytes(code[at - self.start : at - self.start + 1])
                code[at - self.start : at - self.start + 1] = BREAKPOINT
            memory.seek(self.start)
            memory.write(code)

    def hit(self, pid):
        """A process has come to a breakpoint: it counts, and goes."""
        at = libc.ptrace(PEEKUSER, pid, RIP, None) - 1
        if at not in self.original:
            return
        if pid in self.resting:
            self.called.add(at)
        with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(at)
            memory.write(self.original[at])
        libc.ptrace(POKEUSER, pid, RIP, at)

    def stopped(self, pid, status):
        """Deals with what has stopped a process, and returns the signal that it is to get."""
        number, event = os.WSTOPSIG(status), status >> 16
        if number != signal.SIGTRAP:
            return 0 if number == signal.SIGSTOP else number
        if event == EXEC:
            self.begin(pid)
        elif event in (FORK, VFORK, CLONE):
            child = ctypes.c_ulong()
            libc.ptrace(GETEVENTMSG, pid, None, ctypes.byref(child))
            if pid in self.resting:
                self.resting.add(child.value)
        elif not event:
            self.hit(pid)
        return 0

    def run(self, words, seconds):
        """Carries out a command, and watches all that comes of it for so long."""
        first = os.fork()
        if first == 0:
            libc.ptrace(TRACEME, 0, None, None)
            os.kill(os.getpid(), signal.SIGSTOP)
            os.execv(self.program, words)
        os.waitpid(first, 0)
        libc.ptrace(SETOPTIONS, first, None, OPTIONS)
        libc.ptrace(CONT, first, None, None)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | 0x40000000)  # __WALL
            except ChildProcessError:
                break
            if pid == 0:
                time.sleep(0.0003)
            elif os.WIFSTOPPED(status):
                libc.ptrace(CONT, pid, None, self.stopped(pid, status))


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    program, file, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    functions = symbols(program)
    watch = Watch(program, functions)
    watch.run([program, "-f", file, "up", "-d"], seconds)
    called = {name for at in watch.called for name in functions[at]}
    instances = {}
    for names in functions.values():
        for name in names & called:
            instances[name] = instances.get(name, 0) + 1
    own = sorted(name for name in called if instances[name] <= 2)
    generic = sorted(name for name in called if instances[name] > 2)
    if not called:
        sys.exit("nothing was called: does the stack start?")
    with open(os.path.join(os.path.dirname(__file__), "../scripts/functions"), "w", encoding="utf-8") as out:
        out.write(HEAD + "".join(f"{name}\n" for name in own) + GENERIC + "".join(f"{name}\n" for name in generic))
    print(f"{len(watch.called)} functions of {len(functions)}, {len(called)} names")


main()
