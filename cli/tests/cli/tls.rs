//! Tests of servers with TLS, and of unusable files.

use a3s_event_testkit::NatsServer;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};

use crate::bus::{Bus, Ran, ended};

/// Writes PEM files to the folder of a bus: an authority, the certificates it signed, and another authority.
fn certificates(bus: &Bus) {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    bus.file("ca.pem", &authority.self_signed(&key).unwrap().pem());
    bus.file("other-ca.pem", &authority.self_signed(&other).unwrap().pem());
    let issuer = Issuer::new(authority, key);
    for name in ["server", "expired", "client"] {
        let key = KeyPair::generate().unwrap();
        let mut signed = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        if name == "expired" {
            signed.not_after = date_time_ymd(2020, 1, 1);
        }
        bus.file(&format!("{name}.pem"), &signed.signed_by(&key, &issuer).unwrap().pem());
        bus.file(&format!("{name}.key"), &key.serialize_pem());
    }
    let [one, two] =
        ["client.key", "server.key"].map(|name| std::fs::read_to_string(bus.path(name)).unwrap());
    bus.file("two.key", &(one + &two));
    bus.file("garbage.pem", "-----BEGIN CERTIFICATE-----\nc2VjcmV0\n-----END CERTIFICATE-----\n");
}

async fn server(bus: &Bus, name: &str, more: &str) -> NatsServer {
    let path = |file: &str| bus.path(file).display().to_string();
    let (certificate, key, ca) = (path(&format!("{name}.pem")), path(&format!("{name}.key")), path("ca.pem"));
    let tls =
        format!("tls {{ cert_file: \"{certificate}\", key_file: \"{key}\", ca_file: \"{ca}\", {more} }}");
    NatsServer::start_with(&tls).await
}

/// Publishes with files of the bus for these settings.
fn publish(bus: &Bus, port: u16, settings: &[(&str, &str)]) -> Ran {
    let settings = settings.iter().map(|(name, file)| format!("{name}={}", bus.path(file).display()));
    let settings = settings.collect::<Vec<_>>().join("&");
    let url = format!("tls://127.0.0.1:{port}?connect_timeout=5s&{settings}");
    ended(bus.command(&["pub", "events.a", "1"]).env("A3S_EVENT_URL", url).output().unwrap())
}

#[tokio::test]
async fn a_server_is_trusted_by_its_authority_only() {
    let bus = Bus::sqlite();
    certificates(&bus);
    let roots = ("root_certificates", "ca.pem");
    let client = [("client_certificate", "client.pem"), ("client_key", "client.key")];
    let mutual = server(&bus, "server", "verify: true").await;
    let trusted = publish(&bus, mutual.port(), &[roots, client[0], client[1]]);
    assert_eq!(trusted.code, 0, "{}", trusted.stderr);
    let unknown = publish(&bus, mutual.port(), &[roots]);
    assert_eq!(unknown.code, 4, "{}", unknown.stderr);
    let expired = server(&bus, "expired", "").await;
    for (port, roots, why) in
        [(mutual.port(), "other-ca.pem", "invalid peer certificate"), (expired.port(), "ca.pem", "expired")]
    {
        let refused = publish(&bus, port, &[("root_certificates", roots), client[0], client[1]]);
        assert_eq!(refused.code, 4, "{}", refused.stderr);
        assert!(refused.stderr.contains(why) && refused.stderr.lines().count() == 1, "{}", refused.stderr);
    }
}

#[test]
fn files_that_cannot_be_used_are_named_before_anything_is_connected() {
    let bus = Bus::sqlite();
    certificates(&bus);
    let pair = |certificate, key| vec![("client_certificate", certificate), ("client_key", key)];
    for (settings, field, why) in [
        (vec![("root_certificates", "missing.pem")], "root_certificates", "No such file"),
        (vec![("root_certificates", ".")], "root_certificates", "directory"),
        (vec![("root_certificates", "server.key")], "root_certificates", "holds no certificate"),
        (vec![("root_certificates", "garbage.pem")], "root_certificates", "invalid"),
        (pair("missing.pem", "client.key"), "client_certificate", "No such file"),
        (pair("client.pem", "missing.key"), "client_key", "No such file"),
        (pair("client.pem", "ca.pem"), "client_key", "holds no private key"),
        (pair("client.pem", "server.key"), "client_key", "is not the key of the client_certificate"),
        (pair("client.pem", "two.key"), "client_key", "holds 2 private keys"),
    ] {
        // No server listens there, and the message names the file instead.
        let refused = publish(&bus, 1, &settings);
        let said = &refused.stderr;
        assert_eq!((refused.code, refused.stdout.as_str()), (3, ""), "{settings:?}: {said}");
        assert!(said.contains(&format!("tls: {field} ")) && said.contains(why), "{settings:?}: {said}");
        assert!(said.lines().count() == 1 && !said.contains("c2VjcmV0"), "{said}");
    }
}
