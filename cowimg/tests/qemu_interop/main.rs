//! The library against the real `qemu-img` and `qemu-io`: what one writes the other reads, and no checker finds fault.
//!
//! Start at [`matrix`]. [`model`] is the disk as it should be, [`subject`] the library's side, [`script`] QEMU's.
//! The tools must be installed (package `qemu-utils`); `filesystem` needs e2fsprogs as well.

#[path = "../qemu_tools/mod.rs"]
mod qemu_tools;
#[path = "../seeded/mod.rs"]
mod seeded;

mod header_bytes;
mod model;
mod script;
mod subject;

mod amended;
mod bitmap_tables;
mod bitmaps;
mod bitmaps_kept;
mod compared;
mod compressed;
mod convert_options;
mod converted;
mod data_elsewhere;
mod died;
mod filesystem;
mod growing_tables;
mod header_limits;
mod kept_and_cleared;
mod limits;
mod long_chain;
mod mapping;
mod matrix;
mod measured;
mod met_damage;
mod refused;
mod resized;
mod snapshots;
mod snapshots_taken;
mod written_by_qemu;
