//! How the data path reaches a packet's bytes: one bounds-checked accessor, whatever holds the bytes.

/// A packet, from the first byte of its Ethernet header.
///
/// The kernel's implementation is the only place in the kernel program that touches packet memory; the one for byte
/// buffers is [`Buffer`].
pub trait Packet {
    /// The frame's length in bytes, without the frame check sequence.
    fn len(&self) -> usize;

    /// Whether the frame holds no byte at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The `N` bytes that start at `offset`, or `None` where the frame ends before them.
    fn bytes<const N: usize>(&self, offset: usize) -> Option<&[u8; N]>;

    /// The same bytes, to be written.
    fn bytes_mut<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]>;
}

/// A packet in a byte buffer: what tests, the fuzzer and `where` use.
#[derive(Debug)]
pub struct Buffer<'a>(pub &'a mut [u8]);

impl Packet for Buffer<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn bytes<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        self.0.get(offset..)?.first_chunk()
    }

    fn bytes_mut<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]> {
        self.0.get_mut(offset..)?.first_chunk_mut()
    }
}
