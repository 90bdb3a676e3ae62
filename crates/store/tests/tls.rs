//! TLS to servers of stores under an authority of our own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
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
