/** The types that applications see. */

/** A JSON value. */
export type Json = string | number | boolean | null | readonly Json[] | { readonly [key: string]: Json };

/** What a message carries: a string is text, a `Uint8Array` bytes, everything else JSON. */
export type Content = Json | Uint8Array;

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
  accepted(options?: { signal?: Signal }): Promise<void>;
  /** Resolves when the recipient's device has stored it, and said so end to end. There is no bound: they may be away for weeks. */
  delivered(options?: { signal?: Signal }): Promise<void>;
  /** Resolves when the recipient's application says that it was read. */
  read(options?: { signal?: Signal }): Promise<void>;
}

/** A message of a conversation. */
export interface HistoryMessage {
  readonly id: string;
  readonly direction: 'in' | 'out';
  readonly content: Content;
  readonly kind: 'text' | 'bytes' | 'json';
  readonly timestamp: Date;
  /** `undefined` for our own. */
  readonly receivedAt: Date | undefined;
  readonly status: DeliveryStatus;
  /** Of an incoming message: whether `markRead` named it. */
  readonly read: boolean;
}

/** A page of a conversation, newest first. */
export interface HistoryPage {
  readonly messages: readonly HistoryMessage[];
  /** The page of older messages, or `null` when there are none. */
  older(): Promise<HistoryPage | null>;
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
  relayDraining: Record<string, never>;
  identityChanged: { peer: string; accepted: boolean };
  messageUndecryptable: { peer: string; code: string; repairRequested: boolean };
  repaired: { peer: string; id: string };
  receipt: { peer: string; ids: string[]; state: DeliveryStatus };
  sessionStarted: { peer: string };
  prekeysLow: { remaining: number };
  prekeysUploaded: { count: number };
  rollbackDetected: { relay: number; own: number };
  sendDelayed: { peer: string; code: string; retryAfter: number };
  deliveryFailed: { peer: string; id: string; code: string };
  keyfileCreated: { path: string };
  /** The relay is a minimal one: it keeps nothing and answers for nothing. Told once. */
  relayNotDurable: Record<string, never>;
  storeFailing: { code: string };
  lagged: { missed: number };
  /** A handler of the application failed; its message was not consumed and comes again at the next start. */
  handlerFailed: { error: unknown; message: Message | undefined };
}

/** How an app is set up. */
export interface AppOptions {
  /** Names the app at the relay. Whether it is any good is the relay's business. */
  appToken?: string;
  /** Where the relay is: `ws://`, `wss://`, `http://` or `https://`. */
  relayUrl: string;
  /** A token for one user, signed by your backend, in place of the app token. */
  clientToken?: string;
  /** The app's id, where the relay's operator bound the token to a name. */
  appId?: string;
  /** Keeps identities, sessions and messages, sealed, under this directory; the platform's data directory if absent. */
  dataDir?: string;
  /** `disk` (the default), or `memory`: everything is forgotten with the process. */
  storage?: 'disk' | 'memory';
  /**
   * Four narrow stores of your own, in place of a directory. The identity store gives the user's signing key, so such an app has one user.
   * In development mode stand-ins in memory are used for those that are missing.
   */
  storageAdapters?: StorageAdapters;
  /** Refuses stores in which a session, its one-time prekey and its message are not one transaction: `storageAdapters`. */
  requireAtomicSessionAndPrekey?: boolean;
  /**
   * Whether a minimal relay will do, which hands JSON on and keeps nothing. If absent: only on this machine. Never over TLS, never in
   * production mode, and never for stores that have spoken with a relay of the other kind at this address.
   */
  legacyRelay?: boolean;
  /** Refuses whatever would lose or expose something: storage in memory, adapters that are missing, relays without TLS. */
  productionMode?: boolean;
  /** Milliseconds that an operation may wait; 10000 if absent. */
  timeout?: number;
  /** Seals the stores by a passphrase, in place of a keyfile beside them. */
  passphrase?: string;
  /** Seals the stores by this keyfile, which is made if it does not exist. */
  keyfile?: string;
  /** Whom to trust at first contact. */
  trustPolicy?: 'first-use' | 'verified-only';
  /** What to do when a user shows another identity. */
  onIdentityChange?: 'reject' | 'replace';
  /** Milliseconds that conversations keep messages; 0: only as long as delivery needs them. */
  retention?: number;
  /** Which receipts to send; all if absent. */
  receipts?: { delivered?: boolean; read?: boolean };
  /** One more root certificate to trust, PEM. */
  rootCertificate?: string | Uint8Array;
  /** Takes user ids over from lost devices, where the relay allows it. */
  replaceIdentity?: boolean;
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
  replay?: ReplayStore;
  tofu?: TofuStore;
  sessions?: SessionStore;
  identity?: IdentityStore;
}
