//! Every subcommand beside the real qemu-img: tables of command lines, each run by both on equal images.
//!
//! Our program is called through a link named `qemu-img`. For each row:
//!
//! * standard output is the same byte for byte, but for what is never the same twice (see `spoken`);
//! * the exit code is the same;
//! * the same files are there afterwards, each with the same disk, the same snapshots and bitmaps, and the same header as far as it does not say where things lie;
//! * the real `qemu-img check` finds our images clean, or exactly as damaged as its own;
//! * a command that is refused says why, after `qemu-img: `, and changes no file.
//!
//! What is not in the tables:
//!
//! * long options that the help of qemu-img 10.0.2 names and its parser does not know (`convert --compress`, `snapshot
//!   --create`, `bench --quiet` and others), which work here;
//! * new images of the format qcow and commits into one, which is read and not written here;
//! * a backing file that is named by a description (`json:`): an image's name for it is a file's; `/dev/null` and other
//!   devices without a size, which are no images here; of a format over a format (`driver=raw,file.driver=qcow2`) `info`, the
//!   places that `map` tells, which are those in the disk of the image below here and in its file there, and what lies in that
//!   one's backing file, which qemu-img's `compare` and `measure` take for nothing;
//! * a rebase to a base whose stated format is wrong, which is refused here; a check of an image whose base is gone, which
//!   is done here;
//! * a change to version 2 of an image with snapshots that share a zero cluster, after which qemu-img 10.0.2 has other
//!   bytes in a snapshot, and of one whose snapshots have clusters compressed with zstd, which nobody can read then and
//!   which is refused here;
//! * a repair of images whose refcount blocks are missing, and `-r leaks` where qemu-img gives up because of them;
//! * `measure` of a version that is given as `v2` or `v3`, which qemu-img 10.0.2 takes in `create` only, and of a raw image
//!   with an option whose value is none, which it does not look at;
//! * a description of an image (`--image-opts`, `json:`) that names a secret which is not given: refused here whether the
//!   image needs it or not;
//! * several actions of `bitmap` of which a later one makes no sense, where qemu-img does the earlier ones;
//! * a relative backing file's name after `file:`, which starts at the process's folder in QEMU and at the image's here;
//! * the lines of `-p` between the first and the last of a commit, whose number differs from run to run in qemu-img (40 to 53
//!   for one image), and of a change of the refcounts' width, where it follows from how often qemu-img begins anew;
//! * `-p` with a qcow image as a source: qemu-img looks at its clusters one by one, and prints more lines.
//!
//! One file per subcommand. A row is a line of text; `row` says how it is written. The reference is qemu-img 10; where
//! an older one is installed, rows that it answers differently are left out, and the test says how many.
//! To prove the tables themselves, run them with `COWIMG_COMPAT_PROGRAM` naming a real qemu-img.

mod amend;
mod bench;
mod bench_folder;
mod bitmap;
mod check;
mod command_line;
mod commit;
mod compare;
mod convert;
mod create;
mod dd;
mod images;
mod info;
mod keys;
mod luks;
mod map;
mod measure;
mod names;
mod outcome;
mod qcow1;
mod rebase;
mod resize;
mod row;
mod runner;
mod snapshot;
mod spoken;
mod stored_bitmaps;
