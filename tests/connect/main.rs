//! Every way to connect, on real servers; and what is said where it does not work.

mod cli;
mod context;
mod login;
mod operator;
mod support;
mod tls;
