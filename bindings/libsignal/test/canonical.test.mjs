// Storages that say under which address they keep another one, and have to look that up: order, bounds and deadlines hold from the call on.
import assert from 'node:assert/strict';
import { AsyncLocalStorage } from 'node:async_hooks';
import { test } from 'node:test';
import { ours, party, read, refused } from './world.mjs';

const pause = (millis) => new Promise((resolve) => setTimeout(resolve, millis));
const SAME = Buffer.from('same');
const address = (text) => ours.ProtocolAddress.from(text);
const distinct = (sent) => new Set(sent.map(({ body }) => body.toString('hex'))).size;

/** A storage with one session, that is asked for the canonical address of others; `canonical` may be changed. */
async function world(options, canonical = (given) => given) {
  const executor = new ours.Executor({ backoff: 1, ...options });
  const [me, peer] = [party(ours), party(ours)];
  const rows = { canonical, one: undefined };
  const storage = {
    ...me,
    isTrustedIdentity: () => true,
    canonicalAddress: (given) => rows.canonical(given),
    loadSession: async () => rows.one,
    storeSession: async (_, record) => void (rows.one = record.toBytes()),
  };
  await new ours.SessionBuilder(storage, address('pn.1'), { executor }).initOutgoing(peer.bundle(1));
  const to = (whom) => new ours.SessionCipher(storage, address(whom), { executor });
  return { executor, storage, rows, peer, to };
}

test('calls are done in their order, however long it takes to say what their address is', async () => {
  const delays = [30, 20, 10, 0];
  let given = 0;
  const { to, rows, peer } = await world();
  rows.canonical = async () => (await pause(delays[given++] ?? 0), 'lid.1');
  const done = [];
  const sent = await Promise.all([0, 1, 2, 3].map(async (number) => {
    const message = await to('pn.1').encrypt(Buffer.from(`${number}`));
    done.push(number);
    return message;
  }));
  assert.deepEqual(done, [0, 1, 2, 3]);
  const cipher = new ours.SessionCipher(peer, address('me.1'));
  const counters = [];
  for (const message of sent) counters.push(await read(cipher, message));
  assert.deepEqual(counters, ['0', '1', '2', '3']);
});

test('an answer that hangs is given up, what waits for it is bounded, and others go on', async () => {
  const { executor, to, rows } = await world({ storageTimeout: 50, maxPending: 2, maxQueued: 12, maxQueuedPerPeer: 3 });
  const told = [];
  for (const name of ['crash', 'revived', 'rejected']) executor.on(name, ({ address: at, code, scope }) => told.push([name, at, code ?? scope].join(' ').trim()));
  rows.canonical = (given) => (given === 'pn.1' ? new Promise(() => {}) : given);
  // One is asked about and three wait, as many as may.
  const kept = Array.from({ length: 4 }, () => refused(to('pn.1').encrypt(SAME)));
  const beyond = await Promise.all(Array.from({ length: 5_000 }, () => refused(to('pn.1').encrypt(SAME))));
  assert.deepEqual([...new Set(beyond.map(({ code }) => code))], ['BACKPRESSURE']);
  assert.deepEqual([executor.pending, executor.queued], [1, 3]);
  assert.equal((await to('other.1').encrypt(SAME)).type, 3);
  const ends = await Promise.all(kept);
  assert.deepEqual(ends.map(({ code }) => code), Array(4).fill('STORAGE_TIMEOUT'));
  assert.deepEqual(told.splice(0), [...Array(5_000).fill('rejected pn.1 peer'), ...Array(4).fill('crash pn.1 STORAGE_TIMEOUT')]);
  rows.canonical = () => Promise.reject(new Error('no connection'));
  assert.equal((await refused(to('pn.1').encrypt(SAME))).code, 'STORAGE_FAILED');
  rows.canonical = async (given) => given;
  assert.equal((await to('pn.1').encrypt(SAME)).type, 3);
  assert.deepEqual(told, ['revived pn.1']);
  assert.deepEqual([executor.pending, executor.queued], [0, 0]);
});

test('a storage that hangs behind the answer is told once, where it happens', async () => {
  const { executor, storage, to, rows } = await world({ storageTimeout: 30 });
  const told = [];
  executor.on('crash', ({ address: at }) => told.push(at));
  rows.canonical = async () => 'lid.1';
  const { storeSession } = storage;
  storage.storeSession = () => new Promise(() => {});
  assert.equal((await refused(to('pn.1').encrypt(SAME))).code, 'STORAGE_TIMEOUT');
  storage.storeSession = storeSession;
  const sent = [await to('pn.1').encrypt(SAME), await to('lid.1').encrypt(SAME)];
  assert.equal(distinct(sent), 2);
  assert.deepEqual(told, ['lid.1']);
});

test('one place is enough, also where a storage contradicts itself', async () => {
  for (const maxPending of [1, 2]) {
    const { executor, to, rows } = await world({ maxPending });
    const others = { 'pn.1': 'lid.1', 'lid.1': 'pn.1' };
    rows.canonical = async (given) => (await pause(1), others[given]);
    // Under no order at all one key may be used twice, but nobody waits for ever.
    await Promise.all(Array.from({ length: 20 }, (_, number) => to(number % 2 ? 'pn.1' : 'lid.1').encrypt(SAME)));
    rows.canonical = async () => (await pause(1), 'lid.1');
    const sent = await Promise.all(Array.from({ length: 20 }, (_, number) => to(number % 2 ? 'pn.1' : 'lid.1').encrypt(SAME)));
    assert.equal(distinct(sent), 20);
    assert.deepEqual([executor.pending, executor.queued], [0, 0]);
  }
});

for (const onPressure of ['reject', 'wait']) {
  test(`many addresses that are one are bounded together: ${onPressure}`, async () => {
    const bounds = { maxPending: 2, maxQueued: 6, onPressure };
    const { executor, storage, to, rows } = await world(bounds);
    rows.canonical = async () => 'lid.1';
    const { loadSession } = storage;
    storage.loadSession = async (given) => (await pause(1), loadSession(given));
    let most = 0;
    const calls = Array.from({ length: 200 }, (_, number) => to(`pn${number}.1`).encrypt(SAME).catch(({ code }) => code));
    const watch = setInterval(() => (most = Math.max(most, executor.queued)), 1);
    const ends = await Promise.all(calls);
    clearInterval(watch);
    const sent = ends.filter(({ body }) => body);
    // What runs may be handed on when the queue is full: that is the most that it can be over.
    assert.ok(most <= bounds.maxQueued + bounds.maxPending, `${most} wait`);
    assert.ok(sent.length >= bounds.maxQueued && sent.length < 200, `${sent.length} were done`);
    assert.equal(distinct(sent), sent.length);
    assert.ok(ends.every((end) => end.body || end === 'BACKPRESSURE'));
    assert.deepEqual([executor.pending, executor.queued], [0, 0]);
  });
}

test('the storage is asked in the context of the caller', async () => {
  const contexts = new AsyncLocalStorage();
  const { storage, to, rows } = await world();
  const seen = [];
  rows.canonical = async () => (seen.push(contexts.getStore()), await pause(2), 'lid.1');
  const { loadSession } = storage;
  storage.loadSession = async (given) => (seen.push(contexts.getStore()), loadSession(given));
  await Promise.all(['one', 'two', 'three'].map((name) => contexts.run(name, () => to('pn.1').encrypt(SAME))));
  assert.deepEqual(seen, ['one', 'one', 'two', 'two', 'three', 'three']);
});
