/**
 * The order of work. All work on one address of one storage runs one job after the other (a *lane*); lanes take turns, so that a
 * flooded one does not keep the others waiting; what waits is bounded.
 */

import { BackpressureError, SignalError, StorageError, invalid, wordsOf } from './errors.js';

/** How much may be under way, and what happens beyond. */
export interface ExecutorOptions {
  /** Jobs that run at the same time, over all lanes. Default 256. */
  maxPending?: number;
  /** Jobs that wait, over all lanes. Default 16,384. */
  maxQueued?: number;
  /** Jobs of one lane that wait. Default a quarter of `maxQueued`. */
  maxQueuedPerPeer?: number;
  /** Beyond that: `reject` with BACKPRESSURE (the default), or `wait` for room, as many callers again as may be queued. */
  onPressure?: 'reject' | 'wait';
  /** Milliseconds for one storage call. Default 30,000. A call that takes longer is given up and its lane goes on. */
  storageTimeout?: number;
  /** Milliseconds of the first pause of a lane after a storage failure or a defect; it doubles up to 60 times that. Default 50. */
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
  /** A peer forced something weaker than our own profiles have: `no-post-quantum`, `short-mac`, `no-one-time-prekey`. */
  compatibility: { address: string; what: readonly string[] };
  /** The storage did not trust an identity. */
  untrusted: { address: string };
}

type Listener<K extends keyof ExecutorEvents> = (event: ExecutorEvents[K]) => void;

/** A write to a storage. */
interface Write<T> {
  value: T;
  /** What counts if it is given up. */
  fallback: T;
  call: (value: T) => unknown;
}

interface Job {
  run: () => void;
  refuse: (error: Error) => void;
}

/** Messages that started a session and whose save was given up before they were handed over: of one lane, and of all. The oldest go. */
const MAX_UNREAD = 8;
const MAX_UNREAD_LANES = 1_024;

/** Ends a job whose caller was told long ago. Nobody sees it. */
const GIVEN_UP = new Error('the job was given up');

/** Storage writes that hang are remembered up to here, each keeping one record; beyond, the lane refuses but for a try each second timeout. */
const MAX_HUNG = 8;

/** The same over all lanes: strangers decide how many there are. */
const MAX_HUNG_IN_ALL = 4_096;

/** @internal What is not certain of one storage at an address. */
export class State {
  readonly lane: Lane;
  readonly owner: object;
  /** Writes that were given up and have not ended: what a storage holds is uncertain until they do. */
  hung = 0;
  /** The newest record, by key, while it is uncertain what the storage holds: it is what counts. */
  readonly newest = new Map<string, unknown>();
  /** What such messages say, by their bytes, until they come again. */
  readonly unread = new Map<string, unknown>();
  /** Writes the newest again. */
  repair: ((turn: Turn) => Promise<void>) | undefined;

  constructor(lane: Lane, owner: object) {
    this.lane = lane;
    this.owner = owner;
  }

  /** The lane remembers it while there is something to remember. */
  keep(): void {
    if (this.newest.size > 0 || this.unread.size > 0 || this.hung > 0) this.lane.states.set(this.owner, this);
    else this.lane.states.delete(this.owner);
  }
}

/** @internal The order of what happens at an address. */
export class Lane {
  readonly address: string;
  /** Where the executor keeps it. */
  readonly key: string;
  readonly home: Map<string, Lane>;
  readonly jobs: Job[] = [];
  /** Jobs that wait for room. */
  waiting = 0;
  busy = false;
  failures = 0;
  paused = false;
  /** Writes that were given up, of all storages, and when the last one was. */
  hung = 0;
  hungAt = 0;
  /** Of storages about which something is uncertain. */
  readonly states = new Map<object, State>();

  constructor(address: string, key: string, home: Map<string, Lane>) {
    this.address = address;
    this.key = key;
    this.home = home;
  }
}

/**
 * @internal A job's hold on its lane. Every answer of a storage goes through `took`: a job whose call was given up ends there, whenever the answer
 * comes. So a call needs no promise of its own, and there are four for each message.
 */
export class Turn {
  readonly lane: Lane;
  readonly state: State;
  /** Ends the job for its caller. */
  readonly refuse: (error: Error) => void;
  /** A call to the storage is under way. */
  waits = false;
  /** Since when, on the monotonic clock; 0 until the event loop has turned once. */
  since = 0;
  /** The job is over for its caller. */
  over = false;
  /** What happens when the write that is under way is given up. */
  hung: (() => void) | undefined;
  /** What happens when any call of the job is, or fails. */
  lost: (() => void) | undefined;
  /** What the call means once it is answered. */
  done: (() => void) | undefined;

  constructor(state: State, refuse: (error: Error) => void) {
    this.lane = state.lane;
    this.state = state;
    this.refuse = refuse;
  }

  /** Takes what was awaited. */
  took<T>(answer: T): T {
    if (this.over) throw GIVEN_UP;
    this.waits = false;
    if (this.done !== undefined) {
      this.done();
      this.done = undefined;
    }
    return answer;
  }
}

/** Runs jobs: one after the other for each address, fairly among them, bounded. */
export class Executor {
  readonly #maxPending: number;
  readonly #maxQueued: number;
  readonly #maxPerPeer: number;
  readonly #wait: boolean;
  readonly storageTimeout: number;
  readonly #backoff: number;
  /** Of storages without a scope, and with one that is a text. */
  readonly #lanes = new Map<string, Lane>();
  readonly #scopes = new WeakMap<object, Map<string, Lane>>();
  /** Lanes with a job that may start, in turn. */
  readonly #ready: Lane[] = [];
  readonly #waiting: { lane: Lane; job: Job }[] = [];
  readonly #listeners = new Map<string, Set<(event: never) => void>>();
  /** Where messages are unread, the oldest first. */
  readonly #unread = new Set<State>();
  /** Jobs that run. */
  readonly #running = new Set<Turn>();
  /** Writes that were given up, of all lanes, and when the last one was. */
  #hung = 0;
  #hungAt = 0;
  #looking = false;
  #timer: NodeTimer | undefined;
  #pending = 0;
  #queued = 0;

  constructor(options: ExecutorOptions = {}) {
    const known = ['maxPending', 'maxQueued', 'maxQueuedPerPeer', 'onPressure', 'storageTimeout', 'backoff'];
    for (const key of Object.keys(options)) {
      if (!known.includes(key)) throw invalid(`an executor has no "${key}"; there are ${known.join(', ')}`);
    }
    this.#maxPending = count(options.maxPending, 256, 'maxPending');
    this.#maxQueued = count(options.maxQueued, 16_384, 'maxQueued');
    this.#maxPerPeer = count(options.maxQueuedPerPeer, Math.max(1, Math.floor(this.#maxQueued / 4)), 'maxQueuedPerPeer');
    this.storageTimeout = count(options.storageTimeout, 30_000, 'storageTimeout');
    this.#backoff = count(options.backoff, 50, 'backoff');
    const pressure = options.onPressure ?? 'reject';
    if (pressure !== 'reject' && pressure !== 'wait') throw invalid('onPressure is "reject" or "wait"');
    this.#wait = pressure === 'wait';
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

  /** @internal Runs `work` as the only job of an address. */
  run<T>(owner: object, address: string, work: (turn: Turn) => Promise<T>): Promise<T> {
    const lane = this.#lane(owner, address);
    if (!lane.busy && !lane.paused && lane.jobs.length === 0 && lane.waiting === 0 && this.#pending < this.#maxPending && this.#ready.length === 0) {
      // The common case: nothing is in the way.
      lane.busy = true;
      this.#pending += 1;
      return new Promise<T>((resolve, refuse) => this.#start([lane, owner], work, resolve, refuse));
    }
    return new Promise<T>((resolve, refuse) => {
      const job: Job = { run: () => this.#start([lane, owner], work, resolve, refuse), refuse };
      this.#admit(lane, job);
    });
  }

  /** @internal Runs `work` as the only job of two addresses of one storage. */
  runBoth<T>(owner: object, addresses: readonly [string, string], work: (turn: Turn) => Promise<T>): Promise<T> {
    // Always in the same order, so that no two wait for each other; and one that waits takes no place from those that work.
    const [first, second] = [...addresses].sort() as [string, string];
    if (first === second) return this.run(owner, first, work);
    return this.run(owner, first, async () => {
      this.#pending -= 1;
      this.#pump();
      try {
        return await this.run(owner, second, work);
      } finally {
        this.#pending += 1;
      }
    });
  }

  /**
   * Storages are often made anew for each call, so without a scope an address is an order of its own, whatever object stands for the storage. Accounts
   * that share a process and a peer then wait for each other, as in libsignal-node; a scope parts them.
   */
  #lane(owner: object, address: string): Lane {
    const { scope } = owner as { scope?: unknown };
    let home = this.#lanes;
    let key = address;
    if (typeof scope === 'string') {
      key = `${scope}\0${address}`;
    } else if (typeof scope === 'object' && scope !== null) {
      home = this.#scopes.get(scope) ?? new Map<string, Lane>();
      this.#scopes.set(scope, home);
    }
    const known = home.get(key);
    if (known !== undefined) return known;
    const lane = new Lane(address, key, home);
    home.set(key, lane);
    return lane;
  }

  #state(lane: Lane, owner: object): State {
    const { scope } = owner as { scope?: unknown };
    // Within a scope all objects stand for one storage.
    const one = scope === undefined || scope === null ? owner : lane;
    return (lane.states.size > 0 ? lane.states.get(one) : undefined) ?? new State(lane, one);
  }

  #admit(lane: Lane, job: Job): void {
    // Behind those of the address that wait already.
    const scope = lane.jobs.length >= this.#maxPerPeer || lane.waiting > 0 ? 'peer' : this.#queued >= this.#maxQueued ? 'all' : undefined;
    if (scope === undefined) {
      this.#enqueue(lane, job);
    } else if (this.#wait && this.#waiting.length < this.#maxQueued) {
      lane.waiting += 1;
      this.#waiting.push({ lane, job });
      this.#tellPressure();
    } else {
      this.emit('rejected', () => ({ address: lane.address, queued: this.#queued, scope }));
      const where = scope === 'peer' ? `for ${lane.address}` : 'in all';
      job.refuse(
        new BackpressureError(`too much is waiting ${where}: the call was not begun`, { code: 'BACKPRESSURE', retryable: true }),
      );
    }
  }

  #enqueue(lane: Lane, job: Job): void {
    lane.jobs.push(job);
    this.#queued += 1;
    if (!lane.busy && !lane.paused && lane.jobs.length === 1) this.#ready.push(lane);
    if (this.#queued * 2 > this.#maxQueued) this.#tellPressure();
    this.#pump();
  }

  #tellPressure(): void {
    this.emit('pressure', () => ({ pending: this.#pending, queued: this.#queued, waiting: this.#waiting.length }));
  }

  #pump(): void {
    while (this.#pending < this.#maxPending) {
      const lane = this.#ready.shift();
      if (lane === undefined) return;
      const job = lane.jobs.shift();
      if (job === undefined) continue;
      this.#queued -= 1;
      lane.busy = true;
      this.#pending += 1;
      job.run();
    }
  }

  #start<T>([lane, owner]: [Lane, object], work: (turn: Turn) => Promise<T>, resolve: (value: T) => void, refuse: (error: unknown) => void): void {
    const state = this.#state(lane, owner);
    const turn = new Turn(state, refuse);
    this.#running.add(turn);
    const repair = state.hung === 0 ? state.repair : undefined;
    const running = repair === undefined ? work(turn) : this.#repaired(turn, repair, work);
    running.then(
      (value) => {
        if (turn.over) return;
        if (lane.failures > 0) {
          lane.failures = 0;
          this.emit('revived', () => ({ address: lane.address }));
        }
        this.#end(turn);
        resolve(value);
      },
      (thrown: unknown) => {
        if (turn.over) return;
        if (turn.waits) turn.lost?.();
        this.#fail(turn, turn.waits ? storageFailed(thrown) : thrown);
      },
    );
  }

  async #repaired<T>(turn: Turn, repair: (turn: Turn) => Promise<void>, work: (turn: Turn) => Promise<T>): Promise<T> {
    await repair(turn);
    turn.state.repair = undefined;
    turn.state.keep();
    return work(turn);
  }

  #fail(turn: Turn, error: unknown): void {
    const code = codeOf(error);
    if (code === 'INTERNAL' || code === 'STORAGE_TIMEOUT') this.#pause(turn.lane, code);
    this.#end(turn);
    turn.refuse(error as Error);
  }

  #end(turn: Turn): void {
    turn.over = true;
    this.#running.delete(turn);
    if (this.#timer !== undefined && this.#running.size === 0) {
      clearTimeout(this.#timer);
      this.#timer = undefined;
    }
    turn.lane.busy = false;
    this.#pending -= 1;
    this.#next(turn.lane);
  }

  /** A lane that failed starts again later, from what its storage holds. */
  #pause(lane: Lane, code: string): void {
    const pause = this.#backoff * Math.min(60, 2 ** lane.failures);
    lane.failures += 1;
    lane.paused = true;
    this.emit('crash', () => ({ address: lane.address, code, pause }));
    setTimeout(() => {
      lane.paused = false;
      this.#next(lane);
    }, pause);
  }

  #next(lane: Lane): void {
    if (!lane.busy && !lane.paused) {
      if (lane.jobs.length > 0) this.#ready.push(lane);
      else if (lane.failures === 0 && lane.waiting === 0 && lane.states.size === 0) lane.home.delete(lane.key);
    }
    while (this.#waiting.length > 0 && this.#queued < this.#maxQueued) {
      const at = this.#waiting.findIndex((one) => one.lane.jobs.length < this.#maxPerPeer);
      if (at < 0) break;
      const [{ lane: its, job }] = this.#waiting.splice(at, 1) as [{ lane: Lane; job: Job }];
      its.waiting -= 1;
      this.#enqueue(its, job);
    }
    this.#pump();
  }

  /** @internal Keeps what a message says that can not be read a second time, until it comes again. */
  keep(state: State, message: string, said: unknown): void {
    state.unread.set(message, said);
    for (const oldest of state.unread.keys()) {
      if (state.unread.size <= MAX_UNREAD) break;
      state.unread.delete(oldest);
    }
    state.keep();
    this.#unread.delete(state);
    this.#unread.add(state);
    for (const oldest of this.#unread) {
      if (this.#unread.size <= MAX_UNREAD_LANES) break;
      oldest.unread.clear();
      oldest.keep();
      this.#unread.delete(oldest);
      if (!oldest.lane.busy) this.#next(oldest.lane);
    }
  }

  /** @internal It was handed over, or is of no use any more. */
  handed(state: State, message: string): void {
    state.unread.delete(message);
    if (state.unread.size === 0) this.#unread.delete(state);
    state.keep();
  }

  /** @internal A read, with a deadline; the turn takes what is awaited of it. */
  read<T>(turn: Turn, key: string, call: () => T | PromiseLike<T>): T | PromiseLike<T> {
    const { newest } = turn.state;
    if (newest.size > 0 && newest.has(key)) return newest.get(key) as T;
    return this.#ask(turn, call);
  }

  /**
   * @internal A write of `write.value`, with a deadline. One that is given up may still land, after later ones: until that is known,
   * reads give the newest that counts, and once it is, the newest is written again before anything else happens on the lane.
   */
  write<T>(turn: Turn, key: string, write: Write<T>): unknown {
    const { lane, state } = turn;
    // Whether it answers again is seen by trying, now and then.
    const full = lane.hung >= MAX_HUNG ? lane.hungAt : this.#hung >= MAX_HUNG_IN_ALL ? this.#hungAt : undefined;
    if (full !== undefined && performance.now() - full < 2 * this.storageTimeout) {
      throw new StorageError(`the storage does not answer for ${lane.address}`, { code: 'STORAGE_TIMEOUT', retryable: true });
    }
    const uncertain = state.newest.size > 0 && state.newest.has(key);
    // Until it is known to be stored; if it fails, that is all that is known.
    if (uncertain) state.newest.set(key, write.fallback);
    const ended = this.#ask(turn, () => write.call(write.value));
    const stored = () => void state.newest.set(key, write.value);
    if (turn.waits) {
      turn.hung = () => this.#uncertain(state, key, write, ended as PromiseLike<unknown>);
      if (uncertain) turn.done = stored;
    } else if (uncertain) {
      stored();
    }
    return ended;
  }

  #uncertain<T>(state: State, key: string, { fallback, call }: Pick<Write<T>, 'fallback' | 'call'>, ended: PromiseLike<unknown>): void {
    const { lane, owner } = state;
    state.newest.set(key, fallback);
    state.hung += 1;
    lane.hung += 1;
    lane.hungAt = performance.now();
    this.#hung += 1;
    this.#hungAt = lane.hungAt;
    state.keep();
    const settled = () => {
      state.hung -= 1;
      lane.hung -= 1;
      this.#hung -= 1;
      if (state.hung > 0) return;
      state.repair = async (turn) => {
        const newest = state.newest.get(key) as T;
        const again = this.#ask(turn, () => call(newest));
        // It is as uncertain as any other.
        if (turn.waits) {
          turn.hung = () => {
            state.repair = undefined;
            this.#uncertain(state, key, { fallback: newest, call }, again as PromiseLike<unknown>);
          };
        }
        turn.took(await again);
        state.newest.clear();
      };
      // Now, and not only with the next call: the process may end before one comes.
      this.#again(lane, owner);
    };
    void ended.then(settled, settled);
  }

  /** Runs nothing but the repair. */
  #again(lane: Lane, owner: object): void {
    const job: Job = { run: () => this.#start([lane, owner], async () => {}, () => {}, () => {}), refuse: () => {} };
    if (!lane.home.has(lane.key)) lane.home.set(lane.key, lane);
    this.#admit(lane, job);
  }

  /** What a storage answers. One that answers at once costs nothing, and none costs a promise or a timer of its own. */
  #ask<T>(turn: Turn, call: () => T | PromiseLike<T>): T | PromiseLike<T> {
    // Also while it is called: what it throws is the storage's.
    turn.waits = true;
    turn.since = 0;
    turn.hung = undefined;
    turn.done = undefined;
    const given = call();
    if (typeof (given as PromiseLike<T> | undefined)?.then !== 'function') {
      turn.waits = false;
      return given as T;
    }
    // A promise is itself. Builders of queries run what they are at each `then`: they have one here.
    const answer = Promise.resolve(given as PromiseLike<T>);
    if (!this.#looking) {
      this.#looking = true;
      setImmediate(this.#look);
    }
    return answer;
  }

  /**
   * One timer watches over all calls to storages. It keeps the process alive while one is under way, which is looked at once in each turn
   * of the event loop: most answers are there before that.
   */
  readonly #look = (): void => {
    this.#looking = false;
    const now = performance.now();
    let oldest = Number.POSITIVE_INFINITY;
    for (const turn of this.#running) {
      if (!turn.waits) continue;
      if (turn.since === 0) turn.since = now;
      oldest = Math.min(oldest, turn.since);
    }
    if (oldest === Number.POSITIVE_INFINITY || this.#timer !== undefined) return;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#expire();
      this.#look();
    }, Math.max(1, oldest + this.storageTimeout - now));
  };

  #expire(): void {
    const now = performance.now();
    for (const turn of this.#running) {
      if (!turn.waits || turn.since === 0 || now - turn.since < this.storageTimeout) continue;
      turn.hung?.();
      turn.lost?.();
      this.#fail(
        turn,
        new StorageError(`the storage did not answer within ${this.storageTimeout} ms for ${turn.lane.address}`, {
          code: 'STORAGE_TIMEOUT',
          retryable: true,
        }),
      );
    }
  }
}

const NOTHING = (): void => {};

function codeOf(error: unknown): unknown {
  try {
    return (Object(error) as { code?: unknown }).code;
  } catch {
    return undefined;
  }
}

function storageFailed(cause: unknown): Error {
  if (cause instanceof SignalError) return cause;
  const words = wordsOf(cause);
  return new StorageError(`the storage failed: ${words}`, { code: 'STORAGE_FAILED', retryable: true, cause });
}

function count(given: unknown, otherwise: number, what: string): number {
  if (given === undefined) return otherwise;
  if (typeof given === 'number' && Number.isInteger(given) && given >= 1 && given <= 2_147_483_647) return given;
  throw invalid(`${what} is a whole number of 1 or more`);
}

/** The executor of ciphers that were not given one. */
export const defaultExecutor = new Executor();
