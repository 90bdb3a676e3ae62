//! TLS to servers of stores under an authority of our own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use std::path::{Path, PathBuf};
use stvor_base::ErrorCode;
use stvor_store::{
    ChangeSet, Key, Op, PostgresStores, RedisStores, RowValue, RowVersion, ServerOptions, StorePlace,
    StoreProvider, Table,
};
use stvor_testkit::{Postgres, Redis, RedisSettings};

/// What an authority issued.
struct Issued {
    root: String,
    certificate: String,
    key: String,
}

fn issue(name: &str) -> Issued {
    let mut root = CertificateParams::new(Vec::new()).unwrap();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = CertifiedIssuer::self_signed(root, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &root).unwrap();
    Issued { root: root.pem(), certificate: leaf.pem(), key: key.serialize_pem() }
}

fn postgres(issued: &Issued) -> Option<Postgres> {
    let settings = ["ssl=on", "ssl_cert_file='server.crt'", "ssl_key_file='server.key'"];
    let files = [("server.crt", issued.certificate.as_str()), ("server.key", issued.key.as_str())];
    Postgres::start_with_files(&settings, &files).unwrap()
}

fn redis(issued: &Issued, directory: &Path) -> Option<Redis> {
    let file = |name: &str, content: &str| {
        let path = directory.join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let certificate = file("redis.crt", &issued.certificate);
    let (key, root) = (file("redis.key", &issued.key), file("redis-root.crt", &issued.root));
    let arguments = ["--tls-cert-file", &certificate, "--tls-key-file", &key, "--tls-ca-cert-file", &root]
        .map(str::to_owned);
    let arguments = [&arguments[..], &["--tls-auth-clients".to_owned(), "no".to_owned()]].concat();
    Redis::start_with(RedisSettings { arguments, tls_only: true }).unwrap()
}

/// Writes the certificate of a client whom an authority of the server's knows by this name, as an operator does who renews it: into
/// the files that are there. What is given back is the server's half.
fn renewed(name: &str, authority: &str, directory: &Path) -> Issued {
    let named = |name: &str, alternatives: Vec<String>| {
        let mut params = CertificateParams::new(alternatives).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params
    };
    let mut root = named(authority, Vec::new());
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = CertifiedIssuer::self_signed(root, KeyPair::generate().unwrap()).unwrap();
    let keys = [(); 2].map(|()| KeyPair::generate().unwrap());
    let server = named("server", vec!["127.0.0.1".to_owned()]).signed_by(&keys[0], &root).unwrap();
    let client = named(name, Vec::new()).signed_by(&keys[1], &root).unwrap();
    let files =
        [("root.pem", root.pem()), ("client.pem", client.pem()), ("client.key", keys[1].serialize_pem())];
    for (file, content) in files {
        std::fs::write(directory.join(file), content).unwrap();
    }
    Issued { root: root.pem(), certificate: server.pem(), key: keys[0].serialize_pem() }
}

/// Trusts the root in a directory, and shows the certificate that is there.
fn shows_its_certificate(directory: &Path) -> ServerOptions {
    let file = |name: &str| directory.join(name);
    ServerOptions::new()
        .root_certificate(file("root.pem"))
        .client_certificate(file("client.pem"), file("client.key"))
}

/// A store goes on, without being opened again, when `renew` gave its server and its files certificates of another authority.
async fn goes_on_with_renewed_certificates(
    open: impl Fn(ServerOptions) -> Box<dyn StoreProvider>,
    directory: &Path,
    renew: impl FnOnce(),
) {
    let place = StorePlace::new("wss://relay.example:443", "app", "bob");
    let put = |number: u64| -> ChangeSet<RowValue> {
        let value = RowValue { bytes: vec![7; 50], version: RowVersion(number) };
        [Op::put(Key::new(Table::Custom, *b"a", number.to_be_bytes()), value)].into_iter().collect()
    };
    let nameless = open(ServerOptions::new().root_certificate(directory.join("root.pem")));
    let refused = nameless.open(&place).await.unwrap_err();
    assert_eq!(refused.code(), "STORE_UNREACHABLE", "who shows no certificate is not let in: {refused}");

    let store = open(shows_its_certificate(directory)).open(&place).await.unwrap();
    store.commit(put(1)).await.unwrap();
    let before = directory.join("before");
    std::fs::create_dir(&before).unwrap();
    for file in ["root.pem", "client.pem", "client.key"] {
        std::fs::copy(directory.join(file), before.join(file)).unwrap();
    }
    renew();
    store.commit(put(2)).await.unwrap();
    assert_eq!(store.stats().await.unwrap().rows, 2);
    store.close().await.unwrap();

    let stale = open(shows_its_certificate(&before)).open(&place).await.unwrap_err();
    assert_eq!(stale.code(), "STORE_SERVER_UNTRUSTED", "the server shows the new one: {stale}");
    let stale = shows_its_certificate(&before).root_certificate(directory.join("root.pem"));
    let stale = open(stale).open(&place).await.unwrap_err();
    assert_eq!(stale.code(), "STORE_UNREACHABLE", "the server takes the new one only: {stale}");
}

/// Providers at a server whose URL is this, by the root that they trust.
async fn trusts_its_root_and_no_other(open: impl Fn(ServerOptions) -> Box<dyn StoreProvider>, root: PathBuf) {
    let place = StorePlace::new("wss://relay.example:443", "app", "bob");
    let store = open(ServerOptions::new().root_certificate(&root)).open(&place).await.unwrap();
    let value = RowValue { bytes: vec![7; 500], version: RowVersion(1) };
    let put: ChangeSet<RowValue> =
        [Op::put(Key::new(Table::Custom, *b"a", *b"b"), value)].into_iter().collect();
    store.commit(put).await.unwrap();
    assert_eq!(store.stats().await.unwrap().rows, 1);
    store.close().await.unwrap();

    let other = root.with_file_name("other.pem");
    std::fs::write(&other, issue("127.0.0.1").root).unwrap();
    let public = ServerOptions::new();
    for options in [public, ServerOptions::new().root_certificate(&other)] {
        let refused = open(options).open(&place).await.unwrap_err();
        assert_eq!(refused.code(), "STORE_SERVER_UNTRUSTED", "{refused}");
        assert!(refused.to_string().contains("root_certificate"), "{refused}");
        assert!(!refused.retryable());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_is_trusted_by_its_root_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let issued = issue("127.0.0.1");
    let root = directory.path().join("root.pem");
    std::fs::write(&root, &issued.root).unwrap();
    let Some(server) = postgres(&issued) else { return };
    let database = server.database().unwrap();
    let url = database.url.replace("sslmode=disable", "sslmode=require");
    let open = |options| Box::new(PostgresStores::with_options(&url, options).unwrap()) as _;
    trusts_its_root_and_no_other(open, root).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_trusted_by_its_root_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let issued = issue("127.0.0.1");
    let root = directory.path().join("root.pem");
    std::fs::write(&root, &issued.root).unwrap();
    let Some(server) = redis(&issued, directory.path()) else { return };
    let url = format!("rediss://127.0.0.1:{}", server.port());
    let open = |options| Box::new(RedisStores::with_options(&[&url], options).unwrap()) as _;
    trusts_its_root_and_no_other(open, root).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_the_certificate_of_another_name_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let issued = issue("db.example");
    let root = directory.path().join("root.pem");
    std::fs::write(&root, &issued.root).unwrap();
    let place = StorePlace::new("wss://relay.example:443", "app", "bob");
    let options = || ServerOptions::new().root_certificate(&root);
    if let Some(server) = postgres(&issued) {
        let url = server.url_at(server.port(), "postgres").replace("sslmode=disable", "sslmode=require");
        let stores = PostgresStores::with_options(&url, options()).unwrap();
        assert_eq!(stores.open(&place).await.unwrap_err().code(), "STORE_SERVER_UNTRUSTED");
    }
    if let Some(server) = redis(&issued, directory.path()) {
        let url = format!("rediss://127.0.0.1:{}", server.port());
        let stores = RedisStores::with_options(&[&url], options()).unwrap();
        assert_eq!(stores.open(&place).await.unwrap_err().code(), "STORE_SERVER_UNTRUSTED");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_store_goes_on_when_certificates_on_both_sides_are_renewed() {
    let directory = tempfile::tempdir().unwrap();
    let files = directory.path();
    let first = renewed("bot", "first authority", files);
    let write = |issued: &Issued| {
        let all = [
            ("redis.crt", &issued.certificate),
            ("redis.key", &issued.key),
            ("redis-root.crt", &issued.root),
        ];
        all.map(|(name, content)| {
            let path = files.join(name);
            std::fs::write(&path, content).unwrap();
            path.display().to_string()
        })
    };
    let [certificate, key, root] = write(&first);
    let arguments = ["--tls-cert-file", &certificate, "--tls-key-file", &key, "--tls-ca-cert-file", &root];
    let arguments = [&arguments[..], &["--tls-auth-clients", "yes"]].concat();
    let arguments = arguments.into_iter().map(str::to_owned).collect();
    let Some(server) = Redis::start_with(RedisSettings { arguments, tls_only: true }).unwrap() else {
        return;
    };
    let url = format!("rediss://127.0.0.1:{}", server.port());
    let open = |options| Box::new(RedisStores::with_options(&[&url], options).unwrap()) as _;
    let renew = || {
        write(&renewed("bot", "second authority", files));
        server.kill().unwrap();
        server.restart().unwrap();
    };
    goes_on_with_renewed_certificates(open, files, renew).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_store_goes_on_when_certificates_on_both_sides_are_renewed() {
    let directory = tempfile::tempdir().unwrap();
    let files = directory.path();
    let first = renewed("bot", "first authority", files);
    let settings =
        ["ssl=on", "ssl_cert_file='server.crt'", "ssl_key_file='server.key'", "ssl_ca_file='root.crt'"];
    let kept = [
        ("server.crt", first.certificate.as_str()),
        ("server.key", first.key.as_str()),
        ("root.crt", first.root.as_str()),
        // The role of this name needs a certificate of this name; the test's own needs none.
        ("pg_hba.conf", "hostssl all bot 127.0.0.1/32 cert\nhost all stvor 127.0.0.1/32 trust\n"),
    ];
    let Some(server) = Postgres::start_with_files(&settings, &kept).unwrap() else { return };
    let database = server.database().unwrap();
    let role = format!("CREATE ROLE bot LOGIN; ALTER DATABASE {} OWNER TO bot", database.name);
    server.sql("postgres", &role).unwrap();
    let url = database.url.replace("stvor@", "bot@").replace("sslmode=disable", "sslmode=require");
    let open = |options| Box::new(PostgresStores::with_options(&url, options).unwrap()) as _;
    let renew = || {
        let second = renewed("bot", "second authority", files);
        let data = server.folder().join("data");
        let all =
            [("server.crt", &second.certificate), ("server.key", &second.key), ("root.crt", &second.root)];
        for (name, content) in all {
            std::fs::write(data.join(name), content).unwrap();
        }
        server.stop().unwrap();
        server.restart().unwrap();
    };
    goes_on_with_renewed_certificates(open, files, renew).await;
}
