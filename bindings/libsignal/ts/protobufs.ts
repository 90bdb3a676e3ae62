/** What messages say on their outside, for applications that look before they decrypt. Nothing of it is verified. */

import { bytesOf, guarded } from './errors.js';
import { native } from './native.js';

const VERSION = Buffer.from([0x33]);
const NO_MAC = Buffer.alloc(8);

/** The fields of a message with a handshake. */
export interface PreKeyWhisperFields {
  readonly registrationId: number;
  readonly preKeyId?: number;
  readonly signedPreKeyId: number;
  readonly baseKey: Buffer;
  /** As the sender says: it is proven once the message decrypted. */
  readonly identityKey: Buffer;
  /** The whole message inside. */
  readonly message: Buffer;
}

/** The fields of a message without. */
export interface WhisperFields {
  readonly ephemeralKey: Buffer;
  readonly counter: number;
  readonly previousCounter: number;
  readonly ciphertext: Buffer;
}

/** Messages with a handshake. */
export const PreKeyWhisperMessage = Object.freeze({
  /** Reads a message without its version byte: `PreKeyWhisperMessage.decode(body.subarray(1))`. Fails with `MALFORMED_MESSAGE`. */
  decode(bytes: Uint8Array): PreKeyWhisperFields {
    return guarded(() => {
      const whole = Buffer.concat([VERSION, bytesOf(bytes, 'a message')]);
      const { prekey, signed, identity, baseKey, registrationId } = native().outside(whole);
      const fields = { registrationId, signedPreKeyId: signed, baseKey, identityKey: identity, message: native().inside(whole) };
      return prekey === undefined ? fields : { ...fields, preKeyId: prekey };
    });
  },
});

/** Messages without. */
export const WhisperMessage = Object.freeze({
  /** Reads a message without its version byte and its MAC: `WhisperMessage.decode(body.subarray(1, -8))`. Fails with `MALFORMED_MESSAGE`. */
  decode(bytes: Uint8Array): WhisperFields {
    return guarded(() => native().whisperFields(Buffer.concat([VERSION, bytesOf(bytes, 'a message'), NO_MAC])));
  },
});
