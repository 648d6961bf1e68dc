//! What a TLS client asks for, before anybody answers. Sans-I/O.

use std::sync::Arc;

use rustls::server::Acceptor;

use crate::model::listener_filter::TlsInspector;

/// What the first bytes of a connection are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    NeedMore,
    /// Something else than TLS.
    Opaque,
    /// A ClientHello: its SNI in lower case, and the ALPN it offers.
    Tls {
        server_name: Option<Arc<str>>,
        application_protocols: Vec<Arc<str>>,
    },
    /// It begins as TLS does, and is broken or too large.
    Unreadable,
}

/// Reads a ClientHello as its bytes arrive.
pub struct HelloReader {
    acceptor: Acceptor,
    options: TlsInspector,
    seen: usize,
}

/// A handshake record, of TLS 1.x.
const HANDSHAKE: u8 = 22;
const MAJOR: u8 = 3;

impl HelloReader {
    pub fn new(options: TlsInspector) -> Self {
        Self { acceptor: Acceptor::default(), options, seen: 0 }
    }

    /// Judges `bytes`, all of them from the connection's beginning; never the same ones
    /// twice.
    pub fn read(&mut self, bytes: &[u8]) -> Hello {
        for (byte, expected) in bytes.iter().zip([HANDSHAKE, MAJOR]) {
            if *byte != expected {
                return Hello::Opaque;
            }
        }
        let end = bytes.len().min(self.options.max_client_hello_bytes);
        let mut new = &bytes[self.seen.min(end)..end];
        self.seen = end;
        while !new.is_empty() {
            match self.acceptor.read_tls(&mut new) {
                Ok(0) => break,
                Ok(_) => {}
                Err(_) => return Hello::Unreadable,
            }
            match self.acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let hello = accepted.client_hello();
                    let text = |name: &[u8]| std::str::from_utf8(name).ok().map(Arc::from);
                    let offered = hello.alpn().into_iter().flatten();
                    return Hello::Tls {
                        server_name: hello.server_name().map(|n| n.to_ascii_lowercase().into()),
                        application_protocols: offered.filter_map(text).collect(),
                    };
                }
                Err(_) => return Hello::Unreadable,
            }
        }
        match end == self.options.max_client_hello_bytes {
            true => Hello::Unreadable,
            false => Hello::NeedMore,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Hello, HelloReader};
    use crate::model::listener_filter::TlsInspector;

    fn reader(max_client_hello_bytes: usize) -> HelloReader {
        HelloReader::new(TlsInspector { max_client_hello_bytes, close_on_errors: false })
    }

    fn hello() -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = "Web.Example.com".try_into().unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_hello_is_read_byte_by_byte() {
        let hello = hello();
        let mut reader = reader(16 << 10);
        for end in 0..hello.len() {
            assert_eq!(reader.read(&hello[..end]), Hello::NeedMore, "{end}");
        }
        let expected = Hello::Tls {
            server_name: Some("web.example.com".into()),
            application_protocols: vec!["h2".into()],
        };
        assert_eq!(reader.read(&hello), expected);
    }

    #[test]
    fn other_bytes_are_told_apart() {
        assert_eq!(reader(4096).read(b"GET / HTTP/1.1\r\n"), Hello::Opaque);
        assert_eq!(reader(4096).read(&[22, 4]), Hello::Opaque);
        assert_eq!(reader(4096).read(&[22, 3, 1, 0, 4, 9, 9, 9, 9]), Hello::Unreadable);
        assert_eq!(reader(256).read(&hello()), Hello::Unreadable);
    }
}
