//! Who may use an image beside whom: the library and QEMU's programs refuse each other exactly where two of the
//! latter do.
//!
//! [`holder`] starts a real `qemu-io` or `qemu-storage-daemon`, or the library, that has a file of the [`lab`] open.
//! [`matrix`] then tries every [`operation`] on every file, by the library and by the real program, and compares.

#[path = "../qemu_tools/mod.rs"]
mod qemu_tools;
#[path = "../seeded/mod.rs"]
mod seeded;

mod holder;
mod lab;
mod operation;

mod matrix;
mod refusal;
