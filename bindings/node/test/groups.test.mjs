// Groups of three: who reads what, what is told, and what is refused.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { at, codeOf, directory, sdk, startMockRelay } from './project.mjs';

const { createApp, Group } = sdk;

/** The next message of a client. */
async function next(client) {
  for await (const message of client.messages()) return message;
}

/** The next event of a kind. */
const event = (client, name) => new Promise((resolve) => { client.once(name, resolve); });

async function three(t) {
  const { app } = await at(t);
  const [alice, bob, carol] = [await app.connect('alice'), await app.connect('bob'), await app.connect('carol')];
  const joined = Promise.all([event(bob, 'groupJoined'), event(carol, 'groupJoined')]);
  const group = await alice.createGroup('friends', ['bob', 'carol']);
  const told = await joined;
  return { app, alice, bob, carol, group, told };
}

test('three members write, and each reads all others', async (t) => {
  const { alice, bob, carol, group, told } = await three(t);
  assert.ok(group instanceof Group);
  assert.match(group.id, /^[0-9a-f]{32}$/);
  for (const { groupId, by, group: its } of told) assert.deepEqual([groupId, by, its.id], [group.id, 'alice', group.id]);
  const sent = await group.send({ hello: 'all' });
  for (const member of [bob, carol]) {
    const message = await next(member);
    assert.deepEqual([message.id, message.senderId, message.content, message.groupId], [sent.id, 'alice', { hello: 'all' }, group.id]);
    assert.ok(message.group instanceof Group);
    assert.deepEqual(await message.group.members(), ['alice', 'bob', 'carol']);
    assert.equal(JSON.parse(JSON.stringify(message)).group.id, group.id);
  }
  // An answer from inside a handler goes to the group.
  const answered = new Promise((resolve) => {
    const off = bob.onMessage(async (message) => {
      await message.group.send(new Uint8Array([1, 2]));
      off();
      resolve();
    });
  });
  await (await carol.group(group.id)).send('from carol');
  assert.equal((await next(alice)).content, 'from carol');
  await answered;
  const [atAlice, atCarol] = [await next(alice), await next(carol)];
  assert.deepEqual([atAlice.content, atAlice.senderId, atCarol.content], [new Uint8Array([1, 2]), 'bob', new Uint8Array([1, 2])]);
  // Whoever is asked says the same.
  const infos = await Promise.all([alice, bob, carol].map(async (client) => (await client.group(group.id)).info()));
  for (const info of infos) assert.deepEqual(info, { ...infos[0] });
  assert.deepEqual([infos[0].name, infos[0].isMember, infos[0].members], ['friends', true, ['alice', 'bob', 'carol']]);
  // A message to one is of no group.
  await alice.send('bob', 'between us');
  const direct = await next(bob);
  assert.deepEqual([direct.content, direct.groupId, direct.group], ['between us', undefined, undefined]);
});

test('who is added reads from then on, who is put out nothing more', async (t) => {
  const { app, alice, bob, carol, group } = await three(t);
  await group.send('before dave');
  assert.equal((await next(bob)).content, 'before dave');
  const dave = await app.connect('dave');
  const [joined, changed] = [event(dave, 'groupJoined'), event(bob, 'groupChanged')];
  await group.add('dave');
  await joined;
  const { joined: who, gone, by, name } = await changed;
  assert.deepEqual([who, gone, by, name], [['dave'], [], 'alice', 'friends']);
  await group.send('with dave');
  assert.equal((await next(dave)).content, 'with dave');
  const left = event(carol, 'groupLeft');
  const bobs = await bob.group(group.id);
  await bobs.remove('carol');
  assert.deepEqual([(await left).by, (await left).groupId], ['bob', group.id]);
  await bobs.send('without carol');
  assert.equal((await next(dave)).content, 'without carol');
  assert.deepEqual(await bobs.members(), ['alice', 'bob', 'dave']);
  const carols = await carol.group(group.id);
  assert.equal((await carols.info()).isMember, false);
  assert.equal(await codeOf(carols.send('still here?')), 'NOT_A_MEMBER');
  // Everything that Carol was sent is of the time when she was in it.
  const atCarol = [];
  await alice.send('carol', 'last');
  for await (const { content } of carol.messages()) {
    atCarol.push(content);
    if (content === 'last') break;
  }
  assert.deepEqual(atCarol.filter((content) => content === 'without carol'), []);
});

test('a new name, leaving, and a list', async (t) => {
  const { alice, bob, group } = await three(t);
  const changed = event(bob, 'groupChanged');
  await group.rename('old friends');
  assert.equal((await changed).name, 'old friends');
  assert.equal(await (await bob.group(group.id)).name(), 'old friends');
  const another = await alice.createGroup('another', []);
  const groups = await alice.groups();
  assert.deepEqual(groups.map(({ id }) => id), [another.id, group.id]);
  assert.ok(groups.every((one) => one instanceof Group));
  const gone = new Promise((resolve) => alice.on('groupChanged', ({ gone: who }) => who.length > 0 && resolve(who)));
  await (await bob.group(group.id)).leave();
  assert.deepEqual(await gone, ['bob']);
  assert.equal(await codeOf((await bob.group(group.id)).rename('mine')), 'NOT_A_MEMBER');
});

test('changes take a signal: one that is aborted changes nothing', async (t) => {
  const { group } = await three(t);
  const { epoch } = await group.info();
  const signal = AbortSignal.abort();
  for (const act of [() => group.add('dave', { signal }), () => group.remove('bob', { signal }), () => group.rename('x', { signal }), () => group.leave({ signal })]) {
    assert.equal(await codeOf(act), 'ABORTED');
  }
  assert.equal((await group.info()).epoch, epoch);
});

test('what can not be used is named', async (t) => {
  const { alice, group } = await three(t);
  for (const [act, code] of [
    [() => alice.createGroup('', []), 'BAD_GROUP_CHANGE'],
    [() => alice.createGroup(5, []), 'INVALID_ARGUMENT'],
    [() => alice.createGroup('x', 'bob'.repeat(1_000)), 'INVALID_NAME'],
    [() => alice.createGroup('x', 5), 'INVALID_ARGUMENT'],
    [() => alice.createGroup('x', [5]), 'INVALID_ARGUMENT'],
    [() => alice.createGroup('x', [,]), 'INVALID_ARGUMENT'],
    [() => alice.createGroup('x', Array(1_001).fill('bob')), 'INVALID_ARGUMENT'],
    [() => alice.createGroup('x', ['nobody']), 'RECIPIENT_NOT_FOUND'],
    [() => alice.group('x'), 'INVALID_ARGUMENT'],
    [() => alice.group('0'.repeat(32)), 'GROUP_NOT_FOUND'],
    [() => group.send(Symbol('x')), 'INVALID_ARGUMENT'],
    [() => group.send('x'.repeat(65_536)), 'MESSAGE_TOO_LARGE'],
    [() => group.remove('dave'), 'NOT_A_MEMBER'],
    [() => group.add(), 'INVALID_ARGUMENT'],
    [() => group.add(['bob', 7]), 'INVALID_ARGUMENT'],
    [() => group.rename('\n'), 'BAD_GROUP_CHANGE'],
    [() => group.send('x', { timeout: 5 }), 'INVALID_CONFIG'],
  ]) assert.equal(await codeOf(act), code, String(act));
  await group.send('still');
});

test('what was said in a group is found again, and how far it came; a group that was left can be deleted', async (t) => {
  const { app } = await at(t, { receipts: { read: true } });
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const joined = event(bob, 'groupJoined');
  const group = await alice.createGroup('friends', ['bob']);
  await joined;
  // Before anything is sent: receipts come when a message is there, whether or not anybody looked at it.
  const heard = event(alice, 'groupReceipt');
  const sent = [];
  for (const text of ['the report of May', 'nothing', 'the REPORT of June']) sent.push((await group.send(text)).id);
  const its = await bob.group(group.id);
  for (let i = 0; i < 3; i += 1) await next(bob);
  await its.send({ an: 'answer' });
  await next(alice);

  const said = ({ messages }) => messages.map(({ content, direction, senderId }) => [content, direction, senderId]);
  const first = await its.history({ limit: 3 });
  assert.deepEqual(said(first), [[{ an: 'answer' }, 'out', undefined], ['the REPORT of June', 'in', 'alice'], ['nothing', 'in', 'alice']]);
  const second = await first.older();
  assert.deepEqual(said(second), [['the report of May', 'in', 'alice']]);
  assert.equal(await second.older(), null);
  assert.deepEqual((await its.history({ search: 'report' })).messages.map(({ id }) => id), [sent[2], sent[0]]);
  assert.deepEqual((await bob.history('alice')).messages, [], 'a conversation is not a group');
  for (const bad of [{ limit: 0 }, { search: 1 }]) assert.equal(await codeOf(its.history(bad)), 'INVALID_ARGUMENT');
  assert.equal(await codeOf(its.history({ of: 'x' })), 'INVALID_CONFIG');

  await heard;
  for (const { userId, state, at } of await group.receipts(sent[0])) {
    assert.deepEqual([userId, ['delivered', 'read'].includes(state)], ['bob', true]);
    assert.ok(at instanceof Date);
  }
  const read = new Promise((resolve) => {
    alice.on('groupReceipt', ({ state, ids }) => state === 'read' && resolve(ids));
  });
  await its.markRead('alice', [sent[0]]);
  assert.deepEqual(await read, [sent[0]]);
  assert.deepEqual((await group.receipts(sent[0])).map(({ userId, state }) => [userId, state]), [['bob', 'read']]);
  assert.deepEqual((await its.history()).messages.map((message) => message.read), [false, false, false, true]);
  assert.equal(await codeOf(group.receipts('x')), 'INVALID_ARGUMENT');

  assert.equal(await codeOf(its.delete()), 'INVALID_CONFIG', 'while one is in it');
  await its.leave();
  await its.delete();
  assert.deepEqual(await bob.groups(), []);
  assert.deepEqual((await its.history()).messages, []);
  assert.equal(await codeOf(its.info()), 'GROUP_NOT_FOUND');
});

test('a group is there again after a restart', async (t) => {
  const relay = await startMockRelay({ port: 0 });
  t.after(() => relay.close());
  const settings = { appToken: 'stvor_x', relayUrl: relay.url, dataDir: directory() };
  let app = await createApp(settings);
  const bob = await app.connect('bob');
  const { id } = await (await app.connect('alice')).createGroup('friends', ['bob']);
  await event(bob, 'groupJoined');
  await app.close();
  app = await createApp(settings);
  t.after(() => app.close());
  const [again, alice] = [await app.connect('bob'), await app.connect('alice')];
  const [group] = await alice.groups();
  assert.equal(group.id, id);
  await group.send('again');
  assert.equal((await next(again)).content, 'again');
});
