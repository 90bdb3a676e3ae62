/** The error of this package, and how failures of the native half become one. */

import { ACTIONS } from './actions.js';
import type { Finding } from './types.js';

/**
 * What every call of this package fails with.
 *
 * `code` is stable and the same in Rust, on the command line and in the documentation; `action` says what to do about it;
 * `retryable` tells whether the same call may succeed later without a change. Rendered as `StvorError: message [CODE]`.
 *
 * @example
 * ```js
 * try {
 *   await alice.send('bob@example.com', 'Hello');
 * } catch (error) {
 *   if (error.code === 'RECIPIENT_TIMEOUT') console.log(error.action);
 * }
 * ```
 */
export class StvorError extends Error {
  /** The stable code, for example `RECIPIENT_TIMEOUT`. */
  readonly code: string;
  /** What to do about it. */
  readonly action: string;
  /** Whether the same call may succeed later without a change. */
  readonly retryable: boolean;
  /** What caused it, where something did. */
  declare readonly cause?: unknown;
  /** Of `NOT_FOR_PRODUCTION`: all that was found, each with the way to mend it. */
  declare readonly findings?: readonly Finding[];

  /** Without `details` its code is `INTERNAL`. */
  constructor(
    message: string,
    details?: { code: string; action?: string; retryable?: boolean; cause?: unknown; findings?: readonly Finding[] } | null,
  ) {
    const code = details?.code ?? 'INTERNAL';
    super(`${message} [${code}]`);
    this.code = code;
    this.action = details?.action ?? actionOf(code);
    this.retryable = details?.retryable ?? false;
    if (details?.cause !== undefined) {
      Object.defineProperty(this, 'cause', { value: details.cause, enumerable: false, configurable: true });
    }
    if (details?.findings !== undefined) {
      Object.defineProperty(this, 'findings', { value: details.findings, enumerable: false, configurable: true });
    }
  }
}

// Before the first stack is made, which begins with it.
Object.defineProperty(StvorError.prototype, 'name', { value: 'StvorError', configurable: true, writable: true });

let actions: Record<string, string> | undefined;

function actionOf(code: string): string {
  actions ??= require('./actions.json') as Record<string, string>;
  return ACTIONS[code] ?? actions[code] ?? 'See docs/errors.md.';
}

/** What adapters, or the key management service, of the application threw, until somebody is told: the native half hands a number on. */
const thrownThere = new Map<number, unknown>();
let throws = 0;

/** How many of them are kept; the oldest go. */
const MOST_THROWN = 256;

/**
 * What the native half is told of something that an adapter threw: its kind, never its words. Those of database drivers often hold what they
 * connect with; whoever catches the error gets all of it as `cause`.
 */
export function remembered(thrown: unknown): string {
  throws += 1;
  thrownThere.set(throws, thrown);
  if (thrownThere.size > MOST_THROWN) thrownThere.delete(thrownThere.keys().next().value as number);
  return `${kindOfThrown(thrown)} (thrown ${throws})`;
}

function kindOfThrown(thrown: unknown): string {
  try {
    if (!isError(thrown)) return `something of type ${typeof thrown} was thrown`;
    const { name, code } = thrown;
    const word = (value: unknown) => (typeof value === 'string' && /^[A-Za-z0-9_]{1,64}$/.test(value) ? value : '');
    return [word(name) || 'Error', word(code)].filter(Boolean).join(' ');
  } catch {
    return 'Error';
  }
}

/** The same, where it came back. */
function recalled(message: string): { message: string; cause?: unknown } {
  const mark = / \(thrown (\d+)\)/.exec(message);
  if (!mark) return { message };
  return { message: message.replace(mark[0], ''), cause: thrownThere.get(Number(mark[1])) };
}

/** Makes a `StvorError` of whatever was thrown; `actions` are what to do about codes, where that differs from the page of errors. */
export function failure(thrown: unknown, actions: Record<string, string> = {}): StvorError {
  if (thrown instanceof StvorError) return thrown;
  const text = textOf(thrown);
  if (text.startsWith('{"stvor":')) {
    try {
      const { message: words, ...details } = JSON.parse(text).stvor;
      const { message, cause } = ['STORE_FAILED', 'KEY_UNAVAILABLE'].includes(details.code as string) ? recalled(words) : { message: words, cause: undefined };
      return new StvorError(message, { ...details, action: actions[details.code as string], cause });
    } catch {
      // Then it only looked like one.
    }
  }
  // What a panic in a synchronous function becomes. Its words are left out: they may hold what the application sent.
  if (statusOf(thrown) === 'GenericFailure') {
    return new StvorError('the SDK met a defect of its own; please report it', { code: 'INTERNAL' });
  }
  return new StvorError(`an argument can not be used: ${text}`, { code: 'INVALID_ARGUMENT', cause: thrown });
}

function statusOf(thrown: unknown): unknown {
  try {
    return isError(thrown) ? thrown.code : undefined;
  } catch {
    return undefined;
  }
}

/** Whether something is an error, also of another realm: in a `vm` context, as test runners use it, `instanceof` says no of the native half's. */
function isError(thrown: unknown): thrown is { message: unknown; name?: unknown; code?: unknown } {
  return typeof thrown === 'object' && thrown !== null && typeof (thrown as { message?: unknown }).message === 'string';
}

/** The words of something thrown, whatever it is. */
export function textOf(thrown: unknown): string {
  try {
    return isError(thrown) ? String(thrown.message) : String(thrown);
  } catch {
    return 'something that can not be printed was thrown';
  }
}

/** An argument of the wrong kind. */
export function invalid(message: string): StvorError {
  return new StvorError(message, { code: 'INVALID_ARGUMENT' });
}

/** A setting that can not be used. */
export function misconfigured(message: string): StvorError {
  return new StvorError(`a setting can not be used: ${message}`, { code: 'INVALID_CONFIG' });
}

/** Runs `act`; what it throws becomes a `StvorError` whose stack begins at the caller. */
export function guarded<T>(act: () => T): T {
  try {
    return act();
  } catch (thrown) {
    throw failure(thrown);
  }
}

/** The same for what answers later. */
export async function awaited<T>(act: () => PromiseLike<T> | T): Promise<T> {
  try {
    return await act();
  } catch (thrown) {
    throw failure(thrown);
  }
}

/** A warning of the process: the only thing that this package ever prints. */
export function warn(message: string, code: string): void {
  process.emitWarning(message, { type: 'StvorWarning', code });
}
