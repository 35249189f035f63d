//! Bitmaps that cannot be used: kept as they are, never trusted, and no way to take memory or other people's clusters.

use std::sync::Arc;

use cowimg::check::check_storage;
use cowimg::format::qcow2::{BitmapEntry, BitmapsExtension, Header, HostOffset};
use cowimg::storage::{MemoryStorage, StorageExt};
use cowimg::{Access, BitmapProblem, CreateOptions, ErrorKind, Format, Image, NewBitmap, Qcow2CreateOptions};

const CLUSTER: u64 = 512;

/// An image whose bitmap directory can be changed.
struct Subject {
    storage: Arc<MemoryStorage>,
}

impl Subject {
    /// A disk of 1 MiB with the bitmaps "a" and "b", both of which have something to say.
    fn new() -> Subject {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("image.qcow2");
        let qcow2 = Qcow2CreateOptions { cluster_size: CLUSTER, ..Qcow2CreateOptions::default() };
        let options = CreateOptions { qcow2, ..CreateOptions::qcow2(1 << 20) };
        let image = Image::create(&path, &options).expect("it is created");
        for name in ["a", "b"] {
            image.add_bitmap(name, &NewBitmap::default()).expect("it is added");
        }
        image.write_at(&[1; 4096], 8192).expect("the write succeeds");
        image.close().expect("the image closes");
        let bytes = std::fs::read(&path).expect("the file can be read");
        Subject { storage: Arc::new(MemoryStorage::with_bytes(bytes)) }
    }

    fn header(&self) -> Header {
        let mut cluster = [0; CLUSTER as usize * 2];
        self.storage.read_exact_at(&mut cluster, 0).expect("the header can be read");
        Header::decode(&cluster[..CLUSTER as usize]).expect("it is a header")
    }

    fn extension(&self) -> BitmapsExtension {
        self.header().bitmaps().expect("the image has bitmaps")
    }

    fn entries(&self) -> Vec<BitmapEntry> {
        let extension = self.extension();
        let mut bytes = vec![0; extension.directory_size as usize];
        self.storage.read_exact_at(&mut bytes, extension.directory.get()).expect("the directory can be read");
        BitmapEntry::decode_directory(&bytes, extension.count).expect("it is a directory")
    }

    /// Writes another directory over the one there is; it has at most a cluster.
    fn rewrite(&self, change: impl FnOnce(&mut Vec<BitmapEntry>)) {
        let mut entries = self.entries();
        change(&mut entries);
        let bytes = BitmapEntry::encode_directory(&entries).expect("it can be encoded");
        assert!(bytes.len() as u64 <= CLUSTER);
        let extension = BitmapsExtension {
            count: entries.len() as u32,
            directory_size: bytes.len() as u64,
            ..self.extension()
        };
        self.storage.write_all_at(&bytes, extension.directory.get()).expect("it is written");
        self.replace_extension(extension);
    }

    fn replace_extension(&self, extension: BitmapsExtension) {
        let mut header = self.header();
        let new = extension.to_extension();
        let place = header.extensions.iter_mut().find(|old| old.kind == new.kind);
        *place.expect("there is one") = new;
        self.storage.write_all_at(&header.encode().expect("it is valid"), 0).expect("it is written");
    }

    fn open(&self, access: Access) -> cowimg::Result<Image> {
        Image::options().access(access).format(Format::Qcow2).open_storage(self.storage.clone())
    }

    fn write_and_close(&self) {
        let image = self.open(Access::ReadWrite).expect("it opens for writing");
        image.write_at(&[2; 512], 0).expect("the write succeeds");
        image.close().expect("the image closes");
    }
}

fn assert_unusable<T>(done: cowimg::Result<T>) {
    match done.err().expect("it is refused").kind() {
        ErrorKind::Bitmap { problem: BitmapProblem::Unusable { .. }, .. } => {}
        other => panic!("{other}"),
    }
}

#[test]
fn what_is_not_known_is_kept_marked_in_use_and_not_used() {
    let strangers: [fn(&mut BitmapEntry); 4] = [
        |entry| entry.extra = b"extra data".to_vec(),
        |entry| entry.kind = 2,
        |entry| entry.flags |= 1 << 20,
        |entry| entry.granularity_bits = 40,
    ];
    for (nth, stranger) in strangers.into_iter().enumerate() {
        let subject = Subject::new();
        subject.rewrite(|entries| stranger(&mut entries[0]));
        let before = subject.entries();
        let image = subject.open(Access::ReadWrite).expect("it opens for writing");
        assert_unusable(image.bitmap_ranges("a"));
        assert_unusable(image.clear_bitmap("a"));
        assert_unusable(image.merge_bitmap("b", &image, "a"));
        image.add_bitmap("c", &NewBitmap::default()).expect("others can be added");
        image.write_at(&[2; 512], 0).expect("the write succeeds");
        image.close().expect("the image closes");
        let after = subject.entries();
        let expected = BitmapEntry { flags: before[0].flags | BitmapEntry::IN_USE, ..before[0].clone() };
        assert_eq!(after[0], expected, "stranger {nth}");
        assert_eq!(after[1].flags, BitmapEntry::AUTO, "stranger {nth}");

        let image = subject.open(Access::ReadWrite).expect("it opens for writing");
        image.remove_bitmap("a").expect("it can be removed");
        image.close().expect("the image closes");
        let report = check_storage(&*subject.storage).expect("it can be checked");
        assert_eq!(report.corruptions, 0, "stranger {nth}: {:?}", report.issues);
        assert_eq!(subject.entries().len(), 2, "stranger {nth}");
    }
}

#[test]
fn extra_data_that_may_be_ignored_is_kept_with_a_bitmap_that_is_used() {
    let subject = Subject::new();
    subject.rewrite(|entries| {
        entries[0].extra = b"extra data".to_vec();
        entries[0].flags |= BitmapEntry::EXTRA_COMPATIBLE;
    });
    subject.write_and_close();
    let entry = &subject.entries()[0];
    assert_eq!((entry.extra.as_slice(), entry.flags), (&b"extra data"[..], BitmapEntry::AUTO | 4));
    let image = subject.open(Access::ReadOnly).expect("it opens");
    assert_eq!(image.bitmap_ranges("a").expect("it can be used").count(), 2);
}

#[test]
fn a_bitmap_that_claims_the_clusters_of_another_table_frees_none_of_them() {
    let subject = Subject::new();
    let l1 = subject.header().l1_table;
    subject.rewrite(|entries| entries[0].table = l1);
    let image = subject.open(Access::ReadWrite).expect("it opens for writing");
    assert_unusable(image.bitmap_ranges("a"));
    image.remove_bitmap("a").expect("it can be removed");
    image.write_at(&[2; 512], 700_000).expect("the write succeeds");
    image.close().expect("the image closes");
    let report = check_storage(&*subject.storage).expect("it can be checked");
    assert_eq!(report.corruptions, 0, "{:?}", report.issues);
}

#[test]
fn a_directory_that_makes_no_sense_keeps_an_image_from_being_written_and_not_from_being_read() {
    let subject = Subject::new();
    let subjects: [fn(&Subject); 4] = [
        |subject| subject.rewrite(|entries| entries[1].name = entries[0].name.clone()),
        |subject| {
            let extension = subject.extension();
            subject.replace_extension(BitmapsExtension { directory: HostOffset(1 << 40), ..extension });
        },
        |subject| {
            let directory_size = BitmapsExtension::MAX_DIRECTORY_SIZE;
            subject.replace_extension(BitmapsExtension { directory_size, ..subject.extension() });
        },
        |subject| {
            let directory = subject.header().l1_table;
            subject.replace_extension(BitmapsExtension { directory, ..subject.extension() });
        },
    ];
    drop(subject);
    for (nth, damage) in subjects.into_iter().enumerate() {
        let subject = Subject::new();
        damage(&subject);
        let refused = subject.open(Access::ReadWrite).expect_err("it is refused");
        assert!(matches!(refused.kind(), ErrorKind::Corrupt(_)), "damage {nth}: {refused}");
        let image = subject.open(Access::ReadOnly).expect("it opens for reading");
        let mut bytes = [0; 512];
        image.read_at(&mut bytes, 8192).expect("it can be read");
        assert_eq!(bytes, [1; 512]);
    }
}
