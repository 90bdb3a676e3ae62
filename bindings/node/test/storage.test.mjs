// Stores on servers: several processes that are one user, what outlives them, and settings that can not be used.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { codeOf, directory, run, sdk, start, startMockRelay, write } from './project.mjs';
import { folderFor, postgresServer, redisServer, skip } from './servers.mjs';

const { createApp } = sdk;
const passphrase = 'of every process on this store';
/** What no message may repeat. */
const word = 'geheim';

/** One of the processes that are Alice: prints what it is given, as `got N`; sends what it is told to. */
const INSTANCE = `
import { createApp } from '@stvor/sdk';
const [settings, sends] = JSON.parse(process.argv[2]);
const app = await createApp(settings);
const alice = await app.connect('alice');
alice.on('messageUndecryptable', ({ code }) => console.log('undecryptable', code));
if (!sends.mute) alice.onMessage((message) => console.log('got', message.content));
console.log('is', alice.identity.fingerprint);
for (let number = 0; number < sends.count; number += 1) await alice.send('bob', sends.name + '-' + number);
console.log('sent');
if (sends.mute) await app.close();
process.on('SIGTERM', () => app.close());
`;

const got = (instance) => [...instance.stdout.matchAll(/^got (\d+)$/gm)].map(([, number]) => Number(number));

/** Bob, in memory, and a way to start processes that are Alice. */
async function setting(t, storage) {
  const relay = await startMockRelay({ port: 0 });
  t.after(() => relay.close());
  const settings = { appToken: 'stvor_dev_test123', relayUrl: relay.url };
  const others = await createApp({ ...settings, storage: 'memory' });
  t.after(() => others.close());
  const bob = await others.connect('bob');
  const failed = [];
  bob.on('messageUndecryptable', ({ code }) => failed.push(code));
  const file = write(INSTANCE);
  const alice = (name, more = {}) => {
    const given = [{ ...settings, storage, passphrase, instanceLease: 1_000 }, { count: 20, name, ...more }];
    const instance = start([file, JSON.stringify(given)]);
    t.after(() => instance.child.kill('SIGKILL'));
    return instance;
  };
  return { bob, failed, alice, settings };
}

/** Bob's next messages. */
async function take(bob, count) {
  const taken = [];
  for await (const message of bob.messages()) {
    taken.push(message.content);
    if (taken.length === count) break;
  }
  return taken;
}

const numbered = (from, to) => Array.from({ length: to - from }, (_, at) => from + at);
/** Resolves when all of these were printed by one of the instances. */
async function printed(instances, numbers) {
  const all = () => new Set(instances.flatMap(got));
  while (numbers.some((number) => !all().has(number))) {
    const heard = new AbortController();
    await Promise.race(instances.map(({ child }) => once(child.stdout, 'data', { signal: heard.signal }).catch(() => {})));
    heard.abort();
  }
}

async function severalProcesses(t, storage) {
  const { bob, failed, alice } = await setting(t, storage);
  const [one, two] = [alice('one'), alice('two')];
  const [first, second] = await Promise.all([one.line(/^is /), two.line(/^is /)]);
  assert.equal(first, second, 'they are one person');
  // What both send arrives, each's in the order of its sending.
  const taken = await take(bob, 40);
  for (const name of ['one', 'two']) {
    assert.deepEqual(taken.filter((text) => text.startsWith(name)), numbered(0, 20).map((number) => `${name}-${number}`));
  }
  // One inbox: what Bob sends is given to one of them, once.
  await bob.sendMany(numbered(0, 60).map((content) => ({ to: 'alice', content })));
  await printed([one, two], numbered(0, 60));
  assert.deepEqual([...got(one), ...got(two)].sort((a, b) => a - b), numbered(0, 60));
  // One is killed, whichever receives: the other one goes on.
  one.child.kill('SIGKILL');
  await one.ended;
  await bob.sendMany(numbered(60, 90).map((content) => ({ to: 'alice', content })));
  await printed([two], numbered(60, 90));
  // Order holds within what an instance takes at a time out of the common inbox, so here it is not judged.
  assert.deepEqual(got(two).filter((number) => number >= 60).sort((a, b) => a - b), numbered(60, 90));
  two.child.kill('SIGTERM');
  assert.equal((await two.ended).code, 0, two.stderr);
  // Who starts later is the same person in the same sessions.
  const started = [];
  bob.on('sessionStarted', ({ peer }) => started.push(peer));
  const later = alice('later');
  assert.equal(await later.line(/^is /), first);
  assert.equal((await take(bob, 20)).at(-1), 'later-19');
  await bob.send('alice', 90);
  await printed([later], [90]);
  assert.deepEqual([started, failed], [[], []]);
  for (const instance of [one, two, later]) assert.doesNotMatch(instance.stdout, /undecryptable/);
  later.child.kill('SIGTERM');
  await later.ended;
}

const postgresUrl = (folder) => `postgres://stvor@${encodeURIComponent(folder)}/postgres`;

test('two processes on PostgreSQL are one user, with one inbox, exactly once', { skip }, async (t) => {
  const folder = folderFor(t);
  const pool = await postgresServer(t, folder);
  await severalProcesses(t, { postgres: postgresUrl(folder) });
  const { rows } = await pool.query("SELECT count(*)::int AS count FROM stvor_rows WHERE position('later'::bytea in value) > 0");
  assert.equal(rows[0].count, 0, 'rows are sealed');
});

test('two processes on Redis are one user, with one inbox, exactly once', { skip }, async (t) => {
  const folder = folderFor(t);
  await redisServer(t, folder);
  await severalProcesses(t, { redis: [`redis+unix://${folder}/redis.sock`] });
});

test('another key, or none, does not open a store on a server', { skip }, async (t) => {
  const folder = folderFor(t);
  await postgresServer(t, folder);
  const { alice, settings } = await setting(t, { postgres: postgresUrl(folder) });
  const first = alice('first', { count: 0, mute: true });
  assert.equal((await first.ended).code, 0, first.stderr);
  const code = async (more) => {
    const app = await createApp({ ...settings, storage: { postgres: postgresUrl(folder) }, ...more });
    const failure = await codeOf(app.connect('alice'));
    await app.close();
    return failure;
  };
  assert.equal(await code({ passphrase: 'of somebody else' }), 'WRONG_KEY');
  assert.equal(await code({ dataDir: directory() }), 'KEY_REQUIRED');
  assert.equal(await code({ passphrase }), undefined);
});

test('production mode lists everything at once, with what the server says of itself', { skip }, async (t) => {
  const folder = folderFor(t);
  await postgresServer(t, folder);
  const settings = { appToken: 'stvor_dev_test123', relayUrl: 'ws://relay.invalid', storage: { postgres: postgresUrl(folder) }, passphrase };
  await assert.rejects(createApp({ ...settings, productionMode: true }), (error) => {
    assert.equal(error.code, 'NOT_FOR_PRODUCTION');
    assert.deepEqual(error.findings.filter(({ refused }) => refused).map(({ code }) => code), ['postgres_fsync_off', 'relay_without_tls', 'development_token']);
    for (const { what, fix } of error.findings) assert.ok(error.message.includes(what) && error.message.includes(fix));
    return true;
  });
  // Of a key that nobody chose, and of a server that does not answer.
  const list = (more) => createApp({ ...settings, productionMode: true, ...more }).then(assert.fail, ({ findings }) => findings.map(({ code }) => code));
  assert.deepEqual(await list({ passphrase: undefined }), ['postgres_fsync_off', 'keyfile_on_this_machine', 'relay_without_tls', 'development_token']);
  assert.deepEqual(await list({ storage: { redis: 'redis://127.0.0.1:1' } }), ['store_not_asked', 'relay_without_tls', 'development_token']);
});

test('settings that a Redis does not tell are vouched for by name, and listed', { skip }, async (t) => {
  const folder = folderFor(t);
  await redisServer(t, folder, '--rename-command', 'CONFIG', 'hidden');
  const found = async (assuredSettings) => {
    const storage = { redis: `redis+unix://${folder}/redis.sock`, assuredSettings };
    // A store that may lose what it acknowledged is refused with the rest; one that is vouched for is stated.
    const refused = createApp({ appToken: 'stvor_dev_test123', relayUrl: 'ws://relay.invalid', storage, passphrase, productionMode: true });
    const { findings } = await refused.then(assert.fail, (error) => error);
    return findings.filter(({ code }) => code.startsWith('redis')).map(({ code, refused: no }) => [code, no]);
  };
  assert.deepEqual(await found(undefined), [['redis_settings_hidden', true]]);
  const sound = { appendonly: 'yes', appendfsync: 'always', 'no-appendfsync-on-rewrite': 'no', 'maxmemory-policy': 'noeviction' };
  assert.deepEqual(await found(sound), [['redis_settings_assured', false]]);
  assert.deepEqual(await found({ ...sound, appendfsync: 'everysec' }), [['redis_appendfsync', true], ['redis_settings_assured', false]]);
});

test('a server that is not there is told when a client is opened', async () => {
  const settings = { appToken: 'stvor_dev_test123', relayUrl: 'ws://localhost:1', passphrase, timeout: 500 };
  for (const storage of [{ postgres: `postgres://stvor:${word}@127.0.0.1:1/stvor` }, { redis: `redis://:${word}@127.0.0.1:1` }]) {
    const app = await createApp({ ...settings, storage });
    await assert.rejects(app.connect('alice'), (error) => {
      assert.deepEqual([error.code, error.retryable], ['STORE_UNREACHABLE', true]);
      assert.doesNotMatch(`${error}${error.stack}`, /geheim/);
      return true;
    });
    await assert.rejects(createApp({ ...settings, relayUrl: 'wss://relay.invalid', appToken: 'sk_live_xxx', storage, productionMode: true }),
      { code: 'STORE_UNREACHABLE' });
  }
});

test('storage of another shape is INVALID_CONFIG, in words, and repeats no password', async () => {
  const refused = async (more, pattern) => {
    await assert.rejects(createApp({ appToken: 'stvor_x', relayUrl: 'ws://localhost:1', ...more }), (error) => {
      assert.equal(error.code, 'INVALID_CONFIG', JSON.stringify(more));
      assert.match(error.message, pattern);
      assert.doesNotMatch(error.message, /geheim/);
      return true;
    });
  };
  for (const storage of ['postgres', 5, null, [], {}, { sqlite: 'a', postgres: 'b' }]) await refused({ storage }, /storage/);
  await refused({ storage: { mysql: 'x' } }, /storage has no "mysql"; there are sqlite, postgres, redis/);
  await refused({ storage: { sqlite: 5 } }, /storage\.sqlite is a string/);
  await refused({ storage: { sqlite: '' } }, /path of a directory/);
  await refused({ storage: { sqlite: 'a\0b' } }, /null character/);
  await refused({ storage: { sqlite: 'x', passwordFile: 'y' } }, /nothing beside it/);
  await refused({ storage: { sqlite: 'x' }, dataDir: 'y' }, /exclude each other/);
  await refused({ storage: { postgres: ['a'] } }, /storage\.postgres is a string/);
  await refused({ storage: { postgres: `http://stvor:${word}@x` } }, /PostgreSQL URL/);
  await refused({ storage: { postgres: 'postgres://x', replicas: 1 } }, /replicas is for/);
  await refused({ storage: { postgres: 'postgres://x', assuredSettings: {} } }, /assuredSettings is for/);
  await refused({ storage: { redis: 'redis://x', assuredSettings: { appendfsyn: 'x' } } }, /assuredSettings has no "appendfsyn"/);
  await refused({ storage: { redis: 'redis://x', assuredSettings: { appendfsync: true } } }, /assuredSettings\.appendfsync is a string/);
  await refused({ storage: { redis: [] } }, /one URL, or 1 to 64/);
  await refused({ storage: { redis: `ftp://:${word}@x` } }, /Redis URL/);
  await refused({ storage: { redis: 'redis://x', replicas: 1.5 } }, /whole number/);
  await refused({ storage: { redis: 'redis://x', clientKeyFile: 'y' } }, /belong together/);
  await refused({ storage: { postgres: 'postgres://x' }, storageAdapters: {} }, /exclude/);
  assert.equal(await codeOf(createApp({ appToken: 'stvor_x', relayUrl: 'ws://localhost:1', storage: 'memory', instanceLease: 'x' })), 'INVALID_CONFIG');
});

test('{ sqlite } is a directory, and what is in it is there again', async (t) => {
  const relay = await startMockRelay({ port: 0 });
  t.after(() => relay.close());
  const settings = { appToken: 'stvor_x', relayUrl: relay.url, storage: { sqlite: directory() } };
  const fingerprints = [];
  for (const round of [1, 2]) {
    const ended = await run([write(`
      import { createApp } from '@stvor/sdk';
      const app = await createApp(${JSON.stringify(settings)});
      console.log((await app.connect('alice')).identity.fingerprint);
      await app.close();`)]);
    assert.equal(ended.code, 0, `${round}${ended.stderr}`);
    fingerprints.push(ended.stdout);
  }
  assert.equal(fingerprints[0], fingerprints[1]);
});

test('findings are there in development, and are told once where the relay is elsewhere', async () => {
  const ended = await run([write(`
    import { createApp } from '@stvor/sdk';
    const settings = { appToken: 'stvor_dev_test123', relayUrl: 'ws://relay.invalid', storage: { sqlite: ${JSON.stringify(directory())} } };
    for (const passphrase of [undefined, undefined]) {
      const app = await createApp({ ...settings, passphrase });
      console.log(app.findings.map(({ code }) => code).join());
    }
    await createApp({ ...settings, relayUrl: 'ws://localhost:1' });`)]);
  assert.equal(ended.stdout, `${'keyfile_beside_store,relay_without_tls,development_token\n'.repeat(2)}`);
  assert.equal(ended.stderr.match(/STVOR_DEVELOPMENT_MODE/g).length, 1, ended.stderr);
});

test('secrets that are empty or hold half of a character, and names of settings that there are not, are INVALID_CONFIG', async () => {
  const place = { appToken: 'stvor_dev_test123', relayUrl: 'ws://127.0.0.1:1', dataDir: directory() };
  for (const [settings, words] of [
    [{ passphrase: '' }, /passphrase is empty/], [{ keyfile: '' }, /keyfile is empty/], [{ identityPhrase: '' }, /identityPhrase is empty/],
    [{ identityPassphrase: '' }, /identityPassphrase is empty/], [{ passphrase: 'abcdefgh\ud800' }, /half of a character/],
    [{ suite: 'ed25519' }, /suite/], [{ trustPolicy: 'tofu' }, /trustPolicy/], [{ onIdentityChange: 'x' }, /onIdentityChange/],
  ]) {
    await assert.rejects(sdk.createApp({ ...place, ...settings }), (error) => {
      assert.equal(error.code, 'INVALID_CONFIG', error.message);
      assert.match(error.message, words);
      return true;
    });
  }
  await assert.rejects(startMockRelay({ port: 0, verbose: 'yes' }), { code: 'INVALID_CONFIG' });
});
