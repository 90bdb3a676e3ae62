// The block with Redis and PostgreSQL of docs/node.md, against private servers, with the npm clients.
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { chownSync, existsSync, mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { require, sdk, startMockRelay } from './project.mjs';

const { createApp, generateIdentityKeyPair } = sdk;

/** Where a server's program is: on the path, or where Debian has it. */
function found(name) {
  const debian = '/usr/lib/postgresql';
  const folders = (process.env.PATH ?? '').split(':').concat(existsSync(debian) ? readdirSync(debian).map((version) => `${debian}/${version}/bin`) : []);
  return folders.map((folder) => join(folder, name)).find((path) => existsSync(path));
}

const programs = Object.fromEntries(['redis-server', 'initdb', 'postgres'].map((name) => [name, found(name)]));
const missing = Object.keys(programs).filter((name) => !programs[name]);
// Servers are installed where everything is tested; elsewhere their absence is no failure.
const skip = missing.length > 0 && process.env.CI !== 'true' && `${missing.join(', ')} missing: apt-get install redis-server postgresql`;

/** Nobody runs PostgreSQL as root. */
function unprivileged(argv) {
  if (process.getuid() !== 0) return argv;
  return ['setpriv', '--reuid=postgres', '--regid=postgres', '--clear-groups', ...argv];
}

function serve(t, [command, ...argv], ready) {
  const child = spawn(command, argv, { stdio: ['ignore', 'pipe', 'pipe'] });
  let said = '';
  const up = new Promise((resolve, reject) => {
    const hear = (chunk) => {
      said += chunk;
      if (ready.test(said)) resolve();
    };
    child.stdout.on('data', hear);
    child.stderr.on('data', hear);
    child.on('close', () => reject(new Error(`${command} ended: ${said}`)));
    child.on('error', reject);
  });
  const ended = new Promise((resolve) => { child.on('close', resolve); });
  t.after(async () => {
    child.kill('SIGKILL');
    await ended;
  });
  return up;
}

async function redisServer(t, folder) {
  const socket = join(folder, 'redis.sock');
  // What is registered first ends first: the client before its server.
  let client;
  t.after(() => client?.close());
  await serve(t, [programs['redis-server'], '--port', '0', '--unixsocket', socket, '--save', '', '--dir', folder], /ready to accept connections/i);
  client = require('redis').createClient({ socket: { path: socket } });
  await client.connect();
  return client;
}

async function postgresServer(t, folder) {
  const data = join(folder, 'pg');
  if (process.getuid() === 0) {
    const [uid, gid] = ['-u', '-g'].map((flag) => Number(spawnSync('id', [flag, 'postgres']).stdout));
    chownSync(folder, uid, gid);
  }
  const [command, ...argv] = unprivileged([programs.initdb, '-D', data, '-U', 'stvor', '-A', 'trust', '--no-sync']);
  const made = spawnSync(command, argv, { encoding: 'utf8', cwd: folder });
  assert.equal(made.status, 0, made.stderr);
  let pool;
  t.after(() => pool?.end());
  await serve(t, unprivileged([programs.postgres, '-D', data, '-k', folder, '-c', 'listen_addresses=', '-c', 'fsync=off']), /ready to accept connections/);
  pool = new (require('pg').Pool)({ host: folder, user: 'stvor', database: 'postgres' });
  await pool.query('CREATE TABLE sessions (peer_id text PRIMARY KEY, state bytea NOT NULL)');
  return pool;
}

test('replay cache in Redis, sessions in PostgreSQL', { skip }, async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'stvor-pg-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const pg = await postgresServer(t, folder);
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
    const app = await createApp({ ...settings, storageAdapters, productionMode: true });
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
