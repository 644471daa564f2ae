//! What a person does to jobs and queues besides running them.

mod cancel;
mod empty;
mod queue;
mod rearrange;
mod replace;

pub use cancel::Cancellation;
pub use queue::{LaneInfo, QueueInfo};
