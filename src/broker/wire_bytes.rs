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

#[tokio::test]
async fn packets_of_a_session_have_the_same_bytes() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
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
    let mut link = MqttLink::new(&config, client);
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
