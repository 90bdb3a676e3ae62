// More than a client takes in, one by one and in batches: what waits is bounded by its number and its bytes, and each message is sent or refused.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { at, codeOf, run, sdk, startMockRelay, write } from './project.mjs';

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc');

const { StvorError } = sdk;
const numbered = (count) => Array.from({ length: count }, (_, at) => at);
/** Sends to somebody who never comes are under way until their timeout: they hold their place. */
const PATIENCE = { timeout: 500 };
const codesOf = (outcomes) => outcomes.map((outcome) => (outcome instanceof StvorError ? outcome.code : 'sent'));

async function take(client, count) {
  const taken = [];
  for await (const message of client.messages()) {
    taken.push(message.content);
    if (taken.length === count) break;
  }
  return taken;
}

test('a batch is taken in with its whole number, and what is beyond the bound is refused message by message', async (t) => {
  const { app } = await at(t, { ...PATIENCE, executor: { maxPending: 8, maxQueued: 6, maxQueuedPerPeer: 4 } });
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const told = [];
  alice.on('sendRejected', (event) => told.push(event));
  const batch = (to, count) => alice.sendMany(numbered(count).map((content) => ({ to, content })));
  const wait = (count) => Array(count).fill('RECIPIENT_TIMEOUT');
  // Two are under way, a quarter of eight, and four wait: all that may.
  const six = batch('nobody', 6);
  assert.deepEqual(told, []);
  assert.deepEqual(codesOf(await batch('nobody', 1)), ['BACKPRESSURE']);
  assert.deepEqual(told.splice(0), [{ peer: 'nobody', queued: 4, scope: 'peer', messages: 1 }]);
  // Of another user two are under way and two wait, which are all of six; the fifth of them is one too many.
  const five = batch('noone', 5);
  assert.deepEqual(told.splice(0), [{ peer: 'noone', queued: 6, scope: 'all', messages: 1 }]);
  assert.deepEqual(codesOf(await six), wait(6));
  assert.deepEqual(codesOf(await five), [...wait(4), 'BACKPRESSURE']);
  const seven = batch('nobody', 7);
  assert.deepEqual(told.splice(0), [{ peer: 'nobody', queued: 4, scope: 'peer', messages: 1 }]);
  assert.deepEqual(codesOf(await seven), [...wait(6), 'BACKPRESSURE']);
  const mixed = await alice.sendMany(numbered(40).map((content) => ({ to: content % 2 ? 'nobody' : 'bob', content })));
  assert.ok(codesOf(mixed).filter((code) => code === 'BACKPRESSURE').length >= 40 - 8 - 6);
  assert.deepEqual(await take(bob, 1), [0]);
});

for (const what of ['send', 'sendMany']) {
  test(`what waits is bounded by its bytes, too: ${what}`, async (t) => {
    const { app } = await at(t, { ...PATIENCE, executor: { maxPending: 1, maxQueuedBytes: 400 } });
    const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
    const told = [];
    alice.on('sendRejected', (event) => told.push(event));
    const first = codeOf(alice.send('nobody', 'x'));
    const contents = [new Uint8Array(60), 'x'.repeat(40), 'y'];
    const sends = what === 'send'
      ? contents.map((content) => codeOf(alice.send('bob', content)).then((code) => code ?? 'sent'))
      : [alice.sendMany(contents.map((content) => ({ to: 'bob', content }))).then(codesOf)];
    assert.deepEqual(told, [{ peer: 'bob', queued: 2, scope: 'peer', messages: 1 }]);
    assert.equal(await first, 'RECIPIENT_TIMEOUT');
    assert.deepEqual((await Promise.all(sends)).flat(), ['sent', 'sent', 'BACKPRESSURE']);
    await alice.send('bob', 'z'.repeat(1_000));
    assert.deepEqual((await take(bob, 3)).map(({ length }) => length), [60, 40, 1_000]);
  });
}

for (const onPressure of ['reject', 'wait']) {
  test(`large messages to somebody who is not there leave room for others: ${onPressure}`, async (t) => {
    const { app } = await at(t, { ...PATIENCE, executor: { maxPending: 1, maxQueuedBytes: 400, onPressure } });
    const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
    const told = [];
    alice.on('sendRejected', (event) => told.push(event));
    const calls = numbered(20).map(() => codeOf(alice.send('nobody', 'x'.repeat(50))));
    const refused = onPressure === 'wait' ? 15 : 17;
    assert.deepEqual(told, Array(refused).fill({ peer: 'nobody', queued: 2, scope: 'peer', messages: 1 }));
    // Whatever its size, if nothing else is for him: the rest of the room is there.
    const [one, two] = [alice.send('bob', 'x'.repeat(300)), codeOf(alice.send('bob', 'y'))];
    assert.equal(told.length, onPressure === 'wait' ? refused : refused + 1);
    const codes = await Promise.all(calls);
    assert.deepEqual(codes, [...Array(20 - refused).fill('RECIPIENT_TIMEOUT'), ...Array(refused).fill('BACKPRESSURE')]);
    await one;
    assert.equal(await two, onPressure === 'wait' ? undefined : 'BACKPRESSURE');
    assert.equal((await take(bob, 1))[0].length, 300);
  });
}

test('where callers wait for room, batches do message by message, and nobody overtakes them', async (t) => {
  const { app } = await at(t, { ...PATIENCE, executor: { maxPending: 1, maxQueued: 3, maxQueuedPerPeer: 3, maxQueuedBytes: 400, onPressure: 'wait' } });
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const first = codeOf(alice.send('nobody', 'x'));
  // There is never room for this one.
  assert.equal(await codeOf(alice.send('bob', 'x'.repeat(401))), 'BACKPRESSURE');
  // Two wait by their bytes, three more for room, and that is a quarter of four hundred bytes; the last is too much for those.
  const sizes = [50, 50, 40, 40, 20, 1];
  const batch = alice.sendMany(sizes.map((size) => ({ to: 'bob', content: 'x'.repeat(size) })));
  assert.equal(await first, 'RECIPIENT_TIMEOUT');
  assert.deepEqual(codesOf(await batch), [...Array(5).fill('sent'), 'BACKPRESSURE']);
  assert.deepEqual((await take(bob, 5)).map(({ length }) => length), [50, 50, 40, 40, 20]);
});

test('a batch that is not waited for stands before what is called for after it', async (t) => {
  const { app } = await at(t);
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const sends = [alice.sendMany(numbered(1_000).map((content) => ({ to: 'bob', content }))), alice.send('bob', 1_000)];
  assert.deepEqual(await take(bob, 1_001), numbered(1_001));
  await Promise.all(sends);
});

test('an aborted batch takes what waits of it out, and makes room', async (t) => {
  const { app } = await at(t, { ...PATIENCE, executor: { maxPending: 1, maxQueued: 4, maxQueuedPerPeer: 4 } });
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const first = codeOf(alice.send('nobody', 'x'));
  const stop = new AbortController();
  const batch = (signal) => alice.sendMany(numbered(4).map((content) => ({ to: 'bob', content })), { signal });
  const aborted = codeOf(batch(stop.signal));
  assert.equal(await codeOf(alice.send('bob', 'too many')), 'BACKPRESSURE');
  stop.abort();
  const second = batch();
  assert.equal(await aborted, 'ABORTED');
  assert.equal(await first, 'RECIPIENT_TIMEOUT');
  assert.deepEqual(codesOf(await second), Array(4).fill('sent'));
  assert.deepEqual(await take(bob, 4), numbered(4));
});

test('messages to a group wait in a line of their own, within the same bounds', async (t) => {
  const { app } = await at(t, { executor: { maxPending: 4, maxQueued: 6, maxQueuedPerPeer: 3 } });
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const group = await alice.createGroup('friends', ['bob']);
  const told = [];
  alice.on('sendRejected', (event) => told.push(event));
  const codes = numbered(5).map((content) => codeOf(group.send(content)));
  const other = alice.send('bob', 'of another line');
  assert.deepEqual(told, [{ peer: group.id, queued: 3, scope: 'peer', messages: 1 }]);
  assert.deepEqual(await Promise.all(codes), [...Array(4).fill(undefined), 'BACKPRESSURE']);
  await other;
  const taken = await take(bob, 5);
  assert.deepEqual(taken.filter((content) => content !== 'of another line'), numbered(4));
  await group.send('again');
});

test('half a million messages in batches that nobody waits for: each is sent or refused, and little is kept', async (t) => {
  const [bound, size, count] = [2_000, 10_000, 50];
  const { app } = await at(t, { executor: { maxPending: 256, maxQueued: bound, maxQueuedPerPeer: bound } });
  const [alice, ...users] = [await app.connect('alice'), await app.connect('bob'), await app.connect('carol')];
  let most = 0;
  let refused = 0;
  alice.on('pressure', ({ queued }) => { most = Math.max(most, queued); });
  alice.on('sendRejected', ({ queued, messages }) => { most = Math.max(most, queued); refused += messages; });
  collect();
  const before = process.memoryUsage().heapUsed;
  const calls = [];
  for (let call = 0; call < count; call += 1) {
    const to = (content) => ['bob', 'carol'][content % 2];
    calls.push(alice.sendMany(numbered(size).map((at) => call * size + at).map((content) => ({ to: to(content), content }))));
    await new Promise(setImmediate);
  }
  collect();
  const kept = process.memoryUsage().heapUsed - before;
  const codes = (await Promise.all(calls)).flatMap(codesOf);
  assert.equal(codes.length, count * size);
  assert.deepEqual(new Set(codes), new Set(['sent', 'BACKPRESSURE']));
  assert.equal(codes.filter((code) => code !== 'sent').length, refused);
  assert.ok(most > 0 && most <= bound, `${most} waited`);
  // A list of outcomes for each call, eight bytes each, and what waits.
  assert.ok(kept < 16 * 1_048_576, `${kept} bytes`);
  for (const [parity, user] of users.entries()) {
    const sent = numbered(count * size).filter((content) => content % 2 === parity && codes[content] === 'sent');
    assert.deepEqual(await take(user, sent.length), sent);
  }
});

/** Calls of the flood: `STVOR_FLOOD_CALLS` says how many, for a long run. */
const CALLS = Number(process.env.STVOR_FLOOD_CALLS ?? 300_000);

test('however many sends nobody takes yet, memory does not grow, and each is delivered or refused', { timeout: 120_000 + CALLS }, async (t) => {
  const relay = await startMockRelay({ port: 0 });
  t.after(() => relay.close());
  // In a process of its own: what other tests do takes memory, too.
  const ended = await run(['--expose-gc', write(`
    import { createApp } from '@stvor/sdk';
    const [calls, relayUrl] = [Number(process.argv[2]), process.argv[3]];
    const settings = { appToken: 'stvor_dev_test123', relayUrl, storage: 'memory' };
    const from = await createApp({ ...settings, executor: { maxPending: 512, maxQueued: 2_048 } });
    const to = await createApp(settings);
    const alice = await from.connect('alice');

    /** Sends that nobody waits for, to users who are not there before all are sent; what became of them, and the most memory meanwhile. */
    async function flood(count, names) {
      const ends = {};
      const sent = new Map(names.map((name) => [name, []]));
      let [left, most] = [count, 0];
      const ended = (how) => {
        ends[how] = (ends[how] ?? 0) + 1;
        left -= 1;
      };
      for (let call = 1; call <= count; call += 1) {
        const [name, content] = [names[call % names.length], call + ' '.repeat(1_024)];
        alice.send(name, content, { timeout: 3_600_000 }).then(() => ended('sent', sent.get(name).push(call)), ({ code }) => ended(code));
        if (call % 1_000 === 0) await new Promise(setImmediate);
        if (call % 20_000 === 0) {
          gc();
          most = Math.max(most, process.memoryUsage.rss());
        }
      }
      const clients = await Promise.all(names.map((name) => to.connect(name)));
      while (left > 0) await new Promise((resolve) => setTimeout(resolve, 5));
      const came = await Promise.all(clients.map(async (client) => {
        const calls = [];
        for await (const { content } of client.messages()) {
          calls.push(Number(content));
          if (calls.length === sent.get(client.userId).length) break;
        }
        return calls.join() === sent.get(client.userId).sort((a, b) => a - b).join();
      }));
      return { ends, most, came };
    }

    // What is filled once may stay: more of it is what grows.
    const first = await flood(20_000, ['a', 'b', 'c', 'd']);
    gc();
    const before = Math.max(first.most, process.memoryUsage.rss());
    const { ends, most, came } = await flood(calls, ['e', 'f', 'g', 'h']);
    console.log(JSON.stringify({ ends, came, grown: most - before }));
    await from.close();
    await to.close();
  `), `${CALLS}`, relay.url]);
  assert.equal(ended.code, 0, ended.stderr);
  const { ends, came, grown } = JSON.parse(ended.stdout);
  assert.deepEqual(ends, { sent: 512 + 2_048, BACKPRESSURE: CALLS - 512 - 2_048 });
  assert.deepEqual(came, [true, true, true, true], 'each once, in the order of the calls');
  // If what is refused were kept, its contents alone would be 280 MiB.
  assert.ok(grown < 64 * 2 ** 20, `${grown} bytes`);
});
