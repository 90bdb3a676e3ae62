/**
 * What is known of addresses in the whole process: who works at one, who waits, and what is not certain there. It is shared by all executors, and by
 * all copies of this package, because an application and a library of its may each have one, over the same rows.
 */

import { invalid } from './errors.js';

/** @internal A call that waits for its lane. */
export interface Job {
  run: () => void;
  refuse: (error: Error) => void;
  /** Tells the executor that the job came to: its lane is free. */
  offer: (lane: Lane) => void;
}

/** @internal What goes with a record in one write: it is done again with it, and is no reason for it to fail. */
export interface Side {
  identity?: { name: string; key: Buffer };
  removePreKey?: number;
}

/** @internal A message that was read and whose save is not certain. */
export interface Said {
  plaintext: Buffer;
  /** Whose it is, and the one-time prekey that it uses up. */
  identities: readonly Buffer[];
  removePrekey?: number | undefined;
  /** Those that were read together are kept together, and go together. */
  batch?: object;
  /** Of a handshake: what it is known by, and the prekeys that it was read with, which may be gone by now. */
  began?: { baseKey: Buffer; prekeys: Buffer };
}

/** Messages, or batches, of one lane that are kept so, their addresses, and the bytes of all: the oldest go. */
const MAX_UNREAD = 8;
const MAX_UNREAD_LANES = 1_024;
const MAX_UNREAD_BYTES = 16 * 1_024 * 1_024;

/** What keeping a message takes beside its text: batches may have many that say nothing. */
const UNREAD_OVERHEAD = 512;

/** Lanes that failed and rest are remembered up to here. */
const MAX_RESTING = 1_024;

/** Lanes that have nothing to do are kept up to here, for most are used again: to make one costs as much as what a message costs it. */
const MAX_IDLE = 1_024;

/** Of what most have none of: one that is empty is never written to. */
const NO_SIDES: readonly Side[] = [];
const NONE_UNREAD = new Map<string, Said>();

/** @internal What is not certain of one account, or of one object that stands for a storage, at an address. Records are bytes; null is none. */
export class State {
  /** Another one once the address turns out to be another one. */
  lane: Lane;
  /** The lane for a scope, or the object that stands for the storage. */
  one: unknown;
  /** Who we are, where that says it better: objects are often made anew for each call. */
  who: string | undefined;
  /** Writes that were given up and have not ended, and when the last one was: what a storage holds is uncertain until they do. */
  hung = 0;
  hungAt = 0;
  /** The record that counts while it is uncertain what the storage holds. */
  newest: Buffer | null | undefined;
  /** What was to be done with records whose write hung. */
  sides: readonly Side[] = NO_SIDES;
  /** Messages that were not handed over, by their hash, until they come again. */
  unread = NONE_UNREAD;

  constructor(lane: Lane, one: unknown) {
    this.lane = lane;
    this.one = one;
  }

  get key(): unknown {
    return this.who ?? this.one;
  }

  /** The lane remembers it while there is something to remember. */
  keep(): void {
    if (this.newest !== undefined || this.unread.size > 0 || this.hung > 0) this.lane.states.set(this.key, this);
    else this.lane.states.delete(this.key);
  }
}

/** @internal The order of what happens at an address. */
export class Lane {
  readonly address: string;
  /** Where it is kept. */
  readonly key: string;
  readonly home: Map<string, Lane>;
  readonly jobs: Job[] = [];
  /** Jobs that wait for room. */
  waiting = 0;
  busy = false;
  failures = 0;
  paused = false;
  /** It stands among those of an executor that have a job that may start. */
  ready = false;
  readonly states = new Map<unknown, State>();

  constructor(address: string, key: string, home: Map<string, Lane>) {
    this.address = address;
    this.key = key;
    this.home = home;
  }
}

/** Lanes by where they are. */
interface Lanes {
  /** Of storages without a scope, and with one that is a text. */
  readonly named: Map<string, Lane>;
  readonly scopes: WeakMap<object, Map<string, Lane>>;
}

interface Registry {
  /** Of addresses under which rows are kept. */
  readonly rows: Lanes;
  /** Of addresses as they were given, where a storage says under which one it keeps them. */
  readonly given: Lanes;
  /** Where messages are unread, the oldest first, and their bytes. */
  readonly unread: Set<State>;
  bytes: number;
  /** Lanes that failed and have nothing to do. */
  readonly resting: Set<Lane>;
  /** Lanes that had nothing to do and did not fail. */
  readonly idle: Set<Lane>;
}

/** @internal What the shapes above are is a contract between versions of this package: who changes one changes the number. */
export const LANES = 'stvor.libsignal.lanes.3';

const SHARED = Symbol.for(LANES);
const shared = globalThis as unknown as { [SHARED]?: Registry };
if (shared[SHARED] === undefined) {
  const lanes = (): Lanes => ({ named: new Map(), scopes: new WeakMap() });
  const value: Registry = { rows: lanes(), given: lanes(), unread: new Set(), bytes: 0, resting: new Set(), idle: new Set() };
  Object.defineProperty(shared, SHARED, { value });
}
const registry = shared[SHARED] as Registry;

/** @internal What a storage says it is of. */
export function scopeOf(owner: object): string | object | undefined {
  const { scope } = owner as { scope?: unknown };
  if (scope === undefined || scope === null) return undefined;
  if (typeof scope === 'string' || typeof scope === 'object') return scope;
  throw invalid('the scope of a storage is a text or an object');
}

/**
 * @internal Storages are often made anew for each call, so without a scope an address is an order of its own, whatever object stands for the storage.
 * Accounts that share a process and a peer then wait for each other, as in libsignal-node; a scope parts them.
 */
export function laneOf(owner: object, address: string, lanes: Lanes = registry.rows): Lane {
  const { home, key } = placeOf(owner, address, lanes);
  const known = home.get(key);
  if (known !== undefined) return known;
  const lane = new Lane(address, key, home);
  home.set(key, lane);
  return lane;
}

/**
 * @internal The order of calls for an address as it was given: its storage is asked under which one it keeps it. Not the order of a row: who holds this
 * one waits for that one, and nobody the other way round.
 */
export function givenLaneOf(owner: object, address: string): Lane {
  return laneOf(owner, address, registry.given);
}

function placeOf(owner: object, address: string, { named, scopes }: Lanes): { home: Map<string, Lane>; key: string } {
  const scope = scopeOf(owner);
  if (scope === undefined) return { home: named, key: address };
  if (typeof scope === 'string') return { home: named, key: `${scope}\0${address}` };
  const home = scopes.get(scope) ?? new Map<string, Lane>();
  scopes.set(scope, home);
  return { home, key: address };
}

/** @internal Whether something, of whomever, is uncertain at an address. */
export function isUncertain(owner: object, address: string): boolean {
  const { home, key } = placeOf(owner, address, registry.rows);
  return (home.get(key)?.states.size ?? 0) > 0;
}

/** @internal What is uncertain at an address is so at the one that it turned out to be, unless something is there. Both are held. */
export function moveState(state: State, to: State): void {
  const { lane: before, key } = state;
  if (before.states.get(key) !== state || to.lane.states.get(to.key) === to) return;
  before.states.delete(key);
  if (state.one === before) state.one = to.lane;
  state.lane = to.lane;
  state.keep();
}

/** @internal Within a scope all objects stand for one storage. */
export function stateOf(lane: Lane, owner: object): State {
  const one = scopeOf(owner) === undefined ? owner : lane;
  return (lane.states.size > 0 ? lane.states.get(one) : undefined) ?? new State(lane, one);
}

/** @internal The lane is used; whoever forgot it meanwhile finds it again. */
export function hold(lane: Lane): void {
  if (lane.home.get(lane.key) === undefined) lane.home.set(lane.key, lane);
}

/** @internal Forgets lanes at which there is nothing to do: the oldest, of those that failed the oldest, and one at which nothing was ever done. */
export function release(lane: Lane, worked = true): void {
  const { resting, idle } = registry;
  if (isIdle(lane)) {
    if (resting.size > 0) resting.delete(lane);
    if (lane.failures === 0) {
      if (!worked && !idle.has(lane)) return forgetLane(lane);
      idle.add(lane);
      if (idle.size > MAX_IDLE) forgetOldest(idle);
      return;
    }
    resting.add(lane);
  }
  if (resting.size <= MAX_RESTING) return;
  for (const oldest of resting) {
    resting.delete(oldest);
    if (isIdle(oldest)) {
      oldest.failures = 0;
      forgetLane(oldest);
    }
    if (resting.size <= MAX_RESTING) return;
  }
}

/** One that is in use again, or rests, is not forgotten: it comes back when it has nothing to do. */
function forgetOldest(idle: Set<Lane>): void {
  for (const oldest of idle) {
    idle.delete(oldest);
    if (isIdle(oldest) && oldest.failures === 0) forgetLane(oldest);
    return;
  }
}

/** The address may have another one by now. */
function forgetLane(lane: Lane): void {
  if (lane.home.get(lane.key) === lane) lane.home.delete(lane.key);
}

function isIdle(lane: Lane): boolean {
  return !lane.busy && !lane.paused && !lane.ready && lane.jobs.length === 0 && lane.waiting === 0 && lane.states.size === 0;
}

function sizeOf({ plaintext, began }: Said): number {
  return UNREAD_OVERHEAD + plaintext.length + (began?.prekeys.length ?? 0);
}

function drop(state: State, message: string): void {
  const said = state.unread.get(message);
  if (said === undefined) return;
  registry.bytes -= sizeOf(said);
  state.unread.delete(message);
}

function dropAll(state: State): void {
  for (const message of [...state.unread.keys()]) drop(state, message);
  registry.unread.delete(state);
  state.keep();
}

function dropOldest(state: State): void {
  if (state.unread.size <= MAX_UNREAD) return;
  const together = new Set<object>();
  for (const said of state.unread.values()) together.add(said.batch ?? said);
  const gone = new Set([...together].slice(0, Math.max(0, together.size - MAX_UNREAD)));
  for (const [message, said] of [...state.unread]) if (gone.has(said.batch ?? said)) drop(state, message);
}

/** @internal Keeps what messages say until they come again: whether their save landed is not certain, and their keys may be used up. */
export function keepUnread(state: State, messages: Iterable<readonly [string, Said]>): void {
  for (const [message, said] of messages) {
    drop(state, message);
    if (state.unread.size === 0) state.unread = new Map();
    state.unread.set(message, said);
    registry.bytes += sizeOf(said);
  }
  dropOldest(state);
  state.keep();
  registry.unread.delete(state);
  registry.unread.add(state);
  for (const oldest of registry.unread) {
    if (registry.unread.size <= MAX_UNREAD_LANES && registry.bytes <= MAX_UNREAD_BYTES) break;
    dropAll(oldest);
    release(oldest.lane);
  }
}

/** @internal It was handed over, or is of no use any more. */
export function handed(state: State, message: string): void {
  drop(state, message);
  if (state.unread.size === 0) registry.unread.delete(state);
  state.keep();
}

/** @internal Nothing of it is of use any more. */
export function forget(state: State): void {
  state.sides = [];
  dropAll(state);
}

/** @internal What is unread at one address is so at another one now. */
export function moveUnread(from: State, to: State): void {
  const messages = [...from.unread];
  if (messages.length === 0) return;
  dropAll(from);
  keepUnread(to, messages);
}
