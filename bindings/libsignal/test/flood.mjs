// The flood of flood.test.mjs, in a process of its own: what other tests do takes memory, too.
import { ours, party } from './world.mjs';

const calls = Number(process.argv[2]);
const PEERS = 64;

const [storage, peer] = [party(ours), party(ours)];
const executor = new ours.Executor({ maxQueued: 4_096, storageTimeout: 3_600_000 });
const ciphers = [];
let hangs;
const { loadSession } = storage;
storage.loadSession = async (address) => (await hangs, loadSession(address));
for (let at = 0; at < PEERS; at += 1) {
  const address = new ours.ProtocolAddress(`peer${at}`, 1);
  await new ours.SessionBuilder(storage, address, { executor }).initOutgoing(peer.bundle(at + 1));
  ciphers.push(new ours.SessionCipher(storage, address, { executor }));
}

/**
 * The memory that is kept: what the heap holds, and what is held outside for it. What the process has from the system says less: how much garbage lay
 * there before a collection, and what the allocator hands back and when. Collections let go of memory outside of the heap a turn later, so the least of a few.
 */
async function kept() {
  let least = Number.POSITIVE_INFINITY;
  for (let collections = 0; collections < 4; collections += 1) {
    globalThis.gc();
    await new Promise(setImmediate);
    const { heapUsed, external } = process.memoryUsage();
    least = Math.min(least, heapUsed + external);
  }
  return least;
}

/** Calls that nobody waits for, while the storage hangs; what became of them after it answered, and the most memory that was kept meanwhile. */
async function flood(count) {
  let release;
  hangs = new Promise((resolve) => { release = resolve; });
  const ends = {};
  let [left, most] = [count, 0];
  const ended = (how) => {
    ends[how] = (ends[how] ?? 0) + 1;
    left -= 1;
  };
  for (let call = 1; call <= count; call += 1) {
    ciphers[call % PEERS].encrypt(Buffer.alloc(1_024, call)).then(() => ended('done'), ({ code }) => ended(code));
    if (call % 1_000 === 0) await new Promise(setImmediate);
    if (call % 20_000 === 0) most = Math.max(most, await kept());
  }
  release();
  while (left > 0) await new Promise((resolve) => setTimeout(resolve, 5));
  return { ends, most };
}

// What is filled once may stay: more of it is what grows.
const first = await flood(20_000);
const before = Math.max(first.most, await kept());
const { ends, most } = await flood(calls);
console.log(JSON.stringify({ ends, grown: most - before }));
