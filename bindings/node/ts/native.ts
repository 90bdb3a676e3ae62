/** The native half: what it offers, and how it is found. */

import { StvorError, textOf } from './errors.js';
import type { Finding } from './types.js';

export interface NativeContent {
  kind: string;
  text?: string;
  bytes?: Uint8Array;
}

export interface NativeMessage {
  id: string;
  group?: string;
  sender: string;
  device: number;
  content: NativeContent;
  sentAt: number;
  receivedAt: number;
  verified: boolean;
}

export interface NativeHistoryMessage {
  id: string;
  incoming: boolean;
  peer: string;
  content: NativeContent;
  sentAt: number;
  receivedAt?: number;
  status: string;
  read: boolean;
}

export interface NativePage {
  take(): NativeHistoryMessage[];
  readonly more: boolean;
}

export interface NativeHistoryRequest {
  /** With whom; of a group its id. */
  of: string;
  group: boolean;
  limit?: number | undefined;
  search?: string | undefined;
}

export interface NativeCancel {
  cancel(): void;
}

export interface NativeGroup {
  id: string;
  name: string;
  members: string[];
  isMember: boolean;
  epoch: number;
  state: string;
}

export interface NativeSend {
  to: string;
  content: NativeContent;
  timeout?: number;
  committed?: boolean;
}

export interface NativeReceipt {
  readonly id: string;
  readonly to: string;
  readonly status: string;
  /** `done` is told what it failed with, if it did. It does not keep the process alive. */
  reached(state: string, cancel: NativeCancel | undefined, done: (failed: string | null) => void): void;
}

export interface NativeStream {
  settled(count: number, consumed: boolean): void;
  stop(keep: number): Promise<void>;
  end(): Promise<void>;
}

/** Sends of one client: `number` is told what became of each. */
export interface NativeSends {
  send(client: NativeClient, number: number, request: NativeSend, cancel?: NativeCancel): void;
}

export interface NativeClient {
  readonly user: string;
  readonly state: string;
  readonly endedBy: string | null;
  readonly unconsumed: number;
  readonly pending: number;
  readonly dataPath: string | null;
  readonly identity: { user: string; device: number; fingerprint: string; createdAt: number };
  sendMany(requests: NativeSend[], cancel?: NativeCancel): Promise<{ receipt?: NativeReceipt; failure?: string }[]>;
  createGroup(what: [string, string[]], cancel?: NativeCancel): Promise<string>;
  groups(): Promise<NativeGroup[]>;
  groupInfo(group: string): Promise<NativeGroup>;
  groupSend(request: { group: string; content: NativeContent }, cancel?: NativeCancel): Promise<string>;
  groupChange(request: { group: string; what: string; names: string[] }, cancel?: NativeCancel): Promise<void>;
  groupReceipts(group: string, id: string): Promise<{ user: string; state: string; at: number }[]>;
  groupMarkRead(group: string, from: string, ids: string[]): Promise<void>;
  receipt(id: string): Promise<NativeReceipt | null>;
  stream(deliver: (batch: NativeMessage[]) => void): NativeStream;
  /** No events at all are the end: the client is closed. */
  events(tell: (events: string[]) => void): void;
  waitOnline(timeout: number, cancel?: NativeCancel): Promise<void>;
  waitCaughtUp(timeout: number, cancel?: NativeCancel): Promise<void>;
  waitForUser(who: [string, number], cancel?: NativeCancel): Promise<void>;
  markRead(peer: string, ids: string[]): Promise<void>;
  safetyNumber(peer: string, cancel?: NativeCancel): Promise<{ text: string; digits: string; qr: Uint8Array; verified: boolean }>;
  manage(what: [string, string], cancel?: NativeCancel): Promise<void>;
  acceptNamed(what: [string, string], cancel?: NativeCancel): Promise<void>;
  verifyNumber(what: [string, string], cancel?: NativeCancel): Promise<void>;
  setRetention(peer: string, millis: number): Promise<void>;
  peers(): Promise<{ user: string; verified?: boolean; blocked: boolean; lastMessageAt?: number }[]>;
  history(request: NativeHistoryRequest, before?: NativePage, cancel?: NativeCancel): Promise<NativePage>;
  backup(
    request: { path: string; passphrase?: string; recipients?: string[]; keep?: number },
    told?: (progress: NativeProgress) => void,
    cancel?: NativeCancel,
  ): Promise<{ path: string; bytes: number; messages: number; conversations: number; removed: string[] }>;
  journal(limit: number): Promise<{ at: number; who: string; deed: string; subject: string; detail: string }[]>;
  changeKey(keys: Record<string, unknown>, cancel?: NativeCancel, kms?: NativeKms): Promise<void>;
  rotateKey(told?: (progress: NativeProgress) => void, cancel?: NativeCancel): Promise<void>;
  close(within: number): Promise<void>;
  end(what: string, cancel?: NativeCancel): Promise<void>;
}

export interface NativeProgress {
  done: number;
  total: number;
}

export interface NativeApp {
  readonly relayUrl: string;
  readonly appId: string;
  findings(): Finding[];
  connect(user: string, cancel?: NativeCancel): Promise<NativeClient>;
  rotateIdentity(user: string, notDerived: boolean, acceptLossyStore: boolean): Promise<[string, string, string]>;
  restore(
    request: { path: string; passphrase?: string; identity?: string },
    told?: (progress: NativeProgress) => void,
    cancel?: NativeCancel,
  ): Promise<{ user: string; madeAt: number; messages: number; conversations: number }>;
  close(): Promise<void>;
}

export interface NativeRelay {
  readonly url: string;
  readonly port: number;
  load(): number[];
  close(): Promise<void>;
}

export interface NativeKeyPair {
  readonly publicKey: Uint8Array;
  readonly bundle: Uint8Array;
  renew(): Uint8Array;
  save(key: Uint8Array): Uint8Array;
}

export interface NativeSession {
  readonly handshake: Uint8Array;
  readonly peerPublicKey: Uint8Array;
  readonly ready: boolean;
  readonly established: boolean;
  encryptText(text: string, out: Uint8Array): number;
  encryptBytes(bytes: Uint8Array, out: Uint8Array): number;
  decrypt(message: Uint8Array, out: Uint8Array): number;
  decryptParts(header: Uint8Array, ciphertext: Uint8Array, out: Uint8Array): number;
  given(out: Uint8Array): void;
  takeReply(): Uint8Array | null;
  save(key: Uint8Array): Uint8Array;
}

export interface NativeAdapterRequest {
  id: number;
  call: string;
  peer: string;
  bytes?: Uint8Array;
  text?: string;
  old?: string;
}

export interface NativeAdapterAnswer {
  failed?: string;
  wrong?: string;
  flag?: boolean;
  bytes?: Uint8Array;
  secret?: Uint8Array;
}

export interface NativeAdapters {
  answer(id: number, answer: NativeAdapterAnswer): void;
}

export interface NativeKmsRequest {
  id: number;
  call: string;
  bytes?: Uint8Array;
}

export interface NativeKmsAnswer {
  failed?: string;
  bytes?: Uint8Array;
}

export interface NativeKms {
  answer(id: number, answer: NativeKmsAnswer): void;
}

export interface Native {
  generatePhrase(): string;
  generateIdentity(): { publicKey: Uint8Array; privateKey: Uint8Array };
  NativeAdapters: new (ask: (request: NativeAdapterRequest) => void, replaces: boolean) => NativeAdapters;
  NativeKms: new (ask: (request: NativeKmsRequest) => void) => NativeKms;
  generateKeyPair(): NativeKeyPair;
  restoreKeyPair(sealed: Uint8Array, key: Uint8Array): NativeKeyPair;
  establishSession(own: NativeKeyPair, peer: Uint8Array): NativeSession;
  restoreSession(sealed: Uint8Array, key: Uint8Array): NativeSession;
  version(): string;
  maxContent(): number;
  openApp(settings: Record<string, unknown>, adapters?: NativeAdapters, cancel?: NativeCancel, kms?: NativeKms): Promise<NativeApp>;
  startRelay(settings: { host: string; port: number; tokens: string[]; verbose: boolean; database?: string }): Promise<NativeRelay>;
  Cancel: new () => NativeCancel;
  NativeSends: new (settled: (outcomes: { number: number; receipt?: NativeReceipt; failure?: string }[]) => void) => NativeSends;
}

const VERSION: string = require('../package.json').version;

let loaded: Native | undefined;

/** The native half; found when it is first needed. */
export function native(): Native {
  return (loaded ??= find());
}

/** The name of this platform's package, without its scope. */
export function platformPackage(): { name: string; platform: string; libc: string } {
  const libc = process.platform === 'linux' ? libcOf() : '';
  const suffix = process.platform === 'win32' ? '-msvc' : libc && `-${libc}`;
  const platform = `${process.platform}-${process.arch}`;
  return { name: `@stvor/sdk-${platform}${suffix}`, platform, libc };
}

function libcOf(): string {
  try {
    const { report } = process;
    if (!report) return 'gnu';
    // Looking network interfaces up can take seconds, and nobody reads them here.
    const before = report.excludeNetwork;
    report.excludeNetwork = true;
    const { header } = report.getReport();
    if (before !== undefined) report.excludeNetwork = before;
    return header.glibcVersionRuntime ? 'gnu' : 'musl';
  } catch {
    return 'gnu';
  }
}

/** Which C library a package's binary needs, as it was packed. */
function neededBy(name: string): string {
  try {
    const { glibc } = require(`${name}/package.json`) as { glibc?: unknown };
    return typeof glibc === 'string' && /^[0-9.]{1,16}$/.test(glibc) ? ` (it needs glibc ${glibc} or later)` : '';
  } catch {
    return '';
  }
}

function find(): Native {
  const { name, platform, libc } = platformPackage();
  const here = `${platform}${libc && ` (${libc === 'musl' ? 'musl' : 'glibc'})`}, Node ${process.versions.node}`;
  let found: Native;
  try {
    found = require(name) as Native;
  } catch (cause) {
    const missing = (cause as { code?: unknown } | null)?.code === 'MODULE_NOT_FOUND';
    const why = missing ? `the package ${name} is not installed` : `${name} is installed but does not load: ${textOf(cause)}`;
    // Node may load no library at all: what is installed does not matter then.
    if ((cause as { code?: unknown } | null)?.code === 'ERR_DLOPEN_DISABLED') {
      throw new StvorError(`the native half for ${here} can not be loaded: this process may load no native addons`, {
        code: 'NATIVE_MODULE_MISSING', action: 'Start Node without --no-addons; with --permission, start it with --allow-addons, too.', cause,
      });
    }
    const there = Object.keys((require('../package.json') as { optionalDependencies: Record<string, string> }).optionalDependencies);
    if (missing && !there.includes(name)) {
      const platforms = there.map((one) => one.slice('@stvor/sdk-'.length)).join(', ');
      throw new StvorError(`there is no native half for ${here}; there are ${platforms}`, {
        code: 'NATIVE_MODULE_MISSING', action: 'Run it on one of these platforms; on Windows on ARM with the x64 build of Node.', cause,
      });
    }
    const install = `install with optional dependencies, on the machine (or for the platform) that runs it: npm install @stvor/sdk@${VERSION} --include=optional`;
    // A package that is there and does not load was copied from another machine, or this one's C library is older than it needs.
    const mend = missing ? install : `if it came from another machine, ${install}; a C library that is older than it needs takes a newer system${neededBy(name)}`;
    throw new StvorError(`the native half for ${here} is missing: ${why}; ${mend}`, { code: 'NATIVE_MODULE_MISSING', cause });
  }
  if (found.version() !== VERSION) {
    throw new StvorError(
      `${name} is version ${found.version()}, @stvor/sdk is ${VERSION}: install both in the same version`,
      { code: 'NATIVE_MODULE_MISSING' },
    );
  }
  return found;
}
