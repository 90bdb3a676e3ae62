/**
 * The calls that are made for each message. The native half writes what it made to where it stays: making buffers and objects from the native side costs
 * several times what the cryptography of a message does.
 */

import { coded } from './errors.js';
import { native, type Opened } from './native.js';

const NOTHING: string[] = [];

/** What goes along with a call: the time; and what comes back: how long the two parts of the answer are, and two numbers. As the machine orders bytes. */
const slip = Buffer.from(new ArrayBuffer(24), 0, 24);
const time = new Float64Array(slip.buffer, 0, 1);
const words = new Uint32Array(slip.buffer, 8, 4);

/**
 * Memory that records are written to, one behind the other. Memory of their own costs as much as the cryptography of a message, and a slice of node's pool
 * could keep 8 KiB for as long as the record lives, beside what an application hands out: some share a small page.
 */
const PAGE = 2_048;
let page = Buffer.allocUnsafeSlow(PAGE);
let used = 0;

function room(length: number): Buffer {
  if (used + length > page.length) [page, used] = [Buffer.allocUnsafeSlow(Math.max(PAGE, length)), 0];
  return page.subarray(used);
}

/** The record that was written. */
function record(): Buffer {
  const from = used;
  used += words[0];
  return page.subarray(from, used);
}

/** An identity, which comes before the text of a message. */
const IDENTITY = 33;
/** By how much a record grows with most messages, and a message has with its handshake around it. */
const GROWTH = 128;
const AROUND = 176 + IDENTITY;
/** Nothing longer is taken in. */
const LONGEST = 512 * 1_024;

/** Runs `call` with room for its answer, of which the lengths are guessed. Where that is too little it does nothing and tells them. Gives the memory that the second part is in. */
function answer(before: Buffer, length: number, call: (records: Buffer, text: Buffer) => boolean): Buffer {
  let text = Buffer.allocUnsafe(Math.min(length, LONGEST));
  if (!call(room(before.length + GROWTH), text)) {
    text = Buffer.allocUnsafe(words[1]);
    if (!call(room(words[0]), text)) throw coded('INTERNAL', 'the native half needs more room than it says');
  }
  return text;
}

/** Bytes that are not where something will be written: somebody may give all of the memory that node's pool shares out. */
function apart(bytes: Buffer, from: Buffer): Buffer {
  if (bytes.buffer !== from.buffer) return bytes;
  const overlap = bytes.byteOffset < from.byteOffset + from.length && from.byteOffset < bytes.byteOffset + bytes.length;
  return overlap ? Buffer.from(bytes) : bytes;
}

/** In memory of its own: storages are handed the identity before anybody judged it, and keep it. */
function identityOf(text: Buffer): Buffer {
  const identity = Buffer.alloc(IDENTITY);
  text.copy(identity, 0, 0, IDENTITY);
  return identity;
}

/** A message to send, and what goes with it. */
export interface Sealed {
  record: Buffer;
  kind: number;
  body: Buffer;
  registrationId: number;
  /** Whom it is for. */
  remote: Buffer;
}

/** Encrypts on the open session; `remote` is whom it is with, where that is known. */
export function encrypt(bytes: Buffer, own: Buffer, plaintext: Buffer, now: number, remote?: Buffer): Sealed {
  time[0] = now;
  const text = answer(bytes, plaintext.length + AROUND, (to, into) => native().encrypt(bytes, own, apart(plaintext, into), slip, to, into));
  return { record: record(), kind: words[2], registrationId: words[3], body: text.subarray(IDENTITY, words[1]), remote: remote ?? identityOf(text) };
}

/** Decrypts a message without handshake. */
export function decrypt(bytes: Buffer, own: Buffer, message: Buffer, now: number): Opened {
  time[0] = now;
  const read = answer(bytes, message.length, (to, text) => native().decrypt(bytes, own, apart(message, text), slip, to, text));
  return { record: record(), identity: identityOf(read), plaintext: read.subarray(IDENTITY, words[1]), newSession: false, compatibility: NOTHING };
}

/** Encrypts for a group. */
export function groupEncrypt(bytes: Buffer, plaintext: Buffer): { record: Buffer; bytes: Buffer } {
  const body = answer(bytes, plaintext.length + AROUND, (to, text) => native().groupEncrypt(bytes, apart(plaintext, text), slip, to, text));
  return { record: record(), bytes: body.subarray(0, words[1]) };
}

/** Decrypts a member's message. */
export function groupDecrypt(bytes: Buffer, message: Buffer): { record: Buffer; bytes: Buffer } {
  const text = answer(bytes, message.length, (to, into) => native().groupDecrypt(bytes, apart(message, into), slip, to, into));
  return { record: record(), bytes: text.subarray(0, words[1]) };
}
