// Memory and cost: many messages on one low-level session, idle clients, messages from client to client and to groups through relays of this
// process, in memory and on disk: node bench/soak.mjs [--tarballs DIRECTORY] [--messages N] [--clients N] [--sends N] [--single N]
// --sends N is how many go from client to client in each flow (and, kept by nobody, on disk), --single N how many in memory in calls of their own.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';

const { values: args } = parseArgs({
  options: {
    tarballs: { type: 'string' },
    messages: { type: 'string', default: '1000000' },
    clients: { type: 'string', default: '200' },
    sends: { type: 'string', default: '20000' },
    single: { type: 'string' },
  },
});
const TARBALLS = resolve(args.tarballs ?? new URL('../../../target/npm', import.meta.url).pathname);
const project = mkdtempSync(join(tmpdir(), 'stvor-soak-'));
process.on('exit', () => rmSync(project, { recursive: true, force: true }));
process.env.XDG_DATA_HOME = join(project, 'data');
writeFileSync(join(project, 'package.json'), '{ "private": true }\n');
const tarballs = readdirSync(TARBALLS).filter((name) => name.startsWith('stvor-sdk-') && name.endsWith('.tgz')).map((name) => join(TARBALLS, name));
execFileSync('npm', ['install', '--offline', '--omit=optional', '--no-audit', '--no-fund', ...tarballs], { cwd: project, stdio: ['ignore', 'ignore', 'inherit'] });
const require = createRequire(join(project, 'x.js'));
const { decryptMessage, encryptMessage, establishSession, generateKeyPair } = require('@stvor/sdk/ratchet');
const { createApp } = require('@stvor/sdk');
const { startMockRelay } = require('@stvor/sdk/mock-relay');
const native = require(require(join(project, 'node_modules/@stvor/sdk/dist/native.js')).platformPackage().name);

const resident = () => { globalThis.gc?.(); return process.memoryUsage.rss() / 2 ** 20; };
const cpu = (from) => { const { user, system } = process.cpuUsage(from); return user + system; };

const total = Number(args.messages);
// Clients first: what the long loop leaves behind would hide them.
const relay = await startMockRelay({ port: 0 });
const app = await createApp({ appToken: 'stvor_soak', relayUrl: relay.url, storage: 'memory' });
await app.connect('first');
const before = resident();
const clients = [];
for (let number = 0; number < Number(args.clients); number += 1) clients.push(await app.connect(`client${number}`));
console.log(`${clients.length} idle clients in memory, with the relay's share: ${(((resident() - before) * 1024) / clients.length).toFixed(0)} KiB each`);

const [alice, bob] = [generateKeyPair(), generateKeyPair()];
const { session: hers, handshake } = establishSession(alice, bob.bundle);
const { session: his } = establishSession(bob, handshake);
const text = 'x'.repeat(100);
const marks = [];
for (let count = 0; count < total; count += 1) {
  const [from, to] = Math.floor(count / 40) % 2 ? [his, hers] : [hers, his];
  if (decryptMessage(to, encryptMessage(from, text)) !== text) throw new Error('it is another text');
  if (count % (total / 10) === total / 10 - 1) marks.push(Math.round(resident()));
  if (count % 10_000 === 0) await new Promise(setImmediate);
}
console.log(`${total} messages on one session, MiB resident after each tenth: ${marks.join(' ')}`);

const SENDS = Number(args.sends);
/** Messages from client to client: what each costs, both clients and the relay, and memory as they flow. */
async function flow(what, { url, storage, batch, retention, count: sends = SENDS }) {
  const place = await createApp({ appToken: 'stvor_soak', relayUrl: url, storage, retention });
  const [from, to] = [await place.connect(`from-${what}`), await place.connect(`to-${what}`)];
  let got = 0;
  const all = new Promise((done) => to.onMessage(() => { got += 1; if (got === sends) done(); }));
  const [start, used] = [performance.now(), process.cpuUsage()];
  const marks = [];
  for (let sent = 0; sent < sends; sent += 100) {
    if (batch) await from.sendMany(Array.from({ length: 100 }, () => ({ to: `to-${what}`, content: text })));
    else await Promise.all(Array.from({ length: 100 }, () => from.send(`to-${what}`, text)));
    if (sent >= (sends / 10) * marks.length) marks.push(Math.round(resident()));
  }
  await all;
  const seconds = (performance.now() - start) / 1000;
  const each = cpu(used) / sends;
  marks.push(Math.round(resident()));
  console.log(`${sends} messages, ${what}: ${(sends / seconds).toFixed(0)}/s, ${each.toFixed(0)} us of CPU each (both clients and the relay), MiB resident at the start, at each tenth, and when all have arrived: ${marks.join(' ')}`);
  await place.close();
  return each;
}

/** One message to a group, to each of its members. */
async function groups(what, { url, storage }) {
  const members = Array.from({ length: 10 }, (_, number) => `member${number}-${storage}`);
  const place = await createApp({ appToken: 'stvor_soak', relayUrl: url, storage });
  const clients = [];
  for (const name of members) clients.push(await place.connect(name));
  const group = await clients[0].createGroup('ten', members.slice(1));
  const count = Math.max(100, Math.round(Math.min(SENDS, 20_000) / 20));
  let got = 0;
  const all = new Promise((done) => {
    for (const client of clients.slice(1)) client.onMessage(() => { got += 1; if (got === count * (members.length - 1)) done(); });
  });
  const used = process.cpuUsage();
  for (let sent = 0; sent < count; sent += 50) {
    await Promise.all(Array.from({ length: Math.min(50, count - sent) }, () => group.send(text)));
  }
  await all;
  console.log(`${count} messages to a group of ${members.length}, ${what}: ${(cpu(used) / count).toFixed(0)} us of CPU each, ` +
    `${(cpu(used) / got).toFixed(0)} us a member (all clients and the relay)`);
  await place.close();
}

/** A first message to a user whom its sender has never met: bundle, handshake, session, and the answer that it is there. */
async function firsts(what, { url, storage }) {
  const place = await createApp({ appToken: 'stvor_soak', relayUrl: url, storage });
  const from = await place.connect(`first-${storage}`);
  const names = Array.from({ length: 100 }, (_, number) => `fresh${number}-${storage}`);
  for (const name of names) (await place.connect(name)).onMessage(() => {});
  const used = process.cpuUsage();
  const waits = [];
  for (const name of names) {
    const since = performance.now();
    await (await from.send(name, text)).delivered();
    waits.push(performance.now() - since);
  }
  const median = waits.sort((a, b) => a - b)[waits.length >> 1];
  console.log(`${names.length} first messages to users never met, ${what}: ${(cpu(used) / names.length / 1000).toFixed(1)} ms of CPU each ` +
    `(both clients and the relay), delivered after ${median.toFixed(1)} ms (the median)`);
  await place.close();
}

/** Messages of each measurement beside Rust. */
const BESIDE = Math.min(SENDS, 20_000);

/** CPU of a message from Rust to Rust, in this process. */
async function fromRust(url) {
  const used = process.cpuUsage();
  await native.benchSends(url, BESIDE);
  return cpu(used) / BESIDE;
}

/** The same, sent by JavaScript. */
async function sentHere(url) {
  const place = await createApp({ appToken: 'stvor_bench', relayUrl: url, storage: 'memory' });
  const from = await place.connect('sender');
  const used = process.cpuUsage();
  const taken = native.benchTakes(url, BESIDE);
  for (let sent = 0; sent < BESIDE; sent += 100) await Promise.all(Array.from({ length: 100 }, () => from.send('rust-taker', text)));
  await taken;
  const each = cpu(used) / BESIDE;
  await place.close();
  return each;
}

/** The same, taken by a handler in JavaScript. */
async function handledHere(url) {
  const place = await createApp({ appToken: 'stvor_bench', relayUrl: url, storage: 'memory' });
  const to = await place.connect('taker');
  let got = 0;
  const all = new Promise((done) => to.onMessage(() => { got += 1; if (got === BESIDE) done(); }));
  const used = process.cpuUsage();
  await native.benchSends(url, BESIDE, 'taker');
  await all;
  const each = cpu(used) / BESIDE;
  await place.close();
  return each;
}

const durable = await startMockRelay({ port: 0, database: join(project, 'relay.db') });
const single = Number(args.single ?? args.sends);
const one = await flow('one call each, stores in memory, relay in memory', { url: relay.url, storage: 'memory', count: single });
const many = await flow('sendMany, stores in memory, relay in memory', { url: relay.url, storage: 'memory', batch: true });
console.log(`a call for each costs ${(one - many).toFixed(0)} us more than a batch`);
// Where the package was built with the feature `bench`.
if (native.benchSends) {
  // The three one after the other, several times: what others on the machine do meanwhile touches all alike. The least of each counts.
  const runs = { rust: [], send: [], handler: [] };
  for (let round = 0; round < 5; round += 1) {
    for (const [which, run] of Object.entries({ rust: fromRust, send: sentHere, handler: handledHere })) {
      const mock = await startMockRelay({ port: 0 });
      runs[which].push(await run(mock.url));
      await mock.close();
    }
  }
  const [rust, send, handler] = Object.values(runs).map((all) => Math.min(...all));
  console.log(`a message from Rust to Rust: ${rust.toFixed(0)} us of CPU (both clients and the relay); \`send\` from JavaScript adds ` +
    `${(send - rust).toFixed(0)} us, a handler in JavaScript ${(handler - rust).toFixed(0)} us`);
}

await flow('stores on disk, relay in memory', { url: relay.url, storage: 'disk' });
await flow('stores on disk, relay on disk', { url: durable.url, storage: 'disk' });
// What no history keeps: if memory grows here, something is not let go.
await flow('stores on disk that keep no history, relay in memory', { url: relay.url, storage: 'disk', retention: 0 });
await groups('stores in memory, relay in memory', { url: relay.url, storage: 'memory' });
await groups('stores on disk, relay on disk', { url: durable.url, storage: 'disk' });
await firsts('stores on disk, relay on disk', { url: durable.url, storage: 'disk' });
await app.close();
await relay.close();
await durable.close();
