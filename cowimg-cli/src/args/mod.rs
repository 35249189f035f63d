//! What command lines say, turned into values: sizes, `key=value` lists, names of images and formats.
//!
//! Nothing in here opens a file. The groups of options that several commands share are [`Source`] and [`Report`].

use std::path::PathBuf;

use cowimg::Format;

pub(crate) mod format_options;
pub(crate) mod image;
pub(crate) mod key_values;
pub(crate) mod size;
pub(crate) mod snapshot;

/// An image that a command reads.
#[derive(Debug, clap::Args)]
pub(crate) struct Source {
    /// The image's format (raw, qcow2); without it the format is found by looking at the first bytes
    #[arg(short = 'f', long, value_name = "FMT", value_parser = image::parse_format)]
    pub(crate) format: Option<Format>,

    /// Open the image even if another process uses it (accepted for scripts: reading takes no lock)
    #[arg(short = 'U', long)]
    pub(crate) force_share: bool,

    /// The image file
    #[arg(value_name = "FILE", value_parser = path_parser())]
    pub(crate) file: PathBuf,
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
    #[arg(long)]
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
