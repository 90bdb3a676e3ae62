// The policies of storages.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deviceOver, group, ours, party, read, refused } from './world.mjs';

/** Rows in memory, with transactions that land whole or not at all, one after the other. */
function adapter({ transactions = true } = {}) {
  const rows = new Map();
  const wiped = [];
  let last = Promise.resolve();
  const alone = (work) => {
    const mine = last.then(work);
    last = mine.catch(() => {});
    return mine;
  };
  const of = (map) => ({
    get: async (key) => map.get(key),
    set: async (key, value) => {
      if (value?.length > 0 && value.every?.((byte) => byte === 0)) wiped.push(key);
      map.set(key, value);
    },
    delete: async (key) => void map.delete(key),
  });
  return {
    rows, wiped, ...of(rows),
    zeroize: async (key) => {
      wiped.push(key);
      rows.get(key)?.fill?.(0);
    },
    ...(transactions && {
      set: (key, value) => alone(() => of(rows).set(key, value)),
      delete: (key) => alone(() => of(rows).delete(key)),
      transaction: (work) => alone(async () => {
        const copy = new Map(rows);
        const result = await work(of(copy));
        rows.clear();
        for (const [key, value] of copy) rows.set(key, value);
        return result;
      }),
    }),
  };
}

async function device(options, kind) {
  const rows = adapter(kind);
  return { rows, ...(await deviceOver(rows, options)) };
}

const cipher = (who, name, options) => new ours.SessionCipher(who.storage, new ours.ProtocolAddress(name, 1), options);
/** A message without handshake, of others. */
const sealed = async () => {
  const [one, two] = [await device(), await device()];
  await start(one, two, 'two');
  assert.equal(await read(cipher(two, 'one'), await cipher(one, 'two').encrypt(Buffer.from('x'))), 'x');
  return cipher(two, 'one').encrypt(Buffer.from('x'));
};

const start = async (who, whom, name, id = 0) =>
  new ours.SessionBuilder(who.storage, new ours.ProtocolAddress(name, 1)).initOutgoing(await whom.bundle(id));

test('a first message stores session, pin and used prekey together, and wipes the prekey first', async () => {
  const [alice, bob] = [await device(), await device({ requireAtomicSessionAndPreKey: true })];
  await start(alice, bob, 'bob');
  const first = await cipher(alice, 'bob').encrypt(Buffer.from('hello'));
  const { transaction } = bob.rows;
  bob.rows.transaction = async (work) => transaction(async (within) => {
    await work(within);
    throw new Error('power cut');
  });
  assert.equal((await refused(read(cipher(bob, 'alice'), first))).code, 'STORAGE_FAILED');
  assert.ok(!bob.rows.rows.has('session:alice.1') && !bob.rows.rows.has('identity:alice') && bob.rows.rows.has('prekey:0'));
  bob.rows.transaction = transaction;
  // What was wiped before the cut is as it was.
  assert.deepEqual(bob.rows.wiped, ['prekey:0']);
  assert.equal(await read(cipher(bob, 'alice'), first), 'hello');
  assert.ok(!bob.rows.rows.has('prekey:0'));
});

test('a whole conversation over an adapter, through JSON, with a restart', async () => {
  const [alice, bob] = [await device(), await device()];
  await start(alice, bob, 'bob', 0);
  const [toBob, toAlice] = [cipher(alice, 'bob'), cipher(bob, 'alice')];
  assert.equal(await read(toAlice, await toBob.encrypt(Buffer.from('1'))), '1');
  assert.deepEqual([bob.rows.rows.has('prekey:0'), bob.rows.wiped], [false, ['prekey:0']]);
  for (const [key, value] of alice.rows.rows) alice.rows.rows.set(key, JSON.parse(JSON.stringify(value)));
  assert.equal(await read(toBob, await toAlice.encrypt(Buffer.from('2'))), '2');
  assert.ok((await alice.storage.getIdentity('bob')).equals(bob.identity.pubKey));
  assert.equal(await bob.storage.migrateSession('alice.1', 'lid.1'), true);
  assert.equal(await bob.storage.migrateSession('alice.1', 'lid.1'), false);
  assert.equal(await read(cipher(bob, 'lid'), await toBob.encrypt(Buffer.from('3'))), '3');
  await bob.storage.deleteSession('lid.1');
  assert.ok(bob.rows.wiped.includes('session:lid.1'));
});

test('an adapter may keep nothing but bytes, or text, and gives them back as it has them', async () => {
  const kinds = {
    bytes: [(value) => Uint8Array.from(value), (kept) => kept],
    json: [(value) => JSON.stringify(value), (kept) => JSON.parse(kept)],
  };
  for (const [name, [put, take]] of Object.entries(kinds)) {
    const rows = new Map();
    const storage = () => ours.createStorage({
      get: async (key) => (rows.has(key) ? take(rows.get(key)) : null),
      set: async (key, value) => {
        if (!Buffer.isBuffer(value)) throw new TypeError(`${key} is a ${typeof value}`);
        rows.set(key, put(value));
      },
      delete: async (key) => void rows.delete(key),
    });
    const [own, bob] = [ours.keyhelper.generateIdentityKeyPair(), await device()];
    await storage().setIdentity(own, 12_345);
    assert.equal(await storage().getOurRegistrationId(), 12_345, name);
    await start({ storage: storage() }, bob, 'bob');
    const message = await cipher({ storage: storage() }, 'bob').encrypt(Buffer.from('x'));
    assert.equal(ours.sync.prekeysOf(message.body).registrationId, 12_345);
    assert.equal(await read(cipher(bob, 'alice'), message), 'x');
    const sender = new group.SenderKeyName('g', { id: 'us', deviceId: 0 });
    await new group.GroupSessionBuilder(storage()).create(sender);
    await new group.GroupCipher(storage(), sender).encrypt(Buffer.from('x'));
    // As versions of before stored it, in whichever way it comes back.
    for (const before of [77, '77']) {
      rows.set('registration_id', name === 'json' ? JSON.stringify(before) : before);
      assert.equal(await storage().getOurRegistrationId(), 77);
    }
    rows.set('registration_id', put(Buffer.alloc(3)));
    assert.equal((await refused(storage().getOurRegistrationId())).code, 'BAD_RECORD');
    for (const bad of [-1, 1.5, 2 ** 32, '9', undefined]) {
      assert.equal((await refused(storage().setIdentity(own, bad))).code, 'INVALID_ARGUMENT', `${bad}`);
    }
  }
});

test('transactions that exclude each other, as of one connection, hold nobody', async () => {
  const [alice, bob] = [await device(), await device()];
  const { transaction, get, set } = bob.rows;
  let free = Promise.resolve();
  const alone = (work) => {
    const mine = free.then(work);
    free = mine.catch(() => {});
    return mine;
  };
  // Whatever is not within the transaction waits for its end.
  Object.assign(bob.rows, {
    transaction: (work) => alone(() => transaction(work)),
    get: (key) => alone(() => get(key)),
    set: (key, value) => alone(() => set(key, value)),
    zeroize: (key) => alone(async () => void bob.rows.rows.get(key)?.fill?.(0)),
  });
  await start(alice, bob, 'bob');
  assert.equal(await read(cipher(bob, 'alice'), await cipher(alice, 'bob').encrypt(Buffer.from('x'))), 'x');
});

test('a session moves with its pin, after what is under way, and no stranger takes the new name', async () => {
  const [alice, bob, stranger] = [await device(), await device(), await device()];
  await start(alice, bob, 'pn', 1);
  assert.equal(await read(cipher(bob, 'alice'), await cipher(alice, 'pn').encrypt(Buffer.from('1'))), '1');
  await cipher(alice, 'pn').decryptWhisperMessage((await cipher(bob, 'alice').encrypt(Buffer.from('2'))).body);
  const [under, moved] = [cipher(alice, 'pn').encrypt(Buffer.from('same')), alice.storage.migrateSession('pn.1', 'lid.1')];
  const one = await under;
  assert.equal(await moved, true);
  const two = await cipher(alice, 'lid').encrypt(Buffer.from('same'));
  assert.ok(!one.body.equals(two.body));
  assert.deepEqual([await read(cipher(bob, 'alice'), one), await read(cipher(bob, 'alice'), two)], ['same', 'same']);
  assert.ok((await alice.storage.getIdentity('lid')).equals(bob.identity.pubKey));
  await start(stranger, alice, 'victim', 7);
  const forged = await cipher(stranger, 'victim').encrypt(Buffer.from('I am your friend'));
  for (const name of ['pn', 'lid']) assert.equal((await refused(read(cipher(alice, name), forged))).code, 'IDENTITY_CHANGED', name);
  // A name that has another identity is no name of the same peer.
  await alice.storage.saveIdentity('other', stranger.identity.pubKey);
  assert.equal((await refused(alice.storage.migrateSession('lid.1', 'other.1'))).code, 'IDENTITY_CHANGED');
  const both = [alice.storage.migrateSession('lid.1', 'pn.1'), alice.storage.migrateSession('pn.1', 'lid.1')];
  assert.deepEqual(await Promise.all(both), [true, true]);
  await alice.storage.deleteSession('lid.1');
});

test('a handshake without a one-time prekey stays known when its session is deleted or moved', async () => {
  for (const kind of [{}, { transactions: false }]) {
    const [alice, bob] = [await device(), await device({}, kind)];
    const begin = async (text) => {
      await alice.storage.deleteSession('bob.1');
      // A server that has none left gives none out.
      const { preKey, ...bundle } = await bob.bundle(3);
      await new ours.SessionBuilder(alice.storage, new ours.ProtocolAddress('bob', 1)).initOutgoing(bundle);
      return cipher(alice, 'bob').encrypt(Buffer.from(text));
    };
    const replayed = async (name, message) => (await refused(read(cipher(bob, name), message))).code;
    const first = await begin('1');
    assert.equal(await read(cipher(bob, 'pn'), first), '1');
    await bob.storage.deleteSession('pn.1');
    assert.equal(await replayed('pn', first), 'REPLAY');
    assert.ok(bob.rows.wiped.includes('session:pn.1') && bob.rows.rows.get('session:pn.1').length < 32, 'no key is left');
    // Otherwise it is as if there were nothing.
    for (const [call, message] of [
      [cipher(bob, 'pn').encrypt(Buffer.from('x')), 'No open session'],
      [cipher(bob, 'pn').decryptWhisperMessage((await sealed()).body), 'No session record'],
    ]) {
      const error = await refused(call);
      assert.deepEqual([error.code, error.message], ['NO_SESSION', message]);
    }
    assert.equal(await cipher(bob, 'pn').hasOpenSession(), false);
    assert.equal(await bob.storage.migrateSession('pn.1', 'lid.1'), false);
    // Deleting again forgets nothing.
    await bob.storage.deleteSession('pn.1');
    const second = await begin('2');
    assert.equal(await read(cipher(bob, 'pn'), second), '2');
    const third = await begin('3');
    assert.equal(await read(cipher(bob, 'lid'), third), '3');
    assert.equal(await bob.storage.migrateSession('pn.1', 'lid.1'), false, 'a session is there');
    await bob.storage.deleteSession('lid.1');
    assert.equal(await bob.storage.migrateSession('pn.1', 'lid.1'), true);
    for (const message of [first, second]) assert.equal(await replayed('pn', message), 'REPLAY');
    assert.deepEqual([await replayed('lid', first), await replayed('lid', second), await replayed('lid', third)], ['REPLAY', 'DUPLICATE', 'REPLAY']);
    assert.equal(await bob.storage.migrateSession('lid.1', 'pn.1'), true);
    assert.equal(await replayed('lid', second), 'REPLAY');
  }
  // Where no handshake of a peer was used nothing is left.
  const [carol, dave] = [await device(), await device()];
  await start(carol, dave, 'dave');
  await carol.storage.deleteSession('dave.1');
  assert.ok(!carol.rows.rows.has('session:dave.1'));
  // What does not read back can be deleted.
  carol.rows.rows.set('session:dave.1', Buffer.alloc(99, 7));
  await carol.storage.deleteSession('dave.1');
  assert.ok(!carol.rows.rows.has('session:dave.1'));
});

test('a deletion that hung and is done again forgets no handshake', async () => {
  const executor = new ours.Executor({ storageTimeout: 40, backoff: 1 });
  const [alice, bob] = [await device(), await device({ executor })];
  const { preKey, ...bundle } = await bob.bundle(3);
  await new ours.SessionBuilder(alice.storage, new ours.ProtocolAddress('bob', 1)).initOutgoing(bundle);
  const first = await cipher(alice, 'bob').encrypt(Buffer.from('once'));
  assert.equal(await read(cipher(bob, 'deleted', { executor }), first), 'once');
  const { transaction } = bob.rows;
  let late;
  bob.rows.transaction = () => new Promise((_, reject) => (late = () => reject(new Error('connection lost'))));
  assert.equal((await refused(bob.storage.deleteSession('deleted.1'))).code, 'STORAGE_TIMEOUT');
  bob.rows.transaction = transaction;
  late();
  while (bob.rows.rows.get('session:deleted.1').length > 32 || executor.pending > 0) await new Promise((resolve) => setTimeout(resolve, 5));
  assert.ok(bob.rows.wiped.includes('session:deleted.1'));
  assert.equal((await refused(read(cipher(bob, 'deleted', { executor }), first))).code, 'REPLAY');
});

test('moving sessions takes no place from what works: one at a time is enough', async () => {
  const executor = new ours.Executor({ maxPending: 1 });
  const rows = adapter();
  const storage = ours.createStorage(rows, { executor });
  await storage.setIdentity(ours.keyhelper.generateIdentityKeyPair(), 1);
  const peer = await device();
  await new ours.SessionBuilder(storage, new ours.ProtocolAddress('a', 1), { executor }).initOutgoing(await peer.bundle(1));
  const moves = [storage.migrateSession('a.1', 'b.1'), storage.migrateSession('b.1', 'c.1'), storage.migrateSession('c.1', 'a.1')];
  assert.deepEqual(await Promise.all(moves), [true, true, true]);
  assert.deepEqual([executor.pending, executor.queued], [0, 0]);
});

test('as many moves at once as may wait are all done', async () => {
  const executor = new ours.Executor();
  const storage = ours.createStorage(adapter(), { executor });
  await storage.setIdentity(ours.keyhelper.generateIdentityKeyPair(), 1);
  const peer = await device();
  await new ours.SessionBuilder(storage, new ours.ProtocolAddress('a', 1), { executor }).initOutgoing(await peer.bundle(1));
  const moves = Array.from({ length: 5_000 }, (_, one) => storage.migrateSession(one === 4_000 ? 'a.1' : `from${one}.1`, `to${one}.1`));
  const moved = await Promise.all(moves);
  assert.deepEqual(moved.flatMap((yes, one) => (yes ? [one] : [])), [4_000]);
  assert.deepEqual([executor.pending, executor.queued], [0, 0]);
});

test('an identity that changed is rejected, or replaced where the policy says so', async () => {
  for (const verdict of ['reject', undefined, 'replace']) {
    const asked = [];
    const onIdentityMismatch = verdict && (async (name, known, key) => (asked.push([name, known.length, key.length]), verdict));
    const [bob, first, second] = [await device({ onIdentityMismatch }), await device(), await device()];
    await start(first, bob, 'bob', 1);
    assert.equal(await read(cipher(bob, 'alice'), await cipher(first, 'bob').encrypt(Buffer.from('1'))), '1');
    await start(second, bob, 'bob', 2);
    const message = await cipher(second, 'bob').encrypt(Buffer.from('2'));
    if (verdict === 'replace') {
      assert.equal(await read(cipher(bob, 'alice'), message), '2');
      assert.ok((await bob.storage.getIdentity('alice')).equals(second.identity.pubKey));
    } else {
      const error = await refused(read(cipher(bob, 'alice'), message));
      assert.ok(error instanceof ours.UntrustedIdentityKeyError);
      assert.ok((await bob.storage.getIdentity('alice')).equals(first.identity.pubKey));
      assert.ok(await bob.storage.loadPreKey(2), 'nothing is used up');
    }
    assert.deepEqual(asked, verdict ? [['alice', 33, 33]] : []);
  }
});

test('the identity of a record that was made elsewhere is pinned by whatever uses it first', async () => {
  const uses = {
    encrypt: (at) => at.encrypt(Buffer.from('x')),
    encryptMany: (at) => at.encryptMany([Buffer.from('x')]),
    decryptMany: async (at, from) => at.decryptMany([(await from.encrypt(Buffer.from('x'))).body]),
  };
  for (const [name, use] of Object.entries(uses)) {
    const asked = [];
    const options = { onFirstUseIdentity: (who) => (asked.push(who), true) };
    const [bob, alice, attacker] = [await device(options), await device(), await device()];
    await start(alice, bob, 'bob');
    assert.equal(await read(cipher(bob, 'alice'), await cipher(alice, 'bob').encrypt(Buffer.from('1'))), '1');
    await read(cipher(alice, 'bob'), await cipher(bob, 'alice').encrypt(Buffer.from('2')));
    // As a program on libsignal-node left it: sessions as JSON, and no rows of identities.
    const record = (await bob.storage.loadSession('alice.1')).serialize();
    bob.rows.rows.set('session:alice.1', JSON.stringify(record));
    bob.rows.rows.delete('identity:alice');
    asked.length = 0;
    for (let i = 0; i < 2; i += 1) await use(cipher(bob, 'alice'), cipher(alice, 'bob'));
    assert.ok((await bob.storage.getIdentity('alice'))?.equals(alice.identity.pubKey), name);
    assert.deepEqual(asked, ['alice'], `${name}: asked once`);
    const error = await refused(start(bob, attacker, 'alice', 5));
    assert.equal(error.code, 'IDENTITY_CHANGED', name);
  }
});

test('an identity that the policy replaces while something is sent to it is replaced, and asked about once', async () => {
  let asked = 0;
  const [bob, alice, other] = [await device({ onIdentityMismatch: () => ((asked += 1), 'replace') }), await device(), await device()];
  await start(bob, alice, 'alice');
  await bob.storage.saveIdentity('alice', other.identity.pubKey);
  for (let i = 0; i < 3; i += 1) await cipher(bob, 'alice').encrypt(Buffer.from('x'));
  assert.ok((await bob.storage.getIdentity('alice')).equals(alice.identity.pubKey));
  assert.equal(asked, 1);
});

test('strangers are trusted, asked about, or not', async () => {
  for (const [options, taken] of [[{}, true], [{ trustOnFirstUse: false }, false], [{ onFirstUseIdentity: () => false }, false], [{ onFirstUseIdentity: async () => true }, true]]) {
    const [alice, bob] = [await device(), await device(options)];
    await start(alice, bob, 'bob');
    const reading = read(cipher(bob, 'alice'), await cipher(alice, 'bob').encrypt(Buffer.from('x')));
    if (taken) assert.equal(await reading, 'x');
    else assert.equal((await refused(reading)).code, 'IDENTITY_CHANGED');
    assert.equal((await bob.storage.getIdentity('alice')) !== undefined, taken);
  }
  // The application compared safety numbers before.
  const [alice, bob] = [await device(), await device({ trustOnFirstUse: false })];
  await bob.storage.saveIdentity('alice', alice.identity.pubKey);
  await start(alice, bob, 'bob');
  assert.equal(await read(cipher(bob, 'alice'), await cipher(alice, 'bob').encrypt(Buffer.from('x'))), 'x');
});

test('a first message whose save hung is saved again in one transaction, too', async () => {
  const executor = new ours.Executor({ storageTimeout: 40, backoff: 1 });
  const [alice, bob] = [party(ours), party(ours)];
  const calls = [];
  const late = [];
  const storage = {
    ...bob,
    isTrustedIdentity: () => true,
    storeSession: () => void calls.push('storeSession'),
    removePreKey: () => void calls.push('removePreKey'),
    storeSessionAndRemovePreKey: async (address, record, id) => {
      calls.push(`both ${id}`);
      if (calls.length === 1) await new Promise((_, reject) => late.push(() => reject(new Error('connection lost'))));
      await bob.storeSession(address, record);
      await bob.removePreKey(id);
    },
  };
  await new ours.SessionBuilder(alice, new ours.ProtocolAddress('again', 1)).initOutgoing(bob.bundle(7));
  const first = await new ours.SessionCipher(alice, new ours.ProtocolAddress('again', 1)).encrypt(Buffer.from('x'));
  const reader = new ours.SessionCipher(storage, new ours.ProtocolAddress('alice-again', 1), { executor, requireAtomicSessionAndPreKey: true });
  assert.equal((await refused(read(reader, first))).code, 'STORAGE_TIMEOUT');
  assert.ok(bob.prekeys.has(7));
  late[0]();
  while (calls.length < 2 || executor.pending > 0) await new Promise((resolve) => setTimeout(resolve, 5));
  assert.deepEqual(calls, ['both 7', 'both 7']);
  assert.ok(bob.sessions.has('alice-again.1') && !bob.prekeys.has(7));
});

test('a storage without transactions is refused where atomicity is asked for, and works otherwise', async () => {
  assert.throws(() => ours.createStorage(adapter({ transactions: false }), { requireAtomicSessionAndPreKey: true }), (error) => error.code === 'STORAGE_NOT_ATOMIC');
  const plain = { loadSession() {}, storeSession() {}, getOurIdentity() {} };
  const options = { requireAtomicSessionAndPreKey: true };
  assert.throws(() => new ours.SessionCipher(plain, new ours.ProtocolAddress('a', 1), options), (error) => error.code === 'STORAGE_NOT_ATOMIC');
  const [alice, bob] = [await device({}, { transactions: false }), await device({}, { transactions: false })];
  await start(alice, bob, 'bob');
  assert.equal(await read(cipher(bob, 'alice'), await cipher(alice, 'bob').encrypt(Buffer.from('x'))), 'x');
});

test('an identity is never replaced silently', async () => {
  const { storage, identity } = await device();
  await storage.setIdentity(identity, 9);
  const other = ours.keyhelper.generateIdentityKeyPair();
  assert.equal((await refused(storage.setIdentity(other, 9))).code, 'IDENTITY_EXISTS');
  const empty = ours.createStorage(adapter());
  assert.equal((await refused(empty.getOurIdentity())).code, 'KEY_MISSING');
});
