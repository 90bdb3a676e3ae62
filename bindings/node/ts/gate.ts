/**
 * How many sends a client has under way. What is beyond waits in a queue of its user; users take turns, so that one who is flooded does not
 * keep the others waiting; and what waits is bounded.
 */

import { options } from './check.js';
import { misconfigured, StvorError } from './errors.js';
import type { ExecutorOptions } from './types.js';

/** The options, all there. */
export type GateOptions = Required<ExecutorOptions>;

/** The largest number that an option can be, and the largest number of bytes. */
const MOST = 1_000_000;
const MOST_BYTES = 4_294_967_296;

/** What the engine has, too. */
const MAX_QUEUED = 65_536;
const MAX_QUEUED_BYTES = 67_108_864;
const MAX_UNACCEPTED = 10_000;

function count(value: unknown, usual: number, name: string, most = MOST): number {
  if (value === undefined) return usual;
  if (typeof value !== 'number' || !Number.isInteger(value) || value < 1 || value > most) {
    throw misconfigured(`executor.${name} is a whole number from 1 to ${most}`);
  }
  return value;
}

/** Reads the options. */
export function gateOptions(given: unknown): GateOptions {
  const read = options<ExecutorOptions>(given, ['maxPending', 'maxQueued', 'maxQueuedPerPeer', 'maxQueuedBytes', 'onPressure', 'maxUnaccepted'], 'executor');
  const { onPressure = 'reject' } = read;
  if (onPressure !== 'reject' && onPressure !== 'wait') throw misconfigured('executor.onPressure is "reject" or "wait"');
  const maxQueued = count(read.maxQueued, MAX_QUEUED, 'maxQueued');
  return {
    maxPending: count(read.maxPending, 1_024, 'maxPending'),
    maxQueued,
    maxQueuedPerPeer: count(read.maxQueuedPerPeer, Math.max(1, Math.floor(maxQueued / 4)), 'maxQueuedPerPeer'),
    maxQueuedBytes: count(read.maxQueuedBytes, MAX_QUEUED_BYTES, 'maxQueuedBytes', MOST_BYTES),
    onPressure,
    maxUnaccepted: count(read.maxUnaccepted, MAX_UNACCEPTED, 'maxUnaccepted'),
  };
}

/** What a gate tells. */
export interface GateEvents {
  pressure: { pending: number; queued: number; waiting: number };
  sendRejected: { peer: string; queued: number; scope: Full; messages: number };
}

/** The place of some messages to one user that wait. */
export interface Place {
  /** How many they are. */
  readonly weight: number;
  /** Resolves when they may go; they are under way then, until `leave` of the gate. */
  readonly entered: Promise<void>;
  /** Takes them out again, if they wait. */
  leave(error: unknown): void;
}

/** What became of messages that could not go at once. */
export interface Queued {
  /** Where the first of them wait, in their order. */
  readonly places: readonly Place[];
  /** What is full, if there is no room for the others. */
  readonly full?: Full;
}

/** There is no room for more of one user, or in all. */
export type Full = 'peer' | 'all';

/** What is told of a message for which there is no room. */
export function refusal(full: Full): StvorError {
  const where = full === 'peer' ? 'for this user' : 'in this client';
  return new StvorError(`too many sends wait ${where}: the message was not queued`, { code: 'BACKPRESSURE', retryable: true });
}

interface Caller {
  readonly peer: string;
  /** Messages that it sends, and the bytes of their contents. */
  readonly weight: number;
  readonly bytes: number;
  enter(): void;
  refuse(error: unknown): void;
}

/** Callers in the order of their calls, by their users. */
type Lines = Map<string, Caller[]>;

function add(lines: Lines, caller: Caller): void {
  const line = lines.get(caller.peer);
  if (line) line.push(caller);
  else lines.set(caller.peer, [caller]);
}

function remove(lines: Lines, caller: Caller): boolean {
  const line = lines.get(caller.peer);
  const at = line?.indexOf(caller) ?? -1;
  if (!line || at < 0) return false;
  line.splice(at, 1);
  if (line.length === 0) lines.delete(caller.peer);
  return true;
}

/** How many messages there are, and bytes of them: in all, and of each user. */
class Tally {
  messages = 0;
  bytes = 0;
  readonly #of = new Map<string, { messages: number; bytes: number }>();

  of(peer: string): Readonly<{ messages: number; bytes: number }> {
    return this.#of.get(peer) ?? { messages: 0, bytes: 0 };
  }

  add({ peer, weight, bytes }: Caller, sign: 1 | -1 = 1): void {
    this.messages += sign * weight;
    this.bytes += sign * bytes;
    const its = this.of(peer);
    const now = { messages: its.messages + sign * weight, bytes: its.bytes + sign * bytes };
    if (now.messages > 0) this.#of.set(peer, now);
    else this.#of.delete(peer);
  }

  clear(): void {
    this.messages = this.bytes = 0;
    this.#of.clear();
  }
}

function sum(sizes: readonly number[]): number {
  return sizes.reduce((all, size) => all + size, 0);
}

/** Lets sends through. */
export class Gate {
  readonly #limits: GateOptions;
  readonly #tell: <E extends keyof GateEvents>(name: E, event: GateEvents[E]) => void;
  /** What is under way, by user. */
  readonly #running = new Map<string, number>();
  /** How much one user has of it at most, a quarter: sends to somebody who is not there take long. */
  readonly share: number;
  /** Who waits for a turn; the first user is next. */
  readonly #queues: Lines = new Map();
  /** Who waits for sends to the same user. */
  readonly #parked: Lines = new Map();
  /** Who waits for room to wait, a message each. */
  readonly #outside: Lines = new Map();
  #pending = 0;
  /** What is in the queue and among the parked. */
  readonly #queued = new Tally();
  /** What is outside. */
  readonly #waiting = new Tally();
  #pressed = false;
  #open = false;

  constructor(limits: GateOptions, tell: <E extends keyof GateEvents>(name: E, event: GateEvents[E]) => void) {
    this.#limits = limits;
    this.#tell = tell;
    this.share = Math.max(1, Math.ceil(limits.maxPending / 4));
  }

  /** Whether a send may start at once: then it has. */
  tryEnter(peer: string, weight = 1): boolean {
    const free = this.isFree(peer);
    if (free) this.#start(peer, weight);
    return free;
  }

  /** Whether a send may start at once, and nothing to `users` waits that was called for before. */
  isFree(peer: string, users: Iterable<string> = []): boolean {
    if (this.#open) return true;
    if (this.#pending >= this.#limits.maxPending || this.#queues.size > 0 || !this.#mayRun(peer)) return false;
    return [peer, ...users].every((one) => !this.#parked.has(one) && !this.#outside.has(one));
  }

  /** Lets messages to a user, of so many bytes each, wait until they may start, as far as there is room; the others are refused with `BACKPRESSURE`. */
  queue(peer: string, sizes: readonly number[]): Queued {
    const places: Place[] = [];
    // Nobody overtakes who waits for room.
    const { fit, full } = this.#outside.has(peer) ? { fit: 0, full: 'peer' as const } : this.#room(peer, sizes);
    if (fit > 0) places.push(this.#place(peer, sizes.slice(0, fit), (caller) => this.#queue(caller)));
    let at = fit;
    while (at < sizes.length && this.#mayWait(peer, sizes[at])) {
      places.push(this.#place(peer, sizes.slice(at, at + 1), (caller) => this.#wait(caller)));
      at += 1;
    }
    if (full === undefined || at === sizes.length) return { places };
    this.#tell('sendRejected', { peer, queued: this.#queued.messages, scope: full, messages: sizes.length - at });
    return { places, full };
  }

  /** A send is done. */
  leave(peer: string, weight = 1): void {
    this.#pending -= weight;
    const left = (this.#running.get(peer) ?? 0) - weight;
    if (left > 0) this.#running.set(peer, left);
    else this.#running.delete(peer);
    const line = this.#parked.get(peer);
    if (line && this.#mayRun(peer)) {
      this.#parked.delete(peer);
      this.#queues.set(peer, line);
    }
    this.#next();
  }

  /** The client closes: everything goes in at once, as far as it was called for. Resolves when it has. */
  open(): Promise<void> {
    this.#open = true;
    const any = this.#queued.messages + this.#waiting.messages > 0;
    for (const lines of [this.#queues, this.#parked, this.#outside]) {
      const all = [...lines.values()].flat();
      lines.clear();
      for (const { peer, weight, enter } of all) {
        this.#start(peer, weight);
        enter();
      }
    }
    this.#queued.clear();
    this.#waiting.clear();
    // Those who were let in go on before this does.
    return any ? new Promise((resolve) => setImmediate(resolve)) : Promise.resolve();
  }

  #start(peer: string, weight: number): void {
    this.#pending += weight;
    this.#running.set(peer, (this.#running.get(peer) ?? 0) + weight);
  }

  #mayRun(peer: string): boolean {
    return (this.#running.get(peer) ?? 0) < this.share;
  }

  /** How many of messages there is room for in the queue, and what is full if that is not all of them. */
  #room(peer: string, sizes: readonly number[]): { fit: number; full?: Full } {
    const { maxQueued, maxQueuedPerPeer, maxQueuedBytes } = this.#limits;
    const its = this.#queued.of(peer);
    let bytes = 0;
    for (const [fit, size] of sizes.entries()) {
      bytes += size;
      if (this.#queued.messages + fit >= maxQueued || this.#queued.bytes + bytes > maxQueuedBytes) return { fit, full: 'all' };
      const [messages, held] = [its.messages + fit, its.bytes + bytes];
      if (messages >= maxQueuedPerPeer || !this.#isShare(messages, held)) return { fit, full: 'peer' };
    }
    return { fit: sizes.length };
  }

  /** Whether one user's messages may come to so many bytes, behind `others` of them: a quarter, but one message has room whatever its size. */
  #isShare(others: number, bytes: number): boolean {
    return others === 0 || bytes * 4 <= this.#limits.maxQueuedBytes;
  }

  /** Whether a message may wait for room: not one that there is never room for. */
  #mayWait(peer: string, size: number): boolean {
    const { onPressure, maxQueued, maxQueuedBytes } = this.#limits;
    const its = this.#waiting.of(peer);
    return onPressure === 'wait' && this.#waiting.messages < maxQueued && this.#waiting.bytes + size <= maxQueuedBytes
      && this.#isShare(its.messages, its.bytes + size);
  }

  #place(peer: string, sizes: readonly number[], put: (caller: Caller) => void): Place {
    let [enter, refuse]: [() => void, (error: unknown) => void] = [() => {}, () => {}];
    const entered = new Promise<void>((resolve, reject) => { [enter, refuse] = [resolve, reject]; });
    const caller: Caller = { peer, weight: sizes.length, bytes: sum(sizes), enter, refuse };
    put(caller);
    return { weight: caller.weight, entered, leave: (error) => this.#leave(caller, error) };
  }

  #leave(caller: Caller, error: unknown): void {
    if (remove(this.#queues, caller) || remove(this.#parked, caller)) {
      this.#queued.add(caller, -1);
      this.#admit();
      // Those admitted may find free places, and nobody else may come to let them in. Not at once: what runs after `abort()` would be overtaken.
      queueMicrotask(() => this.#next());
    } else if (remove(this.#outside, caller)) {
      this.#waiting.add(caller, -1);
    } else {
      return;
    }
    caller.refuse(error);
  }

  #queue(caller: Caller): void {
    const { peer } = caller;
    add(this.#queues.has(peer) || (!this.#parked.has(peer) && this.#mayRun(peer)) ? this.#queues : this.#parked, caller);
    this.#queued.add(caller);
    const pressed = this.#isPressed();
    if (pressed && !this.#pressed) this.#tellPressure();
    this.#pressed = pressed;
  }

  #wait(caller: Caller): void {
    add(this.#outside, caller);
    this.#waiting.add(caller);
    if (this.#waiting.messages === 1) this.#tellPressure();
  }

  #isPressed(): boolean {
    return this.#queued.messages * 2 > this.#limits.maxQueued || this.#queued.bytes * 2 > this.#limits.maxQueuedBytes;
  }

  #tellPressure(): void {
    this.#tell('pressure', { pending: this.#pending, queued: this.#queued.messages, waiting: this.#waiting.messages });
  }

  #next(): void {
    while (this.#pending < this.#limits.maxPending) {
      const turn = this.#queues.entries().next().value as [string, Caller[]] | undefined;
      if (turn === undefined) return;
      const [peer, line] = turn;
      const caller = line.shift() as Caller;
      this.#queued.add(caller, -1);
      this.#pressed &&= this.#isPressed();
      this.#start(peer, caller.weight);
      // To the end of the line of users, if more of this one waits.
      this.#queues.delete(peer);
      if (line.length > 0) (this.#mayRun(peer) ? this.#queues : this.#parked).set(peer, line);
      caller.enter();
      this.#admit();
    }
  }

  /** Lets callers wait in the queue, oldest first of each user. */
  #admit(): void {
    for (const [peer, line] of this.#outside) {
      for (let [caller] = line; caller; [caller] = line) {
        const { full } = this.#room(peer, [caller.bytes]);
        if (full === 'all') return;
        if (full === 'peer') break;
        line.shift();
        this.#waiting.add(caller, -1);
        this.#queue(caller);
      }
      if (line.length === 0) this.#outside.delete(peer);
    }
  }
}
