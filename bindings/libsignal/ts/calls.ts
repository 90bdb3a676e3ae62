/** Calls to storages: their deadlines, and what is done about those that were given up. */

import { isSignalError, StorageError, wordsOf } from './errors.js';
import { release, scopeOf, type Lane, type Said, type Side, type State } from './lanes.js';
import type { Opened } from './native.js';
import type { Wipeable } from './wipeable.js';

/** @internal What is done about a record whose write hung, by the storage of whoever is there now: the one that hung may be gone. */
export interface Again {
  /** Writes it again, or removes it for null. */
  write: (owner: object, value: Buffer | null, sides: readonly Side[]) => unknown;
  /** Whose rows the storage has now: somebody else may have logged in. */
  whose?: (owner: object) => unknown;
}

/** @internal One row of a write. */
export interface Row {
  turn: Turn;
  value: Buffer | null;
  /** What counts if it is given up; the value if absent. */
  fallback?: Buffer | null | undefined;
  /** What counts if it is refused; as for one that is given up if absent. */
  refused?: Buffer | null | undefined;
  again: Again;
}

/** @internal What is written, where all is certain. */
export interface Written extends Omit<Row, 'turn'> {
  side?: Side | undefined;
}

/** @internal A write to a storage. */
export interface Write extends Written {
  call: () => unknown;
  /** Rows of other addresses that are written with it. */
  also?: readonly Row[];
}

/** Ends a job whose caller was told long ago. Nobody sees it. */
const GIVEN_UP = new Error('the job was given up');

/** Writes of one state that hang; beyond, the storage is not asked but for a try each second timeout. */
const MAX_HUNG = 8;

/** The same over all addresses of an account, each keeping one record: strangers decide how many there are. */
const MAX_HUNG_IN_ALL = 4_096;

/** Records that could not be written again and are tried when something else of the account was stored. */
const RETRIES = 4;

/** @internal Of the sender chains of our own there is one row, whatever object stands for its store: two would make two messages of one key. */
export const OURS = 'ours';

const UNNAMED = 'unnamed';

/** What hangs of one account, and what could not be written again since. */
class Account {
  hung = 0;
  hungAt = 0;
  readonly failed = new Map<State, { owner: object; again: (owner: object) => void }>();
}

/** A record that nobody else has: storages may wipe what they are given. */
const copyOf = (bytes: Buffer | null): Buffer | null => bytes && Buffer.from(bytes);

/**
 * @internal A job's hold on its lane. Every answer of a storage goes through `took`: a job whose call was given up ends there, whenever the answer
 * comes. So a call needs no promise of its own, and there are four for each message.
 */
export class Turn {
  readonly lane: Lane;
  readonly owner: object;
  /** Who asked for the job, and what was given with it, for work that is the same for all. */
  readonly by: unknown;
  readonly given: unknown;
  /** From when it starts. */
  state!: State;
  /** What ends the job for its caller. */
  readonly resolve: (value: never) => void;
  readonly refuse: (error: unknown) => void;
  /** Where it stands among the jobs that run. */
  at = -1;
  /** A call to the storage is under way. */
  waits = false;
  /** Since when, on the monotonic clock; 0 until the event loop has turned once. */
  since = 0;
  /** The job is over for its caller. */
  over = false;
  /** The write that is under way where all was certain before, and its end. */
  written: Written | undefined;
  ended: PromiseLike<unknown> | undefined;
  /** What happens when another write that is under way is given up. */
  hung: (() => void) | undefined;
  /** What happens when any call of the job is given up, or fails. */
  lost: ((turn: Turn) => void) | undefined;
  /** What `lost` is about: a message that was read. */
  message: Buffer | undefined;
  opened: Opened | undefined;
  began: Said['began'];
  /** What the call means once it is answered. */
  done: (() => void) | undefined;
  /** What it holds: hardly ever more than two. */
  #held: Wipeable | undefined;
  #other: Wipeable | undefined;
  #more: Wipeable[] | undefined;

  constructor(lane: Lane, owner: object, by: unknown, given: unknown, resolve: (value: never) => void, refuse: (error: unknown) => void) {
    this.lane = lane;
    this.owner = owner;
    this.by = by;
    this.given = given;
    this.resolve = resolve;
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

  /** The job needs the bytes of a record, whoever wipes it meanwhile. */
  hold(record: Wipeable): void {
    if (this.over) throw GIVEN_UP;
    record._hold();
    if (this.#held === undefined) this.#held = record;
    else if (this.#other === undefined) this.#other = record;
    else this.#more = [...(this.#more ?? []), record];
  }

  /** The job is over. */
  end(): void {
    this.over = true;
    this.#held?._release();
    this.#other?._release();
    if (this.#more !== undefined) for (const record of this.#more) record._release();
  }

  /** The record that counts, where that is not what the storage says; null for none. */
  newest(): Buffer | null | undefined {
    const { newest } = this.state;
    return newest === undefined ? undefined : copyOf(newest);
  }

  /**
   * Who we are is known: without a scope it says, better than the object that stands for the storage, of what something is uncertain.
   */
  known(who: string): void {
    const { lane, state } = this;
    if (state.one === lane || state.who !== undefined) return;
    const found = lane.states.size > 0 ? lane.states.get(who) : undefined;
    if (found !== undefined) this.state = found;
    else if (state.newest === undefined && state.hung === 0 && state.unread.size === 0) state.who = who;
  }
}

/** @internal What an executor asks of storages. */
export abstract class Calls {
  /** Milliseconds. */
  readonly storageTimeout: number;
  /** Jobs that run. */
  protected readonly running: Turn[] = [];
  /** Accounts of which writes hang. */
  readonly #accounts = new Map<unknown, Account>();
  #looking = false;
  #timer: NodeTimer | undefined;

  constructor(storageTimeout: number) {
    this.storageTimeout = storageTimeout;
  }

  /** Ends a job. */
  protected abstract fail(turn: Turn, error: unknown): void;

  /** Runs what is nobody's on a lane. */
  protected abstract admitOwn(lane: Lane, owner: object, work: (turn: Turn) => Promise<void>): void;

  /** A read, with a deadline; the turn takes what is awaited of it. One that answers at once costs nothing, and none costs a timer of its own. */
  ask<T>(turn: Turn, call: () => T | PromiseLike<T>): T | PromiseLike<T> {
    this.asks(turn);
    return this.answered(turn, call());
  }

  /** A storage is about to be called: what it throws is its own. What it gives goes through `answered`. As `ask`, which takes a function more. */
  asks(turn: Turn): void {
    turn.waits = true;
    turn.since = 0;
    turn.written = undefined;
    turn.hung = undefined;
    turn.done = undefined;
  }

  answered<T>(turn: Turn, given: T | PromiseLike<T>): T | PromiseLike<T> {
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
   * A write, with a deadline. One that is given up may still land, after later ones: until all of them have ended and one that began after that
   * is stored, what counts is remembered, and reads give that. Once they have ended it is written again.
   */
  write(turn: Turn, write: Write): unknown {
    // The common case: nothing is uncertain, so nothing is made certain by it. The job holds what it writes.
    return this.isCertain(turn) && write.also === undefined ? this.wrote(turn, write, this.ask(turn, write.call)) : this.#writeAll(turn, write);
  }

  /** Whether a write makes nothing certain that was not. */
  isCertain({ lane, state }: Turn): boolean {
    const certain = state.newest === undefined && state.hung === 0 && state.sides.length === 0;
    return certain && lane.states.size === 0 && this.#accounts.size === 0;
  }

  /** A storage was asked for a write where all was certain. */
  wrote(turn: Turn, written: Written, ended: unknown): unknown {
    if (turn.waits) {
      turn.written = written;
      turn.ended = ended as PromiseLike<unknown>;
    }
    return ended;
  }

  #writeAll(turn: Turn, write: Write): unknown {
    this.#refuseHung(turn);
    // Before the call: what it is given it may wipe.
    const rows: Row[] = [{ turn, value: copyOf(write.value), fallback: write.fallback, refused: write.refused, again: write.again }];
    if (write.also !== undefined) rows.push(...write.also);
    const matters = this.#accounts.size > 0 || rows.some((row) => row.turn.lane.states.size > 0);
    const certain = rows.map(({ turn: { state } }) => state.hung === 0);
    // Until it is known to be stored; if it fails, that is all that is known.
    for (const row of rows) if (row.turn.state.newest !== undefined) row.turn.state.newest = copyOf(refusedOf(row));
    const ended = this.ask(turn, write.call);
    const stored = () => {
      rows.forEach((row, at) => this.#stored(row, certain[at] === true));
      this.#retry(turn);
    };
    if (turn.waits) {
      turn.hung = () => {
        if (write.side !== undefined && turn.state.sides.length < MAX_HUNG) turn.state.sides = [...turn.state.sides, write.side];
        for (const row of rows) this.#uncertain(row, ended as PromiseLike<unknown>);
      };
      if (matters) turn.done = stored;
    } else if (matters) {
      stored();
    }
    return ended;
  }

  /** A row is stored; `certain` if nothing hung when its write began. */
  #stored({ turn, value, again }: Row, certain: boolean): void {
    const { state, lane, owner } = turn;
    // Of objects that were made anew for a call it is not known whether they stand for one storage: the later one is right.
    if (state.who === undefined && state.one !== lane) {
      for (const other of [...lane.states.values()]) {
        if (other === state || other.who !== undefined) continue;
        other.newest = undefined;
        other.keep();
      }
    }
    if (state.newest === undefined) return;
    if (certain && state.hung === 0 && state.sides.length === 0) {
      this.#certain(turn);
      return;
    }
    state.newest = value;
    if (state.hung === 0) this.#again(state, owner, again);
  }

  #certain({ state, owner }: Turn): void {
    state.newest = undefined;
    state.keep();
    this.#mended(state, owner);
  }

  #mended(state: State, owner: object): void {
    const whose = accountOf(state, owner);
    const account = this.#accounts.get(whose);
    if (account === undefined) return;
    account.failed.delete(state);
    if (account.hung === 0 && account.failed.size === 0) this.#accounts.delete(whose);
  }

  /** The storage of an account answers: what could not be written again is tried. */
  #retry({ state, owner }: Turn): void {
    const account = this.#accounts.size > 0 ? this.#accounts.get(accountOf(state, owner)) : undefined;
    if (account === undefined) return;
    // Stores of sender keys do not say whose they are: one is tried for itself only.
    const its = [...account.failed].filter(([failed, one]) => one.owner === owner || accountOf(failed, one.owner) !== UNNAMED);
    for (const [failed, { again }] of its.slice(0, RETRIES)) {
      account.failed.delete(failed);
      again(owner);
    }
  }

  /** Whether it answers again is seen by trying, now and then. */
  #refuseHung({ state, owner, lane }: Turn): void {
    if (state.hung === 0 && this.#accounts.size === 0) return;
    const account = this.#accounts.get(accountOf(state, owner));
    const all = account !== undefined && account.hung + account.failed.size >= MAX_HUNG_IN_ALL ? account.hungAt : undefined;
    const full = state.hung >= MAX_HUNG ? state.hungAt : all;
    if (full !== undefined && performance.now() - full < 2 * this.storageTimeout) {
      throw new StorageError(`the storage does not answer for ${lane.address}`, { code: 'STORAGE_TIMEOUT', retryable: true });
    }
  }

  #account(whose: unknown): Account {
    const account = this.#accounts.get(whose) ?? new Account();
    this.#accounts.set(whose, account);
    return account;
  }

  /** A call that may be a write is given up. */
  #gaveUp(turn: Turn): void {
    const { written, ended } = turn;
    if (written !== undefined && ended !== undefined) {
      if (written.side !== undefined) turn.state.sides = [written.side];
      this.#uncertain({ turn, ...written }, ended);
    }
    turn.hung?.();
  }

  #uncertain(row: Row, ended: PromiseLike<unknown>): void {
    const { state, owner } = row.turn;
    const whose = accountOf(state, owner);
    const account = this.#account(whose);
    state.newest = copyOf(fallbackOf(row));
    state.hung += 1;
    account.hung += 1;
    state.hungAt = account.hungAt = performance.now();
    state.keep();
    const settled = () => {
      state.hung -= 1;
      account.hung -= 1;
      if (state.hung > 0) return;
      if (state.newest === undefined) {
        this.#mended(state, owner);
        state.keep();
        release(state.lane);
      } else {
        // Now, and not only with the next call: the process may end before one comes.
        this.#again(state, owner, row.again);
      }
    };
    void ended.then(settled, settled);
  }

  /** Writes the newest again. If that fails, whoever comes next at the address does, or whoever of the account stores something. */
  #again(state: State, owner: object, again: Again): void {
    this.#account(accountOf(state, owner)).failed.set(state, { owner, again: (by) => this.#again(state, by, again) });
    const work = async (turn: Turn): Promise<void> => {
      // The address turned out to be another one meanwhile.
      if (turn.lane !== state.lane) return this.#again(state, owner, again);
      turn.state = state;
      const { newest, sides } = state;
      if (state.hung > 0) return;
      if (newest === undefined) return this.#mended(state, owner);
      // A scope says for good whose a storage is. Without one it may have changed hands, and what was of the one before is not for the next.
      const whose = state.one === state.lane || state.who === undefined ? undefined : again.whose;
      if (whose !== undefined && turn.took(await this.ask(turn, () => whose(owner))) !== state.who) {
        state.sides = [];
        return this.#certain(turn);
      }
      state.sides = [];
      try {
        turn.took(await this.write(turn, { value: newest, again, call: () => again.write(owner, copyOf(newest), sides) }));
      } catch (thrown) {
        state.sides = [...sides, ...state.sides].slice(-MAX_HUNG);
        throw thrown;
      }
    };
    this.admitOwn(state.lane, owner, work);
  }

  /** Nothing is watched over any more. */
  protected rest(): void {
    if (this.#timer === undefined || this.running.length > 0) return;
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  /**
   * One timer watches over all calls to storages. It keeps the process alive while one is under way, which is looked at once in each turn
   * of the event loop: most answers are there before that.
   */
  readonly #look = (): void => {
    this.#looking = false;
    const now = performance.now();
    let oldest = Number.POSITIVE_INFINITY;
    for (const turn of this.running) {
      if (!turn.waits) continue;
      if (turn.since === 0) turn.since = now;
      oldest = Math.min(oldest, turn.since);
    }
    if (oldest === Number.POSITIVE_INFINITY || this.#timer !== undefined) return;
    const due = Math.max(now + 1, oldest + this.storageTimeout);
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#excuse(due);
      // Answers may be there that nobody has read: they are read first.
      setImmediate(() => {
        this.#expire();
        this.#look();
      });
    }, due - now);
  };

  /** After a pause of the whole process, by its own work or from outside, storages get half of their time anew. */
  #excuse(due: number): void {
    const now = performance.now();
    if (now - due < this.storageTimeout / 4) return;
    for (const turn of this.running) if (turn.since !== 0) turn.since = Math.max(turn.since, now - this.storageTimeout / 2);
  }

  #expire(): void {
    const now = performance.now();
    // Each that ends makes room for others.
    for (const turn of [...this.running]) {
      if (turn.over || !turn.waits || turn.since === 0 || now - turn.since < this.storageTimeout) continue;
      this.#gaveUp(turn);
      turn.lost?.(turn);
      this.fail(
        turn,
        new StorageError(`the storage did not answer within ${this.storageTimeout} ms for ${turn.lane.address}`, {
          code: 'STORAGE_TIMEOUT',
          retryable: true,
        }),
      );
    }
  }
}

function fallbackOf({ fallback, value }: Row): Buffer | null {
  return fallback === undefined ? value : fallback;
}

function refusedOf(row: Row): Buffer | null {
  return row.refused === undefined ? fallbackOf(row) : row.refused;
}

/** Whose writes hang: those of a scope, of an identity, or of stores that do not say, or can not any more. */
function accountOf({ who }: State, owner: object): unknown {
  const named = who === undefined || who === OURS ? UNNAMED : who;
  try {
    return scopeOf(owner) ?? named;
  } catch {
    return named;
  }
}

/** @internal What a storage threw. */
export function storageFailed(cause: unknown): Error {
  if (isSignalError(cause)) return cause;
  const words = wordsOf(cause);
  return new StorageError(`the storage failed: ${words}`, { code: 'STORAGE_FAILED', retryable: true, cause });
}
