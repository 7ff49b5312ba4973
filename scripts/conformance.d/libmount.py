"""What crun's tests call of util-linux's libmount, which Debian 12 has no Python module of."""


class _Mount:
    def __init__(self, vfs_options, fs_options):
        self.vfs_options = vfs_options
        self.fs_options = fs_options


class Table:
    """A mountinfo file (see proc_pid_mountinfo(5))."""

    def __init__(self, path):
        self._mounts = {}
        with open(path) as lines:
            for line in lines:
                left, found, right = line.partition(" - ")
                if found:
                    fields = left.split(" ")
                    self._mounts[fields[4]] = _Mount(fields[5], right.rstrip("\n").split(" ", 2)[2])

    def find_target(self, path):
        return self._mounts[path]
