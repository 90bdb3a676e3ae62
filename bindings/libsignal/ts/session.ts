/** Sessions: starting, encrypting, decrypting. */

import { addressOf, type ProtocolAddress } from './address.js';
import type { KeyPair } from './curve.js';
import { asked, bytesOf, failureOf, guarded, invalid, type SignalError, StorageError, UntrustedIdentityKeyError } from './errors.js';
import { type Again, defaultExecutor, type Executor, type Side, type Turn } from './executor.js';
import { decrypt, encrypt } from './hot.js';
import { idOf, publicKeyOf } from './keys.js';
import { native, type Opened } from './native.js';
import { noSession, recordOf, SessionRecord } from './record.js';
import { ERASE, type SignalStorage } from './storage.js';

/** What a session starts from, as a server hands it out. */
export interface Device {
  registrationId: number;
  identityKey: Uint8Array;
  signedPreKey: { keyId: number; publicKey: Uint8Array; signature: Uint8Array };
  preKey?: { keyId: number; publicKey: Uint8Array };
}

/** As projects on libsignal-node call it. */
export type E2ESession = Device;

/** A message to send. */
export interface CiphertextMessage {
  /** 3 with the handshake, until the peer answered; 1 after. */
  type: number;
  body: Buffer;
  /** The peer's registration id. */
  registrationId: number;
}

/** Options of builders and ciphers. */
export interface SessionOptions {
  /** Who keeps order. Default one for all of the process. */
  executor?: Executor;
  /** Refuses to work on a storage that can not store a session and remove a prekey in one transaction. Default false. */
  requireAtomicSessionAndPreKey?: boolean;
}

const NONE = Buffer.alloc(0);
/** What every session of this protocol has weaker than our own profiles. */
const SESSION = Object.freeze(['no-post-quantum', 'short-mac']);
/** Who we are, packed, by identity, with the registration id that it was packed with. */
const packedIdentities = new WeakMap<object, { registrationId: number; own: Buffer }>();
/** The same by the storage that was asked: two of them may share an identity. */
const askedIdentities = new WeakMap<object, { identity: KeyPair; own: Buffer }>();

/** Who we are, as the native half wants it. */
function packed({ identity, registrationId }: Own): Buffer {
  const known = packedIdentities.get(identity);
  if (known !== undefined && known.registrationId === registrationId) return known.own;
  const id = Buffer.alloc(4);
  id.writeUInt32BE(registrationId >>> 0, 0);
  const own = Buffer.concat([publicKeyOf(identity.pubKey, 'our public key'), bytesOf(identity.privKey, 'our private key'), id]);
  packedIdentities.set(identity, { registrationId, own });
  return own;
}

/** What is stored with a record. */
interface With {
  /** What counts if storing is given up; the record itself if absent. */
  fallback?: SessionRecord;
  /** What counts if it is refused; null for no record. */
  refused?: SessionRecord | null;
  identity?: Buffer;
  removePreKey?: number;
}

/** @internal What builders and ciphers share. */
class Peer {
  readonly storage: SignalStorage;
  readonly address: ProtocolAddress;
  readonly key: string;
  readonly executor: Executor;

  constructor(storage: SignalStorage, address: unknown, options: SessionOptions = {}) {
    if (typeof storage !== 'object' || storage === null) throw invalid('storage is an object');
    this.storage = storage;
    this.address = addressOf(address);
    this.key = this.address.toString();
    this.executor = options.executor ?? defaultExecutor;
    if (typeof this.executor?.run !== 'function') throw invalid('executor is an Executor');
    const atomic = typeof storage.commit === 'function' || typeof storage.storeSessionAndRemovePreKey === 'function';
    if (options.requireAtomicSessionAndPreKey && !atomic) {
      throw new StorageError('the storage has neither commit nor storeSessionAndRemovePreKey, and one is asked for', {
        code: 'STORAGE_NOT_ATOMIC',
      });
    }
  }

  run<T>(work: (turn: Turn) => Promise<T>): Promise<T> {
    const { storage, key, executor } = this;
    if (storage.canonicalAddress === undefined) return executor.run(storage, key, work);
    // Asked each time: a storage may learn that two addresses are one.
    const order = storage.canonicalAddress(key);
    if (typeof order === 'string') return executor.run(storage, canonical(order), work);
    return Promise.resolve(order).then((given) => executor.run(storage, canonical(given), work));
  }

  /** Asks for the record, for `record` to read. */
  askRecord(turn: Turn): unknown {
    return this.executor.read(turn, 'record', () => this.storage.loadSession(this.key));
  }

  record(given: unknown): SessionRecord | undefined {
    const record = given instanceof SessionRecord ? given : guarded(() => recordOf(given));
    // Also of records that were made elsewhere: nothing of them was started here.
    if (record !== undefined) this.executor.compatible(this.key, SESSION);
    return record;
  }

  async load(turn: Turn): Promise<SessionRecord | undefined> {
    return this.record(turn.took(await this.askRecord(turn)));
  }

  askIdentity(turn: Turn): KeyPair | PromiseLike<KeyPair> {
    return this.executor.read(turn, 'identity', () => this.storage.getOurIdentity());
  }

  /** Who we are, packed; our registration id is asked for once for each identity. */
  own(turn: Turn, identity: KeyPair): Buffer | Promise<Buffer> {
    if (typeof identity !== 'object' || identity === null) throw invalid('our identity is a key pair');
    const known = askedIdentities.get(this.storage);
    if (known === undefined || known.identity !== identity) return this.#registered(turn, identity);
    this.executor.known(turn, known.own);
    return known.own;
  }

  async #registered(turn: Turn, identity: KeyPair): Promise<Buffer> {
    const registrationId = turn.took(await this.executor.read(turn, 'registration', () => this.storage.getOurRegistrationId()));
    const own = packed({ identity, registrationId: idOf(registrationId) });
    askedIdentities.set(this.storage, { identity, own });
    this.executor.known(turn, own);
    return own;
  }

  /** For what needs to know nothing of who we are but whose record it is. */
  async whose(turn: Turn): Promise<void> {
    await this.own(turn, turn.took(await this.askIdentity(turn)));
  }

  /** Asks whether an identity is trusted, for `judge`. */
  askTrust(turn: Turn, identity: Buffer, direction: 'sending' | 'receiving'): unknown {
    return this.executor.read(turn, 'trust', () => this.storage.isTrustedIdentity(this.address.id, identity, direction));
  }

  judge(verdict: unknown, identity: Buffer): void {
    if (verdict) return;
    this.executor.emit('untrusted', () => ({ address: this.key }));
    throw new UntrustedIdentityKeyError(this.address.id, identity);
  }

  async trusted(turn: Turn, identity: Buffer, direction: 'sending' | 'receiving'): Promise<void> {
    this.judge(turn.took(await this.askTrust(turn, identity, direction)), identity);
  }

  /** Stores a record, and what goes with it, in one transaction where the storage can. The turn takes what is awaited of it. */
  store(turn: Turn, record: SessionRecord, rest: With = {}): unknown {
    const { storage, key } = this;
    if (storage.commit === undefined && rest.removePreKey === undefined) {
      return this.#write(turn, record, rest, (one) => storage.storeSession(key, one));
    }
    return this.#storeAll(turn, record, rest);
  }

  #write(turn: Turn, value: SessionRecord, { fallback = value, refused }: With, call: (one: SessionRecord) => unknown, side?: Side): unknown {
    const again: Again<SessionRecord | null> = (owner, one, sides) => storeAgain(owner as SignalStorage, this.key, one, sides);
    const write = { value, fallback, call: call as (one: SessionRecord | null) => unknown, again };
    return this.executor.write<SessionRecord | null>(turn, 'record', {
      ...write,
      ...(refused === undefined ? {} : { refused }),
      ...(side === undefined ? {} : { side }),
    });
  }

  async #storeAll(turn: Turn, record: SessionRecord, rest: With): Promise<void> {
    const { storage, executor, key } = this;
    const { identity, removePreKey } = rest;
    const pin = identity && { name: this.address.id, key: identity };
    const side: Side = { ...(pin === undefined ? {} : { identity: pin }), ...(removePreKey === undefined ? {} : { removePreKey }) };
    const write = async (call: (one: SessionRecord) => unknown): Promise<void> => {
      turn.took(await this.#write(turn, record, rest, call, side));
    };
    if (storage.commit !== undefined) {
      await write((one) => storage.commit?.({ address: key, record: one, removePreKey, identity: pin }));
    } else if (removePreKey !== undefined && storage.storeSessionAndRemovePreKey !== undefined) {
      await write((one) => storage.storeSessionAndRemovePreKey?.(key, one, removePreKey));
    } else {
      // The session first: after a crash between the two a replay meets the session, not the prekey.
      await write((one) => storage.storeSession(key, one));
      if (removePreKey !== undefined) turn.took(await executor.read(turn, 'removal', () => storage.removePreKey(removePreKey)));
    }
  }

  compatibility(what: readonly string[]): void {
    if (what.length > 0) this.executor.emit('compatibility', () => ({ address: this.key, what }));
  }
}

function canonical(order: unknown): string {
  if (typeof order === 'string' && order !== '') return order;
  throw invalid('canonicalAddress gives an address');
}

/** Writes a record again whose write hung, by whichever storage there is now, and does what was to be done with it. */
async function storeAgain(storage: SignalStorage, address: string, record: SessionRecord | null, sides: readonly Side[]): Promise<void> {
  if (record === null) return void (await (storage as { [ERASE]?: (address: string) => Promise<void> })[ERASE]?.(address));
  if (storage.commit === undefined) {
    await storage.storeSession(address, record._copy());
    for (const { removePreKey } of sides) if (removePreKey !== undefined) await storage.removePreKey(removePreKey);
    return;
  }
  for (const side of sides.length === 0 ? [{}] : sides) {
    try {
      await storage.commit({ address, record: record._copy(), ...side });
    } catch (thrown) {
      const { identity, ...rest } = side as Side;
      if (identity === undefined) throw thrown;
      // Another identity may be pinned by now: that is no reason not to store what counts.
      await storage.commit({ address, record: record._copy(), ...rest });
    }
  }
}

/** Starts sessions from prekey bundles. */
export class SessionBuilder {
  readonly #peer: Peer;

  constructor(storage: SignalStorage, protocolAddress: ProtocolAddress, options?: SessionOptions) {
    this.#peer = new Peer(storage, protocolAddress, options);
  }

  get addr(): ProtocolAddress {
    return this.#peer.address;
  }

  /** Starts a session with a device, after its signature verified and its identity is trusted. The one before is archived. */
  async initOutgoing(device: Device): Promise<void> {
    const bundle = bundleOf(device);
    const peer = this.#peer;
    return peer.run(async (turn) => {
      const own = await peer.own(turn, turn.took(await peer.askIdentity(turn)));
      const record = (await peer.load(turn)) ?? new SessionRecord();
      const started = guarded(() => native().startSession(record._bytes, own, bundle, Date.now()));
      await peer.trusted(turn, bundle.identityKey, 'sending');
      turn.took(await peer.store(turn, SessionRecord._adopt(started.record, bundle.identityKey), { identity: bundle.identityKey }));
      peer.compatibility(started.compatibility);
    });
  }
}

function bundleOf(device: Device) {
  if (typeof device !== 'object' || device === null) throw invalid('a device is an object');
  const { signedPreKey, preKey } = device;
  if (typeof signedPreKey !== 'object' || signedPreKey === null) throw invalid('a device has a signedPreKey');
  return {
    registrationId: idOf(device.registrationId ?? 0),
    identityKey: publicKeyOf(device.identityKey, 'identityKey'),
    signedId: idOf(signedPreKey.keyId),
    signed: publicKeyOf(signedPreKey.publicKey, 'signedPreKey.publicKey'),
    // An absent signature is refused like a wrong one.
    signature: signedPreKey.signature === undefined ? NONE : bytesOf(signedPreKey.signature, 'signedPreKey.signature'),
    ...(preKey ? { prekeyId: idOf(preKey.keyId), prekey: publicKeyOf(preKey.publicKey, 'preKey.publicKey') } : {}),
  };
}

/** Encrypts to, and decrypts from, one device of a peer. */
export class SessionCipher {
  readonly #peer: Peer;

  constructor(storage: SignalStorage, protocolAddress: ProtocolAddress, options?: SessionOptions) {
    this.#peer = new Peer(storage, protocolAddress, options);
  }

  get addr(): ProtocolAddress {
    return this.#peer.address;
  }

  toString(): string {
    return `<SessionCipher(${this.#peer.key})>`;
  }

  /** Encrypts. The record is stored before the message comes back. */
  encrypt(data: Uint8Array): Promise<CiphertextMessage> {
    return asked(() => {
    const plaintext = bytesOf(data, 'data');
    const peer = this.#peer;
    return peer.run(async (turn) => {
      const own = await peer.own(turn, turn.took(await peer.askIdentity(turn)));
      const record = peer.record(turn.took(await peer.askRecord(turn)));
      if (record === undefined) throw noSession(peer.key);
      const sealed = guarded(() => encrypt(record._bytes, own, plaintext, Date.now()));
      peer.judge(turn.took(await peer.askTrust(turn, record._remote, 'sending')), record._remote);
      // Given up or not, the key is used: the chain never goes back.
      turn.took(await peer.store(turn, SessionRecord._adopt(sealed.record, record._remote)));
      return { type: sealed.kind, body: sealed.body, registrationId: sealed.registrationId };
    });
    });
  }

  /** Encrypts many with one load and one store: all, or none. */
  encryptMany(datas: readonly Uint8Array[]): Promise<CiphertextMessage[]> {
    return asked(() => {
    const plaintexts = datas.map((data) => bytesOf(data, 'data'));
    const peer = this.#peer;
    return peer.run(async (turn) => {
      if (plaintexts.length === 0) return [];
      const own = await peer.own(turn, turn.took(await peer.askIdentity(turn)));
      const record = peer.record(turn.took(await peer.askRecord(turn)));
      if (record === undefined) throw noSession(peer.key);
      const sealed = guarded(() => native().encryptMany(record._bytes, own, plaintexts, Date.now()));
      peer.judge(turn.took(await peer.askTrust(turn, record._remote, 'sending')), record._remote);
      // Given up or not, the key is used: the chain never goes back.
      turn.took(await peer.store(turn, SessionRecord._adopt(sealed.record, record._remote)));
      return sealed.bodies.map((body) => ({ type: sealed.kind, body, registrationId: sealed.registrationId }));
    });
    });
  }

  /** Decrypts a message of type 1. */
  decryptWhisperMessage(data: Uint8Array): Promise<Buffer> {
    return asked(() => {
    const message = bytesOf(data, 'data');
    const peer = this.#peer;
    return peer.run(async (turn) => {
      const own = await peer.own(turn, turn.took(await peer.askIdentity(turn)));
      const record = peer.record(turn.took(await peer.askRecord(turn)));
      if (record === undefined) throw noSession(peer.key);
      const opened = guarded(() => decrypt(record._bytes, own, message, Date.now()));
      return this.#finish(turn, opened, { before: record });
    });
    });
  }

  /** Decrypts a message of type 3. The identity is judged once the message proved it. */
  decryptPreKeyWhisperMessage(data: Uint8Array): Promise<Buffer> {
    return asked(() => {
    const message = bytesOf(data, 'data');
    const peer = this.#peer;
    const { executor, storage } = peer;
    return peer.run(async (turn) => {
      const outside = guarded(() => native().outside(message));
      const own = await peer.own(turn, turn.took(await peer.askIdentity(turn)));
      const stored = await peer.load(turn);
      const record = stored ?? new SessionRecord();
      const name = message.toString('latin1');
      const known = guarded(() => native().recordKnows(record._bytes, outside.baseKey));
      const unread = turn.state.unread.get(name) as Opened | undefined;
      const open = (prekeys: Buffer): Opened =>
        guarded(() => native().decryptPrekey(record._bytes, own, message, prekeys, Date.now()));
      if (known) {
        let again: Opened;
        try {
          again = open(NONE);
        } catch (thrown) {
          const { code } = thrown as { code?: unknown };
          if (unread === undefined || (code !== 'DUPLICATE' && code !== 'REPLAY')) throw thrown;
          // Its save was given up, and its key is used in the record that counts. It is read once that is stored.
          const { identity, removePrekey: removePreKey } = unread;
          await peer.trusted(turn, identity, 'receiving');
          turn.took(await peer.store(turn, record, { identity, removePreKey }));
          executor.handed(turn.state, name);
          return unread.plaintext;
        }
        // Its key is there: so it is not the record of the save that was given up, and it is a message like any other.
        if (unread !== undefined) executor.handed(turn.state, name);
        return this.#finish(turn, again, { before: record });
      }
      // Without the session that it began, it is to begin it again.
      if (unread !== undefined) executor.handed(turn.state, name);
      const load = async (id: number) => turn.took(await executor.read(turn, `prekey ${id}`, () => storage.loadPreKey(id)));
      const signed = turn.took(await executor.read(turn, 'signed', () => storage.loadSignedPreKey(outside.signed)));
      const { prekey } = outside;
      const given = prekey === undefined ? undefined : await load(prekey);
      let opened: Opened;
      try {
        opened = open(guarded(() => pack(signed, given)));
      } catch (thrown) {
        // libsignal-node leaves the id 0 out, so that none may mean 0.
        if (prekey !== undefined || (thrown as { code?: unknown }).code !== 'UNDECRYPTABLE') throw thrown;
        const zero = await load(0);
        if (zero === undefined || zero === null) throw thrown;
        opened = open(guarded(() => pack(signed, zero)));
      }
      return this.#finish(turn, opened, { refused: stored ?? null, lost: () => executor.keep(turn.state, name, opened) });
    });
    });
  }

  async #finish(
    turn: Turn,
    opened: Opened,
    { before, refused = before, lost }: { before?: SessionRecord; refused?: SessionRecord | null; lost?: () => void },
  ): Promise<Buffer> {
    const peer = this.#peer;
    peer.judge(turn.took(await peer.askTrust(turn, opened.identity, 'receiving')), opened.identity);
    turn.lost = lost;
    // If storing is given up, the message counts as not read, and can come again; but not a handshake whose prekey may be gone.
    const rest = { fallback: before, refused, identity: opened.identity, removePreKey: opened.removePrekey };
    turn.took(await peer.store(turn, SessionRecord._adopt(opened.record), rest));
    peer.compatibility(opened.compatibility);
    return opened.plaintext;
  }

  /** Decrypts many messages of type 1 with one load and one store. Each gives its plaintext or its error. */
  decryptMany(datas: readonly Uint8Array[]): Promise<(Buffer | SignalError)[]> {
    return asked(() => {
    const messages = datas.map((data) => bytesOf(data, 'data'));
    const peer = this.#peer;
    return peer.run(async (turn) => {
      if (messages.length === 0) return [];
      const own = await peer.own(turn, turn.took(await peer.askIdentity(turn)));
      const record = peer.record(turn.took(await peer.askRecord(turn)));
      if (record === undefined) throw noSession(peer.key);
      const opened = guarded(() => native().decryptMany(record._bytes, own, messages, Date.now()));
      for (const identity of opened.identities) await peer.trusted(turn, identity, 'receiving');
      if (opened.identities.length > 0) turn.took(await peer.store(turn, SessionRecord._adopt(opened.record), { fallback: record, refused: record }));
      return opened.messages.map(({ plaintext, failure }) => plaintext ?? failureOf(failure ?? ''));
    });
    });
  }

  /** Whether something can be sent. */
  hasOpenSession(): Promise<boolean> {
    const peer = this.#peer;
    return peer.run(async (turn) => {
      await peer.whose(turn);
      return (await peer.load(turn))?.haveOpenSession() ?? false;
    });
  }

  /** Archives the open session. Late messages are still read. */
  closeOpenSession(): Promise<void> {
    const peer = this.#peer;
    return peer.run(async (turn) => {
      await peer.whose(turn);
      const record = await peer.load(turn);
      if (record === undefined || !record.haveOpenSession()) return;
      turn.took(await peer.store(turn, SessionRecord._adopt(guarded(() => native().recordClose(record._bytes, Date.now())))));
    });
  }

  /** The record as it is stored. */
  getRecord(): Promise<SessionRecord | undefined> {
    const peer = this.#peer;
    return peer.run(async (turn) => {
      await peer.whose(turn);
      return peer.load(turn);
    });
  }
}

function pack(signed: KeyPair | null | undefined, one: KeyPair | null | undefined): Buffer {
  if (signed === undefined || signed === null) return NONE;
  const parts = [publicKeyOf(signed.pubKey), bytesOf(signed.privKey, 'a private key')];
  if (one !== undefined && one !== null) parts.push(publicKeyOf(one.pubKey), bytesOf(one.privKey, 'a private key'));
  return Buffer.concat(parts);
}

/** Who we are, for the synchronous variants. */
export interface Own {
  identity: KeyPair;
  registrationId: number;
}

/**
 * The same work without storages and without waiting: pure functions over records. The caller keeps order, judges identities, and
 * stores the new record before anything is sent or used.
 */
export const sync = Object.freeze({
  /** Starts a session. */
  initOutgoing(record: SessionRecord, own: Own, device: Device): { record: SessionRecord; compatibility: string[] } {
    return guarded(() => {
      const started = native().startSession(record._bytes, packed(own), bundleOf(device), Date.now());
      return { record: SessionRecord._adopt(started.record), compatibility: started.compatibility };
    });
  },
  /** Encrypts. */
  encrypt(record: SessionRecord, own: Own, data: Uint8Array): CiphertextMessage & { record: SessionRecord } {
    return guarded(() => {
      const sealed = encrypt(record._bytes, packed(own), bytesOf(data, 'data'), Date.now());
      return { type: sealed.kind, body: sealed.body, registrationId: sealed.registrationId, record: SessionRecord._adopt(sealed.record) };
    });
  },
  /** Decrypts a message of type 1. */
  decryptWhisperMessage(record: SessionRecord, own: Own, data: Uint8Array): { plaintext: Buffer; identityKey: Buffer; record: SessionRecord } {
    return guarded(() => {
      const opened = decrypt(record._bytes, packed(own), bytesOf(data, 'data'), Date.now());
      return { plaintext: opened.plaintext, identityKey: opened.identity, record: SessionRecord._adopt(opened.record) };
    });
  },
  /** What a message of type 3 needs. */
  prekeysOf(data: Uint8Array): { preKeyId?: number; signedPreKeyId: number; identityKey: Buffer; registrationId: number } {
    return guarded(() => {
      const { prekey, signed, identity, registrationId } = native().outside(bytesOf(data, 'data'));
      return { ...(prekey === undefined ? {} : { preKeyId: prekey }), signedPreKeyId: signed, identityKey: identity, registrationId };
    });
  },
  /** Decrypts a message of type 3. */
  decryptPreKeyWhisperMessage(
    record: SessionRecord,
    own: Own,
    data: Uint8Array,
    prekeys: { signedPreKey?: KeyPair; preKey?: KeyPair } = {},
  ): { plaintext: Buffer; identityKey: Buffer; removePreKey?: number; newSession: boolean; record: SessionRecord } {
    return guarded(() => {
      const given = pack(prekeys.signedPreKey, prekeys.preKey);
      const ours = packed(own);
      const opened = native().decryptPrekey(record._bytes, ours, bytesOf(data, 'data'), given, Date.now());
      return {
        plaintext: opened.plaintext,
        identityKey: opened.identity,
        ...(opened.removePrekey === undefined ? {} : { removePreKey: opened.removePrekey }),
        newSession: opened.newSession,
        record: SessionRecord._adopt(opened.record),
      };
    });
  },
});
