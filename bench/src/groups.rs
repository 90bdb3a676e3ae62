//! A message to a group of 1,000, beside Megolm, and what making such a group takes.

use std::hint::black_box;
use std::time::Duration;

use stvor_base::{Address, AppId, GroupId, KeyBytes, UserId};
use stvor_crypto::{SecretBytes, SystemRandom};
use stvor_protocol::group::limits::{MAX_CHANGE_MEMBERS, MAX_MEMBERS};
use stvor_protocol::group::{
    Action, Group, GroupContent, GroupEncrypted, GroupIncoming, Introduction, Member, PeerChain,
    SignedChangeIn,
};
use stvor_protocol::{Plaintext, Records};
use vodozemac::megolm::{GroupSession, InboundGroupSession, SessionConfig};

use crate::Outcome;
use crate::micro::{BODY, microseconds, must};
use crate::ours::{Device, NOW, app, context, text};
use crate::report::{Row, Summary};
use crate::timing::{Contender, race};

/// Who writes, with a group.
struct Writer {
    device: Device,
    group: Group,
    changes: Vec<SignedChangeIn>,
    rng: SystemRandom,
}

impl Writer {
    /// A group of so many, `reader` among them. The keys of the others are the reader's: nobody writes to them here.
    fn with(members: usize, reader: &Device) -> Outcome<Self> {
        let mut rng = SystemRandom::new();
        let mut device = Device::new("alice@example.com")?;
        let (mut group, made) = Group::create(&device.identity, "everybody", NOW, &mut rng)?;
        device.commit(made.effects);
        let mut changes = vec![made.change];
        let mut others =
            vec![Member { user: reader.identity.user().clone(), key: *reader.identity.user_key() }];
        for number in 2..members {
            let user = UserId::new(&format!("member-{number:04}"))?;
            others.push(Member { user, key: *reader.identity.user_key() });
        }
        others.sort_by(|a, b| a.user.cmp(&b.user));
        for some in others.chunks(MAX_CHANGE_MEMBERS) {
            let (made, _) = group.change(&device.identity, (Action::Add(some.to_vec()), NOW), &mut rng)?;
            device.commit(made.effects);
            changes.push(made.change);
        }
        Ok(Self { device, group, changes, rng })
    }

    fn encrypt(&mut self, message: &Plaintext) -> Outcome<GroupEncrypted> {
        Ok(self.group.encrypt(&context(&self.device.identity), message, &mut self.rng)?)
    }
}

/// Whose chain it is, and their user key.
type Sender = (Address, KeyBytes);

fn sender(device: &Device) -> Sender {
    (device.address().clone(), *device.identity.user_key())
}

/// Who reads, from rows as the SDK does.
struct Reader {
    device: Device,
    app: AppId,
}

impl Reader {
    fn accept(&mut self, (sender, user_key): &Sender, key: &SecretBytes) -> Outcome<()> {
        let GroupContent::SenderKey(key) = GroupContent::decode(self.device.identity.suite(), key)? else {
            return Err("no sender key".into());
        };
        let introduction = Introduction { sender, user_key };
        let records = self.device.load(&introduction.needs(&key));
        let effects = introduction.accept(&key, &records)?;
        self.device.commit(effects);
        Ok(())
    }

    fn decrypt(&mut self, from: &Address, blob: &[u8]) -> Outcome<Plaintext> {
        let incoming = GroupIncoming::parse(blob)?;
        let records = self.device.load(&PeerChain::keys(from, incoming.chain()));
        let chain = PeerChain::load(from, incoming.chain(), &records)?.ok_or("no chain")?;
        let received = chain.open(&self.app, &incoming, (&Records::new(), NOW))?;
        self.device.commit(received.effects);
        Ok(received.plaintext)
    }
}

fn join(device: &Device, changes: &[SignedChangeIn], id: GroupId) -> Outcome<Group> {
    let mut group = Group::join(&device.identity, id);
    for change in changes {
        drop(black_box(group.apply(change.clone().validate(&app()?)?)?));
    }
    Ok(group)
}

/// Runs them all, each for about `budget`.
///
/// # Errors
/// When a party refuses what it should accept.
pub fn run(budget: Duration, summary: &mut Summary) -> Outcome<()> {
    let message = text(&BODY);
    let mut reader = Reader { device: Device::new("bob@example.com")?, app: app()? };
    let mut writer = Writer::with(MAX_MEMBERS, &reader.device)?;
    let mut few = Writer::with(10, &reader.device)?;
    let first = writer.encrypt(&message)?;
    let (key, lacking) = first.introduction.ok_or("the first message has no sender key")?;
    if lacking.len() != MAX_MEMBERS - 1 {
        return Err(format!("{} members lack the key", lacking.len()).into());
    }
    let from = sender(&writer.device);
    reader.accept(&from, &key)?;
    reader.decrypt(&from.0, &first.blob)?;

    // Megolm has no membership: who has the key reads.
    let mut megolm = GroupSession::new(SessionConfig::version_1());
    let mut megolm_writer = GroupSession::new(SessionConfig::version_1());
    let mut megolm_reader =
        InboundGroupSession::new(&megolm_writer.session_key(), SessionConfig::version_1());
    let (changes, id) = (writer.changes.clone(), writer.group.id());
    let joiner = Device::new("bob@example.com")?;

    let mut source = Writer::with(MAX_MEMBERS, &reader.device)?;
    let from = sender(&source.device);
    let contenders = vec![
        Contender::new("ours encrypt", || drop(black_box(must(writer.encrypt(&message))))),
        Contender::new("ours encrypt, of 10", || drop(black_box(must(few.encrypt(&message))))),
        Contender::new("megolm encrypt", || drop(black_box(megolm.encrypt(BODY)))),
        Contender::prepared(
            "ours decrypt",
            || {
                let sealed = must(source.encrypt(&message));
                (sealed.introduction.map(|(key, _)| key), sealed.blob)
            },
            |(key, blob)| {
                // A chain begins anew after 10,000 messages.
                if let Some(key) = key {
                    must(reader.accept(&from, &key));
                }
                drop(black_box(must(reader.decrypt(&from.0, &blob))));
            },
        ),
        Contender::prepared(
            "megolm decrypt",
            || megolm_writer.encrypt(BODY),
            |sealed| drop(black_box(must(megolm_reader.decrypt(&sealed).map_err(Into::into)))),
        ),
        Contender::new("join", || drop(black_box(must(join(&joiner, &changes, id))))),
    ];
    let times = race(budget, contenders);
    let of = |name: &str| microseconds(&times, name);
    summary.push(
        Row::new("group of 1,000: encrypt, 100 B, one blob for all", "us", of("ours encrypt")?)
            .peer("vodozemac Megolm", of("megolm encrypt")?),
    );
    summary.push(Row::new("  the same in a group of 10", "us", of("ours encrypt, of 10")?));
    summary.push(
        Row::new("  decrypt, from its row", "us", of("ours decrypt")?)
            .peer("vodozemac Megolm", of("megolm decrypt")?),
    );
    summary.push(Row::new("  checking all that made it, at its newest member", "ms", of("join")? / 1_000.0));
    summary.note(
        "a group's message is signed with ECDSA P-256 under a key that the chain brought, Megolm's with Ed25519; a new chain costs one \
         message in the session with each member",
    );
    Ok(())
}
