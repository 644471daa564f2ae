//! The command line, end to end: the real program, real brokers, handlers in other languages.

mod bench;
mod chaos;
mod cron;
mod dead;
mod demo;
mod doctor;
mod enqueue;
mod exec;
mod http;
mod import;
mod import_pool;
mod job;
mod nkeys;
mod output;
mod queue;
mod results;
mod sealed;
mod setup;
mod stop;
mod support;
mod trouble;
