// What the tests share: the project in which the packed package is installed.
import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

export const project = process.env.STVOR_TEST_PROJECT;
if (!project) throw new Error('run the tests by scripts/test.mjs: they need the packed package');

/** `require` of the project. */
export const require = createRequire(join(project, 'index.js'));

/** `import` of the project: a specifier of the package. */
export const load = (specifier) => import(pathToFileURL(require.resolve(specifier)).href);

export const sdk = require('@stvor/sdk');
export const { startMockRelay } = require('@stvor/sdk/mock-relay');

let files = 0;

/** An empty directory in the project. */
export const directory = () => mkdtempSync(join(project, 'dir-'));

/** Writes a file of the project and gives its path. */
export function write(text, extension = 'mjs') {
  files += 1;
  const path = join(project, `file-${process.pid}-${files}.${extension}`);
  writeFileSync(path, text);
  return path;
}

/** A block of the documentation, word for word, with the ports of this test. */
export function documentation(name, ports = {}) {
  const path = join(dirname(fileURLToPath(import.meta.url)), 'documentation', name);
  return Object.entries(ports).reduce(
    (text, [port, ours]) => text.replaceAll(`localhost:${port}`, `localhost:${ours}`).replaceAll(`PORT = ${port}`, `PORT = ${ours}`),
    readFileSync(path, 'utf8'),
  );
}

/** Starts Node on a file, or another `command`; `open` leaves its input open. `ended` resolves with what it printed and how it ended; `line` waits for a line that matches. */
export function start(argv, { command = process.execPath, env = {}, input, open = false, detached = false } = {}) {
  const child = spawn(command, argv, { cwd: project, detached, env: { ...process.env, ...env }, stdio: ['pipe', 'pipe', 'pipe'] });
  const result = { child, stdout: '', stderr: '' };
  const waiters = [];
  const look = () => {
    for (const waiter of [...waiters]) {
      const line = result.stdout.split('\n').slice(0, -1).find((one) => waiter.pattern.test(one));
      if (line !== undefined) waiters.splice(waiters.indexOf(waiter), 1)[0].resolve(line);
    }
  };
  child.stdout.on('data', (chunk) => { result.stdout += chunk; look(); });
  child.stderr.on('data', (chunk) => { result.stderr += chunk; });
  result.ended = new Promise((resolve) => {
    child.on('close', (code, signal) => {
      for (const waiter of waiters) waiter.reject(new Error(`it ended (${code ?? signal}) without ${waiter.pattern}: ${result.stdout}${result.stderr}`));
      resolve({ code, signal, stdout: result.stdout, stderr: result.stderr });
    });
  });
  result.line = (pattern) => new Promise((resolve, reject) => { waiters.push({ pattern, resolve, reject }); look(); });
  if (!open) child.stdin.end(input ?? '');
  return result;
}

/** Runs a file to its end. */
export const run = (argv, options) => start(argv, options).ended;

/** A relay and an app in memory at it, closed with the test. */
export async function at(t, settings = {}) {
  const relay = await startMockRelay({ port: 0 });
  const app = await sdk.createApp({ appToken: 'stvor_dev_test123', relayUrl: relay.url, storage: 'memory', ...settings });
  t.after(async () => {
    await app.close();
    await relay.close();
  });
  return { relay, app };
}

/** The code of what a promise or a call fails with. */
export async function codeOf(act) {
  try {
    await (typeof act === 'function' ? act() : act);
  } catch (error) {
    if (!(error instanceof sdk.StvorError)) throw error;
    return error.code;
  }
  return undefined;
}
