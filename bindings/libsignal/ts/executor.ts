/**
 * The order of work. All work on one address of one storage runs one job after the other (a *lane*); lanes take turns, so that a
 * flooded one does not keep the others waiting; what waits is bounded.
 */

import { AsyncResource } from 'node:async_hooks';
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
  /**
   * A peer forced something weaker than our own profiles have: `no-post-quantum`, `short-mac`, `no-one-time-prekey`; in groups
   * `no-post-quantum`, `no-associated-data`. Told when a session starts, and once of each address, or sender of a group, whose
   * stored record is used: it may have been made elsewhere.
   */
  compatibility: { address: string; what: readonly string[] };
  /** The storage did not trust an identity. */
  untrusted: { address: string };
}

const EVENTS: readonly string[] = ['pressure', 'rejected', 'crash', 'revived', 'compatibility', 'untrusted'];

type Listener<K extends keyof ExecutorEvents> = (event: ExecutorEvents[K]) => void;

/** What goes with a record in one write: done again with it, and no reason for it to fail. */
export interface Side {
  identity?: { name: string; key: Buffer };
  removePreKey?: number;
}

/** Writes a record again: by the storage of whoever comes next, for the one that hung may be gone. */
export type Again<T> = (owner: object, value: T, sides: readonly Side[]) => unknown;

/** One row of a write. */
interface Row<T> {
  turn: Turn;
  value: T;
  /** What counts if it is given up. */
  fallback: T;
  again: Again<T>;
}

/** A write to a storage. */
interface Write<T> {
  value: T;
  /** What counts if it is given up. */
  fallback: T;
  /** What counts if it is refused, where that is no proof that it did not land. */
  refused?: T;
  side?: Side;
  call: (value: T) => unknown;
  again: Again<T>;
  /** Rows of other addresses that are written with it. */
  also?: readonly Row<T>[];
}

interface Job {
  run: () => void;
  refuse: (error: Error) => void;
}

/** Messages that started a session and whose save was given up before they were handed over: of one lane, and of all. The oldest go. */
const MAX_UNREAD = 8;
const MAX_UNREAD_LANES = 1_024;

/** Addresses of which it is remembered that something was told. */
const MAX_TOLD = 16_384;

/** Ends a job whose caller was told long ago. Nobody sees it. */
const GIVEN_UP = new Error('the job was given up');

/** Storage writes that hang are remembered up to here, each keeping one record; beyond, the storage is asked but for a try each second timeout. */
const MAX_HUNG = 8;

/** The same over all addresses of one account: strangers decide how many there are. */
const MAX_HUNG_IN_ALL = 4_096;

/** Records of which it is not known whether they landed, for their write was refused. The oldest are forgotten. */
const MAX_DOUBTFUL = 1_024;

/** Runs what is nobody's: not in the context of the call that happened to be there. */
const nobodys = new AsyncResource('stvor.libsignal');

/** A record that nobody else has: storages may wipe what they were given. */
function copyOf<T>(value: T): T {
  const { _copy: copy } = Object(value) as { _copy?: () => T };
  return copy === undefined ? value : copy.call(value);
}

/** Writes that hang, of one account. */
class Account {
  hung = 0;
  hungAt = 0;
}

/** @internal What is not certain of one account, or one storage, at an address. */
export class State {
  readonly lane: Lane;
  /** The scope, or the object that stands for the storage. */
  readonly one: unknown;
  /** Who we are, where that says it better: objects are often made anew for each call. */
  who: Buffer | undefined;
  /** Writes that were given up and have not ended, and when the last one was: what a storage holds is uncertain until they do. */
  hung = 0;
  hungAt = 0;
  /** The newest record, by key, while it is uncertain what the storage holds: it is what counts. */
  readonly newest = new Map<string, unknown>();
  /** What was to be done with records whose write hung. */
  sides: Side[] = [];
  /** What such messages say, by their bytes, until they come again. */
  readonly unread = new Map<string, unknown>();
  #key: unknown;

  constructor(lane: Lane, one: unknown) {
    this.lane = lane;
    this.one = one;
  }

  get key(): unknown {
    return (this.#key ??= this.who === undefined ? this.one : nameOf(this.who));
  }

  /** The lane remembers it while there is something to remember. */
  keep(): void {
    if (this.newest.size > 0 || this.unread.size > 0 || this.hung > 0) this.lane.states.set(this.key, this);
    else this.lane.states.delete(this.key);
  }
}

/** Our public key, as a key of a map. */
const nameOf = (who: Buffer): string => who.toString('latin1', 0, 33);

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
  /** It stands among those with a job that may start. */
  ready = false;
  /** Of accounts about which something is uncertain. */
  readonly states = new Map<unknown, State>();

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
  readonly owner: object;
  state: State;
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
  /** What the call means once it is answered, or refused. */
  done: (() => void) | undefined;
  refused: (() => void) | undefined;

  constructor(state: State, owner: object, refuse: (error: Error) => void) {
    this.lane = state.lane;
    this.owner = owner;
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
  /** Addresses of which it was told what is weaker with them. */
  readonly #compatible = new Set<string>();
  readonly #listeners = new Map<string, Set<(event: never) => void>>();
  /** Where messages are unread, the oldest first. */
  readonly #unread = new Set<State>();
  /** Jobs that run. */
  readonly #running = new Set<Turn>();
  /** States that are kept only because a write was refused, the oldest first. */
  readonly #doubtful = new Set<State>();
  /** Accounts of which writes hang. */
  readonly #accounts = new Map<unknown, Account>();
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
    if (!EVENTS.includes(name)) throw invalid(`an executor tells no "${String(name)}"; it tells ${EVENTS.join(', ')}`);
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
    if (this.#compatible.has(address) || !this.#listeners.has('compatibility')) return;
    if (this.#compatible.size >= MAX_TOLD) this.#compatible.clear();
    this.#compatible.add(address);
    this.emit('compatibility', () => ({ address, what }));
  }

  /** @internal Runs `work` as the only job of an address. */
  run<T>(owner: object, address: string, work: (turn: Turn) => Promise<T>): Promise<T> {
    let lane: Lane;
    try {
      lane = this.#lane(owner, address);
    } catch (thrown) {
      return Promise.reject(thrown);
    }
    if (!lane.busy && !lane.paused && lane.jobs.length === 0 && lane.waiting === 0 && this.#pending < this.#maxPending && this.#ready.length === 0) {
      // The common case: nothing is in the way.
      lane.busy = true;
      this.#pending += 1;
      return new Promise<T>((resolve, refuse) => this.#start([lane, owner], work, resolve, refuse));
    }
    return new Promise<T>((resolve, refuse) => {
      // In the context of its caller, as if it had not waited: storages find their transaction by it.
      const job: Job = { run: AsyncResource.bind(() => this.#start([lane, owner], work, resolve, refuse)), refuse };
      this.#admit(lane, job);
    });
  }

  /** @internal Runs `work` as the only job of two addresses of one storage; the turn of the first one, and of the second, and which of them asks. */
  runBoth<T>(owner: object, [from, to]: readonly [string, string], work: (turns: { from: Turn; to: Turn; asks: Turn }) => Promise<T>): Promise<T> {
    if (from === to) return this.run(owner, from, (turn) => work({ from: turn, to: turn, asks: turn }));
    // Always in the same order, so that no two wait for each other; and one that waits takes no place from those that work.
    const [first, second] = from < to ? [from, to] : [to, from];
    return this.run(owner, first, async (outer) => {
      this.#pending -= 1;
      this.#pump();
      try {
        return await this.run(owner, second, (asks) => work(first === from ? { from: outer, to: asks, asks } : { from: asks, to: outer, asks }));
      } finally {
        this.#pending += 1;
      }
    });
  }

  /**
   * @internal Who we are is known: without a scope it says, better than the object that stands for the storage, of what something is uncertain.
   */
  known(turn: Turn, own: Buffer): void {
    const { lane, state } = turn;
    if (state.one === lane || state.who !== undefined) return;
    const found = lane.states.size > 0 ? lane.states.get(nameOf(own)) : undefined;
    if (found !== undefined) turn.state = found;
    else state.who = own;
  }

  /**
   * Storages are often made anew for each call, so without a scope an address is an order of its own, whatever object stands for the storage. Accounts
   * that share a process and a peer then wait for each other, as in libsignal-node; a scope parts them.
   */
  #lane(owner: object, address: string): Lane {
    const scope = scopeOf(owner);
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
    // Within a scope all objects stand for one storage.
    const one = scopeOf(owner) === undefined ? owner : lane;
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
    this.#offer(lane);
    if (this.#queued * 2 > this.#maxQueued) this.#tellPressure();
    this.#pump();
  }

  #tellPressure(): void {
    this.emit('pressure', () => ({ pending: this.#pending, queued: this.#queued, waiting: this.#waiting.length }));
  }

  /** A lane with jobs takes its turn, once. */
  #offer(lane: Lane): void {
    if (lane.busy || lane.paused || lane.ready || lane.jobs.length === 0) return;
    lane.ready = true;
    this.#ready.push(lane);
  }

  #pump(): void {
    while (this.#pending < this.#maxPending) {
      const lane = this.#ready.shift();
      if (lane === undefined) return;
      lane.ready = false;
      // It comes again when its job, or its pause, ends.
      if (lane.busy || lane.paused) continue;
      const job = lane.jobs.shift();
      if (job === undefined) continue;
      this.#queued -= 1;
      lane.busy = true;
      this.#pending += 1;
      job.run();
    }
  }

  #start<T>([lane, owner]: [Lane, object], work: (turn: Turn) => Promise<T>, resolve: (value: T) => void, refuse: (error: unknown) => void): void {
    const turn = new Turn(this.#state(lane, owner), owner, refuse);
    this.#running.add(turn);
    const running = work(turn);
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
        if (turn.waits) {
          turn.refused?.();
          turn.lost?.();
        }
        this.#fail(turn, turn.waits ? storageFailed(thrown) : thrown);
      },
    );
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
      // Strangers decide how many addresses there are: one that rests is forgotten, its failures too.
      if (isIdle(lane)) lane.home.delete(lane.key);
    }, pause);
  }

  #next(lane: Lane): void {
    this.#offer(lane);
    if (lane.failures === 0 && isIdle(lane)) lane.home.delete(lane.key);
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

  /** @internal Nothing of it is of use any more. */
  forget(state: State): void {
    state.unread.clear();
    state.sides = [];
    this.#unread.delete(state);
    state.keep();
  }

  /** @internal A read, with a deadline; the turn takes what is awaited of it. */
  read<T>(turn: Turn, key: string, call: () => T | PromiseLike<T>): T | PromiseLike<T> {
    const { newest } = turn.state;
    if (newest.size > 0 && newest.has(key)) return copyOf(newest.get(key)) as T;
    return this.#ask(turn, call);
  }

  /**
   * @internal A write of `write.value`, with a deadline. One that is given up may still land, after later ones: until that is known,
   * reads give the newest that counts; and once it is, the next write that is stored says what counts, the one of the newest at the latest.
   */
  write<T>(turn: Turn, key: string, write: Write<T>): unknown {
    this.#refuseHung(turn);
    // Before the call: what it is given it may wipe.
    const value = copyOf(write.value);
    const rows: Row<T>[] = [{ turn, value, fallback: write.fallback === write.value ? value : write.fallback, again: write.again }];
    if (write.also !== undefined) rows.push(...write.also);
    const uncertain = rows.some((row) => row.turn.state.newest.has(key));
    const refused = write.refused === undefined ? rows[0]?.fallback : write.refused;
    if (turn.state.newest.has(key)) turn.state.newest.set(key, refused);
    const ended = this.#ask(turn, () => write.call(write.value));
    const stored = () => {
      for (const row of rows) this.#stored(row, key);
    };
    const matters = uncertain || rows.some((row) => row.turn.lane.states.size > 0);
    if (turn.waits) {
      turn.hung = () => {
        if (write.side !== undefined && turn.state.sides.length < MAX_HUNG) turn.state.sides.push(write.side);
        for (const row of rows) this.#uncertain(row, key, ended as PromiseLike<unknown>);
      };
      if (write.refused !== undefined) turn.refused = () => this.#doubt(turn.state, key, write.refused);
      if (matters) turn.done = stored;
    } else if (matters) {
      stored();
    }
    return ended;
  }

  /** A row is stored. */
  #stored<T>({ turn, value, again }: Row<T>, key: string): void {
    const { state, owner } = turn;
    if (!state.newest.has(key)) return;
    this.#doubtful.delete(state);
    if (state.hung === 0 && state.sides.length === 0) {
      state.newest.delete(key);
      state.keep();
      return;
    }
    state.newest.set(key, value);
    if (state.hung === 0) this.#again(state, key, owner, again);
  }

  /** Whether a write that was refused landed all the same is not known: what counts is said. */
  #doubt(state: State, key: string, value: unknown): void {
    state.newest.set(key, value);
    state.keep();
    this.#doubtful.delete(state);
    this.#doubtful.add(state);
    for (const oldest of this.#doubtful) {
      if (this.#doubtful.size <= MAX_DOUBTFUL) break;
      this.#doubtful.delete(oldest);
      if (oldest.hung > 0) continue;
      oldest.newest.clear();
      oldest.keep();
      this.#next(oldest.lane);
    }
  }

  /** Whether it answers again is seen by trying, now and then. */
  #refuseHung({ state, owner, lane }: Turn): void {
    if (this.#accounts.size === 0) return;
    const account = this.#accounts.get(accountOf(state, owner));
    const full = state.hung >= MAX_HUNG ? state.hungAt : account !== undefined && account.hung >= MAX_HUNG_IN_ALL ? account.hungAt : undefined;
    if (full !== undefined && performance.now() - full < 2 * this.storageTimeout) {
      throw new StorageError(`the storage does not answer for ${lane.address}`, { code: 'STORAGE_TIMEOUT', retryable: true });
    }
  }

  #uncertain<T>({ turn, fallback, again }: Row<T>, key: string, ended: PromiseLike<unknown>): void {
    const { state, owner } = turn;
    const whose = accountOf(state, owner);
    const account = this.#accounts.get(whose) ?? new Account();
    this.#accounts.set(whose, account);
    state.newest.set(key, copyOf(fallback));
    state.hung += 1;
    account.hung += 1;
    state.hungAt = account.hungAt = performance.now();
    state.keep();
    const settled = () => {
      state.hung -= 1;
      account.hung -= 1;
      if (account.hung === 0) this.#accounts.delete(whose);
      // Now, and not only with the next call: the process may end before one comes.
      if (state.hung === 0) this.#again(state, key, owner, again);
    };
    void ended.then(settled, settled);
  }

  /** Writes the newest again, if nothing came before that. If it fails, whoever comes next writes what counts then. */
  #again<T>(state: State, key: string, owner: object, again: Again<T>): void {
    const { lane } = state;
    const work = async (turn: Turn): Promise<void> => {
      turn.state = state;
      if (state.hung > 0 || !state.newest.has(key)) return state.keep();
      const newest = state.newest.get(key) as T;
      const sides = state.sides;
      state.sides = [];
      const back = () => void state.sides.unshift(...sides);
      turn.lost = back;
      const call = (one: T) => again(owner, one, sides);
      turn.took(await this.write(turn, key, { value: newest, fallback: newest, call, again }));
    };
    nobodys.runInAsyncScope(() => {
      const job: Job = { run: () => nobodys.runInAsyncScope(() => this.#start([lane, owner], work, () => {}, () => {})), refuse: () => {} };
      if (!lane.home.has(lane.key)) lane.home.set(lane.key, lane);
      this.#admit(lane, job);
    });
  }

  /** What a storage answers. One that answers at once costs nothing, and none costs a promise or a timer of its own. */
  #ask<T>(turn: Turn, call: () => T | PromiseLike<T>): T | PromiseLike<T> {
    // Also while it is called: what it throws is the storage's.
    turn.waits = true;
    turn.since = 0;
    turn.hung = undefined;
    turn.done = undefined;
    turn.refused = undefined;
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
      // After a pause of the whole process answers may be there that nobody has read: they are read first.
      setImmediate(() => {
        this.#expire();
        this.#look();
      });
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

function scopeOf(owner: object): string | object | undefined {
  const { scope } = owner as { scope?: unknown };
  if (scope === undefined || scope === null) return undefined;
  if (typeof scope === 'string' || typeof scope === 'object') return scope;
  throw invalid('the scope of a storage is a text or an object');
}

/** Whose writes hang: those of a scope, of an identity, of an object. */
function accountOf(state: State, owner: object): unknown {
  return scopeOf(owner) ?? state.key;
}

function isIdle(lane: Lane): boolean {
  return !lane.busy && !lane.paused && !lane.ready && lane.jobs.length === 0 && lane.waiting === 0 && lane.states.size === 0;
}

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

/** One for all copies of this package in the process: an application and a library of its may each have their own. */
const SHARED = Symbol.for('stvor.libsignal.executor.1');
const shared = globalThis as unknown as { [SHARED]?: Executor };

/** The executor of ciphers that were not given one. */
export const defaultExecutor: Executor = (shared[SHARED] ??= new Executor());
