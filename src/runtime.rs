//! The threads that asynchronous work runs on.

use std::future::Future;

use tokio::runtime::Builder;

use crate::error::Error;

/// Runs `work` to its end on this thread. Two more read and write sockets, so that the broker's is
/// read even while this one writes to disk and another waits for a database. Names are resolved on threads
/// beside these: two are left when slow name servers keep both that resolve exempt names.
///
/// # Errors
/// [`Error::Start`], or whatever the work ends with.
pub fn run<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(4)
        .enable_all()
        .build()
        .map_err(Error::Start)?;
    let result = runtime.block_on(work);
    // A host name that is still being looked up is not waited for.
    runtime.shutdown_background();
    result
}
