//! The report of `info`: one block per layer.
//!
//! What is special to a format is made once, as JSON; the text for people is the same tree with indentation
//! instead of brackets, as in qemu-img.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;

use cowimg::format::luks::{KeySlot, LuksHeader};
use cowimg::format::qcow2::CryptMethod;
use cowimg::{BitmapInfo, ImageInfo, Version};

use crate::output::human_size::human_size;
use crate::output::json::Json;
use crate::output::{header, path_bytes, snapshots};

/// A layer, and what the report calls it: the name that it was opened by, or the description.
#[derive(Debug)]
pub(crate) struct Titled {
    /// The title.
    pub(crate) title: Vec<u8>,
    /// The layer.
    pub(crate) info: ImageInfo,
    /// Whether it is a file as such, and no image in one.
    pub(crate) is_file: bool,
    /// Whether all that its header says is told.
    pub(crate) with_header: bool,
}

/// Every layer for a person, with an empty line between two.
pub(crate) fn human(layers: &[Titled], out: &mut dyn Write) -> io::Result<()> {
    for (index, layer) in layers.iter().enumerate() {
        if index > 0 {
            writeln!(out)?;
        }
        human_layer(layer, out)?;
    }
    Ok(())
}

/// One layer for a program.
pub(crate) fn json(layer: &Titled) -> Json {
    let Titled { title, info, .. } = layer;
    if layer.is_file {
        return file_node(info);
    }
    let children = Json::List(vec![Json::Object(vec![("name", "file".into()), ("info", file_node(info))])]);
    let mut fields = vec![("children", children)];
    if let Some(format) = info.backing.as_ref().and_then(|backing| backing.format.as_ref()) {
        fields.push(("backing-filename-format", format.as_str().into()));
    }
    if !info.snapshots.is_empty() {
        fields.push(("snapshots", snapshots::json(&info.snapshots)));
    }
    fields.push(("virtual-size", info.virtual_size.into()));
    fields.push(("filename", title.as_slice().into()));
    if let Some(cluster_size) = info.cluster_size {
        fields.push(("cluster-size", cluster_size.into()));
    }
    fields.push(("format", info.format.as_str().into()));
    fields.push(("actual-size", info.disk_size.into()));
    if let Some(specific) = format_specific(info) {
        let data = Json::Object(specific);
        fields.push((
            "format-specific",
            Json::Object(vec![("type", info.format.as_str().into()), ("data", data)]),
        ));
    }
    if let Some(backing) = &info.backing {
        fields.push(("full-backing-filename", backing.full_name.as_bytes().into()));
    }
    if info.encrypted {
        fields.push(("encrypted", true.into()));
    }
    if let Some(backing) = &info.backing {
        fields.push(("backing-filename", backing.name.as_bytes().into()));
    }
    fields.push(("dirty-flag", info.dirty.into()));
    if layer.with_header
        && let Some(header) = header::fields(info)
    {
        fields.push(("header", Json::Object(header)));
    }
    Json::Object(fields)
}

/// The whole chain for a program.
pub(crate) fn json_chain(layers: &[Titled]) -> Json {
    Json::List(layers.iter().map(json).collect())
}

/// The file beneath the image, as a node of its own.
fn file_node(info: &ImageInfo) -> Json {
    let specific = Json::Object(vec![("type", "file".into()), ("data", Json::Object(file_specific(info)))]);
    Json::Object(vec![
        ("children", Json::List(vec![])),
        ("virtual-size", info.file_len.into()),
        ("filename", name(info).into()),
        ("format", protocol(info).into()),
        ("actual-size", info.disk_size.into()),
        ("format-specific", specific),
        ("dirty-flag", false.into()),
    ])
}

/// What only some files have.
fn file_specific(info: &ImageInfo) -> Vec<(&'static str, Json)> {
    info.extent_size_hint.map(|size| ("extent-size-hint", u64::from(size).into())).into_iter().collect()
}

/// The name that the image was opened by.
fn name(info: &ImageInfo) -> &[u8] {
    info.path.as_deref().map_or(b"", path_bytes)
}

/// What the image's bytes are reached by.
fn protocol(info: &ImageInfo) -> &'static str {
    if info.is_device { "host_device" } else { "file" }
}

/// What only images of this format have, if it has such things.
fn format_specific(info: &ImageInfo) -> Option<Vec<(&'static str, Json)>> {
    if let Some(header) = &info.luks {
        return Some(luks(header).into_iter().filter(|(key, _)| *key != "format").collect());
    }
    let qcow2 = info.qcow2.as_ref()?;
    let mut fields = vec![
        ("compat", if qcow2.version == Version::V2 { "0.10" } else { "1.1" }.into()),
        ("compression-type", qcow2.compression.as_str().into()),
    ];
    let encryption = match (qcow2.crypt_method, &qcow2.luks) {
        (CryptMethod::Aes, _) => Some(vec![("format", "aes".into())]),
        (CryptMethod::Luks, Some(header)) => Some(luks(header)),
        (CryptMethod::Luks, None) => Some(vec![("format", "luks".into())]),
        _ => None,
    };
    let encryption = encryption.map(|fields| ("encrypt", Json::Object(fields)));
    if qcow2.version == Version::V2 {
        fields.push(("refcount-bits", qcow2.refcount_bits.into()));
        fields.extend(encryption);
        return Some(fields);
    }
    fields.push(("lazy-refcounts", qcow2.lazy_refcounts.into()));
    if !qcow2.bitmaps.is_empty() {
        fields.push(("bitmaps", Json::List(qcow2.bitmaps.iter().map(bitmap).collect())));
    }
    fields.push(("refcount-bits", qcow2.refcount_bits.into()));
    if let Some(name) = &qcow2.data_file {
        fields.push(("data-file", name.as_bytes().into()));
    }
    fields.extend(encryption);
    if qcow2.data_file.is_some() {
        fields.push(("data-file-raw", qcow2.data_file_raw.into()));
    }
    fields.push(("corrupt", qcow2.corrupt.into()));
    fields.push(("extended-l2", qcow2.extended_l2.into()));
    Some(fields)
}

/// A LUKS volume's header, with the names in it taken apart.
fn luks(header: &LuksHeader) -> Vec<(&'static str, Json)> {
    const SECTOR: u64 = 512;
    let (mode, generator) = header.cipher_mode.split_once('-').unwrap_or((&header.cipher_mode, ""));
    let (generator, iv_hash) = match generator.split_once(':') {
        Some((generator, hash)) => (generator, Some(hash)),
        None => (generator, None),
    };
    let keys = if mode == "xts" { 2 } else { 1 };
    let cipher = format!("{}-{}", header.cipher_name, header.key_bytes * 8 / keys);
    let slot = |slot: &KeySlot| {
        let mut fields = vec![("active", slot.active.into())];
        if slot.active {
            fields.push(("iters", slot.iterations.into()));
        }
        fields.push(("key-offset", (u64::from(slot.material) * SECTOR).into()));
        if slot.active {
            fields.push(("stripes", slot.stripes.into()));
        }
        Json::Object(fields)
    };
    let mut fields = vec![
        ("ivgen-alg", generator.into()),
        ("detached-header", header.is_detached().into()),
        ("hash-alg", header.hash_spec.as_str().into()),
        ("cipher-alg", cipher.as_str().into()),
        ("uuid", header.uuid.as_str().into()),
    ];
    if let Some(hash) = iv_hash {
        fields.push(("ivgen-hash-alg", hash.into()));
    }
    fields.extend([
        ("format", "luks".into()),
        ("cipher-mode", mode.into()),
        ("slots", Json::List(header.slots.iter().map(slot).collect())),
        ("payload-offset", header.payload_start().into()),
        ("master-key-iters", header.digest_iterations.into()),
    ]);
    fields
}

/// A bitmap that the image stores.
pub(super) fn bitmap(bitmap: &BitmapInfo) -> Json {
    let flags = [(bitmap.in_use, "in-use"), (bitmap.auto, "auto")];
    let flags = flags.iter().filter(|(is_set, _)| *is_set).map(|(_, name)| (*name).into());
    Json::Object(vec![
        ("flags", Json::List(flags.collect())),
        ("name", bitmap.name.as_slice().into()),
        ("granularity", bitmap.granularity.into()),
    ])
}

fn human_layer(layer: &Titled, out: &mut dyn Write) -> io::Result<()> {
    let Titled { title, info, .. } = layer;
    write_line(out, "image: ", title)?;
    let format = if layer.is_file { protocol(info) } else { info.format.as_str() };
    writeln!(out, "file format: {format}")?;
    writeln!(out, "virtual size: {} ({} bytes)", human_size(info.virtual_size), info.virtual_size)?;
    writeln!(out, "disk size: {}", human_size(info.disk_size))?;
    if layer.is_file {
        return Ok(());
    }
    if info.encrypted {
        writeln!(out, "encrypted: yes")?;
    }
    if let Some(cluster_size) = info.cluster_size {
        writeln!(out, "cluster_size: {cluster_size}")?;
    }
    if info.dirty {
        writeln!(out, "cleanly shut down: no")?;
    }
    if let Some(backing) = &info.backing {
        out.write_all(b"backing file: ")?;
        out.write_all(backing.name.as_bytes())?;
        if backing.full_name != backing.name {
            out.write_all(b" (actual path: ")?;
            out.write_all(backing.full_name.as_bytes())?;
            out.write_all(b")")?;
        }
        writeln!(out)?;
        if let Some(format) = &backing.format {
            writeln!(out, "backing file format: {format}")?;
        }
    }
    if !info.snapshots.is_empty() {
        snapshots::human(&info.snapshots, out)?;
    }
    if let Some(specific) = format_specific(info) {
        writeln!(out, "Format specific information:")?;
        human_fields(&specific, 1, out)?;
    }
    if layer.with_header
        && let Some(header) = header::fields(info)
    {
        writeln!(out, "Header:")?;
        human_fields(&header, 1, out)?;
    }
    writeln!(out, "Child node '/file':")?;
    write_line(out, "    filename: ", name(info))?;
    writeln!(out, "    protocol type: {}", protocol(info))?;
    writeln!(out, "    file length: {} ({} bytes)", human_size(info.file_len), info.file_len)?;
    writeln!(out, "    disk size: {}", human_size(info.disk_size))?;
    let specific = file_specific(info);
    if !specific.is_empty() {
        writeln!(out, "    Format specific information:")?;
        human_fields(&specific, 2, out)?;
    }
    Ok(())
}

/// The fields of an object, one per line; keys lose their hyphens.
fn human_fields(fields: &[(&'static str, Json)], level: usize, out: &mut dyn Write) -> io::Result<()> {
    fields.iter().try_for_each(|(key, value)| human_value(&key.replace('-', " "), value, level, out))
}

/// One field or element: a line, or a title with its parts indented below it.
fn human_value(title: &str, value: &Json, level: usize, out: &mut dyn Write) -> io::Result<()> {
    write!(out, "{:width$}{title}:", "", width = 4 * level)?;
    match value {
        Json::Bool(value) => writeln!(out, " {value}"),
        Json::Number(value) => writeln!(out, " {value}"),
        Json::Text(text) => write_line(out, " ", text),
        Json::Object(fields) => {
            writeln!(out)?;
            human_fields(fields, level + 1, out)
        }
        Json::List(values) => {
            writeln!(out)?;
            let mut numbered = values.iter().enumerate();
            numbered.try_for_each(|(index, value)| human_value(&format!("[{index}]"), value, level + 1, out))
        }
    }
}

fn write_line(out: &mut dyn Write, title: &str, text: &[u8]) -> io::Result<()> {
    out.write_all(title.as_bytes())?;
    out.write_all(text)?;
    out.write_all(b"\n")
}
