// The relay of the documentation, as it stands there: it hands on what anybody says in anybody's name, and keeps nothing.
import assert from 'node:assert/strict';
import { createServer } from 'node:net';
import { test } from 'node:test';
import { directory, documentation, require, sdk, start, write } from './project.mjs';

const { createApp } = sdk;

/** Starts it on a port that was free a moment ago; gives its URL. */
async function relayOf(t) {
  const port = await new Promise((resolve) => {
    const server = createServer().listen(0, () => {
      const { port: free } = server.address();
      server.close(() => resolve(free));
    });
  });
  const relay = start([write(documentation('relay-server.mjs', { 8080: port }))]);
  t.after(() => relay.child.kill());
  await relay.line(/Relay running on/);
  return `ws://localhost:${port}`;
}

async function appAt(t, relayUrl, dataDir) {
  const app = await createApp({ appToken: 'stvor_dev_test123', relayUrl, timeout: 5_000, ...(dataDir ? { dataDir } : { storage: 'memory' }) });
  t.after(() => app.close());
  return app;
}

/** Somebody who speaks JSON to the relay: `said` resolves with the next thing that it is told and that matches. */
async function stranger(t, url) {
  const { WebSocket } = require('ws');
  const socket = new WebSocket(url);
  t.after(() => socket.terminate());
  const waiters = [];
  socket.on('message', (data) => {
    const message = JSON.parse(data.toString());
    for (const waiter of [...waiters]) {
      if (waiter.matches(message)) waiters.splice(waiters.indexOf(waiter), 1)[0].resolve(message);
    }
  });
  await new Promise((resolve, reject) => socket.once('open', resolve).once('error', reject));
  return {
    say: (message) => socket.send(JSON.stringify(message)),
    said: (matches) => new Promise((resolve) => { waiters.push({ matches, resolve }); }),
  };
}

async function take(client, count) {
  const taken = [];
  for await (const { content } of client.messages()) if (taken.push(content) === count) break;
  return taken;
}

async function settled(client) {
  while (client.pending > 0) await new Promise((resolve) => { setTimeout(resolve, 5); });
}

test('nobody but the receiver acknowledges a message: what somebody took away and acknowledged is sent again', async (t) => {
  const url = await relayOf(t);
  const app = await appAt(t, url, directory());
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  await alice.send('bob', 'first');
  assert.deepEqual(await take(bob, 1), ['first']);
  await Promise.all([settled(alice), settled(bob)]);
  const mallory = await stranger(t, url);
  const isBob = mallory.said(({ type, user, pub }) => type === 'announce' && user === 'bob' && pub === 'mine now');
  mallory.say({ type: 'announce', user: 'bob', pub: 'mine now' });
  await isBob;
  const taken = mallory.said(({ type, blob }) => type === 'message' && blob !== undefined);
  const receipt = await alice.send('bob', 'second');
  const { id, blob } = await taken;
  const forged = { type: 'message', to: 'alice', from: 'bob', stvor: 1 };
  mallory.say({ ...forged, acks: [id] });
  mallory.say({ ...forged, device: 1, id, blob });
  // The relay has handed it on when it does this.
  const done = mallory.said((message) => message.done === true);
  mallory.say({ type: 'message', to: 'bob', done: true });
  await done;
  await bob.send('alice', 'sync');
  assert.deepEqual(await take(alice, 1), ['sync']);
  assert.equal(receipt.status, 'queued');
  await bob.close();
  const again = await app.connect('bob');
  assert.deepEqual(await take(again, 1), ['second']);
  await receipt.delivered();
  await settled(alice);
});

test('a receiver that is killed with a message in its hands has it once at its next start', async (t) => {
  const url = await relayOf(t);
  const app = await appAt(t, url);
  const alice = await app.connect('alice');
  const file = write(`
    import { createApp } from '@stvor/sdk';
    const [relayUrl, dataDir, dies] = process.argv.slice(2);
    const app = await createApp({ appToken: 'stvor_dev_test123', relayUrl, dataDir, timeout: 5_000 });
    const bob = await app.connect('bob');
    bob.onMessage(({ content }) => {
      if (dies) process.kill(process.pid, 'SIGKILL');
      console.log('got', content);
    });
  `);
  const folder = directory();
  const bob = (...how) => {
    const started = start([file, url, folder, ...how]);
    t.after(() => started.child.kill('SIGKILL'));
    return started;
  };
  const dying = bob('dies');
  await alice.send('bob', 'one', { timeout: 30_000 });
  await dying.ended;
  const living = bob();
  await living.line(/got one/);
  await settled(alice);
  await (await alice.send('bob', 'two')).delivered();
  await living.line(/got two/);
  assert.deepEqual(living.stdout.split('\n').filter((line) => line.startsWith('got')), ['got one', 'got two']);
});
