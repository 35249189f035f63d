//! What a command line names as an image: a file, or a description of files and how to open them.
//!
//! | form | where |
//! |---|---|
//! | `NAME`, `file:NAME` | everywhere |
//! | `json:{...}` | everywhere where an existing image is named |
//! | `driver=qcow2,file.filename=NAME,...` | with `--image-opts` |
//!
//! A description is a tree of nodes: a format (`raw`, `qcow2`), whose `file` is a file, and whose `backing` is a further
//! format. Options that change what is read or written are obeyed, those that only tune QEMU's own workings are checked
//! and have no effect here, and all others are refused by name.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cowimg::{Access, CacheMode, Format, Image, LockMode, OpenOptions};

use crate::args::image::{parse_format, parse_path};
use crate::args::object;
use crate::args::option_tree::{OptionTree, Value};
use crate::failure::{Failure, warn, warn_probed_raw};
use crate::trust::image_options;

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
    read_only: bool,
    /// Whether the description says how the file is cached.
    states_cache: bool,
    /// The image in whose disk this one is, where the description puts a format over a format.
    inner: Option<Box<ImageName>>,
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
        Ok(self.options.clone().access(Access::ReadWrite))
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

/// An image that is described; `format` counts more than the description.
fn described(mut tree: OptionTree, format: Option<Format>) -> Result<ImageName, Failure> {
    let node = Node::take(&mut tree, "", format)?;
    tree.finish()?;
    node.named()
}

impl Node {
    fn named(self) -> Result<ImageName, Failure> {
        let node = self;
        let Some(path) = node.path else {
            return Err(Failure::usage("the image's file is not said").hint("Add file.filename=NAME"));
        };
        Ok(ImageName {
            shown: node
                .shown
                .filter(|_| node.inner.is_none())
                .unwrap_or_else(|| path.clone().into_os_string()),
            path,
            options: node.options,
            is_stated: node.format.is_some(),
            is_file: node.is_file,
            overrides_backing: node.overrides_backing,
            read_only: node.read_only,
            states_cache: node.states_cache,
            inner: node.inner,
        })
    }
}

/// One format of a description with all that is below it.
#[allow(clippy::struct_excessive_bools, reason = "each is a fact that a description states or not")]
struct Node {
    path: Option<PathBuf>,
    format: Option<Format>,
    options: OpenOptions,
    shown: Option<OsString>,
    is_file: bool,
    overrides_backing: bool,
    read_only: bool,
    states_cache: bool,
    inner: Option<Box<ImageName>>,
}

impl Node {
    /// Takes the node at `prefix` (empty, or ending with a point) out of the description.
    fn take(tree: &mut OptionTree, prefix: &str, format: Option<Format>) -> Result<Node, Failure> {
        let at = |key: &str| format!("{prefix}{key}");
        let driver = tree.take_text(&at("driver"))?;
        let mut common = Common::default();
        common.take(tree, prefix)?;
        let is_file = matches!(driver.as_deref(), Some("file" | "host_device"));
        let mut inner = None;
        let (format, path) = if is_file {
            // The file is the disk.
            (Some(format.unwrap_or(Format::Raw)), take_file(tree, prefix, &mut common)?)
        } else if driver.is_some() && is_format(tree, &at("file.driver")) {
            let below = Node::take(tree, &at("file."), None)?.named()?;
            let path = below.path.clone();
            inner = Some(Box::new(below));
            let named = driver.as_deref().map(parse_format).transpose();
            let named = named.map_err(|why| Failure::usage(format!("option '{}': {why}", at("driver"))))?;
            (format.or(named), Some(path))
        } else {
            let named = driver.as_deref().map(parse_format).transpose();
            let named = named.map_err(|why| Failure::usage(format!("option '{}': {why}", at("driver"))))?;
            (format.or(named), take_child(tree, &at("file"), &mut common)?)
        };
        let mut node = Node {
            path,
            format,
            options: common.options(format),
            shown: None,
            is_file,
            overrides_backing: false,
            read_only: common.read_only,
            states_cache: common.direct || common.no_flush,
            inner,
        };
        match format {
            Some(Format::Raw) if !is_file => node.take_window(tree, prefix)?,
            Some(Format::Raw) => {}
            Some(Format::Luks) => node.take_luks(tree, prefix)?,
            _ => node.take_qcow2(tree, prefix)?,
        }
        Ok(node)
    }

    /// The part of the file that a raw image is.
    fn take_window(&mut self, tree: &mut OptionTree, prefix: &str) -> Result<(), Failure> {
        let keys = ["offset", "size"].map(|key| format!("{prefix}{key}"));
        let given = keys.each_ref().map(|key| tree.get(key).cloned());
        let offset = tree.take_size(&keys[0])?;
        let size = tree.take_size(&keys[1])?;
        if offset.is_some() || size.is_some() {
            self.options = self.options.clone().raw_window(offset.unwrap_or(0), size);
            self.shown = self.path.as_deref().map(|path| window_name(path, &given));
        }
        Ok(())
    }

    /// What opens a LUKS image, and where its header is.
    fn take_luks(&mut self, tree: &mut OptionTree, prefix: &str) -> Result<(), Failure> {
        let at = |key: &str| format!("{prefix}{key}");
        let header = at("header");
        let apart = tree.get(&header).is_some() || tree.has_below(&header);
        if apart && let Some(file) = take_child(tree, &header, &mut Common::default())? {
            self.options = self.options.clone().luks_header(file);
        }
        if let Some(id) = tree.take_text(&at("key-secret"))? {
            self.options = self.options.clone().passphrase(object::passphrase(&id)?);
            self.shown = self.path.as_deref().filter(|_| !apart).map(|path| luks_name(path, &id));
        }
        Ok(())
    }

    /// What only a qcow2 image has; where the format is still to be found, it may turn out to be one.
    fn take_qcow2(&mut self, tree: &mut OptionTree, prefix: &str) -> Result<(), Failure> {
        take_tuning(tree, prefix)?;
        self.take_data(tree, prefix)?;
        let backing = format!("{prefix}backing");
        match tree.take(&backing) {
            None => {}
            Some(Value::Null) => {
                self.options = self.options.clone().no_backing();
                return Ok(());
            }
            Some(value) if value.text() == Some("") => {
                warn(&format!("{backing}= is an old form; write json:{{...}} with \"backing\": null"));
                self.options = self.options.clone().no_backing();
                return Ok(());
            }
            Some(_) => return Err(no_references(&backing)),
        }
        if tree.has_below(&backing) {
            let node = Node::take(tree, &format!("{backing}."), None)?;
            if node.inner.is_some() {
                return Err(Failure::usage(format!(
                    "option '{backing}.file.driver' is a format's, which is not handled by this version of cowimg: the \
                     bytes of a backing file come from a file"
                )));
            }
            self.options = self.options.clone().backing_override(node.path, node.options);
            self.overrides_backing = true;
        }
        Ok(())
    }
}

impl Node {
    /// What a qcow2 image's data is encrypted with, and which file it is in.
    fn take_data(&mut self, tree: &mut OptionTree, prefix: &str) -> Result<(), Failure> {
        let at = |key: &str| format!("{prefix}{key}");
        tree.take_word(&at("encrypt.format"), &["luks", "aes"])?;
        if let Some(id) = tree.take_text(&at("encrypt.key-secret"))? {
            self.options = self.options.clone().passphrase(object::passphrase(&id)?);
            if self.format == Some(Format::Qcow2) {
                self.shown = self.path.as_deref().map(|path| encrypted_name(path, &id));
            }
        }
        let data_file = at("data-file");
        if tree.get(&data_file).is_some() || tree.has_below(&data_file) {
            let file = take_child(tree, &data_file, &mut Common::default())?;
            if let Some(file) = file {
                self.options = self.options.clone().data_file(file);
            }
        }
        Ok(())
    }
}

/// What every node may have.
#[derive(Default)]
struct Common {
    read_only: bool,
    direct: bool,
    no_flush: bool,
    lock: LockMode,
}

impl Common {
    /// Takes the options of the node at `prefix` and joins them to those of the nodes before.
    fn take(&mut self, tree: &mut OptionTree, prefix: &str) -> Result<(), Failure> {
        let at = |key: &str| format!("{prefix}{key}");
        self.read_only |= tree.take_switch(&at("read-only"))?.unwrap_or(false);
        self.direct |= tree.take_switch(&at("cache.direct"))?.unwrap_or(false);
        self.no_flush |= tree.take_switch(&at("cache.no-flush"))?.unwrap_or(false);
        if tree.take_switch(&at("force-share"))?.unwrap_or(false) {
            self.lock = LockMode::Share;
        }
        tree.take_switch(&at("auto-read-only"))?;
        tree.take_text(&at("node-name"))?;
        let discard = tree.take_word(&at("discard"), &["unmap", "on", "ignore", "off"])?;
        let zeroes = tree.take_word(&at("detect-zeroes"), &["off", "on", "unmap"])?;
        if zeroes == Some(2) && discard.is_none_or(|place| place > 1) {
            return Err(Failure::usage(format!(
                "{} goes only with discard=unmap",
                at("detect-zeroes=unmap")
            )));
        }
        if tree.take_switch(&at("copy-on-read"))? == Some(true) {
            return Err(Failure::usage(format!(
                "{} is not handled by this version of cowimg",
                at("copy-on-read=on")
            )));
        }
        Ok(())
    }

    fn options(&self, format: Option<Format>) -> OpenOptions {
        let mut options = image_options().lock(self.lock);
        if self.no_flush {
            options = options.cache_mode(CacheMode::Unsafe);
        } else if self.direct {
            options = options.cache_mode(CacheMode::None);
        }
        match format {
            Some(format) => options.format(format),
            None => options,
        }
    }
}

/// Whether the option names an image format that is handled here.
fn is_format(tree: &OptionTree, path: &str) -> bool {
    tree.get(path).and_then(Value::text).is_some_and(|driver| parse_format(driver).is_ok())
}

/// Takes the file below a format out, if it is described.
fn take_child(tree: &mut OptionTree, path: &str, common: &mut Common) -> Result<Option<PathBuf>, Failure> {
    if tree.get(path).is_some() {
        return Err(no_references(path));
    }
    let prefix = format!("{path}.");
    common.take(tree, &prefix)?;
    let driver = tree.take_text(&format!("{prefix}driver"))?;
    match driver.as_deref() {
        None | Some("file" | "host_device") => take_file(tree, &prefix, common),
        Some(other) => Err(Failure::usage(format!(
            "option '{prefix}driver' is '{other}', which is not handled by this version of cowimg; an image's bytes \
             come from a file"
        ))),
    }
}

/// Takes the name of a file out, and how it is to be opened.
fn take_file(tree: &mut OptionTree, prefix: &str, common: &mut Common) -> Result<Option<PathBuf>, Failure> {
    let at = |key: &str| format!("{prefix}{key}");
    if tree.take_word(&at("locking"), &["auto", "on", "off"])? == Some(2) {
        common.lock = LockMode::Off;
    }
    tree.take_word(&at("aio"), &["threads", "native", "io_uring"])?;
    tree.take_size(&at("aio-max-batch"))?;
    tree.take_switch(&at("drop-cache"))?;
    tree.take_switch(&at("x-check-cache-dropped"))?;
    let name = tree.take_text(&at("filename"))?;
    match name {
        Some(name) if name.is_empty() => Err(Failure::usage(format!("option '{}' is empty", at("filename")))),
        name => Ok(name.map(PathBuf::from)),
    }
}

/// Takes out what tunes QEMU's engine for qcow2 images and has no effect on what they hold.
fn take_tuning(tree: &mut OptionTree, prefix: &str) -> Result<(), Failure> {
    const SWITCHES: [&str; 14] = [
        "lazy-refcounts",
        "discard-no-unref",
        "pass-discard-request",
        "pass-discard-snapshot",
        "pass-discard-other",
        "overlap-check.main-header",
        "overlap-check.active-l1",
        "overlap-check.active-l2",
        "overlap-check.refcount-table",
        "overlap-check.refcount-block",
        "overlap-check.snapshot-table",
        "overlap-check.inactive-l1",
        "overlap-check.inactive-l2",
        "overlap-check.bitmap-directory",
    ];
    const SIZES: [&str; 5] =
        ["cache-size", "l2-cache-size", "l2-cache-entry-size", "refcount-cache-size", "cache-clean-interval"];
    let at = |key: &str| format!("{prefix}{key}");
    for key in SWITCHES {
        tree.take_switch(&at(key))?;
    }
    for key in SIZES {
        tree.take_size(&at(key))?;
    }
    for key in ["overlap-check", "overlap-check.template"] {
        tree.take_word(&at(key), &["none", "constant", "cached", "all"])?;
    }
    Ok(())
}

fn no_references(path: &str) -> Failure {
    Failure::usage(format!("option '{path}' names another node, and there is none"))
        .hint(format!("A file is named by {path}.filename=NAME, or {path}.file.filename=NAME below a format"))
}

/// What reports call a LUKS image that is described with its secret.
fn luks_name(path: &Path, id: &str) -> OsString {
    let (path, id) = (serde_json::Value::from(path.to_string_lossy()), serde_json::Value::from(id));
    let file = format!("\"file\": {{\"driver\": \"file\", \"filename\": {path}}}");
    format!("json:{{\"driver\": \"luks\", {file}, \"key-secret\": {id}}}").into()
}

/// What reports call an encrypted qcow2 image that is described with its secret.
fn encrypted_name(path: &Path, id: &str) -> OsString {
    let (path, id) = (serde_json::Value::from(path.to_string_lossy()), serde_json::Value::from(id));
    let file = format!("\"file\": {{\"driver\": \"file\", \"filename\": {path}}}");
    format!("json:{{\"encrypt.key-secret\": {id}, \"driver\": \"qcow2\", {file}}}").into()
}

/// What reports call a part of a file: its description, with the values as they were given.
fn window_name(path: &Path, [offset, size]: &[Option<Value>; 2]) -> OsString {
    let shown = |value: &Value| match value {
        Value::Number(number) => number.clone(),
        other => serde_json::Value::from(other.text().unwrap_or_default()).to_string(),
    };
    let field = |key: &str, value: &Option<Value>| {
        value.as_ref().map_or(String::new(), |value| format!("\"{key}\": {}, ", shown(value)))
    };
    let path = serde_json::Value::from(path.to_string_lossy());
    let (offset, size) = (field("offset", offset), field("size", size));
    let file = format!("\"file\": {{\"driver\": \"file\", \"filename\": {path}}}");
    format!("json:{{{offset}\"driver\": \"raw\", {size}{file}}}").into()
}

#[cfg(test)]
mod tests {
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
