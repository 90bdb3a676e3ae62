/** What clients still have to send when a process has nothing else to do. */

import type { NativeClient } from './native.js';

/** Clients that are open, and how long what they have to send may keep a process that has nothing else to do. */
const lingering = new Map<NativeClient, number>();
let watching = false;

/** What waits in the outbox of a client is sent before the process ends by itself, as far as its relay takes it in time. */
export function lingerFor(client: NativeClient, patience: number): void {
  lingering.set(client, patience);
  if (watching) return;
  watching = true;
  process.on('beforeExit', () => {
    const since = performance.now();
    const busy = (): boolean => [...lingering].some(([one, most]) => performance.now() - since < most && waits(one));
    if (over || !busy()) return;
    const timer = setInterval(() => {
      if (busy()) return;
      clearInterval(timer);
      // What the relay does not take keeps the process for one such while, not for one after the other.
      over = [...lingering.keys()].some(waits);
    }, 20);
  });
}

let over = false;

function waits(client: NativeClient): boolean {
  try {
    return client.pending > 0;
  } catch {
    return false;
  }
}

/** Nothing more is waited for: the client is closed. */
export function lingerNoMore(client: NativeClient): void {
  lingering.delete(client);
}
