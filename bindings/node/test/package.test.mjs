// The package as it is installed: entry points, types, errors, what is missing.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { pathToFileURL } from 'node:url';
import { codeOf, directory, documentation, load, project, require, run, sdk, write } from './project.mjs';

const installed = join(project, 'node_modules/@stvor');

test('both module systems give one implementation', async () => {
  for (const entry of ['@stvor/sdk', '@stvor/sdk/ratchet', '@stvor/sdk/mock-relay']) {
    const [required, imported] = [require(entry), await load(entry).then(() => importOf(entry))];
    assert.deepEqual(Object.keys(imported).sort(), Object.keys(required).sort());
    for (const name of Object.keys(required)) assert.equal(imported[name], required[name], name);
  }
  assert.equal(await sdk.load(), sdk);
  assert.equal(sdk.Stvor.init, sdk.createApp);
  assert.equal(require('@stvor/sdk/package.json').version, '3.6.0');
});

async function importOf(entry) {
  const { exports } = require('@stvor/sdk/package.json');
  const { import: target } = exports[entry === '@stvor/sdk' ? '.' : `./${entry.slice('@stvor/sdk/'.length)}`];
  return import(pathToFileURL(join(installed, 'sdk', target.default)).href);
}

test('nothing is run at installation, nothing is depended on but the platforms, and it is small', () => {
  const manifest = require('@stvor/sdk/package.json');
  assert.equal(manifest.scripts, undefined);
  assert.equal(manifest.dependencies, undefined);
  for (const [name, version] of Object.entries(manifest.optionalDependencies)) {
    assert.match(name, /^@stvor\/sdk-(darwin|linux|win32)-(x64|arm64)(-gnu|-musl|-msvc)?$/);
    assert.equal(version, manifest.version);
  }
  for (const name of readdirSync(installed).filter((one) => one !== 'sdk')) {
    const platform = JSON.parse(readFileSync(join(installed, name, 'package.json'), 'utf8'));
    assert.equal(platform.scripts, undefined);
    assert.equal(platform.version, manifest.version);
    assert.ok(statSync(join(installed, name, 'stvor.node')).size > 0);
    const notices = readFileSync(join(installed, name, 'THIRD-PARTY-NOTICES'), 'utf8');
    for (const words of ['aws-lc-sys ', 'tokio ', 'Apache License', 'OpenSSL']) assert.ok(notices.includes(words), words);
    assert.ok(existsSync(join(installed, name, 'LICENSE-APACHE')));
  }
  assert.ok(existsSync(join(installed, 'sdk/LICENSE-MIT')));
});

const PROGRAM = `
import {
  createApp, generateRecoveryPhrase, Group, Stvor, StvorError, type App, type Client, type Finding, type Message, type Receipt, type Signal,
} from '@stvor/sdk';
import { startMockRelay } from '@stvor/sdk/mock-relay';
import { decryptMessage, encryptMessage, establishSession, generateKeyPair } from '@stvor/sdk/ratchet';
declare const nobody: Signal;
async function main(): Promise<void> {
  const relay = await startMockRelay({ port: 0 });
  const app = await createApp({ appToken: 'stvor_x', relayUrl: relay.url, timeout: 100 }, { signal: nobody });
  const same: typeof app = await Stvor.init({ appToken: 'stvor_x', relayUrl: relay.url });
  const alice: Client = await app.connect('alice');
  alice.onMessage((msg) => { const sender: string = msg.senderId; const at: Date = msg.timestamp; return \`\${sender} \${msg.content} \${at}\`; });
  alice.onMessage((from, msg) => { const sender: string = from; return \`\${sender}: \${msg}\`; });
  const off: () => void = alice.onMessage(async (message: Message) => { await Promise.resolve(message.id); });
  off();
  const receipt: Receipt = await alice.send('bob', { a: [1, 'x', null] });
  await alice.send('bob', new Uint8Array([1]), { timeout: 5 });
  const loose: Record<string, unknown> = { a: 1 };
  await alice.send('bob', loose);
  await alice.send('bob', { nested: loose, list: [loose] });
  const wrapped = async (content: unknown): Promise<void> => { await alice.send('bob', content); };
  await wrapped(loose);
  alice.on('identityChanged', ({ peer, accepted }) => { const who: string = peer; const taken: boolean = accepted; return [who, taken]; });
  for await (const m of alice.messages()) { const id: string = m.id; void id; break; }
  try { await receipt.delivered(); } catch (error) { if (error instanceof StvorError) { const code: string = error.code; void code; } }
  await same.close();
  const stores: App[] = [
    await createApp({ relayUrl: 'x', storage: { postgres: 'postgres://x', passwordFile: 'y' }, pkcs11: { module: 'm', token: 't', key: 'k', pinFile: 'p' } }),
    await createApp({ relayUrl: 'x', storage: { redis: ['a', 'b'], replicas: 1, assuredSettings: { 'maxmemory-policy': 'noeviction' } }, executor: { onPressure: 'wait' }, identityPhrase: generateRecoveryPhrase() }),
    await createApp({ relayUrl: 'x', storage: { sqlite: 'd' }, osKeyring: true }),
  ];
  const findings: readonly Finding[] = stores.flatMap((one) => one.findings);
  const group: Group = await alice.createGroup('friends', ['bob']);
  const members: string[] = await group.members();
  alice.onMessage((message) => message.group?.send('x'));
  alice.on('groupChanged', ({ group, joined }) => { const one: Group = group; const names: string[] = joined; return [one, names]; });
  for (const outcome of await alice.sendMany([{ to: 'bob', content: 'x' }])) {
    if (outcome instanceof StvorError) { const all: readonly Finding[] | undefined = outcome.findings; void all; } else { await outcome.delivered(); }
  }
  void [findings, members];
  const { session, handshake } = establishSession(generateKeyPair(), generateKeyPair().bundle);
  const { ciphertext, header }: { ciphertext: Uint8Array; header: Uint8Array } = encryptMessage(session, 'x');
  const plain: string | Uint8Array | null = decryptMessage(session, { ciphertext, header });
  void [handshake, plain];
  await using last = await createApp({ appToken: 'stvor_x', relayUrl: relay.url });
  await using carol: Client = await last.connect('carol');
  carol.on('closed', ({ code }) => { const why: string | undefined = code; return why; });
  await using other = await startMockRelay({ port: 0 });
  void other.url;
}
void main;
`;
const WRONG = `
import { createApp } from '@stvor/sdk';
async function main(): Promise<void> {
  const app = await createApp({ appToken: 'x', relayUrl: 'y', tiemout: 3 });
  const alice = await app.connect('alice');
  await alice.send('bob', Symbol());
  alice.onMessage((msg) => msg.nonsense);
}
void main;
`;

function compile(programs, settings) {
  const place = directory();
  for (const [name, text] of Object.entries(programs)) writeFileSync(join(place, name), text);
  writeFileSync(join(place, 'tsconfig.json'), JSON.stringify({ ...settings, files: Object.keys(programs) }));
  try {
    execFileSync(process.execPath, [require.resolve('typescript/bin/tsc'), '-p', place, '--noEmit'], { encoding: 'utf8' });
    return '';
  } catch (error) {
    return error.stdout;
  }
}

test('types: the documentation\'s settings, Bundler, --strict, without skipLibCheck and without @types/node', () => {
  assert.ok(!existsSync(join(project, 'node_modules/@types')));
  const both = { 'main.ts': PROGRAM, 'module.mts': PROGRAM };
  assert.equal(compile(both, JSON.parse(documentation('tsconfig.json'))), '');
  const strict = {
    target: 'ES2020', lib: ['ES2020'], strict: true, exactOptionalPropertyTypes: true, noUncheckedIndexedAccess: true, isolatedModules: true, types: [],
  };
  for (const [module, moduleResolution] of [['NodeNext', 'NodeNext'], ['ESNext', 'Bundler']]) {
    assert.equal(compile(both, { compilerOptions: { module, moduleResolution, ...strict } }), '');
  }
  // With what a browser's library calls an AbortSignal, and every way to leave an option open.
  const signals = `import { createApp, type AppOptions } from '@stvor/sdk';
    const signal: AbortSignal = AbortSignal.timeout(1_000);
    const open: AppOptions = { appToken: 't', relayUrl: 'ws://localhost:1', receipts: { delivered: undefined, read: true } };
    export async function main() {
      const app = await createApp(open, { signal });
      const client = await app.connect('alice', { signal });
      await client.waitCaughtUp({ timeout: undefined, signal: undefined });
      await client.waitOnline({ signal });
      await client.history('bob', { signal, search: undefined });
    }`;
  assert.equal(compile({ 'main.ts': signals }, { compilerOptions: { module: 'NodeNext', moduleResolution: 'NodeNext', ...strict, lib: ['ES2020', 'DOM'] } }), '');
  const wrong = compile({ 'main.ts': WRONG }, { compilerOptions: { module: 'NodeNext', moduleResolution: 'NodeNext', ...strict } });
  for (const complaint of ['tiemout', 'symbol', 'nonsense']) assert.match(wrong, new RegExp(complaint));
});

test('a platform package that is missing, broken or of another version is NATIVE_MODULE_MISSING, in words', async (t) => {
  const place = mkdtempSync(join(tmpdir(), 'stvor-node-'));
  t.after(() => rmSync(place, { recursive: true }));
  const modules = join(place, 'node_modules/@stvor');
  mkdirSync(modules, { recursive: true });
  cpSync(join(installed, 'sdk'), join(modules, 'sdk'), { recursive: true });
  const main = join(place, 'main.mjs');
  writeFileSync(main, `
    import { createApp, StvorError } from '@stvor/sdk';
    await createApp({ appToken: 'stvor_x', relayUrl: 'ws://localhost:1' }).catch((error) => {
      console.log(JSON.stringify([error instanceof StvorError, error.code, error.message, error.action]));
    });`);
  const [name] = readdirSync(installed).filter((one) => one !== 'sdk');
  const missing = async () => {
    const ended = await run([main]);
    assert.equal(ended.stderr, '');
    const [known, code, message, action] = JSON.parse(ended.stdout);
    assert.deepEqual([known, code], [true, 'NATIVE_MODULE_MISSING']);
    assert.match(action, /optional/);
    return message;
  };
  assert.match(await missing(), new RegExp(`${process.platform}-${process.arch}.*@stvor/${name} is not installed.*npm install`));
  mkdirSync(join(modules, name));
  writeFileSync(join(modules, name, 'package.json'), '{ "main": "./stvor.node" }');
  writeFileSync(join(modules, name, 'stvor.node'), 'not a library');
  assert.match(await missing(), /is installed but does not load[^]*older than it needs/);
  writeFileSync(join(modules, name, 'package.json'), '{ "main": "./stvor.node", "glibc": "2.99" }');
  assert.match(await missing(), /needs glibc 2\.99/);
  // Where there is none, installing something mends nothing.
  const elsewhere = join(place, 'elsewhere.mjs');
  writeFileSync(elsewhere, `Object.defineProperty(process, 'arch', { value: 'riscv64' });\nawait import(${JSON.stringify(pathToFileURL(main).href)});`);
  const [, code, words, advice] = JSON.parse((await run([elsewhere])).stdout);
  assert.equal(code, 'NATIVE_MODULE_MISSING');
  assert.match(words, /there is no native half for \S*riscv64.*linux-x64-gnu/);
  assert.doesNotMatch(words + advice, /npm install/);
  // Where Node may load no library at all, installing anew mends nothing.
  const refused = await run(['--no-addons', main]);
  assert.match(refused.stdout, /--no-addons/);
  assert.doesNotMatch(refused.stdout, /npm install/);
  rmSync(join(modules, name, 'stvor.node'));
  writeFileSync(join(modules, name, 'package.json'), '{ "main": "./main.js" }');
  writeFileSync(join(modules, name, 'main.js'), 'exports.version = () => "3.5.0";');
  assert.match(await missing(), /is version 3\.5\.0, @stvor\/sdk is 3\.6\.0/);

  // A panic of the native half, as the C interface hands it on: nothing of its words comes through.
  writeFileSync(join(modules, name, 'main.js'), `
    exports.version = () => '3.6.0';
    exports.generateKeyPair = () => { throw Object.assign(new Error('secret words'), { code: 'GenericFailure' }); };`);
  writeFileSync(main, `
    import { generateKeyPair } from '@stvor/sdk/ratchet';
    try { generateKeyPair(); } catch (error) { console.log(String(error), error.cause); }`);
  const { stdout } = await run([main]);
  assert.equal(stdout, 'StvorError: the SDK met a defect of its own; please report it [INTERNAL] undefined\n');
});

test('settings that can not be used are named before anything is dialled', async () => {
  const { createApp } = sdk;
  const good = { appToken: 'stvor_x', relayUrl: 'ws://localhost:1', storage: 'memory' };
  const refused = async (settings, pattern, code = 'INVALID_CONFIG') => {
    await assert.rejects(createApp(settings), (error) => {
      assert.match(String(error), pattern);
      assert.equal(error.code, code);
      return true;
    });
  };
  await refused(undefined, /relay URL/);
  await refused(null, /an object/);
  await refused({ ...good, relayURL: 'x' }, /no "relayURL"; there are appToken, relayUrl/);
  await refused({ ...good, relayUrl: 5 }, /relayUrl is a string/);
  await refused({ ...good, relayUrl: 'ftp://x' }, /./, 'INVALID_RELAY_URL');
  await refused({ ...good, appToken: '' }, /./, 'INVALID_APP_TOKEN');
  await refused({ ...good, timeout: -1 }, /timeout/);
  await refused({ ...good, storage: 'redis' }, /"disk", "memory", \{ sqlite: directory \}/);
  await refused({ ...good, productionMode: true }, /store keeps nothing over a restart.*relay_without_tls/s, 'NOT_FOR_PRODUCTION');
  const production = { appToken: 'sk_live_xxx', dataDir: directory(), passphrase: 'x', productionMode: true };
  await refused({ ...production, passphrase: undefined, relayUrl: 'wss://relay.example.com' }, /keyfile_beside_store/, 'NOT_FOR_PRODUCTION');
  await refused({ ...production, appToken: 'stvor_dev_x', relayUrl: 'wss://relay.example.com' }, /development_token/, 'NOT_FOR_PRODUCTION');
  for (const relayUrl of ['ws://relay.example.com', ' ws://relay.example.com', 'http://relay.example.com', 'WS://RELAY.example.com:80/x', 'ht\ntp://relay.example.com',
    'ws://localhost.example.com', 'ws://127.0.0.1.example.com', 'ws://[2001:db8::1]:80', 'ws://localhost:1']) {
    await assert.rejects(createApp({ ...production, relayUrl }), (error) => ['NOT_FOR_PRODUCTION', 'INVALID_RELAY_URL'].includes(error.code), relayUrl);
  }
  await refused({ ...production, relayUrl: 'ws://relay.example.com' }, /not encrypted on the way/, 'NOT_FOR_PRODUCTION');
  for (const relayUrl of ['wss://relay.example.com', 'https://relay.example.com']) {
    await (await createApp({ ...production, relayUrl })).close();
  }
  await refused({ ...good, retention: -1 }, /retention/);
  for (const retention of [0, 5, 90 * 86_400_000, Infinity]) await (await createApp({ ...good, retention })).close();
  const two = { replay: { checkAndMark: () => false }, sessions: { save() {}, load: () => null } };
  await refused({ appToken: 'sk_live_xxx', relayUrl: 'wss://relay.stvor.com', storageAdapters: two, productionMode: true },
    /"tofu" is missing[^]*"identity" is missing/, 'NOT_FOR_PRODUCTION');
});

test('the mock relay says what is wrong with its settings', async () => {
  const bin = 'node_modules/@stvor/sdk/bin.js';
  assert.equal((await run([bin])).code, 2);
  assert.match((await run([bin, 'mock-relay'], { env: { STVOR_MOCK_PORT: 'x' } })).stderr, /STVOR_MOCK_PORT/);
  assert.equal((await run([bin, '--version'])).stdout, '3.6.0\n');
  const { startMockRelay } = require('@stvor/sdk/mock-relay');
  const relay = await startMockRelay({ port: 0 });
  assert.equal(await codeOf(startMockRelay({ port: relay.port })), 'LISTEN_FAILED');
  await relay.close();
  assert.equal(await codeOf(startMockRelay({ port: 70_000 })), 'INVALID_CONFIG');
});

test('what `await using` calls closes apps, clients and relays', async () => {
  const dispose = Symbol.asyncDispose ?? Symbol.for('Symbol.asyncDispose');
  const relay = await require('@stvor/sdk/mock-relay').startMockRelay({ port: 0 });
  const app = await sdk.createApp({ appToken: 'stvor_x', relayUrl: relay.url, storage: 'memory' });
  const [alice, bob] = [await app.connect('alice'), await app.connect('bob')];
  await alice[dispose]();
  assert.equal(alice.state, 'closed');
  await app[dispose]();
  assert.equal(bob.state, 'closed');
  await relay[dispose]();
  await assert.rejects(fetch(`http://127.0.0.1:${relay.port}/health`));
});

test('classes that the package makes the objects of are not made by others, and hold no process', async () => {
  const { KeyPair, Session } = require('@stvor/sdk/ratchet');
  const { MockRelay } = require('@stvor/sdk/mock-relay');
  for (const Class of [sdk.App, sdk.Client, sdk.Group, KeyPair, Session, MockRelay]) {
    for (const given of [[], [{}], [{}, {}, {}]]) {
      assert.throws(() => new Class(...given), (error) => error instanceof sdk.StvorError && error.code === 'INVALID_ARGUMENT', Class.name);
    }
  }
  assert.equal(String(new sdk.StvorError('x')), 'StvorError: x [INTERNAL]');
  const ended = await run([write(`
    import { MockRelay } from '@stvor/sdk/mock-relay';
    try { new MockRelay(); } catch (error) { console.log(error.code); }`)]);
  assert.deepEqual(ended, { code: 0, signal: null, stdout: 'INVALID_ARGUMENT\n', stderr: '' });
});

test('a program that imports and does nothing prints nothing', async () => {
  assert.deepEqual(await run([write(`import '@stvor/sdk'; import '@stvor/sdk/mock-relay';`)]), { code: 0, signal: null, stdout: '', stderr: '' });
});

test('a relay for development that nobody holds goes on', async () => {
  const file = write(`
    import { startMockRelay } from '@stvor/sdk/mock-relay';
    const { port } = await startMockRelay({ port: 0 });
    for (let round = 0; round < 5; round += 1) { globalThis.gc(); await new Promise((resolve) => setTimeout(resolve, 20)); }
    console.log((await fetch(\`http://127.0.0.1:\${port}/health\`)).status);
    process.exit();
  `);
  const { stdout, stderr } = await run(['--expose-gc', file]);
  assert.equal(stdout, '200\n', stderr);
});

test('errors are themselves where a test runner evaluates the package in a context of its own', async () => {
  const file = write(`
    const vm = require('node:vm'), fs = require('node:fs'), path = require('node:path');
    const { clearInterval, clearTimeout, setImmediate, setInterval, setTimeout } = globalThis;
    const context = vm.createContext({ Buffer, clearInterval, clearTimeout, performance, process, setImmediate, setInterval, setTimeout });
    const loaded = new Map();
    const load = (file) => {
      if (file.endsWith('.json')) return JSON.parse(fs.readFileSync(file, 'utf8'));
      if (loaded.has(file)) return loaded.get(file).exports;
      const module = { exports: {} };
      loaded.set(file, module);
      const own = (id) => (id.startsWith('.') ? load(require.resolve(path.resolve(path.dirname(file), id))) : require(id));
      vm.runInContext('(function (require, module, exports) {' + fs.readFileSync(file, 'utf8') + '})', context)(own, module, module.exports);
      return module.exports;
    };
    const { createApp } = load(require.resolve('@stvor/sdk'));
    const { startMockRelay } = load(require.resolve('@stvor/sdk/mock-relay'));
    const codeOf = (act) => act.then(() => 'none', (error) => [error.code, error.retryable, error.findings?.length > 0].join());
    (async () => {
      const relay = await startMockRelay({ port: 0 });
      console.log(await codeOf(createApp({ appToken: 'x', relayUrl: 'ftp://x' })));
      console.log(await codeOf(createApp({ appToken: 'stvor_x', relayUrl: relay.url, storage: 'memory', productionMode: true })));
      const app = await createApp({ appToken: 'stvor_x', relayUrl: relay.url, storage: 'memory', timeout: 300 });
      const alice = await app.connect('alice'), bob = await app.connect('bob');
      console.log(await codeOf(alice.send('nobody', 'x')));
      // Bytes of this realm, which is another than the package's.
      await alice.send('bob', new Uint8Array([7]));
      for await (const message of bob.messages()) { console.log(message.kind, message.content.join()); break; }
      await app.close();
      await relay.close();
    })();
  `, 'cjs');
  const { stdout, stderr } = await run(['--no-warnings', file]);
  assert.deepEqual(stdout.split('\n'), ['INVALID_RELAY_URL,false,false', 'NOT_FOR_PRODUCTION,false,true', 'RECIPIENT_TIMEOUT,true,false', 'bytes 7', ''], stderr);
});

test('a handler that can not be read holds nothing up', async () => {
  const { code, stdout } = await run([write(`
    import { createApp, } from '@stvor/sdk';
    import { startMockRelay } from '@stvor/sdk/mock-relay';
    const relay = await startMockRelay({ port: 0 });
    const app = await createApp({ appToken: 'stvor_x', relayUrl: relay.url, storage: 'memory' });
    const alice = await app.connect('alice');
    try {
      alice.onMessage(Object.defineProperty(() => {}, 'length', { get() { throw new Error('no'); } }));
    } catch ({ code }) {
      console.log(code);
    }
    await app.close();
    await relay.close();
  `)]);
  assert.deepEqual([code, stdout.trim()], [0, 'INVALID_ARGUMENT']);
});

/** Codes that no call of this package fails with: of the vault, of the command line and of relays. */
const OTHERS = /^(AGENT|APPROVAL|AUDITOR|BACKUP|BOUNDARY|COOLDOWN|ESCROW|LOCKDOWN|MEMORY|PROFILE|TPM|VAULT|WITNESS|LOG|TOKEN|CODE)_|^(COOLDOWN|NO_APP_TOKEN|UNKNOWN_TOKEN|UNKNOWN_USER|USAGE|STORE_UNSUPPORTED|NATIVE_MODULE_MISSING)$/;

test('what to do is said in terms of JavaScript', () => {
  for (const code of Object.keys(require(join(installed, 'sdk/dist/actions.json')))) {
    if (OTHERS.test(code)) continue;
    const { action } = new sdk.StvorError('x', { code });
    // A table of PostgreSQL is called so.
    assert.doesNotMatch(action.replaceAll('stvor_rows', ''), /\b[a-z]+_[a-z_]+\b|stvor [a-z]|::|[a-z]_[a-z]+\(|--[a-z]|[A-Z]\w+ \{/, `${code}: ${action}`);
  }
});

test('and so is what happened: messages of the engine name no function or setting of Rust alone', () => {
  const root = new URL('../../../', import.meta.url);
  // Of a server or of our relay, for whoever operates it.
  const theirs = /`open_registration = true`|\bsynchronous_standby_names\b/g;
  let found = 0;
  for (const crate of ['sdk', 'store', 'keys', 'protocol', 'base']) {
    const folder = new URL(`crates/${crate}/src/`, root);
    for (const file of readdirSync(folder, { recursive: true }).map((name) => name.split('\\').join('/')).filter((name) => name.endsWith('.rs') && !name.endsWith('tests.rs'))) {
      const [source] = readFileSync(new URL(file, folder), 'utf8').split('#[cfg(test)]');
      const said = /(?:#\[error\(|Error::(?:config|not_ready|argument|unavailable)\(|Finding::(?:new|refused)\()\s*((?:[^"();]*"(?:[^"\\]|\\[^])*")+)/g;
      for (const [, texts] of source.matchAll(said)) {
        for (const [, text] of texts.matchAll(/"((?:[^"\\]|\\[^])*)"/g)) {
          if (!text.includes(' ')) continue;
          found += 1;
          // What is in braces is filled in; `x; y in JavaScript` names both.
          const words = text.replace(/\{[^}]*\}/g, '').replace(/\w+(?:; | \()\w+ in JavaScript/g, '').replace(theirs, '');
          assert.doesNotMatch(words, /[a-z]_[a-z]+|::|`stvor |--[a-z]/, `${crate}/src/${file}: ${text}`);
        }
      }
    }
  }
  assert.ok(found > 100, `${found} messages`);
});
