/** A relay for development: the real one, in memory, on loopback. */

import { asyncDispose } from './dispose.js';
import { bind } from './bound.js';
import { Alive } from './alive.js';
import { elements, options } from './check.js';
import { awaited, guarded, misconfigured } from './errors.js';
import { madeHere, OURS } from './made.js';
import { native, type NativeRelay } from './native.js';
import { text } from './storage.js';

export { StvorError } from './errors.js';

/** Those that run: a relay that nobody holds would end with the next garbage collection. */
const running = new Set<MockRelay>();

/** A relay that runs. It keeps the process alive until it is closed. */
export class MockRelay {
  readonly #native: NativeRelay;
  readonly #alive = new Alive();

  /** @internal */
  constructor(native: NativeRelay, ours: typeof OURS) {
    madeHere(ours, 'MockRelay', 'startMockRelay');
    bind(this);
    this.#native = native;
    this.#alive.hold();
    running.add(this);
  }

  /** Where clients connect. */
  get url(): string {
    return guarded(() => this.#native.url);
  }

  /** Its port. */
  get port(): number {
    return guarded(() => this.#native.port);
  }

  /** Connections, and users that are connected. */
  get load(): { connections: number; users: number } {
    const [connections = 0, users = 0] = guarded(() => this.#native.load());
    return { connections, users };
  }

  /** Lets the process end although the relay runs. */
  unref(): this {
    this.#alive.want(false);
    return this;
  }

  /** Ends it. Twice is no error. */
  close(): Promise<void> {
    this.#alive.want(false);
    running.delete(this);
    return awaited(() => this.#native.close());
  }

  /** `await using relay = await startMockRelay()`. */
  [asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** How a mock relay is set up. */
export interface MockRelayOptions {
  port?: number | undefined;
  host?: string | undefined;
  tokens?: readonly string[] | undefined;
  verbose?: boolean | undefined;
  database?: string | undefined;
}

/**
 * Starts a relay for development: any token that begins with `stvor_` is let in.
 *
 * @param settings `port`: 4444 if absent, 0 takes any free one; `host`: an IP address, 127.0.0.1 if absent; `tokens`: more tokens
 * that are let in; `verbose`: writes the relay's log to standard error; `database`: a file that keeps accounts and mail, which are
 * gone with the process if it is absent.
 */
export function startMockRelay(settings?: MockRelayOptions): Promise<MockRelay> {
  return awaited(async () => {
    const given = options<MockRelayOptions>(settings, ['port', 'host', 'tokens', 'verbose', 'database'], 'the options of startMockRelay');
    const { port = 4444, host = '127.0.0.1', tokens = [], verbose = false, database } = given;
    if (!Number.isInteger(port) || port < 0 || port > 65_535) throw misconfigured('port is a whole number from 0 to 65535');
    if (typeof verbose !== 'boolean') throw misconfigured('verbose is true or false');
    if (typeof host !== 'string' || host.length > 64) throw misconfigured('host is an IP address');
    const all = elements(tokens, 1_000, 'tokens');
    if (!all.every((token): token is string => typeof token === 'string' && token.length <= 256)) {
      throw misconfigured('tokens are strings of 256 characters at most');
    }
    const file = database === undefined ? undefined : text(database, 'database');
    return new MockRelay(await native().startRelay({ host, port, tokens: all, verbose, database: file }), OURS);
  });
}
