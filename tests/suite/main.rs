//! Everything that needs a real nats-server. Each test starts its own.

mod all;
mod attempts;
mod bad_input;
mod cancel;
mod cluster;
mod cron;
mod dead;
mod drain;
mod enqueue;
mod far;
mod fence;
mod import;
mod later;
mod link;
mod many;
mod moves;
mod order;
mod outcomes;
mod preview;
mod proxy;
mod queues;
mod rearrange;
mod refusals;
mod share;
mod support;
mod unique;
