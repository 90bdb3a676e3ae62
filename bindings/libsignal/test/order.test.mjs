// One order of an address in the whole process, and what a storage answers.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { cpSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { couple, group, ours, party, read, refused, require } from './world.mjs';

const pause = (millis = 1) => new Promise((resolve) => setTimeout(resolve, millis));
const quick = () => new ours.Executor({ storageTimeout: 30, backoff: 1 });
const same = Buffer.from('the same text');
const distinct = (messages) => new Set(messages.map((message) => (message.body ?? message).toString('hex'))).size;

/** Two that both heard from the other. */
async function talking() {
  const both = couple(ours);
  await both.start(both.bob.bundle(1));
  await both.turn();
  return both;
}

/** A storage that answers later. */
const slow = (who) => ({
  ...who,
  loadSession: async (address) => (await pause(2), who.loadSession(address)),
  storeSession: async (address, record) => (await pause(2), who.storeSession(address, record)),
  loadSenderKey: async (name) => (await pause(2), who.loadSenderKey(name)),
  storeSenderKey: async (name, record) => (await pause(2), who.storeSenderKey(name, record)),
  isTrustedIdentity: async () => true,
});

test('two copies of the package, and executors of many, share the order of an address', async () => {
  const home = dirname(require.resolve('@stvor/libsignal/package.json'));
  // Under a name that is not looked for: what begins with `libsignal-` is the native half.
  const place = join(home, '../copy-of-libsignal');
  cpSync(home, place, { recursive: true });
  try {
    const [copy, copyGroup] = [require(join(place, 'dist/index.js')), require(join(place, 'dist/group.js'))];
    assert.notEqual(copy.SessionCipher, ours.SessionCipher);
    // Asked here first, so that it is not of the copy that goes.
    assert.equal(ours.defaultExecutor(), copy.defaultExecutor());
    const { alice, toAlice, at } = await talking();
    const storage = slow(alice);
    const seal = (S, options, of = storage) => new S.SessionCipher(of, new S.ProtocolAddress(...at.bob), options).encrypt(same);
    const copies = await Promise.all([0, 1, 2, 3, 4, 5].map((one) => seal(one % 2 ? copy : ours)));
    assert.equal(distinct(copies), 6);
    const executors = await Promise.all([0, 1, 2, 3, 4, 5].map((one) => seal(one % 2 ? copy : ours, { executor: new (one % 3 ? ours : copy).Executor() })));
    assert.equal(distinct(executors), 6);
    for (const message of [...copies, ...executors]) assert.equal(await read(toAlice, message), String(same));

    // What a storage throws of one copy is known to the executor of the other.
    const unreadable = { ...alice, loadSession: async () => copy.SessionRecord.deserialize({}) };
    assert.equal((await refused(seal(copy, undefined, unreadable))).code, 'BAD_RECORD');

    const name = new group.SenderKeyName('two copies', { id: 'me', deviceId: 1 });
    await new group.GroupSessionBuilder(storage).create(name);
    assert.equal(distinct(await Promise.all([0, 1, 2, 3].map((one) => new (one % 2 ? copyGroup : group).GroupCipher(storage, name).encrypt(same)))), 4);

    // What one copy gave up counts for the other.
    let land;
    const hangs = { ...alice, storeSession: (address, record) => new Promise((done) => { land = () => done(alice.storeSession(address, record)); }) };
    const cipher = (S, of) => new S.SessionCipher(of, new S.ProtocolAddress(...at.bob), { executor: new S.Executor({ storageTimeout: 30, backoff: 1 }) });
    assert.equal((await refused(cipher(copy, hangs).encrypt(same))).code, 'STORAGE_TIMEOUT');
    const [one, two] = [await cipher(ours, alice).encrypt(same), await cipher(copy, alice).encrypt(same)];
    land();
    await pause(20);
    assert.equal(distinct([one, two, await cipher(ours, alice).encrypt(same)]), 3);
  } finally {
    rmSync(place, { recursive: true });
  }
});

test('an executor that means something else by its work is refused before any, and without it two copies keep one order', async () => {
  const home = dirname(require.resolve('@stvor/libsignal/package.json'));
  const place = join(home, '../libsignal-older');
  cpSync(home, place, { recursive: true });
  try {
    // As a version before left it: the same lanes, other executors.
    const file = join(place, 'dist/executor.js');
    const [now, number] = [readFileSync(file, 'utf8'), /\/executor\.\d+/];
    assert.equal(now.split(number).length, 2);
    writeFileSync(file, now.replace(number, '/executor.0'));
    const [older, olderGroup] = [require(join(place, 'dist/index.js')), require(join(place, 'dist/group.js'))];
    const { alice, toAlice, at } = await talking();
    const storage = slow(alice);
    const name = new group.SenderKeyName('two versions', { id: 'me', deviceId: 1 });
    const adapter = { get: async () => undefined, set: async () => {}, delete: async () => {} };
    const takes = (S, G, executor) => [
      () => new S.SessionCipher(storage, new S.ProtocolAddress(...at.bob), { executor }),
      () => new S.SessionBuilder(storage, new S.ProtocolAddress(...at.bob), { executor }),
      () => new G.GroupCipher(storage, name, { executor }),
      () => new G.GroupSessionBuilder(storage, { executor }),
      () => S.createStorage(adapter, { executor }),
    ];
    // One that never said what it can do, and has all but what a call needs at its end.
    const planted = { run: (_owner, _address, work) => work({}), runGiven() {}, runBoth() {}, ask: (_turn, call) => call(), on() {} };
    const refusals = [...takes(ours, group, new older.Executor()), ...takes(older, olderGroup, new ours.Executor()), ...takes(ours, group, planted)];
    for (const make of refusals) {
      assert.throws(make, (error) => error instanceof TypeError && error.code === 'INVALID_ARGUMENT' && /of this copy/.test(error.message));
    }
    for (const make of [...takes(ours, group, new ours.Executor()), ...takes(older, olderGroup, new older.Executor())]) assert.ok(make());

    const cipher = (S) => new S.SessionCipher(storage, new S.ProtocolAddress(...at.bob), { executor: new S.Executor() });
    const sealed = await Promise.all([0, 1, 2, 3, 4, 5].map((one) => cipher(one % 2 ? older : ours).encrypt(same)));
    assert.equal(distinct(sealed), 6);
    for (const message of sealed) assert.equal(await read(toAlice, message), String(same));
  } finally {
    rmSync(place, { recursive: true });
  }
});

test('what could not be written again is written when the storage of the account answers, at whatever address', async () => {
  const executor = quick();
  const { alice, at } = await talking();
  const other = party(ours);
  const scope = {};
  const rows = { ...alice, scope, isTrustedIdentity: async () => true };
  const cipher = (storage) => new ours.SessionCipher(storage, new ours.ProtocolAddress(...at.bob), { executor });
  const before = alice.sessions.get(at.bob.join('.'));
  let reject;
  const dead = { ...rows, storeSession: () => new Promise((_, no) => { reject = no; }) };
  assert.equal((await refused(cipher(dead).encrypt(same))).code, 'STORAGE_TIMEOUT');
  dead.storeSession = () => Promise.reject(new Error('closed'));
  reject(new Error('connection lost'));
  await pause(20);
  assert.equal(alice.sessions.get(at.bob.join('.')), before);
  await new ours.SessionBuilder(rows, new ours.ProtocolAddress('elsewhere', 1), { executor }).initOutgoing(other.bundle(1));
  while (alice.sessions.get(at.bob.join('.')) === before || executor.pending > 0) await pause(2);
  assert.deepEqual([executor.pending, executor.queued], [0, 0]);
});

test('a sender key that could not be written again goes into no store of another account', async () => {
  const executor = quick();
  const [one, two] = [party(ours), party(ours)];
  const name = (of) => new group.SenderKeyName(`accounts ${of}`, { id: 'me', deviceId: 1 });
  await new group.GroupSessionBuilder(one, { executor }).create(name('one'));
  let reject;
  const dead = { ...one, storeSenderKey: () => new Promise((_, no) => { reject = no; }) };
  assert.equal((await refused(new group.GroupCipher(dead, name('one'), { executor }).encrypt(same))).code, 'STORAGE_TIMEOUT');
  dead.storeSenderKey = () => Promise.reject(new Error('closed'));
  reject(new Error('connection lost'));
  await pause(20);
  await new group.GroupSessionBuilder(two, { executor }).create(name('two'));
  await pause(20);
  assert.deepEqual([...two.senderKeys.keys()], [name('two').toString()]);
  // The store that it is of writes it, with what comes next.
  const messages = [await new group.GroupCipher(one, name('one'), { executor }).encrypt(same), await new group.GroupCipher(one, name('one')).encrypt(same)];
  assert.deepEqual(messages.map((message) => new group.SenderKeyMessage(message).getIteration()), [1, 2]);
});

test('a message whose save was refused though it landed is read when it comes again, once', async () => {
  const { alice, bob, at, toBob } = await talking();
  const lost = (act) => {
    let times = 1;
    return async (...given) => {
      const done = await act(...given);
      if (times-- > 0) throw new Error('connection reset');
      return done;
    };
  };
  const mine = () => new ours.SessionCipher({ ...bob, storeSession: lost(bob.storeSession) }, new ours.ProtocolAddress(...at.alice), { executor: quick() });
  for (const way of ['one', 'many']) {
    const message = await toBob.encrypt(Buffer.from('precious'));
    const cipher = mine();
    const take = async () => {
      if (way === 'one') return read(cipher, message);
      const [given] = await cipher.decryptMany([message.body]);
      if (given instanceof Error) throw given;
      return String(given);
    };
    assert.equal((await refused(take())).code, 'STORAGE_FAILED', way);
    assert.equal(await take(), 'precious', way);
    assert.equal((await refused(take())).code, 'DUPLICATE', way);
  }
  const name = new group.SenderKeyName('refused', { id: 'alice', deviceId: 1 });
  const made = await new group.GroupSessionBuilder(alice).create(name);
  await new group.GroupSessionBuilder(bob).process(name, made);
  const post = await new group.GroupCipher(alice, name).encrypt(same);
  const member = new group.GroupCipher({ loadSenderKey: bob.loadSenderKey, storeSenderKey: lost(bob.storeSenderKey) }, name);
  assert.equal((await refused(member.decrypt(post))).code, 'STORAGE_FAILED');
  assert.equal(String(await member.decrypt(post)), String(same));
  assert.equal((await refused(member.decrypt(post))).code, 'DUPLICATE');
});

test('a batch whose save was refused though it landed is read whole when it comes again, at once or one by one, each message once', async () => {
  const { alice, bob, at, toBob } = await talking();
  let lost = false;
  const storage = {
    ...bob,
    storeSession: async (address, record) => {
      await bob.storeSession(address, record);
      if (lost) throw new Error('connection reset');
    },
  };
  const cipher = new ours.SessionCipher(storage, new ours.ProtocolAddress(...at.alice), { executor: quick() });
  const fails = async (act) => {
    lost = true;
    assert.equal((await refused(act())).code, 'STORAGE_FAILED');
    lost = false;
  };
  const said = (given) => given.map((one) => (one instanceof Error ? one.code : String(one)));
  const texts = (name, many) => Array.from({ length: many }, (_, number) => `${name} ${number}`);
  const sealed = async (all) => (await toBob.encryptMany(all.map((text) => Buffer.from(text)))).map(({ body }) => body);

  const [many, more] = [texts('many', 20), texts('more', 20)];
  const [batch, next] = [await sealed(many), await sealed(more)];
  await fails(() => cipher.decryptMany(batch));
  await fails(() => cipher.decryptMany(next));
  await fails(() => cipher.decryptMany(batch));
  assert.deepEqual(said(await cipher.decryptMany(batch)), many);
  assert.deepEqual(said(await cipher.decryptMany(batch)), many.map(() => 'DUPLICATE'));
  for (const [number, message] of next.entries()) assert.equal(String(await cipher.decryptWhisperMessage(message)), more[number]);

  // Of batches eight are kept, as of messages: the oldest go whole.
  const nine = [];
  for (const number of texts('', 9)) nine.push(await sealed([`first ${number}`, `second ${number}`]));
  for (const two of nine) await fails(() => cipher.decryptMany(two));
  assert.deepEqual(said(await cipher.decryptMany(nine[0])), ['DUPLICATE', 'DUPLICATE']);
  assert.deepEqual(said(await cipher.decryptMany(nine[1])), ['first  1', 'second  1']);

  // In doubt and twice in one batch: once.
  const [one, two] = await sealed(['one', 'two']);
  await fails(() => cipher.decryptWhisperMessage(one));
  assert.deepEqual(said(await cipher.decryptMany([one, one])), ['one', 'DUPLICATE']);
  // Also where the record before it counts, so that it is read anew.
  let end;
  const hangs = { ...bob, storeSession: () => new Promise((_, no) => { end = () => no(new Error('gone')); }) };
  const executor = quick();
  const slowly = (of) => new ours.SessionCipher(of, new ours.ProtocolAddress(...at.alice), { executor });
  assert.equal((await refused(slowly(hangs).decryptWhisperMessage(two))).code, 'STORAGE_TIMEOUT');
  assert.deepEqual(said(await slowly(bob).decryptMany([two, two])), ['two', 'DUPLICATE']);
  hangs.storeSession = bob.storeSession;
  end();
  await pause(20);
  assert.deepEqual(said(await slowly(bob).decryptMany([two])), ['DUPLICATE']);
});

test('an event loop that was held up takes the answers that are there', async () => {
  const { alice, at } = await talking();
  const { readFile } = await import('node:fs');
  const storage = { ...alice, isTrustedIdentity: () => true, loadSession: (address) => new Promise((done) => readFile(new URL(import.meta.url), () => done(alice.loadSession(address)))) };
  const sealing = new ours.SessionCipher(storage, new ours.ProtocolAddress(...at.bob), { executor: new ours.Executor({ storageTimeout: 60, backoff: 1 }) }).encrypt(same);
  await new Promise(setImmediate);
  for (const end = Date.now() + 150; Date.now() < end; );
  assert.ok((await sealing).body.length > 0);
});

test('a handshake says the registration id that the storage has, also where two share an identity', async () => {
  const [me, peer] = [party(ours), party(ours)];
  let id = 111;
  const storage = { ...me, getOurRegistrationId: () => id, isTrustedIdentity: () => true };
  const to = (name) => new ours.ProtocolAddress(name, 1);
  await new ours.SessionBuilder(storage, to('q1')).initOutgoing(peer.bundle(1));
  id = 222;
  const { body } = await new ours.SessionCipher(storage, to('q1')).encrypt(same);
  assert.equal(ours.sync.prekeysOf(body).registrationId, 222);
  for (const wrong of [undefined, null, '5', -1, 1.5, NaN, 2 ** 40]) {
    id = wrong;
    assert.equal((await refused(new ours.SessionCipher(storage, to('q1')).encrypt(same))).code, 'INVALID_ARGUMENT', String(wrong));
  }
});

test('what is no record is not taken for an empty one, and options are not misspelt', async () => {
  const { alice, bob, at } = await talking();
  for (const wrong of [{}, [], new Map(), new Date(0), 5, true]) {
    const storage = { ...alice, loadSession: () => wrong };
    const error = await refused(new ours.SessionBuilder(storage, new ours.ProtocolAddress(...at.bob)).initOutgoing(bob.bundle(2, 2)));
    assert.ok(['BAD_RECORD', 'INVALID_ARGUMENT'].includes(error.code), `${String(wrong)}: ${error.code}`);
  }
  const address = new ours.ProtocolAddress(...at.bob);
  const name = new group.SenderKeyName('g', { id: 'a', deviceId: 1 });
  for (const options of [{ executor: {} }, { executor: null }, { executor: { run() {}, ask() {} } }, { exekutor: new ours.Executor() }]) {
    for (const make of [() => new ours.SessionCipher(alice, address, options), () => new group.GroupCipher(alice, name, options), () => new group.GroupSessionBuilder(alice, options)]) {
      assert.throws(make, (error) => error.code === 'INVALID_ARGUMENT');
    }
  }
  for (const wrong of [['nope', () => {}], ['crash', 5]]) assert.throws(() => new ours.Executor().on(...wrong), (error) => error.code === 'INVALID_ARGUMENT');
  assert.ok(new ours.SessionCipher(alice, address, { executor: undefined }));
});

test('addresses that were worked for, or met a storage once that did not answer, are forgotten past a bound', () => {
  const program = `
    const { Executor } = require('@stvor/libsignal');
    const executor = new Executor({ maxPending: 1000, maxQueued: 10000, backoff: 1 });
    const fails = async () => { throw Object.assign(new Error(), { code: 'STORAGE_TIMEOUT' }); };
    (async () => {
      for (let i = 0; i < 5; i += 1) await Promise.all(Array.from({ length: 1000 }, (_, j) => executor.run({}, i + '.' + j, fails).catch(() => {})));
      const { rows: { named: lanes } } = globalThis[Symbol.for('stvor.libsignal.lanes.3')];
      while (lanes.size > 1024) await new Promise((done) => setTimeout(done, 5));
      for (let j = 0; j < 3000; j += 1) await executor.run({}, 'worked ' + j, async () => {});
      const worked = [...lanes.keys()].filter((key) => key.startsWith('worked')).length;
      const none = new Executor({ maxPending: 1, maxQueued: 1 });
      void none.run({}, 'busy', () => new Promise(() => {}));
      void none.run({}, 'next', async () => {});
      for (let j = 0; j < 100; j += 1) await none.run({}, 'refused ' + j, fails).catch(() => {});
      console.log(worked, [...lanes.keys()].some((key) => key.startsWith('refused')));
      process.exit();
    })();`;
  const { stdout, stderr } = spawnSync(process.execPath, ['-e', program], { cwd: process.env.STVOR_TEST_PROJECT, encoding: 'utf8', timeout: 60_000 });
  assert.deepEqual([stdout.trim(), stderr], ['1024 false', '']);
});
