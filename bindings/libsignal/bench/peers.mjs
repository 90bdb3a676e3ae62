// `@stvor/libsignal` beside what it takes the place of, per CPU-second (all threads of the process), in one run:
// node bench/peers.mjs [--json FILE] [--rounds N] [--short]. Each package and round has a process of its own, which measures each line
// several times over; what else runs only slows them down, so the best time counts, and the median of all is shown beside it. Each line is
// worked at beforehand, by the same number of calls for every package: compilers are threads of the process, and count as much as the calls
// in the first few thousand. They come back later for what turns out to be used much, which is one more reason for measuring several times.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { implementations } from './implementations.mjs';

const ROOT = resolve(dirname(fileURLToPath(import.meta.url)), '../../..');
const TARGET = process.env.CARGO_TARGET_DIR ?? join(ROOT, 'target');
const { values: args } = parseArgs({
  options: { json: { type: 'string' }, rounds: { type: 'string', default: '3' }, short: { type: 'boolean' }, child: { type: 'string' }, project: { type: 'string' } },
});

/** Where a package is: ours in the project that the tarballs were installed in, the others among the peers. */
async function load(specifier) {
  const home = specifier.startsWith('@stvor/') ? args.project : join(TARGET, 'tools/peers');
  const name = specifier.split('/').slice(0, specifier.startsWith('@') ? 2 : 1).join('/');
  const manifest = JSON.parse(readFileSync(join(home, 'node_modules', name, 'package.json'), 'utf8'));
  const key = specifier === name ? '.' : `.${specifier.slice(name.length)}`;
  const entry = manifest.exports?.[key]?.import ?? manifest.exports?.import ?? manifest.exports?.[key];
  const path = typeof entry === 'string' ? entry : (entry?.default ?? manifest.main);
  return import(pathToFileURL(join(home, 'node_modules', name, path)).href);
}

/** How many times a CPU-second holds what `work` does `count` times. */
async function rate(count, work) {
  const before = process.cpuUsage();
  await work();
  const { user, system } = process.cpuUsage(before);
  return (count * 1e6) / (user + system);
}

/** How many times each line is measured in a process. */
const TIMES = 4;

/** Keeps a rate beside those of before. */
function keep(rows, row, value) {
  (rows[row] ??= []).push(value);
}

async function measure(name, scale) {
  const P = await implementations[name](load);
  const [bytes, rows] = [Buffer.alloc(100, 7), {}];
  const couple = async () => {
    const [alice, bob] = [P.device(), P.device()];
    await P.start(alice, 'bob', bob.bundle());
    const [toBob, toAlice] = [P.cipher(alice, 'bob'), P.cipher(bob, 'alice')];
    await toAlice.decrypt(await toBob.encrypt(bytes));
    await toBob.decrypt(await toAlice.encrypt(bytes));
    return { alice, bob, toBob, toAlice };
  };
  for (let i = 0; i < 1_000 * scale; i += 1) await couple();

  const setups = Math.round(400 * scale);
  const [alice, bob] = [P.device(), P.device()];
  for (let time = 0; time < TIMES; time += 1) {
    const bundles = Array.from({ length: setups }, () => bob.bundle());
    keep(rows, 'set-up: bundle, first encrypt, decrypt', await rate(setups, async () => {
      for (const bundle of bundles) {
        P.forget(alice);
        P.forget(bob);
        await P.start(alice, 'bob', bundle);
        await P.cipher(bob, 'alice').decrypt(await P.cipher(alice, 'bob').encrypt(bytes));
      }
    }));
  }

  const { toBob, toAlice } = await couple();
  const many = 4_000 * scale;
  for (let warm = 0; warm < 20_000 * scale; warm += 2_000 * scale) {
    const sent = [];
    for (let i = 0; i < 2_000 * scale; i += 1) sent.push(await toBob.encrypt(bytes));
    for (const message of sent) await toAlice.decrypt(message);
  }
  for (let time = 0; time < TIMES; time += 1) {
    const sent = [];
    keep(rows, 'encrypt 100 bytes', await rate(many, async () => {
      for (let i = 0; i < many; i += 1) sent.push(await toBob.encrypt(bytes));
    }));
    keep(rows, 'decrypt 100 bytes', await rate(many, async () => {
      for (const message of sent) await toAlice.decrypt(message);
    }));
  }

  if (toBob.encryptMany && toBob.decryptMany) {
    for (let warm = 0; warm < 10_000 * scale; warm += 50) await toAlice.decryptMany(await toBob.encryptMany(Array(50).fill(bytes)));
    for (let time = 0; time < TIMES; time += 1) {
      const batches = [];
      keep(rows, 'encrypt 100 bytes, 50 a call', await rate(many, async () => {
        for (let i = 0; i < many; i += 50) batches.push(await toBob.encryptMany(Array(50).fill(bytes)));
      }));
      keep(rows, 'decrypt 100 bytes, 50 a call', await rate(many, async () => {
        for (const batch of batches) await toAlice.decryptMany(batch);
      }));
    }
  }

  const roundTrips = async ({ toBob: out, toAlice: back }, count) => {
    for (let i = 0; i < count; i += 1) {
      await back.decrypt(await out.encrypt(bytes));
      await out.decrypt(await back.encrypt(bytes));
    }
  };
  await roundTrips(await couple(), 500 * scale);
  let fresh;
  for (let time = 0; time < TIMES; time += 1) {
    fresh = await couple();
    for (const [from, to] of [[0, 100], [100, 500], [500, 1_000]]) {
      keep(rows, `round trip, turns ${from} to ${to.toLocaleString('en')}`, await rate(to - from, () => roundTrips(fresh, to - from)));
    }
  }
  // The others that grow would take minutes.
  if (name === '@stvor/libsignal') {
    await roundTrips(fresh, 8_500);
    for (let time = 0; time < TIMES; time += 1) keep(rows, 'round trip, turns 9,500 to 11,500', await rate(500, () => roundTrips(fresh, 500)));
  }
  keep(rows, 'record after that, bytes', P.recordSize(fresh.alice));

  if (P.groups) {
    const pair = await P.groups.pair(P.device(), P.device());
    for (let i = 0; i < 5_000 * scale; i += 1) await pair.decrypt(await pair.encrypt(bytes));
    const count = 2_000 * scale;
    for (let time = 0; time < TIMES; time += 1) {
      const messages = [];
      keep(rows, 'group encrypt 100 bytes', await rate(count, async () => {
        for (let i = 0; i < count; i += 1) messages.push(await pair.encrypt(bytes));
      }));
      keep(rows, 'group decrypt 100 bytes', await rate(count, async () => {
        for (const message of messages) await pair.decrypt(message);
      }));
    }
  }
  return rows;
}

if (args.child) {
  const { stdout } = process;
  // One of them prints keys.
  for (const name of ['log', 'info', 'warn', 'error']) console[name] = () => {};
  const write = stdout.write.bind(stdout);
  measure(args.child, args.short ? 0.25 : 1).then((rows) => write(JSON.stringify(rows)));
} else {
  const project = mkdtempSync(join(tmpdir(), 'stvor-libsignal-bench-'));
  try {
    writeFileSync(join(project, 'package.json'), '{ "name": "project", "private": true }\n');
    const tarballs = readdirSync(join(TARGET, 'npm')).filter((name) => name.startsWith('stvor-libsignal-') && name.endsWith('.tgz'));
    const npm = process.platform === 'win32' ? 'npm.cmd' : 'npm';
    const files = tarballs.map((name) => join(TARGET, 'npm', name));
    execFileSync(npm, ['install', '--offline', '--omit=optional', '--no-audit', '--no-fund', ...files], { cwd: project, stdio: 'ignore' });
    const names = Object.keys(implementations);
    const all = Object.fromEntries(names.map((name) => [name, []]));
    for (let round = 0; round < Number(args.rounds); round += 1) {
      for (const name of names) {
        const flags = ['--child', name, '--project', project, ...(args.short ? ['--short'] : [])];
        const out = execFileSync(process.execPath, [fileURLToPath(import.meta.url), ...flags], { maxBuffer: 2 ** 24 });
        all[name].push(JSON.parse(out.toString()));
        process.stderr.write(`round ${round + 1}: ${name}\n`);
      }
    }
    const figures = (name, row) => {
      const values = all[name].flatMap((round) => round[row] ?? []).sort((a, b) => a - b);
      if (values.length === 0) return undefined;
      const half = values.length / 2;
      return { best: values[values.length - 1], median: (values[Math.ceil(half) - 1] + values[Math.floor(half)]) / 2 };
    };
    const rows = [...new Set(names.flatMap((name) => all[name].flatMap(Object.keys)))];
    const table = Object.fromEntries(rows.map((row) => [row, Object.fromEntries(names.map((name) => [name, figures(name, row)]))]));
    if (args.json) {
      mkdirSync(dirname(resolve(args.json)), { recursive: true });
      const about = { node: process.version, unit: 'per CPU-second of the process; best and median of all times', rounds: Number(args.rounds) };
      writeFileSync(args.json, `${JSON.stringify({ about, table, rounds: all }, null, 2)}\n`);
    }
    const round = (value) => Math.round(value).toLocaleString('en');
    const show = (value) => (value === undefined ? '-' : `${round(value.best)} (${round(value.median)})`);
    const widths = names.map((name) => Math.max(name.length, 17));
    process.stdout.write(`per CPU-second, ${process.version}, best time of ${args.rounds} rounds (median of all times)\n`);
    process.stdout.write(`${''.padEnd(40)} ${names.map((name, i) => name.padStart(widths[i])).join('  ')}  ours / best peer\n`);
    for (const [row, values] of Object.entries(table)) {
      const peers = names.slice(1).map((name) => values[name]).filter((value) => value !== undefined);
      const times = (by) => (values[names[0]][by] / Math.max(...peers.map((value) => value[by]))).toFixed(1);
      const ratio = peers.length > 0 && !row.startsWith('record') ? `${times('best')} (${times('median')})` : '-';
      process.stdout.write(`${row.padEnd(40)} ${names.map((name, i) => show(values[name]).padStart(widths[i])).join('  ')}  ${ratio.padStart(16)}\n`);
    }
  } finally {
    rmSync(project, { recursive: true, force: true });
  }
}
