//! Where a readiness check connects: `host:port` and `http://host:port/path`.
//!
//! Names are never looked up, so a host is an address or `localhost`. Nothing is connected to here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lariat::service::spec::Endpoint;

use crate::suggest::quoted;

/// Why a text is no address or URL, and what to write instead.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Refused {
    pub(crate) message: String,
    pub(crate) label: String,
    pub(crate) help: String,
    /// What was certainly meant, as the value without quotes.
    pub(crate) meant: Option<String>,
}

fn refused(message: String, label: &str, help: &str) -> Refused {
    Refused { message, label: label.to_owned(), help: help.to_owned(), meant: None }
}

const NAMES: &str = "lariat asks no name server: write an address such as `127.0.0.1`, or `localhost`";

/// Reads `host:port`.
pub(crate) fn endpoint(text: &str) -> Result<Endpoint, Refused> {
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err(refused(
            format!("{} has no port", quoted(text)),
            "expected `host:port`",
            "write `tcp = 5432`, or `tcp = \"127.0.0.1:5432\"`",
        ));
    };
    let port = self::port(port).ok_or_else(|| {
        refused(
            format!("{} is not a port", quoted(port)),
            "expected a number from 1 to 65535 after the last `:`",
            "write `tcp = 5432`, or `tcp = \"127.0.0.1:5432\"`",
        )
    })?;
    connect(host, port)
}

/// What is asked of a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Request {
    pub(crate) endpoint: Endpoint,
    pub(crate) host: String,
    pub(crate) path: String,
}

/// Reads `/path` (at the service's own port) or `http://host[:port][/path]`.
pub(crate) fn request(text: &str) -> Result<Request, Refused> {
    if text.starts_with('/') {
        return Ok(Request { endpoint: Endpoint::OwnPort, host: "localhost".into(), path: path(text)? });
    }
    let Some(rest) = text.strip_prefix("http://") else {
        return Err(not_http(text));
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    if authority.contains('$') {
        let own = if tail.starts_with('/') { tail } else { "/" };
        let help = "a path alone is asked at the service's own port";
        let message = format!("{} holds a variable, and variables are not replaced here", quoted(text));
        return Err(Refused {
            meant: Some(own.to_owned()),
            ..refused(message, "taken as it is written", help)
        });
    }
    if authority.contains('@') {
        let help = "check a path that needs no password, or use `tcp`";
        return Err(refused(format!("{} holds a password", quoted(text)), "not sent", help));
    }
    let (host, port) = match authority.rsplit_once(':') {
        // The last colon of a bracketed address without a port is inside the brackets.
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => (authority, "80"),
    };
    let Some(port) = self::port(port) else {
        let message = format!("{} is not a port", quoted(port));
        return Err(refused(
            message,
            "expected a number from 1 to 65535",
            "write `http://127.0.0.1:8000/health`",
        ));
    };
    let endpoint = connect(host, port)?;
    let path = if tail.starts_with('/') { path(tail)? } else { path(&format!("/{tail}"))? };
    Ok(Request { endpoint, host: host.to_owned(), path })
}

fn not_http(text: &str) -> Refused {
    if text.starts_with("https://") {
        let help = "check an `http` address, or the port alone with `tcp`";
        return refused(
            format!("{} is encrypted, which checks cannot be", quoted(text)),
            "only `http://`",
            help,
        );
    }
    let looks_like_host = text.contains(':') || text.starts_with("localhost");
    let meant = if looks_like_host { format!("http://{text}") } else { format!("/{text}") };
    let is_plain =
        !text.is_empty() && !text.contains("://") && text.bytes().all(|byte| byte.is_ascii_graphic());
    Refused {
        meant: is_plain.then_some(meant),
        ..refused(
            format!("{} is neither a path nor a URL", quoted(text)),
            "expected `/path` or `http://host:port/path`",
            "a path is asked at the service's own `port`",
        )
    }
}

fn connect(host: &str, port: u16) -> Result<Endpoint, Refused> {
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(Endpoint::Loopback(port));
    }
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let address = match bracketed {
        Some(host) => host.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => host.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
    };
    if let Some(address) = address {
        return Ok(Endpoint::Address(SocketAddr::new(address, port)));
    }
    if host.is_empty() || host == "*" {
        let message = format!("{} is no host to connect to", quoted(host));
        return Err(refused(message, "which host?", "write `localhost`, or the port alone: `tcp = 5432`"));
    }
    if host.parse::<Ipv6Addr>().is_ok() {
        let help = format!("write `[{host}]:{port}`");
        return Err(refused(format!("{} needs brackets", quoted(host)), "an IPv6 address", &help));
    }
    Err(refused(format!("{} is a name, not an address", quoted(host)), "names are not looked up", NAMES))
}

fn path(text: &str) -> Result<String, Refused> {
    if text.contains('#') {
        let help = "leave it out: a fragment is never sent to a server";
        return Err(refused(format!("{} holds a fragment", quoted(text)), "`#` is not sent", help));
    }
    match text.chars().find(|c| !c.is_ascii_graphic()) {
        None => Ok(text.to_owned()),
        Some(odd) => {
            let mut bytes = [0; 4];
            let encoded: String =
                odd.encode_utf8(&mut bytes).bytes().map(|byte| format!("%{byte:02X}")).collect();
            let help = format!("write it as `{encoded}`");
            Err(refused(
                format!("{} holds a character that no URL may", quoted(text)),
                "not sent as it is",
                &help,
            ))
        }
    }
}

fn port(text: &str) -> Option<u16> {
    // `parse` would take a sign.
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| is_number && *port != 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Endpoint {
        Endpoint::Address(text.parse().expect("an address"))
    }

    #[test]
    fn endpoints() {
        let good = [
            ("localhost:5432", Endpoint::Loopback(5432)),
            ("LOCALHOST:1", Endpoint::Loopback(1)),
            ("127.0.0.1:65535", at("127.0.0.1:65535")),
            ("[::1]:80", at("[::1]:80")),
        ];
        for (text, endpoint) in good {
            assert_eq!(super::endpoint(text), Ok(endpoint), "{text}");
        }
        let bad = [
            ("localhost", "`localhost` has no port"),
            ("localhost:0", "`0` is not a port"),
            ("localhost:+80", "`+80` is not a port"),
            ("localhost:65536", "`65536` is not a port"),
            ("localhost:", "an empty text is not a port"),
            (":80", "an empty text is no host to connect to"),
            ("*:80", "`*` is no host to connect to"),
            ("db.internal:80", "`db.internal` is a name, not an address"),
            ("::1:80", "`::1` needs brackets"),
            ("1.2.3:80", "`1.2.3` is a name, not an address"),
        ];
        for (text, message) in bad {
            assert_eq!(super::endpoint(text).expect_err(text).message, message, "{text}");
        }
    }

    #[test]
    fn requests() {
        let good = [
            ("/healthz", Endpoint::OwnPort, "localhost", "/healthz"),
            ("http://localhost:8000", Endpoint::Loopback(8000), "localhost", "/"),
            ("http://localhost:8000?a=b", Endpoint::Loopback(8000), "localhost", "/?a=b"),
            ("http://127.0.0.1/x", at("127.0.0.1:80"), "127.0.0.1", "/x"),
            ("http://[::1]/x", at("[::1]:80"), "[::1]", "/x"),
            ("http://[::1]:81/", at("[::1]:81"), "[::1]", "/"),
        ];
        for (text, endpoint, host, path) in good {
            let request = Request { endpoint, host: host.into(), path: path.into() };
            assert_eq!(super::request(text), Ok(request), "{text}");
        }
        let bad = [
            ("https://localhost/", None),
            ("healthz", Some("/healthz")),
            ("localhost:80/x", Some("http://localhost:80/x")),
            ("http://localhost:$PORT/x", Some("/x")),
            ("http://u:p@localhost/", None),
            ("http://localhost:x/", None),
            ("http://example.org/", None),
            ("/a b", None),
            ("/a#b", None),
            ("/ä", None),
            ("", None),
            ("ftp://x", None),
        ];
        for (text, meant) in bad {
            assert_eq!(super::request(text).expect_err(text).meant.as_deref(), meant, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(http://)?\\PC{0,40}") {
            let _ = endpoint(&text);
            let _ = request(&text);
        }
    }
}
