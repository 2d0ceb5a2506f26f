//! The client against a socket that plays fail2ban, with replies that Python's pickle made.

use std::time::Instant;

use tokio::net::UnixListener;

use super::pickle::{Unreadable, read, write};
use super::*;
use crate::model::range::BANTIME_SECS;

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// `pickle.dumps((0, [('Number of jail', 2), ('Jail list', 'recidive, sshd')]), 5)`
const STATUS: &str = "8005953d000000000000004b005d94288c0e4e756d626572206f66206a61696c944b0286948c094a61696c206c697374948c0e72656369646976652c20737368649486946586942e";
/// `pickle.dumps((1, ValueError('Invalid command (no get action or not yet implemented)')), 5)`
const REJECTED: &str = "8005955c000000000000004b018c086275696c74696e73948c0a56616c75654572726f729493948c36496e76616c696420636f6d6d616e6420286e6f2067657420616374696f6e206f72206e6f742079657420696d706c656d656e74656429948594529486942e";
/// `pickle.dumps((0, [1, 0]), 5)`
const BANNED: &str = "8005950d000000000000004b005d94284b014b006586942e";
/// `pickle.dumps((0, ['192.0.2.1 \t2026-11-22 15:00:00 + 600 = 2026-11-22 15:10:00', '2001:db8::1
/// \t2026-11-22 15:00:00 + -1 = 9999-12-31 23:59:59']), 5)`
const ALL_BANS: &str = "80059584000000000000004b005d94288c3a3139322e302e322e312009323032362d31312d32322031353a30303a3030202b20363030203d20323032362d31312d32322031353a31303a3030948c3b323030313a6462383a3a312009323032362d31312d32322031353a30303a3030202b202d31203d20393939392d31322d33312032333a35393a3539946586942e";
/// `pickle.dumps((0, [('Filter', …), ('Actions', [('Currently banned', 1), ('Total banned', 7), …])]), 5)`
const JAIL: &str = "8005959e000000000000004b005d94288c0646696c746572945d94288c1043757272656e746c79206661696c6564944b0086948c0c546f74616c206661696c6564944b0386946586948c07416374696f6e73945d94288c1043757272656e746c792062616e6e6564944b0186948c0c546f74616c2062616e6e6564944b0786948c0e42616e6e6564204950206c697374945d948c093139322e302e322e31946186946586946586942e";

/// The answer of `get JAIL ignoreip` with a network, a file with one address (a set with a name, since fail2ban
/// 1.1.1), and a host name.
const IGNORED: &str = "800595b8000000000000004b005d94288c086275696c74696e73948c037374729493948c0c3139322e302e322e302f323494859452948c156661696c3262616e2e7365727665722e6970646e73948c0d46696c654950416464725365749493945d9468038c093139322e302e322e37948594529461859452947d94288c0866696c654e616d65948c152f6574632f6661696c3262616e2f667269656e6473948c055f7365656e944b03756268038c0b7765622e6578616d706c6594859452946586942e";

/// A client whose server answers each request with the next of `replies`, and the requests it got.
async fn connect_to_fake(replies: Vec<Vec<u8>>) -> (Client, tokio::task::JoinHandle<Vec<Vec<u8>>>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let server = tokio::spawn(async move {
        let _dir = dir;
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut requests = Vec::new();
        for reply in replies {
            let mut request = Vec::new();
            while !request.ends_with(END_MARKER) {
                stream.read_buf(&mut request).await.unwrap();
            }
            request.truncate(request.len() - END_MARKER.len());
            requests.push(request);
            stream.write_all(&reply).await.unwrap();
        }
        requests
    });
    (Client::connect(&path).await.unwrap(), server)
}

fn reply(hex: &str) -> Vec<u8> {
    [bytes(hex).as_slice(), END_MARKER].concat()
}

#[tokio::test]
async fn file_of_addresses_in_ignoreip_is_listed_by_name() {
    let (mut client, _server) = connect_to_fake(vec![reply(IGNORED)]).await;
    let ignored = client.ignored(&Jail::new("sshd").unwrap()).await.unwrap();
    let expected = ["192.0.2.0/24", "192.0.2.7", "file:/etc/fail2ban/friends", "web.example"];
    assert_eq!(ignored, expected);
}

/// `pickle.dumps((0, ['actionban', 'actionname']), 5)`
const PROPERTIES: &str =
    "80059522000000000000004b005d94288c09616374696f6e62616e948c0a616374696f6e6e616d65946586942e";

#[tokio::test]
async fn missing_property_of_an_action_is_not_queried() {
    let (mut client, server) = connect_to_fake(vec![reply(PROPERTIES)]).await;
    let jail = Jail::new("sshd").unwrap();
    assert_eq!(client.property(&jail, "ufw", "abuseipdb_apikey").await.unwrap(), "");
    let request = write(&["get", "sshd", "actionproperties", "ufw"]);
    assert_eq!(server.await.unwrap(), [request]);
}

#[tokio::test]
async fn commands_are_sent_and_their_answers_read() {
    let (mut client, server) =
        connect_to_fake(vec![reply(STATUS), reply(BANNED), reply(ALL_BANS), reply(JAIL)]).await;
    let jails: Vec<_> = client.jails().await.unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(jails, ["recidive", "sshd"]);
    let addresses = ["192.0.2.1", "192.0.2.2", "2001:db8::1"].map(|ip| Address::new(ip).unwrap());
    let jail = Jail::new("sshd").unwrap();
    let banned = client.is_banned(&jail, &addresses[..2]).await.unwrap();
    assert_eq!(banned, BTreeSet::from([addresses[0]]));
    let bans = client.bans(&jail).await.unwrap();
    let expected = [(addresses[0], Some(600)), (addresses[2], Some(-1))];
    assert_eq!(bans, expected.into_iter().collect());
    assert_eq!(client.total_bans(&jail).await.unwrap(), 7);
    let requests = server.await.unwrap();
    assert_eq!(requests[0], write(&["status"]));
    assert_eq!(requests[1], write(&["get", "sshd", "banned", "192.0.2.1", "192.0.2.2"]));
    assert_eq!(requests[2], write(&["get", "sshd", "banip", "--with-time"]));
}

#[tokio::test]
async fn failed_command_is_named_in_the_error() {
    let (mut client, _server) =
        connect_to_fake(vec![reply(REJECTED), reply("8005942e"), vec![]]).await;
    let jail = Jail::new("sshd").unwrap();
    let address = [Address::new("192.0.2.1").unwrap(); 3];
    let rejected = client.ban(&jail, &address).await.unwrap_err().to_string();
    assert_eq!(
        rejected,
        "fail2ban rejected «set sshd banip 192.0.2.1 …»: ValueError: Invalid command (no get action \
         or not yet implemented)"
    );
    let unreadable = client.jails().await.unwrap_err().to_string();
    assert_eq!(
        unreadable,
        "cannot read fail2ban's answer to «status»: invalid sequence of pickle opcodes"
    );
    let closed = client.jails().await.unwrap_err().to_string();
    assert!(closed.ends_with("fail2ban closed the connection"), "{closed}");
    let unreachable = Client::connect(Path::new("/nowhere/socket")).await.unwrap_err().to_string();
    assert!(
        unreachable.starts_with("fail2ban does not answer at /nowhere/socket: No such file"),
        "{unreachable}"
    );
}

#[tokio::test(start_paused = true)]
async fn server_that_does_not_answer_is_a_timeout() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let _listener = UnixListener::bind(&path).unwrap();
    let mut client = Client::connect(&path).await.unwrap();
    let started = Instant::now();
    let timed_out = client.jails().await.unwrap_err().to_string();
    assert_eq!(timed_out, "fail2ban took more than 20 s to answer «status»");
    assert!(started.elapsed() < Duration::from_secs(5), "the clock is paused");
}

#[test]
fn addresses_are_written_as_fail2ban_writes_them() {
    let table = [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("::192.0.2.1", "::192.0.2.1"),
        ("::c000:201", "::192.0.2.1"),
        ("::1:0", "::0.1.0.0"),
        ("::ffff", "::ffff"),
        ("64:ff9b::192.0.2.1", "64:ff9b::c000:201"),
        ("::ffff:0:192.0.2.1", "::ffff:0:c000:201"),
    ];
    for (text, expected) in table {
        assert_eq!(format_address(Address::new(text).unwrap()), expected);
    }
}

#[test]
fn every_kind_of_value_is_read() {
    let numbers = "8005952f000000000000004b005d94284b014b004bff4d00014a000001004affffffff8a06000000000001473ff8000000000000884e6586942e";
    let numbers = bytes(numbers);
    let PickleValue::List(pair) = read(&numbers).unwrap() else { panic!() };
    let expected = [1, 0, 255, 256, 65536, -1, 1 << 40].map(PickleValue::Int).to_vec();
    let rest = vec![PickleValue::Float(1.5), PickleValue::Bool(true), PickleValue::None];
    assert_eq!(pair[1], PickleValue::List([expected, rest].concat()));
    let dict = "8005951b000000000000004b007d94288c0161945d944b01618c016294430278ff947586942e";
    let dict = bytes(dict);
    let PickleValue::List(pair) = read(&dict).unwrap() else { panic!() };
    let a = (PickleValue::Text("a".into()), PickleValue::List(vec![PickleValue::Int(1)]));
    let b = (PickleValue::Text("b".into()), PickleValue::Text("xÿ".into()));
    assert_eq!(pair[1], PickleValue::Dict(vec![a, b]));
    let set = bytes("8005950b000000000000004b008f94284b019086942e");
    let set = read(&set).unwrap();
    assert_eq!(
        set,
        PickleValue::List(vec![PickleValue::Int(0), PickleValue::List(vec![PickleValue::Int(1)])])
    );
}

/// `pickle.dumps((0, [2.5, 1 << 80, -(1 << 80), 'x\udcff']), 5)`
const UNUSUAL: &str = "80059533000000000000004b005d94284740040000000000008a0b00000000000000000000018a0b00000000000000000000ff8c0478edb3bf946586942e";

#[test]
fn unusual_value_of_a_reply_hides_no_other() {
    let reply = bytes(UNUSUAL);
    let PickleValue::List(pair) = read(&reply).unwrap() else { panic!() };
    let values = pair[1].list().unwrap();
    let numbers: Vec<_> = values.iter().map_while(PickleValue::int).collect();
    assert_eq!(numbers, [2, i64::MAX, i64::MIN]);
    assert!(values[3].text().unwrap().starts_with("x\u{fffd}"));
}

#[tokio::test]
async fn unreadable_answer_names_its_jail() {
    let (mut client, _server) = connect_to_fake(vec![reply(BANNED), reply(BANNED)]).await;
    let jail = Jail::new("sshd").unwrap();
    let error = client.bantime(&jail).await.unwrap_err();
    assert_eq!(error.jail(), Some(&jail), "{error}");
    assert_eq!(client.jails().await.unwrap_err().jail(), None);
}

#[test]
fn ban_with_unreadable_time_still_counts_as_banned() {
    let address = Address::new("192.0.2.1").unwrap();
    let table = [
        ("192.0.2.1 \t2026-11-22 15:00:00 + 600 = 2026-11-22 15:10:00", Some(600)),
        ("192.0.2.1 \t2026-11-22 15:00:00 + 612.5 = 2026-11-22 15:10:12", Some(612)),
        (
            "192.0.2.1 \t2026-11-22 15:00:00 + 99999999999 = 9999-12-31 23:59:59",
            Some(*BANTIME_SECS.end()),
        ),
        ("192.0.2.1 \t2026-11-22 15:00:00 + -9 = 9999-12-31 23:59:59", Some(-1)),
        ("192.0.2.1 \t2026-11-22 15:00:00 + None = ?", None),
        ("192.0.2.1", None),
    ];
    for (text, length) in table {
        assert_eq!(parse_ticket(text), Some((address, length)), "{text}");
    }
    assert_eq!(parse_ticket("10.0.0.0/8 \t2026-11-22 15:00:00 + 600 = 2026-11-22 15:10:00"), None);
}

#[test]
fn corrupt_reply_causes_no_panic() {
    // Truncated at every byte, and with every byte changed to every value.
    for whole in [STATUS, REJECTED, BANNED] {
        let whole = bytes(whole);
        for end in 0..whole.len() {
            assert!(read(&whole[..end]).is_err());
            for byte in 0..=255 {
                let mut changed = whole.clone();
                changed[end] = byte;
                let _ = read(&changed);
            }
        }
    }
    let deep = [b"K\x01".to_vec(), b"\x85".repeat(100_000), b".".to_vec()].concat();
    assert_eq!(read(&deep), Err(Unreadable::TooLarge));
    // Each line doubles the one before: 2^40 values without the limit.
    let mut bomb = b"K\x01\x85\x94".to_vec();
    for n in 0..25u8 {
        bomb.extend([b'h', n, b'h', n, 0x86, 0x94]);
    }
    bomb.push(b'.');
    assert!(matches!(read(&bomb), Err(Unreadable::TooLarge | Unreadable::InvalidSequence)));
}
