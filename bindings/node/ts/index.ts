/**
 * End-to-end encrypted messaging in four lines.
 *
 * @packageDocumentation
 */

import { createApp } from './app.js';

export { generateIdentityKeyPair } from './adapters.js';
export { App, createApp, generateRecoveryPhrase } from './app.js';
export { Client, type RotatedIdentity, type RotateOptions } from './client.js';
export { StvorError } from './errors.js';
export { Group, type GroupInfo, type MemberReceipt } from './groups.js';
export type { BackupInfo, BackupOptions, JournalEntry, Progress, RestoreInfo, RestoreOptions, StoreKey } from './keeping.js';
export type {
  AppOptions, ClientEvents, ConnectionState, Content, DeliveryStatus, ExecutorOptions, Finding, HistoryMessage, HistoryOptions, HistoryPage, IdentityKeyPair,
  IdentityStore, Json, KmipKey, KmsKey, Message, MessageOrSender, Outgoing, Peer, Pkcs11Key, PostgresStorage, Receipt, RedisSettings, RedisStorage, ReplayStore,
  SafetyNumber, Sendable, ServerFiles, SessionStore, Signal, SqliteStorage, StorageAdapters, StorageOptions, TofuStore,
} from './types.js';

/** The same as `createApp`, under the name of earlier versions. */
export const Stvor = Object.freeze({ init: createApp, createApp });

/** Everything that this package exports, for `const { Stvor } = await require('@stvor/sdk').load()`. */
export function load(): Promise<typeof import('./index.js')> {
  return Promise.resolve(module.exports);
}
