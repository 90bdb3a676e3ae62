/**
 * The order of work. All work on one address of one storage runs one job after the other (a *lane*); lanes take turns, so that a
 * flooded one does not keep the others waiting; what waits is bounded.
 */

import { AsyncResource } from 'node:async_hooks';
import { Calls, storageFailed, Turn } from './calls.js';
import { BackpressureError, invalid, isUint8Array } from './errors.js';
import { givenLaneOf, hold, type Job, LANES, type Lane, laneOf, release, stateOf } from './lanes.js';

/** How much may be under way, and what happens beyond. */
export interface ExecutorOptions {
  /** Jobs that run at the same time, over all lanes. Default 256. */
  maxPending?: number;
  /** Jobs that wait, over all lanes. Default 16,384. */
  maxQueued?: number;
  /** Jobs of one lane that wait. Default a quarter of `maxQueued`. */
  maxQueuedPerPeer?: number;
  /**
   * Bytes that jobs that wait are to encrypt or decrypt, over all lanes; a quarter of them for one lane. A job that has more counts as that quarter.
   * Default 64 MiB.
   */
  maxQueuedBytes?: number;
  /** Beyond that: `reject` with BACKPRESSURE (the default), or `wait` for room, as many callers and bytes again as may be queued. */
  onPressure?: 'reject' | 'wait';
  /** Milliseconds for one storage call. Default 30,000. A call that takes longer is given up and its lane goes on. */
  storageTimeout?: number;
  /** Milliseconds of the first pause of a lane after a storage call that took too long or a defect; it doubles up to 60 times that. Default 50. */
  backoff?: number;
}

/** What an executor tells. Never keys or contents. */
export interface ExecutorEvents {
  /** A job was queued or waits for room while the queue is more than half full. */
  pressure: { pending: number; queued: number; waiting: number };
  /** A job was refused. */
  rejected: { address: string; queued: number; scope: 'peer' | 'all' };
  /** A storage call took too long, or the native half met a defect. The lane pauses. */
  crash: { address: string; code: string; pause: number };
  /** A lane goes on from what its storage holds. */
  revived: { address: string };
  /**
   * A peer forced something weaker than our own profiles have: `no-post-quantum`, `short-mac`, `no-one-time-prekey`; in groups
   * `no-post-quantum`, `no-associated-data`. Told when a session starts, and once of each address, or sender of a group, whose
   * stored record is used: it may have been made elsewhere.
   */
  compatibility: { address: string; what: readonly string[] };
  /** The storage did not trust an identity. */
  untrusted: { address: string };
}

/**
 * What the package asks of an executor and of its turns is a contract between versions, too, for an executor may be of another copy: who changes it
 * changes the number. One over lanes of other shapes never goes with this copy.
 */
const EXECUTORS = `${LANES}/executor.3`;
const CONTRACT: unique symbol = Symbol.for(EXECUTORS);

/** The largest that an option can be: as long as a timer can wait. */
const MOST = 2_147_483_647;

/** How many times the first pause the longest one is. */
const LONGEST_PAUSE = 60;

const EVENTS: readonly string[] = ['pressure', 'rejected', 'crash', 'revived', 'compatibility', 'untrusted'];

const NOTHING = (): void => {};

/** A job, which tells the executor what came of it. */
type Work = (turn: Turn) => unknown;

type Listener<K extends keyof ExecutorEvents> = (event: ExecutorEvents[K]) => void;

/** Addresses of which it is remembered that something was told. */
const MAX_TOLD = 16_384;

/** Runs what is nobody's: not in the context of the call that happened to be there. */
const nobodys = new AsyncResource('stvor.libsignal');

/** A job that waits, and the bytes that it keeps. */
interface Queued extends Job {
  bytes: number;
}

/** What an executor has queued at a lane, which others may use, too. */
interface Queue {
  jobs: number;
  bytes: number;
  /** Those that wait for room. */
  readonly waiting: Queued[];
}

/** A call that has to wait. */
interface Caller {
  begin: () => void;
  refuse: (error: Error) => void;
  /** Not its own. */
  context?: AsyncResource;
  /** It is within the bounds already. */
  admitted?: boolean;
  /** What it keeps while it waits: bytes, or a list of bytes. */
  held?: unknown;
}

/** Runs jobs: one after the other for each address, whichever executor they came to; fairly among addresses, and bounded. */
export class Executor extends Calls {
  readonly #maxPending: number;
  readonly #maxQueued: number;
  readonly #maxPerPeer: number;
  readonly #maxBytes: number;
  readonly #maxBytesPerPeer: number;
  readonly #wait: boolean;
  readonly #backoff: number;
  readonly #queues = new Map<Lane, Queue>();
  /** Lanes of which the next job is ours and may start, in turn. */
  readonly #ready: Lane[] = [];
  /** Lanes with callers that wait and that have room of their own, in turn. */
  readonly #open = new Set<Lane>();
  /** Addresses of which it was told what is weaker with them. */
  readonly #compatible = new Set<string>();
  readonly #listeners = new Map<string, Set<(event: never) => void>>();
  #pending = 0;
  #queued = 0;
  #bytes = 0;
  #waiting = 0;
  #waitingBytes = 0;
  #pumping = false;

  constructor(options: ExecutorOptions = {}) {
    const known = ['maxPending', 'maxQueued', 'maxQueuedPerPeer', 'maxQueuedBytes', 'onPressure', 'storageTimeout', 'backoff'];
    for (const key of Object.keys(options)) {
      if (!known.includes(key)) throw invalid(`an executor has no "${key}"; there are ${known.join(', ')}`);
    }
    super(count(options.storageTimeout, 30_000, 'storageTimeout'));
    this.#maxPending = count(options.maxPending, 256, 'maxPending');
    this.#maxQueued = count(options.maxQueued, 16_384, 'maxQueued');
    this.#maxPerPeer = count(options.maxQueuedPerPeer, Math.max(1, Math.floor(this.#maxQueued / 4)), 'maxQueuedPerPeer');
    this.#maxBytes = count(options.maxQueuedBytes, 64 * 1_024 * 1_024, 'maxQueuedBytes');
    this.#maxBytesPerPeer = Math.max(1, Math.floor(this.#maxBytes / 4));
    this.#backoff = count(options.backoff, 50, 'backoff', Math.floor(MOST / LONGEST_PAUSE));
    const pressure = options.onPressure ?? 'reject';
    if (pressure !== 'reject' && pressure !== 'wait') throw invalid('onPressure is "reject" or "wait"');
    this.#wait = pressure === 'wait';
  }

  /** @internal Says to other copies of the package what it can do. */
  get [CONTRACT](): true {
    return true;
  }

  /** Jobs that run now. */
  get pending(): number {
    return this.#pending;
  }

  /** Jobs that wait for their turn. */
  get queued(): number {
    return this.#queued;
  }

  /** Listens; gives back what ends it. */
  on<K extends keyof ExecutorEvents>(name: K, listener: Listener<K>): () => void {
    if (!EVENTS.includes(name)) throw invalid(`an executor tells no "${String(name)}"; it tells ${EVENTS.join(', ')}`);
    if (typeof listener !== 'function') throw invalid('a listener is a function');
    const all = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, all.add(listener as (event: never) => void));
    return () => void all.delete(listener as (event: never) => void);
  }

  /** @internal */
  emit<K extends keyof ExecutorEvents>(name: K, event: () => ExecutorEvents[K]): void {
    const all = this.#listeners.get(name);
    if (all === undefined || all.size === 0) return;
    const told = event();
    for (const listener of all) {
      try {
        const answer: unknown = (listener as (event: ExecutorEvents[K]) => unknown)(told);
        if (typeof (answer as PromiseLike<unknown> | undefined)?.then === 'function') (answer as PromiseLike<unknown>).then(undefined, NOTHING);
      } catch {
        // What a listener throws is its own affair.
      }
    }
  }

  /** @internal What is weaker with an address, told once. Past the bound they are all told anew. */
  compatible(address: string, what: readonly string[]): void {
    if (!this.#listeners.has('compatibility') || this.#compatible.has(address)) return;
    if (this.#compatible.size >= MAX_TOLD) this.#compatible.clear();
    this.#compatible.add(address);
    this.emit('compatibility', () => ({ address, what }));
  }

  /**
   * @internal Runs `work` as the only job of an address. One that was `admitted` before, for its address as it was given, has a place. `held` is what is
   * kept while it waits.
   */
  run<T>(owner: object, address: string, work: (turn: Turn) => Promise<T>, admitted = false, held?: unknown): Promise<T> {
    return this.runTelling(owner, address, this.#telling(work), undefined, held, admitted);
  }

  /**
   * @internal The same for work that tells the executor itself what came of it, by `done` or `failed`, and never fails: for what is done with each
   * message, which two promises less are worth it. Who asked for it (`by`) and what is held are on the turn, so that work need be no function of its own.
   */
  runTelling<T>(owner: object, address: string, work: Work, by?: unknown, held?: unknown, admitted = false): Promise<T> {
    let lane: Lane;
    try {
      lane = laneOf(owner, address);
    } catch (thrown) {
      return Promise.reject(thrown);
    }
    return this.#runTelling(lane, owner, work, by, held, admitted);
  }

  /** Tells what came of work. */
  #telling<T>(work: (turn: Turn) => Promise<T>): (turn: Turn) => void {
    return (turn) => {
      work(turn).then(
        (value) => this.done(turn, value),
        (thrown: unknown) => this.failed(turn, thrown),
      );
    };
  }

  #runTelling<T>(lane: Lane, owner: object, work: Work, by: unknown, held: unknown, admitted: boolean): Promise<T> {
    const free = !lane.busy && !lane.paused && lane.jobs.length === 0 && lane.waiting === 0;
    if (free && this.#pending < this.#maxPending && (admitted || this.#ready.length === 0)) {
      // The common case: nothing is in the way.
      lane.busy = true;
      this.#pending += 1;
      return new Promise<T>((resolve, refuse) => this.#start(new Turn(lane, owner, by, held, resolve, refuse), work));
    }
    return new Promise<T>((resolve, refuse) => {
      this.#admit(lane, { begin: () => this.#start(new Turn(lane, owner, by, held, resolve, refuse), work), refuse, admitted, held });
    });
  }

  /**
   * @internal Runs what `go` does with the address under which a storage keeps the one that was `given`, as `ask` tells it when the turn of this call
   * comes: the calls for an address are asked about, and done, in their order, and what waits for the answer is bounded like all that waits.
   */
  runGiven<T>(
    owner: object,
    given: string,
    ask: (turn: Turn) => Promise<string>,
    go: (address: string) => Promise<T>,
    held?: unknown,
  ): Promise<T> {
    return new Promise<T>((resolve, refuse) => {
      // What became of it is told when the turn is over.
      const work = async (turn: Turn): Promise<() => void> => {
        const address = await ask(turn);
        // Its place is that of the work from now on; what fails there is told where it does.
        this.#pending -= 1;
        try {
          const done = go(address);
          this.#pump();
          const value = await done;
          return () => resolve(value);
        } catch (thrown) {
          return () => refuse(thrown);
        } finally {
          this.#pending += 1;
        }
      };
      const lane = givenLaneOf(owner, given);
      // Many may be given that are one: those of them that wait there were admitted here, so here all that wait count.
      if (this.#queued < this.#maxQueued && this.#bytes < this.#maxBytes) {
        void this.#runTelling<() => void>(lane, owner, this.#telling(work), undefined, held, false).then(tell, refuse);
      } else {
        this.#admit(lane, { begin: () => this.#start(new Turn(lane, owner, undefined, held, tell, refuse), this.#telling(work)), refuse, held });
      }
    });
  }

  /** @internal Runs `work` as the only job of two addresses of one storage, with the turns of both, and the one of them that asks. */
  runBoth<T>(
    owner: object,
    [from, to]: readonly [string, string],
    work: (turns: { from: Turn; to: Turn; asks: Turn }) => Promise<T>,
    admitted = false,
  ): Promise<T> {
    if (from === to) return this.run(owner, from, (turn) => work({ from: turn, to: turn, asks: turn }), admitted);
    // Always in the same order, so that no two wait for each other; and one that waits takes no place from those that work.
    const [first, second] = from < to ? [from, to] : [to, from];
    const both = async (outer: Turn): Promise<T> => {
      this.#pending -= 1;
      this.#pump();
      try {
        return await this.run(owner, second, (asks) => work(first === from ? { from: outer, to: asks, asks } : { from: asks, to: outer, asks }), admitted);
      } finally {
        this.#pending += 1;
      }
    };
    return this.run(owner, first, both, admitted);
  }

  /** Runs what nobody asked for: in nobody's context. */
  protected admitOwn(lane: Lane, owner: object, work: (turn: Turn) => Promise<void>): void {
    hold(lane);
    const begin = () => this.#start(new Turn(lane, owner, undefined, undefined, NOTHING, NOTHING), this.#telling(work));
    this.#admit(lane, { begin, refuse: NOTHING, context: nobodys });
  }

  #admit(lane: Lane, { begin, refuse, context, admitted, held }: Caller): void {
    const queue = this.#queues.get(lane) ?? { jobs: 0, bytes: 0, waiting: [] };
    const bytes = Math.min(sizeOf(held), this.#maxBytesPerPeer);
    const scope = admitted ? undefined : this.#fullFor(queue, bytes);
    if (scope !== undefined && !this.#mayWait(bytes)) {
      this.emit('rejected', () => ({ address: lane.address, queued: this.#queued, scope }));
      const where = scope === 'peer' ? `for ${lane.address}` : 'in all';
      refuse(new BackpressureError(`too much is waiting ${where}: the call was not begun`, { code: 'BACKPRESSURE', retryable: true }));
      release(lane, false);
      return;
    }
    // In the context of its caller, as if it had not waited: storages find their transaction by it.
    const within = context ?? new AsyncResource('stvor.libsignal');
    const job: Queued = { run: () => within.runInAsyncScope(begin), refuse, offer: this.#take, bytes };
    if (scope === undefined) return this.#enqueue(lane, job, queue);
    this.#queues.set(lane, queue);
    queue.waiting.push(job);
    lane.waiting += 1;
    this.#waiting += 1;
    this.#waitingBytes += bytes;
    if (scope === 'all') this.#open.add(lane);
    this.#tellPressure();
  }

  /** Where there is no room for one more: behind those of the address that wait already, and behind those that wait for room in all. */
  #fullFor(queue: Queue, bytes: number): 'peer' | 'all' | undefined {
    if (queue.waiting.length > 0 || !this.#fits(queue, bytes)) return 'peer';
    return this.#open.size > 0 || !this.#hasRoom(bytes) ? 'all' : undefined;
  }

  #fits({ jobs, bytes }: Queue, more: number): boolean {
    return jobs < this.#maxPerPeer && bytes + more <= this.#maxBytesPerPeer;
  }

  #hasRoom(more: number): boolean {
    return this.#queued < this.#maxQueued && this.#bytes + more <= this.#maxBytes;
  }

  #mayWait(more: number): boolean {
    return this.#wait && this.#waiting < this.#maxQueued && this.#waitingBytes + more <= this.#maxBytes;
  }

  #enqueue(lane: Lane, job: Queued, queue: Queue): void {
    this.#queues.set(lane, queue);
    queue.jobs += 1;
    queue.bytes += job.bytes;
    this.#queued += 1;
    this.#bytes += job.bytes;
    lane.jobs.push(job);
    if (this.#queued * 2 > this.#maxQueued || this.#bytes * 2 > this.#maxBytes) this.#tellPressure();
    offer(lane);
  }

  #tellPressure(): void {
    this.emit('pressure', () => ({ pending: this.#pending, queued: this.#queued, waiting: this.#waiting }));
  }

  /** A lane that is free, whose next job is ours, takes its turn among ours; once. */
  readonly #take = (lane: Lane): void => {
    lane.ready = true;
    this.#ready.push(lane);
    this.#pump();
  };

  #pump(): void {
    // A job that begins here may give its place back at once: whoever is next is for the loop, however many do so.
    if (this.#pumping) return;
    this.#pumping = true;
    try {
      this.#startReady();
    } finally {
      this.#pumping = false;
    }
  }

  #startReady(): void {
    while (this.#ready.length > 0 && this.#pending < this.#maxPending) {
      const lane = this.#ready.shift();
      if (lane === undefined) return;
      lane.ready = false;
      // It came to us, or the lane would be ready elsewhere.
      const job = lane.busy || lane.paused ? undefined : (lane.jobs.shift() as Queued | undefined);
      // It is offered again when its job, or its pause, ends.
      if (job === undefined) continue;
      this.#queued -= 1;
      this.#bytes -= job.bytes;
      const queue = this.#queues.get(lane);
      if (queue !== undefined) {
        queue.jobs -= 1;
        queue.bytes -= job.bytes;
        if (queue.waiting.length > 0) this.#open.add(lane);
        else if (queue.jobs === 0) this.#queues.delete(lane);
      }
      lane.busy = true;
      this.#pending += 1;
      job.run();
    }
  }

  #start(turn: Turn, work: Work): void {
    const { lane } = turn;
    try {
      turn.state = stateOf(lane, turn.owner);
    } catch (thrown) {
      // A storage that does not say any more what it is of.
      lane.busy = false;
      this.#pending -= 1;
      turn.refuse(thrown);
      queueMicrotask(() => this.#next(lane));
      return;
    }
    turn.at = this.running.length;
    this.running.push(turn);
    work(turn);
  }

  /** @internal A job came to its end. */
  done(turn: Turn, value: unknown): void {
    if (turn.over) return;
    const { lane } = turn;
    if (lane.failures > 0) {
      lane.failures = 0;
      this.emit('revived', () => ({ address: lane.address }));
    }
    turn.resolve(value as never);
    this.#end(turn);
  }

  /** @internal A job failed. */
  failed(turn: Turn, thrown: unknown): void {
    if (turn.over) return;
    if (turn.waits) turn.lost?.(turn);
    this.fail(turn, turn.waits ? storageFailed(thrown) : thrown);
  }

  protected fail(turn: Turn, error: unknown): void {
    const code = codeOf(error);
    if (code === 'INTERNAL' || code === 'STORAGE_TIMEOUT') this.#pause(turn.lane, code);
    turn.refuse(error);
    this.#end(turn);
  }

  #end(turn: Turn): void {
    turn.end();
    const last = this.running.pop();
    if (last !== undefined && last !== turn) {
      this.running[turn.at] = last;
      last.at = turn.at;
    }
    this.rest();
    turn.lane.busy = false;
    this.#pending -= 1;
    this.#next(turn.lane);
  }

  /** A lane that failed starts again later, from what its storage holds. */
  #pause(lane: Lane, code: string): void {
    const pause = this.#backoff * Math.min(LONGEST_PAUSE, 2 ** lane.failures);
    lane.failures += 1;
    lane.paused = true;
    this.emit('crash', () => ({ address: lane.address, code, pause }));
    setTimeout(() => {
      lane.paused = false;
      this.#next(lane);
    }, pause);
  }

  #next(lane: Lane): void {
    offer(lane);
    if (this.#open.size > 0) this.#letIn();
    release(lane);
    this.#pump();
  }

  /** Lets callers in that wait, one of each lane in turn, as far as there is room. */
  #letIn(): void {
    for (const lane of this.#open) {
      const queue = this.#queues.get(lane);
      const job = queue?.waiting[0];
      if (queue === undefined || job === undefined || !this.#fits(queue, job.bytes)) {
        // It comes back when a job of its own leaves the queue.
        this.#open.delete(lane);
        continue;
      }
      if (!this.#hasRoom(job.bytes)) return;
      this.#open.delete(lane);
      queue.waiting.shift();
      if (queue.waiting.length > 0) this.#open.add(lane);
      lane.waiting -= 1;
      this.#waiting -= 1;
      this.#waitingBytes -= job.bytes;
      this.#enqueue(lane, job, queue);
    }
  }
}

/**
 * @internal The executor that was given, or the default one. One of another copy of the package is as good if both mean the same by it; one that does
 * not say so could fail in the middle of a call, or keep another order.
 */
export function checkedExecutor(given: unknown = defaultExecutor()): Executor {
  if ((given as Executor | null)?.[CONTRACT] === true) return given as Executor;
  throw invalid('executor is an Executor of this copy of @stvor/libsignal, or of one of a version that goes with it');
}

const tell = (it: () => void): void => it();

/** Whoever has the next job of a lane is told that it may start. */
function offer(lane: Lane): void {
  if (!lane.busy && !lane.paused && !lane.ready) lane.jobs[0]?.offer(lane);
}

function sizeOf(held: unknown): number {
  if (isUint8Array(held)) return held.length;
  return Array.isArray(held) ? held.reduce((sum: number, one: unknown) => sum + (isUint8Array(one) ? one.length : 0), 0) : 0;
}

function codeOf(error: unknown): unknown {
  try {
    return (Object(error) as { code?: unknown }).code;
  } catch {
    return undefined;
  }
}

function count(given: unknown, otherwise: number, what: string, most = MOST): number {
  if (given === undefined) return otherwise;
  if (typeof given === 'number' && Number.isInteger(given) && given >= 1 && given <= most) return given;
  throw invalid(`${what} is a whole number from 1 to ${most}`);
}

/** One for all copies of the package in a thread, as the lanes are: another package may bring its own. */
const SHARED: unique symbol = Symbol.for(`${EXECUTORS}/default`);
const shared = globalThis as unknown as { [SHARED]?: Executor };

/**
 * The executor of all ciphers and builders that were not given one: of those that a package makes which finds this one in the place of libsignal-node, too.
 * Its events are heard here; other bounds take another executor ({@link setDefaultExecutor}).
 */
export function defaultExecutor(): Executor {
  return (shared[SHARED] ??= new Executor());
}

/** Takes an executor for all ciphers and builders that are made from now on without one. Whoever was made before keeps the one of then. */
export function setDefaultExecutor(executor: Executor): void {
  if (executor === undefined) throw invalid('there is always an executor: give one');
  shared[SHARED] = checkedExecutor(executor);
}
