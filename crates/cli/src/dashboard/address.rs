//! Where the page is: an address of this machine's own, and a token that nobody can guess.

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;

use subtle::ConstantTimeEq;

use crate::output::Failure;

/// Bytes of a token: as many as nobody tries all values of.
const TOKEN: usize = 16;

/// Reads an address and a port of the loopback interface.
///
/// # Errors
/// What is wrong with it, and what is possible instead.
pub(crate) fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr =
        text.parse().map_err(|_| "an address and a port are expected, such as 127.0.0.1:8000".to_owned())?;
    if address.ip().is_loopback() {
        return Ok(address);
    }
    Err("only an address of this machine's own is possible (127.0.0.1 or [::1]), because the page can stop services and \
         is not encrypted; from another machine, forward the port: `ssh -L 8000:127.0.0.1:8000 HOST`"
        .to_owned())
}

/// The part of the page's address that only its user knows: other users of this machine can connect too.
#[derive(Debug)]
pub(crate) struct Token(String);

impl Token {
    /// A new one.
    pub(crate) fn random() -> Result<Self, Failure> {
        random().map(Self)
    }

    /// The token, for the one that it is for.
    pub(crate) fn text(&self) -> &str {
        &self.0
    }

    /// Whether `other` is the same. How long that takes does not depend on how much of it is right.
    pub(crate) fn is(&self, other: &str) -> bool {
        self.0.as_bytes().ct_eq(other.as_bytes()).into()
    }
}

/// Hexadecimal digits that nobody can foretell.
pub(crate) fn random() -> Result<String, Failure> {
    let mut bytes = [0u8; TOKEN];
    let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(Failure::system("read /dev/urandom"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_loopback_interface() {
        assert_eq!(loopback("127.0.0.1:0").unwrap().port(), 0);
        assert!(loopback("[::1]:8000").is_ok() && loopback("127.8.9.1:1").is_ok());
        for elsewhere in ["0.0.0.0:80", "192.0.2.1:80", "[::]:80", "[::ffff:127.0.0.1]:80"] {
            assert!(loopback(elsewhere).unwrap_err().contains("ssh -L"), "{elsewhere}");
        }
        for wrong in ["localhost", "127.0.0.1", "8000", "localhost:80", ""] {
            assert!(loopback(wrong).unwrap_err().contains("such as 127.0.0.1:8000"), "{wrong}");
        }
    }

    #[test]
    fn tokens_differ() {
        let (one, other) = (Token::random().unwrap(), Token::random().unwrap());
        assert_eq!(one.text().len(), 2 * TOKEN);
        assert!(one.is(one.text()) && !one.is(other.text()));
        assert!(!one.is("") && !one.is(&one.text()[1..]) && !one.is(&format!("{}0", one.text())));
    }
}
