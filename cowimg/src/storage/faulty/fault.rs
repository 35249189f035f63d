//! Which operations fail, and how.

use std::io;

use crate::range::ByteRange;

/// An operation on a storage, as it stands in a log and as a fault sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Bytes were read. Not kept in logs.
    Read(ByteRange),
    /// Bytes were written. A write to several buffers at once is one operation.
    Write(ByteRange),
    /// The length was set, in bytes.
    SetLen(u64),
    /// Everything before was made durable.
    Sync,
    /// A sync that failed: what was not synced before it may be lost whatever comes after.
    FailedSync,
    /// The range was made zero.
    WriteZeroes(ByteRange),
    /// The space of the range was released.
    PunchHole(ByteRange),
    /// Space was taken for the range.
    Allocate(ByteRange),
}

impl Operation {
    /// Its kind.
    pub fn kind(self) -> OperationKind {
        match self {
            Operation::Read(_) => OperationKind::Read,
            Operation::Write(_) => OperationKind::Write,
            Operation::SetLen(_) => OperationKind::SetLen,
            Operation::Sync | Operation::FailedSync => OperationKind::Sync,
            Operation::WriteZeroes(_) => OperationKind::WriteZeroes,
            Operation::PunchHole(_) => OperationKind::PunchHole,
            Operation::Allocate(_) => OperationKind::Allocate,
        }
    }

    /// The bytes that it is about; `None` where it is about the whole storage.
    pub fn range(self) -> Option<ByteRange> {
        match self {
            Operation::Read(range)
            | Operation::Write(range)
            | Operation::WriteZeroes(range)
            | Operation::PunchHole(range)
            | Operation::Allocate(range) => Some(range),
            Operation::SetLen(_) | Operation::Sync | Operation::FailedSync => None,
        }
    }
}

/// The kinds of operations that can be counted and made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OperationKind {
    /// Reads, of one buffer or several.
    Read,
    /// Writes, of one buffer or several.
    Write,
    /// Changes of the length.
    SetLen,
    /// Syncs.
    Sync,
    /// Zeroing.
    WriteZeroes,
    /// Punching holes.
    PunchHole,
    /// Taking space.
    Allocate,
}

impl OperationKind {
    /// All of them, in the order of their discriminants.
    pub const ALL: [OperationKind; 7] = [
        OperationKind::Read,
        OperationKind::Write,
        OperationKind::SetLen,
        OperationKind::Sync,
        OperationKind::WriteZeroes,
        OperationKind::PunchHole,
        OperationKind::Allocate,
    ];

    /// Those that change the storage or make changes durable.
    pub const CHANGES: [OperationKind; 6] = [
        OperationKind::Write,
        OperationKind::SetLen,
        OperationKind::Sync,
        OperationKind::WriteZeroes,
        OperationKind::PunchHole,
        OperationKind::Allocate,
    ];
}

/// A fault: which operations it picks, and what it does to them.
///
/// As made, it picks the first operation of any kind, and acts once:
///
/// ```
/// use cowimg::storage::{Fault, OperationKind};
/// use std::io::ErrorKind;
///
/// // From the fourth write on, the disk is full.
/// let full = Fault::error(ErrorKind::StorageFull).on(&[OperationKind::Write]).after(3).forever();
/// ```
#[derive(Debug, Clone)]
pub struct Fault {
    effect: Effect,
    kinds: Vec<OperationKind>,
    within: Option<ByteRange>,
    after: u64,
    lasting: Lasting,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Kind(io::ErrorKind),
    Errno(i32),
    Short(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lasting {
    Once,
    Forever,
}

impl Fault {
    /// The operation fails with an error of this kind and changes nothing.
    pub fn error(kind: io::ErrorKind) -> Fault {
        Fault::new(Effect::Kind(kind), &OperationKind::ALL)
    }

    /// The operation fails with this error number of the host and changes nothing.
    pub fn errno(errno: i32) -> Fault {
        Fault::new(Effect::Errno(errno), &OperationKind::ALL)
    }

    /// The read or write does no more than `bytes` bytes, at least one, and says so. For a read this breaks the
    /// promise that only the end of the storage makes it short, as an interrupted host call would.
    pub fn short(bytes: usize) -> Fault {
        Fault::new(Effect::Short(bytes.max(1)), &[OperationKind::Read, OperationKind::Write])
    }

    fn new(effect: Effect, kinds: &[OperationKind]) -> Fault {
        Fault { effect, kinds: kinds.to_vec(), within: None, after: 0, lasting: Lasting::Once }
    }

    /// Picks only operations of these kinds.
    #[must_use]
    pub fn on(mut self, kinds: &[OperationKind]) -> Fault {
        self.kinds = kinds.to_vec();
        self
    }

    /// Picks only operations that touch a byte of `range`.
    #[must_use]
    pub fn within(mut self, range: ByteRange) -> Fault {
        self.within = Some(range);
        self
    }

    /// Lets the first `operations` that it would pick go by.
    #[must_use]
    pub fn after(mut self, operations: u64) -> Fault {
        self.after = operations;
        self
    }

    /// Acts on every operation that it picks from then on.
    #[must_use]
    pub fn forever(mut self) -> Fault {
        self.lasting = Lasting::Forever;
        self
    }

    fn picks(&self, operation: Operation) -> bool {
        self.kinds.contains(&operation.kind())
            && self.within.is_none_or(|within| operation.range().is_some_and(|range| range.overlaps(within)))
    }
}

/// A fault that is waiting for its operation.
#[derive(Debug)]
pub(super) struct Armed {
    fault: Fault,
    seen: u64,
}

/// What a fault does to one operation.
#[derive(Debug)]
pub(super) enum Verdict {
    Pass,
    Shorten(usize),
    Fail(io::Error),
}

impl Armed {
    pub(super) fn new(fault: Fault) -> Armed {
        Armed { fault, seen: 0 }
    }

    pub(super) fn judge(&mut self, operation: Operation) -> Verdict {
        if !self.fault.picks(operation) {
            return Verdict::Pass;
        }
        let nth = self.seen;
        self.seen += 1;
        if nth < self.fault.after || (nth > self.fault.after && self.fault.lasting == Lasting::Once) {
            return Verdict::Pass;
        }
        match self.fault.effect {
            Effect::Kind(kind) => Verdict::Fail(io::Error::new(kind, "injected fault")),
            Effect::Errno(errno) => Verdict::Fail(io::Error::from_raw_os_error(errno)),
            Effect::Short(bytes) => Verdict::Shorten(bytes),
        }
    }
}
