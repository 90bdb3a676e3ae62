// What an application sees of messages, receipts, events and the life of a client.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect, createServer } from 'node:net';
import { readFileSync } from 'node:fs';
import { execFileSync } from 'node:child_process';
import { test } from 'node:test';
import { at, codeOf, directory, run, sdk, start, startMockRelay, write } from './project.mjs';

const { createApp } = sdk;

/** The first `count` messages of a client. */
async function take(client, count) {
  const taken = [];
  for await (const message of client.messages()) {
    taken.push(message);
    if (taken.length === count) break;
  }
  return taken;
}

test('text, bytes and JSON arrive as what they were, in the order of sending', async (t) => {
  const { app } = await at(t);
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const contents = ['žluťoučký 🔐', new Uint8Array([0, 255]), { a: [1, null, 'x'] }, 7, null, true, ''];
  for (const content of contents) await alice.send('bob', content);
  const taken = await take(bob, contents.length);
  assert.deepEqual(taken.map((message) => message.content), contents);
  assert.deepEqual(taken.map((message) => message.kind), ['text', 'bytes', 'json', 'json', 'json', 'json', 'text']);
  assert.ok(taken.every((message) => message.senderId === 'alice' && message.timestamp instanceof Date));
});

test('a handler of exactly two parameters gets sender and content, any other the message', async (t) => {
  const { app } = await at(t);
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const got = { none: 0 };
  const all = new Promise((resolve) => {
    const arrived = (key, value) => { got[key] = value; if (got.two && got.one && got.rest && got.none) resolve(); };
    bob.onMessage((from, content) => arrived('two', [from, content]));
    bob.onMessage((message) => arrived('one', message.content));
    bob.onMessage((...all) => arrived('rest', all.length));
    bob.onMessage(function () { arrived('none', arguments.length); });
  });
  await alice.send('bob', 'hi');
  await all;
  assert.deepEqual(got, { two: ['alice', 'hi'], one: 'hi', rest: 1, none: 1 });
});

test('a receipt comes as far as the recipient does', async (t) => {
  const { app } = await at(t);
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const receipt = await alice.send('bob', 'hi');
  assert.match(receipt.id, /^[0-9a-f]{32}$/);
  await receipt.delivered();
  const [message] = await take(bob, 1);
  assert.equal(message.id, receipt.id);
  await bob.markRead('alice', [message.id]);
  await receipt.read();
  assert.equal(receipt.status, 'read');
  assert.equal((await alice.receipt(receipt.id)).status, 'read');
});

test('an unsubscribed handler gets nothing more, and what comes waits for the next', async (t) => {
  const { app } = await at(t);
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const first = [];
  let off;
  await new Promise((resolve) => {
    off = bob.onMessage((message) => { first.push(message.content); resolve(); });
    alice.send('bob', 'one').catch(assert.fail);
  });
  off();
  off();
  await (await alice.send('bob', 'two')).delivered();
  assert.deepEqual((await take(bob, 1)).map((message) => message.content), ['two']);
  assert.deepEqual(first, ['one']);
});

/** Five messages that wait at Bob. */
async function five(t) {
  const { app } = await at(t);
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const receipts = [];
  for (const content of [1, 2, 3, 4, 5]) receipts.push(await alice.send('bob', content));
  await Promise.all(receipts.map((receipt) => receipt.delivered()));
  return { app, alice, bob };
}
const contents = (messages) => messages.map((message) => message.content);

test('what a loop that was left had not got to goes to the next one, in order', async (t) => {
  const { bob } = await five(t);
  assert.deepEqual(contents(await take(bob, 1)), [1]);
  assert.deepEqual(contents(await take(bob, 2)), [2, 3]);
  assert.deepEqual(contents(await take(bob, 2)), [4, 5]);
});

test('what a handler that was taken off had not got to goes to the next one, also from inside it', async (t) => {
  const { bob } = await five(t);
  const first = [];
  await new Promise((resolve) => {
    const off = bob.onMessage((message) => {
      first.push(message.content);
      off();
      resolve();
    });
  });
  assert.deepEqual(contents(await take(bob, 4)), [2, 3, 4, 5]);
  assert.deepEqual(first, [1]);
  assert.equal(bob.unconsumed, 0);
});

test('close waits for the handler that runs, and is not held up by a call from inside it', async (t) => {
  const relay = await startMockRelay({ port: 0 });
  t.after(() => relay.close());
  const settings = { appToken: 'stvor_x', relayUrl: relay.url, dataDir: directory() };
  const app = await createApp(settings);
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  let finish;
  const started = new Promise((resolve) => bob.onMessage(async () => {
    resolve();
    await new Promise((done) => { finish = done; });
  }));
  await alice.send('bob', 'one');
  await started;
  let closed = false;
  const closing = bob.close().then(() => { closed = true; });
  await new Promise(setImmediate);
  assert.equal(closed, false);
  finish();
  await closing;
  const again = await app.connect('bob');
  assert.equal(again.unconsumed, 0, 'its message was consumed');
  const ended = new Promise((resolve) => again.onMessage(async () => { await again.close(); resolve(); }));
  await alice.send('bob', 'two');
  await ended;
  await app.close();
});

test('a signal that is none opens nothing, and one that aborts during the loop body is told', async (t) => {
  const { bob } = await five(t);
  for (const signal of [{}, { aborted: false, addEventListener() {} }, { aborted: false, addEventListener() { throw new Error('x'); }, removeEventListener() {} }, 5]) {
    assert.equal(await codeOf(() => bob.messages({ signal })), 'INVALID_ARGUMENT');
  }
  const controller = new AbortController();
  const seen = [];
  const loop = async () => {
    for await (const message of bob.messages({ signal: controller.signal })) {
      seen.push(message.content);
      if (message.content === 2) controller.abort();
    }
  };
  assert.equal(await codeOf(loop()), 'ABORTED');
  assert.deepEqual(seen, [1, 2]);
  assert.deepEqual(contents(await take(bob, 4)), [2, 3, 4, 5], 'the one whose loop was aborted is not consumed');
});

test('what no handler consumed comes again at the next start, what one consumed does not', async (t) => {
  const relay = await startMockRelay({ port: 0 });
  t.after(() => relay.close());
  const settings = { appToken: 'stvor_x', relayUrl: relay.url, dataDir: directory() };
  const app = await createApp(settings);
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const failed = new Promise((resolve) => bob.on('handlerFailed', resolve));
  bob.onMessage(async (message) => { if (message.content === 'two') throw new Error('not this one'); });
  for (const content of ['one', 'two', 'three']) await alice.send('bob', content);
  const { error, message } = await failed;
  assert.deepEqual([error.message, message.content], ['not this one', 'two']);
  await (await alice.send('bob', 'four')).delivered();
  await app.close();
  const again = await createApp(settings);
  t.after(() => again.close());
  const back = await again.connect('bob');
  const contents = [];
  for await (const one of back.messages()) {
    contents.push(one.content);
    if (back.unconsumed === contents.length) break;
  }
  assert.equal(contents[0], 'two');
  assert.ok(!contents.includes('one'));
});

test('closing ends iterators and leaves nothing behind that could be used', async (t) => {
  const { app } = await at(t, { storage: 'disk', dataDir: directory() });
  const bob = await app.connect('bob');
  const waiting = bob.messages().next();
  await bob.close();
  await bob.close();
  assert.deepEqual(await waiting, { done: true, value: undefined });
  assert.equal(bob.state, 'closed');
  assert.equal(await codeOf(bob.send('alice', 'hi')), 'CLIENT_NOT_READY');
  assert.equal(await codeOf(() => bob.onMessage(() => {})), 'CLIENT_NOT_READY');
  const again = await app.connect('bob');
  assert.notEqual(again, bob);
  assert.equal(again, await app.connect('bob'));
  await app.disconnect('bob');
  assert.equal(again.state, 'closed');
});

test('a signal ends waiting with ABORTED and its reason', async (t) => {
  const { app } = await at(t);
  const alice = await app.connect('alice');
  const controller = new AbortController();
  const sending = alice.send('nobody', 'hi', { signal: controller.signal });
  const iterating = alice.messages({ signal: controller.signal }).next();
  const waiting = alice.waitForUser('nobody', { timeout: 60_000, signal: controller.signal });
  const ended = Promise.allSettled([sending, iterating, waiting]);
  controller.abort('enough');
  for (const { reason } of await ended) {
    assert.ok(reason instanceof sdk.StvorError);
    assert.deepEqual([reason.code, reason.cause], ['ABORTED', 'enough']);
  }
  assert.equal(await codeOf(alice.send('nobody', 'hi', { signal: controller.signal })), 'ABORTED');
});

test('methods may be handed on', async (t) => {
  const { relay, app } = await at(t);
  const client = await app.connect('alice');
  await app.connect('bob');
  const { send, close, safetyNumber, block, unref, on, acceptIdentity, rotateIdentity } = client;
  const receipt = await send('bob', 'hi');
  await Promise.all([safetyNumber('bob'), block('carol'), acceptIdentity('bob')]);
  assert.equal(unref(), client);
  assert.equal(on('connected', () => {}), client);
  const { delivered } = receipt;
  assert.equal(await codeOf(delivered()), 'INVALID_ARGUMENT');
  await close();
  assert.equal(client.state, 'closed');
  assert.equal(await codeOf(rotateIdentity()), 'CLIENT_NOT_READY');
  const { disconnect } = app;
  await disconnect();
  const { unref: letGo } = relay;
  assert.equal(letGo(), relay);
  assert.deepEqual(Object.keys(client), []);
});

test('a fingerprint is looked at before anybody is asked', async (t) => {
  const { app } = await at(t);
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const { fingerprint } = bob.identity;
  for (const wrong of ['', 'zz', fingerprint.slice(1), `${fingerprint}0`, 'a'.repeat(2 ** 28)]) {
    assert.equal(await codeOf(alice.acceptIdentity('bob', wrong)), 'INVALID_ARGUMENT');
  }
  await alice.acceptIdentity('bob', fingerprint.toUpperCase().replace(/(.{4})/g, '$1 '));
});

test('close sends what waits also where the connection is in a pause', async (t) => {
  const [database, aliceDir, bobDir] = [`${directory()}/relay.db`, directory(), directory()];
  let relay = await startMockRelay({ port: 0, database });
  const { port } = relay;
  const settings = { appToken: 'stvor_x', relayUrl: relay.url, timeout: 5_000 };
  const open = async (name, dataDir) => {
    const app = await createApp({ ...settings, dataDir });
    t.after(() => app.close());
    return app.connect(name);
  };
  const bob = await open('bob', bobDir);
  const alice = await open('alice', aliceDir);
  await (await alice.send('bob', 'zero')).delivered();
  await relay.close();
  await alice.send('bob', 'one', { waitFor: 'committed' });
  // Until the pauses are longer than the rest of this test takes. Nobody else keeps this process.
  const held = setInterval(() => {}, 1_000);
  t.after(() => clearInterval(held));
  await new Promise((resolve) => alice.on('reconnecting', ({ after }) => { if (after > 1_500) resolve(); }));
  relay = await startMockRelay({ port, database });
  t.after(() => relay.close());
  await alice.close();
  assert.equal((await open('alice', aliceDir)).pending, 0);
  assert.deepEqual(contents(await take(bob, 2)), ['zero', 'one']);
  // One that is away holds nobody.
  const carol = await open('carol', directory());
  await relay.close();
  await codeOf(carol.send('bob', 'never', { waitFor: 'committed' }));
  const since = performance.now();
  await carol.close();
  assert.ok(performance.now() - since < 4_500);
});

test('what waits without a timeout of its own takes the one of its app', async (t) => {
  const { app } = await at(t, { timeout: 200 });
  const alice = await app.connect('alice');
  const since = performance.now();
  assert.equal(await codeOf(alice.waitForUser('nobody')), 'RECIPIENT_TIMEOUT');
  assert.ok(performance.now() - since < 9_000);
});

test('bytes whose buffer was transferred are refused, and an empty message is one', async (t) => {
  const { app } = await at(t);
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const gone = new Uint8Array([1, 2, 3]);
  structuredClone(gone.buffer, { transfer: [gone.buffer] });
  assert.equal(await codeOf(alice.send('bob', gone)), 'INVALID_ARGUMENT');
  // Half of a character would arrive as another one.
  for (const text of ['cut \ud83d', { text: 'cut \ud83d' }, ['\udd10']]) assert.equal(await codeOf(alice.send('bob', text)), 'INVALID_ARGUMENT');
  await alice.send('bob', { text: '\\ud83d 🔐' });
  assert.deepEqual(contents(await take(bob, 1)), [{ text: '\\ud83d 🔐' }]);
  await alice.send('bob', new Uint8Array());
  assert.deepEqual(contents(await take(bob, 1)), [new Uint8Array()]);
});

/** Whether a process is stopped. BusyBox has another `ps` than others have, so Linux is asked without it. */
function stopped(pid) {
  if (process.platform !== 'linux') return execFileSync('ps', ['-o', 'stat=', '-p', String(pid)], { encoding: 'utf8' }).startsWith('T');
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  return stat.slice(stat.lastIndexOf(')') + 2).startsWith('T');
}

test('what waits for a relay that answers nothing ends with its signal, and works when it answers again', { skip: process.platform === 'win32' && 'no process can be stopped there' }, async (t) => {
  const served = start(['node_modules/@stvor/sdk/bin.js', 'mock-relay'], { env: { STVOR_MOCK_PORT: '0' } });
  t.after(() => served.child.kill('SIGKILL'));
  const port = /ws:\/\/localhost:(\d+)/.exec(await served.line(/ws:/))[1];
  const settings = { appToken: 'stvor_x', relayUrl: `ws://localhost:${port}`, storage: 'memory', timeout: 60_000 };
  const [here, there] = [await createApp(settings), await createApp(settings)];
  t.after(() => Promise.all([here.close(), there.close()]));
  const alice = await here.connect('alice');
  const bob = await there.connect('bob');
  const number = await bob.safetyNumber('alice');
  // Stopped it is some time after it was told to.
  const stop = async () => {
    served.child.kill('SIGSTOP');
    while (!stopped(served.child.pid)) await new Promise(setImmediate);
  };
  await stop();
  const waits = [
    (signal) => alice.safetyNumber('bob', { signal }),
    (signal) => alice.verify('bob', number, { signal }),
    (signal) => alice.acceptIdentity('bob', undefined, { signal }),
    (signal) => alice.acceptIdentity('bob', bob.identity.fingerprint, { signal }),
    (signal) => alice.waitForUser('bob', { signal, timeout: 60_000 }),
  ];
  const ends = async (wait) => {
    const controller = new AbortController();
    const ended = assert.rejects(wait(controller.signal), (error) => error.code === 'ABORTED' && error.cause === 'enough');
    setImmediate(() => controller.abort('enough'));
    await ended;
    assert.equal(await codeOf(wait(AbortSignal.abort())), 'ABORTED');
  };
  for (const wait of waits) await ends(wait);
  assert.equal(await codeOf(alice.deleteAccount({ signal: AbortSignal.abort() })), 'ABORTED');
  assert.equal(await codeOf(alice.resetSession('bob', { signal: AbortSignal.abort() })), 'ABORTED');
  assert.equal(await codeOf(alice.recoverFromRollback({ signal: AbortSignal.abort() })), 'ABORTED');
  assert.equal(await codeOf(alice.safetyNumber('bob', { sginal: 1 })), 'INVALID_CONFIG');
  served.child.kill('SIGCONT');
  await alice.verify('bob', number);
  await alice.send('bob', 'still here');
  assert.deepEqual(contents(await take(bob, 1)), ['still here']);
  await alice.resetSession('bob', { signal: new AbortController().signal });
  await alice.send('bob', 'anew');
  assert.deepEqual(contents(await take(bob, 1)), ['anew']);
  await stop();
  await ends((signal) => alice.deleteAccount({ signal }));
  served.child.kill('SIGCONT');
});

test('safety numbers agree, verification and blocking hold', async (t) => {
  const { app } = await at(t);
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const number = await alice.safetyNumber('bob');
  assert.equal(String(number), String(await bob.safetyNumber('alice')));
  assert.match(String(number), /^(\d{5} ){11}\d{5}$/);
  await alice.verify('bob');
  assert.equal((await alice.safetyNumber('bob')).verified, true);
  await alice.send('bob', 'hi');
  assert.deepEqual((await alice.peers()).map(({ userId, verified, blocked }) => ({ userId, verified, blocked })),
    [{ userId: 'bob', verified: true, blocked: false }]);
  await alice.block('bob');
  assert.equal(await codeOf(alice.send('bob', 'hi')), 'PEER_BLOCKED');
  await alice.unblock('bob');
  await alice.resetSession('bob');
  await (await alice.send('bob', 'again')).delivered();
});

test('history pages newest first', async (t) => {
  const { app } = await at(t);
  const alice = await app.connect('alice');
  await app.connect('bob');
  for (const content of ['1', '2', '3']) await alice.send('bob', content);
  const page = await alice.history('bob', { limit: 2 });
  assert.deepEqual(page.messages.map((message) => [message.direction, message.content]), [['out', '3'], ['out', '2']]);
  const older = await page.older();
  assert.deepEqual(older.messages.map((message) => message.content), ['1']);
  assert.equal(await older.older(), null);
});

test('events reach listeners until they are taken off', async (t) => {
  const { app } = await at(t);
  const [alice] = [await app.connect('alice'), await app.connect('bob')];
  const states = [];
  const listener = ({ peer, state }) => states.push([peer, state]);
  const started = new Promise((resolve) => alice.once('sessionStarted', resolve));
  alice.on('receipt', listener);
  await (await alice.send('bob', 'hi')).delivered();
  assert.deepEqual(await started, { peer: 'bob' });
  alice.off('receipt', listener);
  assert.equal(await codeOf(() => alice.on('nonsense', () => {})), 'INVALID_ARGUMENT');
});

const life = (body) => `
import { createApp } from '@stvor/sdk';
import { startMockRelay } from '@stvor/sdk/mock-relay';
const relay = (await startMockRelay({ port: 0 })).unref();
const app = await createApp({ appToken: 'stvor_x', relayUrl: relay.url, storage: 'memory' });
const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
${body}`;
const quietly = { env: { NODE_OPTIONS: '--no-warnings' } };

test('a process without handlers ends by itself, after what it sends', async () => {
  const ended = await run([write(life(`alice.send('bob', 'hi').then((receipt) => console.log(receipt.status));`))], quietly);
  assert.deepEqual([ended.code, ended.stderr], [0, '']);
  assert.match(ended.stdout, /^(accepted|delivered)\n$/);
});

test('a handler or an iterator keeps the process alive, unref lets it end', async (t) => {
  for (const waits of ['bob.onMessage(() => {});', 'bob.messages().next();']) {
    const unreferenced = await run([write(life(`${waits} bob.unref();`))], quietly);
    assert.deepEqual(unreferenced, { code: 0, signal: null, stdout: '', stderr: '' });
    const waiting = start([write(life(`${waits}
      process.on('beforeExit', () => console.log('ends'));
      process.on('message', () => {});
      console.log('waits');
      setTimeout(() => { bob.close(); }, 500).unref();`))], quietly);
    t.after(() => waiting.child.kill());
    const [code] = await once(waiting.child, 'exit');
    await waiting.ended;
    // The timer is not what kept it: it was unreferenced, and yet it came to close the client.
    assert.deepEqual([code, waiting.stdout], [0, 'waits\nends\n'], waiting.stderr);
  }
});

test('what waits for a receipt keeps the process alive; unref lets it end, and close ends the wait', async (t) => {
  // The receipt is of a message to somebody who never reads it.
  const wait = "const sent = await bob.send('bob2', 'hi'); const waits = sent.read(); waits.catch((error) => console.log(error.code));";
  const text = (rest) => life(`await app.connect('bob2'); ${wait} ${rest}`);
  const unreferenced = await run([write(text('bob.unref();'))], quietly);
  assert.deepEqual(unreferenced, { code: 0, signal: null, stdout: '', stderr: '' });
  const waiting = start([write(text("setTimeout(() => { console.log('waits'); bob.close(); }, 500).unref();"))], quietly);
  t.after(() => waiting.child.kill());
  assert.deepEqual(await waiting.ended, { code: 0, signal: null, stdout: 'waits\nCLIENT_NOT_READY\n', stderr: '' });
});

test('a directory that another process has open is STORE_LOCKED', async (t) => {
  const relay = await startMockRelay({ port: 0 });
  t.after(() => relay.close());
  const settings = { appToken: 'stvor_x', relayUrl: relay.url, dataDir: directory() };
  const app = await createApp(settings);
  t.after(() => app.close());
  await app.connect('alice');
  const other = await run([write(`
    import { createApp } from '@stvor/sdk';
    const app = await createApp(${JSON.stringify(settings)});
    await app.connect('alice').catch((error) => console.log(error.code));`)]);
  assert.equal(other.stdout, 'STORE_LOCKED\n', other.stderr);
});

test('what is verified is the number that was compared', async (t) => {
  const { app } = await at(t);
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  await (await alice.send('bob', 'hi')).delivered();
  const number = await alice.safetyNumber('bob');
  const other = await (await app.connect('carol')).safetyNumber('bob');
  const verified = async () => (await alice.safetyNumber('bob')).verified;
  assert.equal(await codeOf(alice.verify('bob', other)), 'SAFETY_NUMBER_MISMATCH');
  for (const wrong of ['12345', {}, 5, null, `${number.digits}0`]) assert.equal(await codeOf(() => alice.verify('bob', wrong)), 'INVALID_ARGUMENT');
  assert.equal(await verified(), false);
  await alice.verify('bob', number);
  assert.equal(await verified(), true);
  await alice.unverify('bob');
  await alice.verify('bob', String(number));
  assert.equal(await verified(), true);
  await bob.safetyNumber('alice');
  await bob.verify('alice', number.digits);
});

test('every event of the engine can be listened to', async (t) => {
  const { app } = await at(t);
  const alice = await app.connect('alice');
  const source = readFileSync(new URL('../../../crates/sdk/src/events.rs', import.meta.url), 'utf8');
  const names = [...source.matchAll(/^            Self::\w+(?: \{ \.\. \})? => "(\w+)",$/gm)].map(([, name]) => name.replace(/_([a-z])/g, (_, letter) => letter.toUpperCase()));
  const events = names.slice(names.indexOf('connected'));
  assert.ok(events.length > 25 && events.includes('groupChanged'), events.join());
  for (const name of events) alice.on(name, () => {});

  // And arrives with its fields: what the native half does not name arrives empty.
  const variants = /^pub enum Event \{\n(.*?)^\}/ms.exec(source)[1].replace(/^ *\/\/\/.*\n/gm, '');
  const arms = readFileSync(new URL('../src/events.rs', import.meta.url), 'utf8');
  const withFields = [...variants.matchAll(/^    (\w+) \{\n(.*?)^    \},/gms)].map(([, name, body]) => [name, [...body.matchAll(/^        (\w+):/gm)].map(([, field]) => field)]);
  assert.ok(withFields.length > 25, withFields.join());
  for (const [name, fields] of withFields) {
    const at = new RegExp(`Event::${name} \\{ ([a-z_, ]+) \\}[^{]*`).exec(arms);
    assert.deepEqual(at?.[1].split(', ').sort(), [...fields].sort(), `Event::${name} in bindings/node/src/events.rs`);
    const given = arms.slice(at.index, arms.indexOf('\n        Event::', at.index + 1));
    for (const field of fields) {
      const key = field.replace(/_([a-z])/g, (_, letter) => letter.toUpperCase());
      assert.ok(given.includes(`"${key}":`), `${key} of Event::${name}`);
    }
  }
});

test('a client that something else ends says so, and lets the process end', { timeout: 60_000 }, async (t) => {
  const file = write(`
    import { createApp } from '@stvor/sdk';
    import { startMockRelay } from '@stvor/sdk/mock-relay';
    process.on('warning', ({ code }) => console.log(code));
    const relay = (await startMockRelay({ port: 0 })).unref();
    const make = () => createApp({ appToken: 'stvor_x', relayUrl: relay.url, dataDir: process.argv[2], timeout: 5_000 });
    const [one, two] = [await make(), await make()];
    const [alice] = [await one.connect('alice'), await two.connect('alice')];
    alice.onMessage(() => {});
    if (process.argv[3]) alice.once('closed', (event) => console.log('closed', JSON.stringify(event), alice.state));
    const loop = (async () => { for await (const _ of alice.messages()); })();
    await two.close();
    for (const call of [() => alice.onMessage(() => {}), () => alice.messages()]) try { call(); } catch ({ code }) { console.log(code); }
    await loop;
    await new Promise((resolve) => process.once('beforeExit', resolve));
    const again = await one.connect('alice');
    console.log(again === alice, again.state !== 'closed');
    await one.close();
  `);
  const ended = async (...argv) => {
    const started = start([file, directory(), ...argv], quietly);
    t.after(() => started.child.kill('SIGKILL'));
    return started.ended;
  };
  const quiet = await ended();
  assert.deepEqual(quiet.stdout.split('\n'), ['CLIENT_NOT_READY', 'CLIENT_NOT_READY', 'STVOR_CLIENT_ENDED', 'false true', ''], quiet.stderr);
  const told = await ended('listen');
  assert.deepEqual(told.stdout.split('\n'), ['CLIENT_NOT_READY', 'CLIENT_NOT_READY', 'closed {"code":"STORE_CLOSED"} closed', 'false true', ''], told.stderr);
  assert.deepEqual([quiet.code, told.code], [0, 0]);
});

test('an end that was asked for is told, and is no warning', async (t) => {
  const { app } = await at(t, { storage: undefined, dataDir: directory() });
  const warnings = [];
  const heard = ({ code }) => { if (code === 'STVOR_CLIENT_ENDED') warnings.push(code); };
  process.on('warning', heard);
  t.after(() => process.off('warning', heard));
  const ends = [
    ['alice', (client) => client.close()],
    ['bob', (client) => client.deleteAccount()],
    ['carol', (client) => client.rotateIdentity()],
    ['dave', () => app.rotateIdentity('dave')],
    ['eve', () => app.disconnect('eve')],
  ];
  for (const [user, end] of ends) {
    const client = await app.connect(user);
    client.onMessage(() => {});
    const [told] = [once(client, 'closed'), await end(client)];
    assert.deepEqual((await told)[0], {});
    assert.equal(client.state, 'closed');
    await (await app.connect(user)).close();
  }
  assert.deepEqual(warnings, []);
});

test('calls that are under way and the handler that runs share the time of a close', async (t) => {
  const { app } = await at(t, { timeout: 2_000, executor: { maxPending: 1 } });
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  // A handler that never ends, and a send that had to wait and is not answered for a long time.
  const runs = new Promise((resolve) => { alice.onMessage(() => { resolve(); return new Promise(() => {}); }); });
  await bob.send('alice', 'x');
  await runs;
  const sends = [1, 2].map(() => codeOf(alice.send('nobody', 'x', { timeout: 60_000 })));
  let closed = false;
  alice.once('closed', () => { closed = true; });
  // Time stands still: what is waited for is only noted.
  const [real, asked] = [globalThis.setTimeout, []];
  globalThis.setTimeout = (act, time) => { asked.push({ act, time }); return {}; };
  t.after(() => { globalThis.setTimeout = real; });
  const closing = alice.close();
  const ofBoth = () => asked.filter(({ time }) => time === 1_500);
  while (ofBoth().length < 2) await new Promise(setImmediate);
  assert.ok(asked.every(({ time }) => time <= 2_000), JSON.stringify(asked));
  assert.equal(closed, false);
  // Neither waits for the other: when the time of both is over, the rest goes on.
  for (const { act } of ofBoth()) act();
  await closing;
  assert.equal(closed, true);
  assert.deepEqual(await Promise.all(sends), ['CLIENT_NOT_READY', 'CLIENT_NOT_READY']);
});

for (const what of ['deleteAccount', 'rotateIdentity']) {
  test(`nor is a close that was asked for while a call that ends the client was under way and failed: ${what}`, async (t) => {
    const { relay, app } = await at(t, { timeout: 500 });
    const warnings = [];
    const heard = ({ code }) => { if (code === 'STVOR_CLIENT_ENDED') warnings.push(code); };
    process.on('warning', heard);
    t.after(() => process.off('warning', heard));
    const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
    let ended;
    const over = new Promise((resolve) => { ended = resolve; });
    // Closing waits for the batch, and then for the handler: the call has failed by then.
    const runs = new Promise((resolve) => alice.onMessage(() => { resolve(); return over; }));
    await bob.send('alice', 'x');
    await runs;
    const batch = codeOf(alice.sendMany([{ to: 'nobody', content: 'x' }], { timeout: 60_000 }));
    await relay.close();
    const code = codeOf(alice[what]()).finally(ended);
    await Promise.all([alice.close(), batch]);
    assert.notEqual(await code, undefined);
    await new Promise(setImmediate);
    assert.deepEqual(warnings, []);
  });
}

test('an app chooses its suite, and two that differ exchange nothing', async (t) => {
  const { relay, app } = await at(t, { suite: 'x25519' });
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  await alice.send('bob', 'by another curve');
  await bob.send('alice', 'and back');
  assert.equal((await take(bob, 1))[0].content, 'by another curve');
  assert.equal((await take(alice, 1))[0].content, 'and back');
  assert.equal((await alice.safetyNumber('bob')).digits, (await bob.safetyNumber('alice')).digits);

  const settings = { appToken: 'stvor_dev_test123', relayUrl: relay.url, storage: 'memory' };
  const usual = await createApp(settings);
  t.after(() => usual.close());
  const carol = await usual.connect('carol');
  const told = { alice: [], carol: [] };
  alice.on('suiteMismatch', (event) => told.alice.push(event));
  for (let i = 0; i < 3; i += 1) {
    assert.equal(await codeOf(carol.send('alice', 'hello?')), 'SUITE_MISMATCH');
    assert.equal(await codeOf(alice.send('carol', 'hello?')), 'SUITE_MISMATCH');
  }
  // Whoever listens only now is told as well.
  const late = new Promise((resolve) => { carol.on('suiteMismatch', (event) => resolve(told.carol.push(event))); });
  await late;
  // What is told comes in order: nothing more of it is behind what follows.
  const more = [alice, carol].map((client) => new Promise((resolve) => { client.once('closed', resolve); }));
  await Promise.all([alice.close(), carol.close(), ...more]);
  assert.deepEqual(told.alice, [{ peer: 'carol', ours: 'x25519', theirs: 'p256' }], 'once, and not with each message');
  assert.deepEqual(told.carol, [{ peer: 'alice', ours: 'p256', theirs: 'x25519' }]);
  for (const suite of ['P-256', '']) assert.equal(await codeOf(createApp({ ...settings, suite })), 'INVALID_CONFIG');
});

test('the next message, one handler after the other: each message once, in order, none lost', async (t) => {
  const { app } = await at(t);
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const count = 2_000;
  const next = () => new Promise((resolve) => {
    const off = bob.onMessage((message) => {
      off();
      resolve(message.content);
    });
  });
  const sent = alice.sendMany(Array.from({ length: count }, (_, number) => ({ to: 'bob', content: number })));
  const got = [];
  while (got.length < count) got.push(await next());
  await sent;
  assert.deepEqual(got, Array.from({ length: count }, (_, number) => number));
  // The last one is settled when its handler has returned.
  while (bob.unconsumed > 0) await new Promise(setImmediate);
});

test('an iteration that ended gives nothing more, and an iterator that asks for nothing keeps nothing', async (t) => {
  const { app } = await at(t);
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const count = 300;
  const idle = bob.messages();
  const sent = alice.sendMany(Array.from({ length: count }, (_, number) => ({ to: 'bob', content: number })));
  const got = [];
  while (got.length < count) {
    const loop = bob.messages();
    got.push((await loop.next()).value.content);
    await loop.return();
    assert.equal((await loop.next()).done, true);
  }
  await sent;
  assert.deepEqual(got, Array.from({ length: count }, (_, number) => number));
  await idle.return();
});

test('a handler that fails keeps the message from none of the others', async (t) => {
  const { app } = await at(t);
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const failed = new Promise((resolve) => bob.on('handlerFailed', resolve));
  bob.onMessage(() => { throw new Error('mine'); });
  bob.onMessage(async () => { throw new Error('mine, too'); });
  const got = new Promise((resolve) => bob.onMessage((message) => resolve(message.content)));
  await alice.send('bob', 'for all');
  assert.equal(await got, 'for all');
  assert.equal((await failed).error.message, 'mine');
});

test('app.close() from inside a handler consumes its message, and what a handler left behind is not inside', async (t) => {
  const relay = await startMockRelay({ port: 0 });
  t.after(() => relay.close());
  const settings = { appToken: 'stvor_x', relayUrl: relay.url, dataDir: directory() };
  const app = await createApp(settings);
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const handled = new Promise((resolve) => bob.onMessage(async () => {
    await app.close();
    resolve();
  }));
  await alice.send('bob', 'one');
  await handled;
  await app.close();
  const again = await createApp(settings);
  const [anna, bert] = [await again.connect('alice'), await again.connect('bob')];
  assert.equal(bert.unconsumed, 0);
  const later = new Promise((resolve) => bert.onMessage(() => {
    setTimeout(async () => {
      await bert.close();
      resolve(bert.state);
    }, 20);
  }));
  await anna.send('bob', 'two');
  assert.equal(await later, 'closed');
  await again.close();
});

test('a handler that never ends holds close up to the timeout, and its message comes again', async (t) => {
  const relay = await startMockRelay({ port: 0 });
  t.after(() => relay.close());
  const settings = { appToken: 'stvor_x', relayUrl: relay.url, dataDir: directory() };
  const app = await createApp({ ...settings, timeout: 300 });
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const started = new Promise((resolve) => bob.onMessage(() => {
    resolve();
    return new Promise(() => {});
  }));
  await alice.send('bob', 'one');
  await started;
  await app.close();
  const again = await createApp(settings);
  assert.deepEqual(contents(await take(await again.connect('bob'), 1)), ['one']);
  await again.close();
});

test('JSON arrives digit for digit and key for key, and what JSON would make something else of is refused', async (t) => {
  const { app } = await at(t);
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const values = [{ b: 1, a: 2, 10: 3 }, 1e21, -0.1, ...Array.from({ length: 300 }, () => ({ x: Math.random(), y: Math.random() * 360 - 180 }))];
  const sent = alice.sendMany(values.map((content) => ({ to: 'bob', content })));
  const texts = contents(await take(bob, values.length)).map((content) => JSON.stringify(content));
  assert.deepEqual(texts, values.map((value) => JSON.stringify(value)));
  await sent;
  for (const wrong of [new ArrayBuffer(2), new Float32Array(2), new DataView(new ArrayBuffer(2)), new Map(), new Set(), new Error('x'), Promise.resolve(1), NaN, Infinity]) {
    await assert.rejects(alice.send('bob', wrong), (error) => error.code === 'INVALID_ARGUMENT' && /give /.test(error.message));
  }
  await (await alice.send('bob', new Date(0))).delivered();
  assert.deepEqual(contents(await take(bob, 1)), ['1970-01-01T00:00:00.000Z']);
});

test('a number that was not compared is not noted, and none is shown by trying', async (t) => {
  const { app } = await at(t);
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const digits = (await bob.safetyNumber('alice')).digits;
  assert.equal(await codeOf(alice.verify('bob', digits.replace(/^./, (first) => (first === '1' ? '2' : '1')))), 'SAFETY_NUMBER_MISMATCH');
  assert.equal(await codeOf(alice.verify('bob')), 'SAFETY_NUMBER_NOT_SHOWN');
  await alice.verify('bob', digits.replace(/(.{5})/g, '$1 '));
  assert.equal((await alice.safetyNumber('bob')).verified, true);
});

test('off takes a listener of once off, and a receipt knows to whom its message was', async (t) => {
  const { app } = await at(t);
  const [alice] = [await app.connect('alice'), await app.connect('bob')];
  const told = [];
  const listener = () => told.push('off');
  alice.once('receipt', listener);
  alice.off('receipt', listener);
  alice.once('receipt', () => told.push('once'));
  const receipt = await alice.send('bob', 'hi');
  await receipt.delivered();
  await (await alice.send('bob', 'ho')).delivered();
  assert.deepEqual(told, ['once']);
  assert.equal((await alice.receipt(receipt.id)).to, 'bob');
});

test('what waits in the outbox is sent before the process ends by itself', async (t) => {
  const { relay, app } = await at(t);
  const bob = await app.connect('bob');
  const proxy = createServer((near) => {
    const far = connect(relay.port, '127.0.0.1');
    for (const [from, to] of [[near, far], [far, near]]) {
      from.on('data', (bytes) => setTimeout(() => to.write(bytes), 100));
      from.on('error', () => to.destroy());
      from.on('close', () => setTimeout(() => to.destroy(), 100));
    }
  });
  proxy.listen(0, '127.0.0.1');
  await once(proxy, 'listening');
  t.after(() => proxy.close());
  const program = (count) => write(`
    import { createApp } from '@stvor/sdk';
    const app = await createApp({ appToken: 'stvor_dev_test123', relayUrl: process.env.RELAY, storage: 'memory', timeout: 8_000 });
    const client = await app.connect('alice');
    for (let number = 0; number < ${count}; number += 1) await client.send('bob', number, { waitFor: 'committed' });
    console.log('at the end');
  `);
  const { code, stderr } = await run([program(200)], { env: { RELAY: `ws://127.0.0.1:${proxy.address().port}` } });
  assert.equal(code, 0, stderr);
  assert.deepEqual(contents(await take(bob, 200)), Array.from({ length: 200 }, (_, number) => number));
});

test('a handler that hangs and is taken off keeps nothing from the next, and a loop inside a handler goes on where it was', async (t) => {
  const { bob } = await five(t);
  await new Promise((resolve) => {
    const off = bob.onMessage(() => {
      off();
      resolve();
      return new Promise(() => {});
    });
  });
  const rest = await new Promise((resolve) => {
    const off = bob.onMessage(async (message) => {
      off();
      resolve([message, ...(await take(bob, 3))]);
    });
  });
  assert.deepEqual(contents(rest), [2, 3, 4, 5]);
});

test('once leaves a listener of on where it is, and an app that closes lets no client come up', async (t) => {
  const { relay, app } = await at(t);
  const [alice] = [await app.connect('alice'), await app.connect('bob')];
  let [told, all] = [0, 0];
  const listener = () => { told += 1; };
  alice.on('receipt', () => { all += 1; });
  alice.on('receipt', listener);
  alice.once('receipt', listener);
  await (await alice.send('bob', 'hi')).delivered();
  await (await alice.send('bob', 'ho')).delivered();
  assert.equal(told, all + 1);
  const other = await createApp({ appToken: 'stvor_dev_test123', relayUrl: relay.url, storage: 'memory' });
  const coming = codeOf(other.connect('carol'));
  await other.close();
  assert.equal(await coming, 'CLIENT_NOT_READY');
});

test('node:events waits for events of a client, and a listener goes by either name', async (t) => {
  const { app } = await at(t);
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  const waited = once(alice, 'receipt');
  const never = () => assert.fail('it was taken off');
  alice.addListener('receipt', never);
  alice.removeListener('receipt', never);
  bob.onMessage(() => {});
  await alice.send('bob', 'x');
  assert.equal((await waited).length, 1);
});
