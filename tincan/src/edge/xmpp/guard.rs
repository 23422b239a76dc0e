//! A limit on what the XML parser is given: bytes and nesting of one stanza.
//!
//! The parser itself has none, and an element nested tens of thousands deep would overflow the stack when it is freed.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Largest stanza in bytes: a roster of 8,000 accounts; servers allow their clients a quarter of it.
const MAX_STANZA: usize = 1024 * 1024;
/// Deepest nesting: stream, iq, query and item are four, an error with its cause and text adds three.
const MAX_DEPTH: usize = 32;

/// Where in the XML the next byte stands. Malformed XML may mislead it; then the parser ends the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Text,
    Opened,
    /// `slash`: the last byte was one.
    StartTag {
        slash: bool,
    },
    Quoted(u8),
    EndTag,
    Instruction,
    /// How many `]` came last.
    Literal(u8),
}

/// Follows a stream of XML and measures its stanzas.
#[derive(Debug)]
struct Measure {
    place: Place,
    depth: usize,
    size: usize,
}

impl Measure {
    const fn new() -> Self {
        Self { place: Place::Text, depth: 0, size: 0 }
    }

    /// Takes the next bytes; false when a limit is passed.
    fn accepts(&mut self, bytes: &[u8]) -> bool {
        bytes.iter().all(|byte| self.accepts_byte(*byte))
    }

    fn accepts_byte(&mut self, byte: u8) -> bool {
        self.place = match self.place {
            Place::Text if byte == b'<' => Place::Opened,
            Place::Text => Place::Text,
            Place::Opened => match byte {
                b'/' => Place::EndTag,
                b'?' => Place::Instruction,
                b'!' => Place::Literal(0),
                _ => Place::StartTag { slash: false },
            },
            Place::StartTag { slash } => match byte {
                b'"' | b'\'' => Place::Quoted(byte),
                b'>' => {
                    self.depth += usize::from(!slash);
                    Place::Text
                }
                _ => Place::StartTag { slash: byte == b'/' },
            },
            Place::Quoted(quote) if byte == quote => Place::StartTag { slash: false },
            Place::Quoted(quote) => Place::Quoted(quote),
            Place::EndTag if byte == b'>' => {
                self.depth = self.depth.saturating_sub(1);
                Place::Text
            }
            Place::EndTag => Place::EndTag,
            Place::Instruction => {
                if byte == b'>' {
                    Place::Text
                } else {
                    Place::Instruction
                }
            }
            Place::Literal(brackets) => match byte {
                b'>' if brackets == 2 => Place::Text,
                b']' => Place::Literal((brackets + 1).min(2)),
                _ => Place::Literal(0),
            },
        };
        // Between stanzas only the stream's element is open, and white space keeps it alive.
        self.size = if self.depth <= 1 && self.place == Place::Text { 0 } else { self.size + 1 };
        self.size <= MAX_STANZA && self.depth <= MAX_DEPTH
    }
}

/// A byte stream whose reading fails once a stanza is too large or nested too deeply.
#[derive(Debug)]
pub(super) struct Guarded<S> {
    inner: S,
    measure: Measure,
    renewed: Arc<AtomicBool>,
}

/// Tells a [`Guarded`] stream that the peer's next bytes begin a new XML stream, as after authentication.
#[derive(Clone, Debug)]
pub(super) struct Renewal(Arc<AtomicBool>);

impl Renewal {
    pub(super) fn announce(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl<S> Guarded<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, measure: Measure::new(), renewed: Arc::default() }
    }

    pub(super) fn renewal(&self) -> Renewal {
        Renewal(Arc::clone(&self.renewed))
    }

    pub(super) fn into_inner(self) -> S {
        self.inner
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buffer))?;
        if this.renewed.swap(false, Ordering::Relaxed) {
            this.measure = Measure::new();
        }
        if this.measure.accepts(&buffer.filled()[before..]) {
            return Poll::Ready(Ok(()));
        }
        let limits = format!("a stanza of more than {MAX_STANZA} bytes or {MAX_DEPTH} levels");
        Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, limits)))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' to=\"a'>b/>\" version='1.0'>";

    fn after(text: &str) -> (bool, usize, usize) {
        let mut measure = Measure::new();
        let accepted = measure.accepts(HEADER.as_bytes()) && measure.accepts(text.as_bytes());
        (accepted, measure.depth, measure.size)
    }

    #[test]
    fn every_kind_of_markup_leaves_the_stream_at_depth_one() {
        let stanzas = [
            "<iq id='1'/>",
            "<iq id='1'><query xmlns='x'><data>a / b</data><type/></query></iq>",
            "<message><body><![CDATA[<<<]] > ]]></body></message>",
            "<presence from='a/>b'></presence>  \n  ",
        ];
        for text in stanzas {
            assert_eq!(after(text), (true, 1, 0), "{text}");
            assert_eq!(after(&text.repeat(1000)), (true, 1, 0), "{text}");
        }
    }

    #[test]
    fn the_largest_stanza_passes_and_one_byte_more_does_not() {
        let stanza = |size: usize| format!("<iq>{}</iq>", "x".repeat(size - "<iq></iq>".len()));
        assert!(after(&stanza(MAX_STANZA)).0);
        // The byte that ends a stanza is no longer counted.
        assert!(!after(&stanza(MAX_STANZA + 2)).0);
        assert!(!after(&format!("<iq a='{}", "<".repeat(MAX_STANZA + 1))).0, "an attribute without end");
    }

    #[test]
    fn nesting_is_limited() {
        assert!(after(&"<a>".repeat(MAX_DEPTH - 1)).0);
        assert!(!after(&"<a>".repeat(MAX_DEPTH)).0);
    }

    #[test]
    fn white_space_between_stanzas_is_not_counted() {
        assert_eq!(after(&" ".repeat(3 * MAX_STANZA)), (true, 1, 0));
    }

    #[tokio::test]
    async fn a_renewed_stream_is_measured_from_its_beginning() {
        use tokio::io::AsyncReadExt;
        let mut reader = Guarded::new(HEADER.as_bytes());
        let renewal = reader.renewal();
        let mut read = Vec::new();
        reader.read_to_end(&mut read).await.unwrap();
        assert_eq!(reader.measure.depth, 1);
        renewal.announce();
        reader.inner = HEADER.as_bytes();
        reader.read_to_end(&mut read).await.unwrap();
        assert_eq!(reader.measure.depth, 1);
    }
}
