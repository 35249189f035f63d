//! `cowimg bench`

use std::ffi::OsString;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use cowimg::storage::PageBuffer;
use cowimg::{CacheMode, Error, Image};

use crate::args::cache_mode::parse_cache_mode;
use crate::args::object::Objects;
use crate::args::opening::Opening;
use crate::args::size::parse_size;
use crate::console::Console;
use crate::exit_code::ExitCode;
use crate::failure::Failure;

/// The largest number that options take.
const MAX: u64 = i32::MAX as u64;
/// The most threads that send requests. More wait for each other only.
const MAX_THREADS: u64 = 128;

/// Time a run of requests
///
/// Requests are of one size and follow each other at a fixed distance, as many at a time as -d says.
#[derive(Debug, clap::Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub(crate) struct Args {
    /// Format of FILE (raw, qcow2); without it the format is found by looking at the first bytes
    #[arg(short = 'f', long, value_name = "FMT")]
    format: Option<String>,

    /// FILE is image options (driver=qcow2,file.filename=...), not the name of a file
    #[arg(long)]
    image_opts: bool,

    /// How the host caches FILE: writeback, none, writethrough, directsync or unsafe
    #[arg(short = 't', long, value_name = "CACHE", value_parser = parse_cache_mode)]
    cache: Option<CacheMode>,

    /// How many requests are sent
    #[arg(short = 'c', long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=MAX), default_value_t = 75000)]
    count: u64,

    /// How many requests are on their way at a time
    #[arg(short = 'd', long, value_name = "DEPTH", value_parser = clap::value_parser!(u64).range(1..=MAX), default_value_t = 64)]
    depth: u64,

    /// Where the first request starts
    #[arg(short = 'o', long, value_name = "OFFSET", value_parser = parse_size, default_value = "0")]
    offset: u64,

    /// Bytes of a request
    #[arg(short = 's', long, value_name = "SIZE", value_parser = parse_buffer_size, default_value = "4096")]
    buffer_size: u64,

    /// Distance from the start of one request to that of the next; 0 is the size of a request
    #[arg(short = 'S', long, value_name = "SIZE", value_parser = parse_step_size, default_value = "0")]
    step_size: u64,

    /// Write instead of reading
    #[arg(short = 'w', long)]
    write: bool,

    /// The byte that is written
    #[arg(long, value_name = "BYTE", value_parser = parse_pattern, default_value = "0")]
    pattern: u8,

    /// Flush after this many requests; 0 never
    #[arg(long, value_name = "REQUESTS", value_parser = clap::value_parser!(u64).range(0..=MAX), default_value_t = 0)]
    flush_interval: u64,

    /// Go on with requests while a flush runs
    #[arg(long)]
    no_drain: bool,

    /// How requests reach the host: threads, native or `io_uring` (accepted for scripts: it is always threads)
    #[arg(short = 'i', long, value_name = "AIO", value_parser = ["threads", "native", "io_uring"])]
    aio: Option<String>,

    /// The same as --aio native (accepted for scripts)
    #[arg(short = 'n', long)]
    native: bool,

    /// Open FILE even if another process writes it
    #[arg(short = 'U', long)]
    force_share: bool,

    /// Print no hints about the image's format
    #[arg(short = 'q', long)]
    quiet: bool,

    #[command(flatten)]
    objects: Objects,

    /// The image
    #[arg(value_name = "FILE")]
    file: OsString,
}

/// Runs the command.
pub(crate) fn run(args: &Args, console: &mut Console) -> Result<ExitCode, Failure> {
    if args.flush_interval > 0 && !args.write {
        return Err(Failure::usage("--flush-interval is about writes: add -w"));
    }
    if args.flush_interval > 0 && args.flush_interval < args.depth {
        return Err(Failure::usage(
            "--flush-interval must be -d at least: requests on their way are flushed together",
        ));
    }
    args.objects.register()?;
    let is_direct = matches!(args.cache, Some(CacheMode::None | CacheMode::DirectSync));
    if (args.native || args.aio.as_deref() == Some("native")) && !is_direct {
        return Err(Failure::usage("native requests go past the host's cache: add -t none"));
    }
    let opening = Opening {
        format: args.format.clone(),
        image_opts: args.image_opts,
        force_share: args.force_share,
        cache: args.cache,
        snapshot: None,
    };
    let image = if args.write { opening.write(&args.file)? } else { opening.read(&args.file)? };
    let step = if args.step_size == 0 { args.buffer_size } else { args.step_size };
    writeln!(
        console,
        "Sending {} {} requests, {} bytes each, {} in parallel (starting at offset {}, step size {step})",
        args.count,
        if args.write { "write" } else { "read" },
        args.buffer_size,
        args.depth,
        args.offset,
    )?;
    if args.flush_interval > 0 {
        writeln!(console, "Sending flush every {} requests", args.flush_interval)?;
    }
    let run = Run {
        image: &image,
        args,
        step,
        next: AtomicU64::new(0),
        failed: AtomicBool::new(false),
        error: Mutex::default(),
    };
    let started = Instant::now();
    run.send_all();
    let seconds = started.elapsed().as_secs_f64();
    if let Some(error) = run.error.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        return Err(Failure::from(error).within("a request failed"));
    }
    writeln!(console, "Run completed in {seconds:3.3} seconds.")?;
    if args.write {
        image.close()?;
    }
    Ok(ExitCode::Success)
}

/// A run, as all its threads see it.
struct Run<'a> {
    image: &'a Image,
    args: &'a Args,
    step: u64,
    /// The number of the request that is sent next.
    next: AtomicU64,
    failed: AtomicBool,
    error: Mutex<Option<Error>>,
}

impl Run<'_> {
    /// Sends all requests, with the flushes between.
    fn send_all(&self) {
        let Args { count, flush_interval, no_drain, .. } = *self.args;
        if flush_interval == 0 || no_drain {
            self.send_up_to(count);
            return;
        }
        // What does not fill an interval comes first, so that the last flush is behind the last request.
        let first = match count % flush_interval {
            0 => flush_interval,
            rest => rest,
        };
        let mut end = first.min(count);
        while !self.failed.load(Ordering::Relaxed) {
            self.send_up_to(end);
            self.flush();
            if end == count {
                break;
            }
            end = (end + flush_interval).min(count);
        }
    }

    /// Sends requests until the one before `end` has been answered.
    fn send_up_to(&self, end: u64) {
        let waiting = end.saturating_sub(self.next.load(Ordering::Relaxed));
        let threads = self.args.depth.min(waiting).min(MAX_THREADS);
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(|| self.send(end));
            }
            self.send(end);
        });
    }

    fn send(&self, end: u64) {
        let mut buf = PageBuffer::new(self.args.buffer_size as usize);
        buf.fill(self.args.pattern);
        while !self.failed.load(Ordering::Relaxed) {
            let taken = self
                .next
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| (next < end).then_some(next + 1));
            let Ok(number) = taken else { return };
            let offset = self.offset_of(number);
            let answered = if self.args.write {
                self.image.write_at(&buf, offset)
            } else {
                self.image.read_at(&mut buf, offset)
            };
            self.note(answered);
            let Args { no_drain, flush_interval, count, .. } = *self.args;
            if no_drain && flush_interval > 0 && (count - number - 1).is_multiple_of(flush_interval) {
                self.flush();
            }
        }
    }

    /// Where a request starts: they go around the disk.
    fn offset_of(&self, number: u64) -> u64 {
        let room = self.image.size().saturating_sub(self.args.buffer_size);
        let gone = u128::from(self.args.offset) + u128::from(number) * u128::from(self.step);
        match (number, room) {
            (0, _) => self.args.offset,
            (_, 0) => 0,
            (_, room) => (gone % u128::from(room)) as u64,
        }
    }

    fn flush(&self) {
        self.note(self.image.flush());
    }

    fn note(&self, result: Result<(), Error>) {
        if let Err(error) = result {
            self.failed.store(true, Ordering::Relaxed);
            let mut first = self.error.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            first.get_or_insert(error);
        }
    }
}

/// A size from `least` bytes on that a request or a distance may have.
fn parse_limited(text: &str, least: u64) -> Result<u64, String> {
    let size = parse_size(text).map_err(|why| why.to_string())?;
    if (least..=MAX).contains(&size) {
        Ok(size)
    } else {
        Err(format!("'{text}' is not from {least} to {MAX} bytes"))
    }
}

fn parse_buffer_size(text: &str) -> Result<u64, String> {
    parse_limited(text, 1)
}

fn parse_step_size(text: &str) -> Result<u64, String> {
    parse_limited(text, 0)
}

/// Parses the pattern: a number, also a hexadecimal one.
fn parse_pattern(text: &str) -> Result<u8, String> {
    let number = parse_size(text).map_err(|why| why.to_string())?;
    u8::try_from(number).map_err(|_| format!("'{text}' is not a byte: from 0 to 255"))
}
