//! Header blocks as any client may have written them. They are read here as the client library reads them,
//! which lets go of the connection over those that it does not like, and panics over a stray carriage
//! return; see `unreadable` and `renew`.

use std::str::from_utf8;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::wire::{Headers, name};

/// How a header block begins.
const VERSION: &str = "NATS/1.0";

/// What is kept of a block that cannot be read, in bytes: so much of its headers, and so much of it as it
/// is. Both go into the headers of a dead letter, of which the broker takes 64 KiB.
const MAX_SALVAGED_BYTES: usize = 20 * 1024;
const MAX_BLOCK_BYTES: usize = 18 * 1024;

/// What a block says, sorted by name; or what the client library objects to in it.
pub(super) fn read(block: &[u8]) -> Result<Headers, &'static str> {
    let text = from_utf8(block).map_err(|_| "they are no UTF-8")?;
    let mut lines = text.lines().peekable();
    let status = lines.next().and_then(|line| line.strip_prefix(VERSION));
    let status = status.ok_or("they do not begin with NATS/1.0")?.trim();
    let code = status.split_once(' ').map_or(status, |(code, _)| code.trim());
    if !code.is_empty() && !is_status(code) {
        return Err("they begin with a status that is none");
    }
    let mut headers = Headers::new();
    while let Some(line) = lines.next() {
        if line.is_empty() {
            continue;
        }
        let (name, value) = line.split_once(':').ok_or("a line of them has no colon")?;
        if !name.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("a name among them has characters that no name has");
        }
        let mut value = value.trim_start().to_owned();
        while let Some(more) = lines.next_if(|line| line.starts_with(char::is_whitespace)) {
            value.push_str(more);
        }
        let value = value.trim_end();
        if value.contains('\r') {
            return Err("a value among them has a carriage return");
        }
        headers.append(name, value);
    }
    headers.sort();
    Ok(headers)
}

/// What a message says, whatever it takes: what is no header is left out, what is no text becomes `?`, and
/// line ends within a value become spaces, so that a copy can carry it all. The block itself goes with it.
pub(super) fn salvage(block: &[u8]) -> Headers {
    let text = String::from_utf8_lossy(block).replace(char::REPLACEMENT_CHARACTER, "?");
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
    let mut room = MAX_SALVAGED_BYTES;
    let mut headers: Headers = text
        .split("\r\n")
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| is_name(name))
        .map_while(|(name, value)| {
            room = room.checked_sub(name.len() + value.len() + "::\r\n".len())?;
            Some((name, value.trim().replace(['\r', '\n'], " ")))
        })
        .collect();
    headers.sort();
    // Nobody will ever know more of it than we do: it is not left to a newer worker.
    headers.remove(name::PROTOCOL);
    headers.set(name::BLOCK, STANDARD.encode(&block[..block.len().min(MAX_BLOCK_BYTES)]));
    headers
}

/// What keeps a message from being handed out to the client library, if anything; `block` is empty where it
/// has no headers.
pub(super) fn flaw_of(subject: &str, block: &[u8]) -> Option<&'static str> {
    if subject.contains(char::REPLACEMENT_CHARACTER) {
        return Some("the subject is no UTF-8");
    }
    // The line that announces a message with headers is split wherever there is white space.
    if !block.is_empty() && subject.contains(char::is_whitespace) {
        return Some("the subject has white space");
    }
    if block.is_empty() { None } else { read(block).err() }
}

/// Whether the client library cannot read the answer to a direct look-up of a message. The broker puts its
/// own headers, the subject among them, in the place of the block's last two bytes.
pub(super) fn breaks_look_ups(subject: &str, block: &[u8]) -> bool {
    if subject.contains(char::REPLACEMENT_CHARACTER) {
        return true;
    }
    let begun = match block.len() {
        0..2 => b"NATS/1.0\r\n",
        length => &block[..length - 2],
    };
    let added = format!("Nats-Stream: s\r\nNats-Subject: {subject}\r\nNats-Sequence: 1\r\n\r\n");
    read(&[begun, added.as_bytes()].concat()).is_err()
}

/// Reads a message's headers as they come out of the API.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn read_block(subject: &str, block: &[u8]) -> Headers {
    let _ = (flaw_of(subject, block), breaks_look_ups(subject, block));
    read(block).unwrap_or_else(|_| salvage(block))
}

/// Three digits, the first of which is not 0.
fn is_status(code: &str) -> bool {
    let mut digits = code.bytes();
    code.len() == 3
        && digits.next().is_some_and(|first| (b'1'..=b'9').contains(&first))
        && digits.all(|digit| digit.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Names and values.
    type Pairs = &'static [(&'static str, &'static str)];

    #[test]
    fn what_can_be_read_as_a_table() {
        let table: [(&[u8], Pairs); 7] = [
            (b"NATS/1.0\r\n\r\n", &[]),
            (b"NATS/1.0\r\nB: 2\r\nA: x: y\r\n\r\n", &[("A", "x: y"), ("B", "2")]),
            (b"NATS/1.0\r\nA: b\r\n  goes on\r\n\r\n", &[("A", "b  goes on")]),
            (b"NATS/1.0 404 Not Found\r\n\r\n", &[]),
            ("NATS/1.0\r\nA: ünïcode\r\n\r\n".as_bytes(), &[("A", "ünïcode")]),
            (b"NATS/1.0\nA: b\n\n", &[("A", "b")]),
            (b"NATS/1.0\r\nA:\r\n: b", &[("", "b"), ("A", "")]),
        ];
        for (fine, expected) in table {
            let expected: Headers = expected.iter().copied().collect();
            assert_eq!(read(fine), Ok(expected), "{fine:?}");
            assert_eq!(flaw_of("a.b", fine), None);
        }
        for (bad, flaw) in [
            (&b"NATS/1.0\r\nA: \xff\r\n\r\n"[..], "UTF-8"),
            (b"", "NATS/1.0"),
            (b"HTTP/1.0\r\n\r\n", "NATS/1.0"),
            (b"NATS/1.0 no status\r\n\r\n", "status"),
            (b"NATS/1.0 099 x\r\n\r\n", "status"),
            (b"NATS/1.0\r\nno colon\r\n\r\n", "colon"),
            (b"NATS/1.0\r\nA b: c\r\n\r\n", "name"),
            (b"NATS/1.0\r\nA: b\rc\r\n\r\n", "carriage return"),
            (b"NATS/1.0\r\nA: b\n\rc\r\n\r\n", "carriage return"),
            (b"NATS/1.0\r\nA: b\nc\r\n\r\n", "colon"),
        ] {
            assert!(read(bad).is_err_and(|found| found.contains(flaw)), "{bad:?}");
        }
    }

    #[test]
    fn a_subject_can_be_the_flaw() {
        let fine = b"NATS/1.0\r\n\r\n";
        assert!(flaw_of("a.\u{fffd}", b"").is_some_and(|flaw| flaw.contains("UTF-8")));
        for subject in ["a.b\rc", "a.\u{b}", "a.b\u{a0}"] {
            assert_eq!(flaw_of(subject, b""), None, "without headers it is handed out");
            assert!(flaw_of(subject, fine).is_some_and(|flaw| flaw.contains("white space")));
        }
        assert!(breaks_look_ups("a.b\rc", b""), "the subject becomes a header's value");
        assert!(!breaks_look_ups("a.b", fine) && !breaks_look_ups("a.b", b""));
    }

    #[test]
    fn a_block_without_its_end_is_cut_where_it_is_looked_up() {
        assert_eq!(flaw_of("a", b"NATS/1.0"), None);
        assert!(breaks_look_ups("a", b"NATS/1.0"));
        assert!(flaw_of("a", b"NATS/1.0\r\n\r\nXX").is_some());
        assert!(!breaks_look_ups("a", b"NATS/1.0\r\n\r\nXX"));
    }

    #[test]
    fn what_is_salvaged_goes_with_the_block_itself() {
        let block = b"rubbish\r\nno colon\r\n: no name\r\nB c: d\r\nE: f\rg\nh\xff\r\n\r\n";
        let headers = salvage(block);
        assert_eq!(headers.get("E"), Some("f g h?"));
        let kept = STANDARD.decode(headers.get(name::BLOCK).expect("kept")).expect("base64");
        assert_eq!((headers.iter().count(), &kept[..]), (2, &block[..]));
    }

    proptest! {
        #[test]
        fn what_is_salvaged_can_be_carried_on(block in prop::collection::vec(any::<u8>(), 0..300)) {
            let headers = salvage(&block);
            let lines = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
            let carried = format!("NATS/1.0\r\n{}\r\n", lines.collect::<String>());
            prop_assert!(read(carried.as_bytes()).is_ok());
            let _ = (read(&block), flaw_of("a", &block), breaks_look_ups("a", &block));
        }
    }

    #[test]
    fn what_is_salvaged_has_room_in_a_dead_letter() {
        for line in [&b"a:\r\n"[..], b"\xff: \xff\r\n", b"A: \xff\xff\xff\xff\r\n"] {
            let block = [&b"NATS/1.0\r\n"[..], &line.repeat(65_000 / line.len())].concat();
            assert!(salvage(&block).wire_bytes() < 48 * 1024);
        }
        let one = [&b"NATS/1.0\r\nA: "[..], &[0xff; 65_000]].concat();
        assert!(salvage(&one).wire_bytes() < 48 * 1024);
    }
}
