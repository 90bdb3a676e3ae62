/** What an owner keeps: backups, the key of the store, the journal. Read and checked here, done by the native half. */

import { abortable, elements, options } from './check.js';
import { invalid, misconfigured, textOf, warn } from './errors.js';
import { kmsOf } from './kms.js';
import type { NativeApp, NativeClient, NativeProgress } from './native.js';
import { keysOf, text } from './storage.js';
import type { AppOptions, Signal } from './types.js';

/** Recipients of one backup. */
const MOST_RECIPIENTS = 64;

/** Entries of one look at the journal. */
const MOST_ENTRIES = 1_000;

/** How far something came. */
export interface Progress {
  readonly done: number;
  readonly total: number;
}

interface Watched {
  /** Told how far it came; what it throws is a warning of the process. */
  onProgress?: ((progress: Progress) => void) | undefined;
  signal?: Signal | undefined;
}

/** Who opens a backup, and how it is made: `passphrase` or `recipients`. */
export interface BackupOptions extends Watched {
  /** Opens it. */
  passphrase?: string | undefined;
  /** Open it: age recipients (`age1...`), 1 to 64. */
  recipients?: readonly string[] | undefined;
  /** In a directory: how many backups of this user stay, this one counted; all if not set. */
  keep?: number | undefined;
}

/** A backup that was made. */
export interface BackupInfo {
  readonly path: string;
  readonly bytes: number;
  readonly messages: number;
  readonly conversations: number;
  /** Older backups of this user that were removed from the directory. */
  readonly removed: readonly string[];
}

/** What opens a backup: its `passphrase`, or an `identity` that is one of its recipients. */
export interface RestoreOptions extends Watched {
  passphrase?: string | undefined;
  /** The text of an age key file (`AGE-SECRET-KEY-1...`). */
  identity?: string | undefined;
}

/** Who was restored, and what. */
export interface RestoreInfo {
  readonly userId: string;
  /** When the backup was made. */
  readonly madeAt: Date;
  readonly messages: number;
  readonly conversations: number;
}

/** Something that was decided or done. */
export interface JournalEntry {
  readonly at: Date;
  /** `actor` of `createApp`, or the account that the process ran under; or what decided by itself, for example `rotation`. */
  readonly who: string;
  /** For example `identity_accepted`, `backup_made`, `key_changed`. */
  readonly deed: string;
  /** To what: a user, a file. */
  readonly subject: string;
  /** More about it, for example the fingerprints before and after. */
  readonly detail: string;
}

/** What opens a store: one of these, as in the options of `createApp`. */
export type StoreKey = Pick<AppOptions, 'passphrase' | 'keyfile' | 'osKeyring' | 'pkcs11' | 'kmip' | 'kms'>;

const SEALS = ['passphrase', 'keyfile', 'osKeyring', 'pkcs11', 'kmip', 'kms'] as const;

function teller(given: unknown): ((progress: NativeProgress) => void) | undefined {
  if (given === undefined) return undefined;
  if (typeof given !== 'function') throw invalid('onProgress is a function');
  const failed = (thrown: unknown): void => warn(`onProgress threw: ${textOf(thrown)}`, 'STVOR_PROGRESS_FAILED');
  return (progress) => {
    try {
      const answer: any = given(progress);
      if (typeof answer?.then === 'function') answer.then(undefined, failed);
    } catch (thrown) {
      failed(thrown);
    }
  };
}

/** @internal */
export async function backup(client: NativeClient, path: string, given_?: BackupOptions): Promise<BackupInfo> {
  const given = options<BackupOptions>(given_, ['passphrase', 'recipients', 'keep', 'onProgress', 'signal'], 'the options of backup');
  const { keep } = given;
  if (keep !== undefined && !(Number.isInteger(keep) && keep >= 1 && keep <= 100_000)) throw invalid('keep is a whole number from 1 to 100000');
  if ((given.passphrase === undefined) === (given.recipients === undefined)) throw invalid('a backup needs either passphrase or recipients');
  const recipients = given.recipients && elements(given.recipients, MOST_RECIPIENTS, 'recipients').map((one) => text(one, 'a recipient'));
  const request = { path: file(path), passphrase: secret(given.passphrase, 'passphrase'), recipients, keep };
  const told = teller(given.onProgress);
  return abortable(given.signal, (cancel) => client.backup(request, told, cancel));
}

/** @internal */
export async function restore(app: NativeApp, path: string, given_?: RestoreOptions): Promise<RestoreInfo> {
  const given = options<RestoreOptions>(given_, ['passphrase', 'identity', 'onProgress', 'signal'], 'the options of restore');
  if ((given.passphrase === undefined) === (given.identity === undefined)) throw invalid('a backup opens with either passphrase or identity');
  const request = { path: file(path), passphrase: secret(given.passphrase, 'passphrase'), identity: secret(given.identity, 'identity') };
  const told = teller(given.onProgress);
  const { user, madeAt, messages, conversations } = await abortable(given.signal, (cancel) => app.restore(request, told, cancel));
  return { userId: user, madeAt: new Date(madeAt), messages, conversations };
}

/** @internal */
export async function journal(client: NativeClient, given?: { limit?: number | undefined }): Promise<JournalEntry[]> {
  const { limit = 50 } = options<{ limit: number }>(given, ['limit'], 'the options of journal');
  if (!(Number.isInteger(limit) && limit >= 1 && limit <= MOST_ENTRIES)) throw invalid(`limit is a whole number from 1 to ${MOST_ENTRIES}`);
  return (await client.journal(limit)).map((entry) => ({ ...entry, at: new Date(entry.at) }));
}

/** @internal */
export async function changeKey(client: NativeClient, key: StoreKey, signal: Signal | undefined): Promise<void> {
  const given = options<StoreKey>(key, SEALS, 'the new key');
  for (const name of ['passphrase', 'keyfile'] as const) if (given[name] !== undefined) text(given[name], name);
  if (SEALS.every((name) => given[name] === undefined || given[name] === false)) {
    throw misconfigured(`the new key is one of ${SEALS.join(', ')}`);
  }
  const keys = keysOf(given);
  const kms = kmsOf(given.kms);
  await abortable(signal, (cancel) => client.changeKey(keys, cancel, kms));
}

/** @internal */
export async function rotateKey(client: NativeClient, given_?: Watched): Promise<void> {
  const given = options<Watched>(given_, ['onProgress', 'signal'], 'the options of rotateKey');
  const told = teller(given.onProgress);
  await abortable(given.signal, (cancel) => client.rotateKey(told, cancel));
}

function file(path: unknown): string {
  const name = text(path, 'the path');
  if (name === '') throw invalid('the path is empty');
  return name;
}

function secret(given: unknown, name: string): string | undefined {
  return given === undefined ? undefined : text(given, name);
}
