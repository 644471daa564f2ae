//! The jobs of an agent runtime, on real servers.

mod pool;
mod publish;
mod store;
mod support;
