/** Keys and signatures on Curve25519. A public key is 33 bytes, of which the first is 5; 32 bytes without it are taken, too. */

import { bytesOf, guarded, invalid } from './errors.js';
import { publicKeyOf } from './keys.js';
import { native, type Pair } from './native.js';

/** A key pair. */
export type KeyPair = Pair;

/** A fresh key pair. */
export function generateKeyPair(): KeyPair {
  return guarded(() => native().generatePair());
}

/** The public key, 33 bytes, of a private one. */
export function getPublicFromPrivateKey(privKey: Uint8Array): Buffer {
  return guarded(() => native().pairOf(bytesOf(privKey, 'a private key')).pubKey);
}

/** The shared secret, 32 bytes. Fails with `AGREEMENT_FAILED` for a key that gives none. */
export function calculateAgreement(pubKey: Uint8Array, privKey: Uint8Array): Buffer {
  return guarded(() => native().agree(publicKeyOf(pubKey), bytesOf(privKey, 'a private key')));
}

/** A signature (XEdDSA) of 64 bytes. Two of one message differ. */
export function calculateSignature(privKey: Uint8Array, message: Uint8Array): Buffer {
  return guarded(() => native().sign(bytesOf(privKey, 'a private key'), bytesOf(message, 'a message')));
}

/**
 * Whether a signature verifies; one that has not 64 bytes is an error, as in libsignal-node. There is no way to skip the check: a fourth argument is not
 * looked at.
 */
export function verifySignature(pubKey: Uint8Array, message: Uint8Array, signature: Uint8Array): boolean {
  const given = bytesOf(signature, 'a signature');
  // Baileys looks at nothing but whether this throws: false would be yes to it.
  if (given.length !== 64) throw invalid('a signature has 64 bytes');
  return guarded(() => native().verify(publicKeyOf(pubKey), bytesOf(message, 'a message'), given));
}
