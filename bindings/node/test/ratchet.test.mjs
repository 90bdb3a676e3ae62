// The low-level entry point.
import assert from 'node:assert/strict';
import { createCipheriv, createDecipheriv, createECDH, createPrivateKey, randomBytes, sign } from 'node:crypto';
import { test } from 'node:test';
import { codeOf, require, run, write } from './project.mjs';

const ratchet = require('@stvor/sdk/ratchet');
const {
  decryptMessage, deserializeKeyPair, deserializeSession, encryptMessage, establishSession, generateKeyPair, renewBundle, serializeKeyPair,
  serializeSession, takeReply, StvorError,
} = ratchet;

/** Two sides; Bob has decrypted the first message. */
function pair() {
  const [alice, bob] = [generateKeyPair(), generateKeyPair()];
  const { session: hers, handshake } = establishSession(alice, bob.bundle);
  const first = encryptMessage(hers, 'first');
  const { session: his } = establishSession(bob, handshake);
  assert.equal(decryptMessage(his, first), 'first');
  return { alice, bob, hers, his };
}

/** Two sides that both have heard from the other. */
function established() {
  const sides = pair();
  assert.equal(decryptMessage(sides.hers, encryptMessage(sides.his, 'second')), 'second');
  return sides;
}

test('header and ciphertext are enough, also while the handshake is repeated', () => {
  const [alice, bob] = [generateKeyPair(), generateKeyPair()];
  assert.equal(alice.publicKey.length, 65);
  const { session: hers, handshake } = establishSession(alice, bob.bundle);
  const { session: his } = establishSession(bob, handshake);
  assert.equal(his.ready, false);
  const parts = ['one', 'two', 'three'].map((text) => encryptMessage(hers, text)).map(({ header, ciphertext }) => ({ header, ciphertext }));
  assert.deepEqual(parts.map(({ header }) => header.length), [85, 85, 85]);
  assert.deepEqual(parts.map((part) => decryptMessage(his, part)), ['one', 'two', 'three']);
  assert.deepEqual(his.peerPublicKey, alice.publicKey);
  assert.deepEqual(hers.peerPublicKey, bob.publicKey);
  const { header, ciphertext } = encryptMessage(his, new Uint8Array([1, 2]));
  assert.deepEqual(decryptMessage(hers, { header, ciphertext }), new Uint8Array([1, 2]));
  const later = encryptMessage(hers, 'four');
  assert.equal(decryptMessage(his, { header: later.header, ciphertext: later.ciphertext }), 'four');
});

test('the header holds ratchet key, counters and a fresh nonce, and is not to be altered', () => {
  const { hers, his } = established();
  const [one, two] = [encryptMessage(hers, 'x'), encryptMessage(hers, 'x')];
  assert.equal(one.header[0], 4);
  assert.deepEqual(one.header.subarray(0, 69), two.header.subarray(0, 69));
  assert.deepEqual([...two.header.subarray(69, 73)], [0, 0, 0, 1]);
  assert.notDeepEqual(one.header.subarray(73), two.header.subarray(73));
  for (let at = 0; at < 85; at += 7) {
    const header = Uint8Array.from(two.header);
    header[at] ^= 1;
    assert.throws(() => decryptMessage(his, { header, ciphertext: two.ciphertext }), StvorError, `byte ${at}`);
  }
  assert.equal(decryptMessage(his, two), 'x');
  assert.equal(decryptMessage(his, one), 'x');
});

test('a whole message is one base64url string', () => {
  const { hers, his } = established();
  const message = encryptMessage(hers, 'žluťoučký 🔐');
  assert.match(message.message, /^[A-Za-z0-9_-]+$/);
  assert.equal(`${message}`, message.message);
  assert.equal(decryptMessage(his, message.message), 'žluťoučký 🔐');
});

test('what was decrypted is not decrypted again, and a failure changes nothing', async () => {
  const { bob, hers, his } = established();
  const message = encryptMessage(hers, 'once');
  const altered = Uint8Array.from(message.bytes);
  altered[altered.length - 1] ^= 1;
  assert.equal(await codeOf(() => decryptMessage(his, altered)), 'UNDECRYPTABLE');
  assert.equal(decryptMessage(his, message), 'once');
  assert.equal(await codeOf(() => decryptMessage(his, message)), 'DUPLICATE');
  const other = establishSession(generateKeyPair(), bob.bundle).session;
  assert.notEqual(await codeOf(() => decryptMessage(other, encryptMessage(hers, 'x'))), undefined);
});

test('a handshake is accepted once', async () => {
  const [alice, bob] = [generateKeyPair(), generateKeyPair()];
  const { session, handshake } = establishSession(alice, bob.bundle);
  const first = encryptMessage(session, 'first');
  assert.equal(decryptMessage(establishSession(bob, handshake).session, first), 'first');
  assert.equal(await codeOf(() => decryptMessage(establishSession(bob, handshake).session, first)), 'REPLAY');
});

test('sessions survive being put away, under their key only', async () => {
  const { hers, his } = established();
  const key = Uint8Array.from(randomBytes(32));
  const late = encryptMessage(hers, 'late');
  assert.equal(decryptMessage(his, encryptMessage(hers, 'early')), 'early');
  const sealed = serializeSession(his, key);
  const again = deserializeSession(sealed, key);
  assert.equal(decryptMessage(again, late), 'late');
  assert.equal(decryptMessage(hers, encryptMessage(again, 'back')), 'back');
  assert.deepEqual(again.peerPublicKey, his.peerPublicKey);
  assert.equal(await codeOf(() => deserializeSession(sealed, new Uint8Array(32))), 'WRONG_KEY');
  assert.equal(await codeOf(() => deserializeSession(sealed, new Uint8Array(31))), 'BAD_PARAMETER');
  const altered = Uint8Array.from(sealed);
  altered[40] ^= 1;
  assert.equal(await codeOf(() => deserializeSession(altered, key)), 'WRONG_KEY');
  assert.equal(await codeOf(() => deserializeSession(sealed.subarray(0, 10), key)), 'MALFORMED_MESSAGE');
  assert.ok(!Buffer.from(sealed).includes(Buffer.from(hers.peerPublicKey)));
});

test('a session does not grow with the messages that it carried', async () => {
  const ended = await run(['--expose-gc', write(`
    import { decryptMessage, encryptMessage, establishSession, generateKeyPair } from '@stvor/sdk/ratchet';
    const [alice, bob] = [generateKeyPair(), generateKeyPair()];
    const { session: hers, handshake } = establishSession(alice, bob.bundle);
    const { session: his } = establishSession(bob, handshake);
    const exchange = async (messages) => {
      for (let count = 0; count < messages; count += 1) {
        decryptMessage(his, encryptMessage(hers, 'x'));
        if (count % 40 === 0) decryptMessage(hers, encryptMessage(his, 'x'));
        if (count % 5000 === 0) await new Promise(setImmediate);
      }
      gc();
      return process.memoryUsage.rss();
    };
    const before = await exchange(20_000);
    console.log((await exchange(100_000)) - before);
  `)]);
  // A row of 260 bytes for each message would be 25 MiB.
  assert.ok(Number(ended.stdout) < 12 * 2 ** 20, `${ended.stdout}${ended.stderr}`);
});

test('a session that has not heard the first message yet is put away and answers later', () => {
  const [alice, bob] = [generateKeyPair(), generateKeyPair()];
  const key = new Uint8Array(32).fill(7);
  const { session } = establishSession(alice, bob.bundle);
  const hers = deserializeSession(serializeSession(session, key), key);
  const first = encryptMessage(hers, 'first');
  const { session: his } = establishSession(bob, establishSession(alice, bob.bundle).handshake);
  assert.equal(decryptMessage(his, first.bytes), 'first');
});

test('a side that answers can not write before it heard', async () => {
  const [alice, bob] = [generateKeyPair(), generateKeyPair()];
  const { session } = establishSession(bob, establishSession(alice, bob.bundle).handshake);
  assert.equal(await codeOf(() => encryptMessage(session, 'x')), 'NO_SESSION');
  assert.equal(await codeOf(() => serializeSession(session, new Uint8Array(32))), 'NO_SESSION');
});

test('after fifty messages without an answer there is a reply that renews keys', () => {
  const { hers, his } = established();
  const key = () => Buffer.from(encryptMessage(hers, 'x').header.subarray(0, 65)).toString('hex');
  const before = key();
  for (let count = 0; count < 50; count += 1) decryptMessage(his, encryptMessage(hers, `${count}`));
  const reply = takeReply(his);
  assert.ok(reply instanceof Uint8Array);
  assert.equal(takeReply(his), null);
  assert.equal(decryptMessage(hers, reply), null);
  assert.notEqual(key(), before);
});

test('what can not be used is INVALID_ARGUMENT or says what it is', async () => {
  const { hers } = established();
  const own = generateKeyPair();
  for (const [act, code] of [
    [() => establishSession({}, own.bundle), 'INVALID_ARGUMENT'],
    [() => renewBundle({}), 'INVALID_ARGUMENT'],
    [() => establishSession(own, new Uint8Array(9)), 'MALFORMED_MESSAGE'],
    [() => establishSession(own, own.bundle.subarray(0, 900)), 'MALFORMED_MESSAGE'],
    [() => establishSession(own, 5), 'INVALID_ARGUMENT'],
    [() => encryptMessage({}, 'x'), 'INVALID_ARGUMENT'],
    [() => encryptMessage(hers, 5), 'INVALID_ARGUMENT'],
    [() => encryptMessage(hers, 'x'.repeat(65_537)), 'MESSAGE_TOO_LARGE'],
    [() => decryptMessage(hers, '!'), 'INVALID_ARGUMENT'],
    [() => decryptMessage(hers, ''), 'MALFORMED_MESSAGE'],
    [() => decryptMessage(hers, null), 'INVALID_ARGUMENT'],
    [() => decryptMessage(hers, { header: new Uint8Array(84), ciphertext: new Uint8Array(40) }), 'MALFORMED_MESSAGE'],
  ]) assert.equal(await codeOf(act), code, String(act));
  assert.equal(encryptMessage(hers, 'x'.repeat(65_536)).header.length, 85);
});

test('a key pair outlives its process, and so does what it accepted', () => {
  const key = new Uint8Array(32).fill(7);
  const [alice, bob] = [ratchet.generateKeyPair(), ratchet.generateKeyPair()];
  const { session, handshake } = ratchet.establishSession(alice, bob.bundle);
  const first = ratchet.encryptMessage(session, 'first');
  const restored = ratchet.deserializeKeyPair(ratchet.serializeKeyPair(bob, key), key);
  assert.deepEqual([restored.publicKey, restored.bundle], [bob.publicKey, bob.bundle]);
  const { session: his } = ratchet.establishSession(restored, handshake);
  assert.equal(ratchet.decryptMessage(his, first), 'first');
  // The handshake was accepted: after another restart a replay of it is refused.
  const again = ratchet.deserializeKeyPair(ratchet.serializeKeyPair(restored, key), key);
  const replayed = ratchet.establishSession(again, handshake).session;
  assert.throws(() => ratchet.decryptMessage(replayed, first), (error) => error.code === 'REPLAY');
  const sealed = ratchet.serializeKeyPair(bob, key);
  assert.throws(() => ratchet.deserializeKeyPair(sealed, new Uint8Array(32)), (error) => error.code === 'WRONG_KEY');
  assert.throws(() => ratchet.deserializeKeyPair(ratchet.serializeSession(session, key), key), (error) => error.code === 'MALFORMED_MESSAGE');
});

/** A saved key pair with marks of so many more handshakes, as its format has them. */
function marked(sealed, key, count) {
  const magic = sealed.subarray(0, 8);
  const opening = createDecipheriv('aes-256-gcm', key, sealed.subarray(8, 20)).setAAD(magic).setAuthTag(sealed.subarray(-16));
  const clear = Buffer.concat([opening.update(sealed.subarray(20, -16)), opening.final()]);
  // Identity record and bundle stand before the number of rows.
  let at = 4 + clear.readUInt32BE(0);
  at += 4 + clear.readUInt32BE(at);
  const head = Buffer.from(clear.subarray(0, at + 4));
  head.writeUInt32BE(clear.readUInt32BE(at) + count, at);
  const part = (bytes) => { const size = Buffer.alloc(4); size.writeUInt32BE(bytes.length); return Buffer.concat([size, bytes]); };
  // A mark of the first bundle: kind, its number, what was marked, when.
  const row = () => Buffer.concat([Buffer.from([3]), part(Buffer.alloc(4)), part(randomBytes(32)), part(Buffer.from([1]))]);
  const closing = createCipheriv('aes-256-gcm', key, sealed.subarray(8, 20)).setAAD(magic);
  const bytes = Buffer.concat([closing.update(Buffer.concat([head, clear.subarray(at + 4), ...Array.from({ length: count }, row)])), closing.final()]);
  return Uint8Array.from(Buffer.concat([sealed.subarray(0, 20), bytes, closing.getAuthTag()]));
}

test('a bundle is good for 4096 handshakes, and replays of all of them are refused', async () => {
  const key = Uint8Array.from(randomBytes(32));
  const alice = () => {
    const { session, handshake } = establishSession(generateKeyPair(), bob.bundle);
    return { handshake, first: encryptMessage(session, 'first') };
  };
  const accept = ({ handshake, first }) => codeOf(() => assert.equal(decryptMessage(establishSession(bob, handshake).session, first), 'first'));
  const fresh = generateKeyPair();
  let bob = deserializeKeyPair(marked(serializeKeyPair(fresh, key), key, 4_094), key);
  assert.deepEqual(bob.bundle, fresh.bundle);
  const [one, two, three] = [alice(), alice(), alice()];
  assert.deepEqual([await accept(one), await accept(two)], [undefined, undefined]);
  assert.equal(await accept(three), 'BUNDLE_USED_UP');
  assert.deepEqual([await accept(one), await accept(two)], ['REPLAY', 'REPLAY']);
  // So it is after a restart.
  bob = deserializeKeyPair(serializeKeyPair(bob, key), key);
  assert.deepEqual([await accept(three), await accept(one)], ['BUNDLE_USED_UP', 'REPLAY']);
  // A new bundle takes new handshakes; the old one's are what they were.
  const before = bob.bundle;
  assert.deepEqual(renewBundle(bob), bob.bundle);
  assert.notDeepEqual(bob.bundle, before);
  assert.deepEqual(bob.publicKey, fresh.publicKey);
  const four = alice();
  assert.deepEqual([await accept(four), await accept(four), await accept(three), await accept(one)], [undefined, 'REPLAY', 'BUNDLE_USED_UP', 'REPLAY']);
  const size = serializeKeyPair(bob, key).length;
  // After the sixteenth renewal what is older than that is gone, keys and marks, and its handshakes can not be accepted any more.
  for (let round = 0; round < 15; round += 1) renewBundle(bob);
  assert.deepEqual([await accept(three), await accept(one)], ['BUNDLE_USED_UP', 'REPLAY']);
  renewBundle(bob);
  for (const old of [one, two, three]) assert.notEqual(await accept(old), undefined);
  assert.equal(await accept(four), 'REPLAY');
  assert.ok(serializeKeyPair(bob, key).length < size - 4_000 * 41);
  bob = deserializeKeyPair(serializeKeyPair(bob, key), key);
  assert.deepEqual([await accept(alice()), await accept(four)], [undefined, 'REPLAY']);
});

test('a session goes on when the bundle that it began with is renewed', () => {
  const [alice, bob] = [generateKeyPair(), generateKeyPair()];
  const { session: hers, handshake } = establishSession(alice, bob.bundle);
  const first = encryptMessage(hers, 'first');
  for (let round = 0; round < 5; round += 1) renewBundle(bob);
  const { session: his } = establishSession(bob, handshake);
  assert.equal(decryptMessage(his, first), 'first');
  for (let round = 0; round < 20; round += 1) renewBundle(bob);
  assert.equal(decryptMessage(hers, encryptMessage(his, 'second')), 'second');
  assert.equal(decryptMessage(his, encryptMessage(hers, 'third')), 'third');
});

test('several at once', () => {
  const [alice, bob] = [ratchet.generateKeyPair(), ratchet.generateKeyPair()];
  const { session, handshake } = ratchet.establishSession(alice, bob.bundle);
  const messages = ratchet.encryptMessages(session, ['one', new Uint8Array([2]), 'three']);
  const { session: his } = ratchet.establishSession(bob, handshake);
  const opened = ratchet.decryptMessages(his, [messages[0], messages[0], messages[1], messages[2].message.slice(0, 40), messages[2].message]);
  assert.deepEqual([opened[0], opened[1].code, opened[2], opened[3].code, opened[4]], ['one', 'DUPLICATE', new Uint8Array([2]), 'MALFORMED_MESSAGE', 'three']);
  assert.throws(() => ratchet.encryptMessages(session, ['fine', 7]), (error) => error.code === 'INVALID_ARGUMENT');
  assert.throws(() => ratchet.encryptMessages(session, ['fine', 'x'.repeat(70_000)]), (error) => error.code === 'MESSAGE_TOO_LARGE');
  const [next] = ratchet.encryptMessages(session, ['next']);
  assert.equal(ratchet.decryptMessage(his, next), 'next');
});

/** A key pair of somebody else's under the name that `handshake` shows: names are public, and a list is signed by its own key. */
function impostor(handshake) {
  const key = new Uint8Array(32).fill(1);
  const sealed = serializeKeyPair(generateKeyPair(), key);
  const [head, nonce] = [sealed.subarray(0, 8), sealed.subarray(8, 20)];
  const decipher = createDecipheriv('aes-256-gcm', key, nonce).setAAD(head).setAuthTag(sealed.subarray(-16));
  const clear = Buffer.concat([decipher.update(sealed.subarray(20, -16)), decipher.final()]);
  const app = Buffer.from('stvor-ratchet');
  const shown = Buffer.from(handshake);
  const name = shown.subarray(shown.indexOf(app) + app.length + 4).subarray(0, 32);
  // The identity's record: its length, version, creation time, length and private halves, then the list and its signature.
  const scalar = clear.subarray(17, 49);
  const listAt = 17 + 96 + 4;
  const list = clear.subarray(listAt, listAt + clear.readUInt32BE(listAt - 4));
  name.copy(list, list.indexOf(app) + app.length + 4);
  const curve = createECDH('prime256v1');
  curve.setPrivateKey(scalar);
  const point = curve.getPublicKey();
  const jwk = { kty: 'EC', crv: 'P-256', d: scalar.toString('base64url'), x: point.subarray(1, 33).toString('base64url'), y: point.subarray(33).toString('base64url') };
  const signed = Buffer.concat([Buffer.from('STVOR 1 P256 device list'), list]);
  const signature = sign('sha256', signed, { key: createPrivateKey({ key: jwk, format: 'jwk' }), dsaEncoding: 'ieee-p1363' });
  const order = BigInt('0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551');
  const s = BigInt(`0x${signature.subarray(32).toString('hex')}`);
  if (s > order / 2n) Buffer.from((order - s).toString(16).padStart(64, '0'), 'hex').copy(signature, 32);
  signature.copy(clear, listAt + list.length + 4);
  const cipher = createCipheriv('aes-256-gcm', key, nonce).setAAD(head);
  return deserializeKeyPair(Buffer.concat([sealed.subarray(0, 20), cipher.update(clear), cipher.final(), cipher.getAuthTag()]), key);
}

test('a session is with whom it was established: another identity under the same name is refused, and nothing changed', () => {
  const [alice, bob] = [generateKeyPair(), generateKeyPair()];
  const { session: hers, handshake } = establishSession(alice, bob.bundle);
  const mallory = impostor(handshake);
  const { session: forger, handshake: forgedHandshake } = establishSession(mallory, bob.bundle);
  const forged = encryptMessage(forger, 'It is me, Alice.');
  // It is a sound session of somebody under that name, where it is established as such.
  const { session: named } = establishSession(bob, forgedHandshake);
  assert.equal(decryptMessage(named, forged), 'It is me, Alice.');
  assert.notDeepEqual(named.peerPublicKey, alice.publicKey);

  const second = establishSession(mallory, bob.bundle);
  const other = encryptMessage(second.session, 'It is me, Alice.');
  const { session: his } = establishSession(bob, handshake);
  assert.throws(() => decryptMessage(his, other), { code: 'UNDECRYPTABLE' });
  assert.throws(() => decryptMessage(his, other.message), { code: 'IDENTITY_CHANGED' });
  assert.equal(his.ready, false);
  assert.equal(decryptMessage(his, encryptMessage(hers, 'the real one')), 'the real one');
  assert.deepEqual(his.peerPublicKey, alice.publicKey);
  assert.throws(() => decryptMessage(his, other.message), { code: 'IDENTITY_CHANGED' });
});
