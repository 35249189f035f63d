//! What is compared: a row is a piece of work, done by both programs.

use super::images::Needed;

/// A piece of work.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// The ratio that we want to reach, as text for the table.
    pub(crate) target: &'static str,
    pub(crate) needs: &'static [Needed],
    /// Run before each pair, outside the time.
    pub(crate) prepare: &'static [&'static str],
    pub(crate) ours: &'static str,
    pub(crate) theirs: &'static str,
    /// How often theirs runs for one run of ours.
    pub(crate) times: usize,
    /// Run after the first pair: must succeed.
    pub(crate) verify: &'static [&'static str],
    /// Pairs that are measured, unless the command line says otherwise.
    pub(crate) pairs: usize,
}

const ROW: Row = Row {
    name: "",
    target: "",
    needs: &[],
    prepare: &[],
    ours: "",
    theirs: "",
    times: 1,
    verify: &[],
    pairs: 7,
};

/// Work that is over when the programs have started.
const QUICK: Row = Row { target: "0.15", pairs: 60, ..ROW };
/// A conversion, each time into a new file, while nothing else waits to be written to the disk.
const CONVERT: Row = Row { prepare: &["rm -f out1 out2", "sync"], ..ROW };
/// The same where files can share space.
const SHARED: Row = Row { prepare: &["rm -f xfs/out1 xfs/out2", "sync"], pairs: 5, ..ROW };
/// Requests in one process, timed with opening and closing.
const REQUESTS: Row = Row { pairs: 5, ..ROW };

/// What a chain costs a read, with as many of them that opening it shows no more: cowimg twice.
const THROUGH_ONE: Row = Row {
    target: "1.1",
    needs: &[Needed::Chain],
    theirs: "cowimg bench -f qcow2 -c 3000000 -d 1 -s 4096 -S 1052672 layer1.qcow2",
    pairs: 5,
    ..ROW
};

/// Copies go to the disk before the time starts: otherwise whoever syncs first pays for writing them out.
const SYNC: &str = "sync out1 out2";

/// All rows.
pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "info",
        needs: &[Needed::Qcow2],
        ours: "cowimg info fs.qcow2",
        theirs: "qemu-img info fs.qcow2",
        ..QUICK
    },
    Row {
        name: "create an overlay",
        needs: &[Needed::Base],
        prepare: &["rm -f out1 out2"],
        ours: "cowimg create -q -f qcow2 -b base.raw -F raw out1",
        theirs: "qemu-img create -q -f qcow2 -b base.raw -F raw out2",
        verify: &["cmp out1 out2"],
        ..QUICK
    },
    Row {
        name: "create 1,000 overlays",
        target: "0.01",
        needs: &[Needed::Base],
        // In folders of their own, and nothing is removed between the pairs: ext4 passes over inodes that were in use lately
        // one by one, which is most of what there would be to measure.
        prepare: &["mkdir -p clones-{pair}", "ln -f base.raw clones-{pair}/base.raw"],
        ours: "cowimg clone -q -F raw -n 1000 --first 0 clones-{pair}/base.raw clones-{pair}/1-%d",
        theirs: "qemu-img create -q -f qcow2 -b base.raw -F raw clones-{pair}/2-{n}",
        times: 1000,
        verify: &["cmp clones-0/1-0 clones-0/2-0", "cmp clones-0/1-999 clones-0/2-999"],
        pairs: 3,
    },
    Row {
        name: "resize",
        needs: &[Needed::Small],
        prepare: &["cp small.qcow2 out1", "cp small.qcow2 out2", SYNC],
        ours: "cowimg resize -q out1 +1M",
        theirs: "qemu-img resize -q out2 +1M",
        verify: &["qemu-img compare -q out1 out2", "qemu-img check -q out1"],
        ..QUICK
    },
    Row {
        name: "snapshot -l",
        needs: &[Needed::Snapshot],
        ours: "cowimg snapshot -l snapshot.qcow2",
        theirs: "qemu-img snapshot -l snapshot.qcow2",
        ..QUICK
    },
    Row {
        name: "convert raw to qcow2",
        target: "0.5",
        needs: &[Needed::FileSystem],
        ours: "cowimg convert -f raw -O qcow2 fs.raw out1",
        theirs: "qemu-img convert -f raw -O qcow2 fs.raw out2",
        verify: &["qemu-img compare -q -f raw -F qcow2 fs.raw out1", "qemu-img check -q out1"],
        ..CONVERT
    },
    Row {
        name: "convert qcow2 to raw",
        target: "0.5",
        needs: &[Needed::Qcow2],
        ours: "cowimg convert -f qcow2 -O raw fs.qcow2 out1",
        theirs: "qemu-img convert -f qcow2 -O raw fs.qcow2 out2",
        verify: &["cmp out1 out2"],
        ..CONVERT
    },
    Row {
        name: "convert qcow2 to qcow2",
        target: "0.5",
        needs: &[Needed::Qcow2],
        ours: "cowimg convert -f qcow2 -O qcow2 fs.qcow2 out1",
        theirs: "qemu-img convert -f qcow2 -O qcow2 fs.qcow2 out2",
        verify: &["qemu-img compare -q fs.qcow2 out1", "qemu-img check -q out1"],
        ..CONVERT
    },
    Row {
        name: "convert raw to qcow2, on XFS",
        target: "0.05",
        needs: &[Needed::Sharing],
        ours: "cowimg convert -f raw -O qcow2 xfs/fs.raw xfs/out1",
        theirs: "qemu-img convert -f raw -O qcow2 xfs/fs.raw xfs/out2",
        verify: &["qemu-img compare -q -f raw -F qcow2 xfs/fs.raw xfs/out1", "qemu-img check -q xfs/out1"],
        ..SHARED
    },
    Row {
        name: "convert qcow2 to raw, on XFS",
        target: "0.05",
        needs: &[Needed::Sharing],
        ours: "cowimg convert -f qcow2 -O raw xfs/fs.qcow2 xfs/out1",
        theirs: "qemu-img convert -f qcow2 -O raw xfs/fs.qcow2 xfs/out2",
        verify: &["cmp xfs/out1 xfs/out2"],
        ..SHARED
    },
    Row {
        name: "convert qcow2 to qcow2, on XFS",
        target: "0.05",
        needs: &[Needed::Sharing],
        ours: "cowimg convert -f qcow2 -O qcow2 xfs/fs.qcow2 xfs/out1",
        theirs: "qemu-img convert -f qcow2 -O qcow2 xfs/fs.qcow2 xfs/out2",
        verify: &["qemu-img compare -q xfs/fs.qcow2 xfs/out1", "qemu-img check -q xfs/out1"],
        ..SHARED
    },
    Row {
        name: "convert -C raw to qcow2, on XFS (theirs without -C)",
        target: "0.05",
        needs: &[Needed::Sharing],
        ours: "cowimg convert -C -f raw -O qcow2 xfs/fs.raw xfs/out1",
        theirs: "qemu-img convert -f raw -O qcow2 xfs/fs.raw xfs/out2",
        verify: &["qemu-img compare -q -f raw -F qcow2 xfs/fs.raw xfs/out1", "qemu-img check -q xfs/out1"],
        ..SHARED
    },
    Row {
        name: "convert -C qcow2 to raw, on XFS (theirs without -C)",
        target: "0.05",
        needs: &[Needed::Sharing],
        ours: "cowimg convert -C -f qcow2 -O raw xfs/fs.qcow2 xfs/out1",
        theirs: "qemu-img convert -f qcow2 -O raw xfs/fs.qcow2 xfs/out2",
        verify: &["cmp xfs/out1 xfs/out2"],
        ..SHARED
    },
    Row {
        name: "convert -C qcow2 to qcow2, on XFS (theirs without -C)",
        target: "0.05",
        needs: &[Needed::Sharing],
        ours: "cowimg convert -C -f qcow2 -O qcow2 xfs/fs.qcow2 xfs/out1",
        theirs: "qemu-img convert -f qcow2 -O qcow2 xfs/fs.qcow2 xfs/out2",
        verify: &["qemu-img compare -q xfs/fs.qcow2 xfs/out1", "qemu-img check -q xfs/out1"],
        ..SHARED
    },
    Row {
        name: "convert -c zlib",
        target: "0.5",
        needs: &[Needed::FileSystem],
        ours: "cowimg convert -c -f raw -O qcow2 fs.raw out1",
        theirs: "qemu-img convert -c -f raw -O qcow2 fs.raw out2",
        verify: &["qemu-img compare -q -f raw -F qcow2 fs.raw out1", "qemu-img check -q out1"],
        pairs: 3,
        ..CONVERT
    },
    Row {
        name: "convert -c zstd",
        target: "0.6",
        needs: &[Needed::FileSystem],
        ours: "cowimg convert -c -o compression_type=zstd -f raw -O qcow2 fs.raw out1",
        theirs: "qemu-img convert -c -o compression_type=zstd -f raw -O qcow2 fs.raw out2",
        verify: &["qemu-img compare -q -f raw -F qcow2 fs.raw out1", "qemu-img check -q out1"],
        pairs: 3,
        ..CONVERT
    },
    Row {
        name: "convert zlib to raw",
        target: "0.4",
        needs: &[Needed::Zlib],
        ours: "cowimg convert -f qcow2 -O raw zlib.qcow2 out1",
        theirs: "qemu-img convert -f qcow2 -O raw zlib.qcow2 out2",
        verify: &["cmp out1 out2"],
        pairs: 5,
        ..CONVERT
    },
    Row {
        name: "convert zstd to raw",
        target: "0.5",
        needs: &[Needed::Zstd],
        ours: "cowimg convert -f qcow2 -O raw zstd.qcow2 out1",
        theirs: "qemu-img convert -f qcow2 -O raw zstd.qcow2 out2",
        verify: &["cmp out1 out2"],
        pairs: 5,
        ..CONVERT
    },
    Row {
        name: "check, 1 TiB of metadata",
        target: "0.25",
        needs: &[Needed::Metadata],
        ours: "cowimg check -q metadata.qcow2",
        theirs: "qemu-img check -q metadata.qcow2",
        pairs: 3,
        ..ROW
    },
    Row {
        name: "map, 20,000 extents",
        target: "0.3",
        needs: &[Needed::Fragments],
        ours: "cowimg map --output=json fragments.qcow2",
        theirs: "qemu-img map --output=json fragments.qcow2",
        ..ROW
    },
    Row {
        name: "measure",
        target: "0.3",
        needs: &[Needed::FileSystem],
        ours: "cowimg measure -f raw -O qcow2 fs.raw",
        theirs: "qemu-img measure -f raw -O qcow2 fs.raw",
        ..ROW
    },
    Row {
        name: "compare",
        target: "0.3",
        needs: &[Needed::FileSystem, Needed::Qcow2],
        ours: "cowimg compare -f qcow2 -F raw fs.qcow2 fs.raw",
        theirs: "qemu-img compare -f qcow2 -F raw fs.qcow2 fs.raw",
        ..ROW
    },
    Row {
        name: "snapshot -c",
        target: "0.3",
        needs: &[Needed::Qcow2],
        prepare: &["cp fs.qcow2 out1", "cp fs.qcow2 out2", SYNC],
        ours: "cowimg snapshot -c name out1",
        theirs: "qemu-img snapshot -c name out2",
        verify: &["qemu-img check -q out1"],
        ..ROW
    },
    Row {
        name: "snapshot -a",
        target: "0.3",
        needs: &[Needed::Snapshot],
        prepare: &["cp snapshot.qcow2 out1", "cp snapshot.qcow2 out2", SYNC],
        ours: "cowimg snapshot -a first out1",
        theirs: "qemu-img snapshot -a first out2",
        verify: &["qemu-img check -q out1"],
        ..ROW
    },
    Row {
        name: "snapshot -d",
        target: "0.3",
        needs: &[Needed::Snapshot],
        prepare: &["cp snapshot.qcow2 out1", "cp snapshot.qcow2 out2", SYNC],
        ours: "cowimg snapshot -d first out1",
        theirs: "qemu-img snapshot -d first out2",
        verify: &["qemu-img check -q out1"],
        ..ROW
    },
    Row {
        name: "commit of 4,000 scattered writes",
        target: "0.4",
        needs: &[Needed::Scattered],
        prepare: &[
            "cp scattered-base.qcow2 out-base1",
            "cp scattered-base.qcow2 out-base2",
            "cp scattered.qcow2 out1",
            "cp scattered.qcow2 out2",
            "qemu-img rebase -u -b out-base1 -F qcow2 out1",
            "qemu-img rebase -u -b out-base2 -F qcow2 out2",
            "sync out1 out2 out-base1 out-base2",
        ],
        ours: "cowimg commit -q -t unsafe out1",
        theirs: "qemu-img commit -q -t unsafe out2",
        verify: &["qemu-img compare -q out1 scattered.qcow2", "qemu-img check -q out-base1"],
        ..ROW
    },
    Row {
        name: "safe rebase onto a near-identical base",
        target: "0.4",
        needs: &[Needed::Near],
        prepare: &["cp child.qcow2 out1", "cp child.qcow2 out2"],
        ours: "cowimg rebase -t unsafe -b near.qcow2 -F qcow2 out1",
        theirs: "qemu-img rebase -t unsafe -b near.qcow2 -F qcow2 out2",
        verify: &["qemu-img compare -q out1 child.qcow2", "qemu-img check -q out1"],
        pairs: 5,
        ..ROW
    },
    Row {
        name: "200,000 reads of 4 KiB, depth 1",
        target: "0.5",
        needs: &[Needed::Full],
        ours: "cowimg bench -f qcow2 -c 200000 -d 1 -s 4096 -S 1052672 full.qcow2",
        theirs: "qemu-img bench -f qcow2 -c 200000 -d 1 -s 4096 -S 1052672 full.qcow2",
        ..REQUESTS
    },
    Row {
        name: "200,000 reads of 4 KiB, depth 32",
        target: "0.5",
        needs: &[Needed::Full],
        ours: "cowimg bench -f qcow2 -c 200000 -d 32 -s 4096 -S 1052672 full.qcow2",
        theirs: "qemu-img bench -f qcow2 -c 200000 -d 32 -s 4096 -S 1052672 full.qcow2",
        ..REQUESTS
    },
    Row {
        name: "100,000 writes of 4 KiB, allocated",
        target: "0.6",
        needs: &[Needed::Full],
        prepare: &["cp full.qcow2 out1", "cp full.qcow2 out2"],
        ours: "cowimg bench -w -t unsafe -f qcow2 -c 100000 -d 1 -s 4096 -S 1052672 out1",
        theirs: "qemu-img bench -w -t unsafe -f qcow2 -c 100000 -d 1 -s 4096 -S 1052672 out2",
        verify: &["qemu-img check -q out1"],
        ..REQUESTS
    },
    Row {
        name: "20,000 writes of 4 KiB, allocating",
        target: "0.6",
        prepare: &["qemu-img create -q -f qcow2 out1 4G", "qemu-img create -q -f qcow2 out2 4G"],
        ours: "cowimg bench -w -t unsafe -f qcow2 -c 20000 -d 1 -s 4096 -S 65536 out1",
        theirs: "qemu-img bench -w -t unsafe -f qcow2 -c 20000 -d 1 -s 4096 -S 65536 out2",
        verify: &["qemu-img compare -q out1 out2", "qemu-img check -q out1"],
        ..REQUESTS
    },
    Row {
        name: "10,000 writes of 4 KiB, copy on write",
        target: "0.6",
        needs: &[Needed::Full],
        prepare: &[
            "qemu-img create -q -f qcow2 -b full.qcow2 -F qcow2 out1",
            "qemu-img create -q -f qcow2 -b full.qcow2 -F qcow2 out2",
        ],
        ours: "cowimg bench -w -t unsafe -f qcow2 -c 10000 -d 1 -s 4096 -S 65536 out1",
        theirs: "qemu-img bench -w -t unsafe -f qcow2 -c 10000 -d 1 -s 4096 -S 65536 out2",
        verify: &["qemu-img compare -q out1 out2", "qemu-img check -q out1"],
        ..REQUESTS
    },
    Row {
        name: "10,000 sequential writes of 64 KiB, allocating",
        target: "0.7",
        prepare: &["qemu-img create -q -f qcow2 out1 4G", "qemu-img create -q -f qcow2 out2 4G"],
        ours: "cowimg bench -w -t unsafe -f qcow2 -c 10000 -d 1 -s 65536 out1",
        theirs: "qemu-img bench -w -t unsafe -f qcow2 -c 10000 -d 1 -s 65536 out2",
        verify: &["qemu-img compare -q out1 out2", "qemu-img check -q out1"],
        ..REQUESTS
    },
    Row {
        name: "50,000 reads of 4 KiB through 64 layers",
        target: "0.1",
        needs: &[Needed::Chain],
        ours: "cowimg bench -f qcow2 -c 50000 -d 1 -s 4096 -S 1052672 layer64.qcow2",
        theirs: "qemu-img bench -f qcow2 -c 50000 -d 1 -s 4096 -S 1052672 layer64.qcow2",
        pairs: 3,
        ..REQUESTS
    },
    Row {
        name: "50,000 reads of 4 KiB through 200 layers",
        target: "0.02",
        needs: &[Needed::Chain],
        ours: "cowimg bench -f qcow2 -c 50000 -d 1 -s 4096 -S 1052672 layer200.qcow2",
        theirs: "qemu-img bench -f qcow2 -c 50000 -d 1 -s 4096 -S 1052672 layer200.qcow2",
        pairs: 3,
        ..REQUESTS
    },
    Row {
        name: "3,000,000 reads of 4 KiB through 64 layers, beside cowimg's own through one",
        ours: "cowimg bench -f qcow2 -c 3000000 -d 1 -s 4096 -S 1052672 layer64.qcow2",
        ..THROUGH_ONE
    },
    Row {
        name: "3,000,000 reads of 4 KiB through 200 layers, beside cowimg's own through one",
        ours: "cowimg bench -f qcow2 -c 3000000 -d 1 -s 4096 -S 1052672 layer200.qcow2",
        ..THROUGH_ONE
    },
    Row {
        name: "open 200 layers",
        target: "0.2",
        needs: &[Needed::Chain],
        ours: "cowimg bench -f qcow2 -c 1 -d 1 -s 4096 layer200.qcow2",
        theirs: "qemu-img bench -f qcow2 -c 1 -d 1 -s 4096 layer200.qcow2",
        ..ROW
    },
];
