//! What makes a Rust type a job.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A payload type with a stable name. Its JSON is the body of the message on the wire.
///
/// ```
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct SendEmail {
///     to: String,
/// }
///
/// impl tidemill::Job for SendEmail {
///     const KIND: &'static str = "send_email";
/// }
/// ```
pub trait Job: Serialize + DeserializeOwned + Send + 'static {
    /// The kind: one token of `A-Z a-z 0-9 _ -`. It is in the subject of every job, so it should
    /// outlive renamings of the Rust type.
    const KIND: &'static str;

    /// The queue that this kind goes to where [`enqueue`](crate::Client::enqueue) names none.
    const QUEUE: &'static str = "default";
}
