import { bytesOf, coded, guarded, invalid, type SignalError, isUint8Array } from './errors.js';
import { native, type View } from './native.js';
import { Wipeable } from './wipeable.js';

/** What can be told of a session. Keys that are secret are not in it. */
export interface SessionEntry {
  /** The peer's registration id, as the peer said. */
  readonly registrationId: number;
  /** Whether we started it and nobody answered. */
  readonly unanswered: boolean;
  readonly indexInfo: {
    readonly created: number;
    readonly used: number;
    /** -1 for the open one. */
    readonly closed: number;
    readonly remoteIdentityKey: Buffer;
    readonly baseKey: Buffer;
    /** 1 ours, 2 theirs. */
    readonly baseKeyType: 1 | 2;
  };
}

/** A record as libsignal-node stores it: for JSON. */
export type SerializedSessionRecord = Record<string, unknown>;

const EMPTY = Buffer.alloc(0);
const inspect = Symbol.for('nodejs.util.inspect.custom');

/**
 * The sessions with one device of a peer. A value: operations make a new one and hand it to the storage, and leave the one
 * that the storage gave as it was.
 */
export class SessionRecord extends Wipeable {
  #bytes: Buffer;
  #remote: Buffer | undefined;

  constructor() {
    super();
    this.#bytes = EMPTY;
  }

  /** Where the kinds of base keys stand in records of libsignal-node. */
  static readonly baseKeyTypes = Object.freeze({ OURS: 1, THEIRS: 2 });

  /** Reads what `serialize` or `toBytes` gave, here or in libsignal-node: an object, its JSON, or bytes. */
  static deserialize(data: unknown): SessionRecord {
    return guarded(() => {
      if (data instanceof SessionRecord) return SessionRecord.fromBytes(data.toBytes());
      if (isUint8Array(data)) {
        const bytes = bytesOf(data, 'a record');
        return bytes[0] === 0x7b ? SessionRecord.#of(native().recordFromJson(bytes)) : SessionRecord.fromBytes(bytes);
      }
      if (typeof data === 'object' && data !== null) {
        const { serialize } = data as { serialize?: unknown };
        const plain = typeof serialize === 'function' ? serialize.call(data) : data;
        return SessionRecord.#of(native().recordFromJson(Buffer.from(JSON.stringify(plain, base64) ?? '')));
      }
      if (typeof data === 'string') return SessionRecord.#of(native().recordFromJson(Buffer.from(data)));
      throw invalid('a stored session record is an object, JSON or bytes');
    });
  }

  /** Reads what `toBytes` gave. */
  static fromBytes(bytes: Uint8Array): SessionRecord {
    return guarded(() => {
      const copy = Buffer.from(bytesOf(bytes, 'a record'));
      if (copy.length > 0) native().recordCheck(copy);
      return SessionRecord.#of(copy);
    });
  }

  /** @internal Takes the bytes over. `remote` is the identity of the open session, where it is known. */
  static _adopt(bytes: Buffer, remote?: Buffer): SessionRecord {
    const record = SessionRecord.#of(bytes);
    record.#remote = remote;
    return record;
  }

  static #of(bytes: Buffer): SessionRecord {
    const record = new SessionRecord();
    record.#bytes = bytes;
    return record;
  }

  /** @internal */
  get _bytes(): Buffer {
    return this.#bytes;
  }

  /** @internal The identity of the open session, where it is known without a look into the bytes. */
  get _known(): Buffer | undefined {
    return this.#remote;
  }

  /** @internal The identity of the open session; empty without one. */
  get _remote(): Buffer {
    return (this.#remote ??= this.getOpenSession()?.indexInfo.remoteIdentityKey ?? EMPTY);
  }

  /** The record as libsignal-node stores it: an object for JSON. It holds private keys. */
  serialize(): SerializedSessionRecord {
    return guarded(() => JSON.parse(native().recordToJson(this.#bytes)));
  }

  /** The record in our own form: smaller, and faster to write and read. It holds private keys. */
  toBytes(): Buffer {
    return Buffer.from(this.#bytes);
  }

  /** Overwrites the keys that it holds. The record is empty afterwards. */
  zeroize(): void {
    this._wipe(this.#bytes);
    this.#bytes = EMPTY;
    this.#remote = undefined;
  }

  haveOpenSession(): boolean {
    return guarded(() => this.#bytes.length > 0 && native().recordCheck(this.#bytes));
  }

  /** All of them, the open one first. */
  getSessions(): SessionEntry[] {
    return guarded(() => native().recordSessions(this.#bytes).map(entry));
  }

  getOpenSession(): SessionEntry | undefined {
    return this.getSessions().find((one) => one.indexInfo.closed === -1);
  }

  /** The session of a base key, as bytes or base64. */
  getSession(baseKey: Uint8Array | string): SessionEntry | undefined {
    const wanted = typeof baseKey === 'string' ? Buffer.from(baseKey, 'base64') : bytesOf(baseKey, 'a base key');
    return this.getSessions().find((one) => one.indexInfo.baseKey.equals(wanted));
  }

  isClosed(session: SessionEntry): boolean {
    return session.indexInfo.closed !== -1;
  }

  /** Archives the open session, if it is this one: nothing is sent on it any more, but late messages are read. */
  closeSession(session: SessionEntry): void {
    guarded(() => {
      const open = this.getOpenSession();
      if (open === undefined || !open.indexInfo.baseKey.equals(session.indexInfo.baseKey)) return;
      this.#bytes = native().recordClose(this.#bytes, Date.now());
      this.#remote = undefined;
    });
  }

  /** There are never more than 40 archived ones: nothing is left to do. */
  removeOldSessions(): void {}

  /** Destroys all sessions. Handshakes that were used stay known, so that a replay of one starts nothing. */
  deleteAllSessions(): void {
    guarded(() => {
      this.#bytes = native().recordClear(this.#bytes);
      this.#remote = undefined;
    });
  }

  toJSON(): SerializedSessionRecord {
    return this.serialize();
  }

  /** Never keys. */
  [inspect](): string {
    return `SessionRecord { open: ${this.haveOpenSession()}, bytes: ${this.#bytes.length} }`;
  }

  toString(): string {
    return this[inspect]();
  }
}

/** Buffers within objects, whichever way they were put into JSON. */
function base64(this: unknown, key: string, value: unknown): unknown {
  const raw = (this as Record<string, unknown>)[key];
  if (isUint8Array(raw)) return bytesOf(raw, 'a key').toString('base64');
  return value;
}

function entry(view: View): SessionEntry {
  return Object.freeze({
    registrationId: view.registrationId,
    unanswered: view.unanswered,
    indexInfo: Object.freeze({
      created: view.created,
      used: view.used,
      closed: view.closed,
      remoteIdentityKey: view.identity,
      baseKey: view.baseKey,
      baseKeyType: view.initiator ? (1 as const) : (2 as const),
    }),
  });
}

/** @internal */
export function hasSessions(bytes: Buffer): boolean {
  return native().recordSessions(bytes).length > 0;
}

/** @internal What is left of a record without its sessions: the handshakes that were used, so that a replay of one starts nothing. Null if there are none. */
export function leftOf(bytes: Buffer): Buffer | null {
  const left = native().recordClear(bytes);
  return left.length > native().recordClear(EMPTY).length ? left : null;
}

/** @internal The record that a storage gave, if it gave one. */
export function recordOf(given: unknown): SessionRecord | undefined {
  if (given === undefined || given === null) return undefined;
  return given instanceof SessionRecord ? given : SessionRecord.deserialize(given);
}

/** @internal `message` is what libsignal-node says. */
export function noSession(address: string, message: string): SignalError {
  return coded('NO_SESSION', `there is no session with ${address}; get a prekey bundle and start one`, { retryable: true, words: { NO_SESSION: message } });
}
