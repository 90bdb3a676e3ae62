// What an application is told when a conversation meets a fault in the engine, and what becomes of its messages.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { at, project, require, run, write } from './project.mjs';

const { native } = require(join(project, 'node_modules/@stvor/sdk/dist/native.js'));
const { failAfterEncrypting } = native();
const faulty = failAfterEncrypting ? {} : { skip: 'what is released has no faults on purpose: build with --profile dev' };

test('a conversation that meets a fault is begun afresh, others go on, and no message is lost', faulty, async (t) => {
  const { app } = await at(t);
  const [alice, bob, carol] = [await app.connect('alice'), await app.connect('bob'), await app.connect('carol')];
  const taken = [];
  bob.onMessage(({ content }) => { taken.push(content); });
  const sent = (to, content) => alice.send(to, content).then((receipt) => receipt.delivered());
  for (const user of ['bob', 'carol']) await sent(user, 'before');
  for (const attempt of [1, 2]) {
    const told = (name) => new Promise((resolve) => { alice.once(name, resolve); });
    const [failed, revived] = [told('conversationFailed'), told('conversationRevived')];
    failAfterEncrypting();
    const lost = sent('bob', `lost in fault ${attempt}`);
    const { retryAfter, ...rest } = await failed;
    assert.deepEqual(rest, { peer: 'bob', attempt });
    assert.ok(retryAfter >= 500, `${retryAfter} ms`);
    await sent('carol', 'meanwhile');
    assert.deepEqual(await revived, { peer: 'bob' });
    await Promise.all([lost, sent('bob', `after it ${attempt}`)]);
  }
  assert.deepEqual(taken.sort(), ['after it 1', 'after it 2', 'before', 'lost in fault 1', 'lost in fault 2']);
  await carol.close();
});

test('a panic in a call or in a promise is an error with a code, says nothing of its words, and the process goes on', faulty, async () => {
  const ended = await run([write(`
    const { native } = require('./node_modules/@stvor/sdk/dist/native.js');
    const { failure } = require('./node_modules/@stvor/sdk/dist/errors.js');
    const { panicAtOnce, panicLater } = native();
    const told = (thrown) => { const { name, code, message } = failure(thrown); console.log(name, code, message); };
    try { panicAtOnce('secret words'); } catch (thrown) { told(thrown); }
    panicLater('secret words').catch(told).then(() => panicLater('')).then(() => console.log('lives'));
  `, 'cjs')]);
  assert.deepEqual([ended.code, ended.signal, ended.stderr], [0, null, '']);
  const [called, promised, lives] = ended.stdout.split('\n');
  assert.match(called, /^StvorError INTERNAL the SDK met a defect of its own; please report it/);
  assert.match(promised, /^StvorError INTERNAL the SDK met a defect of its own at .*faults\.rs:\d+; please report it/);
  assert.equal(lives, 'lives');
  assert.doesNotMatch(ended.stdout, /secret/);
});
