// An identity hands over to a fresh one: who has to know hears of it, and everybody goes on.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { at, codeOf } from './project.mjs';

async function next(client) {
  for await (const message of client.messages()) return message;
}

test('an identity is rotated, contacts hear of it, and both go on', async (t) => {
  const { app } = await at(t);
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  await (await alice.send('bob', 'before')).delivered();
  assert.equal((await next(bob)).content, 'before');
  const before = await alice.safetyNumber('bob');
  const heard = new Promise((resolve) => { bob.once('identityRotated', resolve); });
  const rotated = await alice.rotateIdentity();
  assert.match(rotated.old, /^[0-9a-f]{64}$/);
  assert.notEqual(rotated.old, rotated.new);
  assert.notEqual(rotated.client, alice);
  assert.equal(rotated.client, await app.connect('alice'));
  const { peer, old, new: fresh, wasVerified } = await heard;
  assert.deepEqual([peer, old, fresh, wasVerified], ['alice', rotated.old, rotated.new, false]);
  assert.equal(await codeOf(alice.send('bob', 'x')), 'CLIENT_NOT_READY');
  await (await bob.send('alice', 'to the new key')).delivered();
  assert.equal((await next(rotated.client)).content, 'to the new key');
  await (await rotated.client.send('bob', 'from the new key')).delivered();
  assert.equal((await next(bob)).content, 'from the new key');
  assert.notEqual((await rotated.client.safetyNumber('bob')).digits, before.digits);
  // Nothing but what the peer shows is accepted by its fingerprint.
  assert.equal(await codeOf(bob.acceptIdentity('alice', rotated.old)), 'IDENTITY_CHANGED');
  await bob.acceptIdentity('alice', rotated.new);
});

test('a rotation that was followed before anybody listened is told to the first who does', async (t) => {
  const { app } = await at(t);
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  await (await alice.send('bob', 'before')).delivered();
  const { old, new: fresh, client } = await alice.rotateIdentity();
  await (await client.send('bob', 'after')).delivered();
  const heard = await new Promise((resolve) => { bob.on('identityRotated', resolve); });
  assert.deepEqual([heard.peer, heard.old, heard.new], ['alice', old, fresh]);
});

test('what is no option of a rotation is refused', async (t) => {
  const { app } = await at(t);
  const alice = await app.connect('alice');
  assert.equal(await codeOf(alice.rotateIdentity({ derived: false })), 'INVALID_CONFIG');
  assert.equal(await codeOf(app.rotateIdentity('alice', { notDerived: 1 })), 'INVALID_ARGUMENT');
  assert.equal(await codeOf(alice.acceptIdentity('bob', 7)), 'INVALID_ARGUMENT');
  const { client } = await alice.rotateIdentity({ notDerived: true });
  assert.equal(client.userId, 'alice');
  await client.close();
  assert.equal(await codeOf(client.rotateIdentity()), 'CLIENT_NOT_READY');
});
