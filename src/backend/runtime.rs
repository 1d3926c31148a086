//! The runtime that a caller is on. Connections belong to one.

use tokio::runtime::{self, Handle};

use crate::error::{Error, ErrorKind, Result};

/// Returns the runtime on which this is called.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] outside a runtime, where tokio's timers would panic.
pub(crate) fn here() -> Result<runtime::Id> {
    Handle::try_current().map(|handle| handle.id()).map_err(|_| {
        let detail = "no tokio runtime runs this: await it inside one, or use the types in `blocking`";
        Error::new(ErrorKind::InvalidInput, detail)
    })
}
