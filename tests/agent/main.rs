//! The jobs of an agent runtime, on real servers.

mod publish;
mod store;
mod support;
