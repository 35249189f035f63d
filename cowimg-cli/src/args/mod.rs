//! What command lines say, turned into values: sizes, `key=value` lists, names of images and formats.
//!
//! The groups of options that several commands share are [`Source`], which also opens the image that it names, [`Changed`]
//! and [`Report`].

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use cowimg::{CacheMode, Format, Image};

use crate::args::cache_mode::parse_cache_mode;
use crate::args::image_name::{ImageForm, ImageName};
use crate::args::object::Objects;
use crate::cli::OURS;
use crate::failure::Failure;

pub(crate) mod amend_options;
pub(crate) mod cache_mode;
pub(crate) mod encryption_options;
pub(crate) mod format_options;
pub(crate) mod image;
mod image_description;
pub(crate) mod image_name;
pub(crate) mod key_slot_options;
pub(crate) mod key_values;
pub(crate) mod object;
pub(crate) mod opening;
pub(crate) mod option_tree;
mod secret_cipher;
pub(crate) mod size;
pub(crate) mod snapshot;

/// An image that a command reads.
#[derive(Debug, clap::Args)]
pub(crate) struct Source {
    /// The image's format (raw, qcow2); without it the format is found by looking at the first bytes
    #[arg(short = 'f', long, value_name = "FMT", value_parser = image::parse_format)]
    format: Option<Format>,

    /// FILE is a description of the image, such as driver=qcow2,file.filename=NAME
    #[arg(long)]
    image_opts: bool,

    /// Open the image even if another process writes it: what is read then may be old, new or neither
    #[arg(short = 'U', long)]
    force_share: bool,

    #[command(flatten)]
    objects: Objects,

    /// The image file
    #[arg(value_name = "FILE")]
    file: OsString,
}

impl Source {
    /// What the image is, and how it is to be opened.
    pub(crate) fn name(&self) -> Result<ImageName, Failure> {
        let Source { format, image_opts, force_share, .. } = *self;
        self.objects.register()?;
        ImageName::parse(&self.file, ImageForm { format, image_opts, force_share })
    }

    /// What the command line calls the image, a description included.
    pub(crate) fn given(&self) -> &OsStr {
        &self.file
    }

    /// Refuses `-U` for a command that changes the image and does not know it.
    pub(crate) fn refuse_force_share(&self, command: &str) -> Result<(), Failure> {
        if self.force_share {
            return Err(Failure::usage(format!(
                "{command} changes the image, which no other process may use meanwhile: there is no -U here"
            )));
        }
        Ok(())
    }

    /// Opens the image with its whole backing chain, for reading.
    pub(crate) fn open(&self) -> Result<Image, Failure> {
        self.name()?.open()
    }

    /// Opens the image with its whole backing chain, for writing. A file that is raw only because it looks like nothing
    /// else is opened with a warning.
    pub(crate) fn open_to_write(&self) -> Result<Image, Failure> {
        self.name()?.open_to_write()
    }
}

/// How the image that a command changes is to be opened; the command has its name.
#[derive(Debug, clap::Args)]
pub(crate) struct Changed {
    /// The image's format (raw, qcow2); without it the format is found by looking at the first bytes
    #[arg(short = 'f', long, value_name = "FMT", value_parser = image::parse_format)]
    format: Option<Format>,

    /// FILE is a description of the image, such as driver=qcow2,file.filename=NAME
    #[arg(long)]
    image_opts: bool,

    #[command(flatten)]
    objects: Objects,

    /// How the host caches FILE: writeback, writethrough, none, directsync or unsafe
    #[arg(short = 't', long, value_name = "CACHE", value_parser = parse_cache_mode, default_value = "writeback")]
    cache: CacheMode,
}

impl Changed {
    /// What `file` is, and how it is to be opened.
    pub(crate) fn name(&self, file: &OsStr) -> Result<ImageName, Failure> {
        self.objects.register()?;
        let form = ImageForm { format: self.format, image_opts: self.image_opts, force_share: false };
        Ok(ImageName::parse(file, form)?.cached(self.cache))
    }

    /// The format that is stated.
    pub(crate) fn format(&self) -> Option<Format> {
        self.format
    }
}

/// How a report is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ReportFormat {
    /// For a person.
    Human,
    /// For a program.
    Json,
}

/// The options that choose the form of a report.
#[derive(Debug, clap::Args)]
pub(crate) struct Report {
    /// Form of the report
    #[arg(long, value_name = "FORM", value_enum, default_value_t = ReportFormat::Human)]
    output: ReportFormat,

    /// The same as --output json
    #[arg(long, help_heading = OURS)]
    json: bool,
}

impl Report {
    /// The form that was asked for.
    pub(crate) fn format(&self) -> ReportFormat {
        if self.json { ReportFormat::Json } else { self.output }
    }
}

/// Parses file names for clap.
pub(crate) fn path_parser() -> impl clap::builder::TypedValueParser<Value = PathBuf> {
    use clap::builder::TypedValueParser;
    clap::builder::OsStringValueParser::new().try_map(image::parse_path)
}
