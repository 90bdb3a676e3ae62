//! Which tokens let whom in, and what each lets its holder do.

#![cfg(test)]

mod support;

use core::time::Duration;

use stvor_base::{AppId, Timestamp};
use stvor_relay::{Admin, TokenConfig};
use stvor_wire::Code;
use stvor_wire::client::{ClientMessage, Credential};
use stvor_wire::server::Registration;
use stvor_wire::token::TokenKind;
use support::{Issuer, Login, Server, User, address, blob, claims};

#[tokio::test]
async fn development_relay_lets_any_development_token_in_and_no_other() {
    let server = Server::memory().await;
    let app = stvor_wire::token::app_of("stvor_any_thing").unwrap();
    let bob = User::of_app(&app, "bob");
    server.login(&bob).token("stvor_any_thing").open().await;
    for wrong in
        ["sk_live_unknown", "sk_test_unknown", "password", "STVOR_x", "", "stvor_\n", &"stvor_x".repeat(60)]
    {
        let mut raw = server.raw().await;
        raw.say(&ClientMessage::Hello(stvor_wire::client::Hello {
            protocol_version: 1,
            credential: Credential::AppToken(wrong.to_owned()),
            address: bob.address(),
            capabilities: vec![],
        }))
        .await;
        let end = raw.end().await;
        let too_long = wrong.len() > stvor_wire::limits::MAX_TOKEN_BYTES;
        let expected = if too_long { Code::MalformedFrame } else { Code::InvalidAppToken };
        assert_eq!(end.code, expected, "{wrong:?}");
    }
}

#[tokio::test]
async fn production_relay_refuses_development_tokens_that_nobody_named() {
    let server = Server::memory_with(|config| {
        config.development = false;
        config.open_registration = true;
        config.tokens = vec![TokenConfig { token: "sk_live_xxx".into(), app: Some("shop".into()) }];
    })
    .await;
    let bob = User::of_app(&AppId::new("shop").unwrap(), "bob");
    assert_eq!(server.login(&bob).refused().await.code, Code::InvalidAppToken);
    assert_eq!(server.login(&bob).token("sk_live_xxy").refused().await.code, Code::InvalidAppToken);
    server.login(&bob).token("sk_live_xxx").open().await;
}

fn backend() -> Issuer {
    Issuer::of("shop")
}

async fn shop() -> (Server, Issuer) {
    let backend = backend();
    let server = Server::memory_with(|config| {
        config.development = false;
        config.tokens = vec![TokenConfig { token: "sk_live_xxx".into(), app: Some("shop".into()) }];
        config.client_keys = vec![backend.config()];
    })
    .await;
    (server, backend)
}

fn customer(name: &str) -> User {
    User::of_app(&AppId::new("shop").unwrap(), name)
}

#[tokio::test]
async fn client_token_lets_the_user_in_that_it_names() {
    let (server, backend) = shop().await;
    let (alice, bob) = (customer("alice"), customer("bob"));
    server.login(&alice).credential(backend.token("alice")).open().await;
    let end = server.login(&bob).credential(backend.token("alice")).refused().await;
    assert_eq!(end.code, Code::AuthFailed);
    // With client keys, an app token registers nobody, but lets those in who are registered.
    let with_app_token = |user| server.login(user).token("sk_live_xxx");
    assert_eq!(with_app_token(&bob).refused().await.code, Code::RegistrationClosed);
    with_app_token(&alice).open().await;
}

#[tokio::test]
async fn client_token_does_not_replace_the_devices_own_proof() {
    let (server, backend) = shop().await;
    let (alice, impostor) = (customer("alice"), customer("alice"));
    server.login(&alice).credential(backend.token("alice")).open().await.close().await;
    let attempt = server.login(&impostor).credential(backend.token("alice"));
    assert_eq!(attempt.refused().await.code, Code::UserIdTaken);
    let attempt = server.login(&impostor).credential(backend.token("alice")).replacing();
    assert_eq!(attempt.refused().await.code, Code::UserIdTaken);
}

#[tokio::test]
async fn client_token_with_identity_replace_hands_a_name_over() {
    let (server, backend) = shop().await;
    let (alice, new_phone) = (customer("alice"), customer("alice"));
    let mut old = server.login(&alice).credential(backend.token("alice")).open().await;
    let scoped =
        stvor_wire::token::ClientClaims { scope: "identity:replace".into(), ..claims("shop", "alice") };
    let login = server.login(&new_phone).credential(backend.sign(&scoped));
    assert_eq!(login.clone().refused().await.code, Code::UserIdTaken, "only when the client asks for it");
    let client = login.replacing().open().await;
    assert_eq!(client.ready.registration, Registration::Replaced);
    assert_eq!(old.end().await.code, Code::LoggedOut);
}

#[tokio::test]
async fn client_tokens_that_are_not_good_are_refused() {
    let (server, backend) = shop().await;
    let alice = customer("alice");
    let now = Timestamp::system().as_millis() / 1000;
    let good = claims("shop", "alice");
    let unknown_key = Issuer { kid: "backend-2".into(), ..Issuer::of("shop") };
    let bad = [
        (
            "expired",
            backend.sign(&stvor_wire::token::ClientClaims { iat: now - 700, exp: now - 1, ..good.clone() }),
        ),
        (
            "lives too long",
            backend.sign(&stvor_wire::token::ClientClaims { exp: good.iat + 3601, ..good.clone() }),
        ),
        (
            "from the future",
            backend.sign(&stvor_wire::token::ClientClaims { iat: now + 600, exp: now + 900, ..good.clone() }),
        ),
        ("another app", backend.sign(&claims("bank", "alice"))),
        ("unknown key", unknown_key.token("alice")),
        ("another algorithm", backend.confused("alice")),
        ("no token at all", Credential::ClientToken("e30.e30.".into())),
    ];
    for (what, credential) in bad {
        let end = server.login(&alice).credential(credential).refused().await;
        assert_eq!(end.code, Code::AuthFailed, "{what}");
    }
    let Credential::ClientToken(token) = backend.token("alice") else { unreachable!() };
    let (body, signature) = token.rsplit_once('.').unwrap();
    let other = backend.token("bob");
    let Credential::ClientToken(other) = other else { unreachable!() };
    let stripped = format!("{body}.");
    let swapped = format!("{}.{signature}", other.rsplit_once('.').unwrap().0);
    for forged in [stripped, swapped] {
        let end = server.login(&alice).credential(Credential::ClientToken(forged)).refused().await;
        assert_eq!(end.code, Code::AuthFailed);
    }
}

#[tokio::test]
async fn holder_of_an_app_token_registers_nobody_unless_the_operator_lets_it() {
    let closed = Server::memory_with(|config| {
        config.development = false;
        config.tokens = vec![TokenConfig { token: "sk_live_xxx".into(), app: Some("shop".into()) }];
    })
    .await;
    let bob = customer("bob");
    let end = closed.login(&bob).token("sk_live_xxx").refused().await;
    assert_eq!(end.code, Code::RegistrationClosed);
    assert!(end.detail.contains("open_registration"), "it says what to do: {}", end.detail);
    let open = Server::memory_with(|config| {
        config.development = false;
        config.open_registration = true;
        config.tokens = vec![TokenConfig { token: "sk_live_xxx".into(), app: Some("shop".into()) }];
    })
    .await;
    open.login(&bob).token("sk_live_xxx").open().await;
}

#[tokio::test]
async fn new_users_of_an_app_are_limited_and_known_ones_are_not() {
    let server = Server::memory_with(|config| config.limits.registrations_per_app = 3).await;
    let users: Vec<User> = ["a", "b", "c", "d"].map(User::new).into();
    for user in &users[..3] {
        server.login(user).open().await.close().await;
    }
    let end = server.login(&users[3]).refused().await;
    assert_eq!(end.code, Code::RateLimited);
    assert!(end.retry_after > Duration::ZERO);
    server.login(&users[0]).open().await;
}

/// A durable production relay, with the operator's command line at its database.
async fn operated() -> (Server, Admin) {
    let server = Server::durable_with(|config| {
        config.development = false;
        config.open_registration = true;
    })
    .await;
    let admin = Admin::open(&server.database()).unwrap();
    (server, admin)
}

#[tokio::test]
async fn issued_token_lets_in_while_the_relay_runs() {
    let (server, mut admin) = operated().await;
    let shop = AppId::new("shop").unwrap();
    let issued = admin.create_token(TokenKind::Live, &shop, "checkout", None).unwrap();
    let bob = User::of_app(&shop, "bob");
    let token = issued.token.expose().to_owned();
    server.login(&bob).token(&token).open().await.close().await;
    // A digit more or less is another token.
    let mut mistyped = token.clone();
    let last = mistyped.pop().unwrap();
    mistyped.push(if last == '0' { '1' } else { '0' });
    assert_eq!(server.login(&bob).token(&mistyped).refused().await.code, Code::InvalidAppToken);
    let listed = admin.tokens().unwrap();
    assert_eq!(listed, [issued.record]);
    let file = std::fs::read(server.database()).unwrap();
    let secret = &token.as_bytes()[token.len() - 72..];
    assert!(
        !file.windows(secret.len()).any(|window| window == secret),
        "the database holds the token itself"
    );
}

#[tokio::test]
async fn revoked_token_ends_its_connections_and_lets_nobody_in() {
    let (server, mut admin) = operated().await;
    let shop = AppId::new("shop").unwrap();
    let old = admin.create_token(TokenKind::Live, &shop, "old", None).unwrap();
    let new = admin.create_token(TokenKind::Live, &shop, "new", None).unwrap();
    let bob = User::of_app(&shop, "bob");
    let with = |token: &stvor_wire::token::AppToken| server.login(&bob).token(token.expose());
    let mut client = with(&old.token).open().await;
    assert!(admin.revoke_token(&old.record.id).unwrap());
    assert!(!admin.revoke_token("no-such-id").unwrap());
    assert_eq!(client.end().await.code, Code::LoggedOut);
    assert_eq!(with(&old.token).refused().await.code, Code::AuthFailed);
    // Rotation: the other token of the app goes on.
    with(&new.token).known().open().await;
}

#[tokio::test]
async fn expired_token_is_refused_as_expired() {
    let (server, mut admin) = operated().await;
    let shop = AppId::new("shop").unwrap();
    let issued = admin.create_token(TokenKind::Test, &shop, "short", Some(Duration::ZERO)).unwrap();
    let bob = User::of_app(&shop, "bob");
    assert_eq!(server.login(&bob).token(issued.token.expose()).refused().await.code, Code::AuthFailed);
}

#[tokio::test]
async fn operator_resets_a_name_for_its_next_owner() {
    let (server, mut admin) = operated().await;
    let shop = AppId::new("shop").unwrap();
    let issued = admin.create_token(TokenKind::Live, &shop, "shop", None).unwrap();
    let token = issued.token.expose().to_owned();
    let (bob, next) = (User::of_app(&shop, "bob"), User::of_app(&shop, "bob"));
    let alice = User::of_app(&shop, "alice");
    let with = |user| Login::new(&server.place, user).token(&token);
    let mut client = with(&bob).open().await;
    client.upload_set(3, 3).await;
    let mut sender = with(&alice).open().await;
    sender.send(&address("bob"), blob("for the first bob")).await;
    client.deliver().await;
    assert_eq!(with(&next).refused().await.code, Code::UserIdTaken);
    let name = bob.list.user.clone();
    assert!(admin.reset_user(&shop, &name).unwrap());
    assert!(!admin.reset_user(&AppId::new("bank").unwrap(), &name).unwrap());
    assert_eq!(client.end().await.code, Code::LoggedOut);
    let mut owner = with(&next).open().await;
    assert_eq!((owner.ready.registration, owner.ready.keys), (Registration::New, Default::default()));
    sender.new_lane_epoch(&address("bob"));
    assert_eq!(owner.mail(&mut sender).await, [], "mail for the old identity is dropped");
    assert_eq!(with(&bob).refused().await.code, Code::UserIdTaken);
}

#[tokio::test]
async fn apps_whose_keys_have_the_same_name_are_told_apart() {
    let (shop, school) = (Issuer::of("shop"), Issuer::of("school"));
    let server = Server::memory_with(|config| {
        config.development = false;
        config.client_keys = vec![shop.config(), school.config()];
    })
    .await;
    let pupil = User::of_app(&AppId::new("school").unwrap(), "bob");
    server.login(&customer("bob")).credential(shop.token("bob")).open().await;
    let client = server.login(&pupil).credential(school.token("bob")).open().await;
    assert_eq!(client.ready.registration, Registration::New, "a user of the other app");
}
