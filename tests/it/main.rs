//! Everything that is tested through the public face of the crate.

#![allow(clippy::unwrap_used)]

mod api;
mod api_errors;
mod api_input_errors;
mod bad_input;
mod bombs;
mod command_line;
mod crash;
mod database_file;
mod examples;
mod golden;
mod http;
mod model;
mod nats_crash;
mod nats_races;
mod nats_server;
mod readme;
mod schema;
mod storage_errors;
mod storage_suite;
mod support;
mod tidy;
