/** Messages from the native half, for handlers and for iterators. */

import { contentFrom, patient } from './check.js';
import { awaited, failure } from './errors.js';
import { Group } from './groups.js';
import { OURS } from './made.js';
import type { Alive } from './alive.js';
import type { NativeClient, NativeMessage, NativeStream } from './native.js';
import type { Content, Message } from './types.js';

/** A handler: of exactly two parameters it gets sender and content, otherwise the message. */
export type AnyHandler = ((message: Message) => unknown) | ((from: string, content: Content) => unknown);

function messageOf(raw: NativeMessage, client: NativeClient): Message {
  return {
    id: raw.id,
    ...(raw.group === undefined ? {} : { groupId: raw.group, group: new Group(client, raw.group, OURS) }),
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

/** A call of a handler: of which handlers, and whether it goes on. What a handler starts and leaves behind is not inside any more. */
interface Call {
  readonly of: Handlers;
  active: boolean;
}

const inside: AsyncContext = new (require('node:async_hooks').AsyncLocalStorage)();

/** What ends and has not given back what it had not got to: whoever takes next waits for it, for that is what comes first. */
export class Endings {
  readonly #open = new Set<Promise<void>>();

  /** Keeps `ending` in mind until it is over. */
  add(ending: Promise<void>): Promise<void> {
    const over = ending.then(() => {}, () => {}).then(() => void this.#open.delete(over));
    this.#open.add(over);
    return ending;
  }

  /** Calls `act` when nothing ends any more: now, if nothing does. */
  soon(act: () => void): void {
    if (this.#open.size === 0) act();
    else void Promise.all(this.#open).then(() => act());
  }
}

/** What handlers take from one stream, from the first handler to the last that goes. */
interface Feed {
  readonly stream: NativeStream;
  readonly queue: NativeMessage[];
  /** Messages that were begun and are not settled. */
  begun: number;
  running?: Promise<void>;
  ended: boolean;
}

/** Every message to every handler, one message after the other. */
export class Handlers {
  readonly #handlers = new Set<AnyHandler>();
  readonly #report: (error: unknown, message: Message | undefined) => void;
  readonly #endings: Endings;
  #feed: Feed | undefined;
  /** The last one, while it ends. */
  #ending: Promise<void> = Promise.resolve();
  readonly #patience: number;
  #opening = false;
  #closed = false;

  constructor(how: { endings: Endings; patience: number; report: (error: unknown, message: Message | undefined) => void }) {
    this.#endings = how.endings;
    this.#patience = how.patience;
    this.#report = how.report;
  }

  get size(): number {
    return this.#handlers.size;
  }

  add(handler: AnyHandler, client: NativeClient): void {
    this.#handlers.add(handler);
    if (this.#feed !== undefined || this.#opening) return;
    this.#opening = true;
    let failed: { error: unknown } | undefined;
    this.#endings.soon(() => {
      this.#opening = false;
      if (this.#handlers.size === 0 || this.#feed !== undefined || this.#closed) return;
      try {
        this.#open(client);
      } catch (error) {
        // A client that closed meanwhile gives nothing to anybody.
        failed = { error };
      }
    });
    if (failed) throw failed.error;
  }

  /** Without handlers nothing is taken any more. */
  remove(handler: AnyHandler): void {
    this.#handlers.delete(handler);
    if (this.#handlers.size === 0) void this.#end().catch(() => {});
  }

  /** Whether the caller runs inside a handler of these. */
  isInside(): boolean {
    const call = inside.getStore() as Call | undefined;
    return call?.of === this && call.active;
  }

  /** Ends them for good: the handler that runs has so many milliseconds. */
  close(patience: number): Promise<void> {
    this.#closed = true;
    return this.#end(patience);
  }

  /**
   * Takes nothing more, and gives back what was not begun. Resolves when the handler that runs is done and its message is settled, at the latest
   * after the patience: then its message counts as not handled.
   */
  #end(patience = this.#patience): Promise<void> {
    const feed = this.#feed;
    if (feed !== undefined) {
      this.#feed = undefined;
      feed.ended = true;
      feed.queue.length = 0;
      const stopped = this.#endings.add(feed.stream.stop(feed.begun));
      this.#ending = stopped.then(() => patient(feed.running, patience)).then(() => feed.stream.end());
    }
    return this.#ending;
  }

  #open(client: NativeClient): void {
    const queue: NativeMessage[] = [];
    // What is on its way when a stream ends is offered again, and belongs to none after it.
    const stream = client.stream((batch) => {
      if (feed.ended) return;
      queue.push(...batch);
      this.#start(feed, client);
    });
    const feed: Feed = { stream, queue, begun: 0, ended: false };
    this.#feed = feed;
  }

  #start(feed: Feed, client: NativeClient): void {
    // Not at once: a handler that ends these has to find them running.
    feed.running ??= Promise.resolve()
      .then(() => this.#run(feed, client))
      .then(() => {
        feed.running = undefined;
        if (feed.queue.length > 0) this.#start(feed, client);
      });
  }

  async #run(feed: Feed, client: NativeClient): Promise<void> {
    const { stream, queue } = feed;
    let consumed = 0;
    const settle = () => {
      if (consumed > 0) stream.settled(consumed, true);
      feed.begun -= consumed;
      consumed = 0;
    };
    for (let raw = queue.shift(); raw !== undefined; raw = queue.shift()) {
      feed.begun += 1;
      const call: Call = { of: this, active: true };
      let message: Message | undefined;
      let done = true;
      const failed = (error: unknown) => {
        done = false;
        this.#report(error, message);
      };
      try {
        message = messageOf(raw, client);
      } catch (error) {
        failed(error);
      }
      // One that fails keeps the message from none of the others.
      for (const handler of message === undefined ? [] : [...this.#handlers]) {
        try {
          const answer = inside.run(call, () => called(handler, message as Message));
          // Handlers that answer at once are not held up.
          if (isThenable(answer)) {
            settle();
            await answer;
          }
        } catch (error) {
          failed(error);
        }
      }
      call.active = false;
      if (done) {
        consumed += 1;
      } else {
        settle();
        stream.settled(1, false);
        feed.begun -= 1;
      }
    }
    settle();
  }
}

function called(handler: AnyHandler, message: Message): unknown {
  return handler.length === 2
    ? (handler as (from: string, content: Content) => unknown)(message.senderId, message.content)
    : (handler as (message: Message) => unknown)(message);
}

function isThenable(value: unknown): value is PromiseLike<unknown> {
  return typeof value === 'object' && value !== null && typeof (value as { then?: unknown }).then === 'function';
}

type Waiter = { resolve(result: IteratorResult<Message, undefined>): void; reject(error: unknown): void };

/** `for await (const message of client.messages())`. A message is consumed when the next one is asked for. */
export class MessageIterator implements AsyncIterableIterator<Message> {
  readonly #alive: Alive;
  readonly #endings: Endings;
  readonly #over: (iterator: MessageIterator) => void;
  readonly #client: NativeClient;
  /** From the first message that is asked for: who asks for none keeps none from others. */
  #stream: NativeStream | undefined;
  #opening = false;
  #ready: NativeMessage[] = [];
  #waiters: Waiter[] = [];
  #given = 0;
  #ended = false;
  #failure: unknown;
  #returned: Promise<void> = Promise.resolve();

  constructor(client: NativeClient, how: { alive: Alive; endings: Endings; over: (iterator: MessageIterator) => void }) {
    this.#alive = how.alive;
    this.#client = client;
    this.#endings = how.endings;
    this.#over = how.over;
    this.#alive.hold();
  }

  next(): Promise<IteratorResult<Message, undefined>> {
    return awaited(() => {
      if (this.#failure !== undefined) {
        const failed = this.#failure;
        this.#failure = undefined;
        return this.#returned.then(() => Promise.reject(failed));
      }
      if (this.#given > 0) this.#stream?.settled(this.#given, true);
      this.#given = 0;
      this.#open();
      return new Promise<IteratorResult<Message, undefined>>((resolve, reject) => {
        this.#waiters.push({ resolve, reject });
        this.#serve();
      });
    });
  }

  #open(): void {
    if (this.#stream !== undefined || this.#opening || this.#ended) return;
    this.#opening = true;
    const open = () => {
      this.#opening = false;
      if (!this.#ended) this.#stream = this.#client.stream((batch) => this.#deliver(batch));
    };
    this.#endings.soon(() => {
      try {
        open();
      } catch (error) {
        this.fail(error);
      }
    });
  }

  return(): Promise<IteratorResult<Message, undefined>> {
    return awaited(async () => {
      await this.end(true);
      return { done: true, value: undefined };
    });
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  /** Ends the iteration; `consumed`: what was given out is done with. */
  async end(consumed: boolean): Promise<void> {
    if (this.#ended) return;
    this.#ended = true;
    this.#alive.release();
    this.#ready = [];
    if (consumed && this.#given > 0) this.#stream?.settled(this.#given, true);
    this.#given = 0;
    this.#serve();
    try {
      // A signal of the application's own may throw when it is let go.
      this.#over(this);
    } catch {
      // That is its own affair.
    }
    if (this.#stream !== undefined) await this.#endings.add(this.#stream.end());
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
    // It was on its way when the iteration ended, and is offered again.
    if (this.#ended) return;
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
