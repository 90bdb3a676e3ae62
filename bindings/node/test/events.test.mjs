// What is told before anybody listens, by itself: what somebody should know waits for the first who does, and is bounded.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { at, project, require, sdk } from './project.mjs';

const { Listeners } = require(join(project, 'node_modules/@stvor/sdk/dist/events.js'));

/** What the first listener to an event is told of what was before. */
async function first(listeners, name) {
  const told = [];
  listeners.add(name, (event) => told.push(event));
  await Promise.resolve();
  return told;
}

test('what is said of identities before anybody listens waits for the first listener: each of it, once', async () => {
  const listeners = new Listeners();
  for (const peer of ['bob', 'carol', 'bob']) listeners.tell('identityChanged', { peer, accepted: false });
  listeners.tell('identityRotated', { peer: 'bob' });
  for (const event of [{ relay: 1 }, { relay: 2 }]) listeners.tell('rollbackDetected', event);
  listeners.tell('connected', {});
  assert.deepEqual(await first(listeners, 'connected'), []);
  assert.deepEqual(await first(listeners, 'identityRotated'), [{ peer: 'bob' }]);
  assert.deepEqual(await first(listeners, 'identityChanged'), ['carol', 'bob'].map((peer) => ({ peer, accepted: false })));
  assert.deepEqual(await first(listeners, 'rollbackDetected'), [{ relay: 2 }]);
  assert.deepEqual(await first(listeners, 'identityChanged'), []);
});

test('more of that than is kept makes room for the newest, and says so', async () => {
  const listeners = new Listeners();
  let missed = 0;
  listeners.add('lagged', (event) => { missed += event.missed; });
  for (let number = 0; number < 300; number += 1) listeners.tell('identityForked', { peer: `peer ${number}` });
  const kept = await first(listeners, 'identityForked');
  assert.equal(missed, 300 - 256);
  assert.deepEqual([kept.length, kept[0], kept[255]], [256, { peer: 'peer 44' }, { peer: 'peer 299' }]);
});

test('users of another suite push out nothing else that is said of identities', async () => {
  const listeners = new Listeners();
  const changed = { peer: 'bob', accepted: false };
  listeners.tell('identityChanged', changed);
  for (let number = 0; number < 512; number += 1) listeners.tell('suiteMismatch', { peer: `stranger ${number}`, ours: 'p256', theirs: 'x25519' });
  assert.deepEqual(await first(listeners, 'identityChanged'), [changed]);
  const suites = await first(listeners, 'suiteMismatch');
  assert.deepEqual([suites.length, suites[254].peer], [255, 'stranger 511']);
});

test('a listener for one event only leaves the others that waited to the next', async () => {
  const listeners = new Listeners();
  for (const peer of ['bob', 'carol', 'dave']) listeners.tell('identityChanged', { peer, accepted: false });
  const told = [];
  listeners.addOnce('identityChanged', ({ peer }) => told.push(peer));
  await Promise.resolve();
  assert.deepEqual(told, ['bob']);
  assert.deepEqual((await first(listeners, 'identityChanged')).map(({ peer }) => peer), ['carol', 'dave']);
});

test('development mode warns the first who listens with the list that production refuses, once for each app', async (t) => {
  const { relay, app } = await at(t);
  const settings = { appToken: 'stvor_dev_test123', relayUrl: relay.url, storage: 'memory' };
  const refused = await sdk.createApp({ ...settings, productionMode: true }).then(assert.fail, (error) => error);
  assert.equal(refused.code, 'NOT_FOR_PRODUCTION');
  assert.deepEqual(refused.findings.map(({ code }) => code), ['store_not_durable', 'relay_without_tls', 'development_token']);
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const { findings } = await new Promise((resolve) => { alice.once('developmentMode', resolve); });
  assert.deepEqual(findings, refused.findings);
  assert.deepEqual(findings, app.findings);
  // What is told comes in order: nothing of it is behind what follows.
  const again = [];
  for (const client of [alice, bob]) client.on('developmentMode', (event) => again.push(event));
  const closed = new Promise((resolve) => { bob.once('closed', resolve); });
  await app.close();
  await closed;
  assert.deepEqual(again, []);
});
