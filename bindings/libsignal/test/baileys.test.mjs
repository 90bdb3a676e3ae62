// Storages shaped as Baileys' are: rows by type and id in its JSON, public keys without their first byte, records as `serialize` gives them, sender keys as
// JSON in a Buffer, a move from a phone number to a LID that copies a row, phone numbers that are resolved to a LID with each call, and transactions. Either side
// may be libsignal-node itself.
import assert from 'node:assert/strict';
import { AsyncLocalStorage } from 'node:async_hooks';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { spawnSync } from 'node:child_process';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { repositoryOver } from '../examples/baileys7.mjs';
import { group, hasPeers, ours, quiet, read, reference, refused, require } from './world.mjs';

const project = process.env.STVOR_TEST_PROJECT;

/** Bytes go into JSON as base64. */
const written = (value) =>
  JSON.stringify(value, function bytes(key, plain) {
    return this[key] instanceof Uint8Array ? { type: 'Buffer', data: Buffer.from(this[key]).toString('base64') } : plain;
  });
const back = (text) => text && JSON.parse(text, (_, value) => (value?.type === 'Buffer' ? Buffer.from(value.data, 'base64') : value));

/**
 * Transactions as Baileys 7 has them: those of one key one after the other, one within another is a part of that, and what is written is there for others when
 * the work is done and `committing` has let it.
 */
function transactional(keys, committing) {
  const [contexts, last] = [new AsyncLocalStorage(), new Map()];
  return {
    async get(type, ids) {
      const open = contexts.getStore();
      if (open === undefined) return keys.get(type, ids);
      for (const id of ids) if (!open.rows.has(`${type}-${id}`)) open.rows.set(`${type}-${id}`, (await keys.get(type, [id]))[id]);
      return Object.fromEntries(ids.map((id) => [id, open.rows.get(`${type}-${id}`)]));
    },
    async set(data) {
      const open = contexts.getStore();
      if (open === undefined) return keys.set(data);
      for (const [type, all] of Object.entries(data)) for (const [id, value] of Object.entries(all)) open.rows.set(`${type}-${id}`, value);
      open.written.push(data);
    },
    transaction(work, key) {
      if (contexts.getStore() !== undefined) return work();
      const whole = async () => {
        const open = { rows: new Map(), written: [] };
        const result = await contexts.run(open, work);
        await committing(key);
        for (const data of open.written) await keys.set(data);
        return result;
      };
      const mine = Promise.resolve(last.get(key)).then(whole);
      last.set(key, mine.catch(() => {}));
      return mine;
    },
  };
}

function device(S, name) {
  const bare = ({ pubKey, privKey }) => ({ public: new Uint8Array(pubKey.subarray(1)), private: new Uint8Array(privKey) });
  const whole = (key) => Buffer.concat([Buffer.from([5]), key]);
  const rows = new Map();
  const keys = {
    get: async (type, ids) => Object.fromEntries(ids.map((id) => [id, back(rows.get(`${type}-${id}`))])),
    async set(data) {
      for (const [type, all] of Object.entries(data)) {
        for (const [id, value] of Object.entries(all)) value === null ? rows.delete(`${type}-${id}`) : rows.set(`${type}-${id}`, written(value));
      }
    },
  };
  const one = async (type, id, of = keys) => (await of.get(type, [id]))[id];
  /** Of which phone numbers the LID is known: their row is the LID's. */
  const lids = new Map();
  const resolveLIDSignalAddress = async (id) => lids.get(id) ?? id;
  const made = [S.curve.generateKeyPair(), S.curve.generateKeyPair()];
  const signature = S.curve.calculateSignature(made[0].privKey, made[1].pubKey);
  const [identity, signed] = made.map(bare);
  const registrationId = S.keyhelper.generateRegistrationId();
  const over = (keys) => ({
    async loadSession(id) {
      const stored = await one('session', await resolveLIDSignalAddress(id), keys);
      return stored ? S.SessionRecord.deserialize(stored) : null;
    },
    storeSession: async (id, record) => keys.set({ session: { [await resolveLIDSignalAddress(id)]: record.serialize() } }),
    isTrustedIdentity: () => true,
    async loadPreKey(id) {
      const key = await one('pre-key', id.toString(), keys);
      return key && { privKey: Buffer.from(key.private), pubKey: Buffer.from(key.public) };
    },
    removePreKey: (id) => keys.set({ 'pre-key': { [id]: null } }),
    loadSignedPreKey: () => ({ privKey: Buffer.from(signed.private), pubKey: Buffer.from(signed.public) }),
    async loadSenderKey(name) {
      const key = await one('sender-key', name.toString(), keys);
      return key ? group.SenderKeyRecord.deserialize(key) : new group.SenderKeyRecord();
    },
    storeSenderKey: (name, record) => keys.set({ 'sender-key': { [name.toString()]: Buffer.from(JSON.stringify(record.serialize()), 'utf-8') } }),
    getOurRegistrationId: () => registrationId,
    getOurIdentity: () => ({ privKey: Buffer.from(identity.private), pubKey: whole(identity.public) }),
  });
  const storage = over(keys);
  const senderOf = (id, sender) => new group.SenderKeyName(id, new S.ProtocolAddress(sender, 0));
  const begun = async (sender) => {
    if (!(await one('sender-key', sender.toString()))) await storage.storeSenderKey(sender, new group.SenderKeyRecord());
  };
  return {
    S, name, storage, keys, rows, lids, resolveLIDSignalAddress,
    /** Each call in a transaction of the jid that it is for. */
    makeSignalRepository({ keys, ...more }) {
      const storage = { ...over(keys), ...more };
      const cipher = (jid) => new S.SessionCipher(storage, new S.ProtocolAddress(jid, 0));
      return {
        lidMapping: { getLIDForPN: async (jid) => lids.get(`${jid}.0`)?.slice(0, -2) ?? null },
        encryptMessage: ({ jid, data }) => keys.transaction(() => sealed(cipher(jid), data), jid),
        decryptMessage: ({ jid, message }) => keys.transaction(() => read(cipher(jid), message), jid),
        injectE2ESession: ({ jid, session }) => keys.transaction(() => new S.SessionBuilder(storage, new S.ProtocolAddress(jid, 0)).initOutgoing(session), jid),
      };
    },
    cipher: (peer) => new S.SessionCipher(storage, new S.ProtocolAddress(peer, 0)),
    inject: (peer, bundle) => new S.SessionBuilder(storage, new S.ProtocolAddress(peer, 0)).initOutgoing(bundle),
    async bundle(keyId) {
      const pair = bare(S.curve.generateKeyPair());
      await keys.set({ 'pre-key': { [keyId]: pair } });
      return {
        registrationId, identityKey: whole(identity.public), preKey: { keyId, publicKey: whole(pair.public) },
        signedPreKey: { keyId: 1, publicKey: whole(signed.public), signature },
      };
    },
    async toGroup(id, text) {
      const sender = senderOf(id, name);
      await begun(sender);
      const distribution = await new group.GroupSessionBuilder(storage).create(sender);
      return { ciphertext: await new group.GroupCipher(storage, sender).encrypt(Buffer.from(text)), distribution: distribution.serialize() };
    },
    async distributed(id, from, bytes) {
      const sender = senderOf(id, from);
      await begun(sender);
      await new group.GroupSessionBuilder(storage).process(sender, new group.SenderKeyDistributionMessage(null, null, null, null, bytes));
    },
    fromGroup: async (id, from, message) => String(await new group.GroupCipher(storage, senderOf(id, from)).decrypt(message)),
    /** The row is copied, and the one of before removed. */
    async move(from, to) {
      const stored = await one('session', `${from}.0`);
      const record = S.SessionRecord.deserialize(stored);
      assert.ok(record.haveOpenSession());
      await keys.set({ session: { [`${to}.0`]: record.serialize(), [`${from}.0`]: null } });
    },
  };
}

/** Of a message that is sent to somebody as Baileys does: the body goes through `Buffer.from(body, 'binary')`. */
const sealed = async (cipher, content) => {
  const { type, body } = await cipher.encrypt(Buffer.from(content));
  return { type, body: Buffer.from(body, 'binary') };
};

/** By which key of which chain it is sealed. */
function keyOf({ type, body }) {
  assert.equal(type, 1);
  const { ephemeralKey, counter } = require('@stvor/libsignal/src/protobufs').WhisperMessage.decode(body.subarray(1, -8));
  return `${Buffer.from(ephemeralKey).toString('hex')} ${counter}`;
}

let flows = 0;
for (const [what, A, B] of [['both', ours, ours], ['the bot, libsignal-node the phone', ours, reference], ['the phone, libsignal-node the bot', reference, ours]]) {
  const skip = A && B ? false : 'the npm peers are not installed: ./x setup-peers';
  test(`bundle, retry, sender keys and the move to a LID over Baileys' storage: ours is ${what}`, { skip }, () => quiet(async () => {
    const number = (flows += 1);
    const [bot, phone, lid] = [device(A, `49170${number}`), device(B, `49171${number}`), `8123${number}_1`];
    await bot.inject(phone.name, await phone.bundle(1));
    const first = await sealed(bot.cipher(phone.name), 'hello');
    assert.equal(await read(phone.cipher(bot.name), first), 'hello');
    assert.ok(!phone.rows.has('pre-key-1'));
    assert.equal((await refused(read(phone.cipher(bot.name), first))).message, 'Key used already or never filled');
    assert.equal(await read(bot.cipher(phone.name), await sealed(phone.cipher(bot.name), 'hi')), 'hi');

    // A retry: a fresh bundle replaces the session.
    const late = await sealed(phone.cipher(bot.name), 'sent before the retry');
    await bot.inject(phone.name, await phone.bundle(2));
    assert.equal(await read(phone.cipher(bot.name), await sealed(bot.cipher(phone.name), 'again')), 'again');
    assert.equal(await read(bot.cipher(phone.name), await sealed(phone.cipher(bot.name), 'got it')), 'got it');
    // libsignal-node would lose the current session by it.
    if (A === ours) assert.equal(await read(bot.cipher(phone.name), late), 'sent before the retry');

    // The sender key travels with each message, and only the first counts.
    const id = `1203${number}@g.us`;
    for (const text of ['one', 'two', 'three']) {
      const { ciphertext, distribution } = await bot.toGroup(id, text);
      const { type, body } = await sealed(bot.cipher(phone.name), distribution);
      const cipher = phone.cipher(bot.name);
      const carried = await (type === 3 ? cipher.decryptPreKeyWhisperMessage(body) : cipher.decryptWhisperMessage(body));
      await phone.distributed(id, bot.name, carried);
      assert.equal(await phone.fromGroup(id, bot.name, ciphertext), text);
      assert.equal((await refused(phone.fromGroup(id, bot.name, ciphertext))).code, 'DUPLICATE');
    }

    const under = await sealed(phone.cipher(bot.name), 'sent before the move');
    await bot.move(phone.name, lid);
    assert.equal(await read(phone.cipher(bot.name), await sealed(bot.cipher(lid), 'to the LID')), 'to the LID');
    assert.equal(await read(bot.cipher(lid), under), 'sent before the move');
    assert.equal(await read(bot.cipher(lid), await sealed(phone.cipher(bot.name), 'to the bot')), 'to the bot');
    const gone = await refused(bot.cipher(phone.name).encrypt(Buffer.from('x')));
    assert.deepEqual([gone.name, gone.message], ['SessionError', 'No sessions']);
  }));
}

test('over one row a phone number and its LID use no key twice once the storage says that they are one', async () => {
  const [bot, phone, lid] = [device(ours, 'one-row-bot'), device(ours, '491729'), '81239_1'];
  await bot.inject(phone.name, await phone.bundle(1));
  assert.equal(await read(phone.cipher(bot.name), await sealed(bot.cipher(phone.name), 'hello')), 'hello');
  assert.equal(await read(bot.cipher(phone.name), await sealed(phone.cipher(bot.name), 'hi')), 'hi');
  await bot.move(phone.name, lid);
  bot.lids.set(`${phone.name}.0`, `${lid}.0`);
  bot.storage.canonicalAddress = bot.resolveLIDSignalAddress;
  const sent = await Promise.all([phone.name, lid].map((name) => sealed(bot.cipher(name), `to ${name}`)));
  assert.equal(new Set(sent.map(keyOf)).size, 2);
  const got = [];
  for (const message of sent) got.push(await read(phone.cipher(bot.name), message));
  assert.deepEqual(got, [`to ${phone.name}`, `to ${lid}`]);
});

/** How Baileys 7 may be set up, and whether each key is used once by it. */
const setups = [
  ['as it is', (bot, keys) => bot.makeSignalRepository({ keys }), false],
  ['with canonicalAddress alone', (bot, keys) => bot.makeSignalRepository({ keys, canonicalAddress: bot.resolveLIDSignalAddress }), false],
  ['with the repository of the example', (bot, keys) => repositoryOver(bot.keys, bot.makeSignalRepository)({ keys }), true],
];
for (const [what, setup, once] of setups) {
  const uses = once ? 'use no key twice' : 'may use a key twice';
  const begin = async (committing) => {
    const number = (flows += 1);
    const [bot, phone, lid] = [device(ours, `49172${number}`), device(ours, `49173${number}`), `8124${number}_1`];
    const keys = transactional(bot.keys, committing);
    const { encryptMessage, decryptMessage, injectE2ESession } = setup(bot, keys);
    const send = (text, jid = lid) => encryptMessage({ jid, data: text });
    const receive = (message) => decryptMessage({ jid: lid, message });
    const [arrives, answer] = [(message) => read(phone.cipher(bot.name), message), (text) => sealed(phone.cipher(bot.name), text)];
    await injectE2ESession({ jid: phone.name, session: await phone.bundle(1) });
    await bot.move(phone.name, lid);
    bot.lids.set(`${phone.name}.0`, `${lid}.0`);
    assert.equal(await arrives(await send('hello')), 'hello');
    assert.equal(await receive(await answer('hi')), 'hi');
    return { phone, lid, keys, send, receive, arrives, answer };
  };

  test(`in Baileys' transactions, ${what}, a phone number and its LID ${uses}`, async () => {
    const { phone, lid, send, arrives } = await begin(() => new Promise(setImmediate));
    const sent = await Promise.all([phone.name, lid].map((jid) => send(`to ${jid}`, jid)));
    assert.equal(new Set(sent.map(keyOf)).size, once ? 2 : 1);
    assert.equal(await arrives(sent[0]), `to ${phone.name}`);
    if (once) assert.equal(await arrives(sent[1]), `to ${lid}`);
  });

  test(`in Baileys' transactions, ${what}, messages around one that comes meanwhile ${uses}`, async () => {
    let [sending, end] = [undefined, () => {}];
    // What is received is committed after what was being sent.
    const { keys, send, receive, arrives, answer } = await begin(async (key) => {
      if (key === 'me') return;
      end();
      await sending;
    });
    const ended = new Promise((done) => (end = done));
    const came = await answer('meanwhile');
    const first = await new Promise((sealed, failed) => {
      // Baileys sends within a transaction of the account.
      sending = keys.transaction(async () => (sealed(await send('one')), ended), 'me');
      sending.catch(failed);
    });
    assert.equal(await receive(came), 'meanwhile');
    end();
    await sending;
    const second = await send('two');
    assert.equal(new Set([first, second].map(keyOf)).size, once ? 2 : 1);
    assert.equal(await arrives(first), 'one');
    if (once) assert.equal(await arrives(second), 'two');
    assert.equal((await refused(receive(came))).code, 'DUPLICATE');
  });
}

test('an application changes its import in the middle, and changes it back, over Baileys\' storage', { skip: hasPeers ? false : 'the npm peers are not installed: ./x setup-peers' }, () => quiet(async () => {
  const [bot, phone] = [device(reference, 'swapped-bot'), device(reference, 'swapped-phone')];
  await bot.inject(phone.name, await phone.bundle(1));
  assert.equal(await read(phone.cipher(bot.name), await sealed(bot.cipher(phone.name), 'before')), 'before');
  let kept;
  for (const S of [ours, reference, ours]) {
    // Its storage makes records of the one that is imported.
    bot.storage.loadSession = async (id) => {
      const stored = back(bot.rows.get(`session-${id}`));
      return stored ? S.SessionRecord.deserialize(stored) : null;
    };
    const cipher = new S.SessionCipher(bot.storage, new S.ProtocolAddress(phone.name, 0));
    if (kept !== undefined) assert.equal(await read(cipher, kept), 'kept');
    assert.equal(await read(phone.cipher(bot.name), await sealed(cipher, 'there')), 'there');
    kept = await sealed(phone.cipher(bot.name), 'kept');
    assert.equal(await read(cipher, await sealed(phone.cipher(bot.name), 'back')), 'back');
  }
}));

test('under the name of libsignal, as an override installs it, everything that is imported of it is found', (t) => {
  const place = mkdtempSync(join(project, 'alias-'));
  t.after(() => rmSync(place, { recursive: true }));
  mkdirSync(join(place, 'node_modules'));
  cpSync(join(project, 'node_modules/@stvor/libsignal'), join(place, 'node_modules/libsignal'), { recursive: true });
  writeFileSync(join(place, 'main.mjs'), `
    import * as libsignal from 'libsignal';
    import * as curve from 'libsignal/src/curve.js';
    import { decrypt, encrypt } from 'libsignal/src/crypto';
    import { PreKeyWhisperMessage } from 'libsignal/src/protobufs.js';
    import SessionRecord from 'libsignal/src/session_record.js';
    const { privKey, pubKey } = curve.generateKeyPair();
    const [key, iv] = [Buffer.alloc(32), Buffer.alloc(16)];
    console.log(JSON.stringify([
      String(new libsignal.ProtocolAddress('49170', 0)), curve.verifySignature(pubKey, key, curve.calculateSignature(privKey, key)),
      decrypt(key, encrypt(key, iv, iv), iv).equals(iv), typeof PreKeyWhisperMessage.decode, SessionRecord === libsignal.SessionRecord,
    ]));`);
  const { status, stdout, stderr } = spawnSync(process.execPath, [join(place, 'main.mjs')], { encoding: 'utf8' });
  assert.deepEqual([status, stderr], [0, '']);
  assert.deepEqual(JSON.parse(stdout), ['49170.0', true, true, 'function', true]);
});

const tarballs = process.env.STVOR_NPM_DIR;
test('a package that asks for libsignal 6 gets this one by an override, and not by an alias beside it', { skip: tarballs ? false : 'the tarballs are not at hand: run it by bindings/node/scripts/test.mjs' }, (t) => {
  const place = mkdtempSync(join(tmpdir(), 'stvor-override-'));
  t.after(() => rmSync(place, { recursive: true }));
  const windows = process.platform === 'win32';
  // A cache of its own: the one of the user may have libsignal 6.
  const flags = ['--offline', '--loglevel=error', '--cache', join(place, 'cache')];
  const npm = (cwd, ...argv) => spawnSync(windows ? 'npm.cmd' : 'npm', [...argv, ...flags], { cwd, encoding: 'utf8', shell: windows });
  const { name, version } = require('@stvor/libsignal/package.json');
  const face = `stvor-libsignal-${version}.tgz`;
  const [half] = readdirSync(tarballs).filter((one) => one.startsWith('stvor-libsignal-') && one.endsWith('.tgz') && one !== face);
  const file = (tarball) => `file:${join(tarballs, tarball)}`;
  const platform = { [`@stvor/${half.slice('stvor-'.length, -`-${version}.tgz`.length)}`]: file(half) };

  mkdirSync(join(place, 'client'));
  writeFileSync(join(place, 'client/package.json'), JSON.stringify({ name: 'client', version: '1.0.0', main: 'main.js', dependencies: { libsignal: '^6.0.0' } }));
  writeFileSync(join(place, 'client/main.js'), "exports.libsignal = require('libsignal');\nexports.curve = require('libsignal/src/curve');\n");
  const packed = npm(place, 'pack', './client');
  assert.equal(packed.status, 0, packed.stderr);
  const client = `file:${join(place, 'client-1.0.0.tgz')}`;
  const install = (where, manifest) => {
    mkdirSync(join(place, where));
    writeFileSync(join(place, where, 'package.json'), JSON.stringify({ name: where, version: '1.0.0', private: true, ...manifest }));
    return npm(join(place, where), 'install', '--omit=optional', '--no-audit', '--no-fund');
  };

  const beside = install('beside', { dependencies: { client, libsignal: file(face), ...platform } });
  assert.notEqual(beside.status, 0);
  assert.match(beside.stderr, /ENOTCACHED[^]*\/libsignal failed/, 'version 6 is asked for');

  const done = install('over', { dependencies: { client, ...platform }, overrides: { libsignal: file(face) } });
  assert.equal(done.status, 0, done.stderr);
  assert.ok(!existsSync(join(place, 'over/node_modules/client/node_modules')));
  const listed = npm(join(place, 'over'), 'ls', 'libsignal').stdout.match(/ libsignal@.*/g);
  assert.equal(listed?.length, 1, String(listed));
  assert.ok(listed[0].includes(`${name}@${version}`), listed[0]);
  const text = `
    const { curve, libsignal } = require('client');
    const { privKey, pubKey } = curve.generateKeyPair();
    console.log(curve.verifySignature(pubKey, privKey, libsignal.curve.calculateSignature(privKey, privKey)), 'Executor' in libsignal);`;
  const { status, stdout, stderr } = spawnSync(process.execPath, ['-e', text], { cwd: join(place, 'over'), encoding: 'utf8' });
  assert.deepEqual([status, stdout, stderr], [0, 'true true\n', '']);
});

test('the code of the migration page and of the README runs as it stands', (t) => {
  const place = mkdtempSync(join(project, 'page-'));
  t.after(() => rmSync(place, { recursive: true }));
  // What the page takes for granted.
  writeFileSync(join(place, 'given.mjs'), `
    import { ProtocolAddress } from '@stvor/libsignal';
    const rows = new Map();
    const adapter = { get: (key) => rows.get(key), set: (key, value) => void rows.set(key, value), delete: (key) => void rows.delete(key) };
    Object.assign(globalThis, { adapter: { ...adapter, transaction: (work) => work(adapter) }, storage: {}, address: new ProtocolAddress('49170', 0) });`);
  const text = ['../../../docs/libsignal-migration.md', '../README.md'].map((file) => readFileSync(new URL(file, import.meta.url), 'utf8')).join('\n');
  const blocks = [...text.matchAll(/^```js\n([\s\S]*?)^```$/gm)].map(([, code]) => code);
  assert.ok(blocks.length >= 4, `${blocks.length} blocks`);
  blocks.forEach((code, at) => {
    writeFileSync(join(place, `${at}.mjs`), `import './given.mjs';\n${code}`);
    const { status, stderr } = spawnSync(process.execPath, [join(place, `${at}.mjs`)], { encoding: 'utf8' });
    assert.deepEqual([status, stderr], [0, ''], code);
  });
});
