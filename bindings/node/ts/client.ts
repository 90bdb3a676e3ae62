/** One user of an app. */

import { asyncDispose } from './dispose.js';
import { Alive } from './alive.js';
import { bind } from './bound.js';
import { abortable, contentOf, idsOf, only, options, patient, shortText, signalOf, span, userName, wait } from './check.js';
import { awaited, failure, guarded, invalid, StvorError, textOf, warn } from './errors.js';
import { Listeners, named } from './events.js';
import { Endings, Handlers, MessageIterator, type AnyHandler } from './feed.js';
import { Gate, type GateOptions } from './gate.js';
import { Group, namesOf } from './groups.js';
import { historyOf } from './history.js';
import { backup, changeKey, journal, rotateKey, type BackupInfo, type BackupOptions, type JournalEntry, type Progress, type StoreKey } from './keeping.js';
import { lingerFor, lingerNoMore } from './linger.js';
import { madeHere, OURS } from './made.js';
import type { NativeClient } from './native.js';
import { outgoing, sending, Sends, SentReceipt } from './sending.js';
import type {
  ClientEvents, ConnectionState, Content, HistoryOptions, HistoryPage, Message, MessageOrSender, Outgoing, Peer, Receipt, SafetyNumber, Sendable, Signal,
} from './types.js';

/** What whoever rotates knows better than the store does. */
export interface RotateOptions {
  /** The identity does not follow from a recovery phrase or passphrase: needed where the store can not tell. */
  notDerived?: boolean | undefined;
  /** Rotate though the store may lose a commit that it acknowledged: if it loses this one, the name is lost. */
  acceptLossyStore?: boolean | undefined;
}

/** An identity that handed over to another one. */
export interface RotatedIdentity {
  /** The client with the new identity, connected. */
  client: Client;
  /** SHA-256 of the old user key in hexadecimal. */
  old: string;
  /** SHA-256 of the new one. */
  new: string;
}

/** @internal What an app needs of its clients. */
export interface Inner {
  /** Whether the caller runs inside a handler of the client. */
  isInside(): boolean;
  /** Closes; resolves when that is done, also inside a handler. */
  close(): Promise<void>;
  /** Resolves when it is closed, if somebody closes it. */
  closing(): Promise<void> | undefined;
  /** The application asked for something that ends the client, which then ends without a warning; or that failed. */
  endsBecauseAsked(asked: boolean): void;
}

/** @internal What an app gives its clients. */
export interface ClientSettings {
  readonly gate: GateOptions;
  /** The app's timeout: what waits without one of its own, closing for a handler, the end of the process for the outbox. */
  readonly patience: number;
  readonly onClose: (client: Client) => void;
  readonly onRotate: (userId: string, options: RotateOptions | undefined) => Promise<RotatedIdentity>;
  readonly inner: (inner: Inner) => void;
}

/**
 * One user of an app: sends, receives, knows whom it talks with. Made by `app.connect`.
 *
 * A client with a message handler, an open iterator or a receipt that is waited for keeps the process alive until it is closed or `unref()` is called;
 * one without does not, but what it sends is finished first.
 */
export class Client {
  readonly #native: NativeClient;
  readonly #alive = new Alive();
  readonly #endings = new Endings();
  readonly #handlers: Handlers;
  readonly #iterators = new Set<MessageIterator>();
  readonly #listeners = new Listeners();
  readonly #onClose: (client: Client) => void;
  readonly #onRotate: (userId: string, options: RotateOptions | undefined) => Promise<RotatedIdentity>;
  readonly #sends: Sends;
  readonly #patience: number;
  #closing: Promise<void> | undefined;
  /** Whether the application closed it. */
  #asked = false;
  /** How many calls that end it are under way, or did. */
  #ends = 0;

  /** @internal */
  constructor(native: NativeClient, how: ClientSettings, ours: typeof OURS) {
    madeHere(ours, 'Client', 'app.connect');
    bind(this);
    this.#native = native;
    this.#sends = new Sends(native, new Gate(how.gate, (name, event) => this.#listeners.emit(name, event)), this.#alive);
    this.#onClose = how.onClose;
    this.#onRotate = how.onRotate;
    this.#patience = how.patience;
    const report = (error: unknown, message: Message | undefined): void => this.#handlerFailed(error, message);
    this.#handlers = new Handlers({ endings: this.#endings, patience: how.patience, report });
    native.events((events) => {
      if (events.length === 0) this.#ended();
      for (const text of events) this.#told(text);
    });
    lingerFor(native, how.patience);
    how.inner({
      isInside: () => this.#handlers.isInside(),
      close: () => { this.#asked = true; return this.#close(); },
      closing: () => this.#closing,
      endsBecauseAsked: (asked) => { this.#ends += asked ? 1 : -1; },
    });
  }

  /** Our user. */
  get userId(): string {
    return guarded(() => this.#native.user);
  }

  /** Whether the client talks with its relay. */
  get state(): ConnectionState {
    return guarded(() => this.#native.state as ConnectionState);
  }

  /** Messages of ours that the relay has not accepted. */
  get pending(): number {
    return guarded(() => this.#native.pending);
  }

  /** Messages that arrived and were not consumed. */
  get unconsumed(): number {
    return guarded(() => this.#native.unconsumed);
  }

  /** Where this user's things are kept; `null` in memory. */
  get dataPath(): string | null {
    return guarded(() => this.#native.dataPath);
  }

  /** Our own identity: `fingerprint` is the SHA-256 of the user's public key in hexadecimal. */
  get identity(): { userId: string; deviceId: number; fingerprint: string; createdAt: Date } {
    return guarded(() => {
      const { user, device, fingerprint, createdAt } = this.#native.identity;
      return { userId: user, deviceId: device, fingerprint, createdAt: new Date(createdAt) };
    });
  }

  /**
   * Sends a message: a string is text, a `Uint8Array` bytes, everything else JSON; 64 KiB at most.
   *
   * Resolves when the relay answers for it, at the latest after the timeout, with the status `queued`: the message is then in
   * the outbox and goes out by itself. To a user whom the relay does not know it waits for them to appear first, and fails
   * with `RECIPIENT_TIMEOUT` if they do not; nothing is queued then.
   *
   * An aborted signal ends the waiting: a message that is in the outbox already is sent all the same.
   */
  send<T>(to: string, content: T & Sendable<T>, options_?: { timeout?: number | undefined; waitFor?: 'accepted' | 'committed' | undefined; signal?: Signal | undefined }): Promise<Receipt> {
    return awaited(async () => {
      const { timeout, committed, signal } = sending(options_, 'the options of send');
      return this.#sends.send({ to: userName(to, 'the recipient'), content: contentOf(content), timeout, committed }, signal);
    });
  }

  /**
   * Sends several messages, 10,000 at most: the same as `send` for each, in one call, which costs less. Those to one user keep their order.
   * Resolves with what became of each, in the order given: its receipt, or the error that it failed with, which changes nothing for the
   * others.
   *
   * @example
   * ```js
   * const outcomes = await alice.sendMany([{ to: 'bob', content: 'one' }, { to: 'carol', content: 'two' }]);
   * const failed = outcomes.filter((outcome) => outcome instanceof StvorError);
   * ```
   */
  sendMany(
    messages: readonly Outgoing[],
    options_?: { timeout?: number | undefined; waitFor?: 'accepted' | 'committed' | undefined; signal?: Signal | undefined },
  ): Promise<(Receipt | StvorError)[]> {
    let batch: Promise<(Receipt | StvorError)[]>;
    try {
      const { timeout, committed, signal } = sending(options_, 'the options of sendMany');
      batch = this.#sends.sendMany(outgoing(messages).map((one) => ({ ...one, timeout, committed })), signal);
    } catch (thrown) {
      batch = Promise.reject(thrown);
    }
    // Not around what reads the messages: that would hold all of them, also those that are refused, as long as one is under way.
    return awaited(() => batch);
  }

  /**
   * Makes a group with us and `members` in it, 1,000 at most. For whom no identity is pinned yet the relay is asked, and the trust policy judges
   * what it shows.
   *
   * @example
   * ```js
   * const group = await alice.createGroup('friends', ['bob', 'carol']);
   * await group.send('Hello, all!');
   * ```
   */
  createGroup(name: string, members: readonly string[], options_?: { signal?: Signal | undefined }): Promise<Group> {
    return awaited(async () => {
      const { signal } = options<{ signal: Signal }>(options_, ['signal'], 'the options of createGroup');
      const what: [string, string[]] = [shortText(name, 'the name of a group'), namesOf(members)];
      return new Group(this.#native, await abortable(signal, (cancel) => this.#native.createGroup(what, cancel)), OURS);
    });
  }

  /** A group that we are, or were, in; `GROUP_NOT_FOUND` if there is none. */
  group(id: string): Promise<Group> {
    return awaited(async () => new Group(this.#native, (await this.#native.groupInfo(shortText(id, 'the id of a group'))).id, OURS));
  }

  /** All groups that we are, or were, in, by their names. */
  groups(): Promise<Group[]> {
    return awaited(async () => (await this.#native.groups()).map(({ id }) => new Group(this.#native, id, OURS)));
  }

  /** The receipt of an earlier message of ours, also of an earlier run; `null` when it is not known (any more). */
  receipt(id: string): Promise<Receipt | null> {
    return awaited(async () => {
      this.#open();
      const receipt = await this.#native.receipt(shortText(id, 'the id'));
      return receipt ? new SentReceipt(receipt, receipt.to, this.#alive) : null;
    });
  }

  /**
   * Calls `handler` with every message that arrives, and first with those that arrived and were not consumed. Returns what takes
   * the handler off again.
   *
   * A message is consumed when the handler returned, or its promise resolved. If it throws, the message comes again at the next
   * start, and `handlerFailed` is emitted.
   *
   * A handler of exactly two parameters gets sender and content; any other gets the message.
   *
   * @example
   * ```js
   * bob.onMessage((message) => console.log(`${message.senderId}: ${message.content}`));
   * bob.onMessage((from, content) => console.log(`${from}: ${content}`));
   * ```
   */
  onMessage(handler: (message: MessageOrSender, content: Content) => unknown): () => void {
    return guarded(() => {
      if (typeof handler !== 'function') throw invalid('a message handler is a function');
      this.#open();
      // Each registration is one of its own, also of the same function.
      const own: AnyHandler =
        handler.length === 2
          ? (from: string, content: Content) => (handler as (from: string, content: Content) => unknown)(from, content)
          : (message: Message) => (handler as unknown as (message: Message) => unknown)(message);
      if (this.#handlers.size === 0) this.#alive.hold();
      this.#handlers.add(own, this.#native);
      let on = true;
      return () => {
        if (!on) return;
        on = false;
        this.#handlers.remove(own);
        if (this.#handlers.size === 0) this.#alive.release();
      };
    });
  }

  /**
   * Messages that arrived and were not consumed, then those that arrive: `for await (const message of client.messages())`.
   *
   * A message is consumed when the next one is asked for, or the loop is left, also by an error of its body. Iterators and handlers of one client share one
   * inbox, as workers share a queue. Ends when the client closes; an aborted signal ends it with `ABORTED`.
   */
  messages(options_?: { signal?: Signal | undefined }): AsyncIterableIterator<Message> {
    return guarded(() => {
      const signal = signalOf(options<{ signal: Signal }>(options_, ['signal'], 'the options of messages').signal);
      this.#open();
      const aborted = () => new StvorError('the iteration was aborted by its signal', { code: 'ABORTED', cause: signal?.reason });
      if (signal?.aborted) throw aborted();
      let iterator: MessageIterator | undefined;
      const abort = () => iterator?.fail(aborted());
      // First, for a signal of the application's own may throw, and nothing is open yet then.
      signal?.addEventListener('abort', abort, { once: true });
      const over = (ended: MessageIterator): void => {
        this.#iterators.delete(ended);
        signal?.removeEventListener('abort', abort);
      };
      iterator = new MessageIterator(this.#native, { alive: this.#alive, endings: this.#endings, over });
      this.#iterators.add(iterator);
      return iterator;
    });
  }

  /** Calls `listener` whenever the event happens. */
  on<E extends keyof ClientEvents>(event: E, listener: (event: ClientEvents[E]) => unknown): this {
    return guarded(() => {
      named(event, listener);
      this.#listeners.add(event, listener);
      return this;
    });
  }

  /** Takes a listener off. */
  off<E extends keyof ClientEvents>(event: E, listener: (event: ClientEvents[E]) => unknown): this {
    this.#listeners.remove(event, listener);
    return this;
  }

  /** `on`, under its other name. */
  addListener<E extends keyof ClientEvents>(event: E, listener: (event: ClientEvents[E]) => unknown): this {
    return this.on(event, listener);
  }

  /** `off`, under its other name. */
  removeListener<E extends keyof ClientEvents>(event: E, listener: (event: ClientEvents[E]) => unknown): this {
    return this.off(event, listener);
  }

  /** `on`, for one event only. */
  once<E extends keyof ClientEvents>(event: E, listener: (event: ClientEvents[E]) => unknown): this {
    return guarded(() => {
      named(event, listener);
      this.#listeners.addOnce(event, listener);
      return this;
    });
  }

  /** Waits until the client is connected; fails with `RELAY_UNAVAILABLE` after the timeout, the app's if none is given. */
  waitOnline(options_?: { timeout?: number | undefined; signal?: Signal | undefined }): Promise<void> {
    return awaited(() => {
      const { timeout, signal } = waiting(options_, 'the options of waitOnline');
      return abortable(signal, (cancel) => this.#native.waitOnline(timeout ?? this.#patience, cancel));
    });
  }

  /**
   * Waits until what waited at the relay when the client logged in is here: messages, and with them the groups that we were added
   * to meanwhile (`groups()` does not wait for them). Fails with `RELAY_UNAVAILABLE` without a relay, or after the timeout, the app's
   * if none is given.
   */
  waitCaughtUp(options_?: { timeout?: number | undefined; signal?: Signal | undefined }): Promise<void> {
    return awaited(() => {
      const { timeout, signal } = waiting(options_, 'the options of waitCaughtUp');
      return abortable(signal, (cancel) => this.#native.waitCaughtUp(timeout ?? this.#patience, cancel));
    });
  }

  /** Waits until the relay knows a user who can be written to; fails with `RECIPIENT_TIMEOUT` after the timeout, the app's if none is given. */
  waitForUser(userId: string, options_?: number | { timeout?: number | undefined; signal?: Signal | undefined }): Promise<void> {
    return awaited(() => {
      const given = typeof options_ === 'number' ? { timeout: options_ } : options_;
      const { timeout, signal } = waiting(given, 'the options of waitForUser');
      const who: [string, number] = [userName(userId), timeout ?? this.#patience];
      return abortable(signal, (cancel) => this.#native.waitForUser(who, cancel));
    });
  }

  /** Says that messages of a peer were read: the peer is told, unless the settings say otherwise. */
  markRead(userId: string, ids: readonly string[]): Promise<void> {
    return awaited(() => {
      return this.#native.markRead(userName(userId), idsOf(ids));
    });
  }

  /** The safety number with a peer: the same at both ends, or somebody sits between. */
  safetyNumber(userId: string, options_?: { signal?: Signal | undefined }): Promise<SafetyNumber> {
    return awaited(async () => {
      const signal = only(options_, 'safetyNumber');
      const peer = userName(userId);
      const { text, digits, qr, verified } = await abortable(signal, (cancel) => this.#native.safetyNumber(peer, cancel));
      return { digits, qr, verified, toString: () => text };
    });
  }

  /**
   * Notes that the safety number with a peer was compared and is right. Give it the number that was compared, as `safetyNumber` gave it or as its
   * sixty digits: if a digit is another one, or the peer shows another identity by now, nothing is noted, and it is `SAFETY_NUMBER_MISMATCH`. Without it, it is the one that this
   * client showed last.
   */
  verify(userId: string, number?: SafetyNumber | string, options_?: { signal?: Signal | undefined }): Promise<void> {
    if (number === undefined) return this.#manage('verify', userId, options_);
    return awaited(() => {
      const signal = only(options_, 'verify');
      const what: [string, string] = [userName(userId), digitsOf(number)];
      return abortable(signal, (cancel) => this.#native.verifyNumber(what, cancel));
    });
  }

  /** Takes `verify` back. */
  unverify(userId: string): Promise<void> {
    return this.#manage('unverify', userId);
  }

  /**
   * Takes the identity that a peer shows now in the place of the pinned one. With a fingerprint (SHA-256 of the user key in
   * hexadecimal, as `identity.fingerprint` gives it) only that one, and then whatever rotations say.
   */
  acceptIdentity(userId: string, fingerprint?: string, options_?: { signal?: Signal | undefined }): Promise<void> {
    if (fingerprint === undefined) return this.#manage('acceptIdentity', userId, options_);
    return awaited(() => {
      const signal = only(options_, 'acceptIdentity');
      const what: [string, string] = [userName(userId), fingerprintOf(fingerprint)];
      return abortable(signal, (cancel) => this.#native.acceptNamed(what, cancel));
    });
  }

  /**
   * Replaces our identity by a fresh one that the old one signs: contacts follow by themselves and hear `identityRotated`. This client is
   * closed, the one in the answer goes on. As `app.rotateIdentity`.
   */
  rotateIdentity(options?: RotateOptions): Promise<RotatedIdentity> {
    return awaited(() => {
      this.#open();
      return this.#onRotate(this.userId, options);
    });
  }

  /** Refuses mail from a user, and mail to them. */
  block(userId: string): Promise<void> {
    return this.#manage('block', userId);
  }

  /** Takes `block` back. */
  unblock(userId: string): Promise<void> {
    return this.#manage('unblock', userId);
  }

  /** Destroys the sessions with a peer and starts a new one. */
  resetSession(userId: string, options_?: { signal?: Signal | undefined }): Promise<void> {
    return this.#manage('resetSession', userId, options_);
  }

  /** Removes a conversation from this device. The pinned identity stays. */
  deleteConversation(userId: string): Promise<void> {
    return this.#manage('deleteConversation', userId);
  }

  /** How long a conversation keeps its messages: milliseconds, 0 for no longer than delivery needs them, `Infinity` for ever. */
  setRetention(userId: string, millis: number): Promise<void> {
    return awaited(() => {
      const kept = span(millis, 'the retention');
      if (kept === undefined) throw invalid('the retention is a number of milliseconds');
      return this.#native.setRetention(userName(userId), kept);
    });
  }

  /** Whom this client talks with. */
  peers(): Promise<Peer[]> {
    return awaited(async () =>
      (await this.#native.peers()).map((peer) => ({
        userId: peer.user,
        verified: peer.verified,
        blocked: peer.blocked,
        lastMessageAt: peer.lastMessageAt === undefined ? undefined : new Date(peer.lastMessageAt),
      })));
  }

  /**
   * The messages of a conversation, newest first, page by page. With `search` those whose text (or JSON text) holds these words, in any case; no
   * index of words is kept, so a page reads up to 20,000 messages and may hold few or none, and `older()` goes on.
   */
  history(userId: string, options_?: HistoryOptions): Promise<HistoryPage> {
    return awaited(() => {
      this.#open();
      return historyOf(this.#native, { of: userName(userId), group: false }, options_);
    });
  }

  /**
   * Writes everything that this user can not get again to one encrypted file (an age file), while the client works: identity, pins, settings,
   * history, journal, groups. `path` is a new file, or a directory, in which it gets a name with the time. It is there whole or not at all;
   * aborted it leaves nothing.
   */
  backup(path: string, options_: BackupOptions): Promise<BackupInfo> {
    return awaited(() => {
      this.#open();
      return backup(this.#native, path, options_);
    });
  }

  /** What was decided and done, newest first: identities accepted, backups made, keys changed. 50 entries, at most 1,000; kept for two years. */
  journal(options_?: { limit?: number | undefined }): Promise<JournalEntry[]> {
    return awaited(() => {
      this.#open();
      return journal(this.#native, options_);
    });
  }

  /**
   * Changes what opens the store. The new key is tried before anything is written, and no message is touched; give it to `createApp` the next
   * time. Older copies of the store still open with the old key. An aborted signal ends the waiting for the key; what has begun to be written is
   * written whole.
   */
  changeKey(key: StoreKey, options_?: { signal?: Signal | undefined }): Promise<void> {
    return awaited(() => {
      this.#open();
      return changeKey(this.#native, key, only(options_, 'changeKey'));
    });
  }

  /**
   * Replaces the data key: every row is sealed anew while the client works. Aborted or killed it goes on when it is called again. On a store that
   * several processes share it begins only while no other one is there (`STORE_IN_USE`).
   */
  rotateKey(options_?: { onProgress?: ((progress: Progress) => void) | undefined; signal?: Signal | undefined }): Promise<void> {
    return awaited(() => {
      this.#open();
      return rotateKey(this.#native, options_);
    });
  }

  /** After `ROLLBACK_DETECTED`: gives up the sessions of the old copy and starts fresh ones. */
  recoverFromRollback(options_?: { signal?: Signal | undefined }): Promise<void> {
    return awaited(() => {
      this.#open();
      const signal = only(options_, 'recoverFromRollback');
      return abortable(signal, (cancel) => this.#native.end('recoverFromRollback', cancel));
    });
  }

  /**
   * Deletes the account: name, keys and mail at the relay, then everything on this device. The client is closed.
   *
   * An aborted signal ends the waiting, no more: what the relay has heard of it, it does, and what it has confirmed goes to its end here.
   */
  deleteAccount(options_?: { signal?: Signal | undefined }): Promise<void> {
    return awaited(async () => {
      const signal = only(options_, 'deleteAccount');
      this.#ends += 1;
      try {
        await abortable(signal, (cancel) => this.#native.end('deleteAccount', cancel));
      } catch (error) {
        // An aborted one may still come about.
        if (failure(error).code !== 'ABORTED') this.#ends -= 1;
        throw error;
      }
      await this.close();
    });
  }

  /** Handlers and open iterators keep the process alive; this is so from the start. */
  ref(): this {
    this.#alive.want(true);
    return this;
  }

  /** Lets the process end although handlers or iterators wait. */
  unref(): this {
    this.#alive.want(false);
    return this;
  }

  /**
   * Ends the client: what waits to be sent is given time to go out and stays in the outbox after that; then the store is unlocked. Iterators end.
   * Closing twice is no error. All of it takes the timeout at most, a quarter of which is left for the relay and the store; a store that does not let go by
   * then is closed after it.
   *
   * When it is closed `closed` is told, whoever closed it.
   *
   * It waits for the handler that runs, three quarters of the timeout at most: the message of one that is not done by then comes again at the next start.
   * Called from inside a handler it resolves at once, and closes when the handler is done.
   */
  close(): Promise<void> {
    this.#asked = true;
    const closing = this.#close();
    if (!this.#handlers.isInside()) return closing;
    closing.catch((error) => warn(`the client did not close cleanly: ${textOf(error)}`, 'STVOR_CLOSE_FAILED'));
    return Promise.resolve();
  }

  /** Resolves when it is closed, also inside a handler, which must not wait for it. */
  #close(): Promise<void> {
    this.#closing ??= awaited(async () => {
      const since = performance.now();
      const most = (this.#patience * 3) / 4;
      const left = (of: number): number => Math.max(0, of - (performance.now() - since));
      // What was called for before goes into the outbox before it closes. Whatever a stream meets when it ends: the store is unlocked after it.
      const before = Promise.allSettled([this.#sends.close(most), this.#handlers.close(most)])
        .then(() => { if (this.#handlers.size > 0) this.#alive.release(); })
        .then(() => Promise.allSettled([...this.#iterators].map((iterator) => iterator.end(true))));
      await patient(before, this.#patience);
      await this.#native.close(left(this.#patience));
      lingerNoMore(this.#native);
      this.#onClose(this);
      this.#tellClosed();
    });
    return this.#closing;
  }

  /** The native half is closed, whoever did it: what waits for messages would wait for ever, and hold the process. */
  #ended(): void {
    if (this.#closing) return;
    this.#close().catch((error) => warn(`the client did not close cleanly: ${textOf(error)}`, 'STVOR_CLOSE_FAILED'));
  }

  #tellClosed(): void {
    const asked = this.#asked || this.#ends > 0;
    // Another app of this process closes the store that both have.
    const code = this.#native.endedBy ?? (asked ? undefined : 'STORE_CLOSED');
    if (this.#listeners.emit('closed', code === undefined ? {} : { code }) || asked) return;
    warn(`the client of "${this.userId}" was closed, and not by this application: ${code}; nothing is received any more`, 'STVOR_CLIENT_ENDED');
  }

  /** `await using client = await app.connect('alice')`. */
  [asyncDispose](): Promise<void> {
    return this.close();
  }

  #manage(what: string, userId: string, given?: { signal?: Signal | undefined }): Promise<void> {
    return awaited(() => {
      const signal = only(given, what);
      const request: [string, string] = [what, userName(userId)];
      return abortable(signal, (cancel) => this.#native.manage(request, cancel));
    });
  }

  #open(): void {
    const code = this.#native.endedBy;
    if (code !== null) throw new StvorError('the client is not ready: it ended by itself', { code });
    if (this.#closing || this.#native.state === 'closed') throw new StvorError('the client is not ready: it was closed', { code: 'CLIENT_NOT_READY' });
  }

  #told(text: string): void {
    const { name, fields: raw } = JSON.parse(text);
    const { group, ...rest } = raw;
    const fields = group === undefined ? raw : { groupId: group, group: new Group(this.#native, group, OURS), ...rest };
    const camel = (name as string).replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());
    if (camel === 'relayNotDurable') {
      warn('the relay keeps nothing: messages wait here until their receiver has them', 'STVOR_RELAY_NOT_DURABLE');
    }
    this.#listeners.tell(camel, fields);
  }

  #handlerFailed(error: unknown, message: Message | undefined): void {
    if (!this.#listeners.emit('handlerFailed', { error, message })) {
      warn(`a message handler failed, its message comes again at the next start: ${textOf(error)}`, 'STVOR_HANDLER_FAILED');
    }
  }
}

function waiting(given: unknown, what: string): { timeout: number | undefined; signal: Signal | undefined } {
  const { timeout, signal } = options<{ timeout: number; signal: Signal }>(given, ['timeout', 'signal'], what);
  return { timeout: wait(timeout), signal };
}

/** A fingerprint as people copy it. */
function fingerprintOf(given: unknown): string {
  if (typeof given !== 'string' || given.length > 1_024) throw invalid('a fingerprint is a string of 64 hexadecimal digits');
  const digits = given.replace(/\s/g, '').toLowerCase();
  if (!/^[0-9a-f]{64}$/.test(digits)) throw invalid('a fingerprint has 64 hexadecimal digits, as `identity.fingerprint` of the peer has them');
  return digits;
}

/** The digits of a safety number, without what stands between them. */
function digitsOf(number: unknown): string {
  const given: unknown = typeof number === 'object' && number !== null ? (number as { digits?: unknown }).digits : number;
  if (typeof given !== 'string' || given.length > 1_024) throw invalid('a safety number is what safetyNumber gave, or its sixty digits');
  const digits = given.replace(/\s/g, '');
  if (!/^\d{60}$/.test(digits)) throw invalid('a safety number has sixty digits');
  return digits;
}

