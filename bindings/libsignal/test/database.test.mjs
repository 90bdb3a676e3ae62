// Storages over a real database: PostgreSQL, with processes that are killed and writers that meet.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { folderFor, postgresServer, skip } from '../../node/test/servers.mjs';
import { adapterOf, TABLE } from './database.mjs';
import { deviceOver, ours, party, read, refused } from './world.mjs';

/** A server with a table, and a party that keeps its things there. */
async function world(t) {
  const host = folderFor(t);
  const pool = await postgresServer(t, host);
  await pool.query(TABLE);
  return { host, pool, bob: await deviceOver(adapterOf(pool), { requireAtomicSessionAndPreKey: true }) };
}

/** Somebody new who has written to bob: the first message, and a cipher for what comes back. */
async function stranger(bob, prekey) {
  const [storage, address] = [party(ours), new ours.ProtocolAddress(`bob${prekey}`, 1)];
  await new ours.SessionBuilder(storage, address).initOutgoing(await bob.bundle(prekey));
  const toBob = new ours.SessionCipher(storage, address);
  return { toBob, first: await toBob.encrypt(Buffer.from('hello')) };
}

/** A process of bob's that reads a first message; it is killed where it says that it has come to. */
function reader(host, where, name, { body }) {
  const script = fileURLToPath(new URL('reader.mjs', import.meta.url));
  const child = spawn(process.execPath, [script, host, where, name, body.toString('base64')], { stdio: ['ignore', 'pipe', 'inherit'] });
  let said = '';
  child.stdout.on('data', (chunk) => {
    said += chunk;
    if (said === `${where}\n`) child.kill('SIGKILL');
  });
  return new Promise((resolve) => { child.on('close', (_, signal) => resolve([said, signal])); });
}

/** Which rows of a first message there are: of its session, of whom it is from, and of the prekey that it uses up. */
const rowsOf = (rows, name, prekey) => [`session:${name}.1`, `identity:${name}`, `prekey:${prekey}`].map((key) => rows.some((row) => row.key === key));

test('a process that is killed while it stores a first message leaves all of it or nothing, and another one goes on', { skip }, async (t) => {
  const { host, pool, bob } = await world(t);
  const kept = async () => (await pool.query('SELECT key, value FROM kept ORDER BY key')).rows;
  for (const [prekey, where] of ['identity', 'session', 'prekey', 'deleted', 'committed'].entries()) {
    const { toBob, first } = await stranger(bob, prekey);
    const [name, before] = [`alice-${where}`, await kept()];
    assert.deepEqual(await reader(host, where, name, first), [`${where}\n`, 'SIGKILL']);
    const after = await kept();
    const toAlice = new ours.SessionCipher(bob.storage, new ours.ProtocolAddress(name, 1));
    if (where === 'committed') {
      assert.deepEqual(rowsOf(after, name, prekey), [true, true, false]);
      assert.equal((await refused(read(toAlice, first))).code, 'DUPLICATE');
    } else {
      assert.deepEqual(after, before, where);
      assert.equal(await read(toAlice, first), 'hello');
      assert.deepEqual(rowsOf(await kept(), name, prekey), [true, true, false], where);
    }
    assert.equal(await read(toBob, await toAlice.encrypt(Buffer.from('back'))), 'back');
  }
});

test('writers that meet at one session use no key twice, and processes that meet at one database lose nothing', { skip }, async (t) => {
  const { host, pool, bob } = await world(t);
  const { toBob, first } = await stranger(bob, 1);
  // Executors of their own, and storages and ciphers that are made anew for each call, over the same rows.
  const executors = [new ours.Executor(), new ours.Executor()];
  const toAlice = (call) => {
    const executor = executors[call % 2];
    return new ours.SessionCipher(ours.createStorage(adapterOf(pool), { executor }), new ours.ProtocolAddress('alice', 1), { executor });
  };
  assert.equal(await read(toAlice(0), first), 'hello');
  const numbers = Array.from({ length: 60 }, (_, number) => `${number}`);
  const there = await Promise.all(numbers.map((number) => toBob.encrypt(Buffer.from(number))));
  const [sent, came] = await Promise.all([
    Promise.all(numbers.map((number, call) => toAlice(call).encrypt(Buffer.from(number)))),
    Promise.all(there.map((message, call) => read(toAlice(call), message))),
  ]);
  assert.deepEqual(came, numbers);
  assert.deepEqual(await Promise.all(sent.map((message) => read(toBob, message))), numbers);

  const names = ['carol', 'dave', 'erin'];
  const strangers = await Promise.all(names.map((_, at) => stranger(bob, 10 + at)));
  const ends = await Promise.all(names.map((name, at) => reader(host, 'nowhere', name, strangers[at].first)));
  assert.deepEqual(ends, Array(3).fill(['hello\n', null]));
  const { rows } = await pool.query('SELECT key FROM kept');
  for (const [at, name] of names.entries()) {
    assert.deepEqual(rowsOf(rows, name, 10 + at), [true, true, false], name);
    const back = new ours.SessionCipher(bob.storage, new ours.ProtocolAddress(name, 1));
    assert.equal(await read(strangers[at].toBob, await back.encrypt(Buffer.from('back'))), 'back');
  }
});
