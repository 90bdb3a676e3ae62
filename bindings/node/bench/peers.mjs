// The low-level calls beside those of other npm packages, in one run, per second of CPU: node bench/peers.mjs [--tarballs DIRECTORY]
// [--seconds N] [--json FILE]. The peers are installed by name into a temporary directory, with a network, and nowhere else: one is
// AGPL, one GPL. Every participant keeps its state in memory; what is encrypted are 100 bytes.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';

const { values: args } = parseArgs({
  options: { tarballs: { type: 'string' }, seconds: { type: 'string', default: '2' }, json: { type: 'string' }, peers: { type: 'string' } },
});
const TARBALLS = resolve(args.tarballs ?? new URL('../../../target/npm', import.meta.url).pathname);
const BUDGET = Number(args.seconds) * 1e6;
const TEXT = 'x'.repeat(100);
const BYTES = new Uint8Array(Buffer.from(TEXT));

/** Runs `act` until so much CPU time is used; microseconds of CPU a call, of all threads of this process. */
async function cost(act, batch = 1, budget = BUDGET) {
  for (let warm = 0; warm < 3; warm += 1) await act();
  const from = process.cpuUsage();
  let calls = 0;
  let used = 0;
  while (used < budget) {
    await act();
    calls += batch;
    const { user, system } = process.cpuUsage(from);
    used = user + system;
  }
  return used / calls;
}

const BATCH = 200;

function ours(project) {
  const { decryptMessage, encryptMessage, establishSession, generateKeyPair } = createRequire(join(project, 'x.js'))('@stvor/sdk/ratchet');
  const sides = () => {
    const [alice, bob] = [generateKeyPair(), generateKeyPair()];
    const { session: hers, handshake } = establishSession(alice, bob.bundle);
    const first = encryptMessage(hers, TEXT);
    const { session: his } = establishSession(bob, handshake);
    decryptMessage(his, first);
    decryptMessage(hers, encryptMessage(his, TEXT));
    return [hers, his];
  };
  const [hers, his] = sides();
  const turn = () => { decryptMessage(his, encryptMessage(hers, TEXT)); decryptMessage(hers, encryptMessage(his, TEXT)); };
  return {
    setup: sides,
    pingpong: turn,
    encrypt: () => { turn(); for (let at = 0; at < BATCH; at += 1) encryptMessage(hers, TEXT); },
    decrypt: {
      prepare: () => { turn(); return Array.from({ length: BATCH }, () => encryptMessage(hers, TEXT)); },
      act: (messages) => { for (const message of messages) decryptMessage(his, message); },
    },
  };
}

async function official(project) {
  const entry = createRequire(join(project, 'x.js')).resolve('@signalapp/libsignal-client');
  const s = await import(pathToFileURL(entry).href);
  class Sessions extends s.SessionStore {
    map = new Map();
    async saveSession(name, record) { this.map.set(name.toString(), record.serialize()); }
    async getSession(name) { const bytes = this.map.get(name.toString()); return bytes ? s.SessionRecord.deserialize(bytes) : null; }
    async getExistingSessions() { return []; }
  }
  class Identities extends s.IdentityKeyStore {
    key = s.PrivateKey.generate();
    async getIdentityKey() { return this.key; }
    async getLocalRegistrationId() { return 5; }
    async saveIdentity() { return s.IdentityChange.NewOrUnchanged; }
    async isTrustedIdentity() { return true; }
    async getIdentity() { return null; }
  }
  class Prekeys extends s.PreKeyStore { map = new Map(); async savePreKey(id, record) { this.map.set(id, record); } async getPreKey(id) { return this.map.get(id); } async removePreKey() {} }
  class Signed extends s.SignedPreKeyStore { map = new Map(); async saveSignedPreKey(id, record) { this.map.set(id, record); } async getSignedPreKey(id) { return this.map.get(id); } }
  class Kyber extends s.KyberPreKeyStore { map = new Map(); async saveKyberPreKey(id, record) { this.map.set(id, record); } async getKyberPreKey(id) { return this.map.get(id); } async markKyberPreKeyUsed() {} }
  const side = (name) => ({ address: s.ProtocolAddress.new(name, 1), sessions: new Sessions(), identities: new Identities(), prekeys: new Prekeys(), signed: new Signed(), kyber: new Kyber() });
  const encrypt = (from, to, bytes = BYTES) => s.signalEncrypt(bytes, to.address, from.address, from.sessions, from.identities);
  const decrypt = async (at, from, message) => {
    const bytes = message.serialize();
    return message.type() === 3
      ? s.signalDecryptPreKey(s.PreKeySignalMessage.deserialize(bytes), from.address, at.address, at.sessions, at.identities, at.prekeys, at.signed, at.kyber)
      : s.signalDecrypt(s.SignalMessage.deserialize(bytes), from.address, at.address, at.sessions, at.identities);
  };
  const sides = async () => {
    const [alice, bob] = [side('a0000000-0000-4000-8000-000000000001'), side('b0000000-0000-4000-8000-000000000002')];
    const [signed, kem] = [s.PrivateKey.generate(), s.KEMKeyPair.generate()];
    const signature = bob.identities.key.sign(signed.getPublicKey().serialize());
    const kemSignature = bob.identities.key.sign(kem.getPublicKey().serialize());
    await bob.signed.saveSignedPreKey(1, s.SignedPreKeyRecord.new(1, Date.now(), signed.getPublicKey(), signed, signature));
    await bob.kyber.saveKyberPreKey(1, s.KyberPreKeyRecord.new(1, Date.now(), kem, kemSignature));
    const bundle = s.PreKeyBundle.new(5, 1, null, null, 1, signed.getPublicKey(), signature, bob.identities.key.getPublicKey(), 1, kem.getPublicKey(), kemSignature);
    await s.processPreKeyBundle(bundle, bob.address, alice.address, alice.sessions, alice.identities);
    await decrypt(bob, alice, await encrypt(alice, bob));
    await decrypt(alice, bob, await encrypt(bob, alice));
    return [alice, bob];
  };
  const [alice, bob] = await sides();
  const turn = async () => { await decrypt(bob, alice, await encrypt(alice, bob)); await decrypt(alice, bob, await encrypt(bob, alice)); };
  return {
    setup: sides,
    pingpong: turn,
    encrypt: async () => { await turn(); for (let at = 0; at < BATCH; at += 1) await encrypt(alice, bob); },
    decrypt: {
      prepare: async () => { await turn(); const messages = []; for (let at = 0; at < BATCH; at += 1) messages.push(await encrypt(alice, bob)); return messages; },
      act: async (messages) => { for (const message of messages) await decrypt(bob, alice, message); },
    },
  };
}

function javascript(project) {
  const s = createRequire(join(project, 'x.js'))('libsignal');
  const side = (name) => {
    const sessions = new Map();
    const identity = s.keyhelper.generateIdentityKeyPair();
    const [signed, prekey] = [s.keyhelper.generateSignedPreKey(identity, 1), s.keyhelper.generatePreKey(2)];
    const storage = {
      loadSession: async (id) => { const text = sessions.get(id); return text && s.SessionRecord.deserialize(JSON.parse(text)); },
      storeSession: async (id, record) => { sessions.set(id, JSON.stringify(record.serialize())); },
      isTrustedIdentity: () => true,
      loadPreKey: async () => prekey.keyPair, removePreKey() {}, loadSignedPreKey: () => signed.keyPair,
      getOurRegistrationId: () => 5, getOurIdentity: () => identity,
    };
    return { name, storage, identity, signed, prekey };
  };
  const sides = async () => {
    const [alice, bob] = [side('alice'), side('bob')];
    alice.cipher = new s.SessionCipher(alice.storage, new s.ProtocolAddress('bob', 1));
    bob.cipher = new s.SessionCipher(bob.storage, new s.ProtocolAddress('alice', 1));
    await new s.SessionBuilder(alice.storage, new s.ProtocolAddress('bob', 1)).initOutgoing({
      registrationId: 5, identityKey: bob.identity.pubKey,
      signedPreKey: { keyId: 1, publicKey: bob.signed.keyPair.pubKey, signature: bob.signed.signature },
      preKey: { keyId: 2, publicKey: bob.prekey.keyPair.pubKey },
    });
    await decrypt(bob, await encrypt(alice));
    await decrypt(alice, await encrypt(bob));
    return [alice, bob];
  };
  const encrypt = (from) => from.cipher.encrypt(Buffer.from(BYTES));
  const decrypt = (at, { type, body }) => {
    const bytes = Buffer.from(body, 'binary');
    return type === 3 ? at.cipher.decryptPreKeyWhisperMessage(bytes) : at.cipher.decryptWhisperMessage(bytes);
  };
  return sides().then(([alice, bob]) => {
    const turn = async () => { await decrypt(bob, await encrypt(alice)); await decrypt(alice, await encrypt(bob)); };
    return {
      setup: sides,
      pingpong: turn,
      encrypt: async () => { await turn(); for (let at = 0; at < BATCH; at += 1) await encrypt(alice); },
      decrypt: {
        prepare: async () => { await turn(); const messages = []; for (let at = 0; at < BATCH; at += 1) messages.push(await encrypt(alice)); return messages; },
        act: async (messages) => { for (const message of messages) await decrypt(bob, message); },
      },
    };
  });
}

/** As `cost`, but what is prepared is not counted. */
async function decryptCost({ prepare, act }, budget = BUDGET) {
  let [calls, used] = [0, 0];
  await act(await prepare());
  while (used < budget) {
    const messages = await prepare();
    const from = process.cpuUsage();
    await act(messages);
    const { user, system } = process.cpuUsage(from);
    calls += messages.length;
    used += user + system;
  }
  return used / calls;
}

/** How often both sides have their turn. */
const TURNS = 7;

/**
 * Microseconds of CPU of our calls from JavaScript and of the same from Rust, in this process: both in turns, so that what others on the machine do
 * touches both, and the least of each. Nothing where the package was built without the feature `bench`.
 */
async function besideRust(project) {
  const require = createRequire(join(project, 'x.js'));
  const native = require(require(join(project, 'node_modules/@stvor/sdk/dist/native.js')).platformPackage().name);
  if (!native.benchRatchet) return undefined;
  const used = (what, count) => {
    const from = process.cpuUsage();
    native.benchRatchet(what, count);
    const { user, system } = process.cpuUsage(from);
    return user + system;
  };
  /** How often two sides are made, without a call: what that costs differs from time to time. */
  const SETUPS = 50;
  const each = (what, count) => {
    used(what, 200);
    let setups = 0;
    for (let time = 0; time < SETUPS; time += 1) setups += used(what, 0);
    // Each run makes its sides first; JavaScript's are made before anything is counted.
    return (used(what, count) - setups / SETUPS) / count;
  };
  const decrypt = () => {
    const [rounds, count] = [10, 1_000];
    let used = 0;
    for (let round = -1; round < rounds; round += 1) {
      const mail = new native.BenchMail(count);
      const from = process.cpuUsage();
      mail.decrypt();
      const { user, system } = process.cpuUsage(from);
      if (round >= 0) used += user + system;
    }
    return used / (rounds * count);
  };
  const side = ours(project);
  const budget = BUDGET / 4;
  const pairs = {
    encrypt: [() => cost(side.encrypt, BATCH, budget), () => each('encrypt', 20_000)],
    decrypt: [() => decryptCost(side.decrypt, budget), decrypt],
    pingpong: [() => cost(side.pingpong, 1, budget), () => each('pingpong', 1_000)],
  };
  const least = {};
  for (const [row, [here, rust]] of Object.entries(pairs)) {
    const [all, others] = [[], []];
    for (let turn = 0; turn < TURNS; turn += 1) {
      all.push(await here());
      others.push(rust());
    }
    least[row] = { javascript: Math.min(...all), rust: Math.min(...others) };
  }
  return least;
}

/**
 * Microseconds of CPU of a message to a group of ten that exists: encrypted once, read by nine. The peer's are the bare calls in memory; ours has no
 * bare call and is the whole way: ten clients and the relay of this process, outboxes and inboxes in memory, all nine handed over.
 */
const MEMBERS = 10;
const GROUP_MESSAGES = 500;

async function ourGroup(project) {
  const require = createRequire(join(project, 'x.js'));
  const [{ createApp }, { startMockRelay }] = [require('@stvor/sdk'), require('@stvor/sdk/mock-relay')];
  process.removeAllListeners('warning');
  process.on('warning', () => {});
  const relay = await startMockRelay({ port: 0 });
  const app = await createApp({ appToken: 'stvor_bench', relayUrl: relay.url, storage: 'memory' });
  const clients = [];
  for (let number = 0; number < MEMBERS; number += 1) clients.push(await app.connect(`member${number}`));
  const group = await clients[0].createGroup('ten', clients.slice(1).map((client) => client.userId));
  let got = 0;
  let wake = () => {};
  for (const client of clients.slice(1)) client.onMessage(() => { got += 1; wake(); });
  const round = async (count) => {
    const wanted = got + count * (MEMBERS - 1);
    for (let sent = 0; sent < count; sent += 50) await Promise.all(Array.from({ length: 50 }, () => group.send(TEXT)));
    while (got < wanted) await new Promise((resolve) => { wake = resolve; });
  };
  await round(100);
  const from = process.cpuUsage();
  await round(GROUP_MESSAGES);
  const { user, system } = process.cpuUsage(from);
  await app.close();
  await relay.close();
  return (user + system) / GROUP_MESSAGES;
}

async function officialGroup(project) {
  const s = await import(pathToFileURL(createRequire(join(project, 'x.js')).resolve('@signalapp/libsignal-client')).href);
  class Keys extends s.SenderKeyStore {
    map = new Map();
    async saveSenderKey(sender, id, record) { this.map.set(`${sender}${id}`, record.serialize()); }
    async getSenderKey(sender, id) { const bytes = this.map.get(`${sender}${id}`); return bytes ? s.SenderKeyRecord.deserialize(bytes) : null; }
  }
  const [address, id] = [s.ProtocolAddress.new('a0000000-0000-4000-8000-000000000001', 1), '3fa85f64-5717-4562-b3fc-2c963f66afa6'];
  const [own, readers] = [new Keys(), Array.from({ length: MEMBERS - 1 }, () => new Keys())];
  const made = await s.SenderKeyDistributionMessage.create(address, id, own);
  for (const reader of readers) await s.processSenderKeyDistributionMessage(address, made, reader);
  const message = async () => {
    const bytes = (await s.groupEncrypt(address, id, own, BYTES)).serialize();
    for (const reader of readers) await s.groupDecrypt(address, reader, bytes);
  };
  return cost(message);
}

async function measure(side) {
  return {
    setup: await cost(side.setup),
    encrypt: await cost(side.encrypt, BATCH),
    decrypt: await decryptCost(side.decrypt),
    pingpong: await cost(side.pingpong),
  };
}

const project = args.peers ? resolve(args.peers) : mkdtempSync(join(tmpdir(), 'stvor-bench-'));
try {
  const npm = (...argv) => execFileSync('npm', ['install', '--no-audit', '--no-fund', ...argv], { cwd: project, stdio: ['ignore', 'ignore', 'inherit'] });
  if (!args.peers) {
    writeFileSync(join(project, 'package.json'), '{ "private": true }\n');
    npm('@signalapp/libsignal-client', 'libsignal');
  }
  npm('--omit=optional', '--no-save', ...readdirSync(TARBALLS).filter((name) => name.startsWith('stvor-sdk-') && name.endsWith('.tgz')).map((name) => join(TARBALLS, name)));
  const version = (name) => JSON.parse(readFileSync(join(project, 'node_modules', name, 'package.json'), 'utf8')).version;
  const makers = { '@stvor/sdk': ours, '@signalapp/libsignal-client': official, libsignal: javascript };
  const results = {};
  for (const [name, make] of Object.entries(makers)) {
    const from = performance.now();
    results[name] = { version: version(name), ...(await measure(await make(project))) };
    process.stderr.write(`${name}: ${((performance.now() - from) / 1000).toFixed(1)} s\n`);
  }
  const rows = ['setup', 'encrypt', 'decrypt', 'pingpong'];
  const mine = results['@stvor/sdk'];
  console.log(`microseconds of CPU a call (calls a second of CPU); Node ${process.versions.node}; ping-pong is two messages and two turns`);
  for (const [name, one] of Object.entries(results)) {
    console.log(`${name} ${one.version}`);
    for (const row of rows) {
      const ratio = one === mine ? '' : `  we: ${(one[row] / mine[row]).toFixed(1)} times as many`;
      console.log(`  ${row.padEnd(9)} ${one[row].toFixed(2).padStart(9)} us  ${Math.round(1e6 / one[row]).toString().padStart(7)}/s${ratio}`);
    }
  }
  const [ours10, official10] = [await ourGroup(project), await officialGroup(project)];
  console.log(`a message to a group of ${MEMBERS}: the whole way, with the relay, ${ours10.toFixed(0)} us; the bare calls of @signalapp/libsignal-client ${official10.toFixed(0)} us`);
  const group = { members: MEMBERS, '@stvor/sdk, with the relay': ours10, '@signalapp/libsignal-client, bare calls': official10 };
  const rust = await besideRust(project);
  if (rust) {
    console.log(`from JavaScript and from Rust, the least of ${TURNS} turns each, and what JavaScript adds`);
    for (const row of ['encrypt', 'decrypt', 'pingpong']) {
      const { javascript, rust: bare } = rust[row];
      console.log(`  ${row.padEnd(9)} ${javascript.toFixed(2).padStart(9)} us  ${bare.toFixed(2).padStart(9)} us  ${(javascript - bare).toFixed(2).padStart(7)} us more${row === 'pingpong' ? ', in four calls' : ''}`);
    }
  }
  if (args.json) writeFileSync(args.json, `${JSON.stringify({ node: process.versions.node, results, group, rust }, null, 2)}\n`);
} finally {
  if (!args.peers) rmSync(project, { recursive: true, force: true });
}
