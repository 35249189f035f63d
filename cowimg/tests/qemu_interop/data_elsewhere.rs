//! Images whose guest data is in an external data file, or encrypted, or both: made by QEMU, written by the library and
//! by QEMU in turn, read by both.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cowimg::encryption::{CipherAlgorithm, CipherMode, Encryption, IvGenerator, LuksOptions, Passphrase};
use cowimg::{
    Access, CreateOptions, ErrorKind, FilePolicy, Image, OpenOptions, Overwrite, Preallocation,
    Qcow2CreateOptions,
};
use tempfile::TempDir;

use crate::model::{Model, Operations};
use crate::qemu_tools::{self, assert_same_bytes};
use crate::subject::{self, Discarded};

const SIZE: u64 = 5 * 1024 * 1024 + 7 * 512;
const SECRET: &str = "--object secret,id=s,data=open-sesame";

/// An image that QEMU made.
struct Made {
    folder: TempDir,
    encrypted: bool,
}

impl Made {
    /// `options` with FOLDER replaced.
    fn new(options: &str, cluster: u64) -> Made {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let encrypted = options.contains("encrypt");
        let made = Made { folder, encrypted };
        let options = options.replace("FOLDER", &made.folder.path().display().to_string());
        let path = made.path();
        let words = format!("create -q -f qcow2 {SECRET} -o cluster_size={cluster},{options}");
        qemu_tools::img(&format!("{words} {} {SIZE}", path.display()), &[]);
        made
    }

    /// One that the library makes, with data in `data.raw` if `change` asks for a data file.
    fn by_us(change: impl FnOnce(&mut Qcow2CreateOptions, &Path)) -> Made {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let mut options = CreateOptions::qcow2(SIZE);
        change(&mut options.qcow2, &folder.path().join("data.raw"));
        let encrypted = options.qcow2.encryption.is_some();
        cowimg::create(folder.path().join("image.qcow2"), &options).expect("the image is created");
        Made { folder, encrypted }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("image.qcow2")
    }

    fn options(&self) -> OpenOptions {
        if self.encrypted {
            Image::options().passphrase(Passphrase::new("open-sesame"))
        } else {
            Image::options()
        }
    }

    fn open_to_write(&self) -> Image {
        self.options().access(Access::ReadWrite).open(self.path()).expect("the image opens")
    }

    /// The image as QEMU's tools name it.
    fn qemu_name(&self) -> String {
        let secret = if self.encrypted { "encrypt.key-secret=s," } else { "" };
        format!("driver=qcow2,{secret}file.filename={}", self.path().display())
    }

    fn assert_clean(&self) {
        let name = self.qemu_name();
        let answer = qemu_tools::img_answer(&format!("check {SECRET} --image-opts {name}"), &[]);
        assert_eq!(answer.code, 0, "qemu-img check: {}", answer.text);
    }

    /// What QEMU reads.
    fn content(&self) -> Vec<u8> {
        let raw = self.folder.path().join("content.raw");
        let name = self.qemu_name();
        qemu_tools::img(&format!("convert {SECRET} --image-opts {name} -O raw"), &[&raw]);
        std::fs::read(&raw).expect("qemu-img wrote the file")
    }

    /// QEMU writes, zeroes and discards.
    fn let_qemu_write(&self, model: &mut Model) {
        let name = self.qemu_name();
        let mut arguments: Vec<String> = SECRET.split(' ').map(str::to_owned).collect();
        arguments.push("--image-opts".to_owned());
        for command in ["write -P 77 100k 300k", "write -P 78 3M 1000k", "write -z 3200k 200k"] {
            arguments.extend(["-c".to_owned(), command.to_owned()]);
        }
        arguments.push(name);
        let said = qemu_tools::run("qemu-io", &arguments);
        assert!(!said.contains("failed"), "{said}");
        model.write(100 << 10, &vec![77; 300 << 10]);
        model.write(3 << 20, &vec![78; 1000 << 10]);
        model.write(3200 << 10, &vec![0; 200 << 10]);
    }
}

fn try_both_ways(options: &str, cluster: u64) {
    try_made(&Made::new(options, cluster), options, cluster);
}

fn try_made(made: &Made, options: &str, cluster: u64) {
    let mut model = Model::zeroed(SIZE);
    let mut operations = Operations::new(format!("{options}, clusters of {cluster}"), SIZE, cluster);
    made.let_qemu_write(&mut model);
    for _ in 0..3 {
        let image = made.open_to_write();
        assert_same_bytes(&subject::content_of(&image), model.bytes(), "read after QEMU wrote");
        for _ in 0..60 {
            subject::apply(&image, &mut model, operations.next(), (Discarded::Zero, cluster));
        }
        image.close().expect("the image closes");
        made.assert_clean();
        assert_same_bytes(&made.content(), model.bytes(), "read by QEMU");
        made.let_qemu_write(&mut model);
    }
    let image = made.options().open(made.path()).expect("the image opens");
    assert_same_bytes(&subject::content_of(&image), model.bytes(), "read at the end");
    let raw = made.folder.path().join("data.raw");
    if options.contains("data_file_raw=on") {
        let mut bytes = std::fs::read(raw).expect("the data file");
        // QEMU fills the last cluster.
        let beyond = bytes.split_off(SIZE as usize);
        assert!(beyond.iter().all(|&byte| byte == 0), "beyond the disk there is nothing");
        assert_same_bytes(&bytes, model.bytes(), "the raw data file");
    }
}

#[test]
fn data_files() {
    for cluster in [4096, 65536] {
        try_both_ways("data_file=FOLDER/data.raw", cluster);
        try_both_ways("data_file=FOLDER/data.raw,data_file_raw=on", cluster);
        try_both_ways("data_file=FOLDER/data.raw,preallocation=metadata", cluster);
    }
}

#[test]
fn data_files_that_the_library_makes() {
    for raw in [false, true] {
        let made = Made::by_us(|options, data| {
            options.data_file = Some(data.into());
            options.data_file_raw = raw;
        });
        let what = if raw { "ours, data_file_raw=on" } else { "ours" };
        made.assert_clean();
        try_made(&made, what, 65536);
    }
}

#[test]
fn a_data_file_that_is_there_is_not_emptied_unasked() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let (path, data) = (folder.path().join("image.qcow2"), folder.path().join("data.raw"));
    std::fs::write(&data, b"precious").expect("written");
    let mut options = CreateOptions::qcow2(SIZE);
    options.qcow2.data_file = Some(data.clone().into());
    let error = cowimg::create(&path, &options).expect_err("the file is there");
    assert_eq!(error.io_kind(), Some(std::io::ErrorKind::AlreadyExists), "{error}");
    assert_eq!(std::fs::read(&data).expect("it is there"), b"precious");
    assert!(!path.exists());
    options.overwrite = Overwrite::Replace;
    cowimg::create(&path, &options).expect("now it may be replaced");
    assert_eq!(std::fs::metadata(&data).expect("it is there").len(), SIZE);
}

#[test]
fn images_with_data_files_start_as_qemus() {
    for (raw, preallocation) in
        [(false, Preallocation::Off), (true, Preallocation::Off), (false, Preallocation::Metadata)]
    {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let [ours, theirs, data] = ["ours", "theirs", "data"].map(|name| folder.path().join(name));
        let words = format!(
            "create -q -f qcow2 -o data_file={},data_file_raw={},preallocation={} {} {SIZE}",
            data.display(),
            if raw { "on" } else { "off" },
            if preallocation == Preallocation::Off { "off" } else { "metadata" },
            theirs.display(),
        );
        qemu_tools::img(&words, &[]);
        let mut options = CreateOptions { overwrite: Overwrite::Replace, ..CreateOptions::qcow2(SIZE) };
        options.qcow2.data_file = Some(data.into());
        options.qcow2.data_file_raw = raw;
        options.preallocation = preallocation;
        cowimg::create(&ours, &options).expect("the image is created");
        let bytes = |path| std::fs::read(path).expect("the image can be read");
        assert_same_bytes(&bytes(ours), &bytes(theirs), &words);
    }
}

#[test]
fn encrypted_images_that_the_library_makes() {
    let passphrase = || Passphrase::new("open-sesame");
    let luks = |change: fn(&mut LuksOptions)| {
        let mut luks =
            LuksOptions { iteration_time: Duration::from_millis(10), ..LuksOptions::new(passphrase()) };
        change(&mut luks);
        Encryption::Luks(luks)
    };
    let essiv = luks(|luks| {
        luks.cipher = CipherAlgorithm::Serpent256;
        luks.mode = CipherMode::Cbc;
        luks.iv = IvGenerator::Essiv;
    });
    for encryption in [luks(|_| {}), essiv, Encryption::Aes(passphrase())] {
        let what = format!("ours, {encryption:?}");
        assert!(!what.contains("sesame"), "{what}");
        let made = Made::by_us(|options, _| options.encryption = Some(encryption));
        made.assert_clean();
        try_made(&made, &what, 65536);
    }
}

#[test]
fn data_files_of_divided_clusters() {
    try_both_ways("data_file=FOLDER/data.raw,extended_l2=on", 65536);
    try_both_ways("data_file=FOLDER/data.raw,data_file_raw=on,extended_l2=on", 16384);
}

/// Fast to open. To make one takes QEMU seconds all the same, as it measures the machine first: few of these tests let
/// it, and none more often than it has to.
const LUKS: &str = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";

#[test]
fn encrypted_data() {
    for cluster in [512, 65536] {
        try_both_ways("encrypt.format=aes,encrypt.key-secret=s", cluster);
    }
    try_both_ways(LUKS, 512);
    try_both_ways(&format!("{LUKS},extended_l2=on,data_file=FOLDER/data.raw"), 65536);
    try_both_ways("encrypt.format=aes,encrypt.key-secret=s,data_file=FOLDER/data.raw", 65536);
}

/// A volume with this cipher, mode, generator of initialisation vectors and hash.
fn volume_of(words: &str) -> LuksOptions {
    let words: Vec<&str> = words.split(' ').collect();
    let [cipher, mode, generator, hash] = words[..] else { panic!("four words: {words:?}") };
    LuksOptions {
        cipher: cipher.parse().expect("a cipher"),
        mode: mode.parse().expect("a mode"),
        iv: generator.parse().expect("a generator"),
        hash: hash.parse().expect("a hash"),
        iteration_time: Duration::from_millis(10),
        ..LuksOptions::new(Passphrase::new("open-sesame"))
    }
}

/// Both read what the other writes.
fn try_cipher(made: &Made, what: &str) {
    let mut model = Model::zeroed(SIZE);
    made.let_qemu_write(&mut model);
    let image = made.open_to_write();
    assert_same_bytes(&subject::content_of(&image), model.bytes(), what);
    image.write_at(&vec![5; 100_001], 1_000_001).expect("written");
    model.write(1_000_001, &vec![5; 100_001]);
    image.close().expect("closed");
    assert_same_bytes(&made.content(), model.bytes(), what);
}

#[test]
fn every_cipher_that_qemu_has() {
    for what in [
        "aes-128 cbc plain sha256",
        "aes-192 xts plain64 sha1",
        "aes-256 cbc essiv sha256",
        "serpent-256 xts plain64 sha512",
        "serpent-128 ctr plain64 sha224",
        "twofish-192 xts plain64 sha384",
        "twofish-256 cbc plain64 ripemd160",
        "cast5-128 cbc plain64 md5",
        "cast5-128 ctr plain64 sha256",
        "aes-128 ecb plain64 sha256",
    ] {
        let made = Made::by_us(|options, _| options.encryption = Some(Encryption::Luks(volume_of(what))));
        try_cipher(&made, what);
    }
    for what in [
        "encrypt.cipher-alg=aes-256,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256",
        "encrypt.cipher-alg=twofish-192,encrypt.cipher-mode=xts,encrypt.hash-alg=sha1",
    ] {
        try_cipher(&Made::new(&format!("{LUKS},{what}"), 65536), what);
    }
}

fn refusal(options: &OpenOptions, path: &Path) -> cowimg::Error {
    options.open(path).expect_err("the image must be refused")
}

#[test]
fn an_encrypted_image_is_never_taken_for_plain_data() {
    for format in ["luks", "aes"] {
        let options = if format == "luks" { LUKS } else { "encrypt.format=aes,encrypt.key-secret=s" };
        let made = Made::new(options, 65536);
        let error = refusal(&Image::options(), &made.path());
        assert!(matches!(error.kind(), ErrorKind::PassphraseNeeded), "{error}");
        assert!(error.to_string().contains("image.qcow2"), "{error}");
        if format == "luks" {
            let error = refusal(&Image::options().passphrase(Passphrase::new("open sesame")), &made.path());
            assert!(matches!(error.kind(), ErrorKind::WrongPassphrase), "{error}");
        }
    }
}

/// Changes bytes of a file.
fn poke(path: &Path, offset: u64, bytes: &[u8]) {
    let file = std::fs::File::options().write(true).open(path).expect("the file opens");
    std::os::unix::fs::FileExt::write_all_at(&file, bytes, offset).expect("written");
}

#[test]
fn what_is_encrypted_in_an_unknown_way_does_not_open_at_all() {
    let options = Image::options().passphrase(Passphrase::new("open-sesame"));
    let volume = || volume_of("aes-256 xts plain64 sha256");
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("image.luks");
    // Of the header: version 2, a cipher, a mode and a hash that nobody knows.
    for (offset, bytes) in [(6, &b"\0\x02"[..]), (8, b"rot13\0"), (40, b"xyz-plain64\0"), (72, b"sha0\0")] {
        let made = Made::by_us(|options, _| options.encryption = Some(Encryption::Luks(volume())));
        options.open(made.path()).expect("it is sound").close().expect("closed");
        // The volume's header is in a cluster of its own.
        let bytes_of = std::fs::read(made.path()).expect("read");
        let start =
            bytes_of.chunks(65536).position(|cluster| cluster.starts_with(b"LUKS")).expect("it is there");
        poke(&made.path(), start as u64 * 65536 + offset, bytes);
        let error = refusal(&options, &made.path());
        assert!(
            matches!(error.kind(), ErrorKind::Unsupported(_) | ErrorKind::Corrupt(_)),
            "{offset}: {error}"
        );
        let create = CreateOptions { overwrite: Overwrite::Replace, ..CreateOptions::luks(SIZE, volume()) };
        cowimg::create(&path, &create).expect("made");
        options.open(&path).expect("it is sound").close().expect("closed");
        poke(&path, offset, bytes);
        let error = refusal(&options, &path);
        let is_named = matches!(error.kind(), ErrorKind::Unsupported(_) | ErrorKind::Corrupt(_));
        assert!(is_named, "luks, {offset}: {error}");
    }
}

#[test]
fn the_policy_for_named_files_holds_for_data_files() {
    let made = Made::new("data_file=FOLDER/data.raw", 65536);
    let denied = refusal(&Image::options().backing(FilePolicy::DenyAll), &made.path());
    assert!(matches!(denied.kind(), ErrorKind::Refused { role: "data file", .. }), "{denied}");
    Image::options().backing(FilePolicy::SameFolder).open(made.path()).expect("it is in the same folder");

    let elsewhere = made.folder.path().join("elsewhere.raw");
    std::fs::rename(made.folder.path().join("data.raw"), &elsewhere).expect("renamed");
    let missing = refusal(&Image::options(), &made.path());
    assert_eq!(missing.io_kind(), Some(std::io::ErrorKind::NotFound), "{missing}");
    Image::options().data_file(&elsewhere).open(made.path()).expect("the caller says where it is");

    // An image that names itself would lose its tables to its guest.
    let own = refusal(&Image::options().data_file(made.path()), &made.path());
    assert!(own.to_string().contains("itself"), "{own}");
}
