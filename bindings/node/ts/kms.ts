/** A key management service of the application: called with what the native half asks, answered with what it says. */

import { isUint8Array, kindOf, unshared } from './check.js';
import { failure, misconfigured, remembered } from './errors.js';
import { native, type NativeKms, type NativeKmsAnswer, type NativeKmsRequest } from './native.js';

const METHODS = ['wrap', 'unwrap'] as const;

type Calls = Record<(typeof METHODS)[number], (bytes: Uint8Array) => unknown>;

/** Connects the service with the native half. Each function is read once, so that a getter can not answer twice. */
export function kmsOf(given: unknown): NativeKms | undefined {
  if (given === undefined) return undefined;
  if (typeof given !== 'object' || given === null) throw misconfigured(`kms is an object, not ${kindOf(given)}`);
  const calls = {} as Calls;
  for (const method of METHODS) {
    const call = (given as Record<string, unknown>)[method];
    if (typeof call !== 'function') throw misconfigured(`kms.${method} is a function, not ${kindOf(call)}`);
    calls[method] = (bytes) => call.call(given, bytes) as unknown;
  }
  const bridged = new (native().NativeKms)((request) => { void answer(request); });
  const answer = async ({ id, call, bytes }: NativeKmsRequest): Promise<void> => {
    // Nobody waits for it any more.
    if (!bytes) return;
    let said: NativeKmsAnswer;
    try {
      const result = await calls[call as keyof Calls](bytes);
      said = isUint8Array(result) ? { bytes: unshared(result) } : { failed: `it answered ${kindOf(result)}; a Uint8Array is expected` };
    } catch (thrown) {
      said = { failed: remembered(thrown) };
    }
    try {
      bridged.answer(id, said);
    } catch (thrown) {
      // Bytes that can not be handed over: too many.
      bridged.answer(id, { failed: failure(thrown).message.slice(0, 1_000) });
    } finally {
      if (call === 'wrap') wipe(bytes);
    }
  };
  return bridged;
}

/** Leaves nothing of a key in memory. */
function wipe(bytes: Uint8Array): void {
  try {
    bytes.fill(0);
  } catch {
    // The service transferred its buffer to somebody else.
  }
}
