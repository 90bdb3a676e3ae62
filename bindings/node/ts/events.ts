/** Events of a client, and who listens. */

import { invalid, textOf, warn } from './errors.js';

export type Listener = (event: any) => unknown;

const EVENTS = new Set([
  'connected', 'reconnecting', 'offline', 'catchingUp', 'caughtUp', 'superseded', 'relayDraining', 'identityChanged',
  'identityRotated', 'identitySuperseded', 'identityForked', 'suiteMismatch',
  'messageUndecryptable', 'repaired', 'receipt', 'sessionStarted', 'prekeysLow', 'prekeysUploaded', 'rollbackDetected',
  'sendDelayed', 'deliveryFailed', 'keyfileCreated', 'relayNotDurable', 'storeFailing', 'lagged', 'handlerFailed', 'cloneDetected',
  'receiving', 'developmentMode', 'groupJoined', 'groupChanged', 'groupLeft', 'groupMemberUnknown', 'pressure', 'sendRejected',
  'rollbackRecovered', 'counterForged', 'mailLost', 'senderKeyMissing', 'groupReceipt', 'conversationFailed',
  'conversationRevived', 'taskFailed', 'storeWeakened', 'queuePressure', 'callsRejected', 'closed',
]);

/** What waits for the first who listens: the newest of each. */
const NEWEST = new Set([
  'keyfileCreated', 'relayNotDurable', 'developmentMode', 'rollbackDetected', 'rollbackRecovered', 'counterForged', 'mailLost', 'cloneDetected', 'storeWeakened',
]);

/** What is said of somebody's identity waits, too: each of it, and if it is too much the newest, those of other suites least. */
const OF_IDENTITY = new Set(['identityChanged', 'identityRotated', 'identitySuperseded', 'identityForked', 'suiteMismatch']);
const MOST_OF_IDENTITY = 256;

/** Refuses what is no event, and what is no listener. */
export function named(event: unknown, listener: unknown): void {
  if (typeof event !== 'string') throw invalid('the name of an event is a string');
  // `once` and `on` of node:events listen to it beside what they are asked for; it never comes.
  if (event === 'message') throw invalid('messages are no event: they come by client.onMessage(handler) or client.messages()');
  if (event !== 'error' && !EVENTS.has(event)) throw invalid(`there is no event "${event.slice(0, 64)}"; there are ${[...EVENTS].join(', ')}`);
  if (typeof listener !== 'function') throw invalid('a listener is a function');
}

/** Who listens to what. */
export class Listeners {
  readonly #listeners = new Map<string, Set<Listener>>();
  /** What `once` was given, and what was put on in its place. */
  readonly #wrapped = new WeakMap<Listener, Map<string, Listener>>();
  #early: { name: string; fields: unknown }[] = [];

  /** Calls `listener` whenever the event happens, and with what happened before anybody listened. */
  add(event: string, listener: Listener): void {
    let listeners = this.#listeners.get(event);
    if (!listeners) this.#listeners.set(event, (listeners = new Set()));
    listeners.add(listener);
    const early = this.#early.filter((one) => one.name === event);
    this.#early = this.#early.filter((one) => one.name !== event);
    // What a listener for one event only leaves waits for the next one.
    if (early.length > 0) void Promise.resolve().then(() => early.forEach((one) => this.tell(one.name, one.fields)));
  }

  /** The same for one event only. */
  addOnce(event: string, listener: Listener): void {
    const wrapped = this.#wrapped.get(listener) ?? new Map<string, Listener>();
    const own: Listener = (happened) => {
      this.#listeners.get(event)?.delete(own);
      if (wrapped.get(event) === own) wrapped.delete(event);
      return listener(happened);
    };
    this.#wrapped.set(listener, wrapped.set(event, own));
    this.add(event, own);
  }

  /** Takes a listener off, however it was put on. */
  remove(event: string, listener: Listener): void {
    const listeners = this.#listeners.get(event);
    listeners?.delete(listener);
    const once = this.#wrapped.get(listener)?.get(event);
    if (once !== undefined) listeners?.delete(once);
  }

  /** Tells of an event. What somebody should know waits for the first who listens to it. */
  tell(name: string, event: unknown): void {
    if (this.emit(name, event)) return;
    if (NEWEST.has(name)) this.#keep({ name, fields: event }, (other) => other.name === name);
    if (!OF_IDENTITY.has(name)) return;
    const text = JSON.stringify(event);
    this.#keep({ name, fields: event }, (other) => other.name === name && JSON.stringify(other.fields) === text);
    const kept = this.#early.filter((one) => OF_IDENTITY.has(one.name));
    if (kept.length > MOST_OF_IDENTITY) {
      // Anybody can have many users of another suite write to us: they push out nothing that has to be judged.
      const least = kept.find((one) => one.name === 'suiteMismatch') ?? kept[0];
      this.#early.splice(this.#early.indexOf(least), 1);
      this.emit('lagged', { missed: 1 });
    }
  }

  /** Keeps an event in the place of others. */
  #keep(event: { name: string; fields: unknown }, replaces: (other: { name: string; fields: unknown }) => boolean): void {
    this.#early = this.#early.filter((other) => !replaces(other));
    this.#early.push(event);
  }

  /** Tells of an event; whether anybody listened. */
  emit(name: string, event: unknown): boolean {
    const listeners = this.#listeners.get(name);
    if (!listeners || listeners.size === 0) return false;
    for (const listener of [...listeners]) {
      try {
        const answer: any = listener(event);
        if (typeof answer?.then === 'function') answer.then(undefined, (error: unknown) => this.#failed(name, error));
      } catch (error) {
        this.#failed(name, error);
      }
    }
    return true;
  }

  #failed(name: string, error: unknown): void {
    if (name === 'handlerFailed' || !this.emit('handlerFailed', { error, message: undefined })) {
      warn(`a listener of "${name}" failed: ${textOf(error)}`, 'STVOR_LISTENER_FAILED');
    }
  }
}
