//! The length and hash of the input read so far, by which a resume file identifies its input.

use std::cell::Cell;
use std::io::{self, BufRead, Read};
use std::rc::Rc;

use serde::{Deserialize, Serialize};

/// FNV-1a. A later version of this program may resume the run, and needs the same hash.
const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// The beginning of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mark {
    pub(crate) bytes: u64,
    pub(crate) hash: u64,
}

impl Default for Mark {
    fn default() -> Self {
        Self { bytes: 0, hash: OFFSET }
    }
}

impl Mark {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.hash = bytes.iter().fold(self.hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME));
    }
}

/// A reader that hashes its bytes, and compares the beginning with the mark of an earlier run.
pub(super) struct Digest<R> {
    reader: R,
    marks: Marks,
}

/// The shared state of a [`Digest`], for the code that reads through it.
#[derive(Clone, Default)]
pub(super) struct Marks(Rc<State>);

#[derive(Default)]
struct State {
    mark: Cell<Mark>,
    /// Records of an earlier run, and the end of the last one.
    beginning: Option<(u64, Mark)>,
    is_another: Cell<bool>,
}

impl Marks {
    pub(super) fn get(&self) -> Mark {
        self.0.mark.get()
    }

    /// Returns `true` if the input differs from that of the earlier run.
    pub(super) fn is_refused(&self) -> bool {
        self.0.is_another.get()
    }

    /// Compares the place of the record that was just read.
    pub(super) fn check(&self, number: u64) {
        if let Some((records, end)) = self.0.beginning
            && number > records
            && self.get().bytes <= end.bytes
        {
            self.0.is_another.set(true);
        }
    }

    fn add(&self, bytes: &[u8]) {
        let mut mark = self.get();
        let known = self.0.beginning.map(|(_, end)| end).filter(|end| end.bytes > mark.bytes);
        let missing = known.and_then(|known| usize::try_from(known.bytes - mark.bytes).ok());
        match (known, missing.and_then(|missing| bytes.split_at_checked(missing))) {
            (Some(known), Some((beginning, rest))) => {
                mark.add(beginning);
                if mark.hash != known.hash {
                    self.0.is_another.set(true);
                }
                mark.add(rest);
            }
            _ => mark.add(bytes),
        }
        self.0.mark.set(mark);
    }
}

impl<R: BufRead> Digest<R> {
    pub(super) fn new(reader: R, beginning: Option<(u64, Mark)>) -> Self {
        Self { reader, marks: Marks(Rc::new(State { beginning, ..State::default() })) }
    }

    pub(super) fn marks(&self) -> &Marks {
        &self.marks
    }

    /// Returns why this is not the input of the earlier run, once it was read to its end.
    pub(super) fn refusal(&self) -> Option<String> {
        let (records, end) = self.marks.0.beginning?;
        let (bytes, known) = (self.marks.get().bytes, end.bytes);
        let why = match self.marks.is_refused() {
            true => {
                format!("its first {known} bytes are not those from which {records} records were published")
            }
            false if bytes < known => {
                format!(
                    "it ends after {bytes} of the {known} bytes from which {records} records were published"
                )
            }
            false => return None,
        };
        Some(format!(
            "is not the input of the resume file: {why}. This run published nothing: use another resume file for another \
            input"
        ))
    }
}

impl<R: BufRead> Read for Digest<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.marks.add(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}

impl<R: BufRead> BufRead for Digest<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.reader.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        if let Ok(buffer) = self.reader.fill_buf() {
            self.marks.add(buffer.get(..amount).unwrap_or_default());
        }
        self.reader.consume(amount);
    }
}
