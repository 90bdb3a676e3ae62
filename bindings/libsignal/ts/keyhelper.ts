/** Making identities and prekeys. */

import { calculateSignature, generateKeyPair, type KeyPair } from './curve.js';
import { guarded, invalid } from './errors.js';
import { native } from './native.js';

/** A fresh identity. */
export function generateIdentityKeyPair(): KeyPair {
  return generateKeyPair();
}

/** A registration id of 14 bits. */
export function generateRegistrationId(): number {
  return guarded(() => native().registrationId());
}

/** A prekey that the identity signs. */
export function generateSignedPreKey(
  identityKeyPair: KeyPair,
  signedKeyId: number,
): { keyId: number; keyPair: KeyPair; signature: Buffer } {
  const keyId = idOf(signedKeyId);
  if (typeof identityKeyPair !== 'object' || identityKeyPair === null) throw invalid('an identity is a key pair');
  const keyPair = generateKeyPair();
  return { keyId, keyPair, signature: calculateSignature(identityKeyPair.privKey, keyPair.pubKey) };
}

/** A one-time prekey. */
export function generatePreKey(keyId: number): { keyId: number; keyPair: KeyPair } {
  return { keyId: idOf(keyId), keyPair: generateKeyPair() };
}

/** @internal */
export function idOf(id: unknown): number {
  if (typeof id === 'number' && Number.isInteger(id) && id >= 0 && id <= 0xffff_ffff) return id;
  throw invalid('the id of a key is a whole number from 0 to 4294967295');
}
