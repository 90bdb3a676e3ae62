//! Three people in a group: who joins late reads nothing of before, who is put out nothing of after.
//!
//! `cargo run -p stvor --example group` starts a relay of its own and needs nothing else.

use std::time::Duration;

use stvor::{App, Client, Event};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let relay = stvor_relay::Relay::start(stvor_relay::Config::mock(0)).await?;
    let app = App::builder().app_token("stvor_dev_test123").relay_url(relay.url()).in_memory().open().await?;
    let alice = app.connect("alice").await?;
    let bob = app.connect("bob").await?;
    let carol = app.connect("carol").await?;
    let mut told = carol.events();

    let group = alice.create_group("hikers", ["bob"]).await?;
    let hello = group.send("Only Bob reads this.").await?;
    println!("bob reads:    {}", next(&bob).await?);

    group.add(["carol"]).await?;
    while !matches!(told.next().await, Some(Event::GroupJoined { .. })) {}
    group.send("Welcome, Carol!").await?;
    println!("bob reads:    {}", next(&bob).await?);
    println!("carol reads:  {}", next(&carol).await?);

    // Every member may do what the founder may; here Bob puts Carol out.
    let at_bob = bob.group(group.id()).await?;
    at_bob.remove("carol").await?;
    while !matches!(told.next().await, Some(Event::GroupLeft { .. })) {}
    at_bob.send("Just the two of us.").await?;
    println!("alice reads:  {}", next(&alice).await?);

    while group.receipts(hello).await?.is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for receipt in group.receipts(hello).await? {
        println!("{} has the first message: {}", receipt.user, receipt.state.name());
    }
    let page = group.history().containing("carol").load().await?;
    println!("{} message(s) name Carol", page.messages.len());
    for info in alice.groups().await? {
        println!("{}: {:?}", info.name, info.members.iter().map(ToString::to_string).collect::<Vec<_>>());
    }
    app.close().await?;
    relay.shutdown().await;
    Ok(())
}

async fn next(client: &Client) -> Result<String, Box<dyn std::error::Error>> {
    let message = client.messages().next().await.ok_or("the client was closed")?;
    Ok(message.text().unwrap_or_default().to_owned())
}
