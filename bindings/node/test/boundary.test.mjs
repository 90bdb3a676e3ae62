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
  () => ({ then: () => thrower(new Error('then')) }), () => Object.create(Uint8Array.prototype), () => Object.create(ratchet.Session.prototype),
  () => Object.create(sdk.Client.prototype), () => ({ timeout: 1e300 }), () => ({ limit: -1 }), () => ({ port: 1e9 }), () => /x/, () => new Error('x'),
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
  const [alice] = [await app.connect('alice'), await app.connect('bob')];
  const methods = (object) => Object.getOwnPropertyNames(Object.getPrototypeOf(object))
    .filter((name) => typeof Object.getOwnPropertyDescriptor(Object.getPrototypeOf(object), name).value === 'function'
      && !['constructor', 'close', 'disconnect', 'deleteAccount', 'wait'].includes(name));
  const good = ['bob', 'hello', 'alice', { timeout: 5 }, () => {}, 'receipt'];
  for (let round = 0; round < rounds; round += 1) {
    const object = next() < 0.2 ? app : alice;
    const name = pick(methods(object));
    const given = [0, 1, 2].map(() => (next() < 0.4 ? pick(good) : pick(ODD)()));
    if (name === 'waitOnline' || name === 'waitForUser') given[name === 'waitOnline' ? 0 : 1] = { timeout: 5 };
    const result = await contained(name, () => object[name](...given));
    if (name === 'messages') await result?.return?.();
    if (name === 'onMessage') result?.();
  }
  await (await alice.send('bob', 'still', { timeout: 10_000 })).delivered();
});

test('odd settings', async () => {
  const next = random(seed + 3);
  const names = ['appToken', 'relayUrl', 'clientToken', 'appId', 'dataDir', 'storage', 'storageAdapters', 'productionMode', 'timeout', 'passphrase',
    'keyfile', 'trustPolicy', 'onIdentityChange', 'retention', 'receipts', 'rootCertificate', 'replaceIdentity'];
  for (const make of ODD) {
    await contained('createApp', () => createApp(make()));
    for (const name of names) {
      if (next() < 0.5) continue;
      await contained(name, () => createApp({ appToken: 'stvor_x', relayUrl: 'ws://localhost:1', storage: 'memory', [name]: make() }));
    }
  }
});

test('the longest strings and buffers there are', async (t) => {
  const { app } = await at(t, { timeout: 20 });
  const alice = await app.connect('alice');
  const text = 'x'.repeat(require('node:buffer').constants.MAX_STRING_LENGTH);
  const bytes = new Uint8Array(2 ** 30);
  const low = ratchet.establishSession(ratchet.generateKeyPair(), ratchet.generateKeyPair().bundle).session;
  const codes = [];
  for (const act of [
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
  assert.deepEqual(codes, ['MESSAGE_TOO_LARGE', 'INVALID_NAME', 'MESSAGE_TOO_LARGE', 'INVALID_NAME', 'INVALID_CONFIG', ...Array(6).fill('MESSAGE_TOO_LARGE'),
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
});
