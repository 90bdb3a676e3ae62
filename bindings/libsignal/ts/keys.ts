/** How keys and ids are given; for this package only. */

import { bytesOf, invalid } from './errors.js';

/** 33 bytes, of which the first is 5; 32 bytes without it are taken, too. */
export function publicKeyOf(given: unknown, what = 'a public key'): Buffer {
  const key = bytesOf(given, what);
  return key.length === 32 ? Buffer.concat([Buffer.from([5]), key]) : key;
}

/** Who somebody is: of linked devices, which have one identity key, it is another one each. */
export function whoOf(publicKey: Buffer, registrationId: number): string {
  return `${publicKey.toString('latin1')}${registrationId}`;
}

export function idOf(id: unknown, what = 'the id of a key'): number {
  if (typeof id === 'number' && Number.isInteger(id) && id >= 0 && id <= 0xffff_ffff) return id;
  throw invalid(`${what} is a whole number from 0 to 4294967295`);
}
