// Private database servers for tests, on unix sockets.
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { chownSync, existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** Of whichever project the tests run in: clients of the servers are there. */
const require = createRequire(join(process.env.STVOR_TEST_PROJECT, 'index.js'));

/** Where a server's program is: on the path, or where Debian has it. */
function found(name) {
  const debian = '/usr/lib/postgresql';
  const folders = (process.env.PATH ?? '').split(':').concat(existsSync(debian) ? readdirSync(debian).map((version) => `${debian}/${version}/bin`) : []);
  return folders.map((folder) => join(folder, name)).find((path) => existsSync(path));
}

const programs = Object.fromEntries(['redis-server', 'initdb', 'postgres'].map((name) => [name, found(name)]));
const missing = Object.keys(programs).filter((name) => !programs[name]);
/** Whether what is missing is a failure: where everything is tested, unless it is said that there are no servers. */
export const required = process.env.CI === 'true' && process.env.STVOR_SERVERS !== 'none';
export const skip = missing.length > 0 && !required && `${missing.join(', ')} missing: apt-get install redis-server postgresql`;

/** Nobody runs PostgreSQL as root. */
function unprivileged(argv) {
  if (process.getuid() !== 0) return argv;
  return ['setpriv', '--reuid=postgres', '--regid=postgres', '--clear-groups', ...argv];
}

/** Starts a program and waits for what it says when it is ready. It ends with the test. */
export function serve(t, [command, ...argv], ready) {
  // In a group of its own: what it starts itself ends with it.
  const child = spawn(command, argv, { stdio: ['ignore', 'pipe', 'pipe'], detached: true });
  let said = '';
  const up = new Promise((resolve, reject) => {
    const hear = (chunk) => {
      said += chunk;
      if (ready.test(said)) resolve(said);
    };
    child.stdout.on('data', hear);
    child.stderr.on('data', hear);
    child.on('close', () => reject(new Error(`${command} ended: ${said}`)));
    child.on('error', reject);
  });
  const ended = new Promise((resolve) => { child.on('close', resolve); });
  t.after(async () => {
    try {
      process.kill(-child.pid, 'SIGKILL');
    } catch {
      // It is gone.
    }
    await ended;
  });
  return up;
}

/** A private folder, with a short path: sockets have to fit. */
export function folderFor(t) {
  const folder = mkdtempSync(join(tmpdir(), 'stvor-db-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** A Redis server of the test's own, with more arguments, and a client of it. */
export async function redisServer(t, folder, ...more) {
  const socket = join(folder, 'redis.sock');
  // What is registered first ends first: the client before its server.
  let client;
  t.after(() => client?.close());
  await serve(t, [programs['redis-server'], '--port', '0', '--unixsocket', socket, '--save', '', '--dir', folder, ...more], /ready to accept connections/i);
  client = require('redis').createClient({ socket: { path: socket } });
  await client.connect();
  return client;
}

/** A PostgreSQL server of the test's own and a pool of connections to it. */
export async function postgresServer(t, folder) {
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
  return pool;
}
