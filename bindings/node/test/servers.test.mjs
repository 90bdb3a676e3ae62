// Stores of one's own in Redis and PostgreSQL, as examples/adapters.mjs has them: against private servers, with the npm clients.
import assert from 'node:assert/strict';
import { copyFileSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { directory, project, sdk, start, startMockRelay, write } from './project.mjs';
import { folderFor, postgresServer, redisServer, skip } from './servers.mjs';

const { createApp } = sdk;
const example = new URL('../examples/adapters.mjs', import.meta.url);

test('the page shows the example as it is', () => {
  const page = readFileSync(new URL('../../../docs/node.md', import.meta.url), 'utf8');
  assert.ok(page.includes(`\`\`\`js\n${readFileSync(example, 'utf8')}\`\`\``));
});

test('replay cache in Redis, pins and sessions in PostgreSQL', { skip }, async (t) => {
  const folder = folderFor(t);
  const pg = await postgresServer(t, folder);
  const redis = await redisServer(t, folder);
  const relay = await startMockRelay({ port: 0 });
  t.after(() => relay.close());
  const others = await createApp({ appToken: 'stvor_dev_test123', relayUrl: relay.url, storage: 'memory' });
  t.after(() => others.close());
  const bob = await others.connect('bob');
  const inbox = bob.messages();

  // Where its packages are found.
  const file = join(project, 'adapters-example.mjs');
  copyFileSync(example, file);
  const env = {
    REDIS_SOCKET: join(folder, 'redis.sock'), PGHOST: folder, PGUSER: 'stvor', PGDATABASE: 'postgres',
    STVOR_RELAY: relay.url, KEY_FILE: join(directory(), 'alice.key'), NODE_OPTIONS: '--no-warnings',
  };
  const alice = async (...argv) => {
    const started = start([file, ...argv], { env });
    t.after(() => started.child.kill('SIGKILL'));
    return { ...started, fingerprint: await started.line(/^alice is [0-9a-f]{64}$/) };
  };

  const one = await alice('bob', 'a secret');
  assert.equal((await inbox.next()).value.content, 'a secret');
  await bob.send('alice', 'one');
  assert.equal(await one.line(/^bob: /), 'bob: one');
  one.child.kill('SIGTERM');
  assert.equal((await one.ended).code, 0);

  const two = await alice();
  assert.equal(two.fingerprint, one.fingerprint);
  await bob.send('alice', 'two');
  assert.equal(await two.line(/two/), 'bob: two');
  // Both servers end the connections, as they do when they restart: the process lives, and goes on by itself.
  await pg.query('SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()');
  await redis.sendCommand(['CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes']);
  await bob.send('alice', 'three');
  assert.equal(await two.line(/three/), 'bob: three');
  two.child.kill('SIGTERM');
  const { code, stderr } = await two.ended;
  assert.equal(code, 0);
  assert.match(stderr, /^(redis|postgres): /m);

  const marks = await redis.keys('replay:bob:*');
  assert.ok(marks.length >= 2, marks.join());
  assert.ok(await redis.ttl(marks[0]) > 200);
  const { rows: pins } = await pg.query('SELECT peer_id, fingerprint FROM pins');
  assert.deepEqual(pins, [{ peer_id: 'bob', fingerprint: bob.identity.fingerprint }]);
  const { rows } = await pg.query('SELECT peer_id, state FROM sessions');
  assert.ok(rows.some(({ peer_id }) => peer_id === 'bob'));
  assert.ok(rows.every(({ peer_id, state }) => (peer_id === 'bob' || peer_id.startsWith('_stvor/')) && !state.includes('secret')));
});

test('a client says why another process on its store ended it', { skip, timeout: 120_000 }, async (t) => {
  const folder = folderFor(t);
  await redisServer(t, folder);
  const relay = await startMockRelay({ port: 0 });
  t.after(() => relay.close());
  const storage = { redis: `redis+unix://${join(folder, 'redis.sock')}` };
  const settings = { appToken: 'stvor_x', relayUrl: relay.url, storage, passphrase: 'a passphrase', timeout: 5_000 };
  const file = write(`
    import { createApp } from '@stvor/sdk';
    const app = await createApp(${JSON.stringify(settings)});
    const alice = await app.connect('alice');
    alice.onMessage(() => {});
    alice.once('closed', ({ code }) => console.log('closed', code));
    console.log('waits');
  `);
  const other = start([file], { env: { NODE_OPTIONS: '--no-warnings' } });
  t.after(() => other.child.kill('SIGKILL'));
  await other.line(/waits/);
  const app = await createApp(settings);
  t.after(() => app.close());
  await (await app.connect('alice')).deleteAccount();
  assert.equal((await other.ended).stdout, 'waits\nclosed ACCOUNT_DELETED\n');
});

test('a store that is emptied under a client ends it, and the process that only waits for messages', { skip, timeout: 120_000 }, async (t) => {
  const folder = folderFor(t);
  const redis = await redisServer(t, folder);
  const relay = await startMockRelay({ port: 0 });
  t.after(() => relay.close());
  const file = write(`
    import { createApp } from '@stvor/sdk';
    process.on('warning', ({ code, message }) => console.log(code, message));
    const storage = { redis: 'redis+unix://${join(folder, 'redis.sock')}' };
    const app = await createApp({ appToken: 'stvor_x', relayUrl: '${relay.url}', storage, passphrase: 'a passphrase', timeout: 2_000 });
    const [user, listens] = process.argv.slice(2);
    const alice = await app.connect(user);
    alice.onMessage(() => {});
    if (listens) alice.once('closed', ({ code }) => {
      console.log('closed', code);
      try { alice.onMessage(() => {}); } catch (error) { console.log('refused', error.code); }
    });
    console.log('waits');
  `);
  for (const [argv, expected] of [[['alice'], /^STVOR_CLIENT_ENDED .*STORE_EMPTIED/m], [['amy', 'listens'], /^closed STORE_EMPTIED\nrefused STORE_EMPTIED$/m]]) {
    const alice = start([file, ...argv], { env: { NODE_OPTIONS: '--no-warnings' } });
    t.after(() => alice.child.kill('SIGKILL'));
    await alice.line(/waits/);
    await redis.flushAll();
    const { code, stdout, stderr } = await alice.ended;
    assert.deepEqual([code, stderr], [0, '']);
    assert.match(stdout, expected);
    if (argv.length > 1) assert.doesNotMatch(stdout, /STVOR_CLIENT_ENDED/);
  }
});
