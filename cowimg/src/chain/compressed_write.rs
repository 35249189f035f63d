//! Writing clusters compressed, in place of writing them as they are.

use super::image::Image;
use crate::codec;
use crate::error::{Error, Result};

impl Image {
    /// Writes `buf` at `offset`, both in bytes and both whole clusters (the last may end with the disk), each of which is
    /// stored compressed; one that does not become smaller is stored as it is. Everything else is as with
    /// [`Image::write_at`]. Raw images, encrypted ones and those with an external data file refuse it.
    pub fn write_compressed_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let cluster_size = self.packed_size()?;
        let end = offset.saturating_add(buf.len() as u64);
        if end > self.size() {
            // Refused in the words of every write.
            return self.write_at(buf, offset);
        }
        if !offset.is_multiple_of(cluster_size) || !(end.is_multiple_of(cluster_size) || end == self.size()) {
            return self.named(Err(Error::invalid(format!(
                "a compressed write begins and ends where clusters of {cluster_size} bytes do"
            ))));
        }
        if let Some(qcow2) = self.top.qcow2() {
            self.named(qcow2.refuse_compressed())?;
        }
        let mut at = offset;
        for part in buf.chunks(cluster_size as usize) {
            match self.pack(part)? {
                Some(packed) => self.write_compressed(&packed, at)?,
                None => self.write_at(part, at)?,
            }
            at += part.len() as u64;
        }
        Ok(())
    }

    /// The compressed bytes of a cluster, for [`Image::write_compressed`]; `None` where they are not fewer. The last cluster
    /// of a disk may be short of bytes: zeroes follow.
    pub(crate) fn pack(&self, cluster: &[u8]) -> Result<Option<Vec<u8>>> {
        let cluster_size = self.packed_size()? as usize;
        let padded;
        let whole = if cluster.len() == cluster_size {
            cluster
        } else {
            padded = [cluster, &vec![0; cluster_size.saturating_sub(cluster.len())]].concat();
            &padded
        };
        let Some(method) = self.compression() else { return Ok(None) };
        let mut packed = vec![0; cluster_size - 1];
        let len = codec::compress(method, whole, &mut packed)
            .map_err(|error| Error::unsupported(format!("could not compress a cluster: {error}")));
        Ok(self.named(len)?.map(|len| {
            packed.truncate(len);
            packed
        }))
    }

    /// The size in bytes of what is compressed in one piece.
    fn packed_size(&self) -> Result<u64> {
        let size = self.compression().and(self.cluster_size());
        self.named(size.ok_or_else(|| Error::unsupported("a raw image cannot hold compressed clusters")))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::storage::MemoryStorage;
    use crate::{Access, CreateOptions, ErrorKind, ExtentKind, Format, Image};

    const CLUSTER: u64 = 65536;

    fn opened() -> (tempfile::TempDir, Image) {
        let folder = tempfile::tempdir().unwrap();
        let image =
            Image::create(folder.path().join("i.qcow2"), &CreateOptions::qcow2(3 * CLUSTER + 512)).unwrap();
        (folder, image)
    }

    #[test]
    fn clusters_are_stored_compressed_unless_that_saves_nothing() {
        let (folder, image) = opened();
        let mut bytes = vec![7; 3 * CLUSTER as usize + 512];
        let mut state = 1_u64;
        for byte in &mut bytes[CLUSTER as usize..2 * CLUSTER as usize] {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = state as u8;
        }
        // The second time over what is there.
        for _ in 0..2 {
            image.write_compressed_at(&bytes, 0).unwrap();
            let mut found = vec![0; bytes.len()];
            image.read_at(&mut found, 0).unwrap();
            assert!(found == bytes);
        }
        let kind = |at| image.extent_at(at, 1).unwrap().kind;
        assert_eq!(
            [0, 1, 2, 3].map(|nth| kind(nth * CLUSTER)),
            [ExtentKind::Compressed, ExtentKind::Data, ExtentKind::Compressed, ExtentKind::Compressed]
        );
        image.close().unwrap();
        let image = Image::open(folder.path().join("i.qcow2")).unwrap();
        assert!(image.check().unwrap().is_clean());
    }

    #[test]
    fn parts_of_clusters_and_raw_images_are_refused() {
        let (_folder, image) = opened();
        for (offset, len) in [(1, CLUSTER), (0, 512), (CLUSTER, CLUSTER - 1), (3 * CLUSTER, 511)] {
            let error = image.write_compressed_at(&vec![1; len as usize], offset).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::InvalidArgument(_)), "{error}");
        }
        for offset in [4 * CLUSTER, u64::MAX - 65535] {
            let error = image.write_compressed_at(&vec![1; CLUSTER as usize], offset).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::OutOfBounds { .. }), "{error}");
        }
        let raw = Arc::new(MemoryStorage::with_bytes(vec![0; 4096]));
        let raw = Image::options().access(Access::ReadWrite).format(Format::Raw).open_storage(raw).unwrap();
        let error = raw.write_compressed_at(&[1; 4096], 0).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Unsupported(_)), "{error}");
    }
}
