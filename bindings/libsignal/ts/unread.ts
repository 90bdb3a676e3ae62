/** Messages that were read and whose save is not certain: each is handed over once, when it comes again. */

import type { Turn } from './calls.js';
import { failureOf, isUint8Array, type SignalError, type Words } from './errors.js';
import { handed, keepUnread, type Said } from './lanes.js';
import { native } from './native.js';

/** By a hash: a message may be long, and is in the memory of whoever has it anyway. */
const nameOf = (message: Buffer): string => native().sha512(message).toString('latin1');

/** What a message says that was read before, and was not handed over. */
export function readBefore({ state }: Turn, message: Buffer): Said | undefined {
  return state.unread.size > 0 ? state.unread.get(nameOf(message)) : undefined;
}

/** The prekeys of a handshake that was read before, by any of its messages, if that one was not handed over. */
export function prekeysBefore({ state }: Turn, baseKey: Buffer): Buffer | undefined {
  for (const { began } of state.unread.values()) if (began?.baseKey.equals(baseKey)) return began.prekeys;
  return undefined;
}

/**
 * What the messages of a batch say: the text of one that was read now, or of one that was read before and was not handed over; or its error. `before`
 * are those of before.
 */
export function saidBy(
  turn: Turn,
  messages: readonly Buffer[],
  opened: readonly { plaintext?: Buffer; failure?: string }[],
  words?: Words,
): { given: (Buffer | SignalError)[]; before: Set<Said> } {
  // A message that comes twice in one batch is handed over once.
  const handedOver = new Set<Said>();
  const before = new Set<Said>();
  const given = opened.map(({ plaintext, failure }, at) => {
    const said = readBefore(turn, messages[at] as Buffer);
    const first = said !== undefined && !handedOver.has(said);
    if (plaintext !== undefined) {
      if (first) handedOver.add(said);
      return plaintext;
    }
    const error = failureOf(failure ?? '', undefined, words);
    if (!first || !isUsed(error)) return error;
    handedOver.add(said);
    before.add(said);
    return said.plaintext;
  });
  return { given, before };
}

/** It was not handed over. */
export function keepRead({ state }: Turn, message: Buffer, said: Said): void {
  keepUnread(state, [[nameOf(message), said]]);
}

/** Those that were read of a batch were not handed over. */
export function keepBatch({ state }: Turn, messages: readonly Buffer[], read: readonly unknown[], identities: readonly Buffer[]): void {
  const batch = {};
  const kept: [string, Said][] = [];
  messages.forEach((message, at) => {
    const plaintext = read[at];
    if (isUint8Array(plaintext)) kept.push([nameOf(message), { plaintext: plaintext as Buffer, identities, batch }]);
  });
  keepUnread(state, kept);
}

/** Those that were read of a batch are. */
export function forgetBatch(turn: Turn, messages: readonly Buffer[], read: readonly unknown[]): void {
  read.forEach((plaintext, at) => {
    if (isUint8Array(plaintext)) forgetRead(turn, messages[at] as Buffer);
  });
}

/** It is, or there is no use in it. */
export function forgetRead({ state }: Turn, message: Buffer): void {
  if (state.unread.size > 0) handed(state, nameOf(message));
}

/** Whether an error says that the key of a message is used up. */
export function isUsed(thrown: unknown): boolean {
  const { code } = Object(thrown) as { code?: unknown };
  return code === 'DUPLICATE' || code === 'REPLAY';
}
