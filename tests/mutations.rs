//! Runs each parser on the fuzzers' corpus, and on a hundred thousand mutations of it, the same ones in each run.
//! `tests/fuzz/run` tries millions of others.

#[path = "fuzz/parsers.rs"]
mod parsers;

use std::path::Path;
use std::time::{Duration, Instant};

/// How many mutated inputs each parser gets, unless [`MAX_TIME_PER_PARSER`] has passed: a busy machine tries fewer.
const MAX_INPUTS: u32 = 100_000;
const MAX_TIME_PER_PARSER: Duration = Duration::from_secs(15);
/// How many mutated inputs each parser gets at least, however long they take.
const MIN_INPUTS: u32 = 1_000;

/// Byte strings that mutations insert, because parsers treat them specially.
const TOKENS: [&[u8]; 24] = [
    b"\"",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\0",
    b"\xff\xff\xff\xff",
    "\u{202e}".as_bytes(),
    b"-1",
    b"9223372036854775808",
    b"1e999",
    b"null",
    br#","sig":""#,
    b"MQTT_",
    b"$A",
    b"::ffff:127.0.0.1",
    b"/0",
    b"\x80\x05(",
    b"\n",
];

/// A pseudo-random number generator (Marsaglia's xorshift).
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap_or_default() % limit.max(1)
    }
}

/// Mutates one input of the corpus, also with a piece of another one.
fn mutate(corpus: &[Vec<u8>], chance: &mut Chance) -> Vec<u8> {
    let mut input = corpus[chance.below(corpus.len())].clone();
    for _ in 0..=chance.below(4) {
        let (at, length) = (chance.below(input.len() + 1), chance.below(12));
        let end = (at + length).min(input.len());
        match chance.below(7) {
            0 if at < input.len() => input[at] ^= 1 << chance.below(8),
            1 if at < input.len() => input[at] = u8::try_from(chance.below(256)).unwrap_or(0),
            2 => drop(input.drain(at..end)),
            3 => input.truncate(at),
            4 => {
                let piece = input[at..end].repeat(1 + chance.below(300));
                input.splice(at..end, piece);
            }
            5 => {
                let other = &corpus[chance.below(corpus.len())];
                let from = chance.below(other.len());
                input.splice(at..end, other[from..].iter().copied().take(60));
            }
            _ => drop(input.splice(at..end, TOKENS[chance.below(TOKENS.len())].iter().copied())),
        }
    }
    input
}

fn assert_parser_holds(name: &str, parser: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
    let mut files: Vec<_> = dir.read_dir().unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let corpus: Vec<_> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    for input in &corpus {
        parser(input);
    }
    parser(b"");
    let (mut chance, started) = (Chance(0x9e37_79b9_7f4a_7c15), Instant::now());
    let mut done = 0;
    while done < MAX_INPUTS && (done < MIN_INPUTS || started.elapsed() < MAX_TIME_PER_PARSER) {
        let input = mutate(&corpus, &mut chance);
        let before = Instant::now();
        parser(&input);
        // Other load on the machine may delay a parser, but not for as long as a hang.
        assert!(before.elapsed() < Duration::from_secs(20), "{}", input.escape_ascii());
        done += 1;
    }
    println!("{name}: {done} inputs in {:?}", started.elapsed());
}

macro_rules! parsers {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            assert_parser_holds(stringify!($name), parsers::$name);
        })*
    };
}

parsers!(event gate part presence reply settings arguments answer comment);
