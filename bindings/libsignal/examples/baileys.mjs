// The flow of a WhatsApp-shaped client: a first message from a server's bundle, a message that comes again, a retry with a fresh bundle,
// the distribution of a sender key inside a session, group messages, and a peer that moves from its phone number to a LID.
// Run it: node baileys.mjs
import { createStorage, keyhelper, ProtocolAddress, SessionBuilder, SessionCipher } from '@stvor/libsignal';
import { GroupCipher, GroupSessionBuilder, SenderKeyDistributionMessage, SenderKeyName } from '@stvor/libsignal/group';

/** Rows in memory. What writes goes one after the other: peers are worked for at the same time, and no write may fall into the transaction of another. */
function memory() {
  let rows = new Map();
  const over = (map) => ({ get: (key) => map.get(key), set: (key, value) => void map.set(key, value), delete: (key) => void map.delete(key) });
  let last = Promise.resolve();
  const transaction = (work) => {
    const mine = last.then(async () => {
      const copy = new Map(rows);
      const result = await work(over(copy));
      rows = copy;
      return result;
    });
    last = mine.catch(() => {});
    return mine;
  };
  return {
    get: (key) => rows.get(key),
    set: (key, value) => transaction((within) => within.set(key, value)),
    delete: (key) => transaction((within) => within.delete(key)),
    transaction,
  };
}

/** A device with its storage. A real one keeps its rows in a database, with its transactions. */
async function device(name) {
  const storage = createStorage(memory(), { requireAtomicSessionAndPreKey: true });
  const identity = keyhelper.generateIdentityKeyPair();
  const registrationId = keyhelper.generateRegistrationId();
  await storage.setIdentity(identity, registrationId);
  const signed = keyhelper.generateSignedPreKey(identity, 1);
  await storage.storeSignedPreKey(1, signed.keyPair);
  let next = 0;
  return {
    name, storage,
    /** What the server hands out about this device. */
    async bundle() {
      const prekey = keyhelper.generatePreKey(next++);
      await storage.storePreKey(prekey.keyId, prekey.keyPair);
      return {
        registrationId, identityKey: identity.pubKey,
        signedPreKey: { keyId: 1, publicKey: signed.keyPair.pubKey, signature: signed.signature },
        preKey: { keyId: prekey.keyId, publicKey: prekey.keyPair.pubKey },
      };
    },
    cipher: (peer) => new SessionCipher(storage, new ProtocolAddress(peer, 0)),
    inject: (peer, bundle) => new SessionBuilder(storage, new ProtocolAddress(peer, 0)).initOutgoing(bundle),
  };
}

const open = ({ storage }, peer, { type, body }) => {
  const cipher = new SessionCipher(storage, new ProtocolAddress(peer, 0));
  return type === 3 ? cipher.decryptPreKeyWhisperMessage(body) : cipher.decryptWhisperMessage(body);
};

const [bot, phone, other] = [await device('bot'), await device('491701234567'), await device('491707654321')];

await bot.inject(phone.name, await phone.bundle());
const first = await bot.cipher(phone.name).encrypt(Buffer.from('hello'));
console.log('phone reads:', String(await open(phone, bot.name, first)));

// The server delivers it again: told as such, nothing is lost.
const again = await open(phone, bot.name, first).catch((error) => error.code);
console.log('the same again:', again);

const answer = await phone.cipher(bot.name).encrypt(Buffer.from('hi'));
console.log('bot reads:', String(await open(bot, phone.name, answer)));

// The phone asks for a retry with a fresh bundle. What was under way on the session before is still read.
const late = await phone.cipher(bot.name).encrypt(Buffer.from('sent before the retry'));
await bot.inject(phone.name, await phone.bundle());
const retried = await bot.cipher(phone.name).encrypt(Buffer.from('hello once more'));
console.log('phone reads:', String(await open(phone, bot.name, retried)));
console.log('bot reads:', String(await open(bot, phone.name, late)));

// The group: the sender key travels in the session, its messages beside it.
const group = new SenderKeyName('1203630@g.us', { id: bot.name, deviceId: 0 });
const distribution = await new GroupSessionBuilder(bot.storage).create(group);
const carried = await bot.cipher(phone.name).encrypt(distribution.serialize());
const received = new SenderKeyDistributionMessage(null, null, null, null, await open(phone, bot.name, carried));
await new GroupSessionBuilder(phone.storage).process(group, received);
const toAll = await new GroupCipher(bot.storage, group).encrypt(Buffer.from('to all'));
console.log('phone reads in the group:', String(await new GroupCipher(phone.storage, group).decrypt(toAll)));

// To two at once, while new prekeys are stored: every write is kept, so no key is used twice.
await bot.inject(other.name, await other.bundle());
for (const text of ['one', 'two']) {
  const [toPhone, toOther, bundle] = await Promise.all([bot.cipher(phone.name).encrypt(Buffer.from(text)), bot.cipher(other.name).encrypt(Buffer.from(text)), bot.bundle()]);
  console.log('both read:', String(await open(phone, bot.name, toPhone)), String(await open(other, bot.name, toOther)));
  console.log('prekey', bundle.preKey.keyId, 'is stored:', (await bot.storage.loadPreKey(bundle.preKey.keyId)) !== undefined);
}

// The phone is known by its LID from here on: its session moves along.
console.log('moved:', await bot.storage.migrateSession(`${phone.name}.0`, '81230_1.0'));
const moved = await bot.cipher('81230_1').encrypt(Buffer.from('to the LID'));
console.log('phone reads:', String(await open(phone, bot.name, moved)));
