/** Sessions: starting, encrypting, decrypting. */

import type { ProtocolAddress } from './address.js';
import { storageFailed, type Turn } from './calls.js';
import type { KeyPair } from './curve.js';
import { bytesOf, guarded, invalid, type SignalError, typed, type Words } from './errors.js';
import { decrypt, encrypt, ownCopy, type Sealed } from './hot.js';
import { idOf, publicKeyOf } from './keys.js';
import { native, type Opened, type Outside } from './native.js';
import { type Own, type Packed, packed, Peer, type SessionOptions } from './peer.js';
import { noSession, SessionRecord } from './record.js';
import type { SignalStorage } from './storage.js';
import { forgetBatch, forgetRead, isUsed, keepBatch, keepRead, prekeysBefore, readBefore, saidBy } from './unread.js';

export type { Own, SessionOptions } from './peer.js';

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

const NONE = Buffer.alloc(0);

/**
 * What libsignal-node says where nothing can be sent, of a message without handshake (there it is one text for whatever keeps all sessions from reading
 * it), and of a handshake that does not decrypt.
 */
const SENDING: Words = { NO_SESSION: 'No open session' };
const UNREAD = 'No matching sessions found for message';
const READING: Words = { DUPLICATE: UNREAD, TOO_FAR_AHEAD: UNREAD };
const HANDSHAKE: Words = { UNDECRYPTABLE: 'Bad MAC' };

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
      const own = await peer.registered(turn, turn.took(await peer.askIdentity(turn)));
      const record = (await peer.load(turn)) ?? new SessionRecord();
      const started = guarded(() => native().startSession(record._bytes, own.bytes, bundle, Date.now()));
      await peer.trusted(turn, bundle.identityKey, 'sending');
      turn.took(await peer.store(turn, SessionRecord._adopt(started.record, ownCopy(bundle.identityKey)), { identity: bundle.identityKey }));
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

/** A message that was read. */
interface Read {
  opened: Opened;
  /** The record that it was read on; it may count again. */
  before: SessionRecord;
  /** Of a handshake that began a session: what it is known by, and its prekeys. */
  began?: { baseKey: Buffer; prekeys: Buffer };
  /** There was no record. */
  fresh?: boolean;
}

/** What an encryption made. */
interface Made {
  record: Buffer;
  kind: number;
  remote: Buffer;
}

/** How one message is encrypted, or many are: what was given is looked at, sealed, and handed over. */
interface Sealing<G, P, S extends Made | undefined, T> {
  look: (given: G) => P;
  seal: (record: SessionRecord, own: Packed, plaintext: P) => S;
  give: (sealed: S) => T;
}

const ONE: Sealing<Uint8Array, Buffer, Sealed, CiphertextMessage> = {
  look: (data) => bytesOf(data, 'data'),
  seal(record, own, plaintext) {
    try {
      return encrypt(record._bytes, own.slip, plaintext, Date.now(), record._known);
    } catch (thrown) {
      throw typed(thrown, SENDING);
    }
  },
  give: ({ kind, body, registrationId }) => ({ type: kind, body, registrationId }),
};

const MANY: Sealing<readonly Uint8Array[], Buffer[], (Made & { bodies: Buffer[]; registrationId: number }) | undefined, CiphertextMessage[]> = {
  look: (datas) => listOf(datas),
  seal: (record, own, plaintexts) =>
    plaintexts.length === 0
      ? undefined
      : guarded(() => ({ ...native().encryptMany(record._bytes, own.bytes, plaintexts, Date.now()), remote: record._remote }), SENDING),
  give: (sealed) => sealed?.bodies.map((body) => ({ type: sealed.kind, body, registrationId: sealed.registrationId })) ?? [],
};

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
    return this.#peer.runTelling(SessionCipher.#sealOne, this, data);
  }

  /** Encrypts many with one load and one store: all, or none. */
  encryptMany(datas: readonly Uint8Array[]): Promise<CiphertextMessage[]> {
    return this.#peer.runTelling(SessionCipher.#sealMany, this, datas);
  }

  static readonly #sealOne = (turn: Turn): unknown => SessionCipher.#seal(turn, ONE);
  static readonly #sealMany = (turn: Turn): unknown => SessionCipher.#seal(turn, MANY);

  static async #seal<G, P, S extends Made | undefined, T>(turn: Turn, { look, seal, give }: Sealing<G, P, S, T>): Promise<void> {
    const peer = (turn.by as SessionCipher).#peer;
    try {
      const plaintext = look(turn.given as G);
      const identity = turn.took(await peer.askIdentity(turn));
      const own = peer.known(turn, identity) ?? (await peer.registered(turn, identity));
      const record = peer.record(turn.took(await peer.askRecord(turn)));
      if (record === undefined) throw noSession(peer.key, 'No sessions');
      let sealed = seal(record, own, plaintext);
      if (sealed !== undefined) {
        if (sealed.kind === 3) {
          // It has our registration id in it, and nobody has seen it yet.
          const now = await peer.registered(turn, identity);
          if (now !== own) sealed = seal(record, now, plaintext) as S & object;
        }
        const { remote } = sealed;
        peer.judge(turn.took(await peer.askTrust(turn, remote, 'sending')), remote);
        // Given up or not, the key is used: the chain never goes back. A record that was made elsewhere comes without a pin.
        turn.took(await peer.storeOfMessage(turn, SessionRecord._adopt(sealed.record, remote), undefined, remote));
      }
      peer.executor.done(turn, give(sealed));
    } catch (thrown) {
      // Not within what began this: many that wait may fail at once, one after the other.
      await null;
      peer.executor.failed(turn, thrown);
    }
  }

  /** Decrypts a message of type 1. */
  decryptWhisperMessage(data: Uint8Array): Promise<Buffer> {
    return this.#peer.runTelling(SessionCipher.#open, this, data);
  }

  static readonly #open = async (turn: Turn): Promise<void> => {
    const cipher = turn.by as SessionCipher;
    const peer = cipher.#peer;
    try {
      const message = bytesOf(turn.given, 'data');
      const identity = turn.took(await peer.askIdentity(turn));
      const own = peer.known(turn, identity) ?? (await peer.registered(turn, identity));
      const record = peer.record(turn.took(await peer.askRecord(turn)));
      if (record === undefined) throw noSession(peer.key, 'No session record');
      let opened: Opened;
      try {
        opened = decrypt(record._bytes, own.slip, message, Date.now(), record._known);
      } catch (thrown) {
        return peer.executor.done(turn, await cipher.#held(turn, message, { record, thrown: typed(thrown, READING) }));
      }
      peer.judge(turn.took(await peer.askTrust(turn, opened.identity, 'receiving')), opened.identity);
      // Whichever session it is of, the one that is open stays open.
      turn.took(await cipher.#saveKnown(turn, message, opened, record, record._known));
      forgetRead(turn, message);
      peer.executor.done(turn, opened.plaintext);
    } catch (thrown) {
      // Not within what began this: many that wait may fail at once, one after the other.
      await null;
      peer.executor.failed(turn, thrown);
    }
  };

  /** Decrypts a message of type 3. The identity is judged once the message proved it. */
  decryptPreKeyWhisperMessage(data: Uint8Array): Promise<Buffer> {
    const peer = this.#peer;
    return peer.run(async (turn) => {
      const message = bytesOf(data, 'data');
      const outside = guarded(() => native().outside(message));
      const own = await peer.own(turn);
      const stored = await peer.load(turn);
      const record = stored ?? new SessionRecord();
      const open = (prekeys: Buffer): Opened =>
        guarded(() => native().decryptPrekey(record._bytes, own.bytes, message, prekeys, Date.now()), HANDSHAKE);
      let opened: Opened;
      if (guarded(() => native().recordKnows(record._bytes, outside.baseKey))) {
        try {
          opened = open(NONE);
        } catch (thrown) {
          return this.#held(turn, message, { record, thrown });
        }
        return this.#finish(turn, message, { opened, before: record });
      }
      const kept = prekeysBefore(turn, outside.baseKey);
      let prekeys: Buffer;
      ({ opened, prekeys } = kept === undefined ? await this.#begin(turn, outside, open) : { opened: open(kept), prekeys: kept });
      return this.#finish(turn, message, { opened, before: record, began: { baseKey: outside.baseKey, prekeys }, fresh: stored === undefined });
    }, data);
  }

  /** Opens a handshake with the prekeys that it names. */
  async #begin(
    turn: Turn,
    { signed: signedId, prekey }: Outside,
    open: (prekeys: Buffer) => Opened,
  ): Promise<{ opened: Opened; prekeys: Buffer }> {
    const { executor, storage } = this.#peer;
    const signed = turn.took(await executor.ask(turn, () => storage.loadSignedPreKey(signedId)));
    // libsignal-node leaves the id 0 out, so that none may mean 0. With that one at hand both are tried in one call, within one bound on what a message may cost.
    const { given, refused } = await this.#prekey(turn, prekey);
    const prekeys = guarded(() => pack(signed, given));
    try {
      return { opened: open(prekeys), prekeys };
    } catch (thrown) {
      throw refused !== undefined && (thrown as { code?: unknown }).code === 'UNDECRYPTABLE' ? refused : thrown;
    }
  }

  /** The one-time prekey that a handshake names; of one that names none the prekey 0, if the storage has it and does not mind the question. */
  async #prekey(turn: Turn, id: number | undefined): Promise<{ given?: KeyPair | null | undefined; refused?: Error }> {
    const { executor, storage } = this.#peer;
    try {
      return { given: turn.took(await executor.ask(turn, () => storage.loadPreKey(id ?? 0))) };
    } catch (thrown) {
      if (id !== undefined || turn.over) throw thrown;
      turn.waits = false;
      return { refused: storageFailed(thrown) };
    }
  }

  /** Stores what a message made of the record, then hands it over. */
  async #finish(turn: Turn, message: Buffer, read: Read): Promise<Buffer> {
    const peer = this.#peer;
    const { identity, plaintext, compatibility } = read.opened;
    peer.judge(turn.took(await peer.askTrust(turn, identity, 'receiving')), identity);
    turn.took(await this.#save(turn, message, read));
    forgetRead(turn, message);
    peer.compatibility(compatibility);
    return plaintext;
  }

  /** Stores what a message made of the record. The turn takes what is awaited of it. */
  #save(turn: Turn, message: Buffer, { opened, before, began, fresh }: Read): unknown {
    if (began === undefined) return this.#saveKnown(turn, message, opened, before);
    hold(turn, message, opened, before);
    turn.began = began;
    const { record, identity, removePrekey } = opened;
    return this.#peer.store(turn, SessionRecord._adopt(record), { refused: fresh ? null : before._bytes, identity, removePreKey: removePrekey });
  }

  /**
   * The same of a message of a session that was there: if storing is given up, it counts as not read, and can come again. Not so a handshake whose prekey may
   * be gone. `remote` is the identity of the session that is open, where it is known.
   */
  #saveKnown(turn: Turn, message: Buffer, opened: Opened, before: SessionRecord, remote?: Buffer): unknown {
    hold(turn, message, opened, before);
    return this.#peer.storeOfMessage(turn, SessionRecord._adopt(opened.record, remote), before._bytes, opened.identity, opened.removePrekey);
  }

  /** A message whose key is used up: it was read, and if its save was not certain it is handed over once the record is stored that has it. */
  async #held(turn: Turn, message: Buffer, { record, thrown }: { record: SessionRecord; thrown: unknown }): Promise<Buffer> {
    const peer = this.#peer;
    const said = isUsed(thrown) ? readBefore(turn, message) : undefined;
    if (said === undefined) throw thrown;
    for (const identity of said.identities) await peer.trusted(turn, identity, 'receiving');
    const same = SessionRecord._adopt(Buffer.from(record._bytes));
    turn.took(await peer.store(turn, same, { identity: said.identities[0], removePreKey: said.removePrekey }));
    forgetRead(turn, message);
    return said.plaintext;
  }

  /** Decrypts many messages of type 1 with one load and one store. Each gives its plaintext or its error. */
  decryptMany(datas: readonly Uint8Array[]): Promise<(Buffer | SignalError)[]> {
    const peer = this.#peer;
    return peer.run(async (turn) => {
      const messages = listOf(datas);
      if (messages.length === 0) return [];
      const own = await peer.own(turn);
      const record = peer.record(turn.took(await peer.askRecord(turn)));
      if (record === undefined) throw noSession(peer.key, 'No session record');
      const opened = guarded(() => native().decryptMany(record._bytes, own.bytes, messages, Date.now()));
      const identities = [...opened.identities];
      const { given, before } = saidBy(turn, messages, opened.messages, READING);
      for (const said of before) for (const identity of said.identities) if (!identities.some((one) => one.equals(identity))) identities.push(identity);
      for (const identity of identities) await peer.trusted(turn, identity, 'receiving');
      if (identities.length === 0) return given;
      turn.hold(record);
      const fallback = record._bytes;
      turn.lost = () => keepBatch(turn, messages, given, identities);
      // Of several that were trusted the last one is pinned, as message by message.
      turn.took(await peer.store(turn, SessionRecord._adopt(opened.record), { fallback, identity: identities[identities.length - 1] }));
      forgetBatch(turn, messages, given);
      return given;
    }, datas);
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

/** The turn has what becomes of a message if its save fails: the record that it was read on, and what it says. */
function hold(turn: Turn, message: Buffer, opened: Opened, before: SessionRecord): void {
  turn.hold(before);
  turn.lost = keepOpened;
  turn.message = message;
  turn.opened = opened;
}

/** The message of a turn was read, and is not handed over. */
function keepOpened(turn: Turn): void {
  const { message, opened, began } = turn;
  if (message === undefined || opened === undefined) return;
  const { plaintext, identity, removePrekey } = opened;
  keepRead(turn, message, { plaintext, identities: [identity], removePrekey, ...(began && { began }) });
}

function listOf(datas: readonly Uint8Array[]): Buffer[] {
  if (!Array.isArray(datas)) throw invalid('data is a list of Buffers');
  return datas.map((data) => bytesOf(data, 'data'));
}

function pack(signed: KeyPair | null | undefined, one: KeyPair | null | undefined): Buffer {
  if (signed === undefined || signed === null) return NONE;
  const parts = [publicKeyOf(signed.pubKey), bytesOf(signed.privKey, 'a private key')];
  if (one !== undefined && one !== null) parts.push(publicKeyOf(one.pubKey), bytesOf(one.privKey, 'a private key'));
  return Buffer.concat(parts);
}

/**
 * The same work without storages and without waiting: pure functions over records. The caller keeps order, judges identities, and
 * stores the new record before anything is sent or used.
 */
export const sync = Object.freeze({
  /** Starts a session. */
  initOutgoing(record: SessionRecord, own: Own, device: Device): { record: SessionRecord; compatibility: string[] } {
    return guarded(() => {
      const started = native().startSession(record._bytes, packed(own).bytes, bundleOf(device), Date.now());
      return { record: SessionRecord._adopt(started.record), compatibility: started.compatibility };
    });
  },
  /** Encrypts. */
  encrypt(record: SessionRecord, own: Own, data: Uint8Array): CiphertextMessage & { record: SessionRecord } {
    return guarded(() => {
      const sealed = encrypt(record._bytes, packed(own).slip, bytesOf(data, 'data'), Date.now(), record._known);
      return { type: sealed.kind, body: sealed.body, registrationId: sealed.registrationId, record: SessionRecord._adopt(sealed.record, sealed.remote) };
    }, SENDING);
  },
  /** Decrypts a message of type 1. */
  decryptWhisperMessage(record: SessionRecord, own: Own, data: Uint8Array): { plaintext: Buffer; identityKey: Buffer; record: SessionRecord } {
    return guarded(() => {
      const opened = decrypt(record._bytes, packed(own).slip, bytesOf(data, 'data'), Date.now());
      return { plaintext: opened.plaintext, identityKey: opened.identity, record: SessionRecord._adopt(opened.record) };
    }, READING);
  },
  /** What a message of type 3 needs. */
  prekeysOf(data: Uint8Array): { preKeyId?: number; signedPreKeyId: number; identityKey: Buffer; registrationId: number } {
    return guarded(() => {
      const { prekey, signed, identity, registrationId } = native().outside(bytesOf(data, 'data'));
      return { ...(prekey === undefined ? {} : { preKeyId: prekey }), signedPreKeyId: signed, identityKey: identity, registrationId };
    });
  },
  /** Decrypts a message of type 3. `compatibility` is what is weaker in a session that it began; nothing for one that is known. */
  decryptPreKeyWhisperMessage(
    record: SessionRecord,
    own: Own,
    data: Uint8Array,
    prekeys: { signedPreKey?: KeyPair; preKey?: KeyPair } = {},
  ): { plaintext: Buffer; identityKey: Buffer; removePreKey?: number; newSession: boolean; compatibility: string[]; record: SessionRecord } {
    return guarded(() => {
      const given = pack(prekeys.signedPreKey, prekeys.preKey);
      const ours = packed(own).bytes;
      const opened = native().decryptPrekey(record._bytes, ours, bytesOf(data, 'data'), given, Date.now());
      return {
        plaintext: opened.plaintext,
        identityKey: opened.identity,
        ...(opened.removePrekey === undefined ? {} : { removePreKey: opened.removePrekey }),
        newSession: opened.newSession,
        compatibility: opened.compatibility,
        record: SessionRecord._adopt(opened.record),
      };
    }, HANDSHAKE);
  },
});
