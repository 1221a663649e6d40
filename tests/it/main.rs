//! Everything that is tested through the public face of the crate.

#![allow(clippy::unwrap_used)]

mod admission;
mod api;
mod api_errors;
mod api_input_errors;
mod api_may;
mod bad_input;
mod bombs;
mod command_line;
mod crash;
mod database_file;
mod examples;
mod generators;
mod golden;
mod http;
mod model;
mod nats_answers;
mod nats_bus;
mod nats_clients;
mod nats_crash;
mod nats_credentials;
mod nats_crowds;
mod nats_cuts;
mod nats_full_disk;
mod nats_guide;
mod nats_ids;
mod nats_life;
mod nats_limits;
mod nats_operator;
mod nats_outage;
mod nats_permissions;
mod nats_proxy;
mod nats_races;
mod nats_server;
mod nats_settings;
mod readme;
mod reference;
mod schema;
mod storage_errors;
mod storage_suite;
mod support;
mod tidy;
