/**
 * End-to-end encrypted messaging in four lines.
 *
 * @packageDocumentation
 */

import { createApp } from './app.js';

export { generateIdentityKeyPair } from './adapters.js';
export { App, createApp } from './app.js';
export { Client } from './client.js';
export { StvorError } from './errors.js';
export type {
  AppOptions, ClientEvents, ConnectionState, Content, DeliveryStatus, HistoryMessage, HistoryPage, IdentityKeyPair, IdentityStore,
  Json, Message, MessageOrSender, Peer, Receipt, ReplayStore, SafetyNumber, SessionStore, Signal, StorageAdapters, TofuStore,
} from './types.js';

/** The same as `createApp`, under the name of earlier versions. */
export const Stvor = Object.freeze({ init: createApp, createApp });

/** Everything that this package exports, for `const { Stvor } = await require('@stvor/sdk').load()`. */
export function load(): Promise<typeof import('./index.js')> {
  return Promise.resolve(module.exports);
}
