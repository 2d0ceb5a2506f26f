//! Opens the TCP connection to a broker: resolves its name and tries several addresses, so that one dead address does
//! not block the connection (RFC 8305, simplified).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{sleep, timeout};

/// The timeout of the name lookup, and of each address.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one address is tried alone before the next one joins it (RFC 8305, section 5).
const HEAD_START: Duration = Duration::from_millis(250);

/// The most addresses that are tried. A dial therefore takes at most two [`STEP_TIMEOUT`]s and three
/// [`HEAD_START`]s.
const MAX_ADDRESSES: usize = 4;

/// Connects to the address of `host` that accepts first.
pub(super) async fn dial(host: &str, port: u16) -> io::Result<TcpStream> {
    let addresses = timeout(STEP_TIMEOUT, lookup_host((host, port))).await;
    let addresses = addresses.map_err(|_| timed_out("no answer from a name server"))??;
    let stream = race(order(addresses.collect())).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Tries addresses one after another: the next one once the last failed, or after [`HEAD_START`].
async fn race(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let (mut addresses, mut attempts) = (addresses.into_iter(), FuturesUnordered::new());
    let mut last_error = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        attempts.extend(addresses.next().map(attempt));
        tokio::select! {
            Some(result) = attempts.next() => match result {
                Ok(stream) => return Ok(stream),
                // "Connection refused" is more useful to the reader than a timeout.
                Err(_) if last_error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => last_error = error,
            },
            () = sleep(HEAD_START), if addresses.len() > 0 => {}
            else => return Err(last_error),
        }
    }
}

async fn attempt(address: SocketAddr) -> io::Result<TcpStream> {
    let connected = timeout(STEP_TIMEOUT, TcpStream::connect(address)).await;
    connected.map_err(|_| timed_out("no answer"))?
}

fn timed_out(what: &str) -> io::Error {
    let text = format!("{what} within {} s", STEP_TIMEOUT.as_secs());
    io::Error::new(io::ErrorKind::TimedOut, text)
}

/// The addresses to try, in order: the families alternate, starting with the resolver's first choice.
fn order(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let Some(is_first_ipv6) = addresses.first().map(SocketAddr::is_ipv6) else { return addresses };
    let (preferred, others): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == is_first_ipv6);
    let (mut preferred, mut others) = (preferred.into_iter(), others.into_iter());
    let mut ordered = Vec::new();
    while preferred.len() + others.len() > 0 {
        for next in [preferred.next(), others.next()].into_iter().flatten() {
            if !ordered.contains(&next) {
                ordered.push(next);
            }
        }
    }
    ordered.truncate(MAX_ADDRESSES);
    ordered
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use super::*;

    fn socket_address(text: &&str) -> SocketAddr {
        format!("{text}:1883").parse().unwrap()
    }

    #[test]
    fn address_families_take_turns() {
        let (a, b, c, d) = ("[2001:db8::a]", "[2001:db8::b]", "192.0.2.1", "192.0.2.2");
        let table: [(&[&str], &[&str]); 5] = [
            (&[], &[]),
            (&[a, b, c, d], &[a, c, b, d]),
            (&[c, a], &[c, a]),
            (&[a, a, c], &[a, c]),
            (
                &[a, b, "[2001:db8::c]", "[2001:db8::d]", "[2001:db8::e]", c],
                &[a, c, b, "[2001:db8::c]"],
            ),
        ];
        for (found, tried) in table {
            let tried: Vec<_> = tried.iter().map(socket_address).collect();
            assert_eq!(order(found.iter().map(socket_address).collect()), tried, "{found:?}");
        }
    }

    #[tokio::test]
    async fn refusing_addresses_give_way_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        // Addresses at which nothing listens.
        let refusing = [2, 3].map(|last| SocketAddr::from(([127, 0, 0, last], open.port())));
        let started = Instant::now();
        let stream = race(vec![refusing[0], refusing[1], open]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), open);
        assert!(started.elapsed() < 2 * HEAD_START, "{:?}", started.elapsed());
        let error = race(refusing.to_vec()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn silent_address_does_not_block_the_next() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        // The kernel drops connections to a listener whose queue is full.
        let silent = tokio::net::TcpSocket::new_v4().unwrap();
        silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let silent = silent.listen(1).unwrap();
        let at = silent.local_addr().unwrap();
        let mut queued = Vec::new();
        while let Ok(Ok(stream)) = timeout(Duration::from_millis(100), TcpStream::connect(at)).await
        {
            queued.push(stream);
        }
        let stream = race(vec![at, open]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), open);
    }
}
