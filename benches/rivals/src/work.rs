//! A piece of work as its process is told it, and what the process answers: the same for every contender.
//!
//! Requests are of 4 KiB and start at multiples of that. Where the nth starts is drawn from the seed and `n`, so that all
//! contenders send the same requests, whatever thread sends them. What is written says where it belongs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::unistd::Pid;

/// Bytes of a request.
pub const REQUEST: usize = 4096;

/// Why there is no figure.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What requests do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Open the image and read once.
    Open,
    /// Read.
    Read,
    /// Write, and flush metadata at the end.
    Write,
}

impl Kind {
    /// The word for it on the command line of a process.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Open => "open",
            Kind::Read => "read",
            Kind::Write => "write",
        }
    }
}

/// A piece of work.
#[derive(Debug, Clone)]
pub struct Work {
    pub kind: Kind,
    pub image: String,
    /// The disk's size in bytes.
    pub size: u64,
    /// Requests.
    pub count: u64,
    /// Requests that each thread keeps on their way.
    pub depth: usize,
    /// Threads, each with a processor of its own.
    pub threads: usize,
    pub seed: u64,
    /// Whether what is read is summed up, which takes longer than reading it.
    pub summed: bool,
}

impl Work {
    /// The words that [`Work::parse`] reads.
    pub fn words(&self) -> [String; 8] {
        [
            self.kind.word().to_owned(),
            self.image.clone(),
            self.size.to_string(),
            self.count.to_string(),
            self.depth.to_string(),
            self.threads.to_string(),
            self.seed.to_string(),
            u8::from(self.summed).to_string(),
        ]
    }

    /// Reads the words of [`Work::words`].
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Work, Failure> {
        let mut next = || words.next().ok_or_else(|| Failure::from("a word is missing"));
        let kind = match next()?.as_str() {
            "open" => Kind::Open,
            "read" => Kind::Read,
            "write" => Kind::Write,
            other => return Err(format!("there is no work {other}").into()),
        };
        Ok(Work {
            kind,
            image: next()?,
            size: next()?.parse()?,
            count: next()?.parse()?,
            depth: next()?.parse()?,
            threads: next()?.parse()?,
            seed: next()?.parse()?,
            summed: next()? == "1",
        })
    }

    /// Where the nth request starts.
    pub fn offset(&self, nth: u64) -> u64 {
        mixed(self.seed.wrapping_add(nth)) % (self.size / REQUEST as u64) * REQUEST as u64
    }

    /// Keeps this process to as many processors as there are threads.
    pub fn keep_to_processors(&self) -> Result<(), Failure> {
        let mut set = CpuSet::new();
        for processor in 0..self.threads {
            set.set(processor)?;
        }
        Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
    }
}

/// The requests of a run, which threads and tasks take one by one, and the sum of what they have read.
#[derive(Debug)]
pub struct Requests<'a> {
    work: &'a Work,
    next: AtomicU64,
    sum: AtomicU64,
}

impl<'a> Requests<'a> {
    pub fn new(work: &'a Work) -> Requests<'a> {
        Requests { work, next: AtomicU64::new(0), sum: AtomicU64::new(0) }
    }

    /// Where the next request starts, unless all have been taken.
    pub fn next(&self) -> Option<u64> {
        let nth = self.next.fetch_add(1, Ordering::Relaxed);
        (nth < self.work.count).then(|| self.work.offset(nth))
    }

    /// Takes note of what has been read at `offset`.
    pub fn note(&self, buf: &[u8], offset: u64) {
        if self.work.summed {
            self.sum.fetch_add(digest(buf, offset), Ordering::Relaxed);
        }
    }

    pub fn sum(&self) -> u64 {
        self.sum.load(Ordering::Relaxed)
    }
}

/// Words that say to which place they belong.
pub fn fill(buf: &mut [u8], offset: u64) {
    for (word, place) in buf.chunks_exact_mut(8).zip((offset..).step_by(8)) {
        word.copy_from_slice(&(place | 1).to_le_bytes());
    }
}

/// A number for the bytes of a place; the sum of these is that of a run, in whatever order.
pub fn digest(buf: &[u8], offset: u64) -> u64 {
    buf.chunks_exact(8).fold(mixed(offset), |sum, word| {
        let word = u64::from_le_bytes(word.try_into().unwrap_or_default());
        (sum.rotate_left(5) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    })
}

/// A number that looks random; each gives another.
fn mixed(value: u64) -> u64 {
    let value = value.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// Seconds of the processor, in the program and in the kernel for it.
pub fn cpu_seconds(usage: &Usage) -> f64 {
    let of = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    of(usage.user_time()) + of(usage.system_time())
}

/// What a process has measured of itself.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    pub seconds: f64,
    /// Of the processor, from the start of the process on.
    pub cpu_seconds: f64,
    pub peak_bytes: f64,
    pub sum: u64,
}

impl Measured {
    /// What was measured since `started`.
    pub fn since(started: Instant, sum: u64) -> Result<Measured, Failure> {
        let seconds = started.elapsed().as_secs_f64();
        let usage = getrusage(UsageWho::RUSAGE_SELF)?;
        Ok(Measured {
            seconds,
            cpu_seconds: cpu_seconds(&usage),
            peak_bytes: usage.max_rss() as f64 * 1024.0,
            sum,
        })
    }

    /// The line that [`Measured::parse`] reads.
    pub fn line(&self) -> String {
        format!("{} {} {} {}", self.seconds, self.cpu_seconds, self.peak_bytes, self.sum)
    }

    /// Reads a [`Measured::line`].
    pub fn parse(line: &str) -> Result<Measured, Failure> {
        let mut words = line.split_whitespace();
        let mut next = || words.next().ok_or_else(|| Failure::from("a number is missing"));
        Ok(Measured {
            seconds: next()?.parse()?,
            cpu_seconds: next()?.parse()?,
            peak_bytes: next()?.parse()?,
            sum: next()?.parse()?,
        })
    }
}
