//! Images as files: OCI layouts, what `docker save` writes, and plain root file systems, read and written.
//!
//! What comes in is hostile: no name in it becomes a path of the host's, whatever is read whole has a limit, each blob
//! is checked against the digest that names it, and an image appears in the store when all of it is there.

mod blob;
mod bundle;
pub mod changes;
mod docker;
pub mod files;
mod layout;
mod load;
mod rootfs;
mod save;

pub use blob::{BlobInfo, Compression};
pub use bundle::Incoming;
pub use load::Loaded;
pub use save::{ArchiveFormat, SavedImage, unpack_layout};
