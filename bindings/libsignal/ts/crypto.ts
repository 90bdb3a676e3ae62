/** Primitives, as libsignal-node offers them. */

import { bytesOf, guarded, invalid, SignalError } from './errors.js';
import { native } from './native.js';

/** AES-256-CBC with PKCS#7 padding. It authenticates nothing. */
export function encrypt(key: Uint8Array, data: Uint8Array, iv: Uint8Array): Buffer {
  return guarded(() => native().aesEncrypt(bytesOf(key, 'a key'), bytesOf(data, 'data'), bytesOf(iv, 'a vector')));
}

/** What `encrypt` encrypted. Check a MAC first. */
export function decrypt(key: Uint8Array, data: Uint8Array, iv: Uint8Array): Buffer {
  return guarded(() => native().aesDecrypt(bytesOf(key, 'a key'), bytesOf(data, 'data'), bytesOf(iv, 'a vector')));
}

/** HMAC-SHA256, 32 bytes. */
export function calculateMAC(key: Uint8Array, data: Uint8Array): Buffer {
  return guarded(() => native().hmac(bytesOf(key, 'a key'), bytesOf(data, 'data')));
}

/** SHA-512, 64 bytes. */
export function hash(data: Uint8Array): Buffer {
  return guarded(() => native().sha512(bytesOf(data, 'data')));
}

/** One to three blocks of HKDF-SHA256. The salt has 32 bytes. */
export function deriveSecrets(input: Uint8Array, salt: Uint8Array, info: Uint8Array, chunks = 3): Buffer[] {
  if (bytesOf(salt, 'a salt').length !== 32) throw invalid('a salt has 32 bytes');
  if (!(chunks >= 1 && chunks <= 3)) throw invalid('there are 1 to 3 blocks');
  const all = guarded(() => native().hkdf(bytesOf(input, 'an input'), salt, bytesOf(info, 'an info')));
  return Array.from({ length: chunks }, (_, index) => all.subarray(index * 32, index * 32 + 32));
}

/** Throws unless `mac` is the first `length` bytes of the MAC of `data`; compares in constant time. */
export function verifyMAC(data: Uint8Array, key: Uint8Array, mac: Uint8Array, length: number): void {
  const expected = calculateMAC(key, data).subarray(0, length);
  const given = bytesOf(mac, 'a MAC');
  if (given.length !== length || length < 1 || !native().equal(given, expected)) {
    throw new SignalError('Bad MAC', { code: 'UNDECRYPTABLE', detail: 'the MAC is not that of the data' });
  }
}
