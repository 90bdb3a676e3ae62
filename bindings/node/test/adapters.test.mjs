// Storage adapters in JavaScript: what they are asked, what they may answer, and what becomes of a failure.
import assert from 'node:assert/strict';
import { createCipheriv, hkdfSync } from 'node:crypto';
import { test } from 'node:test';
import { codeOf, sdk, startMockRelay } from './project.mjs';

const { createApp, generateIdentityKeyPair } = sdk;

/** Four stores in memory, asynchronous or not. */
function stores({ sync = false } = {}) {
  const later = sync ? (value) => value : async (value) => value;
  const nonces = new Set();
  const pins = new Map();
  const states = new Map();
  const pair = generateIdentityKeyPair();
  const calls = [];
  return {
    nonces, pins, states, pair, calls,
    adapters: {
      replay: {
        checkAndMark(peer, nonce) {
          calls.push(['checkAndMark', peer, nonce.length]);
          const mark = `${peer}:${Buffer.from(nonce).toString('hex')}`;
          const seen = nonces.has(mark);
          nonces.add(mark);
          return later(seen);
        },
      },
      tofu: {
        storeFingerprint(peer, fingerprint) { if (!pins.has(peer)) pins.set(peer, fingerprint); return later(); },
        verifyFingerprint: (peer, fingerprint) => later(pins.get(peer) === fingerprint),
      },
      sessions: {
        save(id, state) { states.set(id, Buffer.from(state)); return later(); },
        load: (id) => later(states.get(id) ?? null),
      },
      identity: { getIdentityKeyPair: () => later(pair) },
    },
  };
}

async function setting(t) {
  const relay = await startMockRelay({ port: 0 });
  const others = await createApp({ appToken: 'stvor_dev_test123', relayUrl: relay.url, storage: 'memory' });
  const bob = await others.connect('bob');
  const apps = [others];
  t.after(async () => {
    for (const app of apps) await app.close();
    await relay.close();
  });
  const open = async (storageAdapters, more = {}) => {
    const app = await createApp({ appToken: 'stvor_dev_test123', relayUrl: relay.url, storageAdapters, ...more });
    apps.push(app);
    return app;
  };
  return { bob, open, others, relay, apps };
}

const next = async (client) => {
  for await (const message of client.messages()) return message.content;
};

for (const sync of [false, true]) {
  test(`everything is in the four stores, sealed, and is there again (${sync ? 'synchronous' : 'promises'})`, async (t) => {
    const { bob, open } = await setting(t);
    const mine = stores({ sync });
    const alice = await (await open(mine.adapters)).connect('alice');
    const { fingerprint } = alice.identity;
    await (await alice.send('bob', 'a secret')).delivered();
    await bob.send('alice', 'another');
    assert.equal(await next(alice), 'another');
    await alice.close();
    assert.ok(mine.calls.some(([, peer, size]) => peer === 'bob' && size === 12));
    assert.equal(mine.pins.get('bob'), bob.identity.fingerprint);
    const ids = [...mine.states.keys()];
    assert.ok(ids.includes('bob') && ids.every((id) => id === 'bob' || id.startsWith('_stvor/')), ids.join());
    for (const state of mine.states.values()) assert.ok(!state.includes('secret') && !state.includes('alice'));
    const again = await (await open(mine.adapters)).connect('alice');
    assert.equal(again.identity.fingerprint, fingerprint);
    await bob.send('alice', 'still there?');
    assert.equal(await next(again), 'still there?');
    assert.equal((await again.history('bob')).messages.length, 3);
  });
}

test('states of a newer program are STORE_TOO_NEW, and nothing is saved over them', async (t) => {
  const { open } = await setting(t);
  const mine = stores();
  const alice = await (await open(mine.adapters)).connect('alice');
  await alice.close();
  // The head as a program with layouts 2 saves it: another kind, the number, and what that program likes.
  const id = '_stvor/head';
  const key = hkdfSync('sha256', mine.pair.privateKey, '', 'STVOR narrow state key v1', 32);
  const seal = createCipheriv('aes-256-gcm', Buffer.from(key), Buffer.alloc(12, 7)).setAAD(Buffer.from(`STVOR narrow state v1${id}`));
  const sealed = [seal.update(Buffer.from([4, 0, 0, 0, 2, 9, 9, 9])), seal.final()];
  mine.states.set(id, Buffer.concat([Buffer.from([1]), Buffer.alloc(12, 7), ...sealed, seal.getAuthTag()]));
  const before = new Map(mine.states);
  assert.equal(await codeOf((await open(mine.adapters)).connect('alice')), 'STORE_TOO_NEW');
  assert.deepEqual(mine.states, before);
});

test('a throw, a rejection, a hang or a wrong answer fails the operation with a code and changes nothing', async (t) => {
  const { bob, open } = await setting(t);
  const mine = stores();
  const { adapters } = mine;
  let fault;
  const sessions = { ...adapters.sessions, save: (id, state) => (fault ? fault() : adapters.sessions.save(id, state)) };
  const app = await open({ ...adapters, sessions }, { timeout: 1_500 });
  const alice = await app.connect('alice');
  await (await alice.send('bob', '0')).delivered();
  assert.equal(await next(bob), '0');
  const secret = Object.assign(new Error(`no route to postgres://stvor:${'geheim'}@db`), { code: 'ECONNREFUSED' });
  fault = () => { throw secret; };
  await assert.rejects(alice.send('bob', 'lost'), (error) => {
    assert.equal(error.cause, secret, 'whoever catches it sees all of it');
    assert.match(error.message, /sessions\.save failed: Error ECONNREFUSED \[STORE_FAILED\]$/);
    return true;
  });
  const codes = [];
  for (const one of [() => { throw new Error('no'); }, () => Promise.reject('not an error'), () => new Promise(() => {})]) {
    fault = one;
    codes.push(await codeOf(alice.send('bob', 'lost')));
  }
  fault = undefined;
  assert.deepEqual(codes, ['STORE_FAILED', 'STORE_FAILED', 'STORE_TIMEOUT']);
  await (await alice.send('bob', '1')).delivered();
  assert.equal(await next(bob), '1');
});

test('answers of another kind are named', async (t) => {
  const { bob, open } = await setting(t);
  const refused = async (change, pattern) => {
    const { adapters } = stores();
    const app = await open({ ...adapters, ...change(adapters) });
    const act = async () => {
      const alice = await app.connect('alice');
      await alice.send('bob', 'x');
    };
    await assert.rejects(act(), (error) => error.code === 'STORE_ANSWER' && pattern.test(error.message) && error.action.length > 0);
  };
  await refused(() => ({ tofu: { storeFingerprint() {}, verifyFingerprint: () => 'yes' } }), /tofu\.verifyFingerprint.*true or false/);
  await refused(() => ({ sessions: { save() {}, load: () => ({}) } }), /sessions\.load.*Uint8Array/);
  await refused(() => ({ sessions: { save() {}, load: () => {} } }), /sessions\.load.*null if there is none/);
  await refused(() => ({ identity: { getIdentityKeyPair: () => null } }), /identity\.getIdentityKeyPair.*publicKey/);
  const { publicKey } = generateIdentityKeyPair();
  const { privateKey } = generateIdentityKeyPair();
  await refused(() => ({ identity: { getIdentityKeyPair: () => ({ publicKey, privateKey }) } }), /does not belong/);
  // A message whose nonce can not be judged stays at the relay, and comes when it can be.
  const mine = stores();
  let answer = 1;
  const replay = { checkAndMark: (...given) => (answer === 1 ? 1 : mine.adapters.replay.checkAndMark(...given)) };
  const alice = await (await open({ ...mine.adapters, replay })).connect('anna');
  const failing = new Promise((resolve) => { alice.on('storeFailing', resolve); });
  await bob.send('anna', 'patience');
  assert.deepEqual(await failing, { code: 'STORE_ANSWER' });
  answer = 0;
  assert.equal(await next(alice), 'patience');
});

test('what is missing, or is no adapter', async (t) => {
  const { bob, open } = await setting(t);
  const { adapters } = stores();
  const settings = { appToken: 'sk_live_xxx', relayUrl: 'wss://relay.invalid' };
  const unfit = (more, codes, pattern) => assert.rejects(createApp({ ...settings, ...more }), (error) => {
    assert.equal(error.code, 'NOT_FOR_PRODUCTION');
    assert.match(error.message, pattern);
    assert.deepEqual(error.findings.filter((finding) => finding.refused).map(({ code }) => code), codes);
    return true;
  });
  const refused = (more, pattern) => assert.rejects(createApp({ ...settings, ...more }), (error) => error.code === 'INVALID_CONFIG' && pattern.test(error.message));
  const two = { replay: adapters.replay, sessions: adapters.sessions };
  // One error has all of it, before anything is dialled.
  const missing = ['adapter_missing_tofu', 'adapter_missing_identity'];
  await unfit({ storageAdapters: two, productionMode: true }, missing, /"tofu" is missing[^]*"identity" is missing/);
  await unfit({ storageAdapters: two, productionMode: true, appToken: 'stvor_dev_x', relayUrl: 'ws://relay.invalid' },
    [...missing, 'relay_without_tls', 'development_token'], /"tofu" is missing/);
  await unfit({ storageAdapters: two, productionMode: true, requireAtomicSessionAndPrekey: true }, [...missing, 'store_not_atomic'], /transactions/);
  await refused({ storageAdapters: { ...adapters, session: {} } }, /no "session"/);
  await refused({ storageAdapters: { ...adapters, tofu: { storeFingerprint() {} } } }, /tofu\.verifyFingerprint is a function/);
  await refused({ storageAdapters: { ...adapters, tofu: { ...adapters.tofu, replaceFingerprint: 1 } } }, /tofu\.replaceFingerprint is a function/);
  await refused({ storageAdapters: adapters, dataDir: '/nowhere' }, /exclude/);
  // All four are accepted in production, with the weaker promise stated.
  const strict = await createApp({ ...settings, storageAdapters: adapters, productionMode: true });
  assert.deepEqual(strict.findings.map(({ code, refused: fatal }) => [code, fatal]), [['store_not_atomic', false]]);
  await strict.close();
  const atomic = createApp({ ...settings, storageAdapters: adapters, requireAtomicSessionAndPrekey: true });
  await assert.rejects(atomic, (error) => error.code === 'NOT_FOR_PRODUCTION' && /transactions/.test(error.message));
  // In development stand-ins in memory do.
  const alice = await (await open(two)).connect('alice');
  await (await alice.send('bob', 'x')).delivered();
  assert.equal(await next(bob), 'x');
});

/** Alice on these stores, acquainted with a bob who then lost everything and began anew. */
async function begunAnew(t, storageAdapters) {
  const { bob, open, others, relay, apps } = await setting(t);
  const alice = await (await open(storageAdapters)).connect('alice');
  await (await alice.send('bob', 'before')).delivered();
  assert.equal(await next(bob), 'before');
  await others.close();
  const anew = await createApp({ appToken: 'stvor_dev_test123', relayUrl: relay.url, storage: 'memory', replaceIdentity: true });
  apps.push(anew);
  const changed = new Promise((resolve) => { alice.once('identityChanged', resolve); });
  const bobAnew = await anew.connect('bob');
  await bobAnew.send('alice', 'it is me');
  assert.deepEqual(await changed, { peer: 'bob', accepted: false });
  return { alice, bob: bobAnew, open, app: anew, old: bob.identity.fingerprint };
}

async function bothGoOn(alice, bob) {
  assert.equal(await next(alice), 'it is me');
  await (await alice.send('bob', 'to the new one')).delivered();
  assert.equal(await next(bob), 'to the new one');
}

test('an accepted identity replaces the fingerprint, and so does a rotation', async (t) => {
  const mine = stores();
  const replaced = [];
  const tofu = {
    ...mine.adapters.tofu,
    async replaceFingerprint(peer, old, fingerprint) {
      replaced.push([peer, old, fingerprint]);
      if (mine.pins.get(peer) === old) mine.pins.set(peer, fingerprint);
    },
  };
  const { alice, bob, app, old } = await begunAnew(t, { ...mine.adapters, tofu });
  assert.deepEqual(replaced, [], 'nobody decided');
  await alice.acceptIdentity('bob');
  assert.deepEqual(replaced, [['bob', old, bob.identity.fingerprint]]);
  assert.equal(mine.pins.get('bob'), bob.identity.fingerprint);
  const accepted = (await alice.journal()).find(({ deed }) => deed === 'identity_accepted');
  assert.deepEqual([accepted.subject, accepted.detail], ['bob', `${old} -> ${bob.identity.fingerprint}`]);
  assert.ok(accepted.at instanceof Date && accepted.who.length > 0);
  await bothGoOn(alice, bob);
  const heard = new Promise((resolve) => { alice.once('identityRotated', resolve); });
  const rotated = await app.rotateIdentity('bob');
  assert.equal((await heard).new, rotated.new);
  assert.equal(mine.pins.get('bob'), rotated.new);
  await rotated.client.send('alice', 'rotated');
  assert.equal(await next(alice), 'rotated');
});

test('a fingerprint that is written once is deleted by its owner before another identity is accepted', async (t) => {
  const mine = stores();
  const { alice, bob, open, old } = await begunAnew(t, mine.adapters);
  await assert.rejects(alice.acceptIdentity('bob'), (error) => {
    assert.equal(error.code, 'FINGERPRINT_FIXED');
    assert.match(error.message, /delete the fingerprint of "bob" from that store yourself/);
    assert.match(error.action, /acceptIdentity/);
    return true;
  });
  assert.equal(mine.pins.get('bob'), old);
  mine.pins.delete('bob');
  await alice.close();
  const again = await (await open(mine.adapters)).connect('alice');
  assert.equal(await codeOf(again.send('bob', 'x')), 'IDENTITY_CHANGED');
  await again.acceptIdentity('bob');
  assert.equal(mine.pins.get('bob'), bob.identity.fingerprint);
  await bothGoOn(again, bob);
});
