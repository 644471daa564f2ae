//! What a person does to jobs and queues besides running them.

mod cancel;
mod destination;
mod empty;
mod queue;
mod rearrange;
mod replace;

pub use cancel::Cancellation;
pub use destination::Move;
pub use queue::{LaneInfo, QueueInfo};
