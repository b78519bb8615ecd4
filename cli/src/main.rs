//! `a3s-event`: the command-line tool of a3s-event.
#![allow(clippy::print_stdout, reason = "printing is what a command-line tool does")]

fn main() {
    println!("a3s-event {}", env!("CARGO_PKG_VERSION"));
}
