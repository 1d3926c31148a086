//! What is wrong with a text that should be PEM, in words that quote nothing of it. Knows of no file.

use std::borrow::Cow;

use memchr::memmem::find;

use crate::types::printable;

const BEGIN: &[u8] = b"-----BEGIN ";
const END: &[u8] = b"-----END ";
const DASHES: &[u8] = b"-----";

/// A fault in words.
type Fault = Cow<'static, str>;

/// Returns `true` if a label or a header says that a key is encrypted. A comment may use the word.
pub(super) fn is_encrypted(text: &[u8]) -> bool {
    lines(text).any(|line| {
        let line = line.trim_ascii();
        let header = line.strip_prefix(b"Proc-Type:");
        line == b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
            || header.is_some_and(|value| find(value, b"ENCRYPTED").is_some())
    })
}

/// What keeps `text` from being read as PEM, if that is known.
pub(super) fn why(text: &[u8]) -> Option<Fault> {
    if is_utf16(text) {
        return Some("it is utf-16 text, save it as utf-8".into());
    }
    if text.trim_ascii().is_empty() {
        return Some("it is empty".into());
    }
    unseen(text).map(Fault::from).or_else(|| misshapen(text).map(Fault::from))
}

/// Names the first character within the PEM that is not ASCII and that an editor shows as a blank or not
/// at all. It is no part of a key or a certificate.
fn unseen(text: &[u8]) -> Option<String> {
    let mut is_inside = false;
    for (at, line) in text.split(|byte| *byte == b'\n').enumerate() {
        is_inside |= find(line, BEGIN.trim_ascii_end()).is_some();
        let mut chars = line.utf8_chunks().flat_map(|chunk| chunk.valid().chars());
        let is_unseen = |c: &char| !c.is_ascii() && printable(c.encode_utf8(&mut [0; 4])) != c.to_string();
        if let Some(c) = chars.find(is_unseen).filter(|_| is_inside) {
            let (code, line) = (u32::from(c), at + 1);
            return Some(format!(
                "its line {line} has a character that cannot be seen, U+{code:04X}: remove it"
            ));
        }
        is_inside &= find(line, END.trim_ascii_end()).is_none();
    }
    None
}

/// What is wrong with the lines of `text`.
fn misshapen(text: &[u8]) -> Option<&'static str> {
    if find(text, BEGIN).is_none() {
        let der = "it is der, convert it to pem with openssl";
        return Some(if is_der(text) { der } else { "it has no BEGIN line" });
    }
    let mut label = None;
    for line in lines(text) {
        let line = line.trim_ascii_end();
        if let Some(at) = find(line, BEGIN) {
            match label_of(&line[at + BEGIN.len()..]) {
                Ok(_) if at > 0 => return Some(before_begin(&line[..at])),
                Ok(found) => label = Some(found),
                Err(fault) => return Some(fault),
            }
        } else if let (Some(at), Some(open)) = (find(line, END), label) {
            match line[at + END.len()..].strip_prefix(open) {
                Some(DASHES) if at == 0 => label = None,
                Some(_) if at > 0 => return Some(before_end(&line[..at])),
                Some(_) => return Some("its END line does not end in five dashes"),
                None => return Some("its END line does not name what its BEGIN line names"),
            }
        }
    }
    label.map(|_| "it has no END line")
}

/// The label of a BEGIN line, or what is wrong with that line; `rest` is what follows `BEGIN`.
fn label_of(rest: &[u8]) -> Result<&[u8], &'static str> {
    const OPEN: &str = "its BEGIN line does not end in five dashes";
    let end = find(rest, DASHES).ok_or(OPEN)?;
    match &rest[end + DASHES.len()..] {
        [] => Ok(&rest[..end]),
        [b'-', ..] => Err(OPEN),
        [b'\\', ..] => Err("its line breaks are written as the two characters \\n"),
        [b' ' | b'\t', ..] => Err("its line breaks are missing, there are blanks instead"),
        _ => Err("its line breaks are missing"),
    }
}

fn before_begin(start: &[u8]) -> &'static str {
    if start.trim_ascii().is_empty() { "its lines are indented" } else { "its BEGIN line has text before it" }
}

fn before_end(start: &[u8]) -> &'static str {
    if start.trim_ascii().is_empty() { "its END line is indented" } else { "its line breaks are missing" }
}

/// As the PEM reader counts them.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| matches!(byte, b'\n' | b'\r'))
}

/// Returns `true` for text of two bytes a character, in either order and with or without a mark.
fn is_utf16(text: &[u8]) -> bool {
    matches!(text, [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [b'-', 0, b'-', 0, ..] | [0, b'-', 0, b'-', ..])
}

/// Returns `true` for what starts as every DER certificate and key does: a sequence, its length.
fn is_der(text: &[u8]) -> bool {
    matches!(text, [0x30, 0x81..=0x84, ..] | [0x30, 0x2e | 0x77, ..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOUND: &str = "-----BEGIN PRIVATE KEY-----\nAAAA\nAAAA\n-----END PRIVATE KEY-----\n";

    fn fault(text: impl AsRef<[u8]>) -> Fault {
        why(text.as_ref()).unwrap_or("none".into())
    }

    #[test]
    fn a_sound_text_has_no_fault() {
        for text in [SOUND.to_owned(), SOUND.replace('\n', "\r\n"), SOUND.replace('\n', "\r")] {
            assert_eq!(why(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(why(format!("a comment\n{SOUND}{SOUND}").as_bytes()), None);
    }

    #[test]
    fn what_became_of_the_line_breaks_is_told() {
        assert_eq!(fault(SOUND.replace('\n', "")), "its line breaks are missing");
        assert_eq!(
            fault(SOUND.replace('\n', "\\n")),
            "its line breaks are written as the two characters \\n"
        );
        assert_eq!(fault(SOUND.replace('\n', " ")), "its line breaks are missing, there are blanks instead");
        assert_eq!(fault(SOUND.replacen('\n', "", 1)), "its line breaks are missing");
        assert_eq!(fault(SOUND.replace("\n-----END", "-----END")), "its line breaks are missing");
    }

    #[test]
    fn other_faults_have_their_names() {
        let cases: [(Vec<u8>, &str); 11] = [
            (b" \n".into(), "it is empty"),
            (b"hello".into(), "it has no BEGIN line"),
            (b"\x30\x82\x01\x02".into(), "it is der, convert it to pem with openssl"),
            (
                SOUND.encode_utf16().flat_map(u16::to_le_bytes).collect(),
                "it is utf-16 text, save it as utf-8",
            ),
            (b"\xfe\xff\0-\0-".into(), "it is utf-16 text, save it as utf-8"),
            (SOUND.replace("\n-", "\n  -").into(), "its END line is indented"),
            (SOUND.replace("-----BEGIN", "  -----BEGIN").into(), "its lines are indented"),
            (SOUND.replace("-----BEGIN", "\"-----BEGIN").into(), "its BEGIN line has text before it"),
            (SOUND.replace("KEY-----\nA", "KEY----\nA").into(), "its BEGIN line does not end in five dashes"),
            (
                SOUND.replace("END PRIVATE", "END RSA PRIVATE").into(),
                "its END line does not name what its BEGIN line names",
            ),
            (SOUND[..40].into(), "it has no END line"),
        ];
        for (text, name) in cases {
            assert_eq!(fault(&text), name, "{:?}", String::from_utf8_lossy(&text));
        }
    }

    #[test]
    fn a_character_that_cannot_be_seen_is_named_by_its_number_and_line() {
        let named = |line: usize, code: &str| {
            format!("its line {line} has a character that cannot be seen, U+{code}: remove it")
        };
        for (c, code) in [
            ('\u{a0}', "00A0"),
            ('\u{200b}', "200B"),
            ('\u{feff}', "FEFF"),
            ('\u{2028}', "2028"),
            ('\u{e0020}', "E0020"),
        ] {
            assert_eq!(fault(SOUND.replace('\n', &format!("{c}\n"))), named(1, code));
            assert_eq!(fault(SOUND.replace("\nA", &format!("\r\n{c}A"))), named(2, code));
            assert_eq!(fault(SOUND.replace("BEGIN ", &format!("BEGIN{c}"))), named(1, code));
            assert_eq!(fault(SOUND.replace("-----END", &format!("{c}-----END"))), named(4, code));
        }
        // What can be seen is not told, and neither is what stands in a comment.
        assert_eq!(fault(format!("a\u{a0}comment\n{}", &SOUND[..40])), "it has no END line");
        assert_eq!(fault(SOUND.replace("AAAA\n-", "Zo\u{eb}\n-")), "none");
    }

    #[test]
    fn a_label_or_a_header_says_that_a_key_is_encrypted_and_a_comment_does_not() {
        assert!(is_encrypted(SOUND.replace("PRIVATE", "ENCRYPTED PRIVATE").as_bytes()));
        assert!(is_encrypted(SOUND.replacen('\n', "\nProc-Type: 4,ENCRYPTED\n", 1).as_bytes()));
        assert!(!is_encrypted(format!("# not ENCRYPTED\n{SOUND}").as_bytes()));
    }
}
