// The code blocks of the product documentation, word for word but for the ports.
import assert from 'node:assert/strict';
import { createServer } from 'node:net';
import { test } from 'node:test';
import { documentation, directory, load, run, start, write } from './project.mjs';

const { startMockRelay } = await load('@stvor/sdk/mock-relay');

async function relay(t, tokens = []) {
  const started = await startMockRelay({ port: 0, tokens });
  t.after(() => started.close());
  return started;
}

/** A port that was free a moment ago: the block names its port. */
const free = () => new Promise((resolve) => {
  const server = createServer().listen(0, () => {
    const { port } = server.address();
    server.close(() => resolve(port));
  });
});

/** Each block is run as somebody new: with stores of its own. */
function block(t, text, extension = 'mjs', home = directory()) {
  const started = start([write(text, extension)], { env: { XDG_DATA_HOME: home } });
  t.after(() => started.child.kill());
  return started;
}

test('quick start', async (t) => {
  const { port } = await relay(t, ['sk_live_xxx']);
  const app = block(t, documentation('quick-start.mjs', { 3002: port }));
  assert.equal(await app.line(/✅/), '✅ Sent');
  assert.equal(await app.line(/📩/), '📩 alice@example.com: Hello! 🔐');
});

test('minimal example: a peer that never comes is RECIPIENT_TIMEOUT', async (t) => {
  const { port } = await relay(t, ['demo_token']);
  const app = await block(t, documentation('minimal.mjs', { 8080: port })).ended;
  assert.match(app.stderr, /StvorError: .*peer@test\.com.* \[RECIPIENT_TIMEOUT\]/);
  assert.equal(app.code, 1);
});

test('mock relay from npx, with curl of health and status', async (t) => {
  const served = start(['node_modules/@stvor/sdk/bin.js', 'mock-relay'], { env: { STVOR_MOCK_PORT: '0', STVOR_MOCK_VERBOSE: '1' } });
  t.after(() => served.child.kill());
  const port = /ws:\/\/localhost:(\d+)/.exec(await served.line(/ws:/))[1];
  const app = block(t, documentation('mock-relay.mjs', { 4444: port }));
  assert.equal(await app.line(/alice/), 'alice: Hello from local dev! 🔐');
  const get = async (path) => (await fetch(`http://127.0.0.1:${port}${path}`)).json();
  assert.equal((await get('/health')).status, 'ok');
  assert.deepEqual(await get('/status/alice'), { userId: 'alice', online: true, hasPublicKey: true });
  served.child.kill('SIGTERM');
  const { code } = await served.ended;
  // Elsewhere it is asked to end; Windows just ends it.
  if (process.platform === 'win32') return;
  assert.equal(code, 0);
  assert.match(served.stderr, / 0 connections, 0 users\n/);
});

test('npx runs it, from the package as it is installed', { skip: process.platform === 'win32' && 'no groups of processes there' }, async (t) => {
  // Nothing is looked up: it is there. In a group of its own, for npx starts others.
  const served = start(['--offline', '@stvor/sdk', 'mock-relay'], { command: 'npx', env: { STVOR_MOCK_PORT: '0' }, detached: true });
  t.after(() => process.kill(-served.child.pid, 'SIGKILL'));
  const port = /ws:\/\/localhost:(\d+)/.exec(await served.line(/ws:/))[1];
  assert.equal((await (await fetch(`http://127.0.0.1:${port}/health`)).json()).status, 'ok');
});

test('the mock relay on the command line says how it is used, and outlives whoever reads what it says', async (t) => {
  const bin = 'node_modules/@stvor/sdk/bin.js';
  for (const words of [['-h'], ['mock-relay', '--help'], ['help']]) {
    const { code, stdout, stderr } = await start([bin, ...words]).ended;
    assert.deepEqual([code, stdout.split('\n')[0], stderr], [0, 'usage: npx @stvor/sdk mock-relay', '']);
  }
  for (const words of [[], ['mock-relay', 'x']]) assert.equal((await start([bin, ...words]).ended).code, 2);
  for (const port of ['abc', '65536']) {
    const { code, stderr } = await start([bin, 'mock-relay'], { env: { STVOR_MOCK_PORT: port } }).ended;
    assert.equal(code, 2);
    assert.match(stderr, /STVOR_MOCK_PORT is a port number/);
  }
  const served = start([bin, 'mock-relay'], { env: { STVOR_MOCK_PORT: '0', STVOR_MOCK_VERBOSE: '1' } });
  t.after(() => served.child.kill());
  const port = /ws:\/\/localhost:(\d+)/.exec(await served.line(/ws:/))[1];
  for (const stream of [served.child.stdout, served.child.stderr]) stream.destroy();
  const app = block(t, documentation('mock-relay.mjs', { 4444: port }));
  assert.equal(await app.line(/alice/), 'alice: Hello from local dev! 🔐');
  assert.equal((await (await fetch(`http://127.0.0.1:${port}/health`)).json()).status, 'ok');
});

test('ES modules', async (t) => {
  const { port } = await relay(t);
  const ended = await block(t, documentation('esm.mjs', { 4444: port })).ended;
  assert.deepEqual(ended, { code: 0, signal: null, stdout: '', stderr: '' });
});

test('CommonJS', async (t) => {
  const { port } = await relay(t);
  const text = `(async () => {\n${documentation('commonjs.cjs', { 4444: port })}\nconsole.log(typeof app.connect);\n})();`;
  assert.deepEqual(await block(t, text, 'cjs').ended, { code: 0, signal: null, stdout: 'function\n', stderr: '' });
});

test('migration check by node -e', async (t) => {
  const { port } = await relay(t);
  // Word for word; before 20.19 and 22.7 `node -e` takes no `import` without being told.
  const [major, minor] = process.versions.node.split('.').map(Number);
  const told = major > 22 || (major === 22 && minor >= 7) || (major === 20 && minor >= 19) ? [] : ['--input-type=module'];
  const ended = await run([...told, '-e', documentation('migration.mjs', { 4444: port })], { env: { XDG_DATA_HOME: directory() } });
  assert.equal(ended.stdout, '✅ E2EE работает: Hello from v3.0! 🔐\n', ended.stderr);
  assert.equal(ended.code, 0);
});

/** The four lines, in an order that the program allows: who gets a message and who sent it hear of it independently. */
async function fourLines(app, again = false) {
  const [sent, answered, bob, alice] = [
    '✅ Alice sent message',
    '✅ Bob sent message',
    '📩 [Bob] from alice@example.com: Hello Bob! This is E2EE! 🔐',
    '📩 [Alice] from bob@example.com: Hi Alice! Got it! 🎉',
  ];
  for (const line of [/Alice sent/, /Bob sent/, /\[Bob\]/, /\[Alice\]/]) await app.line(line);
  // What was on its way when the first run was ended comes, too.
  if (again) return;
  const lines = app.stdout.split('\n');
  assert.deepEqual([...lines].sort(), ['', sent, answered, bob, alice].sort());
  for (const later of [answered, alice]) assert.ok(lines.indexOf(sent) < lines.indexOf(later), app.stdout);
}

test('full working example, at our own relay', async (t) => {
  const { port } = await relay(t);
  const app = block(t, documentation('app.mjs', { 8080: port }));
  await fourLines(app);
});

test('full working example: the relay of the documentation and the app, two processes', async (t) => {
  const port = await free();
  const relay = block(t, documentation('relay-server.mjs', { 8080: port }));
  await relay.line(/Relay running on/);
  const [source, home] = [documentation('app.mjs', { 8080: port }), directory()];
  const app = block(t, source, 'mjs', home);
  await fourLines(app);
  assert.match(app.stderr, /STVOR_RELAY_NOT_DURABLE/);
  // It does not end by itself: whoever tries it presses Ctrl-C, and tries again.
  app.child.kill('SIGINT');
  await app.ended;
  await fourLines(block(t, source, 'mjs', home), true);
});

test('the relay of the documentation is refused in production mode, and over TLS', async (t) => {
  const port = await free();
  const relay = block(t, documentation('relay-server.mjs', { 8080: port }));
  await relay.line(/Relay running on/);
  const { createApp } = await load('@stvor/sdk');
  const settings = { appToken: 'stvor_x', relayUrl: `ws://localhost:${port}`, timeout: 1_000 };
  await assert.rejects(createApp({ ...settings, dataDir: directory(), passphrase: 'x', productionMode: true }), (error) => {
    assert.equal(error.code, 'NOT_FOR_PRODUCTION');
    assert.deepEqual(error.findings.map(({ code }) => code), ['relay_without_tls', 'development_token']);
    return true;
  });
  for (const wrong of [{ productionMode: true, dataDir: directory() }, { relayUrl: 'wss://localhost:1' }]) {
    await assert.rejects(createApp({ ...settings, storage: wrong.dataDir ? undefined : 'memory', legacyRelay: true, ...wrong }), (error) => error.code === 'INVALID_CONFIG');
  }
});

test('a relay that is not there is RELAY_UNAVAILABLE, with what to do', async () => {
  const { createApp } = await load('@stvor/sdk');
  const app = await createApp({ appToken: 'stvor_x', relayUrl: 'ws://localhost:1', storage: 'memory', timeout: 1_000 });
  await assert.rejects(app.connect('alice'), (error) => {
    assert.match(String(error), /^StvorError: .* \[RELAY_UNAVAILABLE\]$/);
    assert.match(error.action, /Check the URL.*npx @stvor\/sdk mock-relay/);
    // There is no client yet that could.
    assert.doesNotMatch(error.message, /keeps trying/);
    assert.equal(error.retryable, true);
    return true;
  });
});
