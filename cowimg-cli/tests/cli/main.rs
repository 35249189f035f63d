//! The program beside qemu-img: the same command lines, reports, exit codes and files, and what is refused.
//!
//! Each test works in a folder of its own with the program and the real qemu-img (package qemu-utils), and fails
//! with a clear message where that is missing. One file per command; `workbench` has what they share.

mod amend;
mod bad_input;
mod bitmap;
mod bytes;
mod chain_jobs;
mod check;
mod clone;
mod command_line;
mod convert;
mod copy_commands;
mod create;
mod data_elsewhere;
mod descriptions;
mod failed_calls;
mod full_disk;
mod info;
mod interrupted;
mod killed;
mod known_attacks;
mod locks;
mod map;
mod mounted;
mod naming_order;
mod power;
#[path = "../../../cowimg/tests/power_cut/mod.rs"]
mod power_cut;
#[path = "../../../cowimg/tests/qemu_tools/mod.rs"]
mod qemu_tools;
mod repair;
mod resize;
mod snapshot;
mod strict;
mod untrusted;
mod workbench;
