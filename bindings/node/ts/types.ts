/** The types that applications see. */

import type { Group } from './groups.js';

/** A JSON value. */
export type Json = string | number | boolean | null | readonly Json[] | { readonly [key: string]: Json };

/** What a message carries: a string is text, a `Uint8Array` bytes, everything else JSON. */
export type Content = Json | Uint8Array;

/**
 * What can be sent as `T`: a content, or an object of your own types that JSON writes as it is; optional fields are left out. Not `Map`, `Set`,
 * errors, promises and views other than `Uint8Array`: they would arrive as something else, and are refused (in JavaScript where they are all of the
 * content; what is inside objects is what JSON makes of it). Of `unknown`, and so of `Record<string, unknown>`, nothing is known here: it is looked
 * at when it is sent.
 */
export type Sendable<T> = unknown extends T
  ? T
  : T extends Content | { toJSON(...rest: never[]): unknown }
    ? T
    : T extends
          | bigint
          | symbol
          | ((...rest: never[]) => unknown)
          | ArrayBuffer
          | ArrayBufferView
          | PromiseLike<unknown>
          | ReadonlyMap<unknown, unknown>
          | ReadonlySet<unknown>
          | Error
      ? never
      : T extends object
        ? { [K in keyof T]: undefined extends T[K] ? Within<Exclude<T[K], undefined>> | undefined : Within<T[K]> }
        : never;

/** Inside a JSON value there are no bytes. */
type Within<T> = T extends Uint8Array ? never : Sendable<T>;

/** What an `AbortSignal` has to have; so that neither the DOM's nor Node's types are needed. */
export interface Signal {
  readonly aborted: boolean;
  readonly reason?: unknown;
  addEventListener(type: 'abort', listener: () => void, options?: { once?: boolean }): void;
  removeEventListener(type: 'abort', listener: () => void): void;
}

/** A message that arrived. */
export interface Message {
  /** The same at sender and receiver, and whenever the message is offered again. */
  readonly id: string;
  /** The group that it is of; absent for a message to us alone. */
  readonly groupId?: string;
  /** The same, to answer in it: `message.group?.send('...')`. */
  readonly group?: Group;
  /** Who sent it: proven by the session, not by the relay. */
  readonly senderId: string;
  /** Which of the sender's devices. */
  readonly deviceId: number;
  /** What it says. */
  readonly content: Content;
  /** What kind of content it is. */
  readonly kind: 'text' | 'bytes' | 'json';
  /** When it was sent, by the sender's clock. */
  readonly timestamp: Date;
  /** When it was stored here, by ours. */
  readonly receivedAt: Date;
  /** Whether the sender's identity was verified when it arrived. */
  readonly verified: boolean;
}

/**
 * What a message handler gets first: the message, or the sender's id if it has exactly two parameters. One type for both, because
 * TypeScript gives the parameters of a function literal the types of one overload only.
 */
export type MessageOrSender = Message & string;

/** How far a message of ours came. */
export type DeliveryStatus = 'queued' | 'accepted' | 'delivered' | 'read' | 'failed';

/** Whether a client talks with its relay. */
export type ConnectionState = 'connecting' | 'catching_up' | 'online' | 'offline' | 'failed' | 'closed';

/** What became of a message of ours. */
export interface Receipt {
  /** The message's id, the same that the recipient sees. */
  readonly id: string;
  /** To whom it was. */
  readonly to: string;
  /** How far it came: a fresh look at each reading. */
  readonly status: DeliveryStatus;
  /** Resolves when the relay answers for it. */
  accepted(options?: { signal?: Signal | undefined }): Promise<void>;
  /** Resolves when the recipient's device has stored it, and said so end to end. There is no bound: they may be away for weeks. */
  delivered(options?: { signal?: Signal | undefined }): Promise<void>;
  /** Resolves when the recipient's application says that it was read. */
  read(options?: { signal?: Signal | undefined }): Promise<void>;
}

/** A message for `sendMany`. */
export interface Outgoing {
  /** To whom. */
  readonly to: string;
  /** What it says: as for `send`. */
  readonly content: Content | object;
}

/** A message of a conversation. */
export interface HistoryMessage {
  readonly id: string;
  readonly direction: 'in' | 'out';
  /** Who wrote it; `undefined` for our own. */
  readonly senderId: string | undefined;
  readonly content: Content;
  readonly kind: 'text' | 'bytes' | 'json';
  readonly timestamp: Date;
  /** `undefined` for our own. */
  readonly receivedAt: Date | undefined;
  readonly status: DeliveryStatus;
  /** Of an incoming message: whether `markRead` named it. */
  readonly read: boolean;
}

/** Which messages of a conversation a page has. */
export interface HistoryOptions {
  /** Messages at most, 1 to 500; 50 if absent. */
  limit?: number | undefined;
  /** Only those whose text (or JSON text) holds these words, in any case. */
  search?: string | undefined;
  signal?: Signal | undefined;
}

/** A page of a conversation, newest first. */
export interface HistoryPage {
  readonly messages: readonly HistoryMessage[];
  /** The page of older messages, or `null` when there are none. */
  older(options?: { signal?: Signal | undefined }): Promise<HistoryPage | null>;
}

/** Sixty digits that two people compare: equal digits mean that nobody sits between them. */
export interface SafetyNumber {
  /** Sixty digits. */
  readonly digits: string;
  /** What a QR code of it holds. */
  readonly qr: Uint8Array;
  /** Whether `verify` was called for the identity that it covers. */
  readonly verified: boolean;
  /** Twelve groups of five digits. */
  toString(): string;
}

/** Somebody the client talks with. */
export interface Peer {
  readonly userId: string;
  /** `undefined` while no identity is pinned. */
  readonly verified: boolean | undefined;
  readonly blocked: boolean;
  readonly lastMessageAt: Date | undefined;
}

/** What happens to a client, and what its listeners get. */
export interface ClientEvents {
  connected: Record<string, never>;
  reconnecting: { attempt: number; after: number };
  offline: { code: string };
  catchingUp: Record<string, never>;
  caughtUp: Record<string, never>;
  superseded: Record<string, never>;
  /** This device is connected with its keys in another store: one of the two is a copy. */
  cloneDetected: Record<string, never>;
  /** On a store that several processes share: whether this one receives what comes from the relay. All of them get messages. */
  receiving: { here: boolean };
  relayDraining: Record<string, never>;
  identityChanged: { peer: string; accepted: boolean };
  identityRotated: { peer: string; old: string; new: string; wasVerified: boolean };
  identitySuperseded: { peer: string };
  identityForked: { peer: string; pinned: string; shown: string };
  /** Nothing can be agreed on with a user of another suite: nothing is sent in a weaker way, and sends fail with `SUITE_MISMATCH`. Told once for each user. */
  suiteMismatch: { peer: string; ours: string; theirs: string };
  messageUndecryptable: { peer: string; code: string; repairRequested: boolean };
  repaired: { peer: string; id: string };
  receipt: { peer: string; ids: string[]; state: DeliveryStatus };
  sessionStarted: { peer: string };
  prekeysLow: { remaining: number };
  prekeysUploaded: { count: number };
  /** The store is an old copy. Nothing is sent until its sessions are given up, which the client does by itself where the relay has a proof of it. */
  rollbackDetected: { relay: number; own: number };
  /** Mail for this device expired at the relay before it was fetched. */
  mailLost: Record<string, never>;
  /** Fresh sessions, sender keys and prekeys took the place of those of the old copy. */
  rollbackRecovered: Record<string, never>;
  /** The relay told a send counter with a proof that this device did not make. Nothing follows from it here. */
  counterForged: { relay: number };
  sendDelayed: { peer: string; code: string; retryAfter: number };
  deliveryFailed: { peer: string; id: string; code: string };
  keyfileCreated: { path: string };
  /** The relay is a minimal one: it keeps nothing and answers for nothing. Told once. */
  relayNotDurable: Record<string, never>;
  storeFailing: { code: string };
  /** What `productionMode` would refuse of this set-up. Told once for each app. */
  developmentMode: { findings: Finding[] };
  /** The server of the store is set otherwise than at the start: what production mode would refuse now. The client goes on. */
  storeWeakened: { findings: Finding[] };
  /** We are in a group that we were not in before. */
  groupJoined: { groupId: string; group: Group; by: string };
  /** A group has other members, or another name. */
  groupChanged: { groupId: string; group: Group; by: string; joined: string[]; gone: string[]; name: string };
  /** We are not in a group any more. */
  groupLeft: { groupId: string; group: Group; by: string };
  /** A user shows another identity than the one under which they are in a group: nothing of it goes to them until they are added anew. */
  groupMemberUnknown: { peer: string };
  /** Messages of a member of a group wait for a key that has not come; the member is asked for it, and for them. */
  senderKeyMissing: { peer: string; messages: number };
  /** Messages of ours to a group came further, with one of its members. */
  groupReceipt: { groupId: string; group: Group; peer: string; ids: string[]; state: DeliveryStatus };
  /** More than half of the messages, or bytes, that may wait do (told when it begins to be so), or a message waits for room. */
  pressure: { pending: number; queued: number; waiting: number };
  /** A send, or some messages of a `sendMany`, were refused with `BACKPRESSURE`: too much waits for this peer (a user, or the id of a group), or in all. */
  sendRejected: { peer: string; queued: number; scope: 'peer' | 'all'; messages: number };
  /** A conversation met a fault in the engine. Nothing that was stored is lost; it is begun afresh after a wait, and all others go on. */
  conversationFailed: { peer: string; attempt: number; retryAfter: number };
  /** A conversation goes on after a fault. */
  conversationRevived: { peer: string };
  /** A task of the engine (`connection`, `groups`, `inbox`, `recovery`, `upkeep`) met a fault and is begun afresh after a wait. */
  taskFailed: { task: string; attempt: number; retryAfter: number };
  /** More than half of the calls that may wait in the engine, behind what `executor` bounds, do: floods of calls that are no sends come there. */
  queuePressure: { queued: number; waiting: number; limit: number };
  /** Calls were refused with `BACKPRESSURE` by the engine itself; told once a second at most. */
  callsRejected: { peer: string; calls: number };
  lagged: { missed: number };
  /**
   * The client is closed: by `close()`, by another app of this process on the same directory, by another process that rotated or deleted the identity, or
   * because its store was emptied. `code` is there if nobody asked this client to close: `STORE_CLOSED` if another app of this process did that,
   * `ACCOUNT_DELETED`, `IDENTITY_HANDED_OVER` or `STORE_KEYS_REPLACED` if another process on the same store deleted the account, rotated the identity or
   * replaced the data key, `STORE_EMPTIED`. Nothing is received any more. It is a warning of the process where nobody listens and nobody here closed it.
   */
  closed: { code?: string };
  /** A handler of the application failed; its message was not consumed and comes again at the next start. */
  handlerFailed: { error: unknown; message: Message | undefined };
}

/** Something about a set-up that production should not have, or that its owner should know. */
export interface Finding {
  /** A stable name in snake case, for example `keyfile_beside_store`. */
  readonly code: string;
  /** What was found. */
  readonly what: string;
  /** How to mend it. */
  readonly fix: string;
  /** Whether `productionMode` refuses to start with it. */
  readonly refused: boolean;
}

/** Files for a database server. They are read again for each new connection, so that they can be renewed without a restart. */
export interface ServerFiles {
  /** A file with the password, in place of the one in the URL. */
  passwordFile?: string | undefined;
  /** Certificates (PEM) to trust in place of the public roots. */
  rootCertificateFile?: string | undefined;
  /** Our own certificate chain (PEM), for servers that ask for one. */
  clientCertificateFile?: string | undefined;
  /** Its private key (PEM). */
  clientKeyFile?: string | undefined;
}

/** PostgreSQL 14 or later: `postgres://user@host/database?sslmode=require`. Several processes may be one user. */
export interface PostgresStorage extends ServerFiles {
  postgres: string;
}

/** Redis 7 or later: `rediss://host:6379`, or several servers of one cluster. Several processes may be one user. */
export interface RedisStorage extends ServerFiles {
  redis: string | readonly string[];
  /** Replicas that must have a commit before it is acknowledged; none if absent. */
  replicas?: number | undefined;
  /**
   * Settings that you vouch for where the server does not tell them, because it forbids `CONFIG`, as services that run Redis for others
   * do. They are judged as if the server had said so, and `findings` lists them: nothing can tell whether they are true.
   */
  assuredSettings?: RedisSettings | undefined;
}

/** Settings of a Redis server that count for what it keeps, as they stand in `redis.conf`. */
export interface RedisSettings {
  'appendonly'?: string | undefined;
  'appendfsync'?: string | undefined;
  'no-appendfsync-on-rewrite'?: string | undefined;
  'maxmemory'?: string | undefined;
  'maxmemory-policy'?: string | undefined;
}

/** SQLite databases under a directory, one for each user: the same as `dataDir`. */
export interface SqliteStorage {
  sqlite: string;
}

/** Where identities, sessions and messages are kept, sealed. */
export type StorageOptions = 'disk' | 'memory' | SqliteStorage | PostgresStorage | RedisStorage;

/** An AES key of 256 bits in a PKCS #11 token: a hardware security module, a smart card. It never leaves it. */
export interface Pkcs11Key {
  /** The module of the token's maker, for example `/usr/lib/softhsm/libsofthsm2.so`. */
  module: string;
  /** The token's label. */
  token: string;
  /** The key's label. */
  key: string;
  /** The PIN; or, better, `pinFile`. */
  pin?: string | undefined;
  /** A file with the PIN; white space at its end is left out. */
  pinFile?: string | undefined;
}

/** An AES key in a key management server that speaks KMIP. It never leaves it. */
export interface KmipKey {
  /** `host` or `host:port`; the port is 5696 if absent. */
  server: string;
  /** The name in the server's certificate, where it is not the host. */
  serverName?: string | undefined;
  /** The authorities that sign servers (PEM). */
  rootCertificateFile: string;
  /** Our certificate (PEM). */
  clientCertificateFile: string;
  /** Its private key (PEM). */
  clientKeyFile: string;
  /** The key's unique identifier. */
  key: string;
}

/**
 * A key management service that you ask yourself, by whatever library or protocol it has. What is wrapped is a key that is made for each store,
 * so both functions are called when a store is opened and when its keys change, never for a message. Each has 30 seconds.
 *
 * @example
 * ```js
 * const kms = {
 *   wrap: async (key) => (await cloud.encrypt({ keyId, plaintext: key })).ciphertext,
 *   unwrap: async (wrapped) => (await cloud.decrypt({ keyId, ciphertext: wrapped })).plaintext,
 * };
 * const app = await createApp({ appToken, relayUrl, kms });
 * ```
 */
export interface KmsKey {
  /** Encrypts 32 bytes, which are secret, under a key that never leaves the service; gives at most 1,536 bytes. */
  wrap(key: Uint8Array): Uint8Array | Promise<Uint8Array>;
  /** Decrypts what `wrap` gave. A service that can not throws: `KEY_UNAVAILABLE`, with what was thrown as its `cause`. */
  unwrap(wrapped: Uint8Array): Uint8Array | Promise<Uint8Array>;
}

/** How many sends one client has under way, and what happens beyond. A `sendMany` counts as many as it has messages. */
export interface ExecutorOptions {
  /** Sends that are under way at once, to all users; 1024 if absent, a quarter of them to one user. What is handed over together goes in while there is a place: it may be up to a quarter more. (In Rust `max_pending` is another thing, which is `maxUnaccepted` here.) */
  maxPending?: number | undefined;
  /** Messages that wait for their turn; 65536 if absent. */
  maxQueued?: number | undefined;
  /** Those of them to one user; a quarter of `maxQueued` if absent. */
  maxQueuedPerPeer?: number | undefined;
  /** What the contents that wait for their turn come to, in bytes, and in characters of text (which may be up to three bytes each on their way); 64 MiB if absent. A quarter of them to one user, whose first message has room whatever its size. */
  maxQueuedBytes?: number | undefined;
  /** Beyond that: `reject` with `BACKPRESSURE` (the default), or `wait` for room, as many messages and bytes again as may be queued. */
  onPressure?: 'reject' | 'wait' | undefined;
  /** Messages to one user that the relay has not accepted yet, those that are under way among them; 10000 if absent. Beyond that a send is `QUOTA_EXCEEDED`, whatever `onPressure` says. */
  maxUnaccepted?: number | undefined;
}

/** How an app is set up. */
export interface AppOptions {
  /** Names the app at the relay, which says whether it is any good; production mode refuses tokens for development. */
  appToken?: string | undefined;
  /** Where the relay is: `ws://`, `wss://`, `http://` or `https://`. */
  relayUrl: string;
  /** A token for one user, signed by your backend, in place of the app token. */
  clientToken?: string | undefined;
  /** The app's id, where the relay's operator bound the token to a name. */
  appId?: string | undefined;
  /** Keeps identities, sessions and messages, sealed, under this directory; the platform's data directory if absent. */
  dataDir?: string | undefined;
  /**
   * `'disk'` (the default) or `{ sqlite: directory }`: SQLite on this machine. `{ postgres: url }` or `{ redis: url }`: a server, so that several
   * processes can be one user; give a `passphrase` or another key with it. `'memory'`: everything is forgotten when the client closes,
   * so its name is taken the next time (`replaceIdentity`).
   */
  storage?: StorageOptions | undefined;
  /**
   * Four narrow stores of your own, in place of a directory. The identity store gives the user's signing key, so such an app has one user.
   * In development mode stand-ins in memory are used for those that are missing.
   */
  storageAdapters?: StorageAdapters | undefined;
  /** Refuses stores in which a session, its one-time prekey and its message are not one transaction: `storageAdapters`. */
  requireAtomicSessionAndPrekey?: boolean | undefined;
  /**
   * Whether a minimal relay will do, which hands JSON on and keeps nothing. If absent: only on this machine. Never over TLS, never in
   * production mode, and never for stores that have spoken with a relay of the other kind at this address.
   */
  legacyRelay?: boolean | undefined;
  /**
   * Refuses to start with what would lose or expose something, with one error that lists all of it (`NOT_FOR_PRODUCTION`, `error.findings`):
   * storage in memory, a keyfile beside the store, a relay without TLS, a token for development, a database server that would lose what it
   * acknowledged; and adapters that are missing.
   */
  productionMode?: boolean | undefined;
  /** Milliseconds that an operation may wait; 10000 if absent. */
  timeout?: number | undefined;
  /** Seals the stores by a passphrase, in place of a keyfile beside them. */
  passphrase?: string | undefined;
  /** Seals the stores by this keyfile, which is made if it does not exist. */
  keyfile?: string | undefined;
  /** Seals the stores by keys in the operating system's keyring, one for each store, which are made if they do not exist. */
  osKeyring?: boolean | undefined;
  /** Seals the stores by a key in a PKCS #11 token. */
  pkcs11?: Pkcs11Key | undefined;
  /** Seals the stores by a key in a key management server. */
  kmip?: KmipKey | undefined;
  /** Seals the stores by a key in a key management service that the application asks itself. */
  kms?: KmsKey | undefined;
  /**
   * Derives identities from a recovery phrase of 24 words (`generateRecoveryPhrase`), so that a reinstall is the same person to everybody. A user
   * whose store holds another identity is refused (`IDENTITY_EXISTS`). Costs about a second for each `connect`.
   */
  identityPhrase?: string | undefined;
  /** The same from a passphrase of at least 16 bytes. Who knows the public key can test guesses for ever: a phrase can not be guessed. */
  identityPassphrase?: string | undefined;
  /**
   * The primitives of new identities; `'p256'` if absent. All users of an app need the same: between two that differ nothing is sent
   * (`SUITE_MISMATCH`). An identity keeps its suite (`SUITE_FIXED`); `storageAdapters` know `'p256'` only.
   */
  suite?: 'p256' | 'x25519' | undefined;
  /** Whom to trust at first contact. */
  trustPolicy?: 'first-use' | 'verified-only' | undefined;
  /** What to do when a user shows another identity. */
  onIdentityChange?: 'reject' | 'replace' | undefined;
  /** Milliseconds that conversations keep messages; 0: only as long as delivery needs them. */
  retention?: number | undefined;
  /** Which receipts to send; all if absent. */
  receipts?: { delivered?: boolean | undefined; read?: boolean | undefined } | undefined;
  /** One more root certificate to trust, PEM. */
  rootCertificate?: string | Uint8Array | undefined;
  /** Takes user ids over from lost devices, where the relay allows it: tokens for development do. What waits for the lost device is gone. */
  replaceIdentity?: boolean | undefined;
  /**
   * On a store that several processes share: milliseconds that one may be silent before the others take over what it did; 10000 if absent, 500 at
   * least, the same in all of them.
   */
  instanceLease?: number | undefined;
  /** Who decides and does things, for the journal: the name of an operator or a service. */
  actor?: string | undefined;
  /** How many sends one client has under way, and what happens beyond. */
  executor?: ExecutorOptions | undefined;
}

/** Remembers nonces (12 bytes), so that nothing is taken twice. Marks may be forgotten after five minutes. */
export interface ReplayStore {
  /** `true` when the nonce was seen before; marks it, in one step, if not. */
  checkAndMark(peerId: string, nonce: Uint8Array): boolean | Promise<boolean>;
}

/** Pins identities: 64 hexadecimal digits a peer. */
export interface TofuStore {
  /** Stores a fingerprint, unless the peer has another one, which stays. */
  storeFingerprint(peerId: string, fingerprint: string): void | Promise<void>;
  /** `true` when this is the stored fingerprint of the peer. */
  verifyFingerprint(peerId: string, fingerprint: string): boolean | Promise<boolean>;
  /**
   * Puts another fingerprint in the place of `oldFingerprint`, in one step, if that is the one that is stored. It is called only when
   * `acceptIdentity` takes another identity of a peer, and when a peer's old key signed the one that it handed over to. Without it the
   * former is `FINGERPRINT_FIXED` until you delete the peer's fingerprint yourself, and the latter is `IDENTITY_CHANGED`.
   */
  replaceFingerprint?(peerId: string, oldFingerprint: string, newFingerprint: string): void | Promise<void>;
}

/**
 * Keeps states, which are sealed already: opaque bytes, 32 MiB at most. What belongs to the sessions with a peer is saved under the
 * peer's id, everything else under ids that begin with `_stvor/`.
 */
export interface SessionStore {
  /** Replaces the state, whole or not at all, durably. */
  save(peerId: string, state: Uint8Array): void | Promise<void>;
  /** The latest state; `null` when there is none. */
  load(peerId: string): Uint8Array | null | Promise<Uint8Array | null>;
}

/** Keeps the user's signing key. */
export interface IdentityStore {
  /** Always the same pair; `generateIdentityKeyPair()` makes one. */
  getIdentityKeyPair(): IdentityKeyPair | Promise<IdentityKeyPair>;
}

/** A P-256 key pair: the public key as 65 bytes, the private one as 32. */
export interface IdentityKeyPair {
  publicKey: Uint8Array;
  privateKey: Uint8Array;
}

/** Stores of your own. */
export interface StorageAdapters {
  replay?: ReplayStore | undefined;
  tofu?: TofuStore | undefined;
  sessions?: SessionStore | undefined;
  identity?: IdentityStore | undefined;
}
