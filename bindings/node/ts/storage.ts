/** Where stores are and what seals them: the settings of `createApp`, read once and checked. */

import { elements, isWellFormed, kindOf, options } from './check.js';
import { misconfigured } from './errors.js';
import type { AppOptions, KmipKey, Pkcs11Key } from './types.js';

/** The longest text that a setting can be: paths and tokens are shorter. */
export const LONGEST_SETTING = 65_536;

/** Servers of one cluster to begin at. */
const MOST_URLS = 64;

const PLACES = ['sqlite', 'postgres', 'redis'] as const;
const MORE = ['replicas', 'assuredSettings'] as const;
const FILES = ['passwordFile', 'rootCertificateFile', 'clientCertificateFile', 'clientKeyFile'] as const;

/** Settings of Redis that count for what it keeps. */
const ASSURED = ['appendonly', 'appendfsync', 'no-appendfsync-on-rewrite', 'maxmemory', 'maxmemory-policy'] as const;

/** What the native half is told about stores. */
export interface Stores {
  inMemory: boolean;
  dataDir?: string;
  server?: Record<string, unknown>;
}

/** A text that a setting has to be. */
export function text(value: unknown, name: string): string {
  if (typeof value !== 'string') throw misconfigured(`${name} is a string, not ${kindOf(value)}`);
  if (value.length > LONGEST_SETTING) throw misconfigured(`${name} has ${value.length} characters`);
  // The C interface would end it there.
  if (value.includes('\0')) throw misconfigured(`${name} has a null character`);
  // All halves of characters would be written as the same one: of two secrets that differ one would be made.
  if (!isWellFormed(value)) throw misconfigured(`${name} has half of a character`);
  return value;
}

function texts<K extends string>(given: Partial<Record<K, unknown>>, names: readonly K[], of: string): Partial<Record<K, string>> {
  const read: Partial<Record<K, string>> = {};
  for (const name of names) if (given[name] !== undefined) read[name] = text(given[name], `${of}.${name}`);
  return read;
}

/** Where stores are: `storage`, with `dataDir` beside it. */
export function storesOf(storage: unknown, dataDir: string | undefined): Stores {
  if (storage === undefined || storage === 'disk') return { inMemory: false, dataDir };
  if (storage === 'memory') {
    if (dataDir !== undefined) throw misconfigured('storage "memory" and dataDir exclude each other');
    return { inMemory: true };
  }
  if (typeof storage !== 'object' || storage === null) {
    throw misconfigured('storage is "disk", "memory", { sqlite: directory }, { postgres: url } or { redis: url }');
  }
  const given = options<Record<(typeof PLACES)[number] | (typeof FILES)[number] | (typeof MORE)[number], unknown>>(
    storage, [...PLACES, ...FILES, ...MORE], 'storage');
  const places = PLACES.filter((place) => given[place] !== undefined);
  if (places.length !== 1) throw misconfigured('storage is one of { sqlite: directory }, { postgres: url } and { redis: url }');
  const [kind] = places;
  if (kind === 'sqlite') {
    if (Object.keys(given).length > 1) throw misconfigured('{ sqlite } takes nothing beside it');
    if (dataDir !== undefined) throw misconfigured('storage { sqlite } and dataDir exclude each other');
    const directory = text(given.sqlite, 'storage.sqlite');
    if (directory === '') throw misconfigured('storage.sqlite is the path of a directory');
    return { inMemory: false, dataDir: directory };
  }
  const several = kind === 'redis' && Array.isArray(given.redis);
  const urls = several ? elements(given.redis, MOST_URLS, 'the servers of storage.redis') : [given[kind]];
  if (urls.length === 0) throw misconfigured(`storage.redis is one URL, or 1 to ${MOST_URLS} of one cluster`);
  if (given.replicas !== undefined) {
    const count = given.replicas;
    if (kind !== 'redis') throw misconfigured('replicas is for { redis }: in PostgreSQL synchronous_standby_names says it');
    if (typeof count !== 'number' || !Number.isInteger(count) || count < 0 || count > 1_000) {
      throw misconfigured('storage.replicas is a whole number from 0 to 1000');
    }
  }
  if (given.assuredSettings !== undefined && kind !== 'redis') {
    throw misconfigured('assuredSettings is for { redis }: PostgreSQL tells its settings');
  }
  return {
    inMemory: false,
    dataDir,
    server: {
      kind,
      urls: urls.map((url) => text(url, `storage.${kind}`)),
      ...texts(given, FILES, 'storage'),
      replicas: given.replicas,
      assuredSettings: given.assuredSettings === undefined ? undefined : assured(given.assuredSettings),
    },
  };
}

function assured(given: unknown): Record<string, unknown> {
  const settings = options<Record<(typeof ASSURED)[number], unknown>>(given, ASSURED, 'storage.assuredSettings');
  return texts(settings, ASSURED, 'storage.assuredSettings');
}

const SEALS = ['passphrase', 'keyfile', 'osKeyring', 'pkcs11', 'kmip', 'kms'] as const;

/** What seals the stores, and what identities follow from. */
export function keysOf(given: Partial<AppOptions>): Record<string, unknown> {
  const { osKeyring } = given;
  if (osKeyring !== undefined && typeof osKeyring !== 'boolean') throw misconfigured('osKeyring is true or false');
  const seals = SEALS.filter((name) => given[name] !== undefined && given[name] !== false);
  if (seals.length > 1) throw misconfigured(`the key of the stores has one place: ${seals.join(' and ')} exclude each other`);
  if (given.identityPhrase !== undefined && given.identityPassphrase !== undefined) {
    throw misconfigured('identityPhrase and identityPassphrase exclude each other');
  }
  return {
    passphrase: given.passphrase,
    keyfile: given.keyfile,
    osKeyring,
    token: given.pkcs11 === undefined ? undefined : pkcs11(given.pkcs11),
    kmip: given.kmip === undefined ? undefined : kmip(given.kmip),
    identityPhrase: given.identityPhrase,
    identityPassphrase: given.identityPassphrase,
  };
}

function pkcs11(given: unknown): Record<string, unknown> {
  const read = options<Pkcs11Key>(given, ['module', 'token', 'key', 'pin', 'pinFile'], 'pkcs11');
  const settings = texts(read, ['module', 'token', 'key', 'pin', 'pinFile'], 'pkcs11');
  for (const name of ['module', 'token', 'key'] as const) needed(settings[name], `pkcs11.${name}`);
  if ((settings.pin === undefined) === (settings.pinFile === undefined)) throw misconfigured('pkcs11 needs either pin or pinFile');
  return settings;
}

function kmip(given: unknown): Record<string, unknown> {
  const names = ['server', 'serverName', 'rootCertificateFile', 'clientCertificateFile', 'clientKeyFile', 'key'] as const;
  const settings = texts(options<KmipKey>(given, names, 'kmip'), names, 'kmip');
  for (const name of names) if (name !== 'serverName') needed(settings[name], `kmip.${name}`);
  return settings;
}

function needed(value: string | undefined, name: string): void {
  if (value === undefined || value === '') throw misconfigured(`${name} is missing`);
}
