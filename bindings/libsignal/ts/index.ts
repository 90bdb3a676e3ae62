/**
 * The Signal protocol, version 3, with the API of libsignal-node: replace one import.
 *
 * @packageDocumentation
 */

import { bytesOf, guarded, invalid } from './errors.js';
import { publicKeyOf } from './keys.js';
import { native } from './native.js';

export * as crypto from './crypto.js';
export * as curve from './curve.js';
export * as keyhelper from './keyhelper.js';
export { ProtocolAddress } from './address.js';
export {
  BackpressureError,
  MessageCounterError,
  PreKeyError,
  SessionError,
  SignalError,
  StorageError,
  UntrustedIdentityKeyError,
  type ErrorCode,
} from './errors.js';
export { defaultExecutor, Executor, setDefaultExecutor, type ExecutorEvents, type ExecutorOptions } from './executor.js';
export { SessionRecord, type SerializedSessionRecord, type SessionEntry } from './record.js';
export {
  SessionBuilder,
  SessionCipher,
  sync,
  type CiphertextMessage,
  type Device,
  type E2ESession,
  type Own,
  type SessionOptions,
} from './session.js';
export {
  createStorage,
  type AdapterStorage,
  type Change,
  type Direction,
  type KeyValue,
  type SignalStorage,
  type StorageAdapter,
  type StorageOptions,
} from './storage.js';
export type { KeyPair } from './curve.js';

/** One of two people: a stable id (a phone number or service id) and an identity key. */
export interface FingerprintParty {
  id: string | Uint8Array;
  identityKey: Uint8Array;
}

/** The safety number of two people, as Signal shows it: slow on purpose, a few milliseconds. */
export const fingerprint = Object.freeze({
  /** 60 digits, the same for both, and the bytes of a QR code. */
  create(own: FingerprintParty, peer: FingerprintParty): { digits: string; scannable: Buffer } {
    return guarded(() => native().safetyNumber(...party(own), ...party(peer)));
  },
  /** Compares what was scanned from the peer's screen. */
  compare(own: FingerprintParty, peer: FingerprintParty, scanned: Uint8Array): 'match' | 'mismatch' | 'unknown' {
    return guarded(() => native().compareSafetyNumber(...party(own), ...party(peer), bytesOf(scanned, 'a code'))) as 'match';
  },
});

function party(given: FingerprintParty): [Uint8Array, Uint8Array] {
  if (typeof given !== 'object' || given === null) throw invalid('a party has an id and an identityKey');
  const id = typeof given.id === 'string' ? Buffer.from(given.id) : bytesOf(given.id, 'an id');
  return [id, publicKeyOf(given.identityKey, 'identityKey')];
}
