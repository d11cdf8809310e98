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

    /// Moves the frame's first byte by `by` bytes: forwards where positive, so that the frame loses bytes. Bytes gained
    /// hold anything. `false`, and nothing moved, where there is no room.
    fn move_head(&mut self, by: i32) -> bool;

    /// Moves the frame's end by `by` bytes: forwards where positive. Bytes gained hold anything.
    fn move_tail(&mut self, by: i32) -> bool;
}

/// Bytes in front of a frame that a driver leaves free (`XDP_PACKET_HEADROOM` of `linux/bpf.h`).
pub const HEADROOM: usize = 256;

/// A packet in a byte buffer: what tests, the fuzzer and `where` use.
#[derive(Debug)]
pub struct Buffer<'a> {
    memory: &'a mut [u8],
    start: usize,
    end: usize,
}

impl<'a> Buffer<'a> {
    /// A frame that fills its memory: it can't be made longer.
    pub fn new(frame: &'a mut [u8]) -> Self {
        let end = frame.len();
        Self {
            memory: frame,
            start: 0,
            end,
        }
    }

    /// A frame of `len` bytes that starts at `start` in its memory, with room around it.
    ///
    /// # Panics
    /// Where the memory ends before the frame.
    pub fn with_room(memory: &'a mut [u8], start: usize, len: usize) -> Self {
        assert!(
            start + len <= memory.len(),
            "the frame is longer than its memory"
        );
        Self {
            memory,
            start,
            end: start + len,
        }
    }

    /// The frame as it is now.
    #[must_use]
    pub fn frame(&self) -> &[u8] {
        &self.memory[self.start..self.end]
    }
}

impl Packet for Buffer<'_> {
    fn len(&self) -> usize {
        self.end - self.start
    }

    fn bytes<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        self.frame().get(offset..)?.first_chunk()
    }

    fn bytes_mut<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]> {
        self.memory[self.start..self.end]
            .get_mut(offset..)?
            .first_chunk_mut()
    }

    fn move_head(&mut self, by: i32) -> bool {
        match self.start.checked_add_signed(by as isize) {
            // The kernel leaves an Ethernet header at least (`bpf_xdp_adjust_head` in `net/core/filter.c`).
            Some(start) if start + crate::wire::ETH_LEN <= self.end => {
                self.start = start;
                true
            }
            _ => false,
        }
    }

    fn move_tail(&mut self, by: i32) -> bool {
        match self.end.checked_add_signed(by as isize) {
            Some(end) if end <= self.memory.len() && end >= self.start + crate::wire::ETH_LEN => {
                // As the kernel does it.
                self.memory[self.end.min(end)..end].fill(0);
                self.end = end;
                true
            }
            _ => false,
        }
    }
}
