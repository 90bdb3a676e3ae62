//! HTTP beside the socket: health, status, the description of itself, problems, metrics.

#![cfg(test)]

mod support;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;
use serde_json::{Value, json};
use stvor_relay::TokenConfig;
use stvor_wire::Code;
use stvor_wire::login::{Transcript, login_label};
use support::{Answer, Client, Login, Server, TOKEN, User, address, app, blob, get, request};

fn keys_of(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[tokio::test]
async fn health_says_status_server_version_uptime_and_connected_users() {
    let server = Server::memory().await;
    let answer = server.get("/health").await;
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, Some("application/json")));
    let health = answer.json();
    assert_eq!(keys_of(&health), ["connectedUsers", "server", "status", "uptime", "version"]);
    assert_eq!(health["status"], "ok");
    assert_eq!(health["version"], stvor_relay::VERSION);
    assert_eq!(health["connectedUsers"], 0);
    assert!(health["uptime"].as_f64().unwrap() >= 0.0);
    assert!(health["server"].as_str().unwrap().starts_with("stvor"));
    let (bob, first) = server.user("bob").await;
    let _sending = server.login(&bob).send_only().open().await;
    let (_, _alice) = server.user("alice").await;
    assert_eq!(server.get("/health").await.json()["connectedUsers"], 2);
    first.close().await;
    support::eventually("one user less", || async {
        (server.get("/health").await.json()["connectedUsers"] == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn status_of_a_user_says_exactly_three_things() {
    let server = Server::memory().await;
    let status = |online, keys| json!({"userId": "bob@example.com", "online": online, "hasPublicKey": keys});
    let path = "/status/bob@example.com";
    assert_eq!(server.get(path).await.json(), status(false, false));
    let (_, mut bob) = server.user("bob@example.com").await;
    assert_eq!(server.get(path).await.json(), status(true, false));
    bob.upload_set(1, 1).await;
    assert_eq!(server.get("/status/bob%40example.com").await.json(), status(true, true));
    bob.close().await;
    support::eventually("offline", || async {
        (server.get(path).await.json() == status(false, true)).then_some(())
    })
    .await;
    server.get("/status/%00").await.problem(Code::BadRequest);
}

#[tokio::test]
async fn status_is_not_for_strangers_of_a_production_relay() {
    let server = Server::memory_with(|config| config.development = false).await;
    server.get("/status/bob").await.problem(Code::NotFound);
}

#[tokio::test]
async fn probes_answer() {
    for server in [Server::memory().await, Server::durable().await] {
        assert_eq!(server.get("/livez").await.status, 200);
        assert_eq!(server.get("/readyz").await.status, 200);
    }
}

#[tokio::test]
async fn front_page_is_a_sentence_for_people() {
    let server = Server::memory().await;
    let answer = server.get("/").await;
    assert_eq!(answer.status, 200);
    assert!(answer.header("content-type").unwrap().starts_with("text/plain"));
    assert!(answer.body.contains("STVOR relay"));
}

#[tokio::test]
async fn openapi_describes_every_route_and_every_described_route_exists() {
    let server = Server::memory().await;
    let document = server.get("/openapi.json").await.json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"), "{}", document["openapi"]);
    let paths = document["paths"].as_object().unwrap();
    for route in ["/health", "/livez", "/readyz", "/status/{user}"] {
        assert!(paths.contains_key(route), "{route} is not described");
    }
    let mut operations = 0;
    for (path, methods) in paths {
        for method in methods.as_object().unwrap().keys() {
            operations += 1;
            let method: Method = method.to_uppercase().parse().unwrap();
            let answer =
                request(server.place.address, method.clone(), &path.replace("{user}", "bob"), &[]).await;
            assert_ne!(answer.status, 405, "{method} {path}");
            let nothing = answer.status == 404 && answer.json()["code"] == "NOT_FOUND";
            assert!(!nothing, "{method} {path} is described and does not exist");
        }
    }
    assert!(operations >= 4);
    // Every answer that is an error is a problem.
    let text = document.to_string();
    assert!(text.contains("application/problem+json"));
    for field in ["type", "title", "status", "detail", "code"] {
        assert!(document["components"]["schemas"]["Problem"]["properties"][field].is_object(), "{field}");
    }
}

#[tokio::test]
async fn what_is_not_there_is_a_problem_with_a_stable_code() {
    let server = Server::memory().await;
    server.get("/nothing/here").await.problem(Code::NotFound);
    let answer = request(server.place.address, Method::DELETE, "/health", &[]).await;
    answer.problem(Code::MethodNotAllowed);
    server.get("/metrics").await.problem(Code::NotFound);
}

#[tokio::test]
async fn metrics_are_on_their_own_listener_only() {
    let server = Server::memory_with(|config| config.metrics_listen = Some(([127, 0, 0, 1], 0).into())).await;
    let metrics = server.handle.metrics_addr().unwrap();
    assert_ne!(metrics, server.place.address);
    let page = get(metrics, "/metrics").await;
    assert_eq!(page.status, 200);
    assert!(page.body.contains("# TYPE"), "{}", page.body);
    server.get("/metrics").await.problem(Code::NotFound);
    assert_eq!(get(metrics, "/health").await.status, 404);
    assert_eq!(get(metrics, "/v1/socket").await.status, 404);
}

/// The value of a metric without labels.
fn metric(page: &Answer, name: &str) -> f64 {
    let line = page.body.lines().find(|line| line.starts_with(&format!("{name} ")));
    let line = line.unwrap_or_else(|| panic!("no {name} in {}", page.body));
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

#[tokio::test]
async fn metrics_count_and_name_nobody() {
    let server = Server::durable_with(|config| {
        config.metrics_listen = Some(([127, 0, 0, 1], 0).into());
        config.tokens =
            vec![TokenConfig { token: "sk_live_canarytoken".into(), app: Some("canaryapp".into()) }];
    })
    .await;
    let app = stvor_base::AppId::new("canaryapp").unwrap();
    let (alice, bob) = (User::of_app(&app, "canaryalice"), User::of_app(&app, "canarybob@example.com"));
    let login = |user| Login::new(&server.place, user).token("sk_live_canarytoken");
    let mut receiver: Client = login(&bob).open().await;
    receiver.upload_set(5, 5).await;
    let mut sender = login(&alice).open().await;
    let mut canaries: Vec<String> =
        ["canary", "example.com", "127.0.0.1", "sk_live", "stvor_dev", "t-"].map(str::to_owned).into();
    for number in 0..10 {
        let id = sender.send(&address("canarybob@example.com"), blob(&format!("canary {number}"))).await;
        canaries.push(id.to_string());
    }
    sender.fetch("canarybob@example.com").await.unwrap();
    sender.fetch("canarynobody").await.unwrap_err();
    let mut refused = sender.compose(&address("canarybob@example.com"), vec![0; 5]);
    sender.transmit(&refused).await.unwrap_err();
    refused.recipient.to = address("canarynobody");
    refused.blob = blob("").into();
    sender.transmit(&refused).await.unwrap_err();
    let got = receiver.deliver_many(10).await;
    receiver.ack(&got).await;
    receiver.until_pong().await;
    Login::new(&server.place, &alice).token("sk_live_canaryunknown").refused().await;
    server.get("/status/canaryalice").await;
    server.get("/canary/path").await;
    canaries.push(receiver.ready.mailbox_epoch.to_string());

    let page = get(server.handle.metrics_addr().unwrap(), "/metrics").await;
    let text = page.body.to_lowercase();
    for canary in canaries {
        assert!(!text.contains(&canary.to_lowercase()), "{canary} in {}", page.body);
    }
    assert_eq!(metric(&page, "stvor_relay_connections"), 2.0);
    assert_eq!(metric(&page, "stvor_relay_messages_accepted_total"), 10.0);
    assert!(
        page.body.contains("stvor_relay_refused_logins_total{code=\"INVALID_APP_TOKEN\"} 1"),
        "{}",
        page.body
    );
    // Labels come from fixed sets: every label value is a code or one of a few lower-case words.
    for line in page.body.lines().filter(|line| !line.starts_with('#')) {
        let Some((_, labels)) = line.split_once('{') else { continue };
        for pair in labels.split_once('}').unwrap().0.split(',') {
            let (label, value) = pair.split_once('=').unwrap();
            let value = value.trim_matches('"');
            let known = Code::parse(value).is_some()
                || ["login", "registration", "send", "request", "address", "http"].contains(&value)
                || (["quantile", "le"].contains(&label) && (value.parse::<f64>().is_ok() || value == "+Inf"));
            assert!(known, "{line}");
        }
    }
}

/// Asks for a challenge over HTTP, answers it for an origin, and uploads nothing.
async fn upload_over_http(
    server: &Server,
    user: &User,
    origin: &str,
    authorization: &str,
) -> (Value, Answer) {
    let headers = [("authorization", authorization), ("content-type", "application/json")];
    let body = json!({"user": user.name(), "device": 1}).to_string();
    let answer = support::post(server.place.address, "/v1/challenge", &headers, body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let challenge = answer.json();
    let nonce: [u8; 32] = STANDARD.decode(challenge["nonce"].as_str().unwrap()).unwrap().try_into().unwrap();
    let app = stvor_base::AppId::new(challenge["app"].as_str().unwrap()).unwrap();
    let transcript = Transcript {
        app: &app,
        origin,
        nonce: &nonce,
        address: &user.address(),
        time: stvor_base::Timestamp::from_millis(challenge["serverTime"].as_u64().unwrap()),
        server_version: challenge["serverVersion"].as_str().unwrap(),
    };
    let signature = user.devices[0].sign(login_label(user.list.suite()), &transcript.encode()).unwrap();
    let upload = json!({
        "nonce": challenge["nonce"],
        "origin": origin,
        "signature": STANDARD.encode(signature),
        "deviceList": STANDARD.encode(&user.list_bytes),
        "deviceListSignature": STANDARD.encode(user.list_signature),
        "replaceOneTime": true,
    });
    let answer = support::post(server.place.address, "/v1/keys", &headers, upload.to_string()).await;
    (upload, answer)
}

async fn production() -> (Server, User, String) {
    let server = Server::memory_with(|config| {
        config.development = false;
        config.open_registration = true;
        config.tokens = vec![TokenConfig { token: TOKEN.into(), app: Some(app().as_str().to_owned()) }];
        config.origins = vec!["wss://relay.example.com".into()];
    })
    .await;
    let bob = User::new("bob");
    server.login(&bob).open().await.upload_set(5, 5).await;
    (server, bob, format!("Bearer {TOKEN}"))
}

#[tokio::test]
async fn keys_over_http_take_the_devices_proof() {
    let (server, bob, bearer) = production().await;
    let (upload, answer) = upload_over_http(&server, &bob, "wss://relay.example.com", &bearer).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["oneTime"]), (200, &json!(0)), "{answer:?}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let replayed = support::post(server.place.address, "/v1/keys", &headers, upload.to_string()).await;
    replayed.problem(Code::AuthFailed);
    let impostor = User::new("bob");
    let (_, answer) = upload_over_http(&server, &impostor, "wss://relay.example.com", &bearer).await;
    answer.problem(Code::UserIdTaken);
    let stranger = User::new("stranger");
    let (_, answer) = upload_over_http(&server, &stranger, "wss://relay.example.com", &bearer).await;
    answer.problem(Code::RecipientNotFound);
}

#[tokio::test]
async fn device_that_an_upload_over_http_leaves_out_is_logged_out() {
    let (server, _, bearer) = production().await;
    let mut carol = User::with_devices(&app(), "carol", 2);
    let mut second = server.login(&carol).device(2).open().await;
    carol.change_devices(&[1], 0);
    let (_, answer) = upload_over_http(&server, &carol, "wss://relay.example.com", &bearer).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(second.end().await.code, Code::LoggedOut);
}

#[tokio::test]
async fn keys_over_http_are_bound_to_the_origin_like_a_login() {
    let (server, bob, bearer) = production().await;
    // What a device signed for a program on its own machine, or for anybody else, opens nothing here.
    for origin in ["ws://localhost:4444", "ws://127.0.0.1:1", "wss://in-the-middle.example"] {
        let (_, answer) = upload_over_http(&server, &bob, origin, &bearer).await;
        answer.problem(Code::OriginMismatch);
    }
}

#[tokio::test]
async fn users_over_http_need_a_token_of_their_app() {
    let (server, bob, bearer) = production().await;
    let ask = async |path: &str, authorization: Option<&str>| {
        let headers: Vec<_> = authorization.map(|value| ("authorization", value)).into_iter().collect();
        request(server.place.address, Method::GET, path, &headers).await
    };
    for path in ["/v1/users/bob", "/v1/users/bob/bundle"] {
        ask(path, None).await.problem(Code::InvalidAppToken);
        ask(path, Some("Bearer stvor_other")).await.problem(Code::InvalidAppToken);
        assert_eq!(ask(path, Some(&bearer)).await.status, 200);
        ask(&path.replace("bob", "nobody"), Some(&bearer)).await.problem(Code::RecipientNotFound);
    }
    let bundle = ask("/v1/users/bob/bundle", Some(&bearer)).await;
    assert_eq!(bundle.json()["deviceList"], STANDARD.encode(&bob.list_bytes));
    let client = server.login(&bob).open().await;
    assert_eq!(client.ready.keys.one_time, 5, "no one-time prekey leaves over HTTP");
}

#[tokio::test]
async fn malformed_http_bodies_are_problems() {
    let (server, _, bearer) = production().await;
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let post =
        async |path, body: &str| support::post(server.place.address, path, &headers, body.to_owned()).await;
    for body in ["", "{", "[]", "{\"user\": \"bob\"}", "{\"user\": \"bob\", \"device\": 1, \"more\": 1}"] {
        post("/v1/challenge", body).await.problem(Code::BadRequest);
    }
    post("/v1/challenge", "{\"user\": \"bob\", \"device\": 0}").await.problem(Code::BadRequest);
    post("/v1/keys", "{}").await.problem(Code::BadRequest);
    post("/v1/keys", &format!("{{\"nonce\": \"{}\"}}", "A".repeat(400 * 1024)))
        .await
        .problem(Code::FrameTooLarge);
}
