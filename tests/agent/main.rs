//! The jobs of an agent runtime, on real servers.

mod binary;
mod contention;
mod crash;
mod example;
mod facade;
mod pool;
mod publish;
mod servers;
mod store;
mod support;
mod tricky;
