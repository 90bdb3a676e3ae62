/** Making, taking in and using sender keys. */

import { type Again, OURS, type Turn } from './calls.js';
import { bytesOf, guarded, invalid, isUint8Array, type SignalError, type Words } from './errors.js';
import type { Executor } from './executor.js';
import { groupDecrypt, groupEncrypt } from './hot.js';
import { native } from './native.js';
import { executorOf } from './peer.js';
import { SenderKeyDistributionMessage, type SenderKeyName, SenderKeyRecord } from './sender_keys.js';
import { forgetBatch, forgetRead, isUsed, keepBatch, keepRead, readBefore, saidBy } from './unread.js';

type Awaitable<T> = T | PromiseLike<T>;

/** Where sender keys are. */
export interface SenderKeyStore {
  loadSenderKey(name: SenderKeyName): Awaitable<unknown>;
  storeSenderKey(name: SenderKeyName, record: SenderKeyRecord): Awaitable<unknown>;
  /**
   * What the store is of, as `SignalStorage.scope` says. A store does not say whose it is: where accounts of one process are in one group, each needs a
   * scope. Without them what one account stored counts as the newest of the other one, too, while a write of that one hangs.
   */
  readonly scope?: string | object;
}

/** Options of group ciphers. */
export interface GroupOptions {
  /** Who keeps order. Default one for all of the process. */
  executor?: Executor | undefined;
}

/** What sender keys of this protocol have weaker than our own profiles: the message names neither its group nor its sender. */
const GROUP = Object.freeze(['no-post-quantum', 'no-associated-data']);

/** What Baileys says where nothing can be sent, and where there are no keys at all of a sender. */
const SENDING: Words = { NO_SENDER_KEY: 'No session to encrypt message' };
const EMPTY: Words = { NO_SENDER_KEY: 'No SenderKeyRecord found for decryption' };

const reading = (record: Buffer): Words | undefined => (record.length === 0 ? EMPTY : undefined);

/** Where the keys of one sender are. */
class Row {
  readonly store: SenderKeyStore;
  readonly name: SenderKeyName;
  readonly key: string;
  readonly executor: Executor;
  readonly #again: Again = {
    write: (owner, value) => {
      const store = typeof (owner as SenderKeyStore).storeSenderKey === 'function' ? (owner as SenderKeyStore) : this.store;
      return store.storeSenderKey(this.name, SenderKeyRecord._adopt(value ?? Buffer.alloc(0)));
    },
  };

  constructor(store: unknown, name: SenderKeyName, options: GroupOptions) {
    this.store = storeOf(store);
    if (name === undefined || name === null) throw invalid('a SenderKeyName says whose sender keys they are');
    this.name = name;
    this.key = name.toString();
    this.executor = executorOf(options, ['executor']);
  }

  /** `held` is what is kept while it waits: bytes, or a list of bytes. */
  run<T>(work: (turn: Turn) => Promise<T>, held?: unknown): Promise<T> {
    return this.executor.run(this.store, this.key, work, false, held);
  }

  /** Makes something of our own chain, and stores it before anybody has it. */
  make<T extends { record: Buffer }>(act: (record: Buffer) => T, held?: unknown): Promise<T> {
    return this.run(async (turn) => {
      turn.known(OURS);
      const record = this.record(turn.took(await this.ask(turn)));
      const made = guarded(() => act(record._bytes), SENDING);
      turn.took(await this.save(turn, made.record));
      return made;
    }, held);
  }

  /** Asks for the record, for `record` to read. The turn takes what is awaited of it. */
  ask(turn: Turn): unknown {
    const newest = turn.newest();
    if (newest === undefined) return this.executor.ask(turn, () => this.store.loadSenderKey(this.name));
    return newest === null ? undefined : SenderKeyRecord._adopt(newest);
  }

  record(given: unknown): SenderKeyRecord {
    this.executor.compatible(this.key, GROUP);
    if (given instanceof SenderKeyRecord) return given;
    return given === undefined || given === null ? new SenderKeyRecord() : SenderKeyRecord.deserialize(given);
  }

  /** `before` is what counts if a message that was read can not be stored: it can come again. */
  save(turn: Turn, bytes: Buffer, before?: Buffer): unknown {
    const record = SenderKeyRecord._adopt(bytes);
    turn.hold(record);
    const call = (): unknown => this.store.storeSenderKey(this.name, record);
    return this.executor.write(turn, { value: bytes, fallback: before, again: this.#again, call });
  }
}

/** Makes and takes in sender keys. */
export class GroupSessionBuilder {
  readonly #store: SenderKeyStore;
  readonly #options: GroupOptions;

  constructor(senderKeyStore: SenderKeyStore, options: GroupOptions = {}) {
    this.#store = storeOf(senderKeyStore);
    executorOf(options, ['executor']);
    this.#options = options;
  }

  /** Takes a member's sender key in. Whose it is, the session says that it came in: name that sender, and no other. */
  async process(senderKeyName: SenderKeyName, distribution: SenderKeyDistributionMessage | { serialize(): Uint8Array }): Promise<void> {
    if (typeof distribution?.serialize !== 'function') throw invalid('a distribution is a SenderKeyDistributionMessage');
    const bytes = bytesOf(distribution.serialize(), 'a distribution');
    const row = new Row(this.#store, senderKeyName, this.#options);
    return row.run(async (turn) => {
      const record = row.record(turn.took(await row.ask(turn)));
      turn.took(await row.save(turn, guarded(() => native().groupProcess(record._bytes, bytes))));
    });
  }

  /** Our own sender key for the members, from the next message on; made if there is none. */
  create(senderKeyName: SenderKeyName): Promise<SenderKeyDistributionMessage> {
    return this.#distribute(senderKeyName, (bytes) => native().groupDistribution(bytes));
  }

  /** Begins a new chain: after a member left. Distribute it before the next message. */
  rotate(senderKeyName: SenderKeyName): Promise<SenderKeyDistributionMessage> {
    return this.#distribute(senderKeyName, (bytes) => native().groupDistribution(native().groupRotate(bytes)));
  }

  async #distribute(name: SenderKeyName, make: (bytes: Buffer) => { record: Buffer; bytes: Buffer }): Promise<SenderKeyDistributionMessage> {
    const { bytes } = await new Row(this.#store, name, this.#options).make(make);
    return new SenderKeyDistributionMessage(null, null, null, null, bytes);
  }
}

function storeOf(store: unknown): SenderKeyStore {
  if (typeof store !== 'object' || store === null) throw invalid('a store of sender keys is an object');
  return store as SenderKeyStore;
}

/** Encrypts as, or decrypts from, one sender of a group. */
export class GroupCipher {
  readonly #row: Row;

  constructor(senderKeyStore: SenderKeyStore, senderKeyName: SenderKeyName, options: GroupOptions = {}) {
    this.#row = new Row(senderKeyStore, senderKeyName, options);
  }

  /** Encrypts. The record is stored before the message comes back. */
  encrypt(paddedPlaintext: Uint8Array): Promise<Buffer> {
    const row = this.#row;
    return row.run(async (turn) => {
      turn.known(OURS);
      const plaintext = bytesOf(paddedPlaintext, 'a plaintext');
      const record = row.record(turn.took(await row.ask(turn)));
      const made = guarded(() => groupEncrypt(record._bytes, plaintext), SENDING);
      turn.took(await row.save(turn, made.record));
      return made.bytes;
    }, paddedPlaintext);
  }

  /** Encrypts many with one load and one store: all, or none. */
  async encryptMany(plaintexts: readonly Uint8Array[]): Promise<Buffer[]> {
    if (!Array.isArray(plaintexts)) throw invalid('plaintexts are a list of Buffers');
    const all = plaintexts.map((plaintext) => bytesOf(plaintext, 'a plaintext'));
    return (await this.#row.make((record) => native().groupEncryptMany(record, all), all)).all;
  }

  /** Decrypts. The signature is checked before anything is derived. */
  decrypt(senderKeyMessageBytes: Uint8Array): Promise<Buffer> {
    const row = this.#row;
    return row.run(async (turn) => {
      const message = bytesOf(senderKeyMessageBytes, 'a message');
      const record = row.record(turn.took(await row.ask(turn)));
      turn.hold(record);
      const before = record._bytes;
      let plaintext: Buffer;
      let after: Buffer;
      try {
        ({ bytes: plaintext, record: after } = guarded(() => groupDecrypt(record._bytes, message), reading(before)));
      } catch (thrown) {
        const said = isUsed(thrown) ? readBefore(turn, message) : undefined;
        if (said === undefined) throw thrown;
        // It was read, and whether that was stored was not certain.
        ({ plaintext } = said);
        after = Buffer.from(before);
      }
      turn.lost = () => keepRead(turn, message, { plaintext, identities: [] });
      turn.took(await row.save(turn, after, before));
      forgetRead(turn, message);
      return plaintext;
    }, senderKeyMessageBytes);
  }

  /** Decrypts many with one load and one store. Each gives its plaintext or its error. */
  async decryptMany(messages: readonly Uint8Array[]): Promise<(Buffer | SignalError)[]> {
    if (!Array.isArray(messages)) throw invalid('messages are a list of Buffers');
    const all = messages.map((message) => bytesOf(message, 'a message'));
    if (all.length === 0) return [];
    const row = this.#row;
    return row.run(async (turn) => {
      const record = row.record(turn.took(await row.ask(turn)));
      turn.hold(record);
      const before = record._bytes;
      const opened = guarded(() => native().groupDecryptMany(record._bytes, all));
      const { given } = saidBy(turn, all, opened.messages, reading(before));
      if (!given.some(isUint8Array)) return given;
      turn.lost = () => keepBatch(turn, all, given, []);
      turn.took(await row.save(turn, opened.record, before));
      forgetBatch(turn, all, given);
      return given;
    }, all);
  }
}

/**
 * The same work without stores and without waiting: pure functions over records. The caller keeps order, and stores the new record before anything is
 * sent or used.
 */
export const groupSync = Object.freeze({
  /** Our own sender key for the members, from the next message on; made if there is none. */
  create(record: SenderKeyRecord): { distribution: SenderKeyDistributionMessage; record: SenderKeyRecord } {
    return distribute((bytes) => native().groupDistribution(bytes), record._bytes);
  },
  /** Begins a new chain: after a member left. Distribute it before the next message. */
  rotate(record: SenderKeyRecord): { distribution: SenderKeyDistributionMessage; record: SenderKeyRecord } {
    return distribute((bytes) => native().groupDistribution(native().groupRotate(bytes)), record._bytes);
  },
  /** Takes a member's sender key in. */
  process(record: SenderKeyRecord, distribution: { serialize(): Uint8Array }): SenderKeyRecord {
    return guarded(() => SenderKeyRecord._adopt(native().groupProcess(record._bytes, bytesOf(distribution?.serialize(), 'a distribution'))));
  },
  /** Encrypts. */
  encrypt(record: SenderKeyRecord, paddedPlaintext: Uint8Array): { body: Buffer; record: SenderKeyRecord } {
    const made = guarded(() => groupEncrypt(record._bytes, bytesOf(paddedPlaintext, 'a plaintext')), SENDING);
    return { body: made.bytes, record: SenderKeyRecord._adopt(made.record) };
  },
  /** Decrypts. */
  decrypt(record: SenderKeyRecord, senderKeyMessageBytes: Uint8Array): { plaintext: Buffer; record: SenderKeyRecord } {
    const read = guarded(() => groupDecrypt(record._bytes, bytesOf(senderKeyMessageBytes, 'a message')), reading(record._bytes));
    return { plaintext: read.bytes, record: SenderKeyRecord._adopt(read.record) };
  },
});

function distribute(
  make: (bytes: Buffer) => { record: Buffer; bytes: Buffer },
  bytes: Buffer,
): { distribution: SenderKeyDistributionMessage; record: SenderKeyRecord } {
  const made = guarded(() => make(bytes), SENDING);
  return { distribution: new SenderKeyDistributionMessage(null, null, null, null, made.bytes), record: SenderKeyRecord._adopt(made.record) };
}
