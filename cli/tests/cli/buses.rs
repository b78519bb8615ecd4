//! Tests of `bus`: the names of the config file.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use crate::bus::{Bus, Ran, ended, program};

/// Runs a command without a bus in the environment, so that the config file decides.
fn run(bus: &Bus, arguments: &[&str]) -> Ran {
    ended(program(bus.folder.path()).args(arguments).stdin(Stdio::null()).output().unwrap())
}

#[test]
fn buses_are_added_used_listed_and_removed() {
    let bus = Bus::sqlite();
    let file = bus.path("config/a3s-event/config.toml");
    bus.publish("events.a", 1);
    for arguments in [&["add", "local", &bus.url][..], &["add", "lab", "memory://"], &["use", "local"]] {
        let ran = run(&bus, &[&["bus"], arguments].concat());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    }
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let rows = crate::bus::json_lines(&run(&bus, &["bus", "list", "--output", "ndjson"]).stdout);
    let found: Vec<_> =
        rows.iter().map(|row| (row["name"].as_str().unwrap(), row["isDefault"].as_bool().unwrap())).collect();
    assert_eq!(found, [("lab", false), ("local", true)]);
    assert!(run(&bus, &["history"]).stdout.contains("events.a"), "the chosen bus is used");

    let ran = run(&bus, &["bus", "rm", "local"]);
    assert!(ran.code == 0 && ran.stderr.contains("'url' named this bus"), "{}", ran.stderr);
    assert!(!run(&bus, &["history"]).stdout.contains("events.a"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "[buses]\nlab = \"memory://\"\n");
}

#[test]
fn the_path_of_a_file_is_stored_as_an_absolute_one() {
    let bus = Bus::sqlite();
    let add = |name: &str, url: &str| {
        let mut command = program(bus.folder.path());
        let ran = command.current_dir(bus.folder.path()).args(["bus", "add", name, url]).output().unwrap();
        assert_eq!(ended(ran).code, 0);
    };
    add("week", "sqlite:of a week.db?max_events=5");
    add("memory", "sqlite::memory:");
    let config = std::fs::read_to_string(bus.path("config/a3s-event/config.toml")).unwrap();
    let folder = bus.folder.path().canonicalize().unwrap();
    let url = format!("week = \"sqlite://{}/of a week.db?max_events=5\"", folder.display());
    assert!(config.contains(&url) && config.contains("memory = \"sqlite::memory:\""), "{config}");
    assert_eq!(run(&bus, &["pub", "events.a", "1", "--url", "week"]).code, 0);
    assert!(bus.path("of a week.db").exists());
}

#[test]
fn comments_and_permissions_stay() {
    let bus = Bus::sqlite();
    let text = "# of the team\n[buses]\n# the lab\nlab = \"memory://\" # empty\n";
    let file = bus.file("team.toml", text);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    let link = bus.path("link.toml");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let ran = run(&bus, &["bus", "add", "prod", "nats://127.0.0.1:4222", "--config", link.to_str().unwrap()]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), format!("{text}prod = \"nats://127.0.0.1:4222\"\n"));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
    assert!(link.symlink_metadata().unwrap().is_symlink());
}

#[test]
fn secrets_of_buses_are_never_shown() {
    let bus = Bus::sqlite();
    let url = "nats://user:s3cret@127.0.0.1:4222?token=s3cret";
    let on_the_line = run(&bus, &["bus", "add", "prod", url]);
    assert!(on_the_line.stderr.contains("other users can see credentials"), "{}", on_the_line.stderr);
    let ran = bus.run_with_stdin(&["bus", "add", "other", "-"], &format!("{url}\n"));
    assert!(ran.code == 0 && ran.stderr.is_empty(), "{}", ran.stderr);
    let listed = run(&bus, &["bus", "list", "--output", "json"]);
    assert!(listed.stdout.contains("nats://***@127.0.0.1:4222?token=***"), "{}", listed.stdout);
    for ran in [on_the_line, ran, listed, run(&bus, &["bus", "use", url]), run(&bus, &["bus", "rm", "prod"])]
    {
        let said = format!("{}{}", ran.stdout, ran.stderr);
        assert!(!said.contains("s3cret"), "{said}");
    }
    assert!(std::fs::read_to_string(bus.path("config/a3s-event/config.toml")).unwrap().contains("s3cret"));
}

#[test]
fn wrong_names_and_urls_change_nothing() {
    let bus = Bus::sqlite();
    let file = bus.file("buses.toml", "[buses]\nlab = \"memory://\"\n");
    for (arguments, why) in [
        (&["add", "lab", "memory://"][..], "bus 'lab' exists"),
        (&["add", "a b", "memory://"], "name 'a b'"),
        (&["add", "a:b", "memory://"], "name 'a:b'"),
        (&["add", "", "memory://"], "name ''"),
        (&["add", "new", "ftp://host"], "scheme 'ftp'"),
        (&["add", "new", "nowhere"], "URL"),
        (&["use", "nobody"], "'nobody' is neither a URL"),
        (&["use", "memory://"], "is a URL"),
        (&["rm", "nobody"], "'nobody' is neither a URL"),
    ] {
        let ran = run(&bus, &[&["bus"], arguments, &["--config", &file]].concat());
        assert!(ran.code == 3 && ran.stderr.contains(why), "{arguments:?}: {}", ran.stderr);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "[buses]\nlab = \"memory://\"\n");
    }
    bus.file("buses.toml", "[buses\n");
    assert_eq!(run(&bus, &["bus", "add", "new", "memory://", "--config", &file]).code, 3);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "[buses\n");
}
