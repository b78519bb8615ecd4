//! The ledger over the built-in providers. Run it with `--help`.

#[cfg(unix)]
#[tokio::main(worker_threads = 2)]
async fn main() -> std::process::ExitCode {
    a3s_event_testkit::ledger::program(a3s_event::ProviderRegistry::builtin()).await
}

#[cfg(not(unix))]
#[allow(clippy::print_stderr, reason = "the error of a program")]
fn main() -> std::process::ExitCode {
    eprintln!("a3s-event-ledger: signals are needed, which this system has not");
    std::process::ExitCode::from(2)
}
