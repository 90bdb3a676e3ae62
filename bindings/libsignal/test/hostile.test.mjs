// Random work over storages that are slow, throw, reject, hang, land late, land and reject, or are builders of queries: no key is used twice, nothing
// is read twice, nothing is lost, and no address is blocked. Each seed is one run.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { group, ours, party, read, require } from './world.mjs';

const { PreKeyWhisperMessage, WhisperMessage } = require('@stvor/libsignal/src/protobufs');
const pause = (millis = 1) => new Promise((resolve) => setTimeout(resolve, millis));
const TIMEOUT = 12;
const STORAGE = ['STORAGE_TIMEOUT', 'STORAGE_FAILED'];

/** Numbers of a seed (mulberry32). */
function random(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

/** A call of a storage that goes as the numbers say. */
const hostile = (act, rnd, { writes, world }) => (...given) => {
  const run = async () => act(...given);
  const what = world.calm ? 0 : rnd();
  if (what < 0.55) return run();
  if (what < 0.65) return pause(rnd() * 6).then(run);
  if (what < 0.7) {
    if (rnd() < 0.5) throw new Error('at once');
    return Promise.reject(new Error('refused'));
  }
  if (what < 0.78) return pause(rnd() * 6).then(() => { throw new Error('refused later'); });
  if (what < 0.82) return { then: (done, failed) => run().then(done, failed) };
  if (what < 0.9) return hangs(run, rnd);
  // It is there, and the answer is lost.
  if (what < 0.92 && writes) return run().then(() => { throw new Error('connection reset'); });
  return run();
};

/** Lands late or never, and tells later or never. */
const hangs = (run, rnd) => {
  const land = TIMEOUT + rnd() * 40;
  const told = land + rnd() * 30;
  const how = rnd();
  return new Promise((done, failed) => {
    const later = (act, millis) => setTimeout(act, millis);
    if (how < 0.5) later(() => run().then((value) => later(() => done(value), told - land)), land);
    else if (how < 0.65) later(() => failed(new Error('refused after all')), told);
    else if (how < 0.8) later(run, land);
    else if (how < 0.9) run().then((value) => later(() => done(value), told));
  });
};

/** What went wrong, for the message of the assertion. */
const list = (seed) => {
  const bad = [];
  return { bad, flag: (...what) => bad.push([seed, ...what].join(' ')) };
};

/** Works at random, at most six calls at a time. */
async function work(steps, rnd, act) {
  const running = new Set();
  for (let step = 0; step < steps; step += 1) {
    const one = act(rnd());
    if (one !== undefined) {
      running.add(one);
      void one.finally(() => running.delete(one));
    }
    if (running.size > 6) await Promise.race(running);
    if (rnd() < 0.3) await pause(rnd() * 4);
  }
  await Promise.all(running);
}

function keyOf({ type, body }) {
  const inner = type === 3 ? Buffer.from(PreKeyWhisperMessage.decode(body.subarray(1)).message) : body;
  const { ephemeralKey, counter } = WhisperMessage.decode(inner.subarray(1, -8));
  return `${ephemeralKey.toString('hex')}:${counter}`;
}

const nameOf = (address) => address.replace(/^also-/, '');
const READS = ['loadSession', 'isTrustedIdentity', 'loadPreKey', 'loadSignedPreKey', 'getOurRegistrationId', 'getOurIdentity'];

async function sessions(seed, { perCall = false, how = 'plain', steps = 110 }) {
  const rnd = random(seed);
  const pick = (all) => all[Math.floor(rnd() * all.length)];
  const { bad, flag } = list(seed);
  const world = { calm: false };
  const executor = new ours.Executor({ storageTimeout: TIMEOUT, backoff: 1 });
  const parties = [party(ours), party(ours)].map((one) => ({ ...one, isTrustedIdentity: async () => true }));
  const names = [`hostile-a${seed}.1`, `hostile-b${seed}.1`];
  const storages = parties.map((one) => {
    const also = {};
    const both = async (address, record, id) => {
      await one.storeSession(address, record);
      if (id !== undefined) await one.removePreKey(id);
    };
    if (how === 'atomic') also.storeSessionAndRemovePreKey = both;
    if (how === 'canonical') {
      // One row for two names of a peer; which it is, is asked of the storage, too.
      also.loadSession = (address) => one.loadSession(nameOf(address));
      also.storeSession = (address, record) => one.storeSession(nameOf(address), record);
    }
    if (how === 'commit') also.commit = ({ address, record, removePreKey }) => both(address, record, removePreKey);
    const all = { ...one, ...also };
    const wrapped = {};
    if (how === 'canonical') wrapped.canonicalAddress = hostile(nameOf, rnd, { world });
    for (const name of READS) wrapped[name] = hostile((...given) => all[name](...given), rnd, { world });
    for (const name of ['storeSession', 'removePreKey', ...Object.keys(also).filter((name) => !READS.includes(name))]) wrapped[name] = hostile((...given) => all[name](...given), rnd, { writes: true, world });
    const scope = {};
    return () => (perCall ? { ...wrapped, scope } : wrapped);
  });
  const addressOf = (who) => ours.ProtocolAddress.from(how === 'canonical' && rnd() < 0.5 ? `also-${names[who]}` : names[who]);
  const cipher = (who) => new ours.SessionCipher(storages[who](), addressOf(1 - who), { executor });
  const [mail, keys] = [[[], []], new Set()];
  let [sent, bundles] = [0, 0];

  async function send(who) {
    const text = `message ${(sent += 1)}`.padEnd(20);
    try {
      const message = await cipher(who).encrypt(Buffer.from(text));
      const key = keyOf(message);
      if (keys.has(key)) flag('a key is used twice', text);
      keys.add(key);
      mail[1 - who].push({ message, text, done: false, busy: false });
    } catch ({ code, message }) {
      if (![...STORAGE, 'NO_SESSION'].includes(code)) flag('not sent', code, message);
    }
  }
  async function take(who, one) {
    if (one.busy) return;
    one.busy = true;
    try {
      const text = await read(cipher(who), one.message);
      if (one.done) flag('read twice', text);
      if (text !== one.text) flag('another text', text);
      one.done = true;
    } catch ({ code, message }) {
      const expected = one.done ? [...STORAGE, 'DUPLICATE', 'REPLAY'] : STORAGE;
      if (!expected.includes(code)) flag('lost', one.text, code, message);
    }
    one.busy = false;
  }
  async function start(who) {
    bundles += 1;
    const bundle = parties[1 - who].bundle(rnd() < 0.8 ? bundles : undefined, bundles);
    const builder = new ours.SessionBuilder(storages[who](), addressOf(1 - who), { executor });
    return builder.initOutgoing(bundle).then(() => true, () => false);
  }

  while (!(await start(0)));
  await work(steps, rnd, (what) => {
    const who = rnd() < 0.5 ? 0 : 1;
    if (what < 0.45) return send(who);
    if (what > 0.97) return start(who);
    const open = mail[who].filter((one) => !one.done || rnd() < 0.02);
    return open.length > 0 ? take(who, rnd() < 0.7 ? open[0] : pick(open)) : undefined;
  });
  world.calm = true;
  await pause(150);
  for (const who of [0, 1]) {
    for (const one of mail[who]) {
      for (let tries = 0; tries < 4 && !one.done; tries += 1) {
        await take(who, one);
        if (!one.done) await pause(30);
      }
      if (!one.done) flag('never read', one.text);
    }
    for (let tries = 0; ; tries += 1) {
      try {
        assert.equal(await read(cipher(1 - who), await cipher(who).encrypt(Buffer.from('the end'))), 'the end');
        break;
      } catch (error) {
        if (tries > 20) {
          flag('blocked', error.code, error.message);
          break;
        }
        await pause(2 * TIMEOUT);
      }
    }
  }
  return bad;
}

async function groups(seed, { perCall = false, steps = 140 }) {
  const rnd = random(seed);
  const pick = (all) => all[Math.floor(rnd() * all.length)];
  const { bad, flag } = list(seed);
  const world = { calm: false };
  const executor = new ours.Executor({ storageTimeout: TIMEOUT, backoff: 1 });
  const store = () => {
    const rows = new Map();
    const wrapped = {
      loadSenderKey: hostile((name) => rows.get(String(name)), rnd, { world }),
      storeSenderKey: hostile((name, record) => void rows.set(String(name), JSON.stringify(record.serialize())), rnd, { writes: true, world }),
    };
    const scope = {};
    return () => (perCall ? { ...wrapped, scope } : wrapped);
  };
  const [alice, bob] = [store(), store()];
  const name = new group.SenderKeyName(`hostile ${seed}`, { id: 'alice', deviceId: 1 });
  const [write, take] = [() => new group.GroupCipher(alice(), name, { executor }), () => new group.GroupCipher(bob(), name, { executor })];
  const insist = async (act) => {
    for (;;) {
      try {
        return await act();
      } catch ({ code }) {
        if (!STORAGE.includes(code)) return flag('not distributed', code);
      }
    }
  };
  const distribute = async () => {
    const made = await insist(() => new group.GroupSessionBuilder(alice(), { executor }).create(name));
    await insist(() => new group.GroupSessionBuilder(bob(), { executor }).process(name, made));
  };
  const [mail, keys] = [[], new Set()];
  let sent = 0;
  const send = async () => {
    const text = `message ${(sent += 1)}`;
    try {
      const message = await write().encrypt(Buffer.from(text));
      const iteration = new group.SenderKeyMessage(message).getIteration();
      if (keys.has(iteration)) flag('a key is used twice', text);
      keys.add(iteration);
      mail.push({ message, text, done: false, busy: false });
    } catch ({ code }) {
      if (!STORAGE.includes(code)) flag('not sent', code);
    }
  };
  const open = async (one) => {
    if (one.busy) return;
    one.busy = true;
    try {
      const text = String(await take().decrypt(one.message));
      if (one.done) flag('read twice', text);
      if (text !== one.text) flag('another text', text);
      one.done = true;
    } catch ({ code }) {
      if (!(one.done ? [...STORAGE, 'DUPLICATE'] : STORAGE).includes(code)) flag('lost', one.text, code);
    }
    one.busy = false;
  };
  await distribute();
  await work(steps, rnd, (what) => {
    if (what < 0.45) return send();
    if (what > 0.97) return distribute();
    const open_ = mail.filter((one) => !one.done || rnd() < 0.02);
    return open_.length > 0 ? open(rnd() < 0.7 ? open_[0] : pick(open_)) : undefined;
  });
  world.calm = true;
  await pause(150);
  for (const one of mail) {
    for (let tries = 0; tries < 5 && !one.done; tries += 1) {
      await open(one);
      if (!one.done) await pause(25);
    }
    if (!one.done) flag('never read', one.text);
  }
  return bad;
}

const SESSIONS = [{}, { how: 'atomic', perCall: true }, { how: 'commit' }, { how: 'commit', perCall: true }, { perCall: true }, { how: 'canonical' }, { how: 'canonical', perCall: true }];

test('sessions over hostile storages', async () => {
  const runs = SESSIONS.flatMap((options, at) => [1, 2, 3].map((seed) => sessions(100 * at + seed, options)));
  assert.deepEqual((await Promise.all(runs)).flat(), []);
});

test('groups over hostile stores', async () => {
  const runs = [1, 2, 3, 4, 5, 6].map((seed) => groups(seed, { perCall: seed % 2 === 0 }));
  assert.deepEqual((await Promise.all(runs)).flat(), []);
});
