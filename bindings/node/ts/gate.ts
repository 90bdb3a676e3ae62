/**
 * How many sends a client has under way. What is beyond waits in a queue of its user; users take turns, so that one who is flooded does not
 * keep the others waiting; and what waits is bounded.
 */

import { options } from './check.js';
import { misconfigured, StvorError } from './errors.js';
import type { ExecutorOptions } from './types.js';

/** The options, all there. */
export type GateOptions = Required<ExecutorOptions>;

/** The largest number that an option can be. */
const MOST = 1_000_000;

function count(value: unknown, usual: number, name: string): number {
  if (value === undefined) return usual;
  if (typeof value !== 'number' || !Number.isInteger(value) || value < 1 || value > MOST) {
    throw misconfigured(`executor.${name} is a whole number from 1 to ${MOST}`);
  }
  return value;
}

/** Reads the options. */
export function gateOptions(given: unknown): GateOptions {
  const read = options<ExecutorOptions>(given, ['maxPending', 'maxQueued', 'maxQueuedPerPeer', 'onPressure'], 'executor');
  const { onPressure = 'reject' } = read;
  if (onPressure !== 'reject' && onPressure !== 'wait') throw misconfigured('executor.onPressure is "reject" or "wait"');
  const maxQueued = count(read.maxQueued, 16_384, 'maxQueued');
  return {
    maxPending: count(read.maxPending, 1_024, 'maxPending'),
    maxQueued,
    maxQueuedPerPeer: count(read.maxQueuedPerPeer, Math.max(1, Math.floor(maxQueued / 4)), 'maxQueuedPerPeer'),
    onPressure,
  };
}

/** What a gate tells. */
export interface GateEvents {
  pressure: { pending: number; queued: number; waiting: number };
  sendRejected: { peer: string; queued: number; scope: 'peer' | 'all' };
}

interface Caller {
  readonly peer: string;
  /** Messages that it sends. */
  readonly weight: number;
  enter(): void;
  refuse(error: StvorError): void;
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
  /** Who waits for room to wait. */
  readonly #outside: Lines = new Map();
  #pending = 0;
  #queued = 0;
  #waiting = 0;
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

  /** Waits until a send may start; `cancelled` is given what takes it out again. `BACKPRESSURE` when there is no room to wait. */
  enter(peer: string, weight: number, cancelled: (leave: (error: unknown) => void) => void): Promise<void> {
    return new Promise((resolve, reject) => {
      const caller: Caller = { peer, weight, enter: resolve, refuse: reject };
      const full = this.#fullFor(peer);
      if (full === undefined) {
        this.#queue(caller);
      } else if (this.#limits.onPressure === 'wait' && this.#waiting < this.#limits.maxQueued) {
        add(this.#outside, caller);
        this.#waiting += 1;
        if (this.#waiting === 1) this.#tellPressure();
      } else {
        this.#tell('sendRejected', { peer, queued: this.#queued, scope: full });
        const where = full === 'peer' ? 'for this user' : 'in this client';
        reject(new StvorError(`too many sends wait ${where}: the message was not queued`, { code: 'BACKPRESSURE', retryable: true }));
        return;
      }
      const leave = (error: unknown): void => {
        if (remove(this.#queues, caller) || remove(this.#parked, caller)) {
          this.#queued -= 1;
          this.#admit();
        } else if (remove(this.#outside, caller)) {
          this.#waiting -= 1;
        } else {
          return;
        }
        reject(error);
      };
      try {
        cancelled(leave);
      } catch (thrown) {
        leave(thrown);
      }
    });
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
    const any = this.#queued + this.#waiting > 0;
    for (const lines of [this.#queues, this.#parked, this.#outside]) {
      const all = [...lines.values()].flat();
      lines.clear();
      for (const { peer, weight, enter } of all) {
        this.#start(peer, weight);
        enter();
      }
    }
    this.#queued = 0;
    this.#waiting = 0;
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

  #fullFor(peer: string): 'peer' | 'all' | undefined {
    if (this.#queued >= this.#limits.maxQueued) return 'all';
    const line = this.#queues.get(peer) ?? this.#parked.get(peer);
    return (line?.length ?? 0) >= this.#limits.maxQueuedPerPeer ? 'peer' : undefined;
  }

  #queue(caller: Caller): void {
    add(this.#queues.has(caller.peer) || (!this.#parked.has(caller.peer) && this.#mayRun(caller.peer)) ? this.#queues : this.#parked, caller);
    this.#queued += 1;
    const pressed = this.#queued * 2 > this.#limits.maxQueued;
    if (pressed && !this.#pressed) this.#tellPressure();
    this.#pressed = pressed;
  }

  #tellPressure(): void {
    this.#tell('pressure', { pending: this.#pending, queued: this.#queued, waiting: this.#waiting });
  }

  #next(): void {
    while (this.#pending < this.#limits.maxPending) {
      const turn = this.#queues.entries().next().value as [string, Caller[]] | undefined;
      if (turn === undefined) return;
      const [peer, line] = turn;
      const caller = line.shift() as Caller;
      this.#queued -= 1;
      this.#pressed &&= this.#queued * 2 > this.#limits.maxQueued;
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
      while (line.length > 0 && this.#fullFor(peer) === undefined) {
        this.#waiting -= 1;
        this.#queue(line.shift() as Caller);
      }
      if (line.length === 0) this.#outside.delete(peer);
      if (this.#queued >= this.#limits.maxQueued) return;
    }
  }
}
