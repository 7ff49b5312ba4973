//! cgroup v2: see `Cgroup`.
