//! Tests of `man`: the pages and their readers.

use std::process::{Command, Stdio};

use crate::bus::Bus;

#[test]
fn every_command_has_a_page_that_groff_takes() {
    let bus = Bus::sqlite();
    let folder = bus.path("pages");
    let written = &bus.rows(&["man", folder.to_str().unwrap()])[0];
    let pages: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(written["pages"].as_u64(), Some(pages.len() as u64));
    assert!(pages.len() > 25, "{pages:?}");
    assert!(folder.join("a3s-event-consumers-reset.1").exists());
    let has_groff = Command::new("groff").arg("--version").stdout(Stdio::null()).status().is_ok();
    for page in &pages {
        let text = std::fs::read_to_string(page).unwrap();
        assert!(
            text.contains(".TH ") && text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"),
            "{page:?}"
        );
        assert!(text.contains("Example:"), "{page:?} has no example");
        let (_, environment) = text.split_once(".SH ENVIRONMENT").unwrap_or_else(|| panic!("{page:?}"));
        let (environment, files) = environment.split_once(".SH FILES").unwrap_or_else(|| panic!("{page:?}"));
        for variable in ["URL", "DLQ_URL", "CONFIG", "KEY_FILE", "LOG"] {
            assert!(environment.contains(&format!("A3S_EVENT_{variable}\\fR")), "{page:?}: {environment}");
        }
        assert!(files.contains("config.toml") && files.contains("events.db"), "{page:?}: {files}");
        if has_groff {
            let ran = Command::new("groff").args(["-man", "-Tutf8", "-ww"]).arg(page).output().unwrap();
            let said = String::from_utf8_lossy(&ran.stderr);
            assert!(ran.status.success() && said.is_empty(), "{page:?}: {said}");
            assert!(ran.stdout.len() > 200, "{page:?} is empty");
        }
    }
    if !has_groff {
        eprintln!("not checked: there is no groff");
    }
    assert!(bus.prints(&["man"]).contains(".TH a3s-event 1"));
    let ran = bus.run(&["man", bus.path("no/such/folder").to_str().unwrap()]);
    assert!(ran.code == 3 && ran.stderr.contains("no/such/folder"), "{}", ran.stderr);
}
