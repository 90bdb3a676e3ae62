/** What ciphers ask of an application, and a storage over a key-value adapter that has the policies. */

import type { KeyPair } from './curve.js';
import type { Again, Row, Turn } from './calls.js';
import { checkedExecutor, type Executor } from './executor.js';
import { bytesOf, invalid, StorageError, isUint8Array } from './errors.js';
import { idOf, whoOf } from './keys.js';
import { forget, moveUnread, type Side } from './lanes.js';
import { native } from './native.js';
import { hasSessions, leftOf, recordOf, SessionRecord } from './record.js';

/** Removes the sessions of a record, where a removal that hung has to be done again. For this package only. */
const ERASE: unique symbol = Symbol.for('stvor.libsignal.erase.1');

/** Whose rows they are. For this package only. */
const OWN: unique symbol = Symbol.for('stvor.libsignal.own.1');

type Awaitable<T> = T | PromiseLike<T>;

/** Whether something is about to be sent, or came. */
export type Direction = 'sending' | 'receiving';

/** What changes together: all of it is stored, or none. */
export interface Change {
  /** `name.device`. */
  address: string;
  record: SessionRecord;
  /** The one-time prekey that is used up. */
  removePreKey?: number;
  /** The identity that was proven, and whose it is: to be pinned if none is. */
  identity?: { name: string; key: Buffer };
}

/** libsignal-node's contract, and what goes beyond it. Every function may answer at once or later. */
export interface SignalStorage {
  /** A record as it was stored, its `serialize()`, or nothing. */
  loadSession(address: string): Awaitable<unknown>;
  /** Once it resolved, the next `loadSession` has to give this record, whoever asks and within whichever transaction: the next message is sealed by it. */
  storeSession(address: string, record: SessionRecord): Awaitable<unknown>;
  /** Judges; called once the identity is proven, and before anything is sent to it. It need not store anything. */
  isTrustedIdentity(name: string, identityKey: Buffer, direction: Direction): Awaitable<boolean>;
  loadPreKey(id: number): Awaitable<KeyPair | undefined | null>;
  removePreKey(id: number): Awaitable<unknown>;
  loadSignedPreKey(id: number): Awaitable<KeyPair | undefined | null>;
  getOurRegistrationId(): Awaitable<number>;
  getOurIdentity(): Awaitable<KeyPair>;
  /** Both in one transaction. */
  storeSessionAndRemovePreKey?(address: string, record: SessionRecord, preKeyId: number): Awaitable<unknown>;
  /** All of a change in one transaction; it is preferred to everything above that stores. */
  commit?(change: Change): Awaitable<unknown>;
  /**
   * What the storage is of: everything of one scope and address goes one after the other. Without it all storages of the process share the order of an
   * address, because many applications make the object anew for each call; accounts that should not wait for each other have scopes of their own. Without
   * it, storages with one identity key and registration id are of one account.
   */
  readonly scope?: string | object;
  /**
   * The address under which the storage really keeps this one, if it has one row for several (a phone number and its LID): they then share an order.
   * It is asked in a place of the executor: call nothing of this package from inside it, which may need another one.
   */
  canonicalAddress?(address: string): Awaitable<string>;
}

/** Reads and writes of one transaction, or of the adapter itself. */
export interface KeyValue {
  get(key: string): Awaitable<unknown>;
  set(key: string, value: unknown): Awaitable<unknown>;
  delete(key: string): Awaitable<unknown>;
  /** Overwrites what a key holds, before it is deleted; where it is absent, zeros are set over it. */
  zeroize?(key: string): Awaitable<unknown>;
}

/** Where a storage keeps its rows. */
export interface StorageAdapter extends KeyValue {
  /** What the storage is of, as `SignalStorage.scope` says. */
  readonly scope?: string | object;
  /** Runs `work` so that all its writes land, or none. */
  transaction?<T>(work: (within: KeyValue) => Promise<T>): Promise<T>;
}

/** Policies of a storage. */
export interface StorageOptions {
  /** Whether an identity that was never seen is trusted. Default true. */
  trustOnFirstUse?: boolean;
  /** Asked about one that was never seen, where `trustOnFirstUse` allows it. */
  onFirstUseIdentity?: (name: string, identityKey: Buffer) => Awaitable<boolean>;
  /** Asked when it is another one than before. Without it: reject. */
  onIdentityMismatch?: (name: string, known: Buffer, identityKey: Buffer) => Awaitable<'reject' | 'replace'>;
  /** Refuses to work on an adapter that has no transactions. Default false. */
  requireAtomicSessionAndPreKey?: boolean;
  /** Who keeps order; the executor of the ciphers. Default one for all of the process. */
  executor?: Executor;
  /** What the storage is of, as `SignalStorage.scope` says; the adapter's `scope` if absent. */
  scope?: string | object;
}

/** A storage over an adapter. */
export interface AdapterStorage extends Required<Omit<SignalStorage, 'canonicalAddress' | 'scope'>> {
  readonly scope?: string | object;
  setIdentity(identity: KeyPair, registrationId: number): Promise<void>;
  storePreKey(id: number, keyPair: KeyPair): Promise<void>;
  storeSignedPreKey(id: number, keyPair: KeyPair): Promise<void>;
  removeSignedPreKey(id: number): Promise<void>;
  /** Destroys the sessions with an address. Handshakes that were used stay known (16 bytes each), so that a replay of one starts nothing. */
  deleteSession(address: string): Promise<void>;
  /**
   * Moves a session to another address of the same peer (a phone number to a LID), if there is none; the identity that is pinned counts for both names
   * then. `IDENTITY_CHANGED` when the other name has another one.
   */
  migrateSession(from: string, to: string): Promise<boolean>;
  /** The identity that is pinned. */
  getIdentity(name: string): Promise<Buffer | undefined>;
  /** Pins one, over another: after the user compared safety numbers. */
  saveIdentity(name: string, identityKey: Uint8Array): Promise<void>;
  loadSenderKey(name: { toString(): string }): Promise<unknown>;
  storeSenderKey(name: { toString(): string }, record: { toBytes(): Buffer }): Promise<void>;
}

/** A storage with policies over a key-value adapter. Values are Buffers, and may come back as any `Uint8Array`, or as JSON has them. */
export function createStorage(adapter: StorageAdapter, options: StorageOptions = {}): AdapterStorage {
  for (const name of ['get', 'set', 'delete'] as const) {
    if (typeof adapter?.[name] !== 'function') throw invalid(`an adapter has a function ${name}`);
  }
  if (options.requireAtomicSessionAndPreKey && typeof adapter.transaction !== 'function') {
    throw new StorageError('the adapter has no transaction(), and requireAtomicSessionAndPreKey asks for one', {
      code: 'STORAGE_NOT_ATOMIC',
    });
  }
  const atomically = <T>(work: (within: KeyValue) => Promise<T>): Promise<T> =>
    adapter.transaction === undefined ? work(adapter) : adapter.transaction(work);
  const bytes = async (within: KeyValue, key: string): Promise<Buffer | undefined> => {
    const value = await within.get(key);
    return value === undefined || value === null ? undefined : buffer(value, key);
  };
  const pair = async (key: string): Promise<KeyPair | undefined> => {
    const packed = await bytes(adapter, key);
    return packed && { pubKey: Buffer.from(packed.subarray(0, 33)), privKey: Buffer.from(packed.subarray(33)) };
  };
  /** Destroys what a key holds; what is left of it takes its place. */
  const destroy = async (within: KeyValue, key: string, left: Buffer | null = null): Promise<void> => {
    // Over it first: a row that is only unlinked can be found again. All within the transaction: what is undone is undone whole.
    if (within.zeroize !== undefined) {
      await within.zeroize(key);
    } else {
      const { length = 0 } = Object(revived(await within.get(key))) as { length?: unknown };
      if (typeof length === 'number' && length > 0) await within.set(key, Buffer.alloc(length));
    }
    if (left === null) await within.delete(key);
    else await within.set(key, Buffer.from(left));
  };
  const executor = checkedExecutor(options.executor);
  const registrationId = async (): Promise<number | undefined> => numberOf(await adapter.get('registration_id'), 'registration_id');
  /** Whose records these are; before there is an identity there is none. */
  const own = async (): Promise<string | undefined> => {
    const [identity, id] = [await bytes(adapter, 'our_identity'), await registrationId()];
    return identity && id !== undefined ? whoOf(identity.subarray(0, 33), id) : undefined;
  };
  /** A transaction that was given up is undone, where that is possible. */
  const unlessOver = (turn: Turn): void => {
    if (turn.over) throw new StorageError('the call was given up', { code: 'STORAGE_TIMEOUT', retryable: true });
  };
  const again = (address: string): Again => ({
    write: (owner, value, sides) => storeAgain(ERASE in owner ? (owner as typeof storage) : storage, address, value, sides),
    whose: (owner) => (ERASE in owner ? (owner as typeof storage) : storage)[OWN](),
  });
  const replacing = new Map<string, Buffer>();
  const pin = async (within: KeyValue, { name, key }: { name: string; key: Buffer }): Promise<void> => {
    const known = await bytes(within, `identity:${name}`);
    if (known !== undefined && native().equal(known, key)) return;
    if (known !== undefined && !replacing.get(name)?.equals(key)) {
      throw new StorageError(`the identity of ${name} changed meanwhile`, { code: 'IDENTITY_CHANGED' });
    }
    replacing.delete(name);
    await within.set(`identity:${name}`, key);
  };
  const commit = async ({ address, record, removePreKey, identity }: Change): Promise<void> => {
    await atomically(async (within) => {
      if (identity !== undefined) await pin(within, identity);
      await within.set(`session:${address}`, record.toBytes());
      if (removePreKey !== undefined) await destroy(within, `prekey:${removePreKey}`);
    });
  };

  const storage: AdapterStorage & { [ERASE]: Erase; [OWN]: () => Promise<string | undefined> } = {
    scope: options.scope ?? adapter.scope,
    commit,
    [OWN]: own,
    [ERASE]: (address, left = null) => atomically((within) => destroy(within, `session:${address}`, left)),
    loadSession: async (address) => {
      const stored = await adapter.get(`session:${address}`);
      return stored === undefined || stored === null ? undefined : SessionRecord.deserialize(revived(stored));
    },
    storeSession: (address, record) => commit({ address, record }),
    storeSessionAndRemovePreKey: (address, record, removePreKey) => commit({ address, record, removePreKey }),
    isTrustedIdentity: async (name, identityKey) => {
      const known = await bytes(adapter, `identity:${name}`);
      if (known === undefined) {
        if (options.trustOnFirstUse === false) return false;
        return options.onFirstUseIdentity === undefined || (await options.onFirstUseIdentity(name, identityKey)) === true;
      }
      if (native().equal(known, identityKey)) return true;
      if ((await options.onIdentityMismatch?.(name, known, identityKey)) !== 'replace') return false;
      replacing.set(name, Buffer.from(identityKey));
      return true;
    },
    getIdentity: (name) => bytes(adapter, `identity:${name}`),
    saveIdentity: async (name, identityKey) => void (await adapter.set(`identity:${name}`, Buffer.from(bytesOf(identityKey, 'an identity key')))),
    loadPreKey: (id) => pair(`prekey:${id}`),
    storePreKey: async (id, keyPair) => void (await adapter.set(`prekey:${id}`, packed(keyPair))),
    removePreKey: (id) => destroy(adapter, `prekey:${id}`),
    loadSignedPreKey: (id) => pair(`signedprekey:${id}`),
    storeSignedPreKey: async (id, keyPair) => void (await adapter.set(`signedprekey:${id}`, packed(keyPair))),
    removeSignedPreKey: (id) => destroy(adapter, `signedprekey:${id}`),
    getOurRegistrationId: async () => {
      const id = await registrationId();
      if (id !== undefined) return id;
      throw new StorageError('there is no identity in the storage; call setIdentity once', { code: 'KEY_MISSING' });
    },
    getOurIdentity: async () => {
      const own = await pair('our_identity');
      if (own !== undefined) return own;
      throw new StorageError('there is no identity in the storage; call setIdentity once', { code: 'KEY_MISSING' });
    },
    setIdentity: async (identity, id) => {
      const number = Buffer.alloc(4);
      number.writeUInt32BE(idOf(id, 'a registration id'), 0);
      await atomically(async (within) => {
        const known = await bytes(within, 'our_identity');
        if (known !== undefined && !native().equal(known, packed(identity))) {
          throw new StorageError('there is an identity, and it is never replaced silently', { code: 'IDENTITY_EXISTS' });
        }
        await within.set('our_identity', packed(identity));
        await within.set('registration_id', number);
      });
    },
    deleteSession: (address) =>
      executor.run(storage, address, async (turn) => {
        const who = turn.took(await executor.ask(turn, own));
        if (who !== undefined) turn.known(who);
        const newest = turn.newest();
        const left = leftOfStored(newest === undefined ? turn.took(await executor.ask(turn, () => adapter.get(`session:${address}`))) : newest);
        const call = () => atomically(async (within) => {
          await destroy(within, `session:${address}`, left);
          unlessOver(turn);
        });
        turn.took(await executor.write(turn, { value: left, call, again: again(address) }));
        forget(turn.state);
      }),
    migrateSession: (from, to) =>
      executor.runBoth(storage, [from, to], async ({ from: source, to: target, asks }) => {
        if (source === target) return false;
        // Once, by the one that asks: a job that the other one asks for would outlive it.
        const who = asks.took(await executor.ask(asks, own));
        if (who !== undefined) for (const turn of [source, target]) turn.known(who);
        const row = async (turn: Turn, address: string): Promise<Buffer | undefined> => {
          const newest = turn.newest();
          if (newest !== undefined) return newest ?? undefined;
          return recordOf(asks.took(await executor.ask(asks, () => storage.loadSession(address))))?.toBytes();
        };
        const [moved, there] = [await row(source, from), await row(target, to)];
        if (moved === undefined || !hasSessions(moved) || (there !== undefined && hasSessions(there))) return false;
        // Handshakes that were used at either stay known at both.
        const [left, whole] = [leftOf(moved), there === undefined ? moved : native().recordRemember(moved, there)];
        const call = () => atomically(async (within) => {
          const [pinned, other] = [await bytes(within, `identity:${nameOf(from)}`), await bytes(within, `identity:${nameOf(to)}`)];
          if (pinned !== undefined && other !== undefined && !native().equal(pinned, other)) {
            throw new StorageError(`the identities of ${nameOf(from)} and ${nameOf(to)} are not the same`, { code: 'IDENTITY_CHANGED' });
          }
          if (pinned !== undefined && other === undefined) await within.set(`identity:${nameOf(to)}`, pinned);
          await within.set(`session:${to}`, Buffer.from(whole));
          await destroy(within, `session:${from}`, left);
          unlessOver(asks);
        });
        // Given up, it counts as not done: the caller may ask again.
        const gone: Row = { turn: source, value: left, fallback: moved, again: again(from) };
        const made: Row = { turn: target, value: whole, fallback: there ?? null, again: again(to) };
        const [its, other] = asks === source ? [gone, made] : [made, gone];
        asks.took(await executor.write(asks, { ...its, call, also: [other] }));
        moveUnread(source.state, target.state);
        return true;
      }),
    loadSenderKey: async (name) => revived((await adapter.get(`sender_key:${name}`)) ?? undefined),
    storeSenderKey: async (name, record) => void (await adapter.set(`sender_key:${name}`, record.toBytes())),
  };
  return storage;
}

type Erase = (address: string, left?: Buffer | null) => Promise<void>;

/** What is left of a record as it was stored, without its sessions; nothing of one that does not read back. */
function leftOfStored(stored: unknown): Buffer | null {
  try {
    const record = recordOf(revived(stored));
    return record === undefined ? null : leftOf(record._bytes);
  } catch {
    return null;
  }
}

/** @internal Writes a record again whose write hung, and does what was to be done with it. */
export async function storeAgain(storage: SignalStorage, address: string, bytes: Buffer | null, sides: readonly Side[]): Promise<void> {
  const { [ERASE]: erase } = storage as { [ERASE]?: Erase };
  if (erase !== undefined && (bytes === null || !hasSessions(bytes))) return erase(address, bytes);
  // Of their own each: storages may wipe what they are given.
  const record = () => (bytes === null ? new SessionRecord() : SessionRecord._adopt(Buffer.from(bytes)));
  if (storage.commit === undefined) {
    const used = sides.flatMap(({ removePreKey }) => (removePreKey === undefined ? [] : [removePreKey]));
    if (used.length > 0 && storage.storeSessionAndRemovePreKey !== undefined) {
      for (const id of used) await storage.storeSessionAndRemovePreKey(address, record(), id);
      return;
    }
    await storage.storeSession(address, record());
    for (const id of used) await storage.removePreKey(id);
    return;
  }
  for (const side of sides.length === 0 ? [{}] : sides) {
    try {
      await storage.commit({ address, record: record(), ...side });
    } catch (thrown) {
      const { identity, ...rest }: Side = side;
      if (identity === undefined) throw thrown;
      // Another identity may be pinned by now: that is no reason not to store what counts.
      await storage.commit({ address, record: record(), ...rest });
    }
  }
}

/** The name in an address, `name.device`. */
function nameOf(address: string): string {
  const at = address.lastIndexOf('.');
  return at < 0 ? address : address.slice(0, at);
}

function packed(keyPair: KeyPair): Buffer {
  const both = Buffer.concat([bytesOf(keyPair?.pubKey, 'a public key'), bytesOf(keyPair?.privKey, 'a private key')]);
  if (both.length !== 65) throw invalid('a key pair has a public key of 33 bytes and a private key of 32');
  return both;
}

function buffer(value: unknown, key: string): Buffer {
  const back = revived(value);
  if (isUint8Array(back)) return bytesOf(back, key);
  throw new StorageError(`the row ${key} is damaged`, { code: 'BAD_RECORD' });
}

/** A number of ours: 4 bytes, or what versions of before stored, a number, as whatever an adapter makes of it. */
function numberOf(value: unknown, key: string): number | undefined {
  if (value === undefined || value === null) return undefined;
  if (typeof value === 'number') return value;
  if (typeof value === 'string' && /^[0-9]{1,10}$/.test(value)) return Number(value);
  const four = buffer(value, key);
  if (four.length === 4) return four.readUInt32BE(0);
  throw new StorageError(`the row ${key} is damaged`, { code: 'BAD_RECORD' });
}

/** Buffers come back from JSON as objects. */
function revived(value: unknown): unknown {
  const { type, data } = (typeof value === 'object' && value !== null ? value : {}) as { type?: unknown; data?: unknown };
  if (type !== 'Buffer') return value;
  return typeof data === 'string' ? Buffer.from(data, 'base64') : Buffer.from(data as number[]);
}
