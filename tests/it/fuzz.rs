//! The seeds of the fuzz targets: each input that once broke a promise, and one for each form that there is.

use std::path::Path;

#[allow(unreachable_pub, reason = "the targets are a library in the fuzz package")]
#[path = "../../fuzz/src/lib.rs"]
mod targets;

#[test]
fn every_promise_holds_for_every_seed() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    for (name, check) in targets::TARGETS {
        let mut replayed = 0;
        for seed in std::fs::read_dir(seeds.join(name)).unwrap_or_else(|error| panic!("{name}: {error}")) {
            let path = seed.unwrap().path();
            let input = std::fs::read(&path).unwrap();
            if std::panic::catch_unwind(|| check(&input)).is_err() {
                panic!("{}: the message above says what does not hold", path.display());
            }
            replayed += 1;
        }
        assert!(replayed >= 5, "{name}: {replayed} seeds");
    }
}

#[test]
fn every_target_is_a_program_of_the_fuzz_package() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    let mut programs: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    programs.sort();
    assert_eq!(programs, targets::TARGETS.map(|(name, _)| name));
}
