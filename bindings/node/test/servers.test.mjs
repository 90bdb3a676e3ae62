// The block with Redis and PostgreSQL of docs/node.md, against private servers, with the npm clients.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { sdk, startMockRelay } from './project.mjs';
import { folderFor, postgresServer, redisServer, skip } from './servers.mjs';

const { createApp, generateIdentityKeyPair } = sdk;

test('replay cache in Redis, sessions in PostgreSQL', { skip }, async (t) => {
  const folder = folderFor(t);
  const pg = await postgresServer(t, folder);
  await pg.query('CREATE TABLE sessions (peer_id text PRIMARY KEY, state bytea NOT NULL)');
  const redis = await redisServer(t, folder);
  // The block as it stands on the page.
  const page = readFileSync(new URL('../../../docs/node.md', import.meta.url), 'utf8');
  const block = [...page.matchAll(/```js\n([\s\S]*?)```/g)].map(([, code]) => code).find((code) => code.includes('pg.query'));
  const { replay, sessions } = new Function('redis', 'pg', `${block}\nreturn { replay, sessions };`)(redis, pg);
  const pins = new Map();
  const tofu = {
    storeFingerprint(peer, fingerprint) { if (!pins.has(peer)) pins.set(peer, fingerprint); },
    verifyFingerprint: (peer, fingerprint) => pins.get(peer) === fingerprint,
  };
  const pair = generateIdentityKeyPair();
  const storageAdapters = { replay, sessions, tofu, identity: { getIdentityKeyPair: () => pair } };

  const relay = await startMockRelay({ port: 0 });
  t.after(() => relay.close());
  const settings = { appToken: 'stvor_dev_test123', relayUrl: relay.url };
  const others = await createApp({ ...settings, storage: 'memory' });
  t.after(() => others.close());
  const bob = await others.connect('bob');
  const open = async () => {
    const app = await createApp({ ...settings, storageAdapters });
    t.after(() => app.close());
    return app.connect('alice');
  };
  const read = async (client) => {
    for await (const message of client.messages()) return message.content;
  };

  const alice = await open();
  await (await alice.send('bob', 'a secret')).delivered();
  await bob.send('alice', 'one');
  assert.equal(await read(alice), 'one');
  const { fingerprint } = alice.identity;
  await alice.close();
  const again = await open();
  assert.equal(again.identity.fingerprint, fingerprint);
  await bob.send('alice', 'two');
  assert.equal(await read(again), 'two');
  await again.close();

  const marks = await redis.keys('replay:bob:*');
  assert.ok(marks.length >= 3, marks.join());
  assert.ok(await redis.ttl(marks[0]) > 200);
  assert.equal(await replay.checkAndMark('bob', Buffer.from(marks[0].split(':')[2], 'hex')), true);
  const { rows } = await pg.query('SELECT peer_id, state FROM sessions');
  assert.ok(rows.some(({ peer_id }) => peer_id === 'bob'));
  assert.ok(rows.every(({ peer_id, state }) => (peer_id === 'bob' || peer_id.startsWith('_stvor/')) && !state.includes('secret')));
});
