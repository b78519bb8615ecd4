use super::*;

/// Hosts of URLs that must be blocked.
#[rustfmt::skip]
pub(in super::super) const FORBIDDEN: [&str; 75] = [
    // Loopback, in every spelling that URLs allow.
    "127.0.0.1", "localhost", "[::1]", "0.0.0.0", "0", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.0.1",
    "0x7f.1", "0x7f.0x0.0x0.0x1", "0177.0.0.01", "017700000001", "127.255.255.254", "LOCALHOST", "localhost.", "a.localhost",
    "127.0.0.1.", "%31%32%37.0.0.1", "１２７.0.0.1", "127。0。0。1", "①②⑦.0.0.1", "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ", "ｌｏｃａｌｈｏｓｔ", "169。254。169。254", "[::]", "[0:0:0:0:0:0:0:1]",
    // IPv4 within IPv6.
    "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[::ffff:10.0.0.1]", "[::ffff:a9fe:a9fe]",
    "[64:ff9b::7f00:1]", "[64:ff9b::10.0.0.1]", "[64:ff9b:1::1]", "[2002:7f00:1::]", "[2002:a00:1::1]",
    "[2001:0:4136:e378:8000:63bf:80ff:fffe]", "[::ffff:0:127.0.0.1]", "[::ffff:8.8.8.8]",
    // Private, shared, link-local.
    "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1", "192.168.1", "3232235777", "0xc0a80101",
    "100.64.0.1", "100.127.255.255", "169.254.1.1", "[fc00::1]", "[fd12:3456::1]", "[fe80::1]", "[fec0::1]",
    // Metadata.
    "169.254.169.254", "2852039166", "0xa9fea9fe", "169.254.43518", "[fd00:ec2::254]", "100.100.100.200",
    "metadata.google.internal", "metadata",
    // Multicast, reserved, documentation and benchmarking.
    "224.0.0.1", "239.255.255.255", "[ff02::1]", "255.255.255.255", "240.0.0.1", "192.0.2.1", "198.51.100.7",
    "203.0.113.9", "198.18.0.1", "[2001:db8::1]", "192.0.0.8",
];

#[test]
fn no_encoding_of_a_forbidden_address_passes() {
    for host in FORBIDDEN {
        for scheme in ["http", "https"] {
            let allowed = Allowed { http: true, ..Allowed::default() };
            let error = allowed.check_url(&format!("{scheme}://{host}/hook")).unwrap_err();
            assert!(matches!(error, EventError::Config(_)), "{host}: {error}");
            assert!(error.to_string().contains("blocked: "), "{host}: {error}");
        }
    }
}

#[test]
fn public_addresses_and_names_pass() {
    for host in [
        "example.com",
        "EXAMPLE.com.",
        "1.1.1.1",
        "8.8.8.8",
        "172.15.0.1",
        "172.32.0.1",
        "100.63.0.1",
        "100.128.0.1",
        "192.0.1.1",
        "198.20.0.1",
        "223.255.255.255",
        "[2606:4700:4700::1111]",
        "[2a00:1450::1]",
        "bücher.example",
    ] {
        Allowed::default()
            .check_url(&format!("https://{host}/"))
            .unwrap_or_else(|error| panic!("{host}: {error}"));
    }
}

#[test]
fn a_name_that_only_looks_like_another_stays_another() {
    let url = Allowed::default().check_url("https://еxample.com./hook").unwrap();
    assert_eq!(url.host_str(), Some("xn--xample-2of.com."));
    let allowed = Allowed { hosts: vec!["db.internal".to_owned()], ..Allowed::default() };
    allowed.check_url("https://db.internal/").unwrap();
    assert!(allowed.check_url("https://db.іnternal.internal/").is_err());
}

#[test]
fn what_is_wrong_with_a_url_is_said() {
    let long = format!("https://example.com/{}", "x".repeat(4_096));
    for (url, rule) in [
        ("file:///etc/passwd", "scheme"),
        ("ftp://example.com", "scheme"),
        ("gopher://example.com", "scheme"),
        ("javascript:alert(1)", "scheme"),
        ("unix:/run/x.sock", "scheme"),
        ("http://example.com", "only https"),
        ("https://user:canary@example.com/", "credentials"),
        ("https://user@example.com/", "credentials"),
        ("https://example.com/#part", "fragment"),
        ("https://example.com:22/", "port 22"),
        ("https://example.com:8443/", "port 8443"),
        ("https://", "empty host"),
        ("https://exa mple.com/", "invalid"),
        ("example.com", "relative"),
        ("", "relative"),
        (&long, "longer than"),
    ] {
        let text = Allowed::default().check_url(url).unwrap_err().to_string();
        assert!(text.contains(rule) && text.contains("sink url"), "{url}: {text}");
        assert!(!text.contains("canary"), "{text}");
    }
}

#[test]
fn what_is_allowed_is_allowed_and_metadata_never() {
    let allowed = Allowed {
        http: true,
        ports: vec![8080],
        networks: ["127.0.0.0/8", "10.1.2.3", "::1", "169.254.0.0/16", "fd00::/8", "0.0.0.0/0", "::/0"]
            .iter()
            .take(5)
            .map(|network| Network::parse(network).unwrap())
            .collect(),
        hosts: vec!["db.internal".to_owned(), "metadata.google.internal".to_owned()],
    };
    for url in [
        "http://127.0.0.1:8080/",
        "http://localhost./",
        "http://10.1.2.3/",
        "http://[::1]/",
        "http://169.254.0.1/",
        "http://DB.internal/",
    ] {
        let passes = allowed.check_url(url).is_ok();
        // `localhost` is a name, so that a network cannot allow it.
        assert_eq!(passes, !url.contains("localhost"), "{url}");
    }
    for url in [
        "http://169.254.169.254/",
        "http://[fd00:ec2::254]/",
        "http://metadata.google.internal/",
        "http://10.1.2.4/",
    ] {
        allowed.check_url(url).unwrap_err();
    }
    let resolved = |host: &str, addresses: &[&str]| {
        let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        allowed.check_resolved(host, &addresses).is_ok()
    };
    assert!(resolved("example.com", &["1.1.1.1"]));
    assert!(!resolved("example.com", &["1.1.1.1", "10.9.9.9"]), "mixed records");
    assert!(!resolved("example.com", &[]), "no address");
    assert!(resolved("db.internal", &["10.9.9.9"]));
    assert!(!resolved("db.internal", &["169.254.169.254"]));
}

#[test]
fn networks_have_a_length() {
    for text in ["10.0.0.0/33", "::/129", "x/8", "10.0.0/8", "10.0.0.0/-1", ""] {
        assert_eq!(Network::parse(text), None, "{text}");
    }
    let all = Network::parse("0.0.0.0/0").unwrap();
    assert!(all.contains("255.1.2.3".parse().unwrap()) && !all.contains("::1".parse().unwrap()));
    assert!(Network::parse("::/0").unwrap().contains("ff::1".parse().unwrap()));
}
