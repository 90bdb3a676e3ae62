// The other side of the interoperability tests: parties over npm `libsignal` and over `whatsapp-rust-bridge`, groups over the latter and
// by the rule of Baileys, safety numbers and messages of `@signalapp/libsignal-client`. One JSON command a line in, one JSON answer a line out. Bytes are hex.
import { createInterface } from 'node:readline';

for (const name of ['log', 'info', 'warn', 'error', 'debug', 'trace']) console[name] = () => {}; // They print keys.
const { default: S } = await import('libsignal');
const hex = (bytes) => Buffer.from(bytes).toString('hex');
const bytes = (text) => Buffer.from(text, 'hex');
const parties = new Map();
const REMOTE = new S.ProtocolAddress('remote', 1);

class Party {
  keys = S.keyhelper;
  identity = S.keyhelper.generateIdentityKeyPair();
  registrationId = S.keyhelper.generateRegistrationId();
  record = undefined; // JSON text, so that a failed decrypt leaves what is stored alone.
  prekeys = new Map();
  signed = new Map();
  groups = new Map();
  cipher = new S.SessionCipher(this, REMOTE);

  start(device) {
    return new S.SessionBuilder(this, REMOTE).initOutgoing(device);
  }

  async loadSession() {
    return this.record && S.SessionRecord.deserialize(JSON.parse(this.record));
  }
  async storeSession(_, record) {
    this.record = JSON.stringify(record.serialize());
  }
  async isTrustedIdentity() {
    return true;
  }
  async loadPreKey(id) {
    return this.prekeys.get(id);
  }
  async removePreKey(id) {
    this.prekeys.delete(id);
  }
  async loadSignedPreKey(id) {
    return this.signed.get(id);
  }
  async getOurRegistrationId() {
    return this.registrationId;
  }
  async getOurIdentity() {
    return this.identity;
  }
  async loadSenderKey(name) {
    return this.groups.get(name);
  }
  async storeSenderKey(name, record) {
    this.groups.set(name, record);
  }

  bundle(prekeyId) {
    if (!this.signed.has(1)) {
      this.offered = this.keys.generateSignedPreKey(this.identity, 1);
      this.signed.set(1, this.offered.keyPair);
    }
    const { keyPair, signature } = this.offered;
    const bundle = {
      registrationId: this.registrationId,
      identity: hex(this.identity.pubKey),
      signedId: 1,
      signed: hex(keyPair.pubKey),
      signature: hex(signature),
    };
    if (prekeyId === null) return bundle;
    const prekey = this.keys.generatePreKey(prekeyId);
    this.prekeys.set(prekeyId, prekey.keyPair);
    return { ...bundle, prekeyId, prekey: hex(prekey.keyPair.pubKey) };
  }
}

let bridge;
const groups = async () => (bridge ??= await import('whatsapp-rust-bridge'));

/** The same over `whatsapp-rust-bridge`, which keeps records as bytes and wants signed prekeys whole. */
class Bridged extends Party {
  constructor(W) {
    super();
    this.W = this.keys = W;
    this.identity = W.generateIdentityKeyPair();
    this.remote = new W.ProtocolAddress('remote', 1);
    this.cipher = new W.SessionCipher(this, this.remote);
  }

  async loadSession() {
    return this.record && bytes(this.record);
  }
  async storeSession(_, record) {
    this.record = hex(record.serialize());
  }
  async loadSignedPreKey(id) {
    return this.offered?.keyId === id ? this.offered : undefined;
  }
  start(device) {
    return new this.W.SessionBuilder(this, this.remote).processPreKeyBundle(device);
  }
}

const PROTO = `syntax = "proto2";
message Sent { optional uint32 id = 1; optional uint32 iteration = 2; optional bytes ciphertext = 3; }
message Key { optional uint32 id = 1; optional uint32 iteration = 2; optional bytes chainKey = 3; optional bytes signingKey = 4; }`;

/**
 * One sender's keys as Baileys keeps them, over npm libsignal's curve and crypto. It asks for the key of number 0 and from then on for that of the chain's
 * number plus one, so it sends on even numbers only.
 */
class Skipping {
  stored = new Map();

  constructor(types, { id, iteration, chainKey, signingKey, privateKey }) {
    Object.assign(this, { types, id, iteration, chainKey, signingKey, privateKey });
  }

  /** The cipher key and vector of a number. */
  #keys(number) {
    if (number - this.iteration > 2_000) throw new Error('too far ahead');
    const derive = (byte) => S.crypto.calculateMAC(this.chainKey, Buffer.from([byte]));
    for (; this.iteration <= number; this.iteration += 1) {
      this.stored.set(this.iteration, derive(1));
      this.chainKey = derive(2);
    }
    const seed = this.stored.get(number);
    if (seed === undefined) throw new Error('used already');
    this.stored.delete(number);
    const [first, second] = S.crypto.deriveSecrets(seed, Buffer.alloc(32), Buffer.from('WhisperGroup'));
    return { iv: first.subarray(0, 16), key: Buffer.concat([first.subarray(16), second.subarray(0, 16)]) };
  }

  distribution() {
    const { id, iteration, chainKey, signingKey } = this;
    return Buffer.concat([Buffer.from([0x33]), this.types.lookupType('Key').encode({ id, iteration, chainKey, signingKey }).finish()]);
  }

  encrypt(text) {
    const number = this.iteration === 0 ? 0 : this.iteration + 1;
    const { key, iv } = this.#keys(number);
    const fields = this.types.lookupType('Sent').encode({ id: this.id, iteration: number, ciphertext: S.crypto.encrypt(key, text, iv) }).finish();
    const signed = Buffer.concat([Buffer.from([0x33]), fields]);
    return { number, body: hex(Buffer.concat([signed, S.curve.calculateSignature(this.privateKey, signed)])) };
  }

  decrypt(body) {
    const signed = body.subarray(0, -64);
    if (!S.curve.verifySignature(this.signingKey, signed, body.subarray(-64))) throw new Error('the signature is wrong');
    const { iteration, ciphertext } = this.types.lookupType('Sent').decode(signed.subarray(1));
    const { key, iv } = this.#keys(iteration);
    return S.crypto.decrypt(key, Buffer.from(ciphertext), iv);
  }
}

const commands = {
  party: async ({ id, over }) => {
    parties.set(id, over === 'bridge' ? new Bridged(await groups()) : new Party());
    const { identity, registrationId } = parties.get(id);
    return { identity: hex(identity.pubKey), private: hex(identity.privKey), registrationId };
  },
  bundle: ({ id, prekey }) => parties.get(id).bundle(prekey),
  start: async ({ id, bundle }) => {
    const device = {
      registrationId: bundle.registrationId,
      identityKey: bytes(bundle.identity),
      signedPreKey: { keyId: bundle.signedId, publicKey: bytes(bundle.signed), signature: bytes(bundle.signature) },
    };
    if (bundle.prekey) device.preKey = { keyId: bundle.prekeyId, publicKey: bytes(bundle.prekey) };
    await parties.get(id).start(device);
    return {};
  },
  encrypt: async ({ id, text }) => {
    const { type, body } = await parties.get(id).cipher.encrypt(bytes(text));
    return { type, body: hex(body) };
  },
  decrypt: async ({ id, type, body }) => {
    const { cipher } = parties.get(id);
    const read = type === 3 ? cipher.decryptPreKeyWhisperMessage(bytes(body)) : cipher.decryptWhisperMessage(bytes(body));
    return { text: hex(await read) };
  },
  export: ({ id }) => ({ record: parties.get(id).record }),
  import: ({ id, record }) => {
    parties.get(id).record = record;
    return {};
  },
  sign: ({ id, message }) => ({ signature: hex(S.curve.calculateSignature(parties.get(id).identity.privKey, bytes(message))) }),
  verify: ({ key, message, signature }) => {
    try {
      const verdict = S.curve.verifySignature(bytes(key), bytes(message), bytes(signature));
      return { valid: verdict !== false };
    } catch {
      return { valid: false };
    }
  },
  agree: ({ id, key }) => ({ secret: hex(S.curve.calculateAgreement(bytes(key), parties.get(id).identity.privKey)) }),
  // What the reference's decoder makes of fields, absent ones as null.
  decode: async ({ kind, fields }) => {
    const { default: protobufs } = await import('libsignal/src/protobufs.js');
    const read = protobufs[kind].decode(bytes(fields));
    const own = (name) => (Object.hasOwn(read, name) ? (typeof read[name] === 'number' ? read[name] : hex(read[name])) : null);
    return Object.fromEntries(
      ['ephemeralKey', 'counter', 'previousCounter', 'ciphertext', 'preKeyId', 'baseKey', 'identityKey', 'message', 'registrationId', 'signedPreKeyId']
        .map((name) => [name, own(name)]),
    );
  },
  groupCreate: async ({ id, name }) => {
    const { GroupSessionBuilder, SenderKeyName, ProtocolAddress } = await groups();
    const sender = new SenderKeyName(name, new ProtocolAddress('sender', 1));
    return { distribution: hex((await new GroupSessionBuilder(parties.get(id)).create(sender)).serialize()) };
  },
  groupProcess: async ({ id, name, distribution }) => {
    const { GroupSessionBuilder, SenderKeyDistributionMessage, SenderKeyName, ProtocolAddress } = await groups();
    const sender = new SenderKeyName(name, new ProtocolAddress('sender', 1));
    await new GroupSessionBuilder(parties.get(id)).process(sender, SenderKeyDistributionMessage.deserialize(bytes(distribution)));
    return {};
  },
  groupEncrypt: async ({ id, name, text }) => {
    const { GroupCipher, ProtocolAddress } = await groups();
    return { body: hex(await new GroupCipher(parties.get(id), name, new ProtocolAddress('sender', 1)).encrypt(bytes(text))) };
  },
  groupDecrypt: async ({ id, name, body }) => {
    const { GroupCipher, ProtocolAddress } = await groups();
    return { text: hex(await new GroupCipher(parties.get(id), name, new ProtocolAddress('sender', 1)).decrypt(bytes(body))) };
  },
  skippingCreate: async ({ name }) => {
    const { default: protobuf } = await import('protobufjs');
    const { pubKey, privKey } = S.curve.generateKeyPair();
    const chainKey = S.crypto.calculateMAC(privKey, Buffer.from('a chain key of a test'));
    const sender = new Skipping(protobuf.parse(PROTO).root, { id: 7, iteration: 0, chainKey, signingKey: pubKey, privateKey: privKey });
    parties.set(name, sender);
    return { distribution: hex(sender.distribution()) };
  },
  skippingProcess: async ({ name, distribution }) => {
    const { default: protobuf } = await import('protobufjs');
    const { root } = protobuf.parse(PROTO);
    const { id, iteration, chainKey, signingKey } = root.lookupType('Key').decode(bytes(distribution).subarray(1));
    parties.set(name, new Skipping(root, { id, iteration, chainKey: Buffer.from(chainKey), signingKey: Buffer.from(signingKey) }));
    return {};
  },
  skippingEncrypt: ({ name, text }) => parties.get(name).encrypt(bytes(text)),
  skippingDecrypt: ({ name, body }) => ({ text: hex(parties.get(name).decrypt(bytes(body))) }),
  // What the official client writes: PQXDH and version 4 in sessions, its own fields in groups.
  official: async () => {
    const L = await import('@signalapp/libsignal-client');
    const table = (Base, [save, get, last]) => {
      const made = new (class extends Base {
        rows = new Map();
      })();
      made[save] = async (id, record) => void made.rows.set(String(id), record);
      made[get] = async (id) => made.rows.get(String(id)) ?? null;
      if (last) made[last] = async () => {};
      return made;
    };
    const party = (name) => {
      const own = L.PrivateKey.generate();
      const identities = new (class extends L.IdentityKeyStore {
        getIdentityKey = async () => own;
        getLocalRegistrationId = async () => 5;
        saveIdentity = async () => L.IdentityChange?.NewOrUnchanged ?? 0;
        isTrustedIdentity = async () => true;
        getIdentity = async () => null;
      })();
      return {
        own,
        address: L.ProtocolAddress.new(name, 1),
        identities,
        sessions: table(L.SessionStore, ['saveSession', 'getSession', 'getExistingSessions']),
        prekeys: table(L.PreKeyStore, ['savePreKey', 'getPreKey', 'removePreKey']),
        signed: table(L.SignedPreKeyStore, ['saveSignedPreKey', 'getSignedPreKey']),
        kyber: table(L.KyberPreKeyStore, ['saveKyberPreKey', 'getKyberPreKey', 'markKyberPreKeyUsed']),
      };
    };
    const [alice, bob] = ['alice', 'bob'].map(party);
    const [one, signed, kyber] = [L.PrivateKey.generate(), L.PrivateKey.generate(), L.KEMKeyPair.generate()];
    const signature = bob.own.sign(signed.getPublicKey().serialize());
    const kyberSignature = bob.own.sign(kyber.getPublicKey().serialize());
    await bob.prekeys.savePreKey(1, L.PreKeyRecord.new(1, one.getPublicKey(), one));
    await bob.signed.saveSignedPreKey(2, L.SignedPreKeyRecord.new(2, Date.now(), signed.getPublicKey(), signed, signature));
    await bob.kyber.saveKyberPreKey(3, L.KyberPreKeyRecord.new(3, Date.now(), kyber, kyberSignature));
    const bundle = L.PreKeyBundle.new(
      5, 1, 1, one.getPublicKey(), 2, signed.getPublicKey(), signature, bob.own.getPublicKey(), 3, kyber.getPublicKey(), kyberSignature,
    );
    const { processPreKeyBundle, signalEncrypt, signalDecryptPreKey } = L;
    await processPreKeyBundle(bundle, bob.address, alice.address, alice.sessions, alice.identities);
    const first = await signalEncrypt(Buffer.from('hello'), bob.address, alice.address, alice.sessions, alice.identities);
    const prekey = L.PreKeySignalMessage.deserialize(first.serialize());
    await signalDecryptPreKey(prekey, alice.address, bob.address, bob.sessions, bob.identities, bob.prekeys, bob.signed, bob.kyber);
    const later = await signalEncrypt(Buffer.from('answer'), alice.address, bob.address, bob.sessions, bob.identities);
    const keys = new (class extends L.SenderKeyStore {
      saveSenderKey = async (sender, distribution, record) => void (this.kept = record);
      getSenderKey = async () => this.kept ?? null;
    })();
    const id = '01234567-89ab-4def-8123-456789abcdef';
    const distribution = await L.SenderKeyDistributionMessage.create(alice.address, id, keys);
    const toGroup = await L.groupEncrypt(alice.address, id, keys, Buffer.from('to all'));
    return Object.fromEntries(
      Object.entries({ first, later, distribution, toGroup }).map(([name, message]) => [name, hex(message.serialize())]),
    );
  },
  fingerprint: async ({ own, ownKey, peer, peerKey }) => {
    const { Fingerprint, PublicKey } = await import('@signalapp/libsignal-client');
    const key = (text) => PublicKey.deserialize(bytes(text));
    const made = Fingerprint.new(5200, 2, Buffer.from(own), key(ownKey), Buffer.from(peer), key(peerKey));
    return { digits: made.displayableFingerprint().toString(), scannable: hex(made.scannableFingerprint().toBuffer()) };
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  let answer;
  try {
    answer = await commands[command.op](command);
  } catch (thrown) {
    answer = { error: `${thrown?.name ?? 'Error'}: ${thrown?.message ?? thrown}` };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
