//! The secured session: certificates and DTLS over memory buffers.

/// placeholder
pub struct Session;
