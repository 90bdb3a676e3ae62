/**
 * The calls that are made for each message. The native half writes what it made to where it stays: making buffers and objects from the native side costs
 * several times what the cryptography of a message does, and so does memory of its own for each answer.
 */

import { coded } from './errors.js';
import { native, type Opened } from './native.js';

const { markAsUntransferable }: { markAsUntransferable?(memory: ArrayBuffer): void } = require('node:worker_threads');

const NOTHING: string[] = [];

/** Node's global is looked up by a function. */
const bytesAt: (memory: ArrayBuffer, from: number, length: number) => Buffer = Buffer.from;

/** An identity, which comes before the text of a message. */
const IDENTITY = 33;
/** By how much a record grows with most messages, and a message has with its handshake around it. */
const GROWTH = 128;
const AROUND = 176 + IDENTITY;
/** Nothing longer is taken in. */
const LONGEST = 512 * 1_024;

/**
 * What goes along with a call, and comes back, at the beginning of the memory that records are written to, as the machine orders bytes: the time; where
 * the record and the text go; how long they are; and two numbers of the call's own. Behind that, who we are: nothing secret.
 */
const SLIP = 72;
const NUMBERS = 32;
const enum At {
  Record = 2,
  Text,
  RecordLength,
  TextLength,
  First,
  Second,
}

const NOBODY = Buffer.alloc(0);

/** Memory that answers are written to, one behind the other. */
class Page {
  readonly bytes: Buffer;
  readonly memory: ArrayBuffer;
  used: number;

  constructor(bytes: Buffer, from: number) {
    this.bytes = bytes;
    this.memory = bytes.buffer as ArrayBuffer;
    this.used = from;
  }

  /** What was written at the end. */
  take(length: number): Buffer {
    const from = this.used;
    this.used = from + length;
    return bytesAt(this.memory, from, length);
  }
}

/** Memory of records. It is never that of something that an application is given: who is given bytes is given all of their memory. */
class Records extends Page {
  readonly time: Float64Array;
  readonly words: Uint32Array;
  /** Who the slip says that we are. */
  own = NOBODY;

  constructor(size: number) {
    super(Buffer.allocUnsafeSlow(size), SLIP);
    this.time = new Float64Array(this.memory, 0, 1);
    this.words = new Uint32Array(this.memory, 0, NUMBERS / 4);
  }

  /** Says who we are. */
  of(own: Buffer): void {
    if (own === this.own) return;
    this.bytes.set(own, NUMBERS);
    this.own = own;
  }
}

/** A record keeps all of its page for as long as it lives, so pages are small; memory is as dear to make for one record as for several. */
const RECORDS = 4_096;
/** As large as a page of node's pool. */
const TEXTS = 8_192;

let records = new Records(RECORDS);
let others = new Records(RECORDS);
let texts = sharedTexts();

/** Memory for texts, of zeroes: what was freed before may have been of records, and an application is given all of it. */
function textsOf(size: number): Page {
  return new Page(Buffer.alloc(size), 0);
}

/** The same for several. As node's pool it stays where it is: who transfers one text to another thread would take all others along. */
function sharedTexts(): Page {
  const page = textsOf(TEXTS);
  markAsUntransferable?.(page.memory);
  return page;
}

/** Where a record goes: not to the memory of the one that is read, which the native half has to itself. */
function recordsFor(before: Buffer, length: number): Records {
  if (records.memory === before.buffer) {
    const swapped = records;
    records = others;
    others = swapped;
  }
  if (records.used + length > records.bytes.length) records = new Records(Math.max(RECORDS, SLIP + length));
  return records;
}

/** Where a text goes. A long one has memory of its own. */
function textsFor(length: number): Page {
  if (length > TEXTS / 4) return textsOf(length);
  // Not the size that it had: there are ways to take memory away that heed no mark.
  if (texts.used + length > texts.bytes.length) texts = sharedTexts();
  return texts;
}

/** Where the answer to a call is, until the next one. */
let into = records;
let text = texts;

/** Makes room for an answer of these lengths; the call is by name, for one to a function that is always the same is compiled into what calls it. */
function prepare(before: Buffer, record: number, length: number, now: number): void {
  into = recordsFor(before, record);
  text = textsFor(length);
  into.time[0] = now;
  into.words[At.Record] = into.used;
  into.words[At.Text] = text.used;
}

/** The lengths are guessed. Where that is too little a call does nothing and tells them. */
function guess(before: Buffer, length: number, now: number): void {
  prepare(before, before.length + GROWTH, Math.min(length, LONGEST), now);
}

/** Makes the room that the call before asked for. */
function more(before: Buffer, now: number): void {
  const { words } = into;
  prepare(before, words[At.RecordLength] as number, words[At.TextLength] as number, now);
}

/** The memory that bytes are in, whatever they say. */
const memoryOf = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(Uint8Array.prototype), 'buffer')?.get as (this: Uint8Array) => object;

/**
 * What is given, where nothing writes while it is read: somebody may give bytes that share the memory of texts, or that of another thread. Before room is
 * made, for what is asked of bytes that somebody gives may be theirs to answer, with another call for example.
 */
function apart(input: Buffer): Buffer {
  const memory = memoryOf.call(input);
  if (memory !== texts.memory && memory instanceof ArrayBuffer) return input;
  const copy = new Uint8Array(input);
  return bytesAt(copy.buffer as ArrayBuffer, 0, copy.length);
}

function checked(done: boolean): void {
  if (!done) throw coded('INTERNAL', 'the native half needs more room than it says');
}

/** Bytes in memory of their own, which never was of anything else. */
export function ownCopy(bytes: Uint8Array): Buffer {
  const copy = Buffer.alloc(bytes.length);
  copy.set(bytes);
  return copy;
}

/**
 * The identity before a text that was taken, and stood there in its page: the one that is known, if it still is the same bytes, or one in memory of its own,
 * for storages are handed it before anybody judged it, and keep it.
 */
function identityOf(page: Page, from: number, remote: Buffer | undefined): Buffer {
  const { bytes } = page;
  if (remote !== undefined && remote.length === IDENTITY) {
    let at = 0;
    while (at < IDENTITY && remote[at] === bytes[from + at]) at += 1;
    if (at === IDENTITY) return remote;
  }
  const identity = Buffer.alloc(IDENTITY);
  bytes.copy(identity, 0, from, from + IDENTITY);
  return identity;
}

/** The text, behind `from` bytes of something else. */
function taken(from: number): Buffer {
  text.used += from;
  const bytes = text.take((into.words[At.TextLength] as number) - from);
  // As node's pool does, so that numbers can be read in place.
  text.used = (text.used + 7) & ~7;
  return bytes;
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

/** Encrypts on the open session, as `own` (`Packed.slip`); `remote` is whom it is with, where that is known. */
export function encrypt(bytes: Buffer, own: Buffer, plaintext: Buffer, now: number, remote?: Buffer): Sealed {
  const { encrypt: call } = native();
  const input = apart(plaintext);
  guess(bytes, input.length + AROUND, now);
  into.of(own);
  if (!call(bytes, input, into.bytes, text.bytes)) {
    more(bytes, now);
    into.of(own);
    checked(call(bytes, input, into.bytes, text.bytes));
  }
  const { words } = into;
  const page = text;
  const from = page.used;
  const kind = words[At.First] as number;
  const registrationId = words[At.Second] as number;
  const record = into.take(words[At.RecordLength] as number);
  const body = taken(IDENTITY);
  return { record, kind, registrationId, body, remote: identityOf(page, from, remote) };
}

/** Decrypts a message without handshake, as `own` (`Packed.slip`); `remote` is whom the open session is with, where that is known. */
export function decrypt(bytes: Buffer, own: Buffer, message: Buffer, now: number, remote?: Buffer): Opened {
  const { decrypt: call } = native();
  const input = apart(message);
  guess(bytes, input.length, now);
  into.of(own);
  if (!call(bytes, input, into.bytes, text.bytes)) {
    more(bytes, now);
    into.of(own);
    checked(call(bytes, input, into.bytes, text.bytes));
  }
  const page = text;
  const from = page.used;
  const record = into.take(into.words[At.RecordLength] as number);
  const plaintext = taken(IDENTITY);
  return { record, identity: identityOf(page, from, remote), plaintext, newSession: false, compatibility: NOTHING };
}

/** Encrypts for a group. */
export function groupEncrypt(bytes: Buffer, plaintext: Buffer): { record: Buffer; bytes: Buffer } {
  const { groupEncrypt: call } = native();
  const input = apart(plaintext);
  guess(bytes, input.length + AROUND, 0);
  if (!call(bytes, input, into.bytes, text.bytes)) {
    more(bytes, 0);
    checked(call(bytes, input, into.bytes, text.bytes));
  }
  return { record: into.take(into.words[At.RecordLength] as number), bytes: taken(0) };
}

/** Decrypts a member's message. */
export function groupDecrypt(bytes: Buffer, message: Buffer): { record: Buffer; bytes: Buffer } {
  const { groupDecrypt: call } = native();
  const input = apart(message);
  guess(bytes, input.length, 0);
  if (!call(bytes, input, into.bytes, text.bytes)) {
    more(bytes, 0);
    checked(call(bytes, input, into.bytes, text.bytes));
  }
  return { record: into.take(into.words[At.RecordLength] as number), bytes: taken(0) };
}
