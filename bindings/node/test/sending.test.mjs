// Many sends: in one call, and more than there is room for.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { at, codeOf, directory, sdk, startMockRelay } from './project.mjs';

const { StvorError } = sdk;

async function take(client, count) {
  const taken = [];
  for await (const message of client.messages()) {
    taken.push(message.content);
    if (taken.length === count) break;
  }
  return taken;
}

const numbered = (count) => Array.from({ length: count }, (_, at) => at);

test('a batch arrives in its order, at each of its users', async (t) => {
  const { app } = await at(t);
  const [alice, bob, carol] = [await app.connect('alice'), await app.connect('bob'), await app.connect('carol')];
  const outcomes = await alice.sendMany(numbered(600).map((content) => ({ to: content % 3 ? 'bob' : 'carol', content })));
  assert.equal(outcomes.length, 600);
  assert.ok(outcomes.every(({ id, status }) => /^[0-9a-f]{32}$/.test(id) && ['accepted', 'delivered'].includes(status)));
  assert.deepEqual([outcomes[0].to, outcomes[1].to], ['carol', 'bob']);
  const [atBob, atCarol] = [await take(bob, 400), await take(carol, 200)];
  assert.deepEqual(atBob, numbered(600).filter((number) => number % 3));
  assert.deepEqual(atCarol, numbered(600).filter((number) => number % 3 === 0));
  await outcomes.at(-1).delivered();
  assert.deepEqual(await alice.sendMany([]), []);
  const kinds = ['text', new Uint8Array([1]), { a: null }];
  await alice.sendMany(kinds.map((content) => ({ to: 'bob', content })), { waitFor: 'committed' });
  assert.deepEqual(await take(bob, 3), kinds);
});

test('what becomes of one message of a batch changes nothing for the others', async (t) => {
  const { app } = await at(t, { timeout: 300 });
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  await alice.block('mallory');
  const [one, two, three, four] = await alice.sendMany([
    { to: 'nobody', content: 1 }, { to: 'bob', content: 2 }, { to: 'mallory', content: 3 }, { to: 'bob', content: 4 }]);
  assert.ok(one instanceof StvorError && three instanceof StvorError);
  assert.deepEqual([one.code, one.retryable, three.code], ['RECIPIENT_TIMEOUT', true, 'PEER_BLOCKED']);
  assert.deepEqual([two.to, four.to], ['bob', 'bob']);
  assert.deepEqual(await take(bob, 2), [2, 4]);
});

test('a batch that is none is refused whole', async (t) => {
  const { app } = await at(t, { timeout: 300 });
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const one = { to: 'bob', content: 'x' };
  const large = new Uint8Array(65_536);
  for (const [act, code] of [
    [() => alice.sendMany('x'), 'INVALID_ARGUMENT'],
    [() => alice.sendMany([one, 'x']), 'INVALID_ARGUMENT'],
    [() => alice.sendMany([one, , one]), 'INVALID_ARGUMENT'],
    [() => alice.sendMany([one, { to: 'bob' }]), 'INVALID_ARGUMENT'],
    [() => alice.sendMany([one, { to: 5, content: 'x' }]), 'INVALID_ARGUMENT'],
    [() => alice.sendMany([one, { ...one, timeout: 5 }]), 'INVALID_CONFIG'],
    [() => alice.sendMany([one], { wait: 5 }), 'INVALID_CONFIG'],
    [() => alice.sendMany(Array(10_001).fill(one)), 'INVALID_ARGUMENT'],
    [() => alice.sendMany([{ to: 'bob', content: new Uint8Array(65_537) }]), 'MESSAGE_TOO_LARGE'],
    [() => alice.sendMany([...Array(1_024).fill({ to: 'bob', content: large }), one]), 'MESSAGE_TOO_LARGE'],
    [() => alice.sendMany([one], { signal: AbortSignal.abort() }), 'ABORTED'],
  ]) assert.equal(await codeOf(act), code, String(act));
  await alice.send('bob', 'first');
  assert.deepEqual(await take(bob, 1), ['first']);
});

test('sends that are not waited for keep the order of their calls', async (t) => {
  const { app } = await at(t);
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const group = await alice.createGroup('friends', ['bob']);
  await Promise.all(numbered(500).map((number) => alice.send('bob', number)));
  assert.deepEqual(await take(bob, 500), numbered(500));
  await Promise.all(numbered(200).map((number) => group.send(number)));
  assert.deepEqual(await take(bob, 200), numbered(200));
});

for (const how of ['answered', 'closed']) {
  test(`nor do single sends and batches to one user overtake each other where several are let in at once: ${how}`, async (t) => {
    const { app } = await at(t, { executor: { maxPending: 16 } });
    const others = ['p', 'q', 'r', 's'];
    const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
    for (const user of others) await app.connect(user);
    // All that may be under way: the end of one of them lets four messages in.
    const all = others.map((to) => alice.sendMany(numbered(4).map((content) => ({ to, content }))));
    all.push(alice.send('bob', 0), alice.sendMany([{ to: 'bob', content: 1 }]), alice.send('bob', 2), alice.sendMany([{ to: 'bob', content: 3 }]));
    if (how === 'closed') all.push(alice.close());
    await Promise.all(all);
    assert.deepEqual(await take(bob, 4), numbered(4));
  });
}

test('ten thousand messages are a batch', async (t) => {
  const { app } = await at(t);
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const outcomes = await alice.sendMany(Array(10_000).fill({ to: 'bob', content: 'x' }), { waitFor: 'committed' });
  assert.ok(outcomes.every((outcome) => !(outcome instanceof StvorError)));
  assert.equal((await take(bob, 10_000)).length, 10_000);
});

/** Sends to somebody who never comes are under way until their timeout: they hold their place. */
const PATIENCE = { timeout: 500 };

test('beyond what may wait, sends are refused with BACKPRESSURE, and nobody else waits for a user who is flooded', async (t) => {
  const { app } = await at(t, { ...PATIENCE, executor: { maxPending: 8, maxQueued: 6, maxQueuedPerPeer: 4 } });
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const told = { pressure: [], sendRejected: [] };
  for (const name of Object.keys(told)) alice.on(name, (event) => told[name].push(event));
  // Two of them under way (a quarter of eight), four wait, one is too many.
  const nobody = numbered(7).map(() => codeOf(alice.send('nobody', 'x')));
  assert.equal(await nobody[6], 'BACKPRESSURE');
  assert.deepEqual(told.sendRejected, [{ peer: 'nobody', queued: 4, scope: 'peer', messages: 1 }]);
  assert.deepEqual(told.pressure, [{ pending: 2, queued: 4, waiting: 0 }]);
  await alice.send('bob', 'is not held up');
  assert.deepEqual(await take(bob, 1), ['is not held up']);
  // Two more wait for another user: then all that may wait do.
  const other = numbered(5).map(() => codeOf(alice.send('noone', 'x')));
  assert.equal(await other[4], 'BACKPRESSURE');
  assert.deepEqual(told.sendRejected[1], { peer: 'noone', queued: 6, scope: 'all', messages: 1 });
  const [refused] = await alice.sendMany([{ to: 'nobody', content: 'x' }]);
  assert.deepEqual([refused.code, refused.retryable], ['BACKPRESSURE', true]);
  const ends = await Promise.all([...nobody.slice(0, 6), ...other.slice(0, 4)]);
  assert.deepEqual(ends, Array(10).fill('RECIPIENT_TIMEOUT'));
  await alice.send('bob', 'again');
});

test('or they wait for room, in turn', async (t) => {
  const { app } = await at(t, { timeout: 100, executor: { maxPending: 1, maxQueued: 2, maxQueuedPerPeer: 1, onPressure: 'wait' } });
  const [alice] = [await app.connect('alice'), await app.connect('bob')];
  const order = [];
  const send = (to) => codeOf(alice.send(to, 'x')).then((code) => order.push(`${to} ${code}`));
  const pressed = new Promise((resolve) => { alice.once('pressure', resolve); });
  // One is under way, one waits, two wait for room; a fifth is too many.
  const all = [send('nobody'), send('nobody'), send('nobody'), send('nobody'), send('nobody')];
  assert.equal((await pressed).waiting, 1);
  await all[4];
  assert.deepEqual(order, ['nobody BACKPRESSURE']);
  // Another user's turn comes before the rest of them.
  all.push(send('bob'));
  await Promise.all(all);
  assert.deepEqual(order.slice(1), ['nobody RECIPIENT_TIMEOUT', 'bob undefined', ...Array(3).fill('nobody RECIPIENT_TIMEOUT')]);
});

test('an aborted send leaves the queue, and a client that closes lets in what was called for', async (t) => {
  const { app } = await at(t, { ...PATIENCE, executor: { maxPending: 1, maxQueued: 8, maxQueuedPerPeer: 8 } });
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const first = codeOf(alice.send('nobody', 'x'));
  const stop = new AbortController();
  const aborted = codeOf(alice.send('bob', 'never', { signal: stop.signal }));
  const batch = codeOf(alice.sendMany([{ to: 'bob', content: 'never' }], { signal: stop.signal }));
  const last = alice.send('bob', 'on closing', { waitFor: 'committed' });
  stop.abort();
  assert.deepEqual([await aborted, await batch], ['ABORTED', 'ABORTED']);
  await Promise.all([last, alice.close()]);
  await first;
  assert.deepEqual(await take(bob, 1), ['on closing']);
});

test('of twenty thousand sends at once each is sent or refused', async (t) => {
  const { app } = await at(t, { executor: { maxPending: 256, maxQueued: 2_000 } });
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const codes = await Promise.all(numbered(20_000).map((content) => codeOf(alice.send('bob', content))));
  const sent = numbered(20_000).filter((number) => codes[number] === undefined);
  assert.deepEqual(new Set(codes), new Set([undefined, 'BACKPRESSURE']));
  assert.deepEqual(await take(bob, sent.length), sent);
});

test('what the relay has not accepted of one conversation is bounded, and there is room again when it has', async (t) => {
  const database = join(directory(), 'relay.db');
  const first = await startMockRelay({ port: 0, database });
  const { port, url } = first;
  const app = await sdk.createApp({ appToken: 'stvor_dev_test123', relayUrl: url, storage: 'memory', executor: { maxUnaccepted: 3 } });
  t.after(() => app.close());
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob'), await app.connect('carol')];
  for (const to of ['bob', 'carol']) await alice.send(to, 0);
  await first.close();
  const codes = [];
  for (const content of [1, 2, 3, 4]) codes.push(await codeOf(alice.send('bob', content, { waitFor: 'committed' })));
  const [refused] = await alice.sendMany([{ to: 'bob', content: 5 }], { waitFor: 'committed' });
  assert.deepEqual([...codes, refused.code], [undefined, undefined, undefined, 'QUOTA_EXCEEDED', 'QUOTA_EXCEEDED']);
  await alice.send('carol', 'of another conversation', { waitFor: 'committed' });
  const again = await startMockRelay({ port, database });
  t.after(() => again.close());
  assert.deepEqual(await take(bob, 4), numbered(4));
  while (alice.pending > 0) await new Promise((resolve) => setTimeout(resolve, 5));
  await alice.send('bob', 4);
  assert.deepEqual(await take(bob, 1), [4]);
});

test('options of the executor that can not be used are named', async (t) => {
  const { relay } = await at(t);
  const refused = (executor, pattern) => assert.rejects(
    sdk.createApp({ appToken: 'stvor_x', relayUrl: relay.url, storage: 'memory', executor }), (error) => error.code === 'INVALID_CONFIG' && pattern.test(error.message));
  await refused(5, /executor is an object/);
  await refused({ maxPending: 0 }, /executor\.maxPending is a whole number from 1 to 1000000/);
  await refused({ maxQueued: 1.5 }, /executor\.maxQueued/);
  await refused({ maxQueuedBytes: 2 ** 32 + 1 }, /executor\.maxQueuedBytes is a whole number from 1 to 4294967296/);
  for (const maxUnaccepted of [0, 1_000_001]) await refused({ maxUnaccepted }, /executor\.maxUnaccepted is a whole number from 1 to 1000000/);
  await refused({ onPressure: 'drop' }, /"reject" or "wait"/);
  await refused({ maxWaiting: 5 }, /executor has no "maxWaiting"/);
});

test('who closes right after sending has sent, one by one and in a batch, in memory and on disk', async (t) => {
  const { app, relay } = await at(t);
  const bob = await app.connect('bob');
  for (let round = 0; round < 12; round += 1) {
    const own = await sdk.createApp({
      appToken: 'stvor_dev_test123', relayUrl: relay.url, ...(round % 2 ? { storage: 'memory' } : { dataDir: directory() }),
    });
    const sender = await own.connect(`sender${round}`);
    const [count, large] = [1 + (round % 4), round % 3 === 2];
    const sends = large ? [sender.sendMany(numbered(600).map((content) => ({ to: 'bob', content })))] : numbered(count).map((one) => sender.send('bob', one));
    const [sent] = await Promise.all([Promise.all(sends), round % 2 ? sender.close() : own.close()]);
    assert.ok(sent.flat().every((one) => !(one instanceof StvorError)));
    assert.deepEqual(await take(bob, large ? 600 : count), numbered(large ? 600 : count));
  }
});

test('who closes right after the first send to a group has sent', async (t) => {
  const { app, relay } = await at(t);
  const bob = await app.connect('bob');
  const own = await sdk.createApp({ appToken: 'stvor_dev_test123', relayUrl: relay.url, dataDir: directory() });
  const alice = await own.connect('alice');
  const group = await alice.createGroup('friends', ['bob']);
  const [{ id }] = await Promise.all([group.send('and gone'), alice.close()]);
  assert.match(id, /^[0-9a-f]{32}$/);
  const again = await own.connect('alice');
  assert.deepEqual(await take(bob, 1), ['and gone']);
  await again.close();
  await own.close();
});

for (const late of [false, true]) {
  test(`a client that closes waits for a batch as long as for anything else, ${late ? 'also for one that had to wait' : 'whatever its own timeout'}`, async (t) => {
    const { app } = await at(t, { ...PATIENCE, executor: { maxPending: late ? 1 : 8 } });
    const [alice] = [await app.connect('alice')];
    const slow = { timeout: 60_000 };
    const first = late ? [codeOf(alice.send('nobody', 'x', slow))] : [];
    const batch = alice.sendMany([{ to: 'noone', content: 'x' }], slow);
    const single = codeOf(alice.send('noone', 'x', slow));
    await alice.close();
    // Otherwise it would have waited for what takes a minute: RECIPIENT_TIMEOUT.
    assert.deepEqual([...(await Promise.all([...first, single])), ...(await batch).map(({ code }) => code)], Array(late ? 3 : 2).fill('CLIENT_NOT_READY'));
  });
}

test('a batch to several users stands behind what waits for each of them', async (t) => {
  const { app } = await at(t);
  const [alice, bob, carol] = [await app.connect('alice'), await app.connect('bob'), await app.connect('carol')];
  const sends = [
    ...numbered(1_500).map((one) => alice.send('bob', one)),
    alice.sendMany([{ to: 'bob', content: 1_500 }, { to: 'carol', content: 'hers' }, { to: 'bob', content: 1_501 }]),
    ...numbered(50).map((one) => alice.send('bob', 1_502 + one)),
  ];
  assert.deepEqual(await take(bob, 1_552), numbered(1_552));
  assert.deepEqual(await take(carol, 1), ['hers']);
  const batch = (await Promise.all(sends))[1_500];
  assert.deepEqual(batch.map(({ to }) => to), ['bob', 'carol', 'bob']);
});

test('a client that is asked for while it closes is a new one', async (t) => {
  const { app } = await at(t, { storage: 'disk', dataDir: directory() });
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  let release;
  const held = new Promise((done) => { release = done; });
  const began = new Promise((done) => { bob.onMessage(async () => { done(); await held; }); });
  await alice.send('bob', 'x');
  await began;
  const closing = bob.close();
  const again = app.connect('bob');
  assert.equal(await codeOf(() => app.connect('bob', { signal: AbortSignal.timeout(50) })), 'ABORTED');
  release();
  await closing;
  const fresh = await again;
  assert.notEqual(fresh, bob);
  await fresh.send('alice', 'here again');
  assert.deepEqual(await take(alice, 1), ['here again']);
});

test('a client that is closed while it is asked for is not the one that comes', async (t) => {
  const { app } = await at(t, { dataDir: directory(), storage: 'disk' });
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  let release;
  const held = new Promise((done) => { release = done; });
  const began = new Promise((done) => { bob.onMessage(async () => { done(); await held; }); });
  await alice.send('bob', 'x');
  await began;
  const asked = app.connect('bob');
  const closing = bob.close();
  setTimeout(release, 20);
  const fresh = await asked;
  await closing;
  assert.notEqual(fresh, bob);
  await fresh.send('alice', 'here again');
  assert.deepEqual(await take(alice, 1), ['here again']);
});

test('two spellings of one name are one user', async (t) => {
  const { app } = await at(t);
  const jose = await app.connect('Jos\u00e9');
  assert.equal(await app.connect('Jose\u0301'), jose);
  const alice = await app.connect('alice');
  await Promise.all(['Jos\u00e9', 'Jose\u0301', 'Jos\u00e9'].map((to, i) => alice.send(to, `${i}`)));
  assert.deepEqual(await take(jose, 3), ['0', '1', '2']);
  await app.disconnect('Jose\u0301');
  assert.equal(jose.state, 'closed');
});

test('a handler that asks for the client that its own closing waits for is told so', async (t) => {
  const { app } = await at(t);
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const told = new Promise((done) => {
    bob.onMessage(async () => {
      void bob.close();
      await app.connect('bob').then(() => done('connected'), done);
    });
  });
  await alice.send('bob', 'x');
  assert.equal((await told).code, 'CLIENT_NOT_READY');
});

test('a second run without the relay says that there is none, once', async (t) => {
  const place = { appToken: 'stvor_dev_test123', dataDir: directory(), timeout: 200 };
  const first = await startMockRelay({ port: 0, database: join(directory(), 'relay.db') });
  const before = await sdk.createApp({ ...place, relayUrl: first.url });
  for (const user of ['alice', 'bob']) await before.connect(user);
  await before.close();
  await first.close();
  const told = [];
  const listener = ({ code, message }) => { if (code === 'STVOR_RELAY_UNAVAILABLE') told.push(message); };
  process.on('warning', listener);
  t.after(() => process.off('warning', listener));
  const app = await sdk.createApp({ ...place, relayUrl: first.url });
  t.after(() => app.close());
  const alice = await app.connect('alice');
  assert.equal((await alice.send('bob', 'waits')).status, 'queued');
  await app.connect('bob');
  await new Promise(setImmediate);
  assert.equal(told.length, 1);
  assert.ok(told[0].includes(first.url) && told[0].includes('mock-relay'), told[0]);
});

test('in a batch nobody waits for somebody who is not there', async (t) => {
  const { app } = await at(t, { timeout: 30_000 });
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const batch = numbered(1_024).map((one) => ({ to: one % 256 === 7 ? `nobody${one}` : 'bob', content: one }));
  const signal = new AbortController();
  const sent = alice.sendMany(batch, { signal: signal.signal });
  // All of his are there while the others are waited for.
  assert.deepEqual(await take(bob, 1_020), numbered(1_024).filter((one) => one % 256 !== 7));
  signal.abort();
  assert.equal(await codeOf(() => sent), 'ABORTED');
});
