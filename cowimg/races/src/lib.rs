//! The modules of cowimg in which threads meet without a lock around their work, compiled over primitives that try orders of
//! steps: loom, which also reorders what memory shows, where the code says less than `SeqCst`; shuttle, which knows only
//! one order for all, where it says `SeqCst` (loom takes that for less than it is, and would find what cannot be).
//!
//! The sources of loom's world, and of shuttle's small one, are those of the library, included by path; `sync` beside each is
//! what differs. `whole_engine` drives all of the library, compiled over the locks of shuttle (`over_shuttle`).
#![allow(dead_code, reason = "each world uses a part of what it includes")]

pub mod under_loom;
pub mod under_shuttle;
pub mod whole_engine;

/// Where the included sources look for the library's errors.
mod error {
    pub(crate) use cowimg::Result;
}

/// Where they look for its formats.
mod format {
    pub(crate) mod qcow2 {
        pub(crate) use cowimg::format::qcow2::{RawL2Entry, encode_words};
    }
}
