use proptest::strategy::Strategy;

use super::*;

fn ms(text: &str) -> u64 {
    u64::try_from(text.parse::<Timestamp>().unwrap().as_millisecond()).unwrap()
}

/// Returns the times between two moments, as the zone's clocks show them.
fn times(expression: &str, zone: &str, from: &str, to: &str) -> Vec<String> {
    let schedule = Schedule::new(expression, zone).unwrap();
    let mut found = Vec::new();
    let mut at = ms(from);
    while let Some(next) = schedule.next_after(at).filter(|next| *next <= ms(to)) {
        let shown = Timestamp::from_millisecond(i64::try_from(next).unwrap()).unwrap();
        found.push(shown.to_zoned(schedule.zone.clone()).strftime("%d %H:%M %z").to_string());
        at = next;
    }
    found
}

#[test]
fn bad_expressions_are_refused_with_the_reason() {
    for wrong in [
        "",
        "* * * *",
        "* * * * * * * *",
        "60 * * * *",
        "*/0 * * * *",
        "5-1 * * * *",
        "* 25 * * *",
        "* * 32 * *",
        "* * * 13 *",
        "a * * * *",
        "30 2 30 2 *",
        "0 0 0 1 1 * 2001",
        "@every -5s",
        "@every 0s",
        "@nonsense",
        "* * * * *\0",
        "é * * * *",
        &"1,".repeat(10_000),
    ] {
        let error = Schedule::new(wrong, "UTC").unwrap_err();
        assert!(
            matches!(&error, EventError::Config(text) if text.contains("cron expression")),
            "{wrong}: {error}"
        );
        assert!(error.to_string().len() < 400 && !error.to_string().contains('\n'), "{error}");
    }
    for zone in ["", "Mars/Olympus", "../etc/passwd", "Europe/Berlin\0"] {
        let error = Schedule::new("* * * * *", zone).unwrap_err();
        assert!(matches!(&error, EventError::Config(text) if text.contains("time zone")), "{error}");
    }
}

#[test]
fn five_six_and_seven_fields_and_names_are_read() {
    let noon = "2026-06-01T12:00:00Z";
    for (expression, expected) in [
        ("5 * * * *", "01 12:05 +0000"),
        ("30 5 * * * *", "01 12:05 +0000"),
        ("0 0 0 1 1 * 2027", "01 00:00 +0000"),
        ("0 9 * * Tue", "02 09:00 +0000"),
        ("@daily", "02 00:00 +0000"),
        ("0 0 L * *", "30 00:00 +0000"),
    ] {
        assert_eq!(times(expression, "UTC", noon, "2027-01-02T00:00:00Z")[0], expected, "{expression}");
    }
    let seconds = Schedule::new("*/10 * * * * *", "UTC").unwrap();
    assert_eq!(seconds.next_after(ms(noon) + 1), Some(ms(noon) + 10_000));
}

/// Clocks in Berlin go from 02:00 to 03:00 on 29 March 2026.
#[test]
fn a_time_in_the_gap_comes_once_on_that_day() {
    let (from, to) = ("2026-03-27T23:00:00Z", "2026-03-30T22:00:00Z");
    assert_eq!(
        times("30 2 * * *", "Europe/Berlin", from, to),
        ["28 02:30 +0100", "29 03:00 +0200", "30 02:30 +0200"]
    );
    let (from, to) = ("2026-03-29T00:20:00Z", "2026-03-29T02:00:00Z");
    assert_eq!(
        times("*/30 * * * *", "Europe/Berlin", from, to),
        ["29 01:30 +0100", "29 03:00 +0200", "29 03:30 +0200", "29 04:00 +0200"]
    );
}

/// Clocks in Berlin go from 03:00 back to 02:00 on 25 October 2026.
#[test]
fn a_time_in_the_fold_comes_once_and_steps_go_on() {
    let (from, to) = ("2026-10-23T22:00:00Z", "2026-10-26T23:00:00Z");
    assert_eq!(
        times("30 2 * * *", "Europe/Berlin", from, to),
        ["24 02:30 +0200", "25 02:30 +0200", "26 02:30 +0100"]
    );
    let (from, to) = ("2026-10-24T23:50:00Z", "2026-10-25T02:00:00Z");
    assert_eq!(
        times("*/30 * * * *", "Europe/Berlin", from, to),
        ["25 02:00 +0200", "25 02:30 +0200", "25 02:00 +0100", "25 02:30 +0100", "25 03:00 +0100"]
    );
}

/// Checks every form of a time-of-day field in Berlin, from 01:00 to 04:00 on the clock: over the gap of 29 March and
/// the fold of 25 October 2026.
#[test]
fn fixed_and_running_times_over_gap_and_fold_in_every_form() {
    let gap = ("2026-03-29T00:00:00Z", "2026-03-29T01:59:59Z");
    let fold = ("2026-10-24T23:00:00Z", "2026-10-25T02:59:59Z");
    for (expression, in_gap, in_fold) in [
        // Fixed: skipped times fire once, after the gap; repeated times fire once.
        ("30 2 * * *", "3:00", "2:30"),
        ("0,30 2 * * *", "3:00", "2:00 2:30"),
        ("15 1,2,3 * * *", "1:15 3:00 3:15", "1:15 2:15 3:15"),
        ("0 2,3 * * *", "3:00", "2:00 3:00"),
        ("15 1-3 * * *", "1:15 3:00 3:15", "1:15 2:15 3:15"),
        ("30 0-23 * * *", "1:30 3:00 3:30", "1:30 2:30 3:30"),
        ("30 0-23/2 * * *", "3:00", "2:30"),
        ("0-59/30 2 * * *", "3:00", "2:00 2:30"),
        ("0 30 2 * * *", "3:00", "2:30"),
        ("0,30 59 1,2 * * *", "1:59 1:59 3:00", "1:59 1:59 2:59 2:59"),
        ("30 2 29,25 3,10 *", "3:00", "2:30"),
        ("30 2 * Mar,Oct Sun", "3:00", "2:30"),
        ("30 2 * * SunL", "3:00", "2:30"),
        ("30 2 29W * *", "", ""),
        ("30 2 */2 * 0", "3:00", "2:30"),
        ("0 30 2 * * * 2026", "3:00", "2:30"),
        // Not fixed: each time that the clock shows.
        ("30 * * * *", "1:30 3:30", "1:30 2:30 2:30 3:30"),
        ("@hourly", "1:00 3:00", "1:00 2:00 2:00 3:00"),
        ("*/30 2 * * *", "", "2:00 2:30 2:00 2:30"),
        ("0 */2 * * *", "", "2:00 2:00"),
        ("30 */1 * * *", "1:30 3:30", "1:30 2:30 2:30 3:30"),
        ("*/30 30 2 * * *", "", "2:30 2:30 2:30 2:30"),
        ("* 30 2 * * * 2025", "", ""),
    ] {
        for ((from, to), expected) in [(gap, in_gap), (fold, in_fold)] {
            let Ok(schedule) = Schedule::new(expression, "Europe/Berlin") else {
                assert!(expression.ends_with("2025"), "{expression}");
                continue;
            };
            let before = ms(from) - 1_000;
            let (mut found, mut at) = (Vec::new(), before);
            while let Some(next) = schedule.next_after(at).filter(|next| *next <= ms(to)) {
                found.push(next);
                at = next;
            }
            let shown: Vec<_> = found.iter().map(|at| clock(&schedule, *at)).collect();
            assert_eq!(shown.join(" "), expected, "{expression}");
            // The same times backwards, and from seconds in between.
            let (mut back, mut until) = (Vec::new(), ms(to));
            while let Some(last) = schedule.last_until(until).filter(|last| *last > before) {
                back.push(last);
                until = last - 1;
            }
            back.reverse();
            assert_eq!(back, found, "{expression}");
            for second in (before..ms(to)).step_by(1_000 * 61) {
                let next = found.iter().find(|time| **time > second);
                assert_eq!(
                    schedule.next_after(second).filter(|next| *next <= ms(to)).as_ref(),
                    next,
                    "{expression}"
                );
            }
        }
    }
}

fn clock(schedule: &Schedule, unix_ms: u64) -> String {
    let shown = Timestamp::from_millisecond(i64::try_from(unix_ms).unwrap()).unwrap();
    shown.to_zoned(schedule.zone.clone()).strftime("%-H:%M").to_string()
}

/// Clocks that jump by half an hour, over midnight and over a whole day.
#[test]
fn gaps_and_folds_of_other_sizes_are_the_same() {
    for (expression, zone, from, to, expected) in [
        (
            "15 2 * * *",
            "Australia/Lord_Howe",
            "2026-10-03T13:00:00Z",
            "2026-10-04T13:00:00Z",
            vec!["04 02:30 +1100"],
        ),
        (
            "45 1 * * *",
            "Australia/Lord_Howe",
            "2026-04-04T13:00:00Z",
            "2026-04-05T13:00:00Z",
            vec!["05 01:45 +1100"],
        ),
        // Samoa skipped 30 December 2011.
        (
            "0 9 * * *",
            "Pacific/Apia",
            "2011-12-29T18:00:00Z",
            "2012-01-01T00:00:00Z",
            vec!["29 09:00 -1000", "31 00:00 +1400", "31 09:00 +1400", "01 09:00 +1400"],
        ),
        (
            "0 */9 * * *",
            "Pacific/Apia",
            "2011-12-30T05:00:00Z",
            "2011-12-31T00:00:00Z",
            vec!["31 00:00 +1400", "31 09:00 +1400"],
        ),
        // Cairo skips midnight.
        (
            "@daily",
            "Africa/Cairo",
            "2026-04-23T12:00:00Z",
            "2026-04-25T12:00:00Z",
            vec!["24 01:00 +0300", "25 00:00 +0300"],
        ),
    ] {
        assert_eq!(times(expression, zone, from, to), expected, "{expression} {zone}");
    }
}

#[test]
fn days_are_those_of_cron() {
    let days = |expression: &str| {
        let times = times(expression, "UTC", "2025-12-31T23:59:59Z", "2026-01-31T12:00:00Z");
        times.iter().map(|time| time[..2].parse::<u32>().unwrap()).collect::<Vec<_>>()
    };
    let odd: Vec<u32> = (1..=31).step_by(2).collect();
    for (expression, expected) in [
        // A field that begins with `*` restricts the other: odd days that are Mondays.
        ("0 0 */2 * 1", vec![5, 19]),
        ("0 0 */2 * Mon", vec![5, 19]),
        ("0 0 1-31/2 * 1", {
            let mut days = odd.clone();
            days.extend([12, 26]);
            days.sort_unstable();
            days
        }),
        ("0 0 13 * */5", vec![]),
        ("0 0 2 * */5", vec![2]),
        ("0 0 13 * 5", vec![2, 9, 13, 16, 23, 30]),
        ("0 0 13 * +5", vec![]),
        ("0 0 9-13 * +5", vec![9]),
        ("0 0 */2 * *", odd),
        ("0 0 13 * ?", vec![13]),
        ("0 0 ? * 1", vec![5, 12, 19, 26]),
        ("0 0 * * 7", vec![4, 11, 18, 25]),
        ("0 0 * * 5-7", vec![2, 3, 4, 9, 10, 11, 16, 17, 18, 23, 24, 25, 30, 31]),
        ("0 0 * * Fri-Sun/2", vec![2, 4, 9, 11, 16, 18, 23, 25, 30]),
        ("0 0 L * *", vec![31]),
        ("0 0 LW * *", vec![30]),
        ("0 0 17W * *", vec![16]),
        ("0 0 1W,15W * *", vec![1, 15]),
        ("0 0 * * 1#2", vec![12]),
        ("0 0 * * Mon#5", vec![]),
        ("0 0 * * FriL", vec![30]),
        ("0 0 * * 5#L", vec![30]),
    ] {
        let found = if expected.is_empty() && Schedule::new(expression, "UTC").is_err() {
            vec![]
        } else {
            days(expression)
        };
        assert_eq!(found, expected, "{expression}");
    }
}

#[test]
fn a_field_in_another_form_is_refused() {
    for field in [
        "1,", ",1", "1,,2", "1-", "-1", "1-2-3", "5/2", "/2", "*/", "*/0", "*/00", "*/-1", "**", "*1", "1*",
        "1/2/3", "+1", "0x1", "00001", "L", "1L", "1W", "1#1", "MON", "?", "1\u{a0}", "\u{661}",
    ] {
        for at in 0..3 {
            let mut fields = ["0", "0", "0", "1", "1", "*", "*"];
            fields[at] = field;
            let expression = fields.join(" ");
            assert!(Schedule::new(&expression, "UTC").is_err(), "{expression}");
        }
    }
    for (expression, field) in [
        ("0 0 * MON *", "\"MON\""),
        ("0 0 * * MAR", "\"MAR\""),
        ("0 0 MON * *", "\"MON\""),
        ("0 0 * * MONDAY", "\"MONDAY\""),
        ("0 0 15W5 * *", "\"15W5\""),
        ("0 0 1-5W * *", "\"1-5W\""),
        ("0 0 L-3 * *", "\"L-3\""),
        ("0 0 * * L", "\"L\""),
        ("0 0 * * 1#1#2", "\"1#1#2\""),
        ("0 0 * * 1-5#2", "\"1-5#2\""),
        ("0 0 * * ++1", "\"+1\""),
        ("0 0 ?/2 * *", "\"?/2\""),
        ("0 0 * * 1,?", "\"?\""),
        ("@midnight", "1 fields"),
        ("@daily *", "2 fields"),
        ("0 0 * *\u{2003}*", "4 fields"),
        ("0 0 *\n* *", "4 fields"),
    ] {
        let error = Schedule::new(expression, "UTC").unwrap_err().to_string();
        assert!(error.contains(field), "{expression}: {error}");
    }
}

#[test]
fn only_names_of_the_time_zone_database_are_zones() {
    for zone in
        ["UTC", "Etc/UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires", "Etc/GMT+5", "GMT0", "EST5EDT"]
    {
        assert!(Schedule::new("* * * * *", zone).is_ok(), "{zone}");
    }
    for zone in [
        "Etc/Unknown",
        "Factory",
        "localtime",
        "posixrules",
        "leapseconds",
        "etc/unknown",
        "LOCALTIME",
        "posix/Europe/Berlin",
        "right/Europe/Berlin",
        "Right/UTC",
        "europe/berlin",
        "utc",
        "/usr/share/zoneinfo/UTC",
        "../zoneinfo/UTC",
        "Europe/../UTC",
        "./UTC",
        "Europe/",
        "Europe",
        "EST5EDT,M3.2.0,M11.1.0",
        "<+05>-5",
        "+05:00",
        ":UTC",
        " UTC",
        "UTC ",
        "tzdata.zi",
        "zone.tab",
    ] {
        let error = Schedule::new("* * * * *", zone).unwrap_err();
        assert!(matches!(&error, EventError::Config(text) if text.contains("time zone")), "{zone}: {error}");
    }
}

/// Compares with a calendar that checks every minute, in a zone with gaps and folds.
#[test]
fn running_times_are_those_of_a_clock_that_is_looked_at_every_minute() {
    let mut runner = proptest::test_runner::TestRunner::default();
    let field = |values: std::ops::Range<u32>| {
        let value = values.clone();
        proptest::prop_oneof![
            proptest::strategy::Just("*".to_owned()),
            (1_u32..40).prop_map(|step| format!("*/{step}")),
            proptest::collection::vec(value, 1..4)
                .prop_map(|list| { list.iter().map(u32::to_string).collect::<Vec<_>>().join(",") }),
            (values.clone(), values).prop_map(|(a, b)| format!("{}-{}", a.min(b), a.max(b))),
        ]
    };
    let strategy = (field(0..60), field(0..5), 0_u64..3, 0_u64..1_440);
    runner
        .run(&strategy, |(minute, hour, day, offset)| {
            let expression = format!("{minute} {hour} * * *");
            let schedule = Schedule::new(&expression, "Europe/Berlin").unwrap();
            let is_running = minute.starts_with('*') || hour.starts_with('*');
            let from = ms(["2026-03-28T12:00:00Z", "2026-10-24T12:00:00Z", "2026-06-01T00:00:00Z"]
                [usize::try_from(day).unwrap()]);
            let from = from + offset * 60_000;
            let names = |text: &str, value: i8| {
                text.split(',').any(|entry| {
                    let number = |text: &str| text.parse::<i8>().unwrap();
                    match (entry.strip_prefix("*/"), entry.split_once('-')) {
                        (Some(step), _) => value % number(step) == 0,
                        (_, Some((a, b))) => (number(a)..=number(b)).contains(&value),
                        _ => entry == "*" || number(entry) == value,
                    }
                })
            };
            let mut latest = None;
            let expected =
                (1..3 * 1_440).map(|minutes| from / 60_000 * 60_000 + minutes * 60_000).find(|at| {
                    let civil = |at: u64| {
                        Timestamp::from_millisecond(i64::try_from(at).unwrap())
                            .unwrap()
                            .to_zoned(schedule.zone.clone())
                            .datetime()
                    };
                    let shows = |time: jiff::civil::DateTime| {
                        names(&minute, time.minute()) && names(&hour, time.hour())
                    };
                    let shown = civil(*at);
                    let reached = *latest.get_or_insert_with(|| {
                        (0..300).map(|minutes| civil(at - 60_000 - minutes * 60_000)).max().unwrap()
                    });
                    latest = Some(reached.max(shown));
                    if is_running {
                        return shows(shown);
                    }
                    let mut wall = reached;
                    while wall < shown {
                        wall = wall.checked_add(jiff::Span::new().minutes(1)).unwrap();
                        if shows(wall) {
                            return true;
                        }
                    }
                    false
                });
            proptest::prop_assert_eq!(schedule.next_after(from), expected, "{} behind {}", expression, from);
            let found = expected.unwrap();
            proptest::prop_assert_eq!(schedule.last_until(found + 59_999), Some(found));
            Ok(())
        })
        .unwrap();
}

#[test]
fn the_last_time_is_found_backwards() {
    let schedule = Schedule::new("*/10 * * * * *", "Europe/Berlin").unwrap();
    let noon = ms("2026-06-01T12:00:00Z");
    assert_eq!(schedule.last_until(noon), Some(noon));
    assert_eq!(schedule.last_until(noon + 9_999), Some(noon));
    assert_eq!(schedule.last_until(noon - 1), Some(noon - 10_000));
    assert_eq!(schedule.next_after(u64::MAX), None);
}
