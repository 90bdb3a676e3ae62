/** Messages from the native half, for handlers and for iterators. */

import { contentFrom } from './check.js';
import { failure } from './errors.js';
import { Group } from './groups.js';
import type { Alive } from './alive.js';
import type { NativeClient, NativeMessage, NativeStream } from './native.js';
import type { Content, Message } from './types.js';

/** A handler: of exactly two parameters it gets sender and content, otherwise the message. */
export type AnyHandler = ((message: Message) => unknown) | ((from: string, content: Content) => unknown);

function messageOf(raw: NativeMessage, client: NativeClient): Message {
  return {
    id: raw.id,
    ...(raw.group === undefined ? {} : { groupId: raw.group, group: new Group(client, raw.group) }),
    senderId: raw.sender,
    deviceId: raw.device,
    content: contentFrom(raw.content),
    kind: raw.content.kind as Message['kind'],
    timestamp: new Date(raw.sentAt),
    receivedAt: new Date(raw.receivedAt),
    verified: raw.verified,
  };
}

interface AsyncContext {
  getStore(): unknown;
  run<T>(store: unknown, act: () => T): T;
}

/** Which handlers the present call comes from. */
const inside: AsyncContext = new (require('node:async_hooks').AsyncLocalStorage)();

/** Every message to every handler, one message after the other. */
export class Handlers {
  readonly #handlers = new Set<AnyHandler>();
  readonly #report: (error: unknown, message: Message | undefined) => void;
  #client: NativeClient | undefined;
  #stream: NativeStream | undefined;
  #queue: NativeMessage[] = [];
  #running: Promise<void> | undefined;
  #ending: Promise<void> | undefined;

  constructor(report: (error: unknown, message: Message | undefined) => void) {
    this.#report = report;
  }

  get size(): number {
    return this.#handlers.size;
  }

  add(handler: AnyHandler, client: NativeClient): void {
    this.#handlers.add(handler);
    this.#client = client;
    this.#stream ??= client.stream((batch) => this.#deliver(batch));
  }

  /** Without handlers nothing is taken any more. */
  remove(handler: AnyHandler): void {
    this.#handlers.delete(handler);
    if (this.#handlers.size === 0) void this.end().catch(() => {});
  }

  /** Whether the caller runs inside a handler of these. */
  isInside(): boolean {
    return inside.getStore() === this;
  }

  /** Takes nothing more; resolves when the handler that runs is done and its message is settled. What was not handled goes back. */
  end(): Promise<void> {
    const stream = this.#stream;
    if (!stream) return this.#ending ?? Promise.resolve();
    this.#stream = undefined;
    this.#queue = [];
    this.#ending = (this.#running ?? Promise.resolve()).then(() => stream.end());
    return this.#ending;
  }

  #deliver(batch: NativeMessage[]): void {
    this.#queue.push(...batch);
    this.#start();
  }

  #start(): void {
    this.#running ??= inside
      // Not at once: a handler that ends these has to find them running.
      .run(this, () => Promise.resolve().then(() => this.#run()))
      .then(() => {
        this.#running = undefined;
        // A new stream may have filled the queue while the last handler of the old one was busy.
        if (this.#queue.length > 0 && this.#stream) this.#start();
      });
  }

  async #run(): Promise<void> {
    const stream = this.#stream;
    let consumed = 0;
    while (this.#queue.length > 0 && this.#stream === stream && stream) {
      const raw = this.#queue.shift() as NativeMessage;
      let message: Message | undefined;
      let done = true;
      try {
        message = messageOf(raw, this.#client as NativeClient);
        for (const handler of [...this.#handlers]) {
          const answer: unknown =
            handler.length === 2
              ? (handler as (from: string, content: Content) => unknown)(message.senderId, message.content)
              : (handler as (message: Message) => unknown)(message);
          // Handlers that answer at once are not held up.
          if (isThenable(answer)) {
            if (consumed > 0) stream.settled(consumed, true);
            consumed = 0;
            await answer;
          }
        }
      } catch (error) {
        done = false;
        this.#report(error, message);
      }
      if (done) {
        consumed += 1;
      } else {
        if (consumed > 0) stream.settled(consumed, true);
        consumed = 0;
        stream.settled(1, false);
      }
    }
    if (consumed > 0) stream?.settled(consumed, true);
  }
}

function isThenable(value: unknown): value is PromiseLike<unknown> {
  return typeof value === 'object' && value !== null && typeof (value as { then?: unknown }).then === 'function';
}

type Waiter = { resolve(result: IteratorResult<Message, undefined>): void; reject(error: unknown): void };

/** `for await (const message of client.messages())`. A message is consumed when the next one is asked for. */
export class MessageIterator implements AsyncIterableIterator<Message> {
  readonly #alive: Alive;
  readonly #over: (iterator: MessageIterator) => void;
  readonly #client: NativeClient;
  readonly #stream: NativeStream;
  #ready: NativeMessage[] = [];
  #waiters: Waiter[] = [];
  #given = 0;
  #ended = false;
  #failure: unknown;
  #returned: Promise<void> = Promise.resolve();

  constructor(client: NativeClient, alive: Alive, over: (iterator: MessageIterator) => void) {
    this.#alive = alive;
    this.#client = client;
    this.#over = over;
    this.#stream = client.stream((batch) => this.#deliver(batch));
    alive.hold();
  }

  next(): Promise<IteratorResult<Message, undefined>> {
    if (this.#failure !== undefined) {
      const failed = this.#failure;
      this.#failure = undefined;
      return this.#returned.then(() => Promise.reject(failed));
    }
    if (this.#given > 0) this.#stream.settled(this.#given, true);
    this.#given = 0;
    return new Promise((resolve, reject) => {
      this.#waiters.push({ resolve, reject });
      this.#serve();
    });
  }

  async return(): Promise<IteratorResult<Message, undefined>> {
    await this.end(true);
    return { done: true, value: undefined };
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  /** Ends the iteration; `consumed`: what was given out is done with. */
  async end(consumed: boolean): Promise<void> {
    if (this.#ended) return;
    this.#ended = true;
    this.#alive.release();
    this.#over(this);
    this.#ready = [];
    if (consumed && this.#given > 0) this.#stream.settled(this.#given, true);
    this.#given = 0;
    this.#serve();
    await this.#stream.end();
  }

  /** Ends the iteration with an error, which whoever waits gets, or who asks next. What was given out is not consumed. */
  fail(error: unknown): void {
    if (this.#ended) return;
    const waiter = this.#waiters.shift();
    if (!waiter) this.#failure = failure(error);
    // Told when what was not consumed went back, so that whoever reads next gets it in order.
    this.#returned = this.end(false).catch(() => {});
    if (waiter) void this.#returned.then(() => waiter.reject(failure(error)));
  }

  #deliver(batch: NativeMessage[]): void {
    if (batch.length === 0) {
      void this.end(true).catch(() => {});
      return;
    }
    this.#ready.push(...batch);
    this.#serve();
  }

  #serve(): void {
    while (this.#waiters.length > 0 && (this.#ready.length > 0 || this.#ended)) {
      const waiter = this.#waiters.shift() as Waiter;
      const raw = this.#ready.shift();
      if (raw === undefined) {
        waiter.resolve({ done: true, value: undefined });
      } else {
        this.#given += 1;
        waiter.resolve({ done: false, value: messageOf(raw, this.#client) });
      }
    }
  }
}
