/** The errors of this package. */

/** The codes that errors have. A later version may have more. */
export type ErrorCode =
  | 'AGREEMENT_FAILED'
  | 'BACKPRESSURE'
  | 'BAD_BUNDLE'
  | 'BAD_KEY'
  | 'BAD_LENGTH'
  | 'BAD_PARAMETER'
  | 'BAD_RECORD'
  | 'BAD_SIGNATURE'
  | 'CRYPTO_INTERNAL'
  | 'DECRYPT_FAILED'
  | 'DUPLICATE'
  | 'FAILED'
  | 'FORMAT_TOO_NEW'
  | 'IDENTITY_CHANGED'
  | 'IDENTITY_EXISTS'
  | 'INTERNAL'
  | 'INVALID_ARGUMENT'
  | 'INVALID_NAME'
  | 'KEY_MISSING'
  | 'MALFORMED_MESSAGE'
  | 'MESSAGE_TOO_LARGE'
  | 'NATIVE_MODULE_MISSING'
  | 'NO_SENDER_KEY'
  | 'NO_SESSION'
  | 'REPLAY'
  | 'RNG_UNAVAILABLE'
  | 'RNG_UNHEALTHY'
  | 'STORAGE_FAILED'
  | 'STORAGE_NOT_ATOMIC'
  | 'STORAGE_TIMEOUT'
  | 'TOO_FAR_AHEAD'
  | 'UNDECRYPTABLE'
  | 'UNKNOWN_PREKEY'
  | 'UNSUPPORTED_VERSION';

/** Copies of this package share executors, so an error may be of a class of another copy. */
const ERROR: unique symbol = Symbol.for('stvor.libsignal.error.1');

/**
 * What every call fails with, or a class derived from it. `code` is stable; `action` says what to do; `retryable` tells whether
 * the same call may succeed later without a change.
 */
export class SignalError extends Error {
  /** The stable code, for example `DUPLICATE`. */
  readonly code: ErrorCode | (string & {});
  /** Whether the same call may succeed later. */
  readonly retryable: boolean;
  /** What caused it, where something did. */
  declare readonly cause?: unknown;
  /** What happened, where `message` has a text of libsignal-node, or of groups of Baileys, letter for letter: the migration page lists those. */
  declare readonly detail?: string;

  constructor(message = '', details: { code?: string; action?: string; retryable?: boolean; cause?: unknown; detail?: string } = {}) {
    super(details.code === undefined || details.detail !== undefined ? message : `${message} [${details.code}]`);
    Object.defineProperty(this, 'name', { value: new.target.name, configurable: true, writable: true });
    this.code = details.code ?? 'FAILED';
    this.retryable = details.retryable ?? false;
    if (details.detail !== undefined) this.detail = details.detail;
    // In place of what the page of the code says.
    if (details.action !== undefined) Object.defineProperty(this, 'action', { value: details.action, configurable: true });
    if (details.cause !== undefined) {
      Object.defineProperty(this, 'cause', { value: details.cause, enumerable: false, configurable: true });
    }
  }

  /** @internal Says to other copies of the package what it is. */
  get [ERROR](): true {
    return true;
  }

  /** What to do about it. */
  get action(): string {
    return actionOf(this.code);
  }
}

/** Whether it is an error of this package, whichever copy of it made it. */
export function isSignalError(thrown: unknown): thrown is SignalError {
  try {
    return (Object(thrown) as { [ERROR]?: unknown })[ERROR] === true;
  } catch {
    return false;
  }
}

/** The peer's identity is not one that the storage trusts. */
export class UntrustedIdentityKeyError extends SignalError {
  /** Whose it is. */
  readonly addr: string;
  /** The key that came, 33 bytes. */
  readonly identityKey: Uint8Array;

  constructor(addr: string, identityKey: Uint8Array) {
    super(`the identity key of ${addr} is not trusted`, { code: 'IDENTITY_CHANGED' });
    this.addr = addr;
    this.identityKey = identityKey;
  }
}

/** A session is missing or does not decrypt. */
export class SessionError extends SignalError {}

/** A message was read before. */
export class MessageCounterError extends SessionError {}

/** A first message uses a prekey that is not here. */
export class PreKeyError extends SessionError {}

/** A storage failed, was too slow, or can not do what a policy asks. */
export class StorageError extends SignalError {}

/** Too much is waiting: the call was not begun. */
export class BackpressureError extends SignalError {}

let actions: Record<string, string> | undefined;

/** Where the pages speak of the SDK, which repairs by itself, and this package leaves that to the application. */
const OWN_ACTIONS: Record<string, string> = {
  UNDECRYPTABLE: 'Nothing changed. Ask the sender to send it again, with a fresh prekey bundle if it happens again.',
  NO_SESSION: 'Get a prekey bundle of the device and call SessionBuilder.initOutgoing.',
  UNKNOWN_PREKEY: 'Ask the sender to start anew with a current bundle, and send the message again.',
  REPLAY: 'Nothing: the message was handled before, or belongs to a session that was destroyed.',
  DUPLICATE: 'Nothing if it was handled; if it was not, ask the sender to send it again.',
  TOO_FAR_AHEAD: 'Ask the sender to start anew with a current bundle, and send the message again.',
  BAD_BUNDLE: 'Fetch the bundle again. If it stays so, whoever hands it out is not to be trusted.',
  BAD_RECORD: 'Delete the record and start a session anew.',
  IDENTITY_CHANGED: 'Compare safety numbers with the peer, then save the identity or leave it refused.',
};

function actionOf(code: string): string {
  const own = OWN_ACTIONS[code];
  if (own !== undefined) return own;
  actions ??= require('./actions.json') as Record<string, string>;
  return actions[code] ?? 'See docs/errors.md.';
}

/** Words for codes. */
export type Words = Readonly<Record<string, string>>;

/**
 * What libsignal-node says, and Baileys of groups, letter for letter: projects compare messages whole, as Baileys does with the text of `DUPLICATE`,
 * for which it asks nobody again. Its own cipher of groups has the counters in that text, so that it does ask; ours says it of groups, too.
 */
const FAMILIAR: Words = {
  UNDECRYPTABLE: 'No matching sessions found for message',
  DUPLICATE: 'Key used already or never filled',
  NO_SESSION: 'No session record',
  TOO_FAR_AHEAD: 'Over 2000 messages into the future!',
  UNKNOWN_PREKEY: 'Invalid PreKey ID',
  NO_SENDER_KEY: 'No session found to decrypt message',
};

const CLASSES: Record<string, typeof SignalError> = {
  UNDECRYPTABLE: SessionError,
  NO_SESSION: SessionError,
  REPLAY: SessionError,
  TOO_FAR_AHEAD: SessionError,
  BAD_RECORD: SessionError,
  FORMAT_TOO_NEW: SessionError,
  BAD_BUNDLE: SessionError,
  NO_SENDER_KEY: SessionError,
  DUPLICATE: MessageCounterError,
  UNKNOWN_PREKEY: PreKeyError,
};

/** An error of a code. `words` are what libsignal-node says in this call in place of what it says elsewhere. */
export function coded(code: string, message: string, details: { retryable?: boolean; cause?: unknown; words?: Words | undefined } = {}): SignalError {
  const { words, ...rest } = details;
  const familiar = words?.[code] ?? (code === 'UNKNOWN_PREKEY' && message.includes(' signed ') ? 'Missing SignedPreKey' : FAMILIAR[code]);
  const Class = CLASSES[code] ?? SignalError;
  return familiar === undefined ? new Class(message, { code, ...rest }) : new Class(familiar, { code, detail: message, ...rest });
}

/** Makes a typed error of whatever the native half threw. */
export function failure(thrown: unknown, words?: Words): SignalError {
  if (isSignalError(thrown)) return thrown;
  return failureOf(wordsOf(thrown), thrown, words);
}

/** The words of something thrown. An error is one also in another realm: in a `vm` context, as test runners use it, `instanceof` says no. */
export function wordsOf(thrown: unknown): string {
  try {
    const { message } = Object(thrown) as { message?: unknown };
    return typeof message === 'string' ? message : String(thrown);
  } catch {
    return 'something that has no words was thrown';
  }
}

/** Whether a value is a `Uint8Array`, of whichever realm; a `Buffer` is one. */
export const isUint8Array: (value: unknown) => value is Uint8Array = require('node:util/types').isUint8Array;

/** The same from the words alone. */
export function failureOf(text: string, cause?: unknown, words?: Words): SignalError {
  if (text.startsWith('{"stvor":')) {
    const { code, message, retryable } = JSON.parse(text).stvor;
    return coded(code, message, { retryable, words });
  }
  if ((cause as { code?: unknown } | undefined)?.code === 'GenericFailure') {
    // A panic. Its words are left out: they may hold what the application sent.
    return new SignalError('the library met a defect of its own; please report it', { code: 'INTERNAL' });
  }
  return new SignalError(`an argument can not be used: ${text}`, { code: 'INVALID_ARGUMENT', cause });
}

/** An argument of the wrong kind; a `TypeError` besides, as libsignal-node throws. */
export function invalid(message: string): Error {
  const error = new TypeError(`${message} [INVALID_ARGUMENT]`);
  return Object.assign(error, { code: 'INVALID_ARGUMENT', retryable: false, action: actionOf('INVALID_ARGUMENT') });
}

/** Runs `act`; what it throws becomes a typed error, in `words` where there are some for its code. */
export function guarded<T>(act: () => T, words?: Words): T {
  try {
    return act();
  } catch (thrown) {
    throw typed(thrown, words);
  }
}

/** Of what was thrown a typed error, in `words` where there are some for its code. */
export function typed(thrown: unknown, words?: Words): unknown {
  if (thrown instanceof TypeError && (thrown as { code?: unknown }).code === 'INVALID_ARGUMENT') return thrown;
  return failure(thrown, words);
}

/** Node's global is looked up by a function, which is felt where it is done for each message. */
const isBuffer: (value: unknown) => value is Buffer = Buffer.isBuffer;

/** Bytes, as a Buffer over the same memory. */
export function bytesOf(given: unknown, what: string): Buffer {
  if (isUint8Array(given)) {
    return isBuffer(given) ? given : Buffer.from(given.buffer, given.byteOffset, given.byteLength);
  }
  throw invalid(`${what} is a Buffer or Uint8Array, not ${given === null ? 'null' : typeof given}`);
}
