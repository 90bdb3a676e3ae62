/** The native half: what it offers, and how it is found. */

import { SignalError, wordsOf } from './errors.js';

export interface Pair {
  pubKey: Buffer;
  privKey: Buffer;
}

export interface View {
  registrationId: number;
  identity: Buffer;
  baseKey: Buffer;
  initiator: boolean;
  unanswered: boolean;
  created: number;
  used: number;
  closed: number;
}

export interface Opened {
  record: Buffer;
  plaintext: Buffer;
  identity: Buffer;
  removePrekey?: number;
  newSession: boolean;
  compatibility: string[];
}

export interface Outside {
  prekey?: number;
  signed: number;
  registrationId: number;
  baseKey: Buffer;
  identity: Buffer;
}

export interface Chain {
  id: number;
  iteration: number;
  seed: Buffer;
  publicKey: Buffer;
  privateKey?: Buffer;
  numbers: number[];
  seeds: Buffer[];
}

export interface NativeBundle {
  registrationId: number;
  identityKey: Buffer;
  signedId: number;
  signed: Buffer;
  signature: Buffer;
  prekeyId?: number;
  prekey?: Buffer;
}

export interface Native {
  version(): string;
  generatePair(): Pair;
  pairOf(privateKey: Uint8Array): Pair;
  registrationId(): number;
  agree(publicKey: Uint8Array, privateKey: Uint8Array): Buffer;
  sign(privateKey: Uint8Array, message: Uint8Array): Buffer;
  verify(publicKey: Uint8Array, message: Uint8Array, signature: Uint8Array): boolean;
  aesEncrypt(key: Uint8Array, data: Uint8Array, iv: Uint8Array): Buffer;
  aesDecrypt(key: Uint8Array, data: Uint8Array, iv: Uint8Array): Buffer;
  hmac(key: Uint8Array, data: Uint8Array): Buffer;
  sha512(data: Uint8Array): Buffer;
  hkdf(input: Uint8Array, salt: Uint8Array, info: Uint8Array): Buffer;
  equal(a: Uint8Array, b: Uint8Array): boolean;
  safetyNumber(ownId: Uint8Array, ownKey: Uint8Array, peerId: Uint8Array, peerKey: Uint8Array): { digits: string; scannable: Buffer };
  compareSafetyNumber(ownId: Uint8Array, ownKey: Uint8Array, peerId: Uint8Array, peerKey: Uint8Array, scanned: Uint8Array): string;
  recordFromJson(text: Uint8Array): Buffer;
  recordToJson(record: Uint8Array): string;
  recordCheck(record: Uint8Array): boolean;
  recordSessions(record: Uint8Array): View[];
  recordClose(record: Uint8Array, now: number): Buffer;
  recordClear(record: Uint8Array): Buffer;
  recordRemember(record: Uint8Array, other: Uint8Array): Buffer;
  recordKnows(record: Uint8Array, baseKey: Uint8Array): boolean;
  startSession(record: Uint8Array, own: Uint8Array, bundle: NativeBundle, now: number): { record: Buffer; compatibility: string[] };
  encrypt(record: Uint8Array, plaintext: Uint8Array, records: Buffer, texts: Buffer): boolean;
  encryptMany(record: Uint8Array, own: Uint8Array, plaintexts: Uint8Array[], now: number): { record: Buffer; kind: number; bodies: Buffer[]; registrationId: number };
  outside(message: Uint8Array): Outside;
  inside(message: Buffer): Buffer;
  whisperFields(message: Buffer): { ephemeralKey: Buffer; counter: number; previousCounter: number; ciphertext: Buffer };
  decrypt(record: Uint8Array, message: Uint8Array, records: Buffer, texts: Buffer): boolean;
  decryptPrekey(record: Uint8Array, own: Uint8Array, message: Uint8Array, prekeys: Uint8Array, now: number): Opened;
  decryptMany(record: Uint8Array, own: Uint8Array, messages: Uint8Array[], now: number): { record: Buffer; identities: Buffer[]; messages: { plaintext?: Buffer; failure?: string }[] };
  groupCheck(record: Uint8Array): void;
  groupDistribution(record: Uint8Array): { record: Buffer; bytes: Buffer };
  groupRotate(record: Uint8Array): Buffer;
  groupProcess(record: Uint8Array, distribution: Uint8Array): Buffer;
  groupEncrypt(record: Uint8Array, plaintext: Uint8Array, records: Buffer, texts: Buffer): boolean;
  groupEncryptMany(record: Uint8Array, plaintexts: Uint8Array[]): { record: Buffer; all: Buffer[] };
  groupDecryptMany(record: Uint8Array, messages: Uint8Array[]): { record: Buffer; messages: { plaintext?: Buffer; failure?: string }[] };
  groupDecrypt(record: Uint8Array, message: Uint8Array, records: Buffer, texts: Buffer): boolean;
  distributionFields(bytes: Uint8Array): { id: number; iteration: number; chainKey: Buffer; signingKey: Buffer };
  distributionOf(id: number, iteration: number, chainKey: Uint8Array, signingKey: Uint8Array): Buffer;
  groupMessageFields(bytes: Uint8Array): { id: number; iteration: number };
  groupTakeApart(record: Uint8Array): Chain[];
  groupPutTogether(chains: Chain[]): Buffer;
}

const VERSION: string = require('../package.json').version;

let loaded: Native | undefined;

/** The native half; found when it is first needed. */
export function native(): Native {
  return (loaded ??= find());
}

function libc(): string {
  if (process.platform === 'win32') return '-msvc';
  if (process.platform !== 'linux') return '';
  try {
    const { report } = process;
    if (!report) return '-gnu';
    // Looking network interfaces up can take seconds, and nobody reads them here.
    const before = report.excludeNetwork;
    report.excludeNetwork = true;
    const { header } = report.getReport();
    if (before !== undefined) report.excludeNetwork = before;
    return header.glibcVersionRuntime ? '-gnu' : '-musl';
  } catch {
    return '-gnu';
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
  const name = `@stvor/libsignal-${process.platform}-${process.arch}${libc()}`;
  let found: Native;
  try {
    found = require(name) as Native;
  } catch (cause) {
    const code = (cause as { code?: unknown } | null)?.code;
    // Node may load no library at all: what is installed does not matter then.
    if (code === 'ERR_DLOPEN_DISABLED') {
      throw new SignalError(`the native half for Node ${process.versions.node} can not be loaded: this process may load no native addons`, {
        code: 'NATIVE_MODULE_MISSING', action: 'Start Node without --no-addons; with --permission, start it with --allow-addons, too.', cause,
      });
    }
    const missing = code === 'MODULE_NOT_FOUND';
    const why = missing ? `the package ${name} is not installed` : `${name} is installed but does not load: ${wordsOf(cause)}`;
    const install = `install with optional dependencies, on the machine (or for the platform) that runs it: npm install @stvor/libsignal@${VERSION} --include=optional`;
    // A package that is there and does not load was copied from another machine, or this one's C library is older than it needs.
    const mend = missing ? install : `if it came from another machine, ${install}; a C library that is older than it needs takes a newer system${neededBy(name)}`;
    throw new SignalError(`the native half for Node ${process.versions.node} is missing: ${why}; ${mend}`, { code: 'NATIVE_MODULE_MISSING', cause });
  }
  if (found.version() !== VERSION) {
    throw new SignalError(`${name} is version ${found.version()}, @stvor/libsignal is ${VERSION}: install both in the same version`, {
      code: 'NATIVE_MODULE_MISSING',
    });
  }
  return found;
}
