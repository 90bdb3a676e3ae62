/** What builders and ciphers share: the storage of an address, and what is asked of it. */

import { addressOf, type ProtocolAddress } from './address.js';
import type { Again, Turn, Write } from './calls.js';
import type { KeyPair } from './curve.js';
import { bytesOf, guarded, invalid, isUint8Array, StorageError, UntrustedIdentityKeyError } from './errors.js';
import { checkedExecutor, type Executor } from './executor.js';
import { idOf, publicKeyOf, whoOf } from './keys.js';
import { isUncertain, moveState, type Side } from './lanes.js';
import { recordOf, SessionRecord } from './record.js';
import { type SignalStorage, storeAgain } from './storage.js';

/** Options of builders and ciphers. */
export interface SessionOptions {
  /** Who keeps order. Default one for all of the process. */
  executor?: Executor | undefined;
  /** Refuses to work on a storage that can not store a session and remove a prekey in one transaction. Default false. */
  requireAtomicSessionAndPreKey?: boolean | undefined;
}

/** Who we are, for the synchronous variants. */
export interface Own {
  identity: KeyPair;
  registrationId: number;
}

/** What every session of this protocol has weaker than our own profiles. */
const SESSION = Object.freeze(['no-post-quantum', 'short-mac']);

/** @internal Who we are, as the native half wants it. */
export interface Packed {
  readonly bytes: Buffer;
  /** The same without what is secret, for a slip: our public key and registration id. Of keys of wrong lengths both are zeroes, which are no key either. */
  readonly slip: Buffer;
  /** Our public key and registration id, as a key of a map. */
  readonly who: string;
  readonly registrationId: number;
  /** The keys that were packed, as they were given. */
  readonly pair: KeyPair;
}

const packedIdentities = new WeakMap<object, Packed>();

/** What was packed of a storage: two may have one identity object, and a registration id each. */
const ofStorages = new WeakMap<object, Packed>();

/** What was packed for an identity, if its keys are still the same. */
function packedBefore({ pubKey, privKey }: KeyPair, known: Packed | undefined): Packed | undefined {
  if (known === undefined || !isUint8Array(pubKey) || !isUint8Array(privKey)) return undefined;
  return same(known.pair.pubKey, pubKey) && same(known.pair.privKey, privKey) ? known : undefined;
}

/** In a time that tells nothing of where they differ. For keys this is faster than a call of Node. */
function same(a: Uint8Array, b: Uint8Array): boolean {
  let other = a.length ^ b.length;
  for (let at = 0; at < a.length; at += 1) other |= (a[at] as number) ^ (b[at] as number);
  return other === 0;
}

/** @internal Packs who we are. */
export function packed({ identity, registrationId }: Own): Packed {
  if (typeof identity !== 'object' || identity === null) throw invalid('our identity is a key pair');
  const known = packedBefore(identity, packedIdentities.get(identity));
  if (known !== undefined && known.registrationId === registrationId) return known;
  const id = Buffer.alloc(4);
  id.writeUInt32BE(idOf(registrationId, 'a registration id'), 0);
  const pubKey = publicKeyOf(identity.pubKey, 'our public key');
  const privKey = bytesOf(identity.privKey, 'our private key');
  const whole = pubKey.length === 33 && privKey.length === 32;
  const bytes = whole ? Buffer.concat([pubKey, privKey, id]) : Buffer.alloc(69);
  const slip = whole ? Buffer.concat([pubKey, id]) : Buffer.alloc(37);
  const pair = { pubKey: Buffer.from(identity.pubKey), privKey: Buffer.from(identity.privKey) };
  const made = { bytes, slip, who: whoOf(pubKey, registrationId), registrationId, pair };
  packedIdentities.set(identity, made);
  return made;
}

/** Whose rows a storage has now, as `Packed.who`. */
async function whoseRows(storage: SignalStorage): Promise<string> {
  const { pubKey } = (await storage.getOurIdentity()) ?? {};
  return whoOf(publicKeyOf(pubKey, 'our public key'), await storage.getOurRegistrationId());
}

/** @internal What is stored with a record. */
export interface With extends Pick<Write, 'fallback' | 'refused'> {
  identity?: Buffer | undefined;
  removePreKey?: number | undefined;
}

const OPTIONS = ['executor', 'requireAtomicSessionAndPreKey'];

/** @internal */
export class Peer {
  readonly storage: SignalStorage;
  readonly address: ProtocolAddress;
  readonly key: string;
  readonly executor: Executor;
  readonly #again: Again;

  constructor(storage: SignalStorage, address: unknown, options: SessionOptions = {}) {
    if (typeof storage !== 'object' || storage === null) throw invalid('storage is an object');
    this.storage = storage;
    this.address = addressOf(address);
    this.key = this.address.toString();
    this.executor = executorOf(options, OPTIONS);
    const storageOf = (owner: object) => (typeof (owner as SignalStorage).storeSession === 'function' ? (owner as SignalStorage) : storage);
    this.#again = {
      write: (owner, value, sides) => storeAgain(storageOf(owner), this.key, value, sides),
      whose: (owner) => whoseRows(storageOf(owner)),
    };
    const atomic = typeof storage.commit === 'function' || typeof storage.storeSessionAndRemovePreKey === 'function';
    if (options.requireAtomicSessionAndPreKey && !atomic) {
      throw new StorageError('the storage has neither commit nor storeSessionAndRemovePreKey, and one is asked for', {
        code: 'STORAGE_NOT_ATOMIC',
      });
    }
  }

  /** `held` is what is kept while it waits: bytes, or a list of bytes. */
  run<T>(work: (turn: Turn) => Promise<T>, held?: unknown): Promise<T> {
    const { storage, key, executor } = this;
    if (storage.canonicalAddress === undefined) return executor.run(storage, key, work, false, held);
    return this.#runCanonical((address) => executor.run(storage, address, work, true, held), held);
  }

  /** The same for work that tells the executor itself what came of it, and never fails. */
  runTelling<T>(work: (turn: Turn) => unknown, by: unknown, held: unknown): Promise<T> {
    const { storage, key, executor } = this;
    if (storage.canonicalAddress === undefined) return executor.runTelling(storage, key, work, by, held);
    return this.#runCanonical((address) => executor.runTelling<T>(storage, address, work, by, held, true), held);
  }

  /** The address is asked for each time: a storage may learn that two are one. */
  #runCanonical<T>(run: (address: string) => Promise<T>, held: unknown): Promise<T> {
    const { storage, key, executor } = this;
    const ask = async (turn: Turn): Promise<string> => {
      const address: unknown = turn.took(await executor.ask<unknown>(turn, () => storage.canonicalAddress?.(key)));
      if (typeof address !== 'string' || address === '') throw invalid('canonicalAddress gives an address');
      return address;
    };
    const go = async (address: string): Promise<T> => {
      if (address !== key && isUncertain(storage, key)) await this.#move(address);
      return run(address);
    };
    return executor.runGiven(storage, key, ask, go, held);
  }

  /** The address was one of its own when a write of it hung. */
  #move(address: string): Promise<void> {
    const move = async ({ from, to, asks }: { from: Turn; to: Turn; asks: Turn }): Promise<void> => {
      const { who } = await this.own(asks);
      for (const turn of [from, to]) turn.known(who);
      moveState(from.state, to.state);
    };
    return this.executor.runBoth(this.storage, [this.key, address], move, true);
  }

  /** Asks for the record, for `record` to read. */
  askRecord(turn: Turn): unknown {
    const newest = turn.newest();
    if (newest !== undefined) return newest === null ? undefined : SessionRecord._adopt(newest);
    const { executor } = this;
    executor.asks(turn);
    return executor.answered<unknown>(turn, this.storage.loadSession(this.key));
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
    const { executor } = this;
    executor.asks(turn);
    return executor.answered(turn, this.storage.getOurIdentity());
  }

  /** Who we are, packed, where it was before. The registration id is what it was when it was last asked for: only handshakes have it in them. */
  known(turn: Turn, identity: KeyPair): Packed | undefined {
    if (typeof identity !== 'object' || identity === null) throw invalid('our identity is a key pair');
    const known = packedBefore(identity, ofStorages.get(this.storage));
    if (known !== undefined) turn.known(known.who);
    return known;
  }

  /** Who we are, packed. */
  async own(turn: Turn): Promise<Packed> {
    const identity = turn.took(await this.askIdentity(turn));
    return this.known(turn, identity) ?? this.registered(turn, identity);
  }

  /** The same, with the registration id as it is now. */
  async registered(turn: Turn, identity: KeyPair): Promise<Packed> {
    const registrationId = turn.took(await this.executor.ask(turn, () => this.storage.getOurRegistrationId()));
    const own = packed({ identity, registrationId: idOf(registrationId, 'our registration id') });
    ofStorages.set(this.storage, own);
    turn.known(own.who);
    return own;
  }

  /** For what needs to know nothing of who we are but whose record it is. */
  async whose(turn: Turn): Promise<void> {
    await this.own(turn);
  }

  /** Asks whether an identity is trusted, for `judge`. */
  askTrust(turn: Turn, identity: Buffer, direction: 'sending' | 'receiving'): unknown {
    const { executor } = this;
    executor.asks(turn);
    return executor.answered<unknown>(turn, this.storage.isTrustedIdentity(this.address.id, identity, direction));
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
    if (storage.commit !== undefined || rest.removePreKey !== undefined) return this.#storeAll(turn, record, rest);
    return this.#write(turn, record, rest, () => storage.storeSession(key, record), undefined);
  }

  /** The same of a message, for most of which there is little to it. `fallback` is what counts if it is given up. */
  storeOfMessage(turn: Turn, record: SessionRecord, fallback: Buffer | undefined, identity: Buffer, removePreKey?: number): unknown {
    const { storage, executor, key } = this;
    const little = storage.commit === undefined && removePreKey === undefined && executor.isCertain(turn);
    if (!little) return this.store(turn, record, { fallback, identity, removePreKey });
    turn.hold(record);
    const written = { value: record._bytes, fallback, refused: undefined, again: this.#again, side: undefined };
    executor.asks(turn);
    return executor.wrote(turn, written, executor.answered<unknown>(turn, storage.storeSession(key, record)));
  }

  #write(turn: Turn, record: SessionRecord, { fallback, refused }: With, call: () => unknown, side: Side | undefined): unknown {
    turn.hold(record);
    return this.executor.write(turn, { value: record._bytes, fallback, refused, again: this.#again, call, side });
  }

  async #storeAll(turn: Turn, record: SessionRecord, rest: With): Promise<void> {
    const { storage, executor, key } = this;
    const { removePreKey } = rest;
    const identity = rest.identity && { name: this.address.id, key: rest.identity };
    const side = { ...(identity && { identity }), ...(removePreKey === undefined ? {} : { removePreKey }) };
    const write = async (call: () => unknown): Promise<void> => {
      turn.took(await this.#write(turn, record, rest, call, side));
    };
    if (storage.commit !== undefined) {
      await write(() => storage.commit?.({ address: key, record, removePreKey, identity }));
    } else if (removePreKey !== undefined && storage.storeSessionAndRemovePreKey !== undefined) {
      await write(() => storage.storeSessionAndRemovePreKey?.(key, record, removePreKey));
    } else {
      // The session first: after a crash between the two a replay meets the session, not the prekey.
      await write(() => storage.storeSession(key, record));
      if (removePreKey !== undefined) turn.took(await executor.ask(turn, () => storage.removePreKey(removePreKey)));
    }
  }

  compatibility(what: readonly string[]): void {
    if (what.length > 0) this.executor.emit('compatibility', () => ({ address: this.key, what }));
  }
}

/** @internal The executor of options, none of which is misspelt. */
export function executorOf(options: { executor?: Executor | undefined }, known: readonly string[]): Executor {
  if (typeof options !== 'object' || options === null) throw invalid('options are an object');
  for (const key of Object.keys(options)) if (!known.includes(key)) throw invalid(`there is no option "${key}"; there are ${known.join(', ')}`);
  return checkedExecutor(options.executor);
}
