/** An app at a relay. */

import { adaptersOf, bridge, completed } from './adapters.js';
import { asyncDispose } from './dispose.js';
import { abortable, options, span, userName, wait } from './check.js';
import { Client, warn } from './client.js';
import { awaited, guarded, invalid, misconfigured } from './errors.js';
import { native, type NativeApp } from './native.js';
import type { AppOptions, Signal } from './types.js';

const OPTIONS = [
  'appToken', 'relayUrl', 'clientToken', 'appId', 'dataDir', 'storage', 'storageAdapters', 'productionMode', 'timeout',
  'passphrase', 'keyfile', 'trustPolicy', 'onIdentityChange', 'retention', 'receipts', 'rootCertificate', 'replaceIdentity',
  'legacyRelay', 'requireAtomicSessionAndPrekey',
] as const;

const STRINGS = [
  'appToken', 'relayUrl', 'clientToken', 'appId', 'dataDir', 'storage', 'passphrase', 'keyfile', 'trustPolicy', 'onIdentityChange',
] as const;

/** The longest text that a setting can be: paths and tokens are shorter. */
const LONGEST_SETTING = 65_536;

/** An app at a relay: where clients come from. Made by `createApp`. */
export class App {
  readonly #native: NativeApp;
  readonly #clients = new Map<string, Client>();

  /** @internal */
  constructor(native: NativeApp) {
    this.#native = native;
  }

  /** The relay's origin. */
  get relayUrl(): string {
    return guarded(() => this.#native.relayUrl);
  }

  /** The app's id. */
  get appId(): string {
    return guarded(() => this.#native.appId);
  }

  /**
   * Opens a user's client: identity, sessions and messages of earlier runs are there, a new user gets an identity and is
   * registered. Calling it again gives the same client.
   *
   * Waits up to the timeout for the relay; a user that registered before is opened without it, too, and connects by itself later.
   */
  connect(userId: string, options_?: { signal?: Signal }): Promise<Client> {
    return awaited(async () => {
      const { signal } = options<{ signal: Signal }>(options_, ['signal'], 'the options of connect');
      const name = userName(userId);
      const opened = await abortable(signal, (cancel) => this.#native.connect(name, cancel));
      const known = this.#clients.get(opened.user);
      if (known) return known;
      const client = new Client(opened, (closed) => {
        if (this.#clients.get(opened.user) === closed) this.#clients.delete(opened.user);
      });
      this.#clients.set(opened.user, client);
      return client;
    });
  }

  /** Closes the client of one user, or of every user. */
  disconnect(userId?: string): Promise<void> {
    return awaited(async () => {
      if (userId === undefined) return this.close();
      await this.#clients.get(userName(userId))?.close();
    });
  }

  /** Closes every client, each as `client.close()` does. */
  close(): Promise<void> {
    return awaited(async () => {
      await Promise.all([...this.#clients.values()].map((client) => client.close()));
      await this.#native.close();
    });
  }

  /** `await using app = await createApp(...)`. */
  [asyncDispose](): Promise<void> {
    return this.close();
  }
}

/**
 * Sets up an app. Nothing is dialled: that is `app.connect`.
 *
 * @example
 * ```js
 * const app = await createApp({ appToken: 'stvor_dev_test123', relayUrl: 'ws://localhost:4444' });
 * const alice = await app.connect('alice');
 * await alice.send('bob', 'Hello!');
 * ```
 */
export function createApp(settings: AppOptions): Promise<App> {
  return awaited(async () => {
    const given = options<AppOptions>(settings, OPTIONS, 'the options of createApp');
    check(given);
    const production = given.productionMode === true;
    const stores = given.storageAdapters === undefined ? undefined : adaptersOf(given.storageAdapters);
    if (production) checkProduction(given, stores?.missing);
    const adapters = stores && bridge(completed(stores.adapters));
    const opened = await native().openApp(nativeSettings(given), adapters);
    if (stores && stores.missing.length > 0) warnOfMissing(stores.missing);
    if (!production && given.storage === 'memory') {
      warn('storage in memory: identities and messages are gone with this process', 'STVOR_MEMORY_STORAGE');
    }
    return new App(opened);
  });
}

function check(given: Partial<AppOptions>): void {
  for (const key of STRINGS) {
    const value: unknown = given[key];
    if (value === undefined) continue;
    if (typeof value !== 'string') throw misconfigured(`${key} is a string`);
    if (value.length > LONGEST_SETTING) throw misconfigured(`${key} has ${value.length} characters`);
  }
  for (const key of ['productionMode', 'replaceIdentity', 'legacyRelay', 'requireAtomicSessionAndPrekey'] as const) {
    if (given[key] !== undefined && typeof given[key] !== 'boolean') throw misconfigured(`${key} is true or false`);
  }
  if (given.storage !== undefined && given.storage !== 'disk' && given.storage !== 'memory') {
    throw misconfigured('storage is "disk" or "memory"');
  }
  if (given.storage === 'memory' && given.dataDir !== undefined) {
    throw misconfigured('storage "memory" and dataDir exclude each other');
  }
  if (given.storageAdapters !== undefined && (given.storage !== undefined || given.dataDir !== undefined)) {
    throw misconfigured('storageAdapters exclude storage and dataDir');
  }
  wait(given.timeout);
  span(given.retention, 'retention');
}

function checkProduction(given: Partial<AppOptions>, missing: string[] | undefined): void {
  if (given.legacyRelay === true) throw misconfigured('production mode speaks to no minimal relay: leave legacyRelay out');
  if (missing) {
    if (missing.length > 0) throw misconfigured(`production mode needs all four storageAdapters; missing: ${missing.join(', ')}`);
  } else if (given.dataDir === undefined) {
    throw misconfigured('production mode needs storage that was chosen: set dataDir');
  }
}

function warnOfMissing(missing: string[]): void {
  const lost = missing.includes('sessions') || missing.includes('identity')
    ? 'identities and messages are gone with this process'
    : 'what they would remember is gone with this process';
  warn(`storageAdapters without ${missing.join(', ')}: ${lost}`, 'STVOR_MEMORY_STORAGE');
}

function nativeSettings(given: Partial<AppOptions>): Record<string, unknown> {
  const receipts = options<{ delivered: boolean; read: boolean }>(given.receipts, ['delivered', 'read'], 'receipts');
  for (const value of [receipts.delivered, receipts.read]) {
    if (value !== undefined && typeof value !== 'boolean') throw misconfigured('receipts.delivered and receipts.read are true or false');
  }
  return {
    appToken: given.appToken,
    clientToken: given.clientToken,
    relayUrl: given.relayUrl,
    appId: given.appId,
    dataDir: given.dataDir,
    inMemory: given.storage === 'memory',
    passphrase: given.passphrase,
    keyfile: given.keyfile,
    timeout: given.timeout,
    trustPolicy: given.trustPolicy,
    onIdentityChange: given.onIdentityChange,
    retention: span(given.retention, 'retention'),
    deliveredReceipts: receipts.delivered,
    readReceipts: receipts.read,
    rootCertificate: certificate(given.rootCertificate),
    replaceIdentity: given.replaceIdentity,
    // The native half judges the URL, as it will be dialled.
    protected: given.productionMode,
    minimalRelay: given.productionMode === true ? false : given.legacyRelay,
    requireAtomic: given.requireAtomicSessionAndPrekey,
  };
}

function certificate(given: string | Uint8Array | undefined): Uint8Array | undefined {
  if (given === undefined || given instanceof Uint8Array) return given;
  if (typeof given !== 'string') throw invalid('rootCertificate is PEM, as a string or a Uint8Array');
  if (given.length > LONGEST_SETTING) throw misconfigured(`rootCertificate has ${given.length} characters`);
  const bytes = new Uint8Array(given.length);
  for (let at = 0; at < given.length; at += 1) bytes[at] = given.charCodeAt(at) & 0x7f;
  return bytes;
}
