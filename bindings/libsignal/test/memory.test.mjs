// Answers share memory: with each other, and never with what is secret.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { test } from 'node:test';
import { couple, group, native, ours, party, refused } from './world.mjs';

/** The same numbers in each run. */
function numbers(seed) {
  let at = 0;
  return (below) => createHash('sha256').update(`${seed} ${at++}`).digest().readUInt32BE(0) % below;
}

/** Lengths: most short, some that fill what several share, some that have memory of their own. */
const lengthOf = (below) => below([200, 2_500, 9_000, 40_000][below(16) < 12 ? 0 : 1 + below(3)]);

/** Whatever a session holds that is secret. */
const secretsOf = (who) => {
  const { _sessions: all } = [...who.sessions.values()][0].serialize();
  return Object.values(all).flatMap(({ currentRatchet, _chains: chains }) =>
    [currentRatchet.rootKey, currentRatchet.ephemeralKeyPair.privKey, ...Object.values(chains).map((chain) => chain.chainKey.key)]
      .filter(Boolean).map((text) => Buffer.from(text, 'base64')));
};

/** Outputs beside copies of what they were. */
class Outputs {
  all = [];
  add(bytes) {
    this.all.push([bytes, Buffer.from(bytes)]);
    return bytes;
  }
  check() {
    for (const [bytes, before] of this.all) assert.ok(bytes.equals(before));
  }
}

test('what was handed over stays as it is, whatever is made of it, and none of its memory has a key in it', async () => {
  const below = numbers('sessions');
  const { alice, bob, toBob, toAlice, start } = couple(ours, { json: false });
  const identities = new Set();
  for (const who of [alice, bob]) who.isTrustedIdentity = async (_name, key) => !!identities.add(key);
  await start(bob.bundle(1));
  const outputs = new Outputs();
  const secrets = [];
  for (let step = 0; step < 1_500; step += 1) {
    const [out, into] = below(2) ? [toBob, toAlice] : [toAlice, toBob];
    if (step === 0) await toAlice.decryptPreKeyWhisperMessage((await toBob.encrypt(Buffer.from('first'))).body);
    const earlier = outputs.all.at(-1 - below(4))?.[0];
    // Of what came out before, as whole or in part: it is in memory that answers are written to.
    const input = below(3) === 0 && earlier ? earlier.subarray(below(earlier.length + 1)) : Buffer.alloc(lengthOf(below), step);
    const before = Buffer.from(input);
    const { type, body } = await out.encrypt(input);
    outputs.add(body);
    const read = outputs.add(await (type === 3 ? into.decryptPreKeyWhisperMessage(body) : into.decryptWhisperMessage(body)));
    assert.ok(read.equals(before));
    if (step % 50 === 0) secrets.push(...secretsOf(alice), ...secretsOf(bob));
  }
  outputs.check();
  assert.ok(secrets.length > 100);
  const memory = new Set([...outputs.all.map(([bytes]) => bytes.buffer), ...[...identities].map((key) => key.buffer)]);
  assert.ok(memory.size > 50);
  for (const whole of memory) for (const secret of secrets) assert.equal(Buffer.from(whole).indexOf(secret), -1);
});

test('the same of groups', async () => {
  const below = numbers('groups');
  const [alice, bob] = [party(ours), party(ours)];
  const name = new group.SenderKeyName('memory', { id: 'alice', deviceId: 1 });
  await new group.GroupSessionBuilder(bob).process(name, await new group.GroupSessionBuilder(alice).create(name));
  const [out, into] = [new group.GroupCipher(alice, name), new group.GroupCipher(bob, name)];
  const outputs = new Outputs();
  for (let step = 0; step < 400; step += 1) {
    const earlier = outputs.all.at(-1 - below(4))?.[0];
    const input = below(3) === 0 && earlier ? earlier.subarray(below(earlier.length + 1)) : Buffer.alloc(lengthOf(below), step);
    const before = Buffer.from(input);
    const body = outputs.add(await out.encrypt(input));
    assert.ok(outputs.add(await into.decrypt(body)).equals(before));
  }
  outputs.check();
  const seeds = [alice, bob].flatMap((who) => JSON.parse([...who.senderKeys.values()][0]).map(({ senderChainKey }) => Buffer.from(senderChainKey.seed.data ?? senderChainKey.seed, 'base64')));
  assert.deepEqual(seeds.map((seed) => seed.length), [32, 32]);
  for (const whole of new Set(outputs.all.map(([bytes]) => bytes.buffer))) for (const seed of seeds) assert.equal(Buffer.from(whole).indexOf(seed), -1);
});

test('who gives one text away, to another thread or a stream, takes no other along, and all goes on', async () => {
  const { bob, toBob, toAlice, start } = couple(ours);
  await start(bob.bundle(1));
  await toAlice.decryptPreKeyWhisperMessage((await toBob.encrypt(Buffer.from('first'))).body);
  const seal = async (text) => (await toBob.encrypt(Buffer.from(text))).body;
  const [kept, given] = [await seal('kept'), await seal('given')];
  const before = Buffer.from(kept);
  // Later versions of Node refuse it.
  const copy = (() => { try { return structuredClone(given, { transfer: [given.buffer] }); } catch { return given; } })();
  assert.ok(kept.equals(before) && copy.length > 0);
  // Some versions' streams take all of it, marked or not.
  try {
    new ReadableStream({ type: 'bytes', start: (controller) => controller.enqueue(given) });
  } catch {}
  for (const text of ['more', 'and more']) {
    const { type, body } = await toBob.encrypt(Buffer.from(text));
    assert.equal(String(await (type === 3 ? toAlice.decryptPreKeyWhisperMessage(body) : toAlice.decryptWhisperMessage(body))), text);
  }
});

test('storages are asked about the identity that a message proved, whatever became of the memory that it once came in', async () => {
  const { alice, bob, toBob, toAlice, start } = couple(ours, { json: false });
  const asked = [];
  alice.isTrustedIdentity = async (_name, key) => !!asked.push(Buffer.from(key));
  const reused = Buffer.from(bob.identity.pubKey);
  await start({ ...bob.bundle(1), identityKey: reused });
  await toAlice.decryptPreKeyWhisperMessage((await toBob.encrypt(Buffer.from('first'))).body);
  const { body } = await toAlice.encrypt(Buffer.from('reply'));
  ours.keyhelper.generateIdentityKeyPair().pubKey.copy(reused);
  await toBob.decryptWhisperMessage(body);
  await toBob.encrypt(Buffer.from('again'));
  assert.equal(asked.length, 4);
  for (const key of asked) assert.ok(key.equals(bob.identity.pubKey));
});

test('an identity of another length is an error, and spoils no record', async () => {
  const { alice, bob, toBob, toAlice, start } = couple(ours, { json: false });
  await start(bob.bundle(1));
  await toAlice.decryptPreKeyWhisperMessage((await toBob.encrypt(Buffer.from('first'))).body);
  await toBob.decryptWhisperMessage((await toAlice.encrypt(Buffer.from('reply'))).body);
  const kept = [...alice.sessions.values()][0];
  const before = kept.toBytes();
  const { identity } = alice;
  const lengths = [
    ...[0, 31, 33, 34, 1_000, 5_000].map((length) => ({ pubKey: identity.pubKey, privKey: Buffer.alloc(length, 1) })),
    ...[0, 31, 34, 44, 5_000].map((length) => ({ pubKey: Buffer.alloc(length, 5), privKey: identity.privKey })),
    // As long as they should be together, and divided elsewhere.
    { pubKey: Buffer.concat([identity.pubKey, identity.privKey.subarray(0, 1)]), privKey: identity.privKey.subarray(1) },
  ];
  for (const malformed of [...lengths, { pubKey: Buffer.alloc(33, 6), privKey: identity.privKey }]) {
    alice.getOurIdentity = async () => malformed;
    assert.equal((await refused(toBob.encrypt(Buffer.from('text')))).code, 'BAD_KEY');
    assert.equal((await refused(toBob.encryptMany([Buffer.from('text')]))).code, 'BAD_KEY');
    const own = { identity: await alice.getOurIdentity(), registrationId: 5 };
    assert.throws(() => ours.sync.encrypt(kept, own, Buffer.from('text')), { code: 'BAD_KEY' });
    // What needs no key of ours goes on, and a message that is none is told first.
    assert.ok(await toBob.hasOpenSession());
    assert.deepEqual(await toBob.encryptMany([]), []);
    assert.equal((await refused(toBob.decryptWhisperMessage(Buffer.from('none')))).code, 'UNSUPPORTED_VERSION');
  }
  alice.getOurIdentity = async () => identity;
  assert.ok(kept.toBytes().equals(before));
  const { body } = await toBob.encrypt(Buffer.from('text'));
  assert.equal(String(await toAlice.decryptWhisperMessage(body)), 'text');
});

test('whom a message is for is asked as the record has it, whatever a storage did to what it was handed', async () => {
  const { alice, bob, toBob, toAlice, start } = couple(ours, { json: false });
  const asked = [];
  alice.isTrustedIdentity = async (_name, key) => {
    asked.push(Buffer.from(key));
    return !!key.fill(0);
  };
  await start({ ...bob.bundle(1), identityKey: Buffer.from(bob.identity.pubKey) });
  await toAlice.decryptPreKeyWhisperMessage((await toBob.encrypt(Buffer.from('first'))).body);
  const { body } = await toAlice.encrypt(Buffer.from('reply'));
  await toBob.decryptWhisperMessage(body);
  for (let one = 0; one < 3; one += 1) await toBob.encrypt(Buffer.from('again'));
  assert.equal(asked.length, 6);
  for (const key of asked) assert.ok(key.equals(bob.identity.pubKey));
});

test('of records in one memory each is wiped by itself', async () => {
  const { alice, bob, toBob, toAlice, start } = couple(ours, { json: false });
  await start(bob.bundle(1));
  await toAlice.decryptPreKeyWhisperMessage((await toBob.encrypt(Buffer.from('first'))).body);
  const kept = [];
  for (let one = 0; one < 30; one += 1) {
    await toAlice.decryptPreKeyWhisperMessage((await toBob.encrypt(Buffer.from('more'))).body);
    const [record] = alice.sessions.values();
    kept.push([record, record.toBytes()]);
  }
  kept.forEach(([record], at) => { if (at % 2) record.zeroize(); });
  kept.forEach(([record, bytes], at) => assert.ok(at % 2 ? record.toBytes().length === 0 : record.toBytes().equals(bytes)));
  assert.equal(bob.sessions.size, 1);
});

/** Sessions of two accounts with a peer each, without storages. */
async function accounts() {
  const of = async () => {
    const { alice, bob, toBob, toAlice, start } = couple(ours, { json: false });
    await start(bob.bundle(1));
    await toAlice.decryptPreKeyWhisperMessage((await toBob.encrypt(Buffer.from('first'))).body);
    await toBob.decryptWhisperMessage((await toAlice.encrypt(Buffer.from('reply'))).body);
    const [own, peer] = [alice, bob].map(({ identity, registrationId }) => ({ identity, registrationId }));
    const at = { record: [...alice.sessions.values()][0], peers: [...bob.sessions.values()][0] };
    return {
      own,
      seal(given) {
        const sealed = ours.sync.encrypt(at.record, own, given);
        at.record = sealed.record;
        return sealed;
      },
      read(body) {
        const opened = ours.sync.decryptWhisperMessage(at.peers, peer, body);
        at.peers = opened.record;
        return String(opened.plaintext);
      },
    };
  };
  return [await of(), await of()];
}

test('accounts that take turns each speak as themselves, whatever is written where, and however far ahead a message is', async () => {
  const below = numbers('accounts');
  const all = await accounts();
  const [alice, bob] = [party(ours), party(ours)];
  const name = new group.SenderKeyName('between', { id: 'alice', deviceId: 1 });
  await new group.GroupSessionBuilder(bob).process(name, await new group.GroupSessionBuilder(alice).create(name));
  const [out, into] = [new group.GroupCipher(alice, name), new group.GroupCipher(bob, name)];
  for (let step = 0; step < 300; step += 1) {
    const one = all[below(2)];
    // Keys that are passed over make records longer than was guessed.
    for (let lost = below(20) === 0 ? below(60) : 0; lost > 0; lost -= 1) one.seal(Buffer.from('lost'));
    assert.equal(one.read(one.seal(Buffer.from(`step ${step}`)).body), `step ${step}`);
    if (below(4) === 0) assert.equal(String(await into.decrypt(await out.encrypt(Buffer.from('group')))), 'group');
  }
});

test('an identity that was damaged, in whichever byte, is not the one that it is once it is whole', async () => {
  const { alice, bob, toBob, toAlice, start } = couple(ours, { json: false });
  const { identity, registrationId } = alice;
  await start(bob.bundle(1));
  await toAlice.decryptPreKeyWhisperMessage((await toBob.encrypt(Buffer.from('first'))).body);
  await toBob.decryptWhisperMessage((await toAlice.encrypt(Buffer.from('reply'))).body);
  const again = async () => assert.equal(String(await toAlice.decryptWhisperMessage((await toBob.encrypt(Buffer.from('again'))).body)), 'again');
  for (const key of ['pubKey', 'privKey']) {
    for (const at of [1, 15, 16, 17, identity[key].length - 1]) {
      const damaged = { pubKey: Buffer.from(identity.pubKey), privKey: Buffer.from(identity.privKey) };
      damaged[key][at] ^= 0x10;
      alice.getOurIdentity = async () => damaged;
      const lost = (await toBob.encrypt(Buffer.from('lost'))).body;
      if (key === 'pubKey') assert.equal((await refused(toAlice.decryptWhisperMessage(lost))).code, 'UNDECRYPTABLE');
      // Made whole in place, and as other objects.
      damaged[key][at] ^= 0x10;
      await again();
      alice.getOurIdentity = async () => ({ ...identity });
      await again();
      const kept = { identity: damaged, registrationId };
      const opened = ours.sync.encrypt([...alice.sessions.values()][0], kept, Buffer.from('at once'));
      assert.equal(String(await toAlice.decryptWhisperMessage(opened.body)), 'at once');
      alice.sessions.set([...alice.sessions.keys()][0], opened.record);
    }
  }
});

/** Members of a group, without waiting where it can be. */
async function members() {
  const [alice, bob] = [party(ours), party(ours)];
  const name = new group.SenderKeyName('members', { id: 'alice', deviceId: 1 });
  await new group.GroupSessionBuilder(bob).process(name, await new group.GroupSessionBuilder(alice).create(name));
  return [new group.GroupCipher(alice, name), new group.GroupCipher(bob, name)];
}

test('bytes that make another call when they are asked for something change neither what it makes nor who makes it', async () => {
  const [one, two] = await accounts();
  const [out, into] = await members();
  const strange = { identity: ours.keyhelper.generateIdentityKeyPair(), registrationId: 7 };
  const others = [
    () => two.seal(Buffer.from('within')),
    () => assert.throws(() => ours.sync.encrypt(new ours.SessionRecord(), strange, Buffer.from('within')), { code: 'NO_SESSION' }),
  ];
  for (const other of others) {
    let within;
    const asks = (bytes, key) => {
      const real = bytes[key];
      return Object.defineProperty(bytes, key, { get: () => ((within ??= other() ?? {}), real) });
    };
    for (const key of ['buffer', 'length', 'byteOffset', 'byteLength']) {
      const calls = [
        async () => one.read(one.seal(asks(Buffer.from('around'), key)).body),
        async () => one.read(asks(Buffer.from(one.seal(Buffer.from('around')).body), key)),
        async () => String(await into.decrypt(await out.encrypt(asks(Buffer.from('around'), key)))),
        async () => String(await into.decrypt(asks(Buffer.from(await out.encrypt(Buffer.from('around'))), key))),
      ];
      for (const call of calls) {
        within = undefined;
        assert.equal(await call(), 'around', key);
        // The others are not asked of what is given.
        if (key === 'length') assert.ok(within !== undefined);
        if (within?.body === undefined) continue;
        assert.equal(two.read(Buffer.from(within.body)), 'within', key);
      }
    }
  }
});

test('what the native half reads is in no memory that it writes to, nor in that of another thread, whatever the bytes say of it', async () => {
  const [one] = await accounts();
  const [out, into] = await members();
  const memoryOf = (bytes) => Object.getOwnPropertyDescriptor(Object.getPrototypeOf(Uint8Array.prototype), 'buffer').get.call(bytes);
  const half = native();
  const names = ['encrypt', 'decrypt', 'groupEncrypt', 'groupDecrypt'];
  const real = Object.fromEntries(names.map((name) => [name, half[name]]));
  const seen = new Set();
  for (const name of names) {
    half[name] = (record, input, records, texts) => {
      seen.add(name);
      assert.ok(memoryOf(input) instanceof ArrayBuffer, name);
      for (const written of [records, texts]) for (const read of [record, input]) assert.notEqual(memoryOf(read), memoryOf(written), name);
      return real[name](record, input, records, texts);
    };
  }
  const lies = [{}, { buffer: { value: new ArrayBuffer(8) } }, { length: { value: 3_000 } }, { byteLength: { value: 1 } }];
  const shared = (bytes) => Object.assign(Buffer.from(new SharedArrayBuffer(bytes.length)), bytes);
  // As it came out, in the memory that answers are written to; and in memory of threads.
  const forms = [(bytes) => bytes.subarray(), shared];
  try {
    for (const lie of lies) {
      for (const form of forms) {
        const given = (bytes) => Object.defineProperties(form(bytes), lie);
        const text = one.seal(Buffer.from('text')).body;
        const { body } = one.seal(given(text));
        assert.equal(one.read(given(body)), String(text));
        const sealed = await out.encrypt(given(text));
        assert.equal(String(await into.decrypt(given(sealed))), String(text));
      }
    }
  } finally {
    Object.assign(half, real);
  }
  assert.deepEqual([...seen].sort(), [...names].sort());
});

test('a call that has its arguments elsewhere, as another version has them, is refused', () => {
  const [page, text] = [Buffer.alloc(4_096, 5), Buffer.alloc(8_192)];
  for (const name of ['encrypt', 'decrypt', 'groupEncrypt', 'groupDecrypt']) {
    for (const given of [[], [page, text, page], [Buffer.alloc(0), Buffer.alloc(69), Buffer.alloc(3), page, text]]) {
      assert.throws(() => native()[name](...given), /four arguments/, name);
    }
  }
  assert.ok(page.every((byte) => byte === 5) && text.every((byte) => byte === 0));
});

test('a long text has memory of its own, and can be given away', async () => {
  const [one] = await accounts();
  // What answers are guessed to take is as long as what several share.
  for (const length of [7_982, 7_983, 7_984, 20_000]) {
    const { body } = one.seal(Buffer.alloc(length, 1));
    const given = structuredClone(body, { transfer: [body.buffer] });
    // Given, and not copied, as what is marked is in some versions.
    assert.equal(body.buffer.byteLength, 0, `${length}`);
    assert.equal(one.read(Buffer.from(given)).length, length);
  }
});
