// Whatever JavaScript hands in: an error with a code, or a result. Never the end of the process, never a promise that nobody catches.
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { at, directory, require, run, sdk, write } from './project.mjs';

const ratchet = require('@stvor/sdk/ratchet');
const { StvorError, createApp } = sdk;

/** A number generator with a seed, so that a failure can be repeated: STVOR_FUZZ_SEED, STVOR_FUZZ_ROUNDS. */
const seed = Number(process.env.STVOR_FUZZ_SEED ?? 1);
const rounds = Number(process.env.STVOR_FUZZ_ROUNDS ?? 400);
function random(state) {
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296;
  };
}

function detached() {
  const bytes = new Uint8Array(64);
  structuredClone(bytes, { transfer: [bytes.buffer] });
  return bytes;
}

/** A view that ends beyond its buffer, where there are buffers that can shrink. */
function shrunk() {
  const buffer = new ArrayBuffer(64, { maxByteLength: 128 });
  const bytes = new Uint8Array(buffer, 8, 32);
  buffer.resize?.(4);
  return bytes;
}

/** Bytes that another thread may write to at any time. */
const shared = () => new Uint8Array(new SharedArrayBuffer(64, { maxByteLength: 128 }));

/** Every trap throws. */
const hostile = () => new Proxy({}, new Proxy({}, { get: () => () => { throw new Error('trap'); } }));

function revoked() {
  const { proxy, revoke } = Proxy.revocable([], {});
  revoke();
  return proxy;
}

/** An array that is longer whenever it is asked. */
function growing() {
  let length = 1;
  return new Proxy(['bob'], { get: (_, key) => (key === 'length' ? (length *= 1_000) : 'bob') });
}

const thrower = (what) => { throw what; };
const cyclic = {};
cyclic.self = cyclic;

/** Makers of odd values. */
const ODD = [
  () => undefined, () => null, () => true, () => 0, () => -1, () => NaN, () => Infinity, () => 2 ** 53, () => 1n, () => Symbol('x'),
  () => '', () => '\0', () => '\ud800', () => 'x'.repeat(70_000), () => 'alice', () => '../../etc/passwd', () => () => {}, () => [],
  () => [1, , 3], () => ({}), () => cyclic, () => Object.create(null), () => new Date(NaN), () => new Map(), () => new Uint8Array(0),
  () => new Uint8Array(70_000), detached, () => new Uint8Array(new SharedArrayBuffer(8)), () => new ArrayBuffer(8), () => new DataView(new ArrayBuffer(8)),
  () => new Float64Array(3), () => Buffer.from('x'), () => new Proxy({}, { get: () => thrower(new Error('get')) }),
  () => new Proxy(new Uint8Array(4), {}), () => new Proxy(() => {}, {}), () => ({ get timeout() { return thrower('a string'); } }),
  () => ({ get signal() { return thrower(undefined); } }), () => ({ toJSON: () => thrower(Symbol('y')) }), () => ({ toString: () => thrower(1), valueOf: () => thrower(2) }),
  () => ({ header: new Uint8Array(85), ciphertext: new Uint8Array(64) }), () => ({ signal: {} }), () => ({ signal: { aborted: false, addEventListener: () => thrower(3) } }),
  shrunk, shared, hostile, revoked, growing, () => Object.assign([], { length: 2 ** 32 - 1 }), () => new Array(2 ** 32 - 1), () => [hostile()],
  () => new Uint8Array(new ArrayBuffer(8, { maxByteLength: 16 })), () => ({ get to() { return thrower(4); } }), () => [{ to: 'bob', content: 'x' }],
  () => [{ to: 'bob', get content() { return thrower(5); } }], () => ({ postgres: 'postgres://x', get replicas() { return thrower(6); } }),
  () => ({ redis: growing() }), () => ({ module: '/nowhere', token: 't', key: 'k', pin: '1' }), () => Object.create(sdk.Group.prototype),
  () => ({ then: () => thrower(new Error('then')) }), () => Object.create(Uint8Array.prototype), () => Object.create(ratchet.Session.prototype),
  () => Object.create(sdk.Client.prototype), () => ({ timeout: 1e300 }), () => ({ limit: -1 }), () => ({ port: 1e9 }), () => /x/, () => new Error('x'),
  () => new Proxy(() => {}, { get: () => thrower(new Error('get of a function')) }),
];

/** Runs one call; it ends in a result or in a `StvorError`. */
async function contained(what, act) {
  let limit;
  try {
    const result = act();
    if (typeof result?.then === 'function') {
      await Promise.race([result, new Promise((resolve) => { limit = setTimeout(resolve, 2_000); })]);
    }
    return result;
  } catch (error) {
    assert.ok(error instanceof StvorError, `${what} failed with ${typeof error} ${require('node:util').inspect(error)}`);
    assert.match(error.code, /^[A-Z][A-Z0-9_]+$/, what);
    return undefined;
  } finally {
    clearTimeout(limit);
  }
}

test(`odd arguments at every function of the low level (seed ${seed})`, async () => {
  const next = random(seed);
  const pick = (from) => from[Math.floor(next() * from.length)];
  const keys = ratchet.generateKeyPair();
  const { session, handshake } = ratchet.establishSession(keys, ratchet.generateKeyPair().bundle);
  const good = [keys, session, handshake, keys.bundle, new Uint8Array(32), 'hello', ratchet.encryptMessage(session, 'x')];
  const functions = Object.entries(ratchet).filter(([name, value]) => typeof value === 'function' && /^[a-z]/.test(name));
  for (let round = 0; round < rounds * 5; round += 1) {
    const [name, call] = pick(functions);
    const given = [0, 1, 2].map(() => (next() < 0.4 ? pick(good) : pick(ODD)()));
    await contained(name, () => call(...given));
  }
  assert.equal(ratchet.encryptMessage(session, 'still').header.length, 85);
});

test('altered bytes at the decoders of the low level', async () => {
  const next = random(seed + 1);
  const [alice, bob] = [ratchet.generateKeyPair(), ratchet.generateKeyPair()];
  const { session: hers, handshake } = ratchet.establishSession(alice, bob.bundle);
  const first = ratchet.encryptMessage(hers, 'first');
  const { session: his } = ratchet.establishSession(bob, handshake);
  const key = new Uint8Array(32);
  const targets = [
    [bob.bundle, (bytes) => ratchet.establishSession(alice, bytes)],
    [handshake, (bytes) => ratchet.decryptMessage(ratchet.establishSession(bob, bytes).session, first)],
    [first.bytes, (bytes) => ratchet.decryptMessage(his, bytes)],
    [ratchet.serializeSession(hers, key), (bytes) => ratchet.deserializeSession(bytes, key)],
  ];
  for (let round = 0; round < rounds; round += 1) {
    for (const [bytes, decode] of targets) {
      const altered = Uint8Array.from(bytes);
      const at = Math.floor(next() * altered.length);
      altered[at] ^= 1 << Math.floor(next() * 8);
      const cut = next() < 0.3 ? altered.subarray(0, Math.floor(next() * altered.length)) : altered;
      await contained(`a decoder with byte ${at}`, () => decode(cut));
    }
  }
  assert.equal(ratchet.decryptMessage(his, first), 'first');
});

test('odd arguments at apps and clients', async (t) => {
  const next = random(seed + 2);
  const pick = (from) => from[Math.floor(next() * from.length)];
  const { app } = await at(t, { timeout: 20 });
  // A busy machine may need longer than the timeout that keeps this test short.
  const connected = async (user) => {
    for (;;) {
      try {
        return await app.connect(user);
      } catch (error) {
        if (error.code !== 'RELAY_UNAVAILABLE') throw error;
      }
    }
  };
  const [alice] = [await connected('alice'), await connected('bob')];
  const methods = (object) => Object.getOwnPropertyNames(Object.getPrototypeOf(object))
    .filter((name) => typeof Object.getOwnPropertyDescriptor(Object.getPrototypeOf(object), name).value === 'function'
      && !['constructor', 'close', 'disconnect', 'deleteAccount', 'rotateIdentity', 'wait', 'leave', 'unref', 'read', 'delivered'].includes(name));
  await alice.waitForUser('bob', 60_000);
  const group = await alice.createGroup('friends', ['bob']);
  const receipt = await alice.send('bob', 'hello', { timeout: 10_000 });
  const page = await alice.history('bob');
  const good = ['bob', 'hello', 'alice', { timeout: 5 }, () => {}, 'receipt', ['bob'], group.id, [{ to: 'bob', content: 'x' }]];
  const others = [app, group, receipt];
  for (let round = 0; round < rounds * 2; round += 1) {
    const object = next() < 0.4 ? pick(others) : alice;
    const name = pick(methods(object));
    const given = [0, 1, 2].map(() => (next() < 0.4 ? pick(good) : pick(ODD)()));
    if (name === 'waitOnline' || name === 'waitCaughtUp') given[0] = { timeout: 5 };
    if (name === 'waitForUser') given[1] = { timeout: 5 };
    const result = await contained(name, () => object[name](...given));
    if (name === 'messages') await result?.return?.();
    if (name === 'onMessage') result?.();
    if (round % 50 === 0) await contained('older', () => page.older(pick(ODD)()));
  }
  // What ends the client if it works is tried with what can not work.
  for (const odd of ['x', 1, {}, [], null]) await contained('rotateIdentity', () => app.rotateIdentity('alice', { notDerived: odd }));
  await alice.unblock('bob');
  await (await alice.send('bob', 'still', { timeout: 10_000 })).delivered();
});

test('odd settings', async () => {
  const next = random(seed + 3);
  const names = ['osKeyring', 'pkcs11', 'kmip', 'kms', 'identityPhrase', 'identityPassphrase', 'instanceLease', 'actor', 'executor', 'legacyRelay',
    'requireAtomicSessionAndPrekey', 'appToken', 'relayUrl', 'clientToken', 'appId', 'dataDir', 'storage', 'storageAdapters', 'productionMode', 'timeout', 'passphrase',
    'keyfile', 'trustPolicy', 'onIdentityChange', 'retention', 'receipts', 'rootCertificate', 'replaceIdentity'];
  for (const make of ODD) {
    await contained('createApp', () => createApp(make()));
    for (const name of names) {
      if (next() < 0.5) continue;
      await contained(name, () => createApp({ appToken: 'stvor_x', relayUrl: 'ws://localhost:1', storage: 'memory', [name]: make() }));
    }
  }
});

test('odd answers of storage adapters', async () => {
  const pair = sdk.generateIdentityKeyPair();
  const states = new Map();
  const adapters = () => ({
    replay: { checkAndMark: () => false },
    tofu: { storeFingerprint() {}, verifyFingerprint: () => true },
    sessions: { save(id, state) { states.set(id, state); }, load: (id) => states.get(id) ?? null },
    identity: { getIdentityKeyPair: () => pair },
  });
  for (const make of ODD) {
    for (const [store, method] of [['tofu', 'verifyFingerprint'], ['sessions', 'load'], ['identity', 'getIdentityKeyPair']]) {
      states.clear();
      const given = adapters();
      given[store][method] = () => make();
      await contained(`${store}.${method}`, async () => {
        const app = await createApp({ appToken: 'stvor_x', relayUrl: 'ws://localhost:1', storageAdapters: given, timeout: 20 });
        await app.connect('alice');
      });
    }
  }
});

test('odd arguments at the functions that open things', async () => {
  const { startMockRelay } = require('@stvor/sdk/mock-relay');
  for (const make of ODD) {
    await contained('startMockRelay', async () => (await startMockRelay(make())).close());
    await contained('load', () => sdk.load(make()));
    for (const name of ['port', 'host', 'tokens', 'verbose', 'database']) {
      // A path of a file would make one.
      if (name === 'database' && typeof make() === 'string') continue;
      await contained(`startMockRelay.${name}`, async () => (await startMockRelay({ port: 0, [name]: name === 'verbose' ? false : make() })).close());
    }
    await contained('generateIdentityKeyPair', () => sdk.generateIdentityKeyPair(make()));
    await contained('generateRecoveryPhrase', () => sdk.generateRecoveryPhrase(make()));
    await contained('StvorError', () => new StvorError('x', { code: 'X' }));
    await contained('Stvor.init', () => sdk.Stvor.init(make()));
  }
});

test('a buffer that is used again at once is not what is sent', async (t) => {
  const { app } = await at(t, { executor: { maxPending: 1 } });
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const group = await alice.createGroup('friends', ['bob']);
  const bytes = new Uint8Array([1, 2, 3]);
  const sent = [alice.send('bob', bytes), alice.send('bob', bytes), alice.sendMany([{ to: 'bob', content: bytes }]), group.send(bytes)];
  bytes.fill(9);
  structuredClone(bytes, { transfer: [bytes.buffer] });
  await Promise.all(sent);
  const got = [];
  for await (const { content } of bob.messages()) if (got.push([...content]) === 4) break;
  assert.deepEqual(got, Array(4).fill([1, 2, 3]));
});

test('calls from inside of what a call reads', async (t) => {
  const { app } = await at(t);
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const keys = ratchet.generateKeyPair();
  const { session } = ratchet.establishSession(keys, ratchet.generateKeyPair().bundle);
  // The low level: a session that moves while its message is read.
  for (let round = 0; round < 5; round += 1) {
    await contained('decryptMessage', () => ratchet.decryptMessage(session, {
      get header() { return ratchet.encryptMessage(session, 'inner').header; },
      get ciphertext() { return ratchet.encryptMessage(session, 'inner').ciphertext; },
    }));
    await contained('encryptMessages', () => ratchet.encryptMessages(session, new Proxy(['x'], {
      get: (target, key) => { ratchet.serializeSession(session, new Uint8Array(32)); return target[key]; },
    })));
  }
  // The high level: a send from inside of a content, a close from inside of an option, a handler that takes itself off and adds itself.
  await alice.send('bob', { toJSON: () => { void alice.send('bob', 'inner').catch(() => {}); return 'outer'; } });
  const got = [];
  await new Promise((resolve) => {
    const handler = (message) => {
      got.push(message.content);
      off();
      if (got.length === 2) resolve();
      else off = bob.onMessage(handler);
    };
    let off = bob.onMessage(handler);
  });
  assert.deepEqual(got.sort(), ['inner', 'outer']);
  alice.on('pressure', () => alice.close());
  await contained('send', () => alice.send('bob', 'x', { get timeout() { void alice.close(); return 5; } }));
  await alice.close();
});

test('everything after the end', async (t) => {
  const { app, relay } = await at(t, { timeout: 50 });
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  await alice.waitForUser('bob', 60_000);
  const group = await alice.createGroup('friends', ['bob']);
  const receipt = await alice.send('bob', 'x');
  const page = await alice.history('bob');
  const iterator = alice.messages();
  await Promise.all([alice.close(), alice.close()]);
  const methods = (object) => Object.getOwnPropertyNames(Object.getPrototypeOf(object)).filter((name) => name !== 'constructor');
  const given = { send: ['bob', 'x'], sendMany: [[{ to: 'bob', content: 'x' }]], createGroup: ['x', ['bob']], on: ['pressure', () => {}] };
  await contained('older after close', () => page.older());
  for (const object of [alice, group, receipt, iterator]) {
    for (const name of methods(object)) {
      const read = () => (typeof object[name] === 'function' ? object[name](...(given[name] ?? ['bob', 'x'])) : object[name]);
      await contained(`${name} after close`, read);
    }
  }
  const code = async (act) => { try { await act(); } catch (error) { return error.code; } return undefined; };
  assert.deepEqual(await Promise.all([
    code(() => alice.send('bob', 'x')), code(() => alice.sendMany([{ to: 'bob', content: 'x' }]).then(([one]) => { throw one; })),
    code(() => group.send('x')), code(() => alice.createGroup('x', [])), code(() => alice.onMessage(() => {})),
  ]), Array(5).fill('CLIENT_NOT_READY'));
  await bob.close();
  await app.close();
  await relay.close();
  for (const object of [app, relay]) for (const name of methods(object)) await contained(name, () => (typeof object[name] === 'function' ? object[name]('carol') : object[name]));
  await Promise.all([app.close(), relay.close()]);
});

test('threads that end while much is under way end nothing else', async () => {
  const ended = await run([write(`
    import { Worker, isMainThread, workerData, parentPort } from 'node:worker_threads';
    import { createApp } from '@stvor/sdk';
    import { startMockRelay } from '@stvor/sdk/mock-relay';
    if (isMainThread) {
      const relay = await startMockRelay({ port: 0 });
      for (let round = 0; round < 4; round += 1) {
        const worker = new Worker(new URL(import.meta.url), { workerData: { url: relay.url, round } });
        await new Promise((resolve, reject) => { worker.once('message', resolve); worker.once('error', reject); });
        await worker.terminate();
      }
      const app = await createApp({ appToken: 'stvor_x', relayUrl: relay.url, storage: 'memory' });
      const [alice, bob] = [await app.connect('last-alice'), await app.connect('last-bob')];
      await (await alice.send('last-bob', 'x')).delivered();
      await app.close();
      await relay.close();
      console.log('lived');
    } else {
      const { url, round } = workerData;
      const app = await createApp({ appToken: 'stvor_x', relayUrl: url, storage: 'memory' });
      const [alice, bob] = [await app.connect('alice' + round), await app.connect('bob' + round)];
      let got = 0;
      bob.onMessage(async () => { got += 1; if (got === 20) parentPort.postMessage('busy'); await new Promise(setImmediate); });
      for (let number = 0; number < 2_000; number += 1) alice.send('bob' + round, 'x'.repeat(1_000)).catch(() => {});
    }
  `)], { env: { NODE_OPTIONS: '--no-warnings' } });
  assert.deepEqual([ended.code, ended.signal, ended.stdout], [0, null, 'lived\n'], ended.stderr);
});

test('the longest strings and buffers there are', async (t) => {
  const { app } = await at(t, { timeout: 20 });
  const alice = await app.connect('alice');
  const text = 'x'.repeat(require('node:buffer').constants.MAX_STRING_LENGTH);
  const bytes = new Uint8Array(2 ** 30);
  const low = ratchet.establishSession(ratchet.generateKeyPair(), ratchet.generateKeyPair().bundle).session;
  const codes = [];
  for (const act of [
    () => alice.sendMany([{ to: 'bob', content: text }]), () => alice.createGroup(text, []), () => alice.createGroup('x', [text]),
    () => createApp({ appToken: 'stvor_x', relayUrl: 'ws://localhost:1', storage: { postgres: text } }),
    () => createApp({ appToken: 'stvor_x', relayUrl: 'ws://localhost:1', pkcs11: { module: text, token: 't', key: 'k', pin: '1' } }),
    () => alice.send('bob', text), () => alice.send(text, 'x'), () => alice.send('bob', bytes), () => app.connect(text), () => createApp({ appToken: text }),
    () => ratchet.decryptMessage(ratchet.establishSession(ratchet.generateKeyPair(), ratchet.generateKeyPair().bundle).session, text),
    () => ratchet.establishSession(ratchet.generateKeyPair(), bytes),
    () => ratchet.decryptMessage(low, bytes), () => ratchet.decryptMessage(low, { header: new Uint8Array(85), ciphertext: bytes }),
    () => ratchet.encryptMessage(low, bytes), () => ratchet.deserializeSession(bytes, new Uint8Array(32)), () => ratchet.serializeSession(low, bytes),
    () => createApp({ appToken: 'stvor_x', relayUrl: 'ws://localhost:1', storage: 'memory', rootCertificate: bytes }),
    () => alice.markRead('bob', Array.from({ length: 10_001 }, () => '0'.repeat(32))),
  ]) {
    try {
      await act();
      codes.push('none');
    } catch (error) {
      codes.push(error.code);
    }
  }
  assert.deepEqual(codes, ['MESSAGE_TOO_LARGE', 'INVALID_NAME', 'INVALID_NAME', 'INVALID_CONFIG', 'INVALID_CONFIG', 'MESSAGE_TOO_LARGE', 'INVALID_NAME', 'MESSAGE_TOO_LARGE', 'INVALID_NAME', 'INVALID_CONFIG', ...Array(6).fill('MESSAGE_TOO_LARGE'),
    'BAD_PARAMETER', 'MESSAGE_TOO_LARGE', 'INVALID_ARGUMENT']);
});

test('the native half itself, without its face, ends no process', async () => {
  const ended = await run([write(`
    import { createRequire } from 'node:module';
    const require = createRequire(import.meta.url);
    const { platformPackage } = require('./node_modules/@stvor/sdk/dist/native.js');
    const native = require(platformPackage().name);
    const odd = [undefined, null, 0, -1, 2 ** 40, NaN, 'x', '', {}, [], new Uint8Array(4), () => {}, Symbol('x'), 1n, { kind: 'text' },
      { to: 'bob', content: { kind: 'bytes' } }, ['a', 1], ['127.0.0.1', 70000], { get appToken() { throw new Error('no'); } }];
    const objects = [native];
    const settle = (value) => { if (typeof value?.then === 'function') value.then(() => {}, () => {}); return value; };
    let calls = 0;
    for (const Class of Object.values(native)) {
      if (typeof Class !== 'function') continue;
      for (const name of Object.getOwnPropertyNames(Class.prototype ?? {})) {
        if (name === 'constructor') continue;
        for (const self of [undefined, {}, Object.create(Class.prototype)]) {
          for (const value of odd) {
            try { const descriptor = Object.getOwnPropertyDescriptor(Class.prototype, name); settle((descriptor.value ?? descriptor.get).call(self, value, value, value)); } catch {}
            calls += 1;
          }
        }
      }
      for (const first of odd) for (const second of odd) {
        try { settle(Class(first, second)); } catch {}
        try { settle(new Class(first, second)); } catch {}
        calls += 2;
      }
    }
    console.log(calls > 5000 ? 'lived' : calls);
    setTimeout(() => process.exit(0), 500);
  `)], { env: { XDG_DATA_HOME: directory() } });
  assert.deepEqual([ended.code, ended.signal, ended.stdout], [0, null, 'lived\n'], ended.stderr);
});

test('every function of the native half catches panics', () => {
  const folder = new URL('../src/', import.meta.url);
  let functions = 0;
  for (const name of readdirSync(folder, { recursive: true }).filter((one) => one.endsWith('.rs'))) {
    for (const [, attribute] of readFileSync(new URL(name, folder), 'utf8').matchAll(/#\[napi(.*?)\]\n(?:\s*#\[.*\]\n)*\s*pub (?:async )?fn /g)) {
      assert.match(attribute, /catch_unwind/, name);
      functions += 1;
    }
  }
  assert.ok(functions > 30, 'the walk works');
  // Where a panic ends the process there is none to catch.
  assert.doesNotMatch(readFileSync(new URL('../../../Cargo.toml', import.meta.url), 'utf8'), /^panic *= *"abort"/m);
});
