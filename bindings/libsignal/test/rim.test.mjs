// What is at the rim of order and storage: repairs, moves, scopes, contexts, wiped records. Each was a way to lose a session or to use a key twice.
import assert from 'node:assert/strict';
import { AsyncLocalStorage } from 'node:async_hooks';
import { test } from 'node:test';
import { couple, group, ours, party, read, refused } from './world.mjs';

const pause = (millis) => new Promise((resolve) => setTimeout(resolve, millis));
const SAME = Buffer.from('same');
const distinct = (sent) => new Set(sent.map((one) => (one.body ?? one).toString('hex'))).size;
const outcome = (promise) => promise.then((value) => value ?? 'done', (error) => error.code);
const address = (text) => ours.ProtocolAddress.from(text);
const impatient = (more) => new ours.Executor({ storageTimeout: 40, backoff: 1, ...more });

/** Rows in memory whose transactions can be made to hang; `ends` lets them land, or fail. */
function memory() {
  const rows = new Map();
  const adapter = {
    rows, hangs: 0, ends: [],
    get: async (key) => rows.get(key),
    set: async (key, value) => void rows.set(key, value),
    delete: async (key) => void rows.delete(key),
    transaction: (work) => {
      if (adapter.hangs <= 0) return work(adapter);
      adapter.hangs -= 1;
      return new Promise((resolve, reject) => adapter.ends.push((error) => (error ? reject(error) : work(adapter).then(resolve, reject))));
    },
  };
  return adapter;
}

/** A storage of ours at `pn.0` with a peer. */
async function world(executor) {
  const adapter = memory();
  const [me, peer] = [party(ours), party(ours)];
  const storage = ours.createStorage(adapter, { executor });
  await storage.setIdentity(me.identity, 7);
  await new ours.SessionBuilder(storage, address('pn.0'), { executor }).initOutgoing(peer.bundle(1));
  const to = (whom) => new ours.SessionCipher(storage, address(whom), { executor });
  const back = new ours.SessionCipher(peer, address('me.0'));
  await read(back, await to('pn.0').encrypt(SAME));
  await read(to('pn.0'), await back.encrypt(SAME));
  return { adapter, storage, peer, to, back };
}

test('a first message whose save hung and failed does not keep its pin against who the user chose since', async () => {
  const executor = impatient();
  const adapter = memory();
  const [me, old, next] = [party(ours), party(ours), party(ours)];
  const storage = ours.createStorage(adapter, { executor });
  await storage.setIdentity(me.identity, 7);
  const bundle = me.bundle(1);
  await storage.storeSignedPreKey(1, me.signed.get(1));
  await storage.storePreKey(1, me.prekeys.get(1));
  const first = async (who, given) => {
    await new ours.SessionBuilder(who, address('me.1')).initOutgoing(given);
    return new ours.SessionCipher(who, address('me.1')).encrypt(Buffer.from('hello'));
  };
  const cipher = new ours.SessionCipher(storage, address('peer.1'), { executor });
  adapter.hangs = 1;
  assert.equal(await outcome(read(cipher, await first(old, bundle))), 'STORAGE_TIMEOUT');
  await storage.saveIdentity('peer', next.identity.pubKey);
  adapter.ends.forEach((end) => end(new Error('connection lost')));
  await pause(60);
  assert.equal(await outcome(read(cipher, await first(next, { ...bundle, preKey: undefined }))), 'hello');
  assert.equal(await outcome(storage.deleteSession('peer.1')), 'done');
});

test('what a storage object hung on that is gone is written by the next one', async () => {
  const executor = impatient();
  const { start, toBob, toAlice, bob, alice: own } = couple(ours);
  await start(bob.bundle(1));
  await read(toAlice, await toBob.encrypt(SAME));
  let kill;
  const perCall = () => ({
    ...own, scope: 'account',
    storeSession: kill === undefined ? () => new Promise((_, reject) => (kill = () => reject(new Error('the connection is closed')))) : own.storeSession.bind(own),
    loadSession: own.loadSession.bind(own), getOurIdentity: own.getOurIdentity.bind(own), isTrustedIdentity: () => true,
  });
  const encrypt = () => new ours.SessionCipher(perCall(), toBob.addr, { executor }).encrypt(SAME);
  assert.equal(await outcome(encrypt()), 'STORAGE_TIMEOUT');
  kill();
  await pause(60);
  const sent = [await encrypt(), await encrypt(), await encrypt()];
  assert.equal(distinct(sent), 3);
});

test('a move takes what counts along, not what the row says', async () => {
  const { adapter, storage, to, back } = await world(impatient());
  const before = await to('pn.0').encrypt(SAME);
  adapter.hangs = 1;
  assert.equal(await outcome(read(to('pn.0'), await back.encrypt(SAME))), 'STORAGE_TIMEOUT');
  assert.equal(await storage.migrateSession('pn.0', 'lid.0'), true);
  assert.equal((await refused(to('pn.0').encrypt(SAME))).code, 'NO_SESSION');
  assert.equal(distinct([before, await to('lid.0').encrypt(SAME)]), 2);
});

test('a move that was given up does not happen late', async () => {
  const { adapter, storage, to } = await world(impatient());
  adapter.hangs = 1;
  assert.equal(await outcome(storage.migrateSession('pn.0', 'lid.0')), 'STORAGE_TIMEOUT');
  const first = await to('pn.0').encrypt(SAME);
  adapter.ends.forEach((end) => end());
  await pause(60);
  const second = await to('pn.0').encrypt(SAME);
  assert.equal(distinct([first, second]), 2);
  assert.equal((await refused(to('lid.0').encrypt(SAME))).code, 'NO_SESSION');
  assert.ok(!adapter.rows.has('session:lid.0'));
});

test('a move whose storage does not say whose it is holds neither address for longer than that', async () => {
  for (const there of ['lid.0', 'zz.0']) {
    const executor = impatient();
    const { adapter, storage, to } = await world(executor);
    const get = adapter.get;
    adapter.get = (key) => {
      if (key !== 'our_identity') return get(key);
      adapter.get = get;
      return new Promise(() => {});
    };
    assert.equal(await outcome(storage.migrateSession('pn.0', there)), 'STORAGE_TIMEOUT');
    const both = Promise.all(['pn.0', there].map((whom) => to(whom).hasOpenSession()));
    assert.deepEqual(await Promise.race([both, pause(2_000)]), [true, false], there);
    assert.deepEqual([executor.pending, executor.queued], [0, 0]);
  }
});

test('a deleted session stays deleted, and a deletion that comes late deletes no later one', async () => {
  const { adapter, storage, peer, to } = await world(impatient());
  adapter.hangs = 1;
  assert.equal(await outcome(to('pn.0').encrypt(SAME)), 'STORAGE_TIMEOUT');
  await storage.deleteSession('pn.0');
  assert.equal((await refused(to('pn.0').encrypt(SAME))).code, 'NO_SESSION');
  adapter.ends.splice(0).forEach((end) => end());
  await pause(60);
  assert.ok(!adapter.rows.has('session:pn.0'));
  await new ours.SessionBuilder(storage, address('pn.0')).initOutgoing(peer.bundle(2));

  const executor = impatient();
  const other = await world(executor);
  other.adapter.hangs = 1;
  assert.equal(await outcome(other.storage.deleteSession('pn.0')), 'STORAGE_TIMEOUT');
  await new ours.SessionBuilder(other.storage, address('pn.0'), { executor }).initOutgoing(other.peer.bundle(2));
  await other.to('pn.0').encrypt(SAME);
  other.adapter.ends.forEach((end) => end());
  await pause(60);
  assert.equal((await other.to('pn.0').encrypt(SAME)).type, 3);
});

test('storages made for each call keep order, ours too, and a hung write of one that never lands undoes nothing', async () => {
  const adapter = memory();
  const [me, peer] = [party(ours), party(ours)];
  const slow = (call) => async (...given) => (await pause(1), call(...given));
  const made = () => ours.createStorage({ get: slow(adapter.get), set: slow(adapter.set), delete: slow(adapter.delete) });
  await made().setIdentity(me.identity, 7);
  await new ours.SessionBuilder(made(), address('p.0')).initOutgoing(peer.bundle(1));
  const all = await Promise.all(Array.from({ length: 8 }, () => new ours.SessionCipher(made(), address('p.0')).encrypt(SAME)));
  assert.equal(distinct(all), 8);

  const executor = impatient();
  const { alice, bob, start, toBob } = couple(ours);
  await start(bob.bundle(1));
  let kill;
  const methods = Object.fromEntries(Object.entries(alice).map(([name, value]) => [name, typeof value === 'function' ? value.bind(alice) : value]));
  const perCall = () => ({
    ...methods,
    storeSession: kill === undefined ? () => new Promise((_, reject) => (kill = () => reject(new Error('timeout')))) : methods.storeSession,
  });
  const encrypt = () => new ours.SessionCipher(perCall(), toBob.addr, { executor }).encrypt(SAME);
  assert.equal(await outcome(encrypt()), 'STORAGE_TIMEOUT');
  const sent = [await encrypt(), await encrypt()];
  kill();
  await pause(60);
  sent.push(await encrypt(), await encrypt());
  assert.equal(distinct(sent), 4);
});

test('a canonical address may be learnt, and told later; what is no scope and no address is refused', async () => {
  const { alice, bob, start, toBob } = couple(ours);
  await start(bob.bundle(1));
  let lid = false;
  const row = toBob.addr.toString();
  const storage = Object.assign(Object.create(alice), {
    canonicalAddress: async (given) => (lid ? 'lid.1' : given),
    loadSession: async () => (await pause(2), alice.loadSession(row)),
    storeSession: async (_, record) => (await pause(2), alice.storeSession(row, record)),
  });
  const old = new ours.SessionCipher(storage, toBob.addr);
  lid = true;
  const next = new ours.SessionCipher(storage, address('lid.1'));
  assert.equal(distinct(await Promise.all([old, next, old, next].map((cipher) => cipher.encrypt(SAME)))), 4);
  for (const odd of [{ scope: 1 }, { scope: true }, { canonicalAddress: () => '' }, { canonicalAddress: async () => undefined }]) {
    const cipher = new ours.SessionCipher(Object.assign(Object.create(alice), odd), toBob.addr);
    assert.equal((await refused(cipher.encrypt(SAME))).code, 'INVALID_ARGUMENT');
  }
});

for (const scope of [undefined, 'a scope of its own', {}]) {
  for (const canonical of ['lid.1', 'zz.1']) {
    test(`what hangs at an address that turns out to be ${canonical} is uncertain there, scope ${JSON.stringify(scope)}`, async () => {
      const executor = impatient();
      const [me, peer] = [party(ours), party(ours)];
      let [row, known, hangs] = [undefined, false, 0];
      const ends = [];
      const storage = {
        ...me, scope, isTrustedIdentity: () => true,
        canonicalAddress: (given) => (known ? canonical : given),
        loadSession: () => row,
        storeSession: (_, record) => {
          const bytes = record.toBytes();
          if (hangs <= 0) return void (row = bytes);
          hangs -= 1;
          return new Promise((resolve) => ends.push(() => resolve((row = bytes))));
        },
      };
      const encrypt = () => new ours.SessionCipher(storage, address('pn.1'), { executor }).encrypt(SAME);
      await new ours.SessionBuilder(storage, address('pn.1'), { executor }).initOutgoing(peer.bundle(1));
      hangs = 1;
      assert.equal(await outcome(encrypt()), 'STORAGE_TIMEOUT');
      known = true;
      const sent = await Promise.all([encrypt(), encrypt(), encrypt()]);
      ends.forEach((end) => end());
      await pause(60);
      sent.push(...(await Promise.all([encrypt(), encrypt(), encrypt()])));
      assert.equal(distinct(sent), 6);
      assert.deepEqual([executor.pending, executor.queued], [0, 0]);
    });
  }
}

test('a storage may wipe what it was given, and a caller what it got, while something is uncertain', async () => {
  const executor = impatient();
  const { alice, bob, start, toBob } = couple(ours);
  await start(bob.bundle(1));
  let row = (await toBob.getRecord()).toBytes();
  let end;
  const storage = Object.assign(Object.create(alice), {
    loadSession: async () => row,
    storeSession: async (_, record) => {
      const bytes = record.toBytes();
      record.zeroize();
      if (end === undefined) await new Promise((resolve) => (end = resolve));
      row = bytes;
    },
  });
  const cipher = new ours.SessionCipher(storage, toBob.addr, { executor });
  assert.equal(await outcome(cipher.encrypt(SAME)), 'STORAGE_TIMEOUT');
  (await cipher.getRecord()).zeroize();
  const sent = [await cipher.encrypt(SAME), await cipher.encrypt(SAME)];
  end();
  await pause(60);
  sent.push(await cipher.encrypt(SAME));
  assert.equal(distinct(sent), 3);
  assert.ok(row.length > 100);
});

test('what a storage wipes is wiped once the call that needs it is over', async () => {
  const { alice, bob, start, toBob, toAlice } = couple(ours, { json: false });
  await start(bob.bundle(1));
  const wiped = [];
  const wiping = (party) => {
    const { storeSession } = party;
    party.storeSession = async (address, record) => {
      const bytes = record.toBytes();
      for (const one of [party.sessions.get(address), record]) {
        if (one === undefined) continue;
        wiped.push(one._bytes);
        one.zeroize();
        assert.equal(one.toBytes().length, 0);
      }
      await storeSession.call(party, address, ours.SessionRecord.fromBytes(bytes));
    };
  };
  for (const party of [alice, bob]) wiping(party);
  for (const text of ['one', 'two', 'three']) {
    assert.equal(await read(toAlice, await toBob.encrypt(Buffer.from(text))), text);
    assert.equal(await read(toBob, await toAlice.encrypt(Buffer.from(text))), text);
  }
  assert.ok(wiped.length > 10 && wiped.every((bytes) => bytes.length > 100 && bytes.every((byte) => byte === 0)));
});

test('a call that waits for its turn is made in the context of its caller', async () => {
  const contexts = new AsyncLocalStorage();
  const { alice, bob, start, toBob } = couple(ours);
  await start(bob.bundle(1));
  const seen = [];
  const storage = Object.assign(Object.create(alice), {
    loadSession: async (given) => {
      seen.push(contexts.getStore());
      await pause(2);
      return alice.loadSession(given);
    },
    storeSession: async (given, record) => {
      seen.push(contexts.getStore());
      return alice.storeSession(given, record);
    },
  });
  const cipher = new ours.SessionCipher(storage, toBob.addr);
  await Promise.all(['one', 'two', 'three'].map((name) => contexts.run(name, () => cipher.encrypt(SAME))));
  assert.deepEqual(seen, ['one', 'one', 'two', 'two', 'three', 'three']);
});

for (const how of ['is refused', 'hangs and is refused']) {
  test(`a first message whose save ${how}, and which another one overtook, is read once`, async () => {
    const executor = impatient();
    const { bob, start, toBob, at } = couple(ours);
    await start(bob.bundle(1));
    const [one, two] = [await toBob.encrypt(Buffer.from('one')), await toBob.encrypt(Buffer.from('two'))];
    let bad = true;
    const storage = Object.assign(Object.create(bob), {
      storeSession: (given, record) => {
        if (!bad) return bob.storeSession(given, record);
        bad = false;
        return how === 'is refused' ? Promise.reject(new Error('disk full')) : new Promise((_, reject) => setTimeout(() => reject(new Error('gone')), 60));
      },
    });
    const cipher = new ours.SessionCipher(storage, new ours.ProtocolAddress(...at.alice), { executor });
    assert.match(await outcome(read(cipher, one)), /^STORAGE_/);
    assert.equal(await read(cipher, two), 'two');
    assert.equal(await read(cipher, one), 'one');
    assert.equal((await refused(read(cipher, one))).code, 'DUPLICATE');
  });
}

test('an account whose storage is dead refuses no other one, at the same address neither', async () => {
  const executor = impatient();
  const names = { names: true };
  const [first, second] = [couple(ours, names), couple(ours, names)];
  for (const { bob, start } of [first, second]) await start(bob.bundle(1));
  const dead = Object.assign(Object.create(first.alice), { storeSession: () => new Promise(() => {}) });
  const broken = new ours.SessionCipher(dead, first.toBob.addr, { executor });
  for (let i = 0; i < 10; i += 1) assert.equal(await outcome(broken.encrypt(SAME)), 'STORAGE_TIMEOUT');
  const well = new ours.SessionCipher(second.alice, second.toBob.addr, { executor });
  for (let i = 0; i < 5; i += 1) assert.equal((await well.encrypt(SAME)).type, 3);
});

test('a repair writes nothing of the account before over the one that logged in since, into the same storage', async () => {
  for (const how of ['hangs and is refused', 'is deleted and hangs']) {
    const executor = impatient();
    const adapter = memory();
    const [before, since, peer] = [party(ours), party(ours), party(ours)];
    const storage = ours.createStorage(adapter, { executor });
    const start = () => new ours.SessionBuilder(storage, address('p.0'), { executor }).initOutgoing(peer.bundle(1));
    await storage.setIdentity(before.identity, 7);
    await start();
    adapter.hangs = 1;
    const hung = how === 'is deleted and hangs' ? storage.deleteSession('p.0') : new ours.SessionCipher(storage, address('p.0'), { executor }).encrypt(SAME);
    assert.equal(await outcome(hung), 'STORAGE_TIMEOUT');
    adapter.rows.clear();
    await storage.setIdentity(since.identity, 7);
    await start();
    const row = adapter.rows.get('session:p.0');
    adapter.ends.forEach((end) => end(new Error('connection lost')));
    await pause(60);
    assert.equal(adapter.rows.get('session:p.0'), row, how);
    assert.deepEqual([executor.pending, executor.queued], [0, 0]);
    assert.equal((await new ours.SessionCipher(storage, address('p.0'), { executor }).encrypt(SAME)).type, 3);
  }
});

for (const kind of ['createStorage', 'storages of their own with one identity object']) {
  test(`linked devices in one process, which have one identity key, get nothing of each other: ${kind}`, async () => {
    const executor = impatient();
    const { identity } = party(ours);
    const [bob, eve] = [party(ours), party(ours)];
    const device = async (id) => {
      const adapter = memory();
      if (kind === 'createStorage') {
        const storage = ours.createStorage(adapter, { executor });
        await storage.setIdentity(identity, id);
        return { adapter, storage, row: () => adapter.rows.get('session:bob.1') };
      }
      const storage = {
        ...party(ours),
        getOurIdentity: () => identity,
        getOurRegistrationId: () => id,
        isTrustedIdentity: () => true,
        loadSession: (whom) => adapter.get(whom),
        storeSession: (whom, record) => adapter.transaction((within) => within.set(whom, record.toBytes())),
      };
      return { adapter, storage, row: () => adapter.rows.get('bob.1') };
    };
    const [one, two] = [await device(11), await device(12)];
    const start = ({ storage }, name, peer) => new ours.SessionBuilder(storage, address(name), { executor }).initOutgoing(peer.bundle(1));
    const encrypt = ({ storage }) => new ours.SessionCipher(storage, address('bob.1'), { executor }).encrypt(SAME);
    const session = ({ row }) => ours.SessionRecord.deserialize(row()).getOpenSession().indexInfo.baseKey.toString('hex');
    for (const each of [one, two]) {
      await start(each, 'bob.1', bob);
      await encrypt(each);
    }
    const [ones, twos] = [session(one), session(two)];
    one.adapter.hangs = 1;
    assert.equal(await outcome(encrypt(one)), 'STORAGE_TIMEOUT');
    assert.equal(ours.sync.prekeysOf((await encrypt(two)).body).registrationId, 12);
    assert.equal(session(two), twos);
    // The repair fails, and the other one stores something meanwhile.
    one.adapter.hangs = 1;
    one.adapter.ends.splice(0).forEach((end) => end(new Error('connection lost')));
    await pause(60);
    await start(two, 'eve.1', eve);
    one.adapter.ends.splice(0).forEach((end) => end(new Error('connection lost')));
    await pause(60);
    assert.equal(session(two), twos);
    assert.equal(session(one), ones);
    assert.equal(ours.sync.prekeysOf((await encrypt(one)).body).registrationId, 11);
  });
}

test('two jobs of one address never run at once, whatever is forgotten meanwhile', async () => {
  const executor = impatient({ maxPending: 2, storageTimeout: 60_000 });
  const [me, sender] = [party(ours), party(ours)];
  let fails = () => false;
  let running = 0;
  let most = 0;
  const storage = Object.assign(Object.create(me), {
    loadSession: async (given) => {
      if (given === 'p0.1') most = Math.max(most, (running += 1));
      return me.loadSession(given);
    },
    storeSession: async (given, record) => {
      await pause(given === 'p0.1' ? 2 : 0);
      if (given === 'p0.1') running -= 1;
      if (fails(given)) throw new Error('disk full');
      return me.storeSession(given, record);
    },
  });
  const bundle = me.bundle();
  const to = (name) => new ours.SessionCipher(storage, address(name), { executor });
  const first = async (who) => {
    await new ours.SessionBuilder(who, address('me.1')).initOutgoing(bundle);
    return new ours.SessionCipher(who, address('me.1')).encrypt(SAME);
  };
  await new ours.SessionBuilder(storage, address('p0.1'), { executor }).initOutgoing(sender.bundle(1));
  // Each of them leaves a message that was not handed over; of so many the oldest is forgotten.
  fails = () => true;
  for (let number = 0; number < 1_024; number += 1) {
    sender.sessions.clear();
    assert.equal(await outcome(read(to(`p${number}.1`), await first(sender))), 'STORAGE_FAILED');
  }
  sender.sessions.clear();
  const last = await first(sender);
  fails = (given) => given !== 'p0.1';
  const slow = executor.run({}, 'another', () => pause(12));
  const forgets = outcome(read(to('last.1'), last));
  const sent = await Promise.all(Array.from({ length: 6 }, () => to('p0.1').encrypt(SAME)));
  assert.equal(await forgets, 'STORAGE_FAILED');
  await slow;
  assert.equal(distinct(sent), 6);
  assert.equal(most, 1);
});

test('wrong arguments are told by the promise, and by no other way', async () => {
  const { toBob, alice } = couple(ours);
  const name = new group.SenderKeyName('g', { id: 'a', deviceId: 1 });
  const cipher = new group.GroupCipher(alice, name);
  for (const call of [
    () => toBob.encrypt(undefined), () => toBob.decryptWhisperMessage(undefined), () => toBob.decryptPreKeyWhisperMessage('x'),
    () => toBob.encryptMany(['x']), () => toBob.decryptMany([1]), () => cipher.encrypt('x'), () => cipher.decrypt(undefined),
  ]) {
    assert.equal((await refused(call())).code, 'INVALID_ARGUMENT');
  }
  assert.throws(() => new ours.SessionCipher(alice, toBob.addr, { executor: {} }), (error) => error.code === 'INVALID_ARGUMENT');
  assert.throws(() => new ours.Executor().on('nope', () => {}), (error) => error.code === 'INVALID_ARGUMENT');
});
