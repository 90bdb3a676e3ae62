// What libsignal-node does, as its README, its type declarations and its files say: each behaviour is run with the reference and with
// ours by the same code, and has one expectation. Where ours does otherwise, on purpose, the second one stands beside it with
// the reason. (The reference comes without tests: this is the list of what is relied on.)
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ours, party, peerRequire, quiet, reference, withPeers } from './world.mjs';

/** The class of an error, as far as applications tell them apart. */
const CLASSES = ['UntrustedIdentityKeyError', 'PreKeyError', 'MessageCounterError', 'SessionError', 'TypeError', 'RangeError'];
const outcome = async (act) => {
  try {
    return await act();
  } catch (error) {
    assert.ok(error instanceof Error);
    for (let type = error.constructor; type; type = Object.getPrototypeOf(type)) if (CLASSES.includes(type.name)) return type.name;
    return 'Error';
  }
};

/** Two parties, with what their storages are asked. */
function world(S) {
  const [alice, bob] = [party(S, { json: true }), party(S, { json: true })];
  const calls = [];
  for (const [name, who] of [['alice', alice], ['bob', bob]]) {
    for (const call of ['loadSession', 'storeSession', 'isTrustedIdentity', 'loadPreKey', 'removePreKey', 'loadSignedPreKey']) {
      const real = who[call].bind(who);
      who[call] = (...given) => {
        calls.push(`${name}.${call} ${given.filter((one) => typeof one !== 'object').join()}`.trim());
        return who.distrusts && call === 'isTrustedIdentity' ? false : real(...given);
      };
    }
  }
  const at = (name) => new S.ProtocolAddress(name, 1);
  return {
    S, alice, bob, calls,
    toBob: new S.SessionCipher(alice, at('bob')),
    toAlice: new S.SessionCipher(bob, at('alice')),
    build: (bundle) => new S.SessionBuilder(alice, at('bob')).initOutgoing(bundle),
  };
}

/** They have talked: both know that the other has the session. */
async function talking(S, prekey = 1) {
  const one = world(S);
  await one.build(one.bob.bundle(prekey));
  await one.toAlice.decryptPreKeyWhisperMessage((await one.toBob.encrypt(Buffer.from('hello'))).body);
  await one.toBob.decryptWhisperMessage((await one.toAlice.encrypt(Buffer.from('answer'))).body);
  one.calls.length = 0;
  return one;
}

const text = async (plaintext) => Buffer.from(await plaintext).toString();
const changed = (body, at) => Buffer.from(body).fill(body.at(at) ^ 1, at < 0 ? body.length + at : at, at < 0 ? body.length + at + 1 : at + 1);

const BEHAVIOURS = [
  // Addresses
  ['an address is written id.device', (S) => new S.ProtocolAddress('a', 1).toString(), 'a.1'],
  ['an address has an id and a device', (S) => [new S.ProtocolAddress('a', 7).id, new S.ProtocolAddress('a', 7).deviceId], ['a', 7]],
  ['an id without a dot: one that has one is refused', (S) => new S.ProtocolAddress('a.b', 1), 'TypeError'],
  ['an id is a string', (S) => new S.ProtocolAddress(1, 1), 'TypeError'],
  ['a device is a number', (S) => new S.ProtocolAddress('a', '1'), 'TypeError'],
  ['an address is read back', (S) => [S.ProtocolAddress.from('ab.2').id, S.ProtocolAddress.from('ab.2').deviceId], ['ab', 2]],
  ['what is no address is refused', (S) => S.ProtocolAddress.from('ab'), 'Error'],
  ['addresses are compared', (S) => {
    const one = new S.ProtocolAddress('a', 1);
    return [one.is(new S.ProtocolAddress('a', 1)), one.is(new S.ProtocolAddress('a', 2)), one.is('a.1')];
  }, [true, false, false]],

  // Keys
  ['a key pair has 33 and 32 bytes', (S) => {
    const { pubKey, privKey } = S.keyhelper.generateIdentityKeyPair();
    return [pubKey.length, pubKey[0], privKey.length, Buffer.isBuffer(pubKey), Buffer.isBuffer(privKey)];
  }, [33, 5, 32, true, true]],
  ['a registration id has 14 bits', (S) => Array.from({ length: 50 }, S.keyhelper.generateRegistrationId).every((id) => id >= 0 && id < 16_384), true],
  ['a prekey has an id and a pair', (S) => {
    const { keyId, keyPair } = S.keyhelper.generatePreKey(5);
    return [keyId, keyPair.pubKey.length, keyPair.privKey.length];
  }, [5, 33, 32]],
  ['the id of a prekey is a number, from 0', (S) => [S.keyhelper.generatePreKey(0).keyId, S.keyhelper.generatePreKey(16_777_215).keyId], [0, 16_777_215]],
  ['an id below 0 is refused', (S) => S.keyhelper.generatePreKey(-1), 'TypeError'],
  ['an id that is no number is refused', (S) => S.keyhelper.generatePreKey('x'), 'TypeError'],
  ['a signed prekey is signed by the identity', (S) => {
    const identity = S.keyhelper.generateIdentityKeyPair();
    const { keyId, keyPair, signature } = S.keyhelper.generateSignedPreKey(identity, 9);
    return [keyId, signature.length, S.curve.verifySignature(identity.pubKey, keyPair.pubKey, signature)];
  }, [9, 64, true]],
  ['an identity that is none signs nothing', (S) => S.keyhelper.generateSignedPreKey({}, 5), 'TypeError'],
  ['an agreement is the same from both sides', (S) => {
    const [a, b] = [S.curve.generateKeyPair(), S.curve.generateKeyPair()];
    return S.curve.calculateAgreement(a.pubKey, b.privKey).equals(S.curve.calculateAgreement(b.pubKey, a.privKey));
  }, true],
  ['a public key follows from the private one', (S) => {
    const { pubKey, privKey } = S.curve.generateKeyPair();
    return Buffer.from(S.curve.getPublicFromPrivateKey(privKey)).equals(pubKey);
  }, true],
  ['a signature that does not verify is false', (S) => S.curve.verifySignature(S.curve.generateKeyPair().pubKey, Buffer.from('x'), Buffer.alloc(64)), false],
  ['a signature of another size is an error', (S) => S.curve.verifySignature(S.curve.generateKeyPair().pubKey, Buffer.from('x'), Buffer.alloc(6)), 'Error', { ours: 'TypeError', why: 'an argument that is none is a TypeError everywhere' }],
  ['a public key of another size is an error', (S) => S.curve.calculateAgreement(Buffer.alloc(3), Buffer.alloc(32, 1)), 'Error'],
  ['keys are bytes', (S) => S.curve.calculateAgreement('x', Buffer.alloc(32, 1)), 'Error', { ours: 'TypeError', why: 'an argument of another type is a TypeError everywhere' }],

  // Primitives
  ['AES-CBC goes there and back', (S) => S.crypto.decrypt(Buffer.alloc(32, 1), S.crypto.encrypt(Buffer.alloc(32, 1), Buffer.from('text'), Buffer.alloc(16)), Buffer.alloc(16)).toString(), 'text'],
  ['padding that is none is an error', (S) => S.crypto.decrypt(Buffer.alloc(32), Buffer.alloc(16), Buffer.alloc(16)), 'Error'],
  ['secrets come in three chunks, or as many as asked for', (S) => [undefined, 2, 1].map((chunks) => S.crypto.deriveSecrets(Buffer.from('x'), Buffer.alloc(32), Buffer.alloc(1), chunks).map((one) => one.length)), [[32, 32, 32], [32, 32], [32]]],
  ['a salt has 32 bytes', (S) => S.crypto.deriveSecrets(Buffer.from('x'), Buffer.alloc(3), Buffer.alloc(1)), 'Error', { ours: 'TypeError', why: 'an argument that is none is a TypeError everywhere' }],
  ['a MAC is compared in the length that is asked for', (S) => {
    const mac = S.crypto.calculateMAC(Buffer.alloc(32), Buffer.from('x'));
    S.crypto.verifyMAC(Buffer.from('x'), Buffer.alloc(32), mac.subarray(0, 8), 8);
    return S.crypto.verifyMAC(Buffer.from('x'), Buffer.alloc(32), Buffer.alloc(8), 8);
  }, 'Error'],
  ['a MAC of another length is an error', (S) => S.crypto.verifyMAC(Buffer.from('x'), Buffer.alloc(32), Buffer.alloc(8), 10), 'Error'],
  ['arguments of primitives are bytes', (S) => S.crypto.encrypt('x', Buffer.from('x'), Buffer.alloc(16)), 'TypeError'],

  // Sessions
  ['a session comes of a bundle', async (S) => {
    const { alice, bob, build, toBob, calls } = world(S);
    const before = await toBob.hasOpenSession();
    calls.length = 0;
    await build(bob.bundle(1));
    return [before, calls.filter((call) => call.startsWith('alice.storeSession')), await toBob.hasOpenSession(), alice.sessions.size];
  }, [false, ['alice.storeSession bob.1'], true, 1]],
  ['the storage is asked whether the identity of a bundle is trusted, by its name', async (S) => {
    const { bob, build, calls } = world(S);
    await build(bob.bundle(1));
    return calls.filter((call) => call.includes('isTrusted')).map((call) => call.split(',')[0].replace(/ (sending|receiving)$/, ''));
  }, ['alice.isTrustedIdentity bob']],
  ['a bundle of an identity that is not trusted starts nothing', async (S) => {
    const { alice, bob, build } = world(S);
    alice.distrusts = true;
    const error = await build(bob.bundle(1)).catch((thrown) => thrown);
    return [error.name, error.addr, error.identityKey.equals(bob.identity.pubKey), alice.sessions.size];
  }, ['UntrustedIdentityKeyError', 'bob', true, 0]],
  ['a bundle whose signature is wrong', async (S) => {
    const { bob, build } = world(S);
    const bundle = bob.bundle(1);
    bundle.signedPreKey.signature = Buffer.alloc(64);
    return outcome(() => build(bundle).then(() => 'a session'));
  }, 'a session', { ours: 'SessionError', why: 'the reference does not look at signatures of prekeys' }],
  ['a bundle may be without a one-time prekey', async (S) => {
    const { bob, build, toBob, toAlice } = world(S);
    await build(bob.bundle());
    return text(toAlice.decryptPreKeyWhisperMessage((await toBob.encrypt(Buffer.from('x'))).body));
  }, 'x'],
  ['what is encrypted is a type, bytes and the registration id of the peer', async (S) => {
    const { bob, build, toBob } = world(S);
    await build(bob.bundle(1));
    const sent = await toBob.encrypt(Buffer.from('x'));
    return [Object.keys(sent).sort(), sent.type, Buffer.isBuffer(sent.body), sent.registrationId === bob.registrationId];
  }, [['body', 'registrationId', 'type'], 3, true, true]],
  ['a first message starts the session of the other side, and destroys the one-time prekey and no other', async (S) => {
    const { bob, build, toBob, toAlice, calls } = world(S);
    await build(bob.bundle(1));
    calls.length = 0;
    const plaintext = await text(toAlice.decryptPreKeyWhisperMessage((await toBob.encrypt(Buffer.from('first'))).body));
    const asked = ['loadPreKey', 'loadSignedPreKey', 'removePreKey', 'storeSession'].map((call) => calls.filter((one) => one.startsWith(`bob.${call}`)));
    return [plaintext, asked, bob.prekeys.size, bob.signed.size];
  }, ['first', [['bob.loadPreKey 1'], ['bob.loadSignedPreKey 1'], ['bob.removePreKey 1'], ['bob.storeSession alice.1']], 0, 1]],
  ['a first message from an identity that is not trusted is refused, and destroys nothing', async (S) => {
    const { bob, build, toBob, toAlice } = world(S);
    await build(bob.bundle(1));
    bob.distrusts = true;
    const { body } = await toBob.encrypt(Buffer.from('x'));
    return [await outcome(() => toAlice.decryptPreKeyWhisperMessage(body)), bob.prekeys.size, bob.sessions.size];
  }, ['UntrustedIdentityKeyError', 1, 0]],
  ['a prekey that is not there', async (S) => {
    const { bob, build, toBob, toAlice } = world(S);
    await build(bob.bundle(1));
    bob.prekeys.clear();
    const { body } = await toBob.encrypt(Buffer.from('x'));
    return outcome(() => toAlice.decryptPreKeyWhisperMessage(body));
  }, 'PreKeyError'],
  ['a signed prekey that is not there', async (S) => {
    const { bob, build, toBob, toAlice } = world(S);
    await build(bob.bundle());
    bob.signed.clear();
    const { body } = await toBob.encrypt(Buffer.from('x'));
    return outcome(() => toAlice.decryptPreKeyWhisperMessage(body));
  }, 'PreKeyError'],
  ['messages carry the handshake until the peer answered', async (S) => {
    const { bob, build, toBob, toAlice } = world(S);
    await build(bob.bundle(1));
    const sent = [await toBob.encrypt(Buffer.from('1')), await toBob.encrypt(Buffer.from('2'))];
    for (const { body } of sent) await toAlice.decryptPreKeyWhisperMessage(body);
    const answer = await toAlice.encrypt(Buffer.from('3'));
    await toBob.decryptWhisperMessage(answer.body);
    return [...sent, answer, await toBob.encrypt(Buffer.from('4'))].map(({ type }) => type);
  }, [3, 3, 1, 1]],
  ['a handshake that comes twice uses its key once', async (S) => {
    const { bob, build, toBob, toAlice } = world(S);
    await build(bob.bundle(1));
    const { body } = await toBob.encrypt(Buffer.from('x'));
    await toAlice.decryptPreKeyWhisperMessage(body);
    return outcome(() => toAlice.decryptPreKeyWhisperMessage(body));
  }, 'MessageCounterError'],
  ['there is no need to end a session: it goes on for as long as they talk', async (S) => {
    const { toBob, toAlice } = await talking(S);
    for (let turn = 0; turn < 60; turn += 1) {
      assert.equal(await text(toAlice.decryptWhisperMessage((await toBob.encrypt(Buffer.from(`${turn}`))).body)), `${turn}`);
      assert.equal(await text(toBob.decryptWhisperMessage((await toAlice.encrypt(Buffer.from(`${turn}`))).body)), `${turn}`);
    }
    return toBob.hasOpenSession();
  }, true],
  ['messages are read in any order, each once', async (S) => {
    const { toBob, toAlice } = await talking(S);
    const sent = [];
    for (let number = 0; number < 6; number += 1) sent.push(await toBob.encrypt(Buffer.from(`${number}`)));
    const got = [];
    for (const number of [5, 0, 3, 1]) got.push(await text(toAlice.decryptWhisperMessage(sent[number].body)));
    return [got, await outcome(() => toAlice.decryptWhisperMessage(sent[3].body))];
  }, [['5', '0', '3', '1'], 'SessionError'], { ours: [['5', '0', '3', '1'], 'MessageCounterError'], why: 'a message that was read is told from one that can not be; the class is a SessionError, too' }],
  ['empty and large plaintexts are the same after', async (S) => {
    const { toBob, toAlice } = await talking(S);
    const sizes = [];
    for (const size of [0, 1, 15, 16, 17, 60_000]) sizes.push((await toAlice.decryptWhisperMessage((await toBob.encrypt(Buffer.alloc(size, 7))).body)).length);
    return sizes;
  }, [0, 1, 15, 16, 17, 60_000]],
  ['a message that was changed is refused, and the good one is read after it', async (S) => {
    const { toBob, toAlice } = await talking(S);
    const { body } = await toBob.encrypt(Buffer.from('x'));
    return [await outcome(() => toAlice.decryptWhisperMessage(changed(body, -1))), await text(toAlice.decryptWhisperMessage(body))];
  }, ['SessionError', 'x']],
  ['a message of another version is refused', async (S) => {
    const { bob, build, toBob, toAlice } = world(S);
    await build(bob.bundle(1));
    const { body } = await toBob.encrypt(Buffer.from('x'));
    const other = Buffer.from(body);
    other[0] = 0x22;
    return outcome(() => toAlice.decryptPreKeyWhisperMessage(other));
  }, 'Error'],
  ['2,000 messages may be lost, and no more', async (S) => {
    const results = [];
    for (const lost of [1_999, 2_001]) {
      const { toBob, toAlice } = await talking(S);
      for (let number = 0; number < lost; number += 1) await toBob.encrypt(Buffer.from('x'));
      const { body } = await toBob.encrypt(Buffer.from('far'));
      results.push(await outcome(() => text(toAlice.decryptWhisperMessage(body))));
    }
    return results;
  }, ['far', 'SessionError']],
  ['without a session nothing is sent or read', async (S) => {
    const { toBob } = world(S);
    return [await outcome(() => toBob.encrypt(Buffer.from('x'))), await outcome(() => toBob.decryptWhisperMessage(Buffer.alloc(80, 0x33)))];
  }, ['SessionError', 'SessionError']],
  ['what is encrypted is bytes', async (S) => outcome(async () => (await talking(S)).toBob.encrypt('x')), 'TypeError'],
  ['of a session that is closed nothing more is sent', async (S) => {
    const { toBob } = await talking(S);
    await toBob.closeOpenSession();
    return [await toBob.hasOpenSession(), await outcome(() => toBob.encrypt(Buffer.from('x')))];
  }, [false, 'SessionError']],
  ['a message on a session that was closed is read', async (S) => {
    const { toBob, toAlice } = await talking(S);
    const { body } = await toAlice.encrypt(Buffer.from('late'));
    await toBob.closeOpenSession();
    return text(toBob.decryptWhisperMessage(body));
  }, 'late'],
  ['a second bundle takes the place of the first session', async (S) => {
    const { bob, build, toBob, toAlice } = await talking(S);
    await build(bob.bundle(2));
    const sent = await toBob.encrypt(Buffer.from('new'));
    return [sent.type, await text(toAlice.decryptPreKeyWhisperMessage(sent.body)), bob.prekeys.size];
  }, [3, 'new', 0]],
  ['calls of one cipher are done one after the other', async (S) => {
    const { toBob, toAlice } = await talking(S);
    const sent = await Promise.all(Array.from({ length: 8 }, (_, number) => toBob.encrypt(Buffer.from(`${number}`))));
    const got = await Promise.all(sent.map(({ body }) => text(toAlice.decryptWhisperMessage(body))));
    return [new Set(sent.map(({ body }) => body.toString('hex'))).size, got];
  }, [8, ['0', '1', '2', '3', '4', '5', '6', '7']]],
  ['a cipher says whose it is', (S) => String(world(S).toBob), '<SessionCipher(bob.1)>'],
  ['a cipher is of an address', (S) => new S.SessionCipher(party(S), 'x'), 'TypeError'],

  // Records
  ['a new record is empty', (S) => {
    const record = new S.SessionRecord();
    return [record.haveOpenSession(), record.serialize()];
  }, [false, { _sessions: {}, version: 'v1' }]],
  ['a record is an object for JSON, with its sessions by their base keys', async (S) => {
    const { alice } = await talking(S);
    const stored = JSON.parse(alice.sessions.get('bob.1'));
    const [[base, session], ...more] = Object.entries(stored._sessions);
    return [Object.keys(stored), stored.version, more.length, session.indexInfo.baseKey === base, Object.keys(session).sort(), Object.keys(session.indexInfo).sort()];
  }, [
    ['_sessions', 'version'], 'v1', 0, true,
    ['_chains', 'currentRatchet', 'indexInfo', 'registrationId'],
    ['baseKey', 'baseKeyType', 'closed', 'created', 'remoteIdentityKey', 'used'],
  ]],
  ['a record is the same after it was stored', async (S) => {
    const { alice } = await talking(S);
    const stored = JSON.parse(alice.sessions.get('bob.1'));
    return [S.SessionRecord.deserialize(stored).haveOpenSession(), assert.deepEqual(S.SessionRecord.deserialize(stored).serialize(), stored)];
  }, [true, undefined]],
  ['a record of before there were versions is read: it has the registration id once, for all of its sessions', async (S) => {
    const { alice, bob, toBob, toAlice } = await talking(S);
    const { _sessions } = JSON.parse(alice.sessions.get('bob.1'));
    for (const session of Object.values(_sessions)) delete session.registrationId;
    alice.sessions.set('bob.1', JSON.stringify({ _sessions, registrationId: bob.registrationId }));
    const { body, registrationId } = await toBob.encrypt(Buffer.from('x'));
    return [registrationId === bob.registrationId, await text(toAlice.decryptWhisperMessage(body)), JSON.parse(alice.sessions.get('bob.1')).version];
  }, [true, 'x', 'v1']],
  ['a record of a version that is not known is refused', (S) => S.SessionRecord.deserialize({ _sessions: {}, version: 'v9' }), 'Error', { ours: 'SessionError', why: 'it has a class and a code' }],
  ['what is no record is an empty one', (S) => S.SessionRecord.deserialize({}).haveOpenSession(), false, { ours: 'SessionError', why: 'the next message would be stored over what is there' }],
  ['a text is an empty record, whatever it says', async (S) => {
    const { alice } = await talking(S);
    const open = (stored) => outcome(() => S.SessionRecord.deserialize(stored).haveOpenSession());
    return [await open(alice.sessions.get('bob.1')), await open('{}')];
  }, [false, false], { ours: [true, 'SessionError'], why: 'storages keep texts: it is read as what it says' }],
  ['these errors say it in the same words, letter for letter: Baileys and others compare them whole', async (S) => {
    const said = (act) => Promise.resolve().then(act).then(() => 'nothing', (error) => error.message);
    const { bob, build, toBob, toAlice } = world(S);
    const whisper = Buffer.concat([Buffer.from([0x33]), Buffer.alloc(79)]);
    const words = [await said(() => toBob.encrypt(Buffer.from('x'))), await said(() => toBob.decryptWhisperMessage(whisper))];
    await build(bob.bundle(1));
    const first = await toBob.encrypt(Buffer.from('first'));
    const inner = Buffer.from(peerRequire('libsignal/src/protobufs.js').PreKeyWhisperMessage.decode(first.body.subarray(1)).message);
    const forged = Buffer.from(first.body);
    forged[forged.indexOf(inner) + inner.length - 1] ^= 1;
    const read = (body) => said(() => toAlice.decryptPreKeyWhisperMessage(body));
    words.push(await read(forged), await read(first.body), await read(first.body));
    const { body: answer } = await toAlice.encrypt(Buffer.from('answer'));
    const back = (body) => said(() => toBob.decryptWhisperMessage(body));
    const { WhisperMessage } = peerRequire('libsignal/src/protobufs.js');
    const far = WhisperMessage.encode({ ...WhisperMessage.decode(answer.subarray(1, -8)), counter: 3_000 }).finish();
    words.push(await back(changed(answer, -1)), await back(answer), await back(answer), await back(Buffer.concat([answer.subarray(0, 1), far, answer.subarray(-8)])));
    await toBob.closeOpenSession();
    words.push(await said(() => toBob.encrypt(Buffer.from('x'))));
    await build(bob.bundle(2));
    bob.prekeys.clear();
    words.push(await read((await toBob.encrypt(Buffer.from('x'))).body));
    await build(bob.bundle());
    bob.signed.clear();
    words.push(await read((await toBob.encrypt(Buffer.from('x'))).body));
    return [...words, await said(() => S.crypto.verifyMAC(Buffer.from('x'), Buffer.alloc(32), Buffer.alloc(8), 8))];
  }, [
    'No sessions', 'No session record', 'Bad MAC', 'nothing', 'Key used already or never filled',
    'No matching sessions found for message', 'nothing', 'No matching sessions found for message', 'No matching sessions found for message',
    'No open session', 'Invalid PreKey ID', 'Missing SignedPreKey', 'Bad MAC',
  ]],
  ['errors are classes of errors', (S) => [
    new S.PreKeyError('x') instanceof S.SessionError,
    new S.MessageCounterError('x') instanceof S.SessionError,
    new S.SessionError('x').message,
    new S.UntrustedIdentityKeyError('who', Buffer.alloc(33)).addr,
  ], [true, true, 'x', 'who']],
];

for (const [name, act, expected, other] of BEHAVIOURS) {
  test(name, withPeers, () => quiet(async () => {
    assert.deepEqual(await outcome(() => act(reference)), expected, 'the reference');
    assert.deepEqual(await outcome(() => act(ours)), other === undefined ? expected : other.ours, 'ours');
    if (other !== undefined) assert.ok(other.why.length > 10 && JSON.stringify(other.ours) !== JSON.stringify(expected), 'a difference has a reason');
  }));
}
