/** What is sent, and what became of it. */

import { Alive } from './alive.js';
import { abortable, aborted, contentOf, elements, options, owned, patient, signalOf, userName, wait } from './check.js';
import { awaited, failure, guarded, invalid, StvorError } from './errors.js';
import { type Full, type Gate, type Place, refusal } from './gate.js';
import { native, type NativeCancel, type NativeClient, type NativeReceipt, type NativeSend, type NativeSends } from './native.js';
import type { DeliveryStatus, Outgoing, Receipt, Signal } from './types.js';

/** Messages of one `sendMany`, and what their contents may come to: bytes, and characters of text. */
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
    bytes += sizeOf(read);
    if (bytes > MOST_BYTES) {
      throw new StvorError(`the messages come to more than ${MOST_BYTES} bytes: send them in several calls`, { code: 'MESSAGE_TOO_LARGE' });
    }
    return { to: userName(to, 'the recipient'), content: owned(read) };
  });
}

/** What a content takes while it waits: characters of text (UTF-16 units, of which one may be up to three bytes on its way), or bytes. */
function sizeOf({ text, bytes }: NativeSend['content']): number {
  return text?.length ?? bytes?.byteLength ?? 0;
}

type Waiter = { resolve(receipt: NativeReceipt): void; reject(error: unknown): void };

/** Messages of a batch that go to the native half at once. */
const CHUNK = 256;

/** What one call of the native half takes, and where each message stands in its batch. */
interface Part {
  /** In whose line it stands. */
  readonly peer: string;
  readonly messages: readonly { request: NativeSend; at: number }[];
}

/** What is known of a batch that is under way. */
class Batch {
  readonly outcomes: (Receipt | StvorError)[];
  readonly parts: Promise<void>[] = [];
  readonly #waiting = new Set<Place>();
  /** One error for all that it is told of: each would have a stack of its own. */
  readonly #refusals = new Map<Full, StvorError>();
  #over = false;

  constructor(messages: number) {
    this.outcomes = new Array(messages);
  }

  refuse(messages: Part['messages'], full: Full): void {
    const error = this.#refusals.get(full) ?? refusal(full);
    this.#refusals.set(full, error);
    for (const { at } of messages) this.outcomes[at] = error;
  }

  waits(place: Place): void {
    this.#waiting.add(place);
    const gone = () => this.#waiting.delete(place);
    place.entered.then(gone, gone);
  }

  /** What of it waits is not sent. */
  end(error: unknown): void {
    if (this.#over) return;
    this.#over = true;
    for (const place of this.#waiting) place.leave(error);
  }

  /** Waits until all of it is answered for; the signal ends that, and the waiting of its messages. */
  async settled(signal: Signal | undefined): Promise<(Receipt | StvorError)[]> {
    const listener = () => this.end(aborted(signal as Signal));
    try {
      if (this.#waiting.size > 0) signal?.addEventListener('abort', listener, { once: true });
      if (signal?.aborted) listener();
    } catch (thrown) {
      this.end(thrown);
    }
    try {
      await settledAll(this.parts);
    } finally {
      stopListening(signal, listener);
    }
    return this.outcomes;
  }
}

function stopListening(signal: Signal | undefined, listener: () => void): void {
  try {
    signal?.removeEventListener('abort', listener);
  } catch {
    // A signal of the application's own: what was done is done all the same.
  }
}

const ofClients = new WeakMap<NativeClient, Sends>();

/** What a client sends: its groups take turns with the rest of it. */
export function sendsOf(client: NativeClient): Sends {
  return ofClients.get(client) as Sends;
}

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
    ofClients.set(client, this);
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
    const act = () => (signal === undefined ? this.#handOver(request) : abortable(signal, (cancel) => this.#handOver(request, cancel)));
    return this.inTurn(request, signal, act).then((receipt) => new SentReceipt(receipt, request.to, this.#patient));
  }

  /** Runs a send to a user, or to a group, when its turn comes. */
  async inTurn<T>(request: Pick<NativeSend, 'to' | 'content'>, signal: Signal | undefined, act: () => Promise<T>): Promise<T> {
    const { to } = request;
    const late = !this.#gate.tryEnter(to);
    if (late) {
      request.content = owned(request.content);
      if (signal?.aborted) throw aborted(signal);
      const { places: [place], full = 'all' } = this.#gate.queue(to, [sizeOf(request.content)]);
      if (place === undefined) throw refusal(full);
      const listener = () => place.leave(aborted(signal as Signal));
      try {
        signal?.addEventListener('abort', listener, { once: true });
      } catch (thrown) {
        place.leave(thrown);
      }
      try {
        // The only wait before it goes, as in a part of a batch: of several that are let in at once none overtakes another.
        await place.entered;
      } finally {
        stopListening(signal, listener);
      }
    }
    const sent = act();
    // Waited for when the client closes: it may not be handed over yet.
    this.#late.add(sent);
    try {
      return await sent;
    } finally {
      this.#late.delete(sent);
      this.#gate.leave(to);
    }
  }

  /**
   * Sends several, and resolves with what became of each. All of them are taken in now, by their number and size: those for which there is no room are
   * refused now, and the others stand before what is called for later.
   */
  sendMany(requests: readonly NativeSend[], signal: Signal | undefined): Promise<(Receipt | StvorError)[]> {
    const batch = new Batch(requests.length);
    const size = Math.min(CHUNK, this.#gate.share);
    for (let at = 0; at < requests.length; at += size) {
      for (const part of this.#partsOf(requests.slice(at, at + size).map((request, place) => ({ request, at: at + place })))) {
        this.#take(batch, part, signal);
      }
    }
    const all = batch.settled(signal);
    this.#late.add(all);
    return all.finally(() => this.#late.delete(all));
  }

  /** Lets everything in that was called for; resolves when all of it is answered for, at the latest after so many milliseconds: it was handed over by then. */
  async close(patience: number): Promise<void> {
    await this.#gate.open();
    await patient(Promise.allSettled([...this.#late]), patience);
  }

  #handOver(request: NativeSend, cancel?: NativeCancel): Promise<NativeReceipt> {
    return new Promise((resolve, reject) => {
      this.#number = (this.#number + 1) >>> 0;
      this.#native.send(this.#client, this.#number, request, cancel);
      this.#waiting.set(this.#number, { resolve, reject });
      if (this.#waiting.size === 1) this.#alive.want(true);
    });
  }

  /** To one user, or to all of them where none has to wait; else each user's behind what waits for that user already. */
  #partsOf(messages: Part['messages']): Part[] {
    const users = new Set(messages.map(({ request }) => request.to));
    if (users.size === 1) return [{ peer: messages[0].request.to, messages }];
    if (this.#gate.isFree('', users)) return [{ peer: '', messages }];
    return [...users].map((peer) => ({ peer, messages: messages.filter(({ request }) => request.to === peer) }));
  }

  /** Sends a part of a batch now, or as far as there is room when its turn comes. */
  #take(batch: Batch, part: Part, signal: Signal | undefined): void {
    const { peer, messages } = part;
    if (this.#gate.tryEnter(peer, messages.length)) return this.#begin(batch, part, { signal });
    const { places, full } = this.#gate.queue(peer, messages.map(({ request }) => sizeOf(request.content)));
    let from = 0;
    for (const place of places) {
      batch.waits(place);
      this.#begin(batch, { peer, messages: messages.slice(from, from + place.weight) }, { signal, place });
      from += place.weight;
    }
    if (full) batch.refuse(messages.slice(from), full);
  }

  #begin(batch: Batch, part: Part, how: { signal: Signal | undefined; place?: Place }): void {
    const sent = this.#sendPart(batch, part, how);
    batch.parts.push(sent);
    // What is wrong with one part whole is wrong with the call.
    sent.catch((thrown: unknown) => batch.end(thrown));
  }

  async #sendPart(batch: Batch, { peer, messages }: Part, { signal, place }: { signal: Signal | undefined; place?: Place }): Promise<void> {
    if (place) await place.entered;
    try {
      const sent = await abortable(signal, (cancel) => this.#client.sendMany(messages.map(({ request }) => request), cancel));
      sent.forEach(({ receipt, failure: failed }, index) => {
        const { request, at } = messages[index];
        batch.outcomes[at] = receipt ? new SentReceipt(receipt, request.to, this.#patient) : failure(new Error(failed));
      });
    } catch (thrown) {
      throw failure(thrown);
    } finally {
      this.#gate.leave(peer, messages.length);
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
