/**
 * The protocol without a relay and without a store, synchronous: X3DH over P-256 with ML-KEM-768, then the double ratchet. You carry
 * the bytes and keep the sessions.
 *
 * @example
 * ```js
 * const [alice, bob] = [generateKeyPair(), generateKeyPair()];
 * const { session, handshake } = establishSession(alice, bob.bundle);
 * const first = encryptMessage(session, 'Hello');
 * // handshake and first travel to Bob
 * const { session: his } = establishSession(bob, handshake);
 * decryptMessage(his, first); // 'Hello'
 * ```
 *
 * @packageDocumentation
 */

import { elements, isUint8Array, isWellFormed, kindOf, unshared } from './check.js';
import { failure as failureOf, invalid, StvorError } from './errors.js';
import { madeHere, OURS } from './made.js';
import { native, type NativeKeyPair, type NativeSession } from './native.js';

export { StvorError } from './errors.js';

/** What to do about codes that have another answer where nothing fetches bundles and nothing is stored. */
const ACTIONS: Record<string, string> = {
  BAD_PARAMETER: 'Give a key of 32 random bytes, the same for sealing and opening.',
  IDENTITY_CHANGED: 'Do not answer: the message is not from the one whose handshake this session was established with.',
  NO_SESSION: 'Decrypt the first message before you encrypt, save or put away: the side that answers is ready then.',
  UNKNOWN_SESSION: 'Establish a session with the handshake that travelled with the first message.',
};

const failure = (thrown: unknown): StvorError => failureOf(thrown, ACTIONS);

function guarded<T>(act: () => T): T {
  try {
    return act();
  } catch (thrown) {
    throw failure(thrown);
  }
}

/** Bytes of a header: ratchet key 65, previous chain length 4, message number 4, nonce 12. */
export const HEADER_BYTES = 85;

/** Messages of one batch. */
const MOST_MESSAGES = 100_000;

/** The longest message that can be: larger ones are refused before they are copied. */
const LONGEST = 1_048_576;

/** A key pair: made by `generateKeyPair`. The private halves stay inside. */
export class KeyPair {
  /** @internal */
  readonly _native: NativeKeyPair;
  /** The public signing key that peers know this side by: 65 bytes. */
  readonly publicKey: Uint8Array;

  /** @internal */
  constructor(native: NativeKeyPair, ours: typeof OURS) {
    madeHere(ours, 'KeyPair', 'generateKeyPair');
    this._native = native;
    this.publicKey = native.publicKey;
  }

  /** What a peer needs to start a session with this side; public, signed. The one of the last `renewBundle`. */
  get bundle(): Uint8Array {
    return guarded(() => this._native.bundle);
  }
}

/** A session: a handle that moves forward with each message. Made by `establishSession` and `deserializeSession`. */
export class Session {
  /** @internal */
  readonly _native: NativeSession;

  /** @internal */
  constructor(native: NativeSession, ours: typeof OURS) {
    madeHere(ours, 'Session', 'establishSession');
    this._native = native;
  }

  /** The peer's public signing key, 65 bytes: compare it with the one that you expect. Proven once the first message decrypted. */
  get peerPublicKey(): Uint8Array {
    return guarded(() => this._native.peerPublicKey);
  }

  /** Whether messages can be encrypted: the side that answers has to decrypt the first message before. */
  get ready(): boolean {
    return guarded(() => this._native.ready);
  }

  /** Whether the peer has answered, or has written first. */
  get established(): boolean {
    return guarded(() => this._native.established);
  }
}

/** An encrypted message. */
export class EncryptedMessage {
  /** The whole message as bytes, with the handshake while the peer has not answered. */
  readonly bytes: Uint8Array;
  /** The header: ratchet key, previous chain length, message number, nonce. 85 bytes. */
  readonly header: Uint8Array;
  /** The ciphertext with its tag. */
  readonly ciphertext: Uint8Array;

  /** @internal */
  constructor(bytes: Uint8Array, headerAt: number) {
    this.bytes = bytes;
    this.header = bytes.subarray(headerAt, headerAt + HEADER_BYTES);
    this.ciphertext = bytes.subarray(headerAt + HEADER_BYTES);
  }

  /** The whole message as one base64url string. */
  get message(): string {
    return base64url(this.bytes);
  }

  /** The whole message as one base64url string. */
  toString(): string {
    return this.message;
  }

  /** The whole message as one base64url string. */
  toJSON(): string {
    return this.message;
  }
}

/** Makes a key pair. */
export function generateKeyPair(): KeyPair {
  return guarded(() => new KeyPair(native().generateKeyPair(), OURS));
}

/**
 * Gives a key pair a new bundle; its identity and its sessions stay. Handshakes for the sixteen bundles before it are still accepted, older ones
 * are not. Do it now and then, and when a first message is refused with `BUNDLE_USED_UP`: a bundle is good for 4,096 handshakes, because each
 * leaves a mark that refuses its replay. Save the pair afterwards.
 *
 * @returns the new bundle, for peers.
 */
export function renewBundle(own: KeyPair): Uint8Array {
  return guarded(() => {
    if (!(own instanceof KeyPair)) throw invalid('the first argument is a key pair of generateKeyPair');
    return own._native.renew();
  });
}

/**
 * Starts a session: with a peer's `bundle` as the side that writes first, with its `handshake` as the side that answers.
 *
 * @returns the session, and the handshake, which travels with the first message.
 */
export function establishSession(own: KeyPair, peer: Uint8Array | string): { session: Session; handshake: Uint8Array } {
  return guarded(() => {
    if (!(own instanceof KeyPair)) throw invalid('the first argument is a key pair of generateKeyPair');
    const session = native().establishSession(own._native, bytesOf(peer, 'the bundle or handshake'));
    return { session: new Session(session, OURS), handshake: session.handshake };
  });
}

/** Encrypts text or bytes, 64 KiB at most. The session moves forward. */
export function encryptMessage(session: Session, plaintext: string | Uint8Array): EncryptedMessage {
  return guarded(() => {
    const inner = sessionOf(session);
    if (typeof plaintext !== 'string' && !isUint8Array(plaintext)) {
      throw invalid(`a plaintext is a string or a Uint8Array, not ${kindOf(plaintext)}`);
    }
    if (plaintext.length > LONGEST) throw tooLarge(plaintext.length);
    if (typeof plaintext === 'string' && !isWellFormed(plaintext)) throw invalid('the plaintext has half of a character (a lone surrogate)');
    const length = typeof plaintext === 'string' ? inner.encryptText(plaintext, view) : inner.encryptBytes(unshared(plaintext), view);
    fetch(inner, length);
    return new EncryptedMessage(room.slice(4, length), view.readUInt32LE(0));
  });
}

/**
 * Decrypts a message: as `{ header, ciphertext }`, as the whole base64url string, or as all its bytes. If it fails nothing changed.
 *
 * @returns text or bytes as they were encrypted; `null` for a message that only renews keys.
 */
export function decryptMessage(
  session: Session,
  message: { readonly header: Uint8Array; readonly ciphertext: Uint8Array } | string | Uint8Array,
): string | Uint8Array | null {
  return guarded(() => {
    const inner = sessionOf(session);
    let length: number;
    if (typeof message === 'string' || isUint8Array(message)) {
      length = inner.decrypt(bytesOf(message, 'the message'), view);
    } else {
      if (typeof message !== 'object' || message === null) throw invalid(`a message is not ${kindOf(message)}`);
      const { header, ciphertext } = message;
      if (!(isUint8Array(header) && isUint8Array(ciphertext))) throw invalid('header and ciphertext are Uint8Arrays');
      if (ciphertext.length > LONGEST) throw tooLarge(ciphertext.length);
      length = inner.decryptParts(unshared(header), unshared(ciphertext), view);
    }
    fetch(inner, length);
    try {
      const [kind] = room;
      return kind === TEXT ? view.toString('utf8', 1, length) : kind === BYTES ? room.slice(1, length) : null;
    } finally {
      // What was decrypted is the application's alone.
      room.fill(0, 0, length);
    }
  });
}

/**
 * The answer that renews keys, if one is due: when 50 messages came and none went. Hand it to the peer like a message; without it
 * keys are renewed when you next write.
 */
export function takeReply(session: Session): Uint8Array | null {
  return guarded(() => sessionOf(session).takeReply());
}

/**
 * The session as bytes, sealed with AES-256-GCM under `key` (32 bytes). Keep only the newest: a session that continues from older bytes
 * uses keys a second time.
 */
export function serializeSession(session: Session, key: Uint8Array): Uint8Array {
  return guarded(() => sessionOf(session).save(bytesOf(key, 'the key')));
}

/** Opens what `serializeSession` sealed; `WRONG_KEY` for another key or altered bytes. */
export function deserializeSession(sealed: Uint8Array | string, key: Uint8Array): Session {
  return guarded(() => new Session(native().restoreSession(bytesOf(sealed, 'the saved session'), bytesOf(key, 'the key')), OURS));
}

/**
 * The key pair as bytes, sealed with AES-256-GCM under `key` (32 bytes). It holds marks of the handshakes that were accepted, so save it again
 * after accepting one: a pair that continues from older bytes accepts that handshake a second time.
 */
export function serializeKeyPair(own: KeyPair, key: Uint8Array): Uint8Array {
  return guarded(() => {
    if (!(own instanceof KeyPair)) throw invalid('the first argument is a key pair of generateKeyPair');
    return own._native.save(bytesOf(key, 'the key'));
  });
}

/** Opens what `serializeKeyPair` sealed; `WRONG_KEY` for another key or altered bytes. */
export function deserializeKeyPair(sealed: Uint8Array | string, key: Uint8Array): KeyPair {
  return guarded(() => new KeyPair(native().restoreKeyPair(bytesOf(sealed, 'the saved key pair'), bytesOf(key, 'the key')), OURS));
}

/** Encrypts several plaintexts for one session, in their order. If one is refused, none is encrypted. */
export function encryptMessages(session: Session, plaintexts: readonly (string | Uint8Array)[]): EncryptedMessage[] {
  return guarded(() => {
    sessionOf(session);
    const all = elements(plaintexts, MOST_MESSAGES, 'plaintexts') as (string | Uint8Array)[];
    const limit = native().maxContent();
    for (const plaintext of all) {
      if (typeof plaintext !== 'string' && !isUint8Array(plaintext)) {
        throw invalid(`a plaintext is a string or a Uint8Array, not ${kindOf(plaintext)}`);
      }
      const size = typeof plaintext === 'string' && plaintext.length <= limit ? Buffer.byteLength(plaintext) : plaintext.length;
      if (size > limit) throw tooLarge(size);
    }
    return all.map((plaintext) => encryptMessage(session, plaintext));
  });
}

/** Decrypts several messages, in their order: what each says, or the error that it failed with, which changes nothing for the others. */
export function decryptMessages(
  session: Session,
  messages: readonly Parameters<typeof decryptMessage>[1][],
): (string | Uint8Array | null | StvorError)[] {
  return guarded(() => {
    sessionOf(session);
    return (elements(messages, MOST_MESSAGES, 'messages') as Parameters<typeof decryptMessage>[1][]).map((message) => {
      try {
        return decryptMessage(session, message);
      } catch (error) {
        return failure(error);
      }
    });
  });
}

/**
 * Where the native half writes its answers: making buffers and objects from there costs several times what the cryptography of a message does.
 * What leaves is copied out.
 */
let room = new Uint8Array(8_192);
let view = Buffer.from(room.buffer, 0, room.length);

/** What a decrypted message is, in the first byte of its answer. */
const TEXT = 1;
const BYTES = 2;

/** Makes room for an answer that had none, and fetches it. */
function fetch(inner: NativeSession, length: number): void {
  if (length <= room.length) return;
  room = new Uint8Array(length);
  view = Buffer.from(room.buffer, 0, room.length);
  inner.given(view);
}

function sessionOf(session: Session): NativeSession {
  if (!(session instanceof Session)) throw invalid('the first argument is a session of establishSession');
  return session._native;
}

function tooLarge(size: number): StvorError {
  return new StvorError(`a message of ${size} bytes is too large: 65536 bytes at most`, { code: 'MESSAGE_TOO_LARGE' });
}

function bytesOf(given: Uint8Array | string, what: string): Uint8Array {
  if (isUint8Array(given)) return unshared(given);
  if (typeof given !== 'string') throw invalid(`${what} is a Uint8Array, not ${kindOf(given)}`);
  if (given.length > 2 * LONGEST) throw tooLarge(given.length);
  const bytes = Buffer.from(given, 'base64url');
  // The decoder passes over what it does not know, and over bits that are left: one message would have several spellings.
  if (base64url(bytes) !== given) throw invalid(`${what} is not base64url`);
  return bytes;
}

function base64url(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('base64url');
}
