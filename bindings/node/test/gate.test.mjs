// The queue before the engine, by itself: whatever comes and goes, what waits stays within its bounds, users keep their order, and nobody is forgotten.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { project, require } from './project.mjs';

const { Gate, gateOptions } = require(join(project, 'node_modules/@stvor/sdk/dist/gate.js'));

/** Numbers that look random, the same for each seed. */
function random(seed) {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

async function run(seed) {
  const rnd = random(seed);
  const limits = gateOptions({
    maxPending: 1 + rnd(8), maxQueued: 1 + rnd(12), maxQueuedPerPeer: 1 + rnd(6), maxQueuedBytes: 1 + rnd(60), onPressure: rnd(2) ? 'wait' : 'reject',
  });
  const gate = new Gate(limits, () => {});
  const users = ['a', 'b', 'c'].slice(0, 1 + rnd(3));
  const most = Math.max(1, Math.ceil(limits.maxPending / 4));
  let [refused, gone] = [0, 0];
  const waiting = new Set();
  const running = [];
  const last = new Map();
  const begins = (peer, weight, number) => {
    assert.ok(number > (last.get(peer) ?? -1), `${seed}: ${number} of ${peer} is overtaken`);
    last.set(peer, number);
    running.push({ peer, weight });
  };
  const settled = () => new Promise(setImmediate);
  const held = (of) => [...waiting].filter(of).reduce(([messages, bytes], { sizes }) => [messages + sizes.length, bytes + sizes.reduce((a, b) => a + b, 0)], [0, 0]);
  const check = () => {
    // Those that wait for room are as many messages, and as many bytes, again.
    const again = limits.onPressure === 'wait' ? 2 : 1;
    const [messages, bytes] = held(() => true);
    assert.ok(messages <= again * limits.maxQueued && bytes <= again * limits.maxQueuedBytes, `${seed}: ${messages} messages, ${bytes} bytes`);
    for (const user of users) {
      const [messages, bytes] = held(({ peer }) => peer === user);
      if (again === 1) assert.ok(messages <= limits.maxQueuedPerPeer, `${seed}: ${messages} messages of ${user}`);
      // A quarter, or one message of any size.
      const share = Math.max(limits.maxQueuedBytes / 4, 19);
      assert.ok(bytes <= again * share, `${seed}: ${bytes} bytes of ${user}`);
    }
    const under = running.reduce((sum, { weight }) => sum + weight, 0);
    assert.ok(under < limits.maxPending + most, `${seed}: ${under} are under way`);
    // Nobody waits for a turn while there are places: then somebody new may go, too.
    assert.ok(under >= limits.maxPending || gate.isFree('new'), `${seed}: ${under} are under way, and others wait for nothing`);
  };
  for (let step = 0; step < 300; step += 1) {
    const what = rnd(10);
    if (what < 5) {
      const peer = users[rnd(users.length)];
      const sizes = Array.from({ length: 1 + rnd(most) }, () => rnd(20));
      if (gate.tryEnter(peer, sizes.length)) {
        begins(peer, sizes.length, step * 100);
      } else {
        const { places, full } = gate.queue(peer, sizes);
        let from = 0;
        for (const place of places) {
          const one = { peer, place, sizes: sizes.slice(from, from + place.weight) };
          const number = step * 100 + from;
          waiting.add(one);
          place.entered.then(() => begins(peer, place.weight, number), () => { gone += place.weight; }).finally(() => waiting.delete(one));
          from += place.weight;
        }
        refused += sizes.length - from;
        assert.equal(full !== undefined, from < sizes.length, `${seed}`);
      }
    } else if (what < 9 && running.length > 0) {
      const [{ peer, weight }] = running.splice(rnd(running.length), 1);
      gate.leave(peer, weight);
    } else if (waiting.size > 0) {
      [...waiting][rnd(waiting.size)].place.leave(new Error('aborted'));
    }
    await settled();
    check();
  }
  if (rnd(4) === 0) await gate.open();
  while (running.length > 0) {
    const { peer, weight } = running.pop();
    gate.leave(peer, weight);
    await settled();
  }
  assert.equal(waiting.size, 0, `${seed}: forgotten`);
  assert.ok(users.every((user) => gate.tryEnter(user)) || users.length > limits.maxPending, `${seed}: something is still counted`);
  return { refused, gone };
}

test('five hundred random days of a gate', async () => {
  let [refused, gone] = [0, 0];
  for (let seed = 1; seed <= 500; seed += 1) {
    const day = await run(seed);
    refused += day.refused;
    gone += day.gone;
  }
  assert.ok(refused > 1_000 && gone > 1_000, `${refused} refused, ${gone} taken out`);
});
