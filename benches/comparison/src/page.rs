//! Writes `docs/benchmarks.md` and its charts.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::board::{Board, Spread};
use crate::{ONE_CALLER, OURS, chart};

/// The backends and the titles of their charts.
const BACKENDS: [(&str, &str); 4] = [
    ("memory", "Events per second in memory"),
    ("nats", "Events per second on NATS JetStream"),
    ("redis", "Events per second on Redis Streams"),
    ("sqlite", "Events per second in a SQLite file"),
];
/// Prefix of the names of variants of this library.
const OURS_IN_ANOTHER_WAY: &str = "a3s-event, ";
const TEMPLATE: &str = include_str!("../page.template");
const LOCK: &str = include_str!("../Cargo.lock");

/// Writes the page from the measurements in `folder`, which has a file per backend.
pub(crate) fn write(folder: &Path) {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    fs::create_dir_all(&docs).expect("a folder that can be made");
    let mut page = TEMPLATE.to_owned();
    for (backend, title) in BACKENDS {
        let board = Board::load(&folder.join(format!("{backend}.json")));
        page = page.replace(&format!("{{{{{backend}}}}}"), &table(&board));
        if backend == "sqlite" {
            let single = board.of(ONE_CALLER).find(|figure| figure.contender != OURS).expect("a baseline");
            page = page.replace("{{syncs}}", &number(single.speed().median));
        }
        fs::write(docs.join(format!("benchmarks-{backend}.svg")), chart::svg(&board, title))
            .expect("a chart");
    }
    page = page.replace("{{machine}}", &machine());
    page = page.replace("{{measured}}", &measured(folder));
    page = page.replace("{{nats-server}}", a3s_event_testkit::servers::nats::REFERENCE);
    page = page.replace(
        "{{redis-server}}",
        a3s_event_testkit::servers::redis::REFERENCE.trim_start_matches("redis-"),
    );
    page = page.replace("{{redis-crate}}", &versions("redis").join(" and "));
    for name in ["async-nats", "rusqlite", "tokio"] {
        page = page.replace(&format!("{{{{{name}}}}}"), &versions(name).join(" and "));
    }
    assert!(!page.contains("{{"), "a place of the template is not filled: {page}");
    fs::write(docs.join("benchmarks.md"), page).expect("the page");
}

fn table(board: &Board) -> String {
    let mut table = "| | per second | lowest to highest | speedup | lowest to highest |\n".to_owned()
        + "|---|--:|--:|--:|--:|\n";
    for scenario in board.scenarios() {
        writeln!(table, "| **{scenario}** | | | | |").expect("a text takes what is written");
        let ours =
            board.of(scenario).find(|figure| figure.contender == OURS).expect("each scenario measures ours");
        for figure in board.of(scenario) {
            let speed = figure.speed();
            let ratio = ours.times_as_fast_as(figure);
            // Variants of this library are compared with the others, not with this library.
            let is_ours = figure.contender == OURS || figure.contender.starts_with(OURS_IN_ANOTHER_WAY);
            let (times, spread) = match is_ours {
                true => (String::new(), String::new()),
                false => (times(ratio), format!("{} to {}", plain(ratio.lowest), plain(ratio.highest))),
            };
            let (middle, low, high) = (number(speed.median), number(speed.lowest), number(speed.highest));
            writeln!(table, "| {} | {middle} | {low} to {high} | {times} | {spread} |", figure.contender)
                .expect("a text takes what is written");
        }
    }
    table.trim_end().to_owned()
}

/// Formats a ratio, in bold if this library was slower in every round.
fn times(ratio: Spread) -> String {
    let text = plain(ratio.median);
    if ratio.highest < 1.0 { format!("**{text}**") } else { text }
}

fn plain(ratio: f64) -> String {
    if ratio < 10.0 { format!("{ratio:.2}") } else { number(ratio) }
}

/// Formats a number with three significant digits and separated thousands.
pub(crate) fn number(value: f64) -> String {
    let digits = value.abs().max(1.0).log10().floor();
    let step = 10_f64.powf((digits - 2.0).max(0.0));
    let whole = format!("{:.0}", (value / step).round() * step);
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Returns the days of the measurements, in UTC.
fn measured(folder: &Path) -> String {
    let days = BACKENDS.map(|(backend, _)| {
        let file = folder.join(format!("{backend}.json"));
        let day = Command::new("date").arg("-u").arg("-r").arg(file).arg("+%F").output().expect("a date");
        String::from_utf8_lossy(&day.stdout).trim().to_owned()
    });
    Vec::from_iter(BTreeSet::from(days)).join(" and ")
}

fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let compiler = Command::new("rustc").arg("--version").output().expect("the compiler that built this");
    let compiler = String::from_utf8_lossy(&compiler.stdout);
    let compiler: Vec<_> = compiler.split_whitespace().take(2).collect();
    let (system, architecture) = (std::env::consts::OS, std::env::consts::ARCH);
    format!("{cores} cores of {}, {system} on {architecture}, {}", processor(), compiler.join(" "))
}

/// Returns the model of the processor, as far as the system names it.
fn processor() -> String {
    let known = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = known.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    model.map_or("an unnamed processor", |(_, model)| model.trim()).to_owned()
}

/// Returns the versions of a package in the lock file.
fn versions(name: &str) -> Vec<&'static str> {
    let header = format!("name = \"{name}\"\nversion = \"");
    LOCK.split(&header).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}
