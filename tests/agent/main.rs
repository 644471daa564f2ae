//! The jobs of an agent runtime, on real servers.

mod binary;
mod facade;
mod pool;
mod publish;
mod servers;
mod store;
mod support;
