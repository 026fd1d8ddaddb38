//! Where sockets listen, as `/proc/PID/net/tcp` and `tcp6` say of the process's network namespace.
//!
//! Source: Linux 6.12, `net/ipv4/tcp_ipv4.c` (`get_tcp4_sock`, `tcp_get_idx`: listening sockets come first) and `tcp_ipv6.c`.

use std::io::BufRead;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Lines that are read of one table.
const MAX_LINES: usize = 65_536;
/// The state of a socket that listens.
const LISTEN: &str = "0A";

/// The listening sockets of a table, which is read up to its first connection. A line that is none is left out.
pub fn listening(table: impl BufRead) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    // No line of these tables is longer than 200 bytes, and they are the kernel's own.
    for line in table.lines().take(MAX_LINES).map_while(Result::ok).skip(1) {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (address, state) = (words.next(), words.nth(1));
        if state != Some(LISTEN) {
            break;
        }
        found.extend(address.and_then(parse_address));
    }
    found
}

/// `0100007F:1F90`: each 32 bits of the address in the machine's own byte order.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(address.get(at..at + 8)?, 16).ok();
    let ip = match address.len() {
        8 => IpAddr::from(word(0)?.to_ne_bytes()),
        32 => {
            let mut bytes = [0; 16];
            for (i, part) in bytes.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(i * 8)?.to_ne_bytes());
            }
            IpAddr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// Where to connect to, of what listens at `ports`: the first of the ports that has a listener, by the loopback address if that
/// reaches it. `host` is another machine's name for itself that is to be used instead.
pub fn where_to(
    listening: &[SocketAddr],
    ports: &[u16],
    host: Option<IpAddr>,
) -> Option<SocketAddr> {
    for port in ports {
        let at = || {
            listening
                .iter()
                .filter(|l| l.port() == *port)
                .map(SocketAddr::ip)
        };
        let reached = |loopback: IpAddr| {
            at().any(|ip| {
                ip == loopback || (ip.is_unspecified() && ip.is_ipv4() == loopback.is_ipv4())
            })
        };
        let (v4, v6) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
        let found = match (at().next(), host) {
            (None, _) => continue,
            (Some(_), Some(host)) => host,
            (Some(_), None) if reached(v4) => v4,
            (Some(_), None) if reached(v6) => v6,
            (Some(first), None) => first,
        };
        return Some(SocketAddr::new(found, *port));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    #[test]
    fn listening_sockets_are_read_up_to_the_first_connection() {
        let table = format!(
            "{HEAD}   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0\n\
             \x20  1: 00000000:1F41 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0\n\
             \x20  2: garbage 00000000:0000 0A 0\n\
             \x20  3: 0100007F:9C40 0100007F:1F40 01 00000000:00000000 00:00000000 00000000     0        0 3 1 0 20 4 30 10 -1\n\
             \x20  4: 0100007F:1F42 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0\n"
        );
        let found = listening(table.as_bytes());
        assert_eq!(
            found,
            ["127.0.0.1:8000", "0.0.0.0:8001"].map(|a| a.parse().unwrap())
        );
    }

    #[test]
    fn addresses_of_both_kinds_are_as_the_kernel_prints_them() {
        for (text, address) in [
            ("00000000000000000000000000000000:1F40", "[::]:8000"),
            ("00000000000000000000000001000000:1F40", "[::1]:8000"),
            ("0000000000000000FFFF00000100007F:0050", "127.0.0.1:80"),
            ("B80D0120000000000000000001000000:0001", "[2001:db8::1]:1"),
        ] {
            assert_eq!(
                parse_address(text),
                Some(address.parse().unwrap()),
                "{text}"
            );
        }
        for wrong in [
            "",
            ":",
            "0100007F",
            "0100007F:",
            "0100007:1F40",
            "ü100007F:1F40",
            "0100007F:11F40",
        ] {
            assert_eq!(parse_address(wrong), None, "{wrong}");
        }
    }

    #[track_caller]
    fn to(all: &str, ports: &[u16], host: Option<&str>) -> String {
        let all: Vec<SocketAddr> = all.split_whitespace().map(|a| a.parse().unwrap()).collect();
        let host = host.map(|h| h.parse().unwrap());
        where_to(&all, ports, host).map_or("nowhere".to_owned(), |a| a.to_string())
    }

    #[test]
    fn an_engine_is_asked_at_the_loopback_where_that_reaches_it() {
        assert_eq!(
            to("0.0.0.0:8000 10.0.0.1:22", &[8000], None),
            "127.0.0.1:8000"
        );
        assert_eq!(to("[::]:8000", &[8000], None), "[::1]:8000");
        assert_eq!(
            to("[::1]:8000 127.0.0.1:8000", &[8000], None),
            "127.0.0.1:8000"
        );
        assert_eq!(to("10.0.0.1:8000", &[8000], None), "10.0.0.1:8000");
        assert_eq!(to("127.0.0.2:8000", &[8000], None), "127.0.0.2:8000");
        assert_eq!(to("0.0.0.0:80", &[3000, 80, 8080], None), "127.0.0.1:80");
        assert_eq!(to("0.0.0.0:80", &[80], Some("10.0.0.1")), "10.0.0.1:80");
    }

    #[test]
    fn where_nothing_listens_nobody_is_asked() {
        assert_eq!(to("0.0.0.0:8001", &[8000], None), "nowhere");
        assert_eq!(to("", &[8000], Some("10.0.0.1")), "nowhere");
    }

    #[test]
    fn our_own_listener_is_found() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let table = std::fs::File::open("/proc/self/net/tcp").unwrap();
        let found = listening(std::io::BufReader::new(table));
        assert!(found.contains(&socket.local_addr().unwrap()));
    }
}
