/**
 * The calls that are made for each message. The native half writes its answer into one scratch buffer, and what leaves is copied out of it:
 * making buffers and objects from the native side costs several times what the cryptography of a message does.
 */

import { native, type Opened } from './native.js';

let scratch = Buffer.allocUnsafeSlow(16_384);
const NOTHING: string[] = [];

/** Runs `call` with room for its answer, and gives the answer's length. What was written before there was room counts for nothing. */
function answer(call: (out: Buffer) => number): number {
  const length = call(scratch);
  if (length <= scratch.length) return length;
  scratch.fill(0);
  scratch = Buffer.allocUnsafeSlow(length);
  return call(scratch);
}

/**
 * Where records are copied to. Memory of their own costs as much as the cryptography of a message, and a slice of node's pool could keep 8 KiB
 * for as long as the record lives: some share a small page.
 */
const PAGE = 2_048;
let page = Buffer.allocUnsafeSlow(PAGE);
let used = 0;

/** Takes a record out. */
function record(from: number, to: number): Buffer {
  const length = to - from;
  let own: Buffer;
  if (length > PAGE / 2) {
    own = Buffer.allocUnsafeSlow(length);
  } else {
    if (used + length > PAGE) [page, used] = [Buffer.allocUnsafeSlow(PAGE), 0];
    own = page.subarray(used, used + length);
    used += length;
  }
  scratch.copy(own, 0, from, to);
  return own;
}

/** Takes something out, and nothing secret stays behind: what is before it are the record and what is not secret. */
function last(from: number, to: number): Buffer {
  const bytes = Buffer.allocUnsafe(to - from);
  scratch.copy(bytes, 0, from, to);
  scratch.fill(0, 0, to);
  return bytes;
}

/** Encrypts on the open session. */
export function encrypt(bytes: Buffer, own: Buffer, plaintext: Buffer, now: number): { record: Buffer; kind: number; body: Buffer; registrationId: number } {
  const end = answer((out) => native().encrypt(bytes, own, plaintext, now, out));
  const [kind, registrationId] = [scratch.readUInt32LE(4), scratch.readUInt32LE(8)];
  const to = 12 + scratch.readUInt32LE(0);
  return { record: record(12, to), kind, registrationId, body: last(to, end) };
}

/** Decrypts a message without handshake. */
export function decrypt(bytes: Buffer, own: Buffer, message: Buffer, now: number): Opened {
  const end = answer((out) => native().decrypt(bytes, own, message, now, out));
  const to = 37 + scratch.readUInt32LE(0);
  const identity = Buffer.allocUnsafe(33);
  scratch.copy(identity, 0, 4, 37);
  return { record: record(37, to), identity, plaintext: last(to, end), newSession: false, compatibility: NOTHING };
}

function result(end: number): { record: Buffer; bytes: Buffer } {
  const to = 4 + scratch.readUInt32LE(0);
  return { record: record(4, to), bytes: last(to, end) };
}

/** Encrypts for a group. */
export function groupEncrypt(bytes: Buffer, plaintext: Buffer): { record: Buffer; bytes: Buffer } {
  return result(answer((out) => native().groupEncrypt(bytes, plaintext, out)));
}

/** Decrypts a member's message. */
export function groupDecrypt(bytes: Buffer, message: Buffer): { record: Buffer; bytes: Buffer } {
  return result(answer((out) => native().groupDecrypt(bytes, message, out)));
}
