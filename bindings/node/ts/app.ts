/** An app at a relay. */

import { adaptersOf, bridge, completed } from './adapters.js';
import { asyncDispose } from './dispose.js';
import { bind } from './bound.js';
import { abortable, before, isUint8Array, options, patient, span, unshared, userName, wait } from './check.js';
import { Client, type Inner, type RotatedIdentity, type RotateOptions } from './client.js';
import { awaited, guarded, invalid, misconfigured, StvorError, textOf, warn } from './errors.js';
import { gateOptions, type GateOptions } from './gate.js';
import { restore, type RestoreInfo, type RestoreOptions } from './keeping.js';
import { kmsOf } from './kms.js';
import { madeHere, OURS } from './made.js';
import { native, type NativeApp, type NativeClient } from './native.js';
import { keysOf, LONGEST_SETTING, storesOf, text, type Stores } from './storage.js';
import type { AppOptions, Finding, Signal } from './types.js';

const OPTIONS = [
  'appToken', 'relayUrl', 'clientToken', 'appId', 'dataDir', 'storage', 'storageAdapters', 'productionMode', 'timeout',
  'passphrase', 'keyfile', 'osKeyring', 'pkcs11', 'kmip', 'kms', 'identityPhrase', 'identityPassphrase', 'trustPolicy', 'onIdentityChange',
  'retention', 'receipts', 'rootCertificate', 'replaceIdentity', 'legacyRelay', 'requireAtomicSessionAndPrekey', 'instanceLease', 'actor',
  'executor', 'suite',
] as const;

const STRINGS = [
  'appToken', 'relayUrl', 'clientToken', 'appId', 'dataDir', 'passphrase', 'keyfile', 'identityPhrase', 'identityPassphrase', 'trustPolicy',
  'onIdentityChange', 'actor', 'suite',
] as const;

/** Milliseconds that an operation may wait, as in Rust. */
const DEFAULT_TIMEOUT = 10_000;

/** A client of an app, and what the app needs of it. */
interface Known {
  readonly client: Client;
  readonly inner: Inner;
}

/** An app at a relay: where clients come from. Made by `createApp`. */
export class App {
  readonly #native: NativeApp;
  readonly #gate: GateOptions;
  readonly #patience: number;
  /** Whether nobody is to be told again that there is no connection. */
  #quiet: boolean;
  readonly #clients = new Map<string, Known>();
  /** How often it was closed: a client that comes up after it was is closed again. */
  #closings = 0;

  /** @internal */
  constructor(native: NativeApp, how: { gate: GateOptions; patience: number; production: boolean }, ours: typeof OURS) {
    madeHere(ours, 'App', 'createApp');
    bind(this);
    this.#native = native;
    this.#gate = how.gate;
    this.#patience = how.patience;
    this.#quiet = how.production;
  }

  /** The relay's origin. */
  get relayUrl(): string {
    return guarded(() => this.#native.relayUrl);
  }

  /**
   * What `productionMode` would refuse of this set-up, and what its owner should know; empty when all is well. Clients tell their
   * listeners once, by `developmentMode`.
   */
  get findings(): Finding[] {
    return guarded(() => this.#native.findings());
  }

  /** The app's id. */
  get appId(): string {
    return guarded(() => this.#native.appId);
  }

  /**
   * Opens a user's client: identity, sessions and messages of earlier runs are there, a new user gets an identity and is
   * registered. Calling it again gives the same client.
   *
   * Waits up to the timeout for the relay; a user that registered before is opened without it, too, and connects by itself later: outside
   * production mode a warning of the process says so, once for each app.
   */
  connect(userId: string, options_?: { signal?: Signal | undefined }): Promise<Client> {
    return awaited(async () => {
      const { signal } = options<{ signal: Signal }>(options_, ['signal'], 'the options of connect');
      const name = userName(userId);
      const closings = this.#closings;
      let opened: NativeClient;
      let known: Known | undefined;
      do {
        await this.#closed(name, signal);
        opened = await abortable(signal, (cancel) => this.#native.connect(name, cancel));
        if (closings !== this.#closings) {
          await opened.close(this.#patience);
          throw new StvorError('the client is not ready: its app was closed meanwhile', { code: 'CLIENT_NOT_READY' });
        }
        known = this.#clients.get(opened.user);
        // Somebody closes it since: the next one is asked for when it is closed.
      } while (known?.inner.closing());
      this.#tellOfSilence(opened);
      if (known && known.client.state !== 'closed') return known.client;
      const onClose = (closed: Client): void => {
        if (this.#clients.get(opened.user)?.client === closed) this.#clients.delete(opened.user);
      };
      const onRotate = (user: string, how: RotateOptions | undefined) => this.rotateIdentity(user, how);
      let inner: Inner | undefined;
      const how = { gate: this.#gate, patience: this.#patience, onClose, inner: (given: Inner) => { inner = given; }, onRotate };
      const client = new Client(opened, how, OURS);
      this.#clients.set(opened.user, { client, inner: inner as Inner });
      return client;
    });
  }

  /**
   * Replaces the identity of a user by a fresh one that the old one signs, when a key may have been seen by others or simply is old. Contacts
   * follow by themselves, are told (`identityRotated`) and compare safety numbers again. The client of the user is closed; the one in the answer
   * goes on. It needs the relay; backups of before are of no use any more, and groups have to add the user anew.
   */
  rotateIdentity(userId: string, options_?: RotateOptions): Promise<RotatedIdentity> {
    return awaited(async () => {
      const given = options<RotateOptions>(options_, ['notDerived', 'acceptLossyStore'], 'the options of rotateIdentity');
      for (const value of [given.notDerived, given.acceptLossyStore]) {
        if (value !== undefined && typeof value !== 'boolean') throw invalid('notDerived and acceptLossyStore are true or false');
      }
      const name = userName(userId);
      const inner = this.#clients.get(name)?.inner;
      let rotated: [string, string, string];
      try {
        inner?.endsBecauseAsked(true);
        rotated = await this.#native.rotateIdentity(name, given.notDerived === true, given.acceptLossyStore === true);
      } catch (error) {
        inner?.endsBecauseAsked(false);
        throw error;
      } finally {
        this.#forgetClosed();
      }
      const [user, old, fresh] = rotated;
      return { client: await this.connect(user), old, new: fresh };
    });
  }

  /**
   * Brings a user back from a backup, whole or not at all, on a device where that user has no store (`RESTORE_STORE_EXISTS`). Then `connect`.
   * Never go on with the old store beside this one: two devices of one identity are `CLONE_DETECTED`.
   */
  restore(file: string, options_: RestoreOptions): Promise<RestoreInfo> {
    return awaited(() => restore(this.#native, file, options_));
  }

  /** A client that was here before comes up without its relay: whoever develops and listens to no event would see nothing at all happen. */
  #tellOfSilence(opened: NativeClient): void {
    if (this.#quiet || !['offline', 'connecting'].includes(opened.state)) return;
    this.#quiet = true;
    const start = isHere(this.relayUrl) ? ' (npx @stvor/sdk mock-relay starts one)' : '';
    warn(`the relay ${this.relayUrl} can not be reached: what is sent waits here until it can be${start}`, 'STVOR_RELAY_UNAVAILABLE');
  }

  /** Resolves when the client that closes, if one does, is closed: what it still does would end the one that is to come. */
  async #closed(user: string, signal: Signal | undefined): Promise<void> {
    for (let known = this.#clients.get(user); known?.inner.closing(); known = this.#clients.get(user)) {
      if (known.inner.isInside()) {
        throw new StvorError('the client is closing, which waits for the handler that asks for it', { code: 'CLIENT_NOT_READY' });
      }
      // One that does not close cleanly is gone, too.
      await before(signal, known.inner.closing()?.catch(() => {}));
      if (this.#clients.get(user) === known) this.#clients.delete(user);
    }
  }

  /** Clients whose native half a rotation closed, also one that failed then: what waits for a handler goes on by itself. */
  #forgetClosed(): void {
    for (const [user, { client }] of this.#clients) {
      if (client.state !== 'closed') continue;
      this.#clients.delete(user);
      client.close().catch(() => {});
    }
  }

  /** Closes the client of one user, or of every user. */
  disconnect(userId?: string): Promise<void> {
    return awaited(async () => {
      if (userId === undefined) return this.close();
      await this.#clients.get(userName(userId))?.client.close();
    });
  }

  /**
   * Closes every client, each as `client.close()` does: called from inside a handler it resolves at once, and closes when the handler is done.
   */
  close(): Promise<void> {
    return awaited(async () => {
      this.#closings += 1;
      const clients = [...this.#clients.values()];
      const inside = clients.some(({ inner }) => inner.isInside());
      const until = performance.now() + this.#patience;
      const rest = (): Promise<void> => patient(this.#native.close(), Math.max(0, until - performance.now()));
      const closed = Promise.all(clients.map(({ inner }) => inner.close())).then(rest);
      if (!inside) return closed;
      closed.catch((error) => warn(`the app did not close cleanly: ${textOf(error)}`, 'STVOR_CLOSE_FAILED'));
      return undefined;
    });
  }

  /** `await using app = await createApp(...)`. */
  [asyncDispose](): Promise<void> {
    return this.close();
  }
}

/**
 * Sets up an app. No relay is dialled: that is `app.connect`. A server that keeps the stores, or a token or KMS that keeps the key, is asked
 * how it is set up: a signal ends the wait for it.
 *
 * @example
 * ```js
 * const app = await createApp({ appToken: 'stvor_dev_test123', relayUrl: 'ws://localhost:4444' });
 * const alice = await app.connect('alice');
 * await alice.send('bob', 'Hello!');
 * ```
 */
export function createApp(setup: AppOptions, options_?: { signal?: Signal | undefined }): Promise<App> {
  return awaited(async () => {
    const given = options<AppOptions>(setup, OPTIONS, 'the options of createApp');
    const { signal } = options<{ signal: Signal }>(options_, ['signal'], 'the second argument of createApp');
    check(given);
    const gate = gateOptions(given.executor);
    const places = storesOf(given.storage, given.dataDir);
    const stores = given.storageAdapters === undefined ? undefined : adaptersOf(given.storageAdapters);
    if (given.productionMode === true && given.legacyRelay === true) {
      throw misconfigured('production mode speaks to no minimal relay: leave legacyRelay out');
    }
    const told = { ...nativeSettings(given, places), missingAdapters: stores?.missing, maxUnaccepted: gate.maxUnaccepted };
    const adapters = stores && bridge(completed(stores.adapters));
    const kms = kmsOf(given.kms);
    const opened = await abortable(signal, (cancel) => settings(() => native().openApp(told, adapters, cancel, kms)));
    if (stores && stores.missing.length > 0) warnOfMissing(stores.missing);
    warnOfFindings(opened);
    return new App(opened, { gate, patience: given.timeout ?? DEFAULT_TIMEOUT, production: given.productionMode === true }, OURS);
  });
}

function check(given: Partial<AppOptions>): void {
  for (const key of STRINGS) if (given[key] !== undefined) text(given[key], key);
  for (const key of ['passphrase', 'keyfile', 'identityPhrase', 'identityPassphrase', 'dataDir'] as const) {
    if (given[key] === '') throw misconfigured(`${key} is empty: is the variable that holds it set?`);
  }
  for (const key of ['productionMode', 'replaceIdentity', 'legacyRelay', 'requireAtomicSessionAndPrekey'] as const) {
    if (given[key] !== undefined && typeof given[key] !== 'boolean') throw misconfigured(`${key} is true or false`);
  }
  if (given.storageAdapters !== undefined && (given.storage !== undefined || given.dataDir !== undefined)) {
    throw misconfigured('storageAdapters exclude storage and dataDir');
  }
  if (given.relayUrl !== undefined && given.appToken === undefined && given.clientToken === undefined) {
    throw misconfigured('no token was given: set appToken, as the operator of the relay made it, or clientToken and appId');
  }
  if (given.clientToken !== undefined && given.appToken === undefined && given.appId === undefined) {
    throw misconfigured('a clientToken needs the appId beside it');
  }
  settings(() => {
    wait(given.timeout);
    wait(given.instanceLease, 'instanceLease');
    span(given.retention, 'retention');
  });
}

/** What is wrong with a setting is a setting that can not be used, whoever looks at it. */
function settings<T>(look: () => T): T {
  try {
    return guarded(look);
  } catch (thrown) {
    throw thrown instanceof StvorError && thrown.code === 'INVALID_ARGUMENT'
      ? misconfigured(thrown.message.replace(' [INVALID_ARGUMENT]', ''))
      : thrown;
  }
}

function warnOfMissing(missing: string[]): void {
  const lost = missing.includes('sessions') || missing.includes('identity')
    ? 'identities and messages are gone when their client closes'
    : 'what they would remember is gone with this process';
  warn(`storageAdapters without ${missing.join(', ')}: ${lost}`, 'STVOR_MEMORY_STORAGE');
}

/** What is said of a set-up that was told before. */
const warned = new Set<string>();

/** Development on one machine is told of storage in memory only; a set-up that leaves it, of all that production mode would refuse. */
function warnOfFindings(app: NativeApp): void {
  const refused = app.findings().filter((finding) => finding.refused);
  if (refused.some(({ code }) => code === 'store_not_durable')) {
    warn('storage in memory: identities and messages are gone when their client closes', 'STVOR_MEMORY_STORAGE');
  }
  if (refused.length === 0 || isHere(app.relayUrl)) return;
  const list = refused.map(({ code, what, fix }) => `${what}: ${fix} (${code})`).join('; ');
  if (warned.has(list)) return;
  warned.add(list);
  warn(`not for production: ${list}`, 'STVOR_DEVELOPMENT_MODE');
}

/** Whether a relay's origin is of this machine. */
function isHere(origin: string): boolean {
  return /^wss?:\/\/(localhost|[^/]*\.localhost|127(\.\d+){3}|\[::1\])(:\d+)?$/.test(origin);
}

function nativeSettings(given: Partial<AppOptions>, places: Stores): Record<string, unknown> {
  const receipts = options<{ delivered: boolean; read: boolean }>(given.receipts, ['delivered', 'read'], 'receipts');
  for (const value of [receipts.delivered, receipts.read]) {
    if (value !== undefined && typeof value !== 'boolean') throw misconfigured('receipts.delivered and receipts.read are true or false');
  }
  return {
    appToken: given.appToken,
    clientToken: given.clientToken,
    relayUrl: given.relayUrl,
    appId: given.appId,
    ...places,
    keys: keysOf(given),
    timeout: given.timeout,
    trustPolicy: given.trustPolicy,
    onIdentityChange: given.onIdentityChange,
    retention: span(given.retention, 'retention'),
    deliveredReceipts: receipts.delivered,
    readReceipts: receipts.read,
    rootCertificate: certificate(given.rootCertificate),
    replaceIdentity: given.replaceIdentity,
    production: given.productionMode,
    minimalRelay: given.productionMode === true ? false : given.legacyRelay,
    requireAtomic: given.requireAtomicSessionAndPrekey,
    instanceLease: given.instanceLease,
    actor: given.actor,
    suite: given.suite,
  };
}

function certificate(given: string | Uint8Array | undefined): Uint8Array | undefined {
  if (given === undefined) return undefined;
  if (isUint8Array(given)) return unshared(given);
  if (typeof given !== 'string') throw misconfigured('rootCertificate is PEM, as a string or a Uint8Array');
  if (given.length > LONGEST_SETTING) throw misconfigured(`rootCertificate has ${given.length} characters`);
  const bytes = new Uint8Array(given.length);
  for (let at = 0; at < given.length; at += 1) bytes[at] = given.charCodeAt(at) & 0x7f;
  return bytes;
}

/**
 * Makes a recovery phrase for `identityPhrase`: 24 English words (BIP-39) from 256 random bits. Show it once, to be written on paper: whoever
 * has it is its owner.
 */
export function generateRecoveryPhrase(): string {
  return guarded(() => native().generatePhrase());
}
