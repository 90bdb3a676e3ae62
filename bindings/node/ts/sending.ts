/** What is sent, and what became of it. */

import { Alive } from './alive.js';
import { abortable, aborted, contentOf, elements, options, owned, signalOf, userName, wait } from './check.js';
import { awaited, failure, guarded, invalid, StvorError } from './errors.js';
import type { Gate } from './gate.js';
import { native, type NativeCancel, type NativeClient, type NativeReceipt, type NativeSend, type NativeSends } from './native.js';
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

/** Waits for all of them, also when one fails, and fails with the first that did. */
export async function settledAll<T>(all: readonly Promise<T>[]): Promise<T[]> {
  await Promise.allSettled(all);
  return Promise.all(all);
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

type Waiter = { resolve(receipt: NativeReceipt): void; reject(error: unknown): void };

/** Messages of a batch that go to the native half at once. */
const CHUNK = 256;

/** What a client sends. What is under way keeps the process alive, whatever `unref()` says of the rest. */
export class Sends {
  readonly #client: NativeClient;
  readonly #native: NativeSends;
  readonly #gate: Gate;
  /** For receipts that are waited for. */
  readonly #patient: Alive;
  readonly #waiting = new Map<number, Waiter>();
  /** What closing waits for: sends that had to wait, and batches. The others were handed over when they were called. */
  readonly #late = new Set<Promise<unknown>>();
  readonly #alive = new Alive();
  #number = 0;

  constructor(client: NativeClient, gate: Gate, patient: Alive) {
    this.#client = client;
    this.#gate = gate;
    this.#patient = patient;
    // Of this object it knows nothing: the native half holds it, and would hold all of it for ever.
    const [waiting, alive] = [this.#waiting, this.#alive];
    alive.want(false);
    alive.hold();
    this.#native = new (native().NativeSends)((outcomes) => {
      for (const { number, receipt, failure: failed } of outcomes) {
        const waiter = waiting.get(number);
        waiting.delete(number);
        if (receipt) waiter?.resolve(receipt);
        else waiter?.reject(failure(new Error(failed)));
      }
      if (waiting.size === 0) alive.want(false);
    });
  }

  /** Sends one message, and resolves with its receipt. */
  send(request: NativeSend, signal: Signal | undefined): Promise<Receipt> {
    // The usual case, without what the others need.
    if (signal === undefined && this.#gate.tryEnter(request.to)) {
      return this.#handOver(request)
        .finally(() => this.#gate.leave(request.to))
        .then((receipt) => new SentReceipt(receipt, request.to, this.#patient));
    }
    return this.#sendInTurn(request, signal);
  }

  async #sendInTurn(request: NativeSend, signal: Signal | undefined): Promise<Receipt> {
    const keep = () => { request.content = owned(request.content); };
    const act = () => (signal === undefined ? this.#handOver(request) : abortable(signal, (cancel) => this.#handOver(request, cancel)));
    const receipt = await this.#admitted({ peer: request.to, weight: 1, signal, keep }, act);
    return new SentReceipt(receipt, request.to, this.#patient);
  }

  /** Sends several, and resolves with what became of each. */
  sendMany(requests: readonly NativeSend[], signal: Signal | undefined): Promise<(Receipt | StvorError)[]> {
    const all = this.#sendAll(requests, signal);
    this.#late.add(all);
    return all.finally(() => this.#late.delete(all));
  }

  /** Lets everything in that was called for; resolves when all of it was handed over. */
  async close(): Promise<void> {
    await this.#gate.open();
    await Promise.allSettled([...this.#late]);
  }

  #handOver(request: NativeSend, cancel?: NativeCancel): Promise<NativeReceipt> {
    return new Promise((resolve, reject) => {
      this.#number = (this.#number + 1) >>> 0;
      this.#native.send(this.#client, this.#number, request, cancel);
      this.#waiting.set(this.#number, { resolve, reject });
      if (this.#waiting.size === 1) this.#alive.want(true);
    });
  }

  async #sendAll(requests: readonly NativeSend[], signal: Signal | undefined): Promise<(Receipt | StvorError)[]> {
    const outcomes: (Receipt | StvorError)[] = [];
    const [size, all] = [Math.min(CHUNK, this.#gate.share), [] as Promise<void>[]];
    let failed = false;
    for (let at = 0; at < requests.length && !failed; at += size) {
      const places = requests.slice(at, at + size).map((request, place) => ({ request, place: at + place }));
      const users = new Set(places.map(({ request }) => request.to));
      const whole = users.size === 1 ? places[0].request.to : '';
      // Else each user's behind what waits for that user already.
      const parts = users.size === 1 || this.#gate.isFree('', users)
        ? [{ peer: whole, part: places }]
        : [...users].map((peer) => ({ peer, part: places.filter(({ request }) => request.to === peer) }));
      // What comes next waits until these are on their way, not for their answers: of somebody who is not there it may take long.
      await Promise.all(parts.map(({ peer, part }) => new Promise<void>((entered) => {
        const sent = this.#sendPart(part.map(({ request }) => request), { peer, signal, entered })
          .then((each) => each.forEach((outcome, place) => { outcomes[part[place].place] = outcome; }));
        sent.catch(() => { failed = true; }).then(entered);
        all.push(sent);
      })));
    }
    await settledAll(all);
    return outcomes;
  }

  /** Sends what one call of the native half takes, in the line of `peer`; `entered` is called when it is on its way. */
  async #sendPart(
    chunk: NativeSend[],
    { peer, signal, entered }: { peer: string; signal: Signal | undefined; entered: () => void },
  ): Promise<(Receipt | StvorError)[]> {
    try {
      const act = () => {
        const sent = abortable(signal, (cancel) => this.#client.sendMany(chunk, cancel));
        entered();
        return sent;
      };
      const sent = await this.#admitted({ peer, weight: chunk.length, signal }, act);
      return sent.map(({ receipt, failure: failed }, index) =>
        receipt ? new SentReceipt(receipt, chunk[index].to, this.#patient) : failure(new Error(failed)));
    } catch (thrown) {
      const error = failure(thrown);
      if (error.code !== 'BACKPRESSURE') throw error;
      return chunk.map(() => error);
    }
  }

  /** Runs a send when there is room for it; `keep` is called if that is not now. */
  async #admitted<T>(
    { peer, weight, signal, keep }: { peer: string; weight: number; signal: Signal | undefined; keep?: () => void },
    act: () => Promise<T>,
  ): Promise<T> {
    const late = !this.#gate.tryEnter(peer, weight);
    if (late) {
      keep?.();
      if (signal?.aborted) throw aborted(signal);
      let stop: (() => void) | undefined;
      try {
        await this.#gate.enter(peer, weight, (leave) => {
          if (!signal) return;
          const listener = () => leave(aborted(signal));
          signal.addEventListener('abort', listener, { once: true });
          stop = () => signal.removeEventListener('abort', listener);
        });
      } finally {
        stop?.();
      }
    }
    const sent = act();
    // Those that had to wait are waited for when the client closes: the others were handed over when they were called.
    if (late) this.#late.add(sent);
    try {
      return await sent;
    } finally {
      this.#late.delete(sent);
      this.#gate.leave(peer, weight);
    }
  }
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

  accepted(given?: { signal?: Signal | undefined }): Promise<void> {
    return awaited(() => this.#reached('accepted', given));
  }

  delivered(given?: { signal?: Signal | undefined }): Promise<void> {
    return awaited(() => this.#reached('delivered', given));
  }

  read(given?: { signal?: Signal | undefined }): Promise<void> {
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
