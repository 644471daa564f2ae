//! What a person does to jobs and queues besides running them.

mod cancel;
mod queue;

pub use cancel::Cancellation;
pub use queue::{LaneInfo, QueueInfo};
