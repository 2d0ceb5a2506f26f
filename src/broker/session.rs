//! One MQTT connection to one broker, from its first packet to its end.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rumqttc::{
    AsyncClient, ConnectionError, EventLoop, MqttOptions, Outgoing, Packet, PublishOptions, QoS,
    SubscribeFilter, SubscribeReasonCode,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::dial::dial;
use super::disconnect::{DisconnectReason, TlsMode, explain, is_too_large};
use crate::sys::peer_addresses::PeerAddresses;

/// The most unacknowledged messages.
const MAX_IN_FLIGHT: usize = 64;

/// The length of rumqttc's request queue: the unacknowledged messages, subscriptions and the disconnect.
const MAX_REQUESTS: usize = MAX_IN_FLIGHT + 8;

/// The most packets, and the most bytes in total, that wait between the socket and the rest of the program (R21). The
/// reader stops reading the socket only at these limits.
const MAX_QUEUED_PACKETS: usize = 10_000;
const MAX_QUEUED_BYTES: usize = 32 * 1024 * 1024;

/// The memory that a queued packet takes beside its own bytes.
const PACKET_OVERHEAD_BYTES: usize = 128;

/// How many packets rumqttc reads before it delivers the first of them. They are not part of the queue.
const READ_BATCH_PACKETS: usize = 10;

/// The link ends a connection on which the broker acknowledges nothing for this time.
const ACK_TIMEOUT: Duration = Duration::from_secs(15);

/// The first and the longest pause before the session retries a rejected subscription. NATS rejects a subscription that
/// it cannot complete in time, for example after the failure of one of its servers.
const MIN_RETRY_DELAY: Duration = Duration::from_secs(2);
const MAX_RETRY_DELAY: Duration = Duration::from_mins(5);

/// The timeout of TLS and login together, and of a write to the socket.
pub(super) const CONNECT_TIMEOUT_SECS: u64 = 5;

/// What happened to a session.
#[derive(Debug)]
pub(super) enum SessionEvent {
    Connected,
    Message { topic: String, payload: Vec<u8> },
    Published(String),
    SubscribeRejected(Vec<String>),
    QosLowered,
    Ended { why: DisconnectReason, too_large: bool },
}

/// A message to publish. Its acknowledgement is reported if it has a name.
#[derive(Debug)]
struct Outbound {
    name: Option<String>,
    topic: String,
    payload: Vec<u8>,
    retain: bool,
}

/// What rumqttc reports: an event, or why the connection ended.
type Read = Result<rumqttc::Event, ConnectionError>;

/// A read with its permits: its share of [`MAX_QUEUED_BYTES`], which the session returns after it handled the read.
type QueuedRead = (Read, OwnedSemaphorePermit);

#[derive(Debug)]
pub(super) struct Session {
    client: AsyncClient,
    tls_mode: TlsMode,
    /// The broker accepted the login.
    connack_seen: bool,
    /// Packets from a task that only reads the socket. So the broker does not have to queue messages if the daemon is
    /// slow.
    events: mpsc::Receiver<QueuedRead>,
    reader: JoinHandle<()>,
    /// Messages that wait until pending subscriptions are sent: rumqttc would send the messages first.
    held: VecDeque<Outbound>,
    /// Names of messages that rumqttc has, in order, until rumqttc assigns their packet identifiers.
    unassigned: VecDeque<Option<String>>,
    /// Names of sent messages without an acknowledgement, by packet identifier.
    in_flight: HashMap<u16, Option<String>>,
    /// Topics of subscriptions: first in order, until rumqttc assigns a packet identifier, and then by that identifier.
    pending_subs: VecDeque<Vec<String>>,
    in_flight_subs: HashMap<u16, Vec<String>>,
    /// Rejected subscriptions, the time of the next attempt, and the pause after that attempt.
    rejected_subs: BTreeSet<String>,
    retry_at: Instant,
    retry_delay: Duration,
    /// The last time at which the broker acknowledged a message, or had none to acknowledge.
    last_progress: Instant,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Session {
    pub(super) fn start(mut options: MqttOptions, tls_mode: TlsMode, peers: PeerAddresses) -> Self {
        options.set_read_batch_size(READ_BATCH_PACKETS);
        let (client, poll) = AsyncClient::builder(options).capacity(MAX_REQUESTS).build();
        let (sender, events) = mpsc::channel(MAX_QUEUED_PACKETS);
        let permits = Arc::new(Semaphore::new(MAX_QUEUED_BYTES));
        let reader = tokio::spawn(read(poll, PacketQueue { sender, permits }, peers));
        let now = Instant::now();
        Self {
            client,
            tls_mode,
            connack_seen: false,
            events,
            reader,
            held: VecDeque::new(),
            unassigned: VecDeque::new(),
            in_flight: HashMap::new(),
            pending_subs: VecDeque::new(),
            in_flight_subs: HashMap::new(),
            rejected_subs: BTreeSet::new(),
            retry_at: now,
            retry_delay: MIN_RETRY_DELAY,
            last_progress: now,
        }
    }

    /// The next event. Cancel-safe.
    pub(super) async fn event(&mut self) -> SessionEvent {
        loop {
            let deadline = self.last_progress + ACK_TIMEOUT;
            let is_ack_pending = !self.unassigned.is_empty() || !self.in_flight.is_empty();
            let event = tokio::select! {
                biased; // read a waiting acknowledgement before the timeout
                event = self.events.recv() => event,
                () = sleep_until(self.retry_at), if !self.rejected_subs.is_empty() => {
                    let topics: Vec<_> = std::mem::take(&mut self.rejected_subs).into_iter().collect();
                    self.subscribe(&topics);
                    continue;
                }
                () = sleep_until(deadline), if is_ack_pending => {
                    let why = format!(
                        "the broker acknowledged no published message within {} s",
                        ACK_TIMEOUT.as_secs()
                    );
                    return SessionEvent::Ended { why: why.into(), too_large: false };
                }
            };
            if let Some(event) = self.on_read(event) {
                return event;
            }
        }
    }

    /// The next event that is already available.
    pub(super) fn try_event(&mut self) -> Option<SessionEvent> {
        loop {
            let event = self.events.try_recv().ok()?;
            let event = self.on_read(Some(event));
            if event.is_some() {
                return event;
            }
        }
    }

    pub(super) fn subscribe(&mut self, topics: &[String]) {
        let filters =
            topics.iter().map(|topic| SubscribeFilter::new(topic.clone(), QoS::AtLeastOnce));
        // MAX_REQUESTS leaves space for subscriptions, because the daemon subscribes to one peer at a time.
        if self.client.try_subscribe_many(filters).is_ok() {
            self.pending_subs.push_back(topics.to_vec());
        }
    }

    pub(super) fn capacity(&self) -> usize {
        MAX_IN_FLIGHT.saturating_sub(self.held.len() + self.unassigned.len() + self.in_flight.len())
    }

    pub(super) fn publish(&mut self, name: String, topic: String, payload: Vec<u8>) {
        self.send(Some(name), topic, payload, false);
    }

    pub(super) fn publish_retained(&mut self, topic: String, payload: Vec<u8>) {
        self.send(None, topic, payload, true);
    }

    pub(super) fn publish_untracked(&mut self, topic: String, payload: Vec<u8>) {
        self.send(None, topic, payload, false);
    }

    pub(super) fn publish_retained_tracked(
        &mut self,
        name: String,
        topic: String,
        payload: Vec<u8>,
    ) {
        self.send(Some(name), topic, payload, true);
    }

    fn send(&mut self, name: Option<String>, topic: String, payload: Vec<u8>, retain: bool) {
        let message = Outbound { name, topic, payload, retain };
        if self.pending_subs.is_empty() {
            self.publish_now(message);
        } else if self.held.len() < MAX_REQUESTS {
            self.held.push_back(message);
        }
    }

    /// Passes a message to rumqttc.
    fn publish_now(&mut self, message: Outbound) {
        if self.unassigned.is_empty() && self.in_flight.is_empty() {
            self.last_progress = Instant::now();
        }
        let Outbound { name, topic, payload, retain } = message;
        let options = PublishOptions::at_least_once().retain(retain);
        if self.client.try_publish(topic, payload, options).is_ok() {
            self.unassigned.push_back(name);
        }
    }

    /// Passes the messages that waited for subscriptions to rumqttc.
    fn publish_held(&mut self) {
        for message in std::mem::take(&mut self.held) {
            self.publish_now(message);
        }
    }

    /// Disconnects after the outstanding acknowledgements; returns whether rumqttc accepted the request.
    pub(super) fn close(&mut self) -> bool {
        self.publish_held();
        self.client.try_disconnect_with_timeout(ACK_TIMEOUT).is_ok()
    }

    fn on_read(&mut self, event: Option<QueuedRead>) -> Option<SessionEvent> {
        let Some((event, _permit)) = event else {
            let why = "the task that reads from the broker ended".to_owned().into();
            return Some(SessionEvent::Ended { why, too_large: false });
        };
        match event {
            Ok(rumqttc::Event::Incoming(packet)) => self.on_packet(packet),
            Ok(rumqttc::Event::Outgoing(Outgoing::Publish(identifier))) => {
                if let Some(name) = self.unassigned.pop_front() {
                    self.in_flight.insert(identifier, name);
                }
                None
            }
            Ok(rumqttc::Event::Outgoing(Outgoing::Subscribe(identifier))) => {
                if let Some(topics) = self.pending_subs.pop_front() {
                    self.in_flight_subs.insert(identifier, topics);
                }
                if self.pending_subs.is_empty() {
                    self.publish_held();
                }
                None
            }
            Ok(_) => None,
            Err(error) => {
                let why = explain(&error, self.tls_mode, self.connack_seen);
                Some(SessionEvent::Ended { why, too_large: is_too_large(&error) })
            }
        }
    }

    /// Schedules the retry of rejected subscriptions.
    fn retry_later(&mut self, topics: Vec<String>) -> Option<SessionEvent> {
        if topics.is_empty() {
            return None;
        }
        if self.rejected_subs.is_empty() {
            self.retry_at = Instant::now() + self.retry_delay;
            self.retry_delay = (self.retry_delay * 2).min(MAX_RETRY_DELAY);
        }
        self.rejected_subs.extend(topics.iter().cloned());
        Some(SessionEvent::SubscribeRejected(topics))
    }

    fn on_packet(&mut self, packet: Packet) -> Option<SessionEvent> {
        match packet {
            Packet::ConnAck(_) => {
                self.connack_seen = true;
                Some(SessionEvent::Connected)
            }
            Packet::Publish(publish) => {
                // rumqttc has already rejected topics that are not UTF-8.
                let topic = String::from_utf8(publish.topic.to_vec()).ok()?;
                Some(SessionEvent::Message { topic, payload: publish.payload.to_vec() })
            }
            Packet::PubAck(ack) => {
                self.last_progress = Instant::now();
                self.in_flight.remove(&ack.pkid).flatten().map(SessionEvent::Published)
            }
            Packet::SubAck(ack) => {
                let topics = self.in_flight_subs.remove(&ack.pkid).unwrap_or_default();
                let qos0 = SubscribeReasonCode::Success(QoS::AtMostOnce);
                let is_lowered = ack.return_codes.contains(&qos0);
                let results = topics.into_iter().zip(ack.return_codes);
                let rejected = results.filter(|(_, code)| *code == SubscribeReasonCode::Failure);
                let rejected: Vec<String> = rejected.map(|(topic, _)| topic).collect();
                self.retry_later(rejected)
                    .or_else(|| is_lowered.then_some(SessionEvent::QosLowered))
            }
            _ => None,
        }
    }
}

/// The packets between the task that reads the socket and the session.
struct PacketQueue {
    sender: mpsc::Sender<QueuedRead>,
    permits: Arc<Semaphore>,
}

impl PacketQueue {
    /// Waits for capacity, and queues an event. Returns whether more events may follow: an error is the last one, and a
    /// session that ended reads none.
    async fn push(&self, event: Read) -> bool {
        let is_last = event.is_err();
        let permits = Arc::clone(&self.permits).acquire_many_owned(bytes(&event)).await;
        let Ok(permit) = permits else { return false };
        self.sender.send((event, permit)).await.is_ok() && !is_last
    }
}

/// Reads the socket until the connection ends, and queues its packets.
async fn read(mut poll: EventLoop, queue: PacketQueue, peers: PeerAddresses) {
    let peer = match connect(&mut poll).await {
        Ok(peer) => peer,
        Err(error) => {
            queue.push(Err(error.into())).await;
            return;
        }
    };
    loop {
        let event = poll.poll().await;
        // Exempt the address of this broker before any message of it is handled (R1).
        if let Ok(rumqttc::Event::Incoming(Packet::ConnAck(_))) = event {
            peers.record(peer);
        }
        if !queue.push(event).await {
            return;
        }
    }
}

/// Connects to the broker, and passes the socket to rumqttc; returns the address of the peer.
async fn connect(poll: &mut EventLoop) -> io::Result<IpAddr> {
    let (host, port) = poll.mqtt_options.broker().tcp_address().ok_or_else(not_connected)?;
    let stream = dial(host, port).await?;
    let peer = stream.peer_addr()?.ip();
    let mut network = poll.network_options();
    network.set_connection_timeout(CONNECT_TIMEOUT_SECS);
    poll.set_network_options(network);
    // rumqttc requests the socket once, because a session ends with its connection.
    let stream = Mutex::new(Some(stream));
    poll.mqtt_options.set_socket_connector(move |_, _| {
        let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        std::future::ready(stream.ok_or_else(not_connected))
    });
    Ok(peer)
}

fn not_connected() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

/// The approximate memory of a queued packet in bytes, at most [`MAX_QUEUED_BYTES`].
fn bytes(event: &Read) -> u32 {
    let packet = match event {
        Ok(rumqttc::Event::Incoming(packet)) => packet.size(),
        _ => 0,
    };
    u32::try_from((packet + PACKET_OVERHEAD_BYTES).min(MAX_QUEUED_BYTES)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    use super::*;

    /// A broker that grants the second of two topics at once, and the first at the second request. Returns the
    /// subscription requests.
    async fn reluctant_broker(listener: TcpListener) -> (Vec<Vec<u8>>, TcpStream) {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut requests = Vec::new();
        loop {
            let mut head = [0; 2];
            stream.read_exact(&mut head).await.unwrap();
            let mut body = vec![0; usize::from(head[1])];
            stream.read_exact(&mut body).await.unwrap();
            match (head[0] >> 4, requests.len()) {
                (1, _) => stream.write_all(&[0x20, 2, 0, 0]).await.unwrap(),
                (8, 0) => {
                    stream.write_all(&[0x90, 4, body[0], body[1], 0x80, 1]).await.unwrap();
                    requests.push(body.split_off(2));
                }
                (8, _) => {
                    stream.write_all(&[0x90, 3, body[0], body[1], 1]).await.unwrap();
                    requests.push(body.split_off(2));
                    // A message as the event that the test waits for.
                    stream.write_all(&[0x30, 4, 0, 1, b'a', b'!']).await.unwrap();
                    return (requests, stream);
                }
                _ => {}
            }
        }
    }

    #[tokio::test]
    async fn rejected_subscription_is_retried() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let options = MqttOptions::new("it", ("127.0.0.1", port));
        let (broker, peers) = (tokio::spawn(reluctant_broker(listener)), PeerAddresses::default());
        let mut session = Session::start(options, TlsMode::Off, peers.clone());
        assert!(matches!(session.event().await, SessionEvent::Connected));
        assert_eq!(peers.addresses(), [IpAddr::from([127, 0, 0, 1])]);
        session.subscribe(&["a".to_owned(), "b".to_owned()]);
        let rejected = session.event().await;
        assert!(matches!(rejected, SessionEvent::SubscribeRejected(topics) if topics == ["a"]));
        let next = session.event().await;
        assert!(matches!(next, SessionEvent::Message { .. }), "{next:?}");
        let expected: [&[u8]; 2] = [b"\0\x01a\x01\0\x01b\x01", b"\0\x01a\x01"];
        assert_eq!(broker.await.unwrap().0, expected);
    }

    /// A message with a topic and a payload of these lengths.
    fn publish(topic: usize, payload: usize) -> Packet {
        let topic = "x".repeat(topic);
        Packet::Publish(rumqttc::Publish::new(topic, QoS::AtMostOnce, vec![0; payload]))
    }

    #[test]
    fn every_packet_counts_with_its_topic_and_overhead() {
        let codes = vec![SubscribeReasonCode::Failure; 200_000];
        let table = [
            (rumqttc::Event::Incoming(publish(65_535, 0)), 65_535),
            (rumqttc::Event::Incoming(publish(10, 1_000)), 1_010),
            (rumqttc::Event::Incoming(Packet::SubAck(rumqttc::SubAck::new(1, codes))), 200_000),
            (rumqttc::Event::Incoming(Packet::PingResp), 0),
            (rumqttc::Event::Outgoing(Outgoing::PubAck(1)), 0),
        ];
        for (event, length) in table {
            let counted = usize::try_from(bytes(&Ok(event))).unwrap();
            let expected = length + PACKET_OVERHEAD_BYTES..=length + PACKET_OVERHEAD_BYTES + 8;
            assert!(expected.contains(&counted), "{counted} of {length}");
        }
    }

    #[tokio::test]
    async fn empty_messages_with_long_topics_do_not_fill_the_memory() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut options = MqttOptions::new("it", ("127.0.0.1", port));
        options.set_max_packet_size(256 * 1024, 256 * 1024);
        let session = Session::start(options, TlsMode::Off, PeerAddresses::default());
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&[0x20, 2, 0, 0]).await.unwrap();
        let mut packet = vec![0x30, 0x81, 0x80, 0x04, 0xff, 0xff];
        packet.resize(packet.len() + 65_535, b'x');
        // Beyond the queue, the sockets' buffers and a batch take some.
        let max = 2 * MAX_QUEUED_BYTES / packet.len();
        let mut accepted = 0;
        while accepted < max {
            let sent = timeout(Duration::from_secs(1), stream.write_all(&packet)).await;
            if sent.is_err() {
                break;
            }
            accepted += 1;
        }
        assert!(accepted < max, "{accepted} packets were accepted");
        drop(session);
    }
}
