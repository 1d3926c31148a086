//! The caller's values as errors show them: a key is easily given in place of a name or a path, and then
//! it is not repeated.

#[cfg(any(feature = "server", feature = "tls"))]
use std::path::Path;

/// Returns a host's name as an error shows it. A text that cannot be a name is left out: it may be a key.
#[cfg(any(feature = "client", feature = "tls"))]
pub(crate) fn quoted(name: &str) -> String {
    if is_host(name) { format!("{name:?}") } else { format!("a text of {} bytes", name.len()) }
}

/// Returns `true` if `name` is as short as the name of a host must be.
#[cfg(any(feature = "client", feature = "tls"))]
pub(crate) fn is_host(name: &str) -> bool {
    const LONGEST_NAME: usize = 253;
    const LONGEST_LABEL: usize = 63;
    name.len() <= LONGEST_NAME && name.split('.').all(|label| label.len() <= LONGEST_LABEL)
}

/// Returns a path as errors and `Debug` show it. A key or a certificate that was given in its place is
/// left out.
#[cfg(any(feature = "server", feature = "tls"))]
pub(crate) fn shown(path: &Path) -> String {
    const LONG: usize = 100;
    let bytes = path.as_os_str().as_encoded_bytes();
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=".contains(byte);
    let is_text = memchr::memmem::find(bytes, b"-----").is_some()
        || bytes.contains(&b'\n')
        || bytes.len() > LONG && bytes.iter().all(is_base64);
    if is_text {
        return format!("a text of {} bytes, given where a path belongs", bytes.len());
    }
    path.display().to_string()
}
