//! The command line, end to end: the real program, real brokers, handlers in other languages.

mod bench;
mod chaos;
mod cron;
mod dead;
mod demo;
mod enqueue;
mod exec;
mod http;
mod import;
mod import_pool;
mod job;
mod output;
mod queue;
mod results;
mod setup;
mod stop;
mod support;
