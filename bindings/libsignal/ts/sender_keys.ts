/** Sender keys for groups: their names, records and messages, as Baileys has them. */

import { bytesOf, coded, guarded, invalid, isUint8Array } from './errors.js';
import { generateKeyPair, type KeyPair } from './curve.js';
import { native, type Chain } from './native.js';
import { Wipeable } from './wipeable.js';

/** A sender: a name and a device. */
export interface Sender {
  readonly id: string;
  readonly deviceId: number;
}

/** One sender in one group. */
export class SenderKeyName {
  readonly #group: string;
  readonly #sender: Sender;

  constructor(groupId: string, sender: Sender) {
    if (typeof groupId !== 'string' || groupId === '') throw invalid('a group id is a string');
    if (typeof sender?.id !== 'string' || typeof sender.deviceId !== 'number') throw invalid('a sender is an address');
    this.#group = groupId;
    this.#sender = sender;
  }

  getGroupId(): string {
    return this.#group;
  }

  getSender(): Sender {
    return this.#sender;
  }

  /** `group::id::device`. */
  serialize(): string {
    return `${this.#group}::${this.#sender.id}::${this.#sender.deviceId}`;
  }

  toString(): string {
    return this.serialize();
  }

  equals(other: unknown): boolean {
    return other instanceof SenderKeyName && other.serialize() === this.serialize();
  }
}

/** A chain as Baileys stores it. Keys are Buffers; of JSON they come back as objects, base64 or arrays, and are taken. */
export interface SenderKeyStateStructure {
  senderKeyId: number;
  senderChainKey: { iteration: number; seed: Uint8Array };
  senderSigningKey: { public: Uint8Array; private?: Uint8Array };
  senderMessageKeys: { iteration: number; seed: Uint8Array }[];
}

const EMPTY = Buffer.alloc(0);
const inspect = Symbol.for('nodejs.util.inspect.custom');

/** The sender keys of one sender in one group. A value: operations make a new one. */
export class SenderKeyRecord extends Wipeable {
  #bytes: Buffer;

  constructor(structure?: readonly SenderKeyStateStructure[]) {
    super();
    this.#bytes = structure === undefined || structure.length === 0 ? EMPTY : guarded(() => put(structure));
  }

  /** Reads what `serialize` or `toBytes` gave, here or in Baileys: an array, its JSON, or bytes. */
  static deserialize(data: unknown): SenderKeyRecord {
    return guarded(() => {
      if (data instanceof SenderKeyRecord) return SenderKeyRecord._adopt(data.toBytes());
      if (isUint8Array(data)) {
        const bytes = bytesOf(data, 'a record');
        if (bytes[0] === 0x5b) return new SenderKeyRecord(parsed(bytes.toString('utf8')));
        const copy = Buffer.from(bytes);
        // Not taken apart: its keys would lie about, each time that it is read.
        native().groupCheck(copy);
        return SenderKeyRecord._adopt(copy);
      }
      if (typeof data === 'string') return new SenderKeyRecord(parsed(data));
      const { serialize } = (data ?? {}) as { serialize?: unknown };
      const plain = typeof serialize === 'function' ? serialize.call(data) : data;
      if (!Array.isArray(plain)) throw coded('BAD_RECORD', 'a stored sender key record is an array, JSON or bytes');
      return new SenderKeyRecord(plain);
    });
  }

  /** @internal Takes the bytes over. */
  static _adopt(bytes: Buffer): SenderKeyRecord {
    const record = new SenderKeyRecord();
    record.#bytes = bytes;
    return record;
  }

  /** @internal */
  get _bytes(): Buffer {
    return this.#bytes;
  }

  isEmpty(): boolean {
    return this.#bytes.length === 0;
  }

  /** The record as Baileys stores it, oldest chain first. It holds private keys. */
  serialize(): SenderKeyStateStructure[] {
    return guarded(() => native().groupTakeApart(this.#bytes).map(structure).reverse());
  }

  /** The record in our own form. It holds private keys. */
  toBytes(): Buffer {
    return Buffer.from(this.#bytes);
  }

  toJSON(): SenderKeyStateStructure[] {
    return this.serialize();
  }

  /** The chain of an id, or the newest. */
  getSenderKeyState(keyId?: number): SenderKeyState | undefined {
    const all = guarded(() => native().groupTakeApart(this.#bytes));
    const found = keyId === undefined ? all[0] : all.find((one) => one.id === keyId);
    return found && new SenderKeyState(structure(found));
  }

  /** Overwrites the keys that it holds. The record is empty afterwards. */
  zeroize(): void {
    this._wipe(this.#bytes);
    this.#bytes = EMPTY;
  }

  /** Never keys. */
  [inspect](): string {
    return `SenderKeyRecord { bytes: ${this.#bytes.length} }`;
  }

  toString(): string {
    return this[inspect]();
  }
}

function parsed(text: string): SenderKeyStateStructure[] {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    value = undefined;
  }
  if (!Array.isArray(value)) throw coded('BAD_RECORD', 'a stored sender key record is a JSON array');
  return value as SenderKeyStateStructure[];
}

function structure(chain: Chain): SenderKeyStateStructure {
  return {
    senderKeyId: chain.id,
    senderChainKey: { iteration: chain.iteration, seed: chain.seed },
    senderSigningKey: { public: chain.publicKey, ...(chain.privateKey ? { private: chain.privateKey } : {}) },
    senderMessageKeys: chain.numbers.map((iteration, index) => ({ iteration, seed: chain.seeds[index] as Buffer })),
  };
}

function put(structures: readonly SenderKeyStateStructure[]): Buffer {
  const of = (one: SenderKeyStateStructure): Chain => {
    const secret = keyOf(one?.senderSigningKey?.private);
    const keys = one?.senderMessageKeys ?? [];
    const signing = keyOf(one?.senderSigningKey?.public);
    return {
      id: one.senderKeyId,
      iteration: one.senderChainKey.iteration,
      seed: keyOf(one.senderChainKey.seed),
      publicKey: signing.length === 32 ? Buffer.concat([Buffer.from([5]), signing]) : signing,
      ...(secret.length > 0 ? { privateKey: secret } : {}),
      numbers: keys.map((key) => key.iteration),
      seeds: keys.map((key) => keyOf(key.seed)),
    };
  };
  // Baileys has the newest last.
  return native().groupPutTogether([...structures].reverse().map(of));
}

/** A key, whichever way JSON left it. */
function keyOf(value: unknown): Buffer {
  if (isUint8Array(value)) return bytesOf(value, 'a key');
  if (typeof value === 'string') return Buffer.from(value, 'base64');
  if (Array.isArray(value)) return Buffer.from(value);
  if (typeof value === 'object' && value !== null) {
    const { type, data } = value as { type?: unknown; data?: unknown };
    if (type === 'Buffer') return keyOf(data);
    return Buffer.from(Object.values(value as Record<string, number>));
  }
  return EMPTY;
}

/** A chain, to look at. */
export class SenderKeyState {
  readonly #structure: SenderKeyStateStructure;

  constructor(structure: SenderKeyStateStructure) {
    this.#structure = structure;
  }

  getKeyId(): number {
    return this.#structure.senderKeyId;
  }

  getSenderChainKey(): SenderChainKey {
    const { iteration, seed } = this.#structure.senderChainKey;
    return new SenderChainKey(iteration, seed);
  }

  getSigningKeyPublic(): Buffer {
    return keyOf(this.#structure.senderSigningKey.public);
  }

  getSigningKeyPrivate(): Buffer | undefined {
    const { private: secret } = this.#structure.senderSigningKey;
    return secret && keyOf(secret);
  }

  getStructure(): SenderKeyStateStructure {
    return this.#structure;
  }
}

/** Where a chain stands. */
export class SenderChainKey {
  readonly #iteration: number;
  readonly #seed: Buffer;

  constructor(iteration: number, chainKey: Uint8Array) {
    this.#iteration = iteration;
    this.#seed = bytesOf(chainKey, 'a chain key');
  }

  getIteration(): number {
    return this.#iteration;
  }

  getSeed(): Buffer {
    return this.#seed;
  }

  getSenderMessageKey(): SenderMessageKey {
    return new SenderMessageKey(this.#iteration, native().hmac(this.#seed, Buffer.from([1])));
  }

  getNext(): SenderChainKey {
    return new SenderChainKey(this.#iteration + 1, native().hmac(this.#seed, Buffer.from([2])));
  }
}

/** The key of one message. */
export class SenderMessageKey {
  readonly #iteration: number;
  readonly #seed: Buffer;
  readonly #derived: Buffer;

  constructor(iteration: number, seed: Uint8Array) {
    this.#iteration = iteration;
    this.#seed = bytesOf(seed, 'a seed');
    this.#derived = native().hkdf(this.#seed, Buffer.alloc(32), Buffer.from('WhisperGroup'));
  }

  getIteration(): number {
    return this.#iteration;
  }

  getSeed(): Buffer {
    return this.#seed;
  }

  getIv(): Buffer {
    return this.#derived.subarray(0, 16);
  }

  getCipherKey(): Buffer {
    return this.#derived.subarray(16, 48);
  }
}

/** Numbers of message kinds. */
export class CiphertextMessage {
  readonly UNSUPPORTED_VERSION = 1;
  readonly CURRENT_VERSION = 3;
  readonly WHISPER_TYPE = 2;
  readonly PREKEY_TYPE = 3;
  readonly SENDERKEY_TYPE = 4;
  readonly SENDERKEY_DISTRIBUTION_TYPE = 5;
  readonly ENCRYPTED_MESSAGE_OVERHEAD = 53;
}

/** A sender key on its way to a member, inside of a session. Built of its fields, or of its bytes as the last argument. */
export class SenderKeyDistributionMessage extends CiphertextMessage {
  readonly #bytes: Buffer;
  readonly #id: number;
  readonly #iteration: number;
  readonly #chainKey: Buffer;
  readonly #signingKey: Buffer;

  constructor(
    id?: number | null,
    iteration?: number | null,
    chainKey?: Uint8Array | null,
    signatureKey?: Uint8Array | null,
    serialized?: Uint8Array | null,
  ) {
    super();
    this.#bytes = guarded(() =>
      serialized
        ? Buffer.from(bytesOf(serialized, 'a distribution'))
        : native().distributionOf(id ?? 0, iteration ?? 0, bytesOf(chainKey, 'a chain key'), bytesOf(signatureKey, 'a signing key')),
    );
    const fields = guarded(() => native().distributionFields(this.#bytes));
    this.#id = fields.id;
    this.#iteration = fields.iteration;
    this.#chainKey = fields.chainKey;
    this.#signingKey = fields.signingKey;
  }

  serialize(): Buffer {
    return this.#bytes;
  }

  getType(): number {
    return this.SENDERKEY_DISTRIBUTION_TYPE;
  }

  getId(): number {
    return this.#id;
  }

  getIteration(): number {
    return this.#iteration;
  }

  getChainKey(): Buffer {
    return this.#chainKey;
  }

  getSignatureKey(): Buffer {
    return this.#signingKey;
  }

  [inspect](): string {
    return `SenderKeyDistributionMessage { id: ${this.#id}, iteration: ${this.#iteration} }`;
  }
}

/** A group message, to look at: nothing of it is verified. Read from its bytes, the only argument, or the fifth as in Baileys. */
export class SenderKeyMessage extends CiphertextMessage {
  readonly #bytes: Buffer;
  readonly #id: number;
  readonly #iteration: number;

  constructor(serialized: Uint8Array);
  constructor(keyId: null, iteration: null, ciphertext: null, signatureKey: null, serialized: Uint8Array);
  constructor(...given: readonly unknown[]) {
    super();
    // By four Baileys makes one, of which the last is a private key.
    if (given.length !== 1 && given.length !== 5) throw invalid('a SenderKeyMessage is read from its bytes, and not made');
    this.#bytes = bytesOf(given[given.length - 1], 'a message');
    const fields = guarded(() => native().groupMessageFields(this.#bytes));
    this.#id = fields.id;
    this.#iteration = fields.iteration;
  }

  getKeyId(): number {
    return this.#id;
  }

  getIteration(): number {
    return this.#iteration;
  }

  serialize(): Buffer {
    return this.#bytes;
  }

  getType(): number {
    return this.SENDERKEY_TYPE;
  }
}

/** Random parts of a sender key. */
export const keyhelper = Object.freeze({
  generateSenderKey: (): Buffer => generateKeyPair().privKey,
  generateSenderKeyId: (): number => guarded(() => native().generatePair().privKey).readUInt32BE(4) & 0x7fff_ffff,
  generateSenderSigningKey: (key?: KeyPair): { public: Buffer; private: Buffer } => {
    const { pubKey, privKey } = key ?? generateKeyPair();
    return { public: pubKey, private: privKey };
  },
});
