// Builds a package (bindings/node, or another of --package) and its platform package for this machine, and packs both:
// node scripts/pack.mjs [--package node|libsignal] [--profile dev|release] [--features NAMES] [--out DIRECTORY] [--binary FILE --platform NAME] [--glibc 2.28] [--zig].
// With --binary nothing is compiled from Rust: a release has built it elsewhere. With --zig a release is built by cargo-zigbuild against
// the glibc that --glibc names, so that the package runs on systems older than this one.
import { execFileSync } from 'node:child_process';
import { copyFileSync, cpSync, existsSync, mkdirSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync, chmodSync } from 'node:fs';
import { createRequire } from 'node:module';
import { homedir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const TOOLS = resolve(dirname(fileURLToPath(import.meta.url)), '../tools');
const ROOT = resolve(TOOLS, '../../..');
const { values: args } = parseArgs({
  options: {
    package: { type: 'string', default: 'node' },
    profile: { type: 'string', default: 'release' },
    out: { type: 'string', default: join(ROOT, 'target/npm') },
    binary: { type: 'string' },
    platform: { type: 'string' },
    // Of the crate, beside those that a release has: `bench`.
    features: { type: 'string' },
    // Packs no binary that needs a newer glibc.
    glibc: { type: 'string' },
    zig: { type: 'boolean', default: false },
  },
});
if (args.zig && !args.glibc) throw new Error('--zig needs --glibc: the version to build for, 2.28');
/** Bytes of a tarball that is released. */
const LARGEST = 10_000_000;

const OUT = resolve(args.out);
const STAGE = join(OUT, 'stage', args.package);
const HERE = join(ROOT, 'bindings', args.package);
const CRATE = `stvor-${args.package}`;
const manifest = JSON.parse(readFileSync(join(HERE, 'package.json'), 'utf8'));
const NAME = manifest.name.split('/')[1];
const windows = process.platform === 'win32';

const run = (command, argv, options = {}) =>
  execFileSync(command, argv, { stdio: ['ignore', 'inherit', 'inherit'], cwd: ROOT, ...options });

/** What an error's page says to do, by code. */
function actions() {
  const page = readFileSync(join(ROOT, 'docs/errors.md'), 'utf8');
  const found = {};
  for (const section of page.split(/^## /m).slice(1)) {
    const code = section.slice(0, section.indexOf('\n')).replaceAll('`', '').trim();
    const what = /\*What to do:\*\s*([\s\S]*?)(?:\n\n|\n?$)/.exec(section);
    if (what) found[code] = what[1].replace(/\[([^\]]*)\]\([^)]*\)/g, '$1').replaceAll('`', '').replace(/\s+/g, ' ').trim();
  }
  return found;
}

/** The ES module beside each entry point: one implementation, so that `instanceof` holds across both. */
function modules(dist, entries) {
  const require = createRequire(import.meta.url);
  for (const entry of entries) {
    const names = Object.keys(require(join(dist, `${entry}.js`)));
    // What it takes the place of is CommonJS: there the default import is all of it, too.
    const whole = args.package === 'libsignal';
    writeFileSync(
      join(dist, `${entry}.mjs`),
      `import all from './${entry}.js';\n\n${whole ? 'export default all;\n' : ''}export const { ${names.join(', ')} } = all;\n`,
    );
    const types = whole ? `import * as all from './${entry}.js';\n\nexport default all;\n` : '';
    writeFileSync(join(dist, `${entry}.d.mts`), `${types}export * from './${entry}.js';\n`);
  }
}

function face() {
  const stage = join(STAGE, NAME);
  const dist = join(stage, 'dist');
  mkdirSync(dist, { recursive: true });
  const tsc = join(TOOLS, 'node_modules/typescript/bin/tsc');
  run(process.execPath, [tsc, '-p', join(HERE, 'tsconfig.json'), '--outDir', dist]);
  writeFileSync(join(dist, 'actions.json'), `${JSON.stringify(actions(), null, 1)}\n`);
  writeFileSync(join(stage, 'package.json'), `${JSON.stringify(manifest, null, 2)}\n`);
  const entries = Object.keys(manifest.exports)
    .filter((path) => manifest.exports[path].import)
    .map((path) => (path === '.' ? 'index' : path.slice(2)));
  modules(dist, entries);
  for (const file of ['bin.js', 'README.md', 'examples'].filter((one) => existsSync(join(HERE, one)))) {
    cpSync(join(HERE, file), join(stage, file), { recursive: true });
  }
  for (const file of ['LICENSE-MIT', 'LICENSE-APACHE']) cpSync(join(ROOT, file), join(stage, file));
  return stage;
}

function platform() {
  const musl = process.platform === 'linux' && !process.report.getReport().header.glibcVersionRuntime;
  const libc = process.platform === 'linux' ? (musl ? '-musl' : '-gnu') : process.platform === 'win32' ? '-msvc' : '';
  const name = args.platform ?? `${process.platform}-${process.arch}${libc}`;
  const [os, cpu, kind] = name.split('-');
  const stage = join(STAGE, name);
  mkdirSync(stage, { recursive: true });
  const file = join(stage, 'stvor.node');
  copyFileSync(args.binary ?? compile(), file);
  chmodSync(file, 0o755);
  const libcs = { gnu: ['glibc'], musl: ['musl'] };
  const glibc = kind === 'gnu' ? newestGlibc(file) : undefined;
  if (glibc) console.error(`${name}: it needs glibc ${glibc} or later`);
  if (kind === 'gnu' && args.glibc && !glibc) throw new Error(`${file} shows no version of glibc: whether it needs ${args.glibc} at most can not be told`);
  if (glibc && args.glibc && newer(glibc, args.glibc)) throw new Error(`${file} needs glibc ${glibc}: ${args.glibc} at most`);
  writeFileSync(
    join(stage, 'package.json'),
    `${JSON.stringify(
      {
        name: `${manifest.name}-${name}`,
        version: manifest.version,
        description: `The native half of ${manifest.name} for ${name}`,
        license: manifest.license,
        repository: manifest.repository,
        engines: manifest.engines,
        publishConfig: manifest.publishConfig,
        os: [os],
        cpu: [cpu],
        ...(libcs[kind] ? { libc: libcs[kind] } : {}),
        ...(glibc ? { glibc } : {}),
        main: './stvor.node',
        files: ['stvor.node', 'LICENSE-MIT', 'LICENSE-APACHE', 'THIRD-PARTY-NOTICES'],
      },
      null,
      2,
    )}\n`,
  );
  for (const licence of ['LICENSE-MIT', 'LICENSE-APACHE']) cpSync(join(ROOT, licence), join(stage, licence));
  writeFileSync(join(stage, 'THIRD-PARTY-NOTICES'), notices());
  writeFileSync(
    join(stage, 'README.md'),
    `The native half of [${manifest.name}](https://www.npmjs.com/package/${manifest.name}) for ${name}. Install that, not this.\n`,
  );
  return stage;
}

/** The newest glibc that a library wants symbols of: the versions are there as text. */
function newestGlibc(file) {
  const wanted = readFileSync(file, 'latin1').match(/GLIBC_2\.\d+/g) ?? [];
  return wanted.map((version) => version.slice('GLIBC_'.length)).reduce((most, one) => (most === undefined || newer(one, most) ? one : most), undefined);
}

function newer(one, other) {
  const [a, b] = [one, other].map((version) => version.split('.').map(Number));
  return (a[0] - b[0] || a[1] - b[1]) > 0;
}

/** The libraries that are in the binary, with their licences: every text once, with the libraries that it is of. */
function notices() {
  const json = execFileSync('cargo', ['metadata', '--locked', '--format-version', '1'], { cwd: ROOT, maxBuffer: 2 ** 28 });
  const { packages, resolve: graph } = JSON.parse(json);
  const nodes = new Map(graph.nodes.map((node) => [node.id, node]));
  const reached = new Set();
  const open = [packages.find((one) => one.name === CRATE).id];
  while (open.length > 0) {
    const id = open.pop();
    if (reached.has(id)) continue;
    reached.add(id);
    for (const { pkg, dep_kinds } of nodes.get(id).deps) if (dep_kinds.some(({ kind }) => kind === null)) open.push(pkg);
  }
  const foreign = packages.filter((one) => reached.has(one.id) && one.source !== null).sort((a, b) => a.name.localeCompare(b.name));
  const texts = new Map();
  const list = foreign.map((one) => {
    const folder = dirname(one.manifest_path);
    const name = `${one.name} ${one.version}`;
    for (const file of readdirSync(folder).filter((entry) => /^(licen[cs]e|copying|notice|copyright)/i.test(entry))) {
      let text;
      try {
        text = readFileSync(join(folder, file), 'utf8').trim();
      } catch {
        continue; // A folder of that name.
      }
      if (!texts.has(text)) texts.set(text, []);
      texts.get(text).push(name);
    }
    return `${name}: ${one.license ?? 'see its text below'}${one.repository ? `, ${one.repository}` : ''}`;
  });
  const rule = '-'.repeat(80);
  const parts = [...texts].map(([text, names]) => `${rule}\n${names.join(', ')}\n${rule}\n\n${text}\n`);
  return `Libraries that are part of this binary, and their licences.\n\n${list.join('\n')}\n\n${parts.join('\n')}`;
}

// What SQLite's bundled source would have beside what stores use: nobody can reach it, and every package would carry it.
const SQLITE_WITHOUT = ['FTS3', 'FTS3_PARENTHESIS', 'FTS5', 'RTREE'].map((part) => `-USQLITE_ENABLE_${part}`);

/** What releases are compiled with: without the paths of the machine that builds, and without what nothing uses. */
function releaseEnv() {
  const home = process.env.CARGO_HOME ?? join(homedir(), '.cargo');
  const pairs = [[home, 'cargo'], [ROOT, 'stvor']];
  const add = (name, flags) => ({ [name]: [process.env[name], ...flags].filter(Boolean).join(' ') });
  return {
    ...process.env,
    ...add('RUSTFLAGS', pairs.map(([from, to]) => `--remap-path-prefix=${from}=${to}`)),
    ...add('LIBSQLITE3_FLAGS', SQLITE_WITHOUT),
    ...(windows ? {} : add('CFLAGS', pairs.map(([from, to]) => `-ffile-prefix-map=${from}=${to}`))),
  };
}

function compile() {
  const release = args.profile === 'release';
  const env = release ? releaseEnv() : process.env;
  // What is released can use the system's keyring; building for tests spares its libraries.
  const wanted = [release && args.package === 'node' ? 'os-keyring' : '', args.features ?? ''].filter(Boolean);
  const features = wanted.length > 0 ? ['--features', wanted.join()] : [];
  const triple = args.zig ? `${{ x64: 'x86_64', arm64: 'aarch64' }[process.arch]}-unknown-linux-gnu` : '';
  const target = args.zig ? ['--target', `${triple}.${args.glibc}`] : [];
  // Small: everybody who installs the package gets all of it.
  run('cargo', [args.zig ? 'zigbuild' : 'build', '--locked', '-p', CRATE, ...features, ...(release ? ['--profile', 'ship'] : []), ...target], { env });
  const base = CRATE.replaceAll('-', '_');
  const library = { darwin: `lib${base}.dylib`, win32: `${base}.dll` }[process.platform] ?? `lib${base}.so`;
  return join(process.env.CARGO_TARGET_DIR ?? join(ROOT, 'target'), triple, release ? 'ship' : 'debug', library);
}

rmSync(STAGE, { recursive: true, force: true });
mkdirSync(OUT, { recursive: true });
for (const file of readdirSync(OUT)) if (file.startsWith(`stvor-${NAME}-`) && file.endsWith('.tgz')) rmSync(join(OUT, file));
for (const stage of [face(), platform()]) {
  run(windows ? 'npm.cmd' : 'npm', ['pack', '--silent', '--pack-destination', OUT, stage], { cwd: OUT, shell: windows });
}
if (args.profile === 'release') {
  for (const file of readdirSync(OUT).filter((name) => name.startsWith(`stvor-${NAME}-`) && name.endsWith('.tgz'))) {
    const { size } = statSync(join(OUT, file));
    if (size > LARGEST) throw new Error(`${file} has ${size} bytes: ${LARGEST} at most`);
    console.error(`${file}: ${(size / 1e6).toFixed(1)} MB`);
  }
}
