//! Text from other parties as a terminal or a log may show it: characters that deceive a reader are
//! escaped.

use std::borrow::Cow;
use std::fmt;

/// Returns text from another party, such as a key, in a form that is safe to show: characters that
/// control a terminal, are invisible, or reverse the reading direction are escaped, as `\n` or
/// `\u{202e}`.
///
/// Letters of any script stay as they are, with the marks that combine with them. [`Key`](crate::Key) and
/// [`Error`](crate::Error) print themselves in this form. The exact text, as
/// [`Key::to_text`](crate::Key::to_text) returns it, is stored, compared and sent.
///
/// # Examples
/// ```
/// use dflockd_client::printable;
/// assert_eq!(printable("user:zoë"), "user:zoë");
/// assert_eq!(printable("invoice\u{202e}fdp.exe"), "invoice\\u{202e}fdp.exe");
/// ```
pub fn printable(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for (at, c) in text.char_indices() {
        if deceives(c, at == 0) { escaped.extend(c.escape_default()) } else { escaped.push(c) }
    }
    Cow::Owned(escaped)
}

/// Shows the same in quotes, with the quotes in it escaped.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.replace('\\', "\\\\").replace('"', "\\\"");
        write!(f, "\"{}\"", printable(&text))
    }
}

/// Returns `true` if the character must be escaped. At a text's start, that includes a combining mark,
/// which would change the character before the text.
fn deceives(c: char, starts: bool) -> bool {
    match c {
        ' '..='~' => false,
        // Invisible, though letters or marks by category: fillers, joiners, variation selectors, and the
        // empty braille pattern.
        '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}' => true,
        '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{ffa0}' | '\u{e0100}'..='\u{e01ef}' => true,
        c if starts => c.escape_debug().nth(1).is_some(),
        // The characters that a string's `Debug` escapes: control and format characters, every space but
        // the plain one, line ends, and code points in private use or not assigned.
        c => {
            let mut text = [b'a'; 5];
            let length = 1 + c.encode_utf8(&mut text[1..]).len();
            std::str::from_utf8(&text[..length]).is_ok_and(|text| text.escape_debug().nth(2).is_some())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_deceives_is_escaped_wherever_it_stands() {
        for c in
            "\u{202e}\u{202a}\u{2066}\u{2069}\u{200b}\u{200d}\u{200e}\u{61c}\u{2028}\u{2029}\u{ad}\u{feff}\
                  \u{e0041}\u{e0001}\u{e0100}\u{fe0f}\u{34f}\u{115f}\u{1160}\u{3164}\u{ffa0}\u{17b4}\u{180b}\
                  \u{180e}\u{2800}\u{2060}\u{2064}\u{fff9}\u{a0}\u{3000}\u{e000}\u{1b}\u{7f}\u{85}\u{9b}\u{0}"
                .chars()
        {
            let escape = c.escape_default().to_string();
            assert_eq!(printable(&format!("a{c}b")), format!("a{escape}b"));
            assert_eq!(printable(&format!("{c}b")), format!("{escape}b"));
        }
        assert_eq!(printable("two\nlines\tand \u{1b}[2J"), "two\\nlines\\tand \\u{1b}[2J");
    }

    #[test]
    fn words_of_any_script_stay_readable() {
        for text in
            ["plain", "it's \"so\" C:\\x", "zoe\u{308}", "鍵", "ключ", "مفتاح", "चाबी", "กุญแจ", "🔑", "ñ"]
        {
            assert_eq!(printable(text), text);
        }
        // At the start, a mark would sit on what stands before.
        assert_eq!(printable("\u{308}e"), "\\u{308}e");
    }

    #[test]
    fn quotes_hold_what_is_in_them() {
        assert_eq!(Quoted("a").to_string(), "\"a\"");
        assert_eq!(Quoted("a\"b\\c\u{202e}").to_string(), "\"a\\\"b\\\\c\\u{202e}\"");
    }
}
