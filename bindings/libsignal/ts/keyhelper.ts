/** Making identities and prekeys. */

import { calculateSignature, generateKeyPair, type KeyPair } from './curve.js';
import { guarded, invalid } from './errors.js';
import { idOf } from './keys.js';
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
