//! Pins the bytes of an MQTT session. Brokers, their access rules and other clients depend on them, so an update of a
//! library must not change them unnoticed.

use std::path::Path;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// Reads a packet whose length is one byte.
async fn packet(stream: &mut TcpStream) -> String {
    let mut head = [0; 2];
    stream.read_exact(&mut head).await.unwrap();
    let mut body = vec![0; usize::from(head[1])];
    stream.read_exact(&mut body).await.unwrap();
    [&head[..], &body].concat().escape_ascii().to_string()
}

/// Answers the packets of a session, and returns them.
async fn broker(listener: TcpListener) -> Vec<String> {
    let (mut stream, _) = listener.accept().await.unwrap();
    let answers: [&[u8]; 5] =
        [&[0x20, 2, 1, 0], &[0x90, 4, 0, 1, 1, 1], &[0x40, 2, 0, 2], &[0x40, 2, 0, 3], &[]];
    let mut packets = Vec::new();
    for answer in answers {
        packets.push(packet(&mut stream).await);
        stream.write_all(answer).await.unwrap();
    }
    packets
}

/// A link of the daemon to a broker on this port.
fn link_to(port: u16) -> MqttLink {
    let settings =
        format!("MQTT_HOST=127.0.0.1:{port}\nMQTT_TOPIC=t\nMQTT_USER=user\nMQTT_PASSWORD=secret\n");
    let path = Path::new("mqtt.env");
    let config = Config::parse(path, settings.as_bytes(), &|_| None, "web1").unwrap();
    let topics = ["t/+", "t/host/#"].map(str::to_owned).into();
    let will = Some(("t/host/web1".to_owned(), "gone".to_owned()));
    let client = ClientOptions {
        id: "f2bmqtt-web1".to_owned(),
        persistent: true,
        topics,
        others: Vec::new(),
        will,
    };
    MqttLink::new(&config, client)
}

#[tokio::test]
async fn packets_of_a_session_have_the_same_bytes() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut link = link_to(listener.local_addr().unwrap().port());
    let broker = tokio::spawn(broker(listener));
    assert!(matches!(link.event().await, LinkEvent::Connected(_)));
    assert_eq!(link.peers().addresses(), [std::net::IpAddr::from([127, 0, 0, 1])]);
    link.publish("first".to_owned(), "t/ban".to_owned(), b"{}".to_vec());
    assert!(matches!(link.event().await, LinkEvent::Published(name) if name == "first"));
    link.publish_retained("t/host/web1".to_owned(), b"here".to_vec());
    assert!(link.close());
    assert!(matches!(link.event().await, LinkEvent::Lost { .. }));
    let expected = [
        r"\x109\x00\x04MQTT\x04\xec\x00\n\x00\x0cf2bmqtt-web1\x00\x0bt/host/web1\x00\x04gone\x00\x04user\x00\x06secret",
        r"\x82\x13\x00\x01\x00\x03t/+\x01\x00\x08t/host/#\x01",
        r"2\x0b\x00\x05t/ban\x00\x02{}",
        r"3\x13\x00\x0bt/host/web1\x00\x03here",
        r"\xe0\x00",
    ];
    assert_eq!(broker.await.unwrap(), expected);
}

#[tokio::test]
async fn session_with_a_message_that_is_too_large_is_purged_until_that_succeeds() {
    const ACCEPT: &[u8] = &[0x20, 2, 0, 0];
    /// Accepts, and announces a message of 300,000 bytes.
    const TOO_LARGE: &[u8] = &[0x20, 2, 0, 0, 0x32, 0xe0, 0xa7, 0x12];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut link = link_to(listener.local_addr().unwrap().port());
    let broker = tokio::spawn(async move {
        let mut asks_for_clean_session = Vec::new();
        // The second connection fails. The third one purges the session.
        for answer in [TOO_LARGE, &[], ACCEPT, ACCEPT] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut connect = [0; 10];
            stream.read_exact(&mut connect).await.unwrap();
            asks_for_clean_session.push(connect[9] & 2 != 0);
            stream.write_all(answer).await.unwrap();
            // The link closes the connection, except the second and the last one.
            if asks_for_clean_session.len() % 2 == 1 {
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        }
        asks_for_clean_session
    });
    let mut losses = Vec::new();
    while !broker.is_finished() {
        let event = tokio::time::timeout(Duration::from_secs(1), link.event()).await;
        if let Ok(LinkEvent::Lost { too_large, .. }) = event {
            losses.push(too_large);
        }
    }
    assert_eq!(broker.await.unwrap(), [false, true, true, false]);
    assert_eq!(losses[..2], [true, false]);
}
