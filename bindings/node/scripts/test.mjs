// Packs a package, installs the tarballs in an empty project, and runs the tests against that:
// node scripts/test.mjs [--package node|libsignal] [FILE...]
// STVOR_NPM_DIR names a directory of tarballs that were packed before. STVOR_TEST_NODE runs the tests under another Node.
import { execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const TOOLS = resolve(dirname(fileURLToPath(import.meta.url)), '../tools');
const ROOT = resolve(TOOLS, '../../..');
const { values: args, positionals: wanted } = parseArgs({
  options: { package: { type: 'string', default: 'node' } },
  allowPositionals: true,
});
const HERE = join(ROOT, 'bindings', args.package);
const NAME = JSON.parse(readFileSync(join(HERE, 'package.json'), 'utf8')).name.split('/')[1];
const TARGET = process.env.CARGO_TARGET_DIR ?? join(ROOT, 'target');
const NODE = process.env.STVOR_TEST_NODE ?? process.execPath;
const windows = process.platform === 'win32';
/** Milliseconds that a file of tests may take; a long flood has one more for each of its calls, as its test has. */
const TIMEOUT = 600_000 + Number(process.env.STVOR_FLOOD_CALLS ?? 0);
const quiet = { stdio: ['ignore', 'ignore', 'inherit'] };
const npm = (argv, cwd) => execFileSync(windows ? 'npm.cmd' : 'npm', argv, { cwd, shell: windows, ...quiet });

if (!existsSync(join(TOOLS, 'node_modules/redis'))) npm(['ci'], TOOLS);
let tarballs = process.env.STVOR_NPM_DIR;
if (!tarballs) {
  tarballs = join(ROOT, 'target/npm-test');
  execFileSync(process.execPath, [join(TOOLS, '../scripts/pack.mjs'), '--package', args.package, '--profile', 'dev', '--out', tarballs], quiet);
}

const project = mkdtempSync(join(tmpdir(), 'stvor-node-'));
let status = 1;
try {
  writeFileSync(join(project, 'package.json'), '{ "name": "project", "private": true }\n');
  const files = readdirSync(tarballs).filter((name) => name.startsWith(`stvor-${NAME}-`) && name.endsWith('.tgz')).map((name) => join(tarballs, name));
  // The other platforms' packages are not asked for: nothing here needs a network.
  npm(['install', '--offline', '--omit=optional', '--no-audit', '--no-fund', ...files], project);
  for (const tool of ['ws', 'typescript', 'express', 'fastify', 'redis', 'pg']) symlinkSync(join(TOOLS, 'node_modules', tool), join(project, 'node_modules', tool), 'junction');
  const tests = readdirSync(join(HERE, 'test'))
    .filter((name) => name.endsWith('.test.mjs') && (wanted.length === 0 || wanted.some((one) => name.startsWith(basename(one)))))
    .map((name) => join(HERE, 'test', name));
  status = await new Promise((done) => {
    const child = spawn(NODE, ['--test', '--test-reporter=spec', `--test-timeout=${TIMEOUT}`, ...tests].filter(known), {
      env: { ...process.env, STVOR_TEST_PROJECT: project, STVOR_NPM_DIR: resolve(tarballs), STVOR_PEERS: join(TARGET, 'tools/peers'), XDG_DATA_HOME: join(project, 'data'), FORCE_COLOR: '0' },
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    let tail = '';
    child.stdout.on('data', (chunk) => {
      process.stdout.write(chunk);
      tail = (tail + chunk).slice(-1_000_000);
    });
    child.on('close', (code) => {
      const count = (what) => Number(new RegExp(`(?:#|ℹ) ${what} (\\d+)`).exec(tail)?.[1] ?? 0);
      const failed = count('fail') + count('cancelled');
      console.log(`test result: ${code === 0 ? 'ok' : 'FAILED'}. ${count('pass')} passed; ${failed} failed; ${count('skipped')} ignored`);
      done(code ?? 1);
    });
  });
} finally {
  rmSync(project, { recursive: true, force: true });
}
process.exitCode = status;

/** Node 18 knows fewer flags. */
function known(argument) {
  const [major, minor] = execFileSync(NODE, ['-p', 'process.versions.node']).toString().split('.').map(Number);
  if (argument.startsWith('--test-timeout')) return major >= 20;
  return !argument.startsWith('--test-reporter') || major > 18 || minor >= 15;
}
