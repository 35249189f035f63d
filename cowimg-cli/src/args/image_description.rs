//! An image that is described in `key=value` pairs or in JSON, as [`image_name`](super::image_name) takes it.
//!
//! A description is a tree of nodes: a format (`raw`, `qcow2`), whose `file` is a file or a further format, and whose
//! `backing` is a further format. Options that change what is read or written are obeyed, those that only tune QEMU's own
//! workings are checked and have no effect here, and all others are refused by name.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use cowimg::{CacheMode, Format, LockMode, OpenOptions};

use super::image_name::ImageName;
use crate::args::image::parse_format;
use crate::args::object;
use crate::args::option_tree::{OptionTree, Value};
use crate::failure::{Failure, warn};
use crate::trust::image_options;

/// An image that is described; `format` counts more than the description.
pub(super) fn described(mut tree: OptionTree, format: Option<Format>) -> Result<ImageName, Failure> {
    let node = Node::take(&mut tree, "", format)?;
    tree.finish()?;
    node.named()
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
    /// The image, if its file is said.
    fn named(self) -> Result<ImageName, Failure> {
        let Some(path) = self.path else {
            return Err(Failure::usage("the image's file is not said").hint("Add file.filename=NAME"));
        };
        Ok(ImageName {
            shown: self
                .shown
                .filter(|_| self.inner.is_none())
                .unwrap_or_else(|| path.clone().into_os_string()),
            path,
            options: self.options,
            is_stated: self.format.is_some(),
            is_file: self.is_file,
            overrides_backing: self.overrides_backing,
            read_only: self.read_only,
            states_cache: self.states_cache,
            inner: self.inner,
        })
    }

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
        } else {
            let named = driver.as_deref().map(parse_format).transpose();
            let named = named.map_err(|why| Failure::usage(format!("option '{}': {why}", at("driver"))))?;
            let path = if named.is_some() && is_format(tree, &at("file.driver")) {
                let below = Node::take(tree, &at("file."), None)?.named()?;
                Some(inner.insert(Box::new(below)).path.clone())
            } else {
                take_child(tree, &at("file"), &mut common)?
            };
            (format.or(named), path)
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
    let id = serde_json::Value::from(id);
    title(path, &|file| format!("\"driver\": \"luks\", {file}, \"key-secret\": {id}"))
}

/// What reports call an encrypted qcow2 image that is described with its secret.
fn encrypted_name(path: &Path, id: &str) -> OsString {
    let id = serde_json::Value::from(id);
    title(path, &|file| format!("\"encrypt.key-secret\": {id}, \"driver\": \"qcow2\", {file}"))
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
    let (offset, size) = (field("offset", offset), field("size", size));
    title(path, &|file| format!("{offset}\"driver\": \"raw\", {size}{file}"))
}

/// A `json:` name whose fields `fields` puts around that of the file.
fn title(path: &Path, fields: &dyn Fn(&str) -> String) -> OsString {
    let path = serde_json::Value::from(path.to_string_lossy());
    let file = format!("\"file\": {{\"driver\": \"file\", \"filename\": {path}}}");
    format!("json:{{{}}}", fields(&file)).into()
}
