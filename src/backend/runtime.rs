//! The runtime that a caller is on: connections belong to one. Knows of no connection.

use tokio::runtime::{self, Handle};

use crate::error::{Error, ErrorKind, Result};

/// The runtime on which this is called.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] outside any, where tokio's timers would panic.
pub(crate) fn here() -> Result<runtime::Id> {
    Handle::try_current().map(|handle| handle.id()).map_err(|_| {
        let detail = "no tokio runtime runs this: await it inside one, or use the types in `blocking`";
        Error::new(ErrorKind::InvalidInput, detail)
    })
}
