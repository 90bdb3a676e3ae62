// Storages that hang, answer late, fail in the middle, or are made anew for each call: no key is used twice, and no message is lost.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { couple, group, ours, party, read, refused } from './world.mjs';

const pause = (millis = 1) => new Promise((resolve) => setTimeout(resolve, millis));
const quick = () => new ours.Executor({ storageTimeout: 40, backoff: 1 });
const same = Buffer.from('the same text');
/** Waits for what an executor does by itself. */
const until = async (holds) => { while (!holds()) await pause(5); };

/** Two that both heard from the other, and ciphers of their own executor. */
async function talking() {
  const both = couple(ours);
  await both.start(both.bob.bundle(1));
  await both.turn();
  const cipher = (who, whom, executor) => new ours.SessionCipher(both[who], new ours.ProtocolAddress(...both.at[whom]), { executor });
  return { ...both, cipher };
}

test('the write of a repair that is given up is as uncertain as the first', async () => {
  const executor = quick();
  const { alice, cipher, toAlice } = await talking();
  const { storeSession } = alice;
  const late = [];
  let hang = 2;
  alice.storeSession = (address, record) =>
    hang-- > 0 ? new Promise((done) => late.push(() => { storeSession.call(alice, address, record); done(); })) : storeSession.call(alice, address, record);
  const own = cipher('alice', 'bob', executor);
  assert.equal((await refused(own.encrypt(Buffer.from('given up')))).code, 'STORAGE_TIMEOUT');
  late.shift()();
  await until(() => late.length === 1);
  await pause(100);
  const two = await own.encrypt(same);
  late.shift()();
  await pause(20);
  const three = await own.encrypt(same);
  assert.ok(!two.body.equals(three.body));
  assert.deepEqual([await read(toAlice, two), await read(toAlice, three)], [String(same), String(same)]);
});

test('a lane is remembered while one of its jobs waits for room, and nobody overtakes it', async () => {
  const { alice, cipher, toAlice, at } = await talking();
  const executor = new ours.Executor({ onPressure: 'wait', maxPending: 2, maxQueued: 2, maxQueuedPerPeer: 2 });
  const { loadSession } = alice;
  const takes = { [`${at.bob[0]}.1`]: 60, 'x.1': 110, 'b.1': 20, 'd.1': 20 };
  alice.loadSession = async (address) => {
    const had = await loadSession.call(alice, address);
    await pause(takes[address]);
    return had;
  };
  const to = (name) => new ours.SessionCipher(alice, new ours.ProtocolAddress(name, 1), { executor });
  const own = cipher('alice', 'bob', executor);
  const first = own.encrypt(Buffer.from('m1'));
  const others = ['x', 'b', 'd'].map((name) => to(name).hasOpenSession());
  const waits = own.encrypt(Buffer.from('m3'));
  await first;
  const later = own.encrypt(Buffer.from('m4'));
  const all = await Promise.all([first, waits, later]);
  await Promise.all(others);
  assert.deepEqual(await all.reduce(async (read_, message) => [...(await read_), await read(toAlice, message)], []), ['m1', 'm3', 'm4']);

  const order = [];
  const narrow = new ours.Executor({ maxPending: 1, maxQueued: 4, maxQueuedPerPeer: 1, onPressure: 'wait' });
  const jobs = [];
  const go = (number) => jobs.push(narrow.run({}, 'a', async () => { await pause(1); order.push(number); }));
  for (const number of [0, 1, 2]) go(number);
  await jobs[0];
  go(3);
  await Promise.all(jobs);
  assert.deepEqual(order, [0, 1, 2, 3]);
});

test('a first message that is given up is read when it comes again, once, wherever it hung', async () => {
  for (const where of ['loadSession', 'isTrustedIdentity', 'loadPreKey', 'storeSession', 'removePreKey']) {
    for (const how of ['hangs', 'fails']) {
      const executor = quick();
      const { bob, start, toBob, at } = couple(ours);
      await start(bob.bundle(1));
      const [one, two] = [await toBob.encrypt(Buffer.from('one')), await toBob.encrypt(Buffer.from('two'))];
      const cipher = new ours.SessionCipher(bob, new ours.ProtocolAddress(...at.alice), { executor });
      const was = bob[where];
      let times = 1;
      bob[where] = function (...given) {
        if (times-- <= 0) return was.apply(bob, given);
        return how === 'hangs' ? new Promise(() => {}) : Promise.reject(new Error('disk full'));
      };
      const what = `${where} ${how}`;
      assert.equal((await refused(read(cipher, one))).code, how === 'hangs' ? 'STORAGE_TIMEOUT' : 'STORAGE_FAILED', what);
      assert.equal(await read(cipher, one), 'one', what);
      assert.equal((await refused(read(cipher, one))).code, 'DUPLICATE', what);
      assert.equal(await read(cipher, two), 'two', what);
      assert.ok(!bob.prekeys.has(1), what);
      assert.ok((await cipher.encrypt(same)).body.length > 0, what);
    }
  }
  // The second is read between the two times of the first.
  const executor = quick();
  const { bob, start, toBob, at } = couple(ours);
  await start(bob.bundle(1));
  const [one, two] = [await toBob.encrypt(Buffer.from('one')), await toBob.encrypt(Buffer.from('two'))];
  const cipher = new ours.SessionCipher(bob, new ours.ProtocolAddress(...at.alice), { executor });
  const { isTrustedIdentity } = bob;
  bob.isTrustedIdentity = () => new Promise(() => {});
  assert.equal((await refused(read(cipher, one))).code, 'STORAGE_TIMEOUT');
  bob.isTrustedIdentity = isTrustedIdentity;
  assert.deepEqual([await read(cipher, two), await read(cipher, one)], ['two', 'one']);
  assert.equal((await refused(read(cipher, one))).code, 'DUPLICATE');
});

test('a builder of queries, which runs at each `then`, runs once', async () => {
  const { alice, cipher, toAlice } = await talking();
  const { storeSession } = alice;
  let [ran, hang] = [0, 1];
  let land;
  alice.storeSession = (address, record) => ({
    then(resolve, reject) {
      ran += 1;
      const written = hang-- > 0 ? new Promise((done) => { land = () => { storeSession.call(alice, address, record); done(); }; }) : storeSession.call(alice, address, record);
      return written.then(resolve, reject);
    },
  });
  const own = cipher('alice', 'bob', quick());
  assert.equal((await refused(own.encrypt(same))).code, 'STORAGE_TIMEOUT');
  assert.equal(ran, 1);
  const two = await own.encrypt(same);
  land();
  await pause(50);
  const three = await own.encrypt(same);
  assert.deepEqual([await read(toAlice, two), await read(toAlice, three)], [String(same), String(same)]);
});

test('a storage that never answered and is well again is used again', async () => {
  const executor = new ours.Executor({ storageTimeout: 10, backoff: 1 });
  const { alice, cipher, toAlice } = await talking();
  const { storeSession } = alice;
  alice.storeSession = () => new Promise(() => {});
  const own = cipher('alice', 'bob', executor);
  for (let count = 0; count < 12; count += 1) assert.equal((await refused(own.encrypt(same))).code, 'STORAGE_TIMEOUT');
  alice.storeSession = storeSession;
  let sealed;
  while (!sealed) sealed = await own.encrypt(Buffer.from('well again')).catch((error) => { assert.equal(error.code, 'STORAGE_TIMEOUT'); });
  const next = await own.encrypt(same);
  assert.deepEqual([await read(toAlice, sealed), await read(toAlice, next)], ['well again', String(same)]);
});

test('what is thrown may be anything', async () => {
  const { alice, toBob } = await talking();
  const { loadSession } = alice;
  for (const thrown of [Object.create(null), undefined, null, { get message() { throw new Error('no'); } }, Symbol('x')]) {
    alice.loadSession = () => Promise.reject(thrown);
    assert.equal((await refused(toBob.encrypt(same))).code, 'STORAGE_FAILED');
    alice.loadSession = () => { throw thrown; };
    assert.equal((await refused(toBob.encrypt(same))).code, 'STORAGE_FAILED');
  }
  alice.loadSession = loadSession;
  await toBob.encrypt(same);
});

test('a write that fails while an earlier one hangs stored nothing', async () => {
  const { alice, bob, cipher, toBob } = await talking();
  const message = await toBob.encrypt(Buffer.from('precious'));
  const { storeSession } = bob;
  let call = 0;
  bob.storeSession = (address, record) => {
    call += 1;
    return call === 1 ? new Promise(() => {}) : call === 2 ? Promise.reject(new Error('disk full')) : storeSession.call(bob, address, record);
  };
  const own = cipher('bob', 'alice', quick());
  assert.equal((await refused(own.encrypt(same))).code, 'STORAGE_TIMEOUT');
  assert.equal((await refused(read(own, message))).code, 'STORAGE_FAILED');
  assert.equal(await read(own, message), 'precious');
  assert.ok(alice);
});

test('a storage that is made for each call keeps the order of its address, also for groups', async () => {
  const { alice, bob } = couple(ours);
  const address = new ours.ProtocolAddress('made-anew', 1);
  await new ours.SessionBuilder({ ...alice, isTrustedIdentity: () => true }, address).initOutgoing(bob.bundle(1));
  const slowly = () => ({
    ...alice,
    isTrustedIdentity: () => true,
    loadSession: async (...given) => { await pause(2); return alice.loadSession(...given); },
    storeSession: async (...given) => { await pause(2); return alice.storeSession(...given); },
  });
  const sealed = await Promise.all(Array.from({ length: 8 }, () => new ours.SessionCipher(slowly(), address).encrypt(same)));
  assert.equal(new Set(sealed.map(({ body }) => body.toString('hex'))).size, 8);

  const name = new group.SenderKeyName('made anew', { id: 'me', deviceId: 1 });
  await new group.GroupSessionBuilder(alice).create(name);
  const rows = () => ({
    loadSenderKey: async (one) => { await pause(2); return alice.loadSenderKey(one); },
    storeSenderKey: async (...given) => { await pause(2); return alice.storeSenderKey(...given); },
  });
  const posts = await Promise.all(Array.from({ length: 8 }, () => new group.GroupCipher(rows(), name).encrypt(same)));
  assert.equal(new Set(posts.map((post) => post.toString('hex'))).size, 8);
});

test('a scope parts accounts, and an address that is another one shares its order', async () => {
  const executor = new ours.Executor();
  const order = [];
  const hold = (owner) => executor.run(owner, 'bob.1', async () => { order.push('begins'); await pause(5); order.push('ends'); });
  await Promise.all([hold({ scope: 'one' }), hold({ scope: 'two' })]);
  assert.deepEqual(order.splice(0), ['begins', 'begins', 'ends', 'ends']);
  await Promise.all([hold({ scope: 'one' }), hold({ scope: 'one' })]);
  assert.deepEqual(order.splice(0), ['begins', 'ends', 'begins', 'ends']);
  const scope = {};
  await Promise.all([hold({ scope }), hold({ scope }), hold({ scope: {} })]);
  // The second of the scope waits for the first; the other does not.
  assert.deepEqual([order.slice(0, 3), order.length], [['begins', 'begins', 'ends'], 6]);

  const { bob } = couple(ours);
  const me = party(ours);
  const one = {
    ...me,
    canonicalAddress: () => 'one.0',
    isTrustedIdentity: () => true,
    loadSession: async () => { await pause(2); return me.loadSession('one.0'); },
    storeSession: async (_, record) => { await pause(2); return me.storeSession('one.0', record); },
  };
  await new ours.SessionBuilder(one, new ours.ProtocolAddress('pn', 0)).initOutgoing(bob.bundle(1));
  const sealed = await Promise.all(Array.from({ length: 8 }, (_, number) => new ours.SessionCipher(one, new ours.ProtocolAddress(number % 2 ? 'pn' : 'lid', 0)).encrypt(same)));
  assert.equal(new Set(sealed.map(({ body }) => body.toString('hex'))).size, 8);
});
