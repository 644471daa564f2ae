//! Every way to reach a NATS server, and what is said when it fails, tried on real servers.

mod certs;
mod commands;
mod contexts;
mod deploy;
mod files;
mod hostile;
mod jwts;
mod logins;
mod rights;
mod secrets;
mod servers;
mod site;
mod support;
mod tls;
mod verbs;
