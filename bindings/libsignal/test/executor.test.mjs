// Order, fairness, bounds, deadlines, crashes.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { couple, group, native, nativeName, ours, party, read, refused } from './world.mjs';

const owner = {};
const pause = (millis = 1) => new Promise((resolve) => setTimeout(resolve, millis));

test('work on one address is done in order, and on others meanwhile', async () => {
  const executor = new ours.Executor();
  const seen = [];
  const job = (address, name, millis) => executor.run(owner, address, async () => {
    seen.push(`${name} begins`);
    await pause(millis);
    seen.push(`${name} ends`);
  });
  await Promise.all([job('a', 'a1', 20), job('a', 'a2', 1), job('b', 'b1', 1)]);
  assert.ok(seen.indexOf('a1 ends') < seen.indexOf('a2 begins'));
  assert.ok(seen.indexOf('b1 ends') < seen.indexOf('a1 ends'));
});

test('a flooded address does not keep another waiting', async () => {
  const executor = new ours.Executor({ maxPending: 1, maxQueued: 1_000 });
  const done = [];
  const flood = Array.from({ length: 200 }, (_, i) => executor.run(owner, 'flooded', async () => void (await null, done.push(`f${i}`))));
  const quiet = executor.run(owner, 'quiet', async () => void done.push('quiet'));
  await Promise.all([...flood, quiet]);
  assert.ok(done.indexOf('quiet') <= 3, `${done.indexOf('quiet')} before it`);
});

test('the queue takes its bound and rejects one more, of one peer and of all', async () => {
  const executor = new ours.Executor({ maxPending: 1, maxQueued: 4, maxQueuedPerPeer: 3 });
  const events = [];
  executor.on('rejected', ({ scope, address }) => events.push(`${scope} ${address}`));
  executor.on('pressure', ({ queued }) => events.push(`pressure ${queued}`));
  let release;
  const blocked = new Promise((resolve) => (release = resolve));
  const run = (address) => executor.run(owner, address, () => blocked);
  const kept = [run('x'), run('a'), run('a'), run('a')];
  const [fourth] = [await refused(run('a'))];
  assert.ok(fourth instanceof ours.BackpressureError);
  assert.deepEqual([fourth.code, fourth.retryable], ['BACKPRESSURE', true]);
  kept.push(run('b'));
  assert.equal((await refused(run('c'))).code, 'BACKPRESSURE');
  assert.deepEqual(events, ['pressure 3', 'peer a', 'pressure 4', 'all c'].filter((one) => events.includes(one)));
  assert.ok(events.includes('peer a') && events.includes('all c') && events.includes('pressure 4'));
  release();
  await Promise.all(kept);
  assert.deepEqual([executor.pending, executor.queued], [0, 0]);
});

test('as many calls as may wait, each of something that is no message, fail in order, and what follows is done', async () => {
  for (const [onPressure, count] of [['reject', 4_000], ['wait', 8_000]]) {
    const executor = new ours.Executor({ onPressure });
    const { alice, bob, start, at } = couple(ours, { json: false });
    await start(bob.bundle(1));
    let go;
    const gate = new Promise((done) => (go = done));
    const { loadSession } = alice;
    alice.loadSession = async (address) => (await gate, loadSession(address));
    const cipher = new ours.SessionCipher(alice, new ours.ProtocolAddress(...at.bob), { executor });
    const order = [];
    const settles = (promise, name) => promise.then(() => order.push(`${name} sealed`), ({ code }) => order.push(`${name} ${code}`));
    const all = [settles(cipher.encrypt(Buffer.from('slow')), 0)];
    for (let one = 1; one <= count; one += 1) all.push(settles(one % 2 ? cipher.encrypt('no bytes') : cipher.decryptWhisperMessage(undefined), one));
    go();
    await Promise.all(all);
    assert.deepEqual(order, Array.from({ length: count + 1 }, (_, one) => `${one} ${one ? 'INVALID_ARGUMENT' : 'sealed'}`));
    assert.equal((await cipher.encrypt(Buffer.from('after'))).type, 3);
    assert.deepEqual([executor.pending, executor.queued], [0, 0]);
  }
});

test('a storage that can not say any more what it is of fails its own call, and no other', async () => {
  const { alice, bob, start, at } = couple(ours, { json: false });
  await start(bob.bundle(1));
  const leaves = () => {
    let asked = 0;
    // It is asked when a call comes, and when its turn does.
    return Object.create(alice, { scope: { get() { if ((asked += 1) === 2) throw new Error('logged out'); } } });
  };
  const executor = new ours.Executor({ maxPending: 1 });
  const cipher = (of) => new ours.SessionCipher(of, new ours.ProtocolAddress(...at.bob), { executor });
  const calls = [alice, leaves(), alice, leaves(), leaves(), alice].map((of) => cipher(of).encrypt(Buffer.from('text')).then(() => 'sealed', ({ message }) => message));
  assert.deepEqual(await Promise.all(calls), ['sealed', 'logged out', 'sealed', 'logged out', 'logged out', 'sealed']);
  assert.equal(await cipher(leaves()).encrypt(Buffer.from('alone')).catch(({ message }) => message), 'logged out');
  assert.equal((await cipher(alice).encrypt(Buffer.from('text'))).type, 3);
  assert.deepEqual([executor.pending, executor.queued], [0, 0]);
});

test('callers can wait for room instead, as many again', async () => {
  const executor = new ours.Executor({ maxPending: 1, maxQueued: 2, maxQueuedPerPeer: 2, onPressure: 'wait' });
  let done = 0;
  const run = () => executor.run(owner, 'a', async () => void (await pause(), (done += 1)));
  const all = Array.from({ length: 5 }, run);
  assert.equal((await refused(run())).code, 'BACKPRESSURE');
  await Promise.all(all);
  assert.equal(done, 5);
});

test('what calls keep while they wait is bounded in bytes, in all and for one peer', async () => {
  for (const canonical of [false, true]) {
    const executor = new ours.Executor({ maxPending: 1, maxQueuedBytes: 16_384 });
    const { alice, bob, start } = couple(ours, { names: true });
    await start(bob.bundle(1));
    let release;
    const held = new Promise((resolve) => (release = resolve));
    const { getOurIdentity } = alice;
    alice.getOurIdentity = async () => (await held, getOurIdentity());
    if (canonical) alice.canonicalAddress = async (address) => (await held, address);
    const to = (name) => new ours.SessionCipher(alice, new ours.ProtocolAddress(name, 1), { executor });
    const kilobytes = (count) => Buffer.alloc(count * 1_024);
    const kept = [to('bob').encrypt(kilobytes(64))];
    // A quarter for one peer, however the bytes come.
    kept.push(to('bob').encrypt(kilobytes(2)), to('bob').encryptMany([kilobytes(1), kilobytes(1)]));
    for (const call of [() => to('bob').encrypt(kilobytes(1)), () => to('bob').decryptWhisperMessage(kilobytes(1)), () => to('bob').decryptMany([kilobytes(1)])]) {
      assert.equal((await refused(call())).code, 'BACKPRESSURE');
    }
    // What is larger than that is let in alone, and counts as so much.
    const others = ['a', 'b', 'c'].map((name) => refused(to(name).encrypt(kilobytes(512))));
    const full = await refused(to('d').encrypt(kilobytes(1)));
    assert.match(full.message, /in all/);
    release();
    await Promise.all(kept);
    for (const error of await Promise.all(others)) assert.notEqual(error.code, 'BACKPRESSURE');
    assert.deepEqual([executor.pending, executor.queued], [0, 0]);
    kept.push(to('bob').encrypt(kilobytes(64)));
    await Promise.all(kept);
  }
  const sender = party(ours);
  const name = new group.SenderKeyName('bytes', { id: 'us', deviceId: 0 });
  const executor = new ours.Executor({ maxPending: 1, maxQueuedBytes: 4_096 });
  const cipher = new group.GroupCipher(sender, name, { executor });
  await new group.GroupSessionBuilder(sender, { executor }).create(name);
  const [first, second, third] = [cipher.encrypt(Buffer.alloc(9)), cipher.encryptMany([Buffer.alloc(512), Buffer.alloc(512)]), cipher.encrypt(Buffer.alloc(9))];
  assert.equal((await refused(third)).code, 'BACKPRESSURE');
  await Promise.all([first, second]);
});

test('callers that wait for room are let in by turns of their peers, in order, whatever they bring', async () => {
  const executor = new ours.Executor({ maxPending: 1, maxQueued: 4, maxQueuedPerPeer: 4, maxQueuedBytes: 4_000, onPressure: 'wait' });
  const seen = [];
  const run = (address, name, bytes = 0) => executor.run(owner, address, async () => void (await null, seen.push(name)), false, Buffer.alloc(bytes));
  const all = [run('x', 'x')];
  for (let i = 0; i < 4; i += 1) all.push(run('x', `x${i}`));
  for (let i = 0; i < 3; i += 1) all.push(run('a', `a${i}`, i === 0 ? 1_000 : 0));
  all.push(run('b', 'b0', 1_000));
  assert.equal((await refused(run('c', 'c'))).code, 'BACKPRESSURE');
  await Promise.all(all);
  assert.deepEqual(seen.filter((name) => name.startsWith('a')), ['a0', 'a1', 'a2']);
  assert.ok(seen.indexOf('b0') < seen.indexOf('a1'), seen.join(' '));
  assert.deepEqual([executor.pending, executor.queued], [0, 0]);
});

test('a million calls that nobody waits for stay within bounds, each done or rejected', async () => {
  const executor = new ours.Executor({ maxPending: 8, maxQueued: 1_000 });
  let [done, rejected, most] = [0, 0, 0];
  for (let i = 0; i < 1_000_000; i += 1) {
    executor.run(owner, `${i % 50}`, async () => void (await null)).then(() => (done += 1), ({ code }) => (rejected += code === 'BACKPRESSURE'));
    most = Math.max(most, executor.queued);
    if (i % 5_000 === 0) await pause(0);
  }
  while (executor.pending + executor.queued > 0) await pause();
  await pause();
  assert.equal(done + rejected, 1_000_000);
  assert.ok(done > 0 && rejected > 0 && most <= 1_000, `${done} ${rejected} ${most}`);
});

test('a write that was given up and lands late rolls nothing back', async () => {
  const executor = new ours.Executor({ storageTimeout: 30, backoff: 1 });
  const { bob, alice, start, toAlice } = couple(ours, { names: true });
  await start(bob.bundle(1));
  const cipher = new ours.SessionCipher(alice, new ours.ProtocolAddress('bob', 1), { executor });
  const events = [];
  executor.on('crash', ({ code, address }) => events.push(`${code} ${address}`));
  executor.on('revived', ({ address }) => events.push(`revived ${address}`));
  const { storeSession } = alice;
  let land;
  alice.storeSession = (address, record) => new Promise((resolve) => (land = () => resolve(storeSession.call(alice, address, record))));
  const given = await refused(cipher.encrypt(Buffer.from('given up')));
  assert.deepEqual([given.code, given instanceof ours.StorageError], ['STORAGE_TIMEOUT', true]);
  alice.storeSession = storeSession;
  const [one, two] = [await cipher.encrypt(Buffer.from('one')), await cipher.encrypt(Buffer.from('two'))];
  // The old write lands over the newer record.
  land();
  await pause(20);
  const three = await cipher.encrypt(Buffer.from('three'));
  for (const [message, text] of [[one, 'one'], [two, 'two'], [three, 'three']]) assert.equal(await read(toAlice, message), text);
  const bodies = new Set([one, two, three].map(({ body }) => body.toString('hex')));
  assert.equal(bodies.size, 3);
  assert.deepEqual(events, ['STORAGE_TIMEOUT bob.1', 'revived bob.1']);
});

test('a first message whose save was given up is read when it comes again, whenever the save lands', async () => {
  for (const when of ['before', 'after', 'never']) {
    const executor = new ours.Executor({ storageTimeout: 30, backoff: 1 });
    const { bob, start, toBob, toAlice, at } = couple(ours);
    await start(bob.bundle(1));
    const [first, second] = [await toBob.encrypt(Buffer.from('first')), await toBob.encrypt(Buffer.from('second'))];
    const cipher = () => new ours.SessionCipher(bob, new ours.ProtocolAddress(...at.alice), { executor });
    const { storeSession } = bob;
    let land;
    bob.storeSession = (address, record) => new Promise((resolve) => (land = () => resolve(storeSession.call(bob, address, record))));
    assert.equal((await refused(read(cipher(), first))).code, 'STORAGE_TIMEOUT');
    bob.storeSession = storeSession;
    if (when === 'before') {
      land();
      await pause(20);
    }
    assert.equal(await read(cipher(), first), 'first', when);
    if (when === 'after') {
      land();
      await pause(20);
    }
    assert.equal((await refused(read(cipher(), first))).code, 'DUPLICATE', `${when}: once`);
    assert.equal(await read(cipher(), second), 'second', when);
    assert.ok(!bob.prekeys.has(1), 'the prekey is gone with it');
    assert.equal(await read(toBob, await toAlice.encrypt(Buffer.from('back'))), 'back');
  }
});

const faulty = native().panicAtOnce ? {} : { skip: 'what is released has no faults on purpose: build with --profile dev' };

test('a panic in the native half fails one call, pauses its address for longer each time, and what is stored is as it was', faulty, async () => {
  const executor = new ours.Executor({ backoff: 1 });
  const events = [];
  executor.on('crash', ({ address, code, pause: millis }) => events.push(`${code} ${address} ${millis}`));
  executor.on('revived', ({ address }) => events.push(`revived ${address}`));
  const { bob, start, toBob, at } = couple(ours);
  await start(bob.bundle(1));
  const first = await toBob.encrypt(Buffer.from('first'));
  const cipher = new ours.SessionCipher(bob, new ours.ProtocolAddress(...at.alice), { executor });
  const half = native();
  const { decryptPrekey } = half;
  half.decryptPrekey = () => half.panicAtOnce('a secret');
  try {
    for (const error of await Promise.all([refused(read(cipher, first)), refused(read(cipher, first))])) {
      assert.deepEqual([error.code, error.message.includes('secret'), error.cause], ['INTERNAL', false, undefined]);
    }
  } finally {
    half.decryptPrekey = decryptPrekey;
  }
  assert.ok(bob.prekeys.has(1) && bob.sessions.size === 0);
  assert.equal(await read(cipher, first), 'first');
  const alice = at.alice.join('.');
  assert.deepEqual(events, [`INTERNAL ${alice} 1`, `INTERNAL ${alice} 2`, `revived ${alice}`]);
});

test('a panic where each message is encrypted and decrypted fails one call, and what is stored is as it was', faulty, async () => {
  const executor = new ours.Executor({ backoff: 1 });
  const { alice, bob, start, toBob, toAlice, at } = couple(ours, { json: false });
  await start(bob.bundle(1));
  await read(toAlice, await toBob.encrypt(Buffer.from('first')));
  await read(toBob, await toAlice.encrypt(Buffer.from('back')));
  const sent = await toAlice.encrypt(Buffer.from('sent'));
  const half = native();
  const cipher = new ours.SessionCipher(alice, new ours.ProtocolAddress(...at.bob), { executor });
  const before = [...alice.sessions.values()][0].toBytes();
  for (const [name, call] of [['encrypt', () => cipher.encrypt(Buffer.from('lost'))], ['decrypt', () => read(cipher, sent)]]) {
    const real = half[name];
    half[name] = (record, text, ...answer) => half.panicInCall(record, Buffer.from('a secret'), ...answer);
    try {
      const error = await refused(call());
      assert.deepEqual([error.code, error.message.includes('secret'), error.cause], ['INTERNAL', false, undefined], name);
    } finally {
      half[name] = real;
    }
    assert.ok([...alice.sessions.values()][0].toBytes().equals(before), name);
  }
  assert.equal(await read(cipher, sent), 'sent');
  assert.equal(await read(toAlice, await cipher.encrypt(Buffer.from('and on'))), 'and on');
});

test('the words of a panic are printed nowhere, and its thread goes on', faulty, () => {
  const { status, stdout, stderr } = spawnSync(process.execPath, ['-e', `
    const { keyhelper } = require('@stvor/libsignal');
    keyhelper.generateIdentityKeyPair();
    const { panicAtOnce } = require(process.argv[1]);
    try { panicAtOnce('a secret'); } catch ({ code }) { console.log(code); }
    panicAtOnce('');
    console.log(keyhelper.generateIdentityKeyPair().pubKey.length);
  `, nativeName()], { cwd: process.env.STVOR_TEST_PROJECT, encoding: 'utf8' });
  assert.deepEqual([status, stdout, stderr], [0, 'GenericFailure\n33\n', '']);
});

test('every function of the native half catches panics', () => {
  const folder = new URL('../src/', import.meta.url);
  let functions = 0;
  for (const name of readdirSync(folder).filter((one) => one.endsWith('.rs'))) {
    for (const [, attribute] of readFileSync(new URL(name, folder), 'utf8').matchAll(/#\[napi(.*?)\]\n(?:\s*#\[.*\]\n)*\s*pub (?:async )?fn /g)) {
      // What exports the calls for each message runs once. They are closures, of which napi catches panics: the test above sees it.
      assert.match(attribute, name === 'hot.rs' ? /^\(module_exports\)$/ : /catch_unwind/, name);
      functions += 1;
    }
  }
  assert.ok(functions > 30, 'the walk works');
});

test('a storage that throws fails the call, and the message is not used up', async () => {
  const { bob, start, toBob, toAlice } = couple(ours);
  await start(bob.bundle(1));
  const first = await toBob.encrypt(Buffer.from('first'));
  const { storeSession } = bob;
  bob.storeSession = async () => {
    throw new Error('disk full');
  };
  const error = await refused(read(toAlice, first));
  assert.deepEqual([error.code, error.cause.message, error instanceof ours.StorageError], ['STORAGE_FAILED', 'disk full', true]);
  assert.ok(bob.prekeys.has(1), 'the prekey is kept while the session is not stored');
  bob.storeSession = storeSession;
  assert.equal(await read(toAlice, first), 'first');
});

test('options are checked, and listeners that throw harm nobody', async () => {
  for (const bad of [{ maxPending: 0 }, { maxQueued: 1.5 }, { onPressure: 'drop' }, { maxQueues: 3 }, { storageTimeout: -1 }]) {
    assert.throws(() => new ours.Executor(bad), TypeError);
  }
  for (const [bad, message] of [[{ maxQueued: 2 ** 31 }, /maxQueued is a whole number from 1 to 2147483647/], [{ backoff: 35_791_395 }, /backoff is a whole number from 1 to 35791394/]]) {
    assert.throws(() => new ours.Executor(bad), message);
  }
  // Its longest pause is one that a timer can wait.
  new ours.Executor({ maxQueued: 2 ** 31 - 1, backoff: 35_791_394 });
  const executor = new ours.Executor();
  const off = executor.on('compatibility', () => {
    throw new Error('a listener');
  });
  const told = [];
  executor.on('compatibility', ({ address, what }) => told.push([address, ...what]));
  const [alice, bob] = [party(ours), party(ours)];
  const builder = new ours.SessionBuilder(alice, new ours.ProtocolAddress('bob', 0), { executor });
  await builder.initOutgoing(bob.bundle());
  off();
  assert.deepEqual(told, [['bob.0', 'no-post-quantum', 'short-mac', 'no-one-time-prekey']]);
});

test('ciphers that are given no executor share one, which tells and can be another', async () => {
  const [before, told] = [ours.defaultExecutor(), []];
  const start = async (name) => {
    const [alice, bob] = [party(ours), party(ours)];
    await new ours.SessionBuilder(alice, new ours.ProtocolAddress(name, 0)).initOutgoing(bob.bundle());
  };
  const off = before.on('compatibility', ({ address }) => told.push(`before ${address}`));
  await start('bob');
  const own = new ours.Executor({ maxPending: 1 });
  own.on('compatibility', ({ address }) => told.push(`own ${address}`));
  try {
    ours.setDefaultExecutor(own);
    assert.equal(ours.defaultExecutor(), own);
    await start('carol');
    for (const bad of [undefined, null, {}, new (class Executor {})()]) assert.throws(() => ours.setDefaultExecutor(bad), TypeError);
    await start('dave');
  } finally {
    ours.setDefaultExecutor(before);
    off();
  }
  assert.deepEqual(told, ['before bob.0', 'own carol.0', 'own dave.0']);
});

test('what is weaker is told of records that were made elsewhere, and of groups, once each', async () => {
  const executor = new ours.Executor();
  const told = [];
  executor.on('compatibility', ({ address, what }) => told.push([address, ...what]));
  const { alice, bob, start, toBob, toAlice, at } = couple(ours);
  await start(bob.bundle(1));
  await read(toAlice, await toBob.encrypt(Buffer.from('x')));
  // Records as another program left them, under ciphers that started nothing.
  alice.sessions.set(at.bob.join('.'), JSON.stringify(JSON.parse(alice.sessions.get(at.bob.join('.')))));
  const cipher = new ours.SessionCipher(alice, new ours.ProtocolAddress(...at.bob), { executor });
  for (let i = 0; i < 3; i += 1) await cipher.encrypt(Buffer.from('x'));
  assert.deepEqual(told.splice(0), [[at.bob.join('.'), 'no-post-quantum', 'short-mac']]);
  const name = new group.SenderKeyName('g', { id: 'alice', deviceId: 1 });
  const made = await new group.GroupSessionBuilder(alice, { executor }).create(name);
  await new group.GroupCipher(alice, name, { executor }).encrypt(Buffer.from('x'));
  await new group.GroupSessionBuilder(bob, { executor }).process(new group.SenderKeyName('g', { id: 'other', deviceId: 1 }), made);
  assert.deepEqual(told, [['g::alice::1', 'no-post-quantum', 'no-associated-data'], ['g::other::1', 'no-post-quantum', 'no-associated-data']]);
});
