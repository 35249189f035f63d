//! All that an image's header says, for `info --header`: every field, with features and extensions that nobody knows.
//!
//! Places and lengths are in bytes. A feature is called by the name that the image has for it, then by its usual one, then
//! "bit 40".

use cowimg::ImageInfo;
use cowimg::format::qcow2::{CryptMethod, Extension, FeatureKind, Header};
use cowimg::format::{qcow1, qcow2};

use crate::output::json::Json;

/// The header's fields, for formats that have a header.
pub(super) fn fields(info: &ImageInfo) -> Option<Vec<(&'static str, Json)>> {
    match (&info.qcow2, &info.qcow1) {
        (Some(qcow2), _) => Some(of_qcow2(&qcow2.header)),
        (None, Some(header)) => Some(of_qcow1(header)),
        (None, None) => None,
    }
}

fn of_qcow2(header: &Header) -> Vec<(&'static str, Json)> {
    let geometry = header.geometry();
    let mut fields = vec![
        ("version", header.version.number().into()),
        ("length", header.header_length.into()),
        ("size", header.size.into()),
        ("cluster-bits", header.cluster_bits.into()),
        ("refcount-order", header.refcount_order.into()),
        ("crypt-method", crypt_method(header.crypt_method)),
        ("compression-type", header.compression.as_str().into()),
        ("l1-table", table(header.l1_table.get(), u64::from(header.l1_entries) * qcow2::TABLE_ENTRY_SIZE)),
        ("l1-entries", header.l1_entries.into()),
        (
            "refcount-table",
            table(
                header.refcount_table.get(),
                u64::from(header.refcount_table_clusters) * geometry.cluster_size(),
            ),
        ),
        ("refcount-table-clusters", header.refcount_table_clusters.into()),
        ("snapshot-table-offset", header.snapshot_table.get().into()),
        ("snapshots", header.snapshot_count.into()),
        ("incompatible-features", features(header, FeatureKind::Incompatible, header.incompatible.0)),
        ("compatible-features", features(header, FeatureKind::Compatible, header.compatible.0)),
        ("autoclear-features", features(header, FeatureKind::Autoclear, header.autoclear.0)),
        ("unknown-fields-length", (header.unknown_fields.len() as u64).into()),
        ("extensions", Json::List(header.extensions.iter().map(|one| extension(header, one)).collect())),
    ];
    if let Some(name) = &header.backing_file {
        fields.push(("backing-file", name.as_slice().into()));
    }
    fields
}

fn of_qcow1(header: &qcow1::Header) -> Vec<(&'static str, Json)> {
    let mut fields = vec![
        ("version", 1_u32.into()),
        ("length", (qcow1::Header::LEN as u64).into()),
        ("size", header.size.into()),
        ("cluster-bits", header.cluster_bits().into()),
        ("l2-bits", header.l2_bits().into()),
        ("crypt-method", if header.crypt_method == qcow1::CryptMethod::Aes { "aes" } else { "none" }.into()),
        ("l1-table-offset", header.l1_table.into()),
    ];
    if let Some(place) = &header.backing_name {
        fields.push(("backing-file-name", table(place.start, place.end - place.start)));
    }
    fields
}

fn crypt_method(method: CryptMethod) -> Json {
    match method {
        CryptMethod::None => "none".into(),
        CryptMethod::Aes => "aes".into(),
        CryptMethod::Luks => "luks".into(),
        CryptMethod::Other(code) => format!("unknown method {code}").as_str().into(),
    }
}

/// The bits of a set as they are, and what each is called.
fn features(header: &Header, kind: FeatureKind, bits: u64) -> Json {
    let names = header.feature_names().names(kind, bits);
    let names = names.iter().map(|name| name.as_str().into()).collect();
    Json::Object(vec![("bits", format!("{bits:#x}").as_str().into()), ("names", Json::List(names))])
}

fn table(offset: u64, length: u64) -> Json {
    Json::Object(vec![("offset", offset.into()), ("length", length.into())])
}

fn extension(header: &Header, extension: &Extension) -> Json {
    let mut fields = vec![
        ("type", format!("{:#010x}", extension.kind).as_str().into()),
        ("name", Extension::name(extension.kind).unwrap_or("unknown").into()),
        ("length", (extension.data.len() as u64).into()),
    ];
    match extension.kind {
        Extension::BACKING_FORMAT | Extension::DATA_FILE => {
            fields.push(("text", extension.data.as_slice().into()));
        }
        Extension::ENCRYPTION => {
            if let Some((offset, length)) = header.crypto_header() {
                fields.push(("place", table(offset, length)));
            }
        }
        Extension::BITMAPS => {
            if let Some(bitmaps) = header.bitmaps() {
                fields.push(("bitmaps", bitmaps.count.into()));
                fields.push(("directory", table(bitmaps.directory.get(), bitmaps.directory_size)));
            }
        }
        _ => {}
    }
    Json::Object(fields)
}
