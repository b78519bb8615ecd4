//! The launchers of real servers, and the proxy that damages what goes to them.

mod fault_proxy;
mod nats_cluster;
mod nats_server;
