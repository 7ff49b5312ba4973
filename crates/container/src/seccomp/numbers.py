#!/usr/bin/env python3
"""Writes the table of system call numbers, numbers.rs, to standard output.

Usage: numbers.py DIRECTORY

DIRECTORY holds the unpacked Debian packages linux-libc-dev-ARCH-cross of amd64, arm64, armhf, mips64el,
ppc64el, riscv64 and s390x (`apt-get download`, `dpkg-deb -x`). What the kernel gained after those headers were
made is added from NEWER: since Linux 5.1 new calls have the same number everywhere.
"""

import glob
import re
import subprocess
import sys

# (column, package's directory, header, definitions, base that is left out of the table)
COLUMNS = [
    ("x86_64", "x86_64-linux-gnu", "asm/unistd_64.h", [], 0),
    ("x86", "x86_64-linux-gnu", "asm/unistd_32.h", [], 0),
    ("x32", "x86_64-linux-gnu", "asm/unistd_x32.h", ["__X32_SYSCALL_BIT=0x40000000"], 0x40000000),
    ("arm", "arm-linux-gnueabihf", "asm/unistd.h", ["__ARM_EABI__=1"], 0),
    ("aarch64", "aarch64-linux-gnu", "asm/unistd.h", ["__LP64__=1", "__aarch64__=1"], 0),
    ("riscv64", "riscv64-linux-gnu", "asm/unistd.h", ["__LP64__=1", "__SIZEOF_POINTER__=8"], 0),
    ("s390x", "s390x-linux-gnu", "asm/unistd_64.h", [], 0),
    ("s390", "s390x-linux-gnu", "asm/unistd_32.h", [], 0),
    ("ppc64", "powerpc64le-linux-gnu", "asm/unistd_64.h", [], 0),
    ("ppc", "powerpc64le-linux-gnu", "asm/unistd_32.h", [], 0),
    ("mips64", "mips64el-linux-gnuabi64", "asm/unistd_n64.h", ["__NR_Linux=5000"], 5000),
    ("mips64n32", "mips64el-linux-gnuabi64", "asm/unistd_n32.h", ["__NR_Linux=6000"], 6000),
    ("mips", "mips64el-linux-gnuabi64", "asm/unistd_o32.h", ["__NR_Linux=4000"], 4000),
]

# Calls of Linux 6.5 to 6.18, and the columns that they are missing from.
NEWER = {
    "cachestat": 451, "fchmodat2": 452, "map_shadow_stack": 453, "futex_wake": 454, "futex_wait": 455,
    "futex_requeue": 456, "statmount": 457, "listmount": 458, "lsm_get_self_attr": 459,
    "lsm_set_self_attr": 460, "lsm_list_modules": 461, "mseal": 462, "setxattrat": 463, "getxattrat": 464,
    "listxattrat": 465, "removexattrat": 466, "open_tree_attr": 467, "file_getattr": 468, "file_setattr": 469,
    "listns": 470,
}
ALONE = {("x86_64", "uretprobe"): 335, ("x86_64", "uprobe"): 336, ("riscv64", "riscv_hwprobe"): 258}

# Not calls: markers of the headers.
MARKERS = {"Linux", "Linux_syscalls", "syscalls", "SYSCALL_BASE", "OABI_SYSCALL_BASE", "arch_specific_syscall",
           "64_Linux", "64_Linux_syscalls", "N32_Linux", "N32_Linux_syscalls", "O32_Linux", "O32_Linux_syscalls"}


def numbers(root, package, header, definitions):
    include = glob.glob(f"{root}/**/{package}/include", recursive=True)[0]
    flags = [f"-D{d}" for d in definitions]
    macros = subprocess.run(
        ["cpp", "-dM", "-undef", "-nostdinc", f"-I{include}", *flags, "-"],
        input=f"#include <{header}>\n", capture_output=True, text=True, check=True).stdout
    defined = dict(re.findall(r"^#define (\w+) (.+)$", macros, re.M))

    def value(text):
        while (replaced := re.sub(r"\b[A-Za-z_]\w*", lambda m: defined.get(m[0], "?"), text)) != text:
            text = replaced
        return eval(text, {"__builtins__": {}}) if "?" not in text else None

    found = {}
    for macro, text in defined.items():
        name = re.match(r"__(?:ARM_)?NR_(\w+)$", macro)
        if name and name[1] not in MARKERS and (number := value(text)) is not None:
            found[name[1]] = number
    return found


def main():
    columns = []
    for column, package, header, definitions, base in COLUMNS:
        found = {name: number - base for name, number in numbers(sys.argv[1], package, header, definitions).items()}
        for name, number in NEWER.items():
            found.setdefault(name, number)
        for (where, name), number in ALONE.items():
            if where == column:
                found.setdefault(name, number)
        # ARM's private calls (0xf0001 and on) are the only ones that do not fit; `Architecture::number` has them.
        columns.append({name: number for name, number in found.items() if 0 <= number < 0xFFFF})
    print("//! Numbers of system calls. Written by `numbers.py` from the kernel's headers; not by hand.\n")
    print("/// What an architecture does not have.\npub(super) const NONE: u16 = u16::MAX;\n")
    print("/// Names in order, and their numbers on each of `Architecture`'s columns, without the column's base.")
    print("#[rustfmt::skip]")
    names = sorted(set().union(*columns))
    print(f"pub(super) static TABLE: [(&str, [u16; {len(columns)}]); {len(names)}] = {{")
    print("    const N: u16 = NONE;\n    [")
    print("    // " + " ".join(column for column, *_ in COLUMNS))
    for name in names:
        row = ",".join(str(column[name]) if name in column else "N" for column in columns)
        print(f'    ("{name}",[{row}]),')
    print("    ]\n};")


main()
