/** What JavaScript hands in, checked before the native half sees it. */

import { StvorError, invalid, misconfigured } from './errors.js';
import { native, type NativeCancel, type NativeContent } from './native.js';
import type { Content, Signal } from './types.js';

// Also of another realm: in a `vm` context, as test runners use it, `instanceof` says no of what came from outside.
const { isAnyArrayBuffer, isArrayBufferView, isMap, isPromise, isSet, isSharedArrayBuffer, isUint8Array: isBytes } = require('node:util/types') as Record<
  string,
  (value: unknown) => boolean
>;

/** Whether a value is a `Uint8Array`; a `Buffer` is one. */
export function isUint8Array(value: unknown): value is Uint8Array {
  return isBytes(value);
}

/** The longest name that the native half should look at: names have 256 bytes at most. */
const LONGEST_NAME = 1_024;

/** A user's name. In normal form C, as the engine keeps it: two spellings of one name are one user. */
export function userName(name: unknown, what = 'the user id'): string {
  return shortText(name, what).normalize('NFC');
}

/** A name or an id, as it was given. */
export function shortText(name: unknown, what: string): string {
  if (typeof name !== 'string') throw invalid(`${what} is a string, not ${kindOf(name)}`);
  if (name.length > LONGEST_NAME) {
    throw new StvorError(`${what} has ${name.length} characters: a name has 256 bytes at most`, { code: 'INVALID_NAME' });
  }
  if (!isWellFormed(name)) throw new StvorError(`${what} has half of a character (a lone surrogate)`, { code: 'INVALID_NAME' });
  return name;
}

/** A wait in milliseconds, if one is given. */
export function wait(millis: unknown, what = 'timeout'): number | undefined {
  if (millis === undefined) return undefined;
  if (typeof millis !== 'number' || !(millis >= 0 && millis <= 2_147_483_647)) {
    throw invalid(`${what} is a number of milliseconds from 0 to 2147483647`);
  }
  return millis;
}

/** How long messages are kept, if it is given: negative for ever. */
export function span(millis: unknown, what: string): number | undefined {
  if (millis === undefined) return undefined;
  if (millis === Infinity) return -1;
  if (typeof millis !== 'number' || !(millis >= 0 && millis <= Number.MAX_SAFE_INTEGER)) {
    throw invalid(`${what} is a number of milliseconds, 0 or more; Infinity is for ever`);
  }
  return millis;
}

/** A signal, if one is given. */
export function signalOf(signal: unknown): Signal | undefined {
  if (signal === undefined || signal === null) return undefined;
  const known = signal as Signal;
  if (typeof signal !== 'object' || typeof known.addEventListener !== 'function' || typeof known.removeEventListener !== 'function') {
    throw invalid('signal is an AbortSignal');
  }
  return known;
}

/** The elements of an array, each read once; its length, too, so that one that grows while it is read ends all the same. */
export function elements(given: unknown, most: number, what: string): unknown[] {
  if (!Array.isArray(given)) throw invalid(`${what} are an array, not ${kindOf(given)}`);
  const { length } = given;
  if (!Number.isInteger(length) || length < 0 || length > most) throw invalid(`${what} are ${most} at most`);
  const read: unknown[] = [];
  for (let at = 0; at < length; at += 1) read.push(given[at]);
  return read;
}

/** The options of what takes a signal and nothing else. */
export function only(given: unknown, what: string): Signal | undefined {
  return options<{ signal: Signal }>(given, ['signal'], `the options of ${what}`).signal;
}

/** Messages that one `markRead` names. */
const MOST_IDS = 10_000;

/** Ids of messages, in an array. */
export function idsOf(given: unknown): string[] {
  return elements(given, MOST_IDS, 'the ids').map((id) => shortText(id, 'an id'));
}

/** Bytes that no other thread writes to while they are read. */
export function unshared(bytes: Uint8Array): Uint8Array {
  if (bytes.byteLength === 0 && isDetached(bytes)) throw invalid('the bytes are gone: their buffer was transferred to somebody else');
  return isSharedArrayBuffer(bytes.buffer) ? new Uint8Array(bytes) : bytes;
}

function isDetached(bytes: Uint8Array): boolean {
  try {
    return new Uint8Array(bytes.buffer).length < 0;
  } catch {
    return true;
  }
}

/** The same content in memory of its own: the application may use its buffer again before it is read. */
export function owned(content: NativeContent): NativeContent {
  return content.bytes ? { ...content, bytes: new Uint8Array(content.bytes) } : content;
}

/** A content. */
export function contentOf(content: unknown): NativeContent {
  const limit = native().maxContent();
  if (typeof content === 'string') {
    fits(content.length, limit);
    if (!isWellFormed(content)) throw broken();
    return { kind: 'text', text: content };
  }
  if (isUint8Array(content)) {
    fits(content.byteLength, limit);
    return { kind: 'bytes', bytes: unshared(content) };
  }
  const unfit = unlikeJson(content);
  if (unfit !== undefined) throw invalid(`${unfit} would arrive as something else: give ${BETTER[unfit]}`);
  let text: string | undefined;
  try {
    text = JSON.stringify(content);
  } catch (cause) {
    throw new StvorError('the content can not be written as JSON', { code: 'INVALID_ARGUMENT', cause });
  }
  // A half of a character is an escape there, which `JSON.stringify` writes for nothing else from U+D800 on.
  if (text?.includes('\\ud') && /(?<!\\)(?:\\\\)*\\ud[89a-f]/.test(text)) throw broken();
  if (text === undefined) throw invalid(`a content is a string, a Uint8Array or a JSON value, not ${kindOf(content)}`);
  fits(text.length, limit);
  return { kind: 'json', text };
}

const { isWellFormed: builtIn } = String.prototype as { isWellFormed?: (this: string) => boolean };

/** Whether a text can be written as UTF-8: there is no half of a surrogate pair in it. */
export function isWellFormed(text: string): boolean {
  // Node 18 has no such function.
  return builtIn ? builtIn.call(text) : !/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/.test(text);
}

function broken(): StvorError {
  return invalid('the text has half of a character (a lone surrogate) and would arrive as another one: was it cut in two?');
}

/** What JSON would make something else of without a word, and what to give in its place. */
const BETTER = {
  'an ArrayBuffer': 'a Uint8Array',
  'a view that is no Uint8Array': 'a Uint8Array',
  'a promise': 'what it resolves to',
  'a Map': 'an array of its entries, or an object',
  'a Set': 'an array',
  'an error': 'its message, or an object',
  'a number that is not finite': 'a finite one, or a string',
} as const;

function unlikeJson(content: unknown): keyof typeof BETTER | undefined {
  if (typeof content === 'number') return Number.isFinite(content) ? undefined : 'a number that is not finite';
  if (typeof content !== 'object' || content === null || typeof (content as { toJSON?: unknown }).toJSON === 'function') return undefined;
  if (isAnyArrayBuffer(content)) return 'an ArrayBuffer';
  if (isArrayBufferView(content)) return 'a view that is no Uint8Array';
  if (isPromise(content)) return 'a promise';
  if (isMap(content)) return 'a Map';
  if (isSet(content)) return 'a Set';
  return Object.prototype.toString.call(content) === '[object Error]' ? 'an error' : undefined;
}

function fits(size: number, limit: number): void {
  if (size > limit) {
    throw new StvorError(`a message of ${size} bytes is too large: ${limit} bytes at most`, { code: 'MESSAGE_TOO_LARGE' });
  }
}

/** A content that arrived. */
export function contentFrom(content: NativeContent): Content {
  if (content.kind === 'bytes') return content.bytes as Uint8Array;
  if (content.kind === 'json') return JSON.parse(content.text as string) as Content;
  return content.text as string;
}

/** Runs an operation that a signal can end. */
export async function abortable<T>(
  given: Signal | undefined,
  act: (cancel?: NativeCancel) => Promise<T>,
): Promise<T> {
  const signal = signalOf(given);
  if (signal === undefined) return act();
  if (signal.aborted) throw aborted(signal);
  const cancel = new (native().Cancel)();
  const listener = () => cancel.cancel();
  signal.addEventListener('abort', listener, { once: true });
  try {
    return await act(cancel);
  } catch (thrown) {
    if (signal.aborted) throw aborted(signal);
    throw thrown;
  } finally {
    try {
      signal.removeEventListener('abort', listener);
    } catch {
      // A signal of the application's own: what was done is done all the same.
    }
  }
}

/** Settles as `running` does, at the latest after so many milliseconds. */
export function patient(running: Promise<unknown> | undefined, patience: number): Promise<void> {
  if (running === undefined) return Promise.resolve();
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, patience);
    running.then(() => resolve(), reject).then(() => clearTimeout(timer));
  });
}

/** Waits for `what`, unless the signal ends the waiting. */
export function before(given: Signal | undefined, what: Promise<void> | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const signal = signalOf(given);
    if (signal?.aborted) throw aborted(signal);
    const listener = () => reject(aborted(signal as Signal));
    signal?.addEventListener('abort', listener, { once: true });
    void Promise.resolve(what).then(() => signal?.removeEventListener('abort', listener)).catch(() => {}).then(resolve);
  });
}

/** The error of a signal that was aborted. */
export function aborted(signal: Signal): StvorError {
  return new StvorError('the operation was aborted by its signal', { code: 'ABORTED', cause: signal.reason });
}

/** What a value is, in words, without looking into it. */
export function kindOf(value: unknown): string {
  return value === null ? 'null' : Array.isArray(value) ? 'an array' : `of type ${typeof value}`;
}

/** Options: an object with known keys only, read once, so that a getter can not answer twice. */
export function options<T extends object>(given: unknown, known: readonly string[], what: string): Partial<T> {
  if (given === undefined) return {};
  if (typeof given !== 'object' || given === null) throw misconfigured(`${what} is an object, not ${kindOf(given)}`);
  for (const key of Object.keys(given)) {
    if (!known.includes(key)) throw misconfigured(`${what} has no "${key}"; there are ${known.join(', ')}`);
  }
  const read: Record<string, unknown> = {};
  for (const key of known) {
    const value = (given as Record<string, unknown>)[key];
    if (value !== undefined) read[key] = value;
  }
  return read as Partial<T>;
}
