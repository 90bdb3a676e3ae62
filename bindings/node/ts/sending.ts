/** What is sent, and what became of it. */

import type { Alive } from './alive.js';
import { abortable, contentOf, elements, options, owned, signalOf, userName, wait } from './check.js';
import { awaited, failure, guarded, invalid, StvorError } from './errors.js';
import type { NativeReceipt, NativeSend } from './native.js';
import type { DeliveryStatus, Outgoing, Receipt, Signal } from './types.js';

/** Messages of one `sendMany`, and what their contents may come to. */
const MOST_SENDS = 10_000;
const MOST_BYTES = 67_108_864;

/** The options of a send, read once. */
export function sending(given: unknown, what: string): { timeout: number | undefined; committed: boolean; signal: Signal | undefined } {
  const { timeout, waitFor, signal } = options<{ timeout: number; waitFor: string; signal: Signal }>(given, ['timeout', 'waitFor', 'signal'], what);
  if (waitFor !== undefined && waitFor !== 'accepted' && waitFor !== 'committed') throw invalid('waitFor is "accepted" or "committed"');
  return { timeout: wait(timeout), committed: waitFor === 'committed', signal: signalOf(signal) };
}

/** Reads the messages of a batch, each once. */
export function outgoing(messages: unknown): { to: string; content: NativeSend['content'] }[] {
  let bytes = 0;
  return elements(messages, MOST_SENDS, 'messages').map((message) => {
    if (typeof message !== 'object' || message === null) throw invalid('a message is { to, content }');
    const { to, content } = options<Outgoing>(message, ['to', 'content'], 'a message');
    const read = contentOf(content);
    bytes += read.text?.length ?? read.bytes?.byteLength ?? 0;
    if (bytes > MOST_BYTES) {
      throw new StvorError(`the messages come to more than ${MOST_BYTES} bytes: send them in several calls`, { code: 'MESSAGE_TOO_LARGE' });
    }
    return { to: userName(to, 'the recipient'), content: owned(read) };
  });
}

/** What became of a message of ours. */
export class SentReceipt implements Receipt {
  readonly #native: NativeReceipt;
  readonly #alive: Alive;
  readonly id: string;
  readonly to: string;

  constructor(native: NativeReceipt, to: string, alive: Alive) {
    this.#native = native;
    this.#alive = alive;
    this.id = native.id;
    this.to = to;
  }

  get status(): DeliveryStatus {
    return guarded(() => this.#native.status as DeliveryStatus);
  }

  accepted(given?: { signal?: Signal }): Promise<void> {
    return awaited(() => this.#reached('accepted', given));
  }

  delivered(given?: { signal?: Signal }): Promise<void> {
    return awaited(() => this.#reached('delivered', given));
  }

  read(given?: { signal?: Signal }): Promise<void> {
    return awaited(() => this.#reached('read', given));
  }

  #reached(state: string, given: unknown): Promise<void> {
    const { signal } = options<{ signal: Signal }>(given, ['signal'], 'the options of a receipt');
    // Who is waited for may never come: `unref()` of the client lets the process end.
    return abortable(signal, (cancel) => new Promise<void>((resolve, reject) => {
      this.#native.reached(state, cancel, (failed) => {
        this.#alive.release();
        if (failed === null) resolve();
        else reject(failure(new Error(failed)));
      });
      this.#alive.hold();
    }));
  }
}
