// Parties over any implementation of libsignal-node's API, and the reference beside ours.
import { createRequire } from 'node:module';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';

const require = createRequire(join(process.env.STVOR_TEST_PROJECT, 'package.json'));
export const ours = require('@stvor/libsignal');
export const group = require('@stvor/libsignal/group');
export { require };

/** The package of the native half. */
export const nativeName = () => {
  const [name] = readdirSync(join(process.env.STVOR_TEST_PROJECT, 'node_modules/@stvor')).filter((one) => one.startsWith('libsignal-'));
  return `@stvor/${name}`;
};

/** The native half as it was loaded. */
export const native = () => require(nativeName());

/** Without a word: the reference prints keys. */
export const quiet = (act) => {
  const { log, info, warn, error } = console;
  console.log = console.info = console.warn = console.error = () => {};
  const back = () => Object.assign(console, { log, info, warn, error });
  return Promise.resolve().then(act).finally(back);
};

const peers = process.env.STVOR_PEERS;
export const hasPeers = peers !== undefined && existsSync(join(peers, 'node_modules/libsignal'));
if (!hasPeers && process.env.CI === 'true') throw new Error('the npm peers are missing: ./x setup-peers');
export const withPeers = hasPeers ? {} : { skip: 'the npm peers are not installed: ./x setup-peers' };
export const peerRequire = hasPeers ? createRequire(join(peers, 'package.json')) : undefined;
export const reference = hasPeers ? createRequire(join(peers, 'package.json'))('libsignal') : undefined;

/** A party: libsignal-node's storage in memory. Records go through JSON, as in applications. */
export function party(S, { json = true } = {}) {
  const identity = S.keyhelper.generateIdentityKeyPair();
  const registrationId = S.keyhelper.generateRegistrationId();
  const [sessions, prekeys, signed, senderKeys] = [new Map(), new Map(), new Map(), new Map()];
  return {
    S, identity, registrationId, sessions, prekeys, signed, senderKeys,
    pinned: new Map(),
    async loadSession(address) {
      const stored = sessions.get(address);
      return stored === undefined || !json ? stored : S.SessionRecord.deserialize(JSON.parse(stored));
    },
    async storeSession(address, record) {
      sessions.set(address, json ? JSON.stringify(record.serialize()) : record);
    },
    async isTrustedIdentity(name, key) {
      const known = this.pinned.get(name);
      if (known === undefined) this.pinned.set(name, Buffer.from(key)); // As many applications do it: pins when asked.
      return known === undefined || known.equals(key);
    },
    async loadPreKey(id) {
      return prekeys.get(id);
    },
    async removePreKey(id) {
      prekeys.delete(id);
    },
    async loadSignedPreKey(id) {
      return signed.get(id);
    },
    async getOurRegistrationId() {
      return registrationId;
    },
    async getOurIdentity() {
      return identity;
    },
    async loadSenderKey(name) {
      const stored = senderKeys.get(name.toString());
      return stored && group.SenderKeyRecord.deserialize(stored);
    },
    async storeSenderKey(name, record) {
      senderKeys.set(name.toString(), Buffer.from(JSON.stringify(record.serialize())));
    },
    bundle(prekeyId, signedId = 1) {
      const made = S.keyhelper.generateSignedPreKey(identity, signedId);
      signed.set(signedId, made.keyPair);
      const bundle = {
        registrationId,
        identityKey: identity.pubKey,
        signedPreKey: { keyId: signedId, publicKey: made.keyPair.pubKey, signature: made.signature },
      };
      if (prekeyId === undefined) return bundle;
      const prekey = S.keyhelper.generatePreKey(prekeyId);
      prekeys.set(prekeyId, prekey.keyPair);
      return { ...bundle, preKey: { keyId: prekeyId, publicKey: prekey.keyPair.pubKey } };
    },
  };
}

/** A party whose storage is made over an adapter. */
export async function deviceOver(rows, options) {
  const storage = ours.createStorage(rows, options);
  const identity = ours.keyhelper.generateIdentityKeyPair();
  await storage.setIdentity(identity, 9);
  const signed = ours.keyhelper.generateSignedPreKey(identity, 1);
  await storage.storeSignedPreKey(1, signed.keyPair);
  const bundle = async (id) => {
    const one = ours.keyhelper.generatePreKey(id);
    await storage.storePreKey(id, one.keyPair);
    return {
      registrationId: 9, identityKey: identity.pubKey,
      signedPreKey: { keyId: 1, publicKey: signed.keyPair.pubKey, signature: signed.signature },
      preKey: { keyId: id, publicKey: one.keyPair.pubKey },
    };
  };
  return { storage, identity, bundle };
}

let couples = 0;

/** Two parties with each other's addresses, ciphers and a way to read. */
export function couple(S, options = {}) {
  const [alice, bob] = [party(S, options), party(options.bob ?? S, options)];
  // Addresses of their own: the reference has one queue an address for all of the process, and what hangs there hangs.
  const number = options.names ? '' : (couples += 1);
  const at = { alice: [`alice${number}`, 1], bob: [`bob${number}`, 1] };
  const cipher = (who, whom) => new who.S.SessionCipher(who, new who.S.ProtocolAddress(...at[whom]), who.options);
  const [toBob, toAlice] = [cipher(alice, 'bob'), cipher(bob, 'alice')];
  return {
    alice, bob, toBob, toAlice, at,
    start: (bundle) => new S.SessionBuilder(alice, new S.ProtocolAddress(...at.bob)).initOutgoing(bundle),
    startBack: (bundle) => new bob.S.SessionBuilder(bob, new bob.S.ProtocolAddress(...at.alice)).initOutgoing(bundle),
    async turn(text = 'turn') {
      const to = await read(toAlice, await toBob.encrypt(Buffer.from(text)));
      const back = await read(toBob, await toAlice.encrypt(Buffer.from(text)));
      return `${to} ${back}`;
    },
  };
}

/** Decrypts, whichever type. */
export async function read(cipher, { type, body }) {
  const plaintext = await (type === 3 ? cipher.decryptPreKeyWhisperMessage(body) : cipher.decryptWhisperMessage(body));
  return Buffer.from(plaintext).toString();
}

/** What a promise was rejected with. */
export const refused = (promise) => promise.then((value) => Promise.reject(new Error(`it gave ${value}`)), (error) => error);
