//! What a command line names as an image: a file, or a description of files and how to open them.
//!
//! | form | where |
//! |---|---|
//! | `NAME`, `file:NAME` | everywhere |
//! | `json:{...}` | everywhere where an existing image is named |
//! | `driver=qcow2,file.filename=NAME,...` | with `--image-opts` |
//!
//! [`image_description`](super::image_description) has what the latter two may say.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use cowimg::{Access, CacheMode, Format, Image, LockMode, OpenOptions};

use super::image_description::described;
use crate::args::image::parse_path;
use crate::args::option_tree::OptionTree;
use crate::failure::{Failure, warn_probed_raw};
use crate::trust::{image_options, to_write};

/// How a command line says what an image is, beside the name.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ImageForm {
    /// The format that an option states.
    pub(crate) format: Option<Format>,
    /// The name is a description (`--image-opts`).
    pub(crate) image_opts: bool,
    /// Other processes may write the image meanwhile (`-U`).
    pub(crate) force_share: bool,
}

/// An image that exists.
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact that a description states or not")]
pub(crate) struct ImageName {
    /// Its file.
    pub(crate) path: PathBuf,
    /// What reports call it.
    pub(crate) shown: OsString,
    /// How it is to be opened.
    pub(crate) options: OpenOptions,
    /// Whether its format is stated, and not found by looking.
    pub(crate) is_stated: bool,
    /// Whether the description is of a file as such, and not of an image in one.
    pub(crate) is_file: bool,
    /// Whether the description puts a backing file in the place of the one that the image names.
    pub(crate) overrides_backing: bool,
    /// Whether the description allows reading only.
    pub(super) read_only: bool,
    /// Whether the description says how the file is cached.
    pub(super) states_cache: bool,
    /// The image in whose disk this one is, where the description puts a format over a format.
    pub(super) inner: Option<Box<ImageName>>,
}

impl ImageName {
    /// Parses what the command line says.
    pub(crate) fn parse(name: &OsStr, form: ImageForm) -> Result<ImageName, Failure> {
        let mut image = match (form.image_opts, name.as_bytes().strip_prefix(b"json:")) {
            (true, _) if form.format.is_some() => {
                return Err(Failure::usage(
                    "--image-opts says the format itself, so that -f cannot be given",
                ));
            }
            (true, _) => described(OptionTree::from_pairs(utf8(name.as_bytes())?)?, None)?,
            (false, Some(json)) => described(OptionTree::from_json(utf8(json)?)?, form.format)?,
            (false, None) => plain(name, form.format)?,
        };
        if form.force_share {
            image.share();
        }
        Ok(image)
    }

    /// Lets other processes write the image, and the one that it is in.
    fn share(&mut self) {
        self.options = self.options.clone().lock(LockMode::Share);
        if let Some(inner) = &mut self.inner {
            inner.share();
        }
    }

    /// Whether the image is in the disk of another image.
    pub(crate) fn is_nested(&self) -> bool {
        self.inner.is_some()
    }

    /// The same with a cache mode that an option of the command line states; the description counts more.
    pub(crate) fn cached(self, mode: CacheMode) -> ImageName {
        if self.states_cache {
            return self;
        }
        ImageName { options: self.options.cache_mode(mode), ..self }
    }

    /// Opens the image with its whole backing chain, for reading.
    pub(crate) fn open(&self) -> Result<Image, Failure> {
        Ok(self.options_to_read()?.open(&self.path)?)
    }

    /// How the image is opened for reading; the image in whose disk it is, if it is in one, is open then.
    pub(crate) fn options_to_read(&self) -> Result<OpenOptions, Failure> {
        let options = self.options.clone();
        Ok(match &self.inner {
            Some(inner) => options.over(Arc::new(inner.open()?)),
            None => options,
        })
    }

    /// Opens the image with its whole backing chain, for writing. A file that is raw only because it looks like nothing
    /// else is opened with a warning.
    pub(crate) fn open_to_write(&self) -> Result<Image, Failure> {
        let image = self.options_to_write()?.open(&self.path)?;
        if !self.is_stated && image.format() == Format::Raw {
            warn_probed_raw(&self.path);
        }
        Ok(image)
    }

    /// How the image is opened for writing.
    pub(crate) fn options_to_write(&self) -> Result<OpenOptions, Failure> {
        if self.read_only {
            let name = self.path.display();
            return Err(Failure::usage(format!("{name}: read-only=on does not go with writing the image")));
        }
        if self.inner.is_some() {
            let name = self.path.display();
            return Err(Failure::usage(format!(
                "{name}: an image in the disk of another image is only read"
            )));
        }
        Ok(to_write(self.options.clone()).access(Access::ReadWrite))
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, Failure> {
    str::from_utf8(bytes).map_err(|_| Failure::usage("the image's description is no valid UTF-8"))
}

/// An image that is named by its file.
fn plain(name: &OsStr, format: Option<Format>) -> Result<ImageName, Failure> {
    let path = parse_path(name.to_os_string()).map_err(Failure::usage)?;
    let options = image_options();
    Ok(ImageName {
        shown: path.clone().into_os_string(),
        path,
        options: match format {
            Some(format) => options.format(format),
            None => options,
        },
        is_stated: format.is_some(),
        is_file: false,
        overrides_backing: false,
        read_only: false,
        states_cache: false,
        inner: None,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn opts(text: &str) -> Result<ImageName, Failure> {
        ImageName::parse(OsStr::new(text), ImageForm { image_opts: true, ..ImageForm::default() })
    }

    fn name(text: &str) -> Result<ImageName, Failure> {
        ImageName::parse(OsStr::new(text), ImageForm::default())
    }

    #[test]
    fn a_file_has_many_names() {
        for named in [
            name("a.img"),
            name("file:a.img"),
            name(r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"a.img"}}"#),
            name("json:{'file.filename':'a.img'}"),
            opts("file.filename=a.img"),
            opts("driver=file,filename=a.img,locking=off"),
            opts(
                "driver=qcow2,file.driver=file,file.filename=a.img,read-only=on,cache.direct=on,discard=unmap",
            ),
            opts("driver=qcow2,file.filename=a.img,detect-zeroes=unmap,discard=unmap,overlap-check=none"),
            opts(
                "driver=qcow2,file.filename=a.img,backing.driver=raw,backing.file.filename=b,l2-cache-size=1M",
            ),
        ] {
            let named = named.unwrap();
            assert_eq!(
                (named.path.as_path(), named.shown.as_os_str()),
                (Path::new("a.img"), OsStr::new("a.img"))
            );
        }
    }

    #[test]
    fn a_part_of_a_file_is_called_by_its_description() {
        let file = r#""file": {"driver": "file", "filename": "a"}}"#;
        let shown = |named: ImageName| named.shown.into_string().unwrap();
        assert_eq!(
            shown(opts("driver=raw,offset=1k,size=512,file.filename=a").unwrap()),
            format!(r#"json:{{"offset": "1k", "driver": "raw", "size": "512", {file}"#)
        );
        assert_eq!(
            shown(name(r#"json:{"driver":"raw","offset":512,"file":{"filename":"a"}}"#).unwrap()),
            format!(r#"json:{{"offset": 512, "driver": "raw", {file}"#)
        );
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for (text, part) in [
            ("driver=qcow2", "file is not said"),
            ("driver=qcow2,filename=a", "'filename'"),
            ("driver=qcow2,file=a", "'file'"),
            ("driver=vmdk,file.filename=a", "vmdk"),
            ("driver=qcow2,file.driver=nbd,file.host=x", "nbd"),
            ("driver=qcow2,file.driver=quorum,file.file.filename=a", "'file.driver'"),
            ("driver=raw,file.driver=qcow2", "file is not said"),
            (
                "driver=qcow2,file.filename=a,backing.driver=raw,backing.file.driver=qcow2,backing.file.file.filename=b",
                "'backing.file.driver'",
            ),
            ("driver=qcow2,file.filename=a,nonsense=1", "'nonsense'"),
            ("driver=qcow2,file.filename=a,file.nonsense=1", "'file.nonsense'"),
            ("driver=qcow2,file.filename=a,offset=1", "'offset'"),
            ("driver=raw,file.filename=a,backing.file.filename=b", "'backing.file.filename'"),
            ("driver=qcow2,file.filename=a,encrypt.format=rot13", "rot13"),
            ("driver=qcow2,file.filename=a,file.locking=maybe", "maybe"),
            ("driver=qcow2,file.filename=a,detect-zeroes=unmap", "discard=unmap"),
            ("driver=qcow2,file.filename=a,copy-on-read=on", "copy-on-read"),
            ("driver=qcow2,file.filename=a,backing=b", "'backing'"),
        ] {
            let refused = opts(text).unwrap_err().to_string();
            assert!(refused.contains(part), "{text}: {refused}");
        }
        assert!(opts("driver=qcow2,file.filename=a,read-only=on").unwrap().options_to_write().is_err());
        let both = ImageForm { image_opts: true, format: Some(Format::Raw), force_share: false };
        assert!(ImageName::parse(OsStr::new("file.filename=a"), both).is_err());
    }
}
