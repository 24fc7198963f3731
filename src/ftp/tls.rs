//! The stream type of a protected connection.
//!
//! suppaftp's client is generic over it. Until FTPS arrives there is no such stream: the type has
//! no values, and the compiler knows that none of its methods can run.

use std::net::TcpStream;

use suppaftp::{FtpResult, TlsStream};

/// A TLS connection; there are none yet.
#[derive(Debug)]
pub(crate) enum Stream {}

impl TlsStream for Stream {
    type InnerStream = TcpStream;

    fn tcp_stream(self) -> FtpResult<TcpStream> {
        match self {}
    }

    fn get_ref(&self) -> &TcpStream {
        match *self {}
    }

    fn mut_ref(&mut self) -> &mut TcpStream {
        match *self {}
    }
}
