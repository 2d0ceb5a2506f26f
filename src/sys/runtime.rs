//! The threads of the asynchronous runtime.

use std::future::Future;

use tokio::runtime::Builder;

use crate::error::Error;

/// Runs `work` on this thread. Two worker threads serve sockets, so that the broker's socket is read while this thread
/// writes to disk and another waits for a database. Names are resolved on four more threads: slow name servers can
/// block at most two with exempt names, so two remain for the broker's name.
///
/// # Errors
/// [`Error::Start`], or the error of `work`.
pub fn run<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(4)
        .enable_all()
        .build()
        .map_err(Error::Start)?;
    let result = runtime.block_on(work);
    // Do not wait for pending name lookups.
    runtime.shutdown_background();
    result
}
