//! What a service may use, as the file says it.

use serde::{Deserialize, Serialize};

/// Resource limits, enforced by cgroup v2.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes.
    pub memory: Option<u64>,
    /// CPUs, 0.5 is half of one.
    pub cpus: Option<f64>,
    /// Number of processes.
    pub pids: Option<u64>,
    /// Bytes that are not reclaimed while others have more than theirs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_reservation: Option<u64>,
    /// Bytes of memory and swap together; -1 is as much swap as there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_swap: Option<i64>,
    /// Weight when processor time is short, 2 to 262144, usually 1024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_shares: Option<u64>,
    /// CPUs by number: `0-2,5`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpuset: Option<String>,
    /// Block devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_io: Option<BlockIo>,
}

/// `blkio_config`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BlockIo {
    /// 10 to 1000.
    pub weight: Option<u16>,
    /// Other weights for some devices.
    pub weight_device: Vec<DeviceWeight>,
    /// Bytes read in a second.
    pub read_bps: Vec<DeviceRate>,
    /// Bytes written in a second.
    pub write_bps: Vec<DeviceRate>,
    /// Reads in a second.
    pub read_iops: Vec<DeviceRate>,
    /// Writes in a second.
    pub write_iops: Vec<DeviceRate>,
}

/// A weight for one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceWeight {
    /// Its node on the host.
    pub path: String,
    /// 10 to 1000.
    pub weight: u16,
}

/// A limit for one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceRate {
    /// Its node on the host.
    pub path: String,
    /// In a second; 0 is no limit.
    pub rate: u64,
}
