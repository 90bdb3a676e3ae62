// Builds the package and the platform package of this machine, and packs both: node scripts/pack.mjs [--profile dev|release]
// [--out DIRECTORY] [--binary FILE --platform NAME]. With --binary nothing is compiled from Rust: a release has built it elsewhere.
import { execFileSync } from 'node:child_process';
import { copyFileSync, cpSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync, chmodSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const HERE = resolve(dirname(fileURLToPath(import.meta.url)), '..');
const ROOT = resolve(HERE, '../..');
const { values: args } = parseArgs({
  options: {
    profile: { type: 'string', default: 'release' },
    out: { type: 'string', default: join(ROOT, 'target/npm') },
    binary: { type: 'string' },
    platform: { type: 'string' },
  },
});
const OUT = resolve(args.out);
const STAGE = join(OUT, 'stage');
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
    writeFileSync(
      join(dist, `${entry}.mjs`),
      `import all from './${entry}.js';\n\nexport const { ${names.join(', ')} } = all;\n`,
    );
    writeFileSync(join(dist, `${entry}.d.mts`), `export * from './${entry}.js';\n`);
  }
}

function face(manifest) {
  const stage = join(STAGE, 'sdk');
  const dist = join(stage, 'dist');
  mkdirSync(dist, { recursive: true });
  const tsc = join(HERE, 'tools/node_modules/typescript/bin/tsc');
  run(process.execPath, [tsc, '-p', join(HERE, 'tsconfig.json'), '--outDir', dist]);
  writeFileSync(join(dist, 'actions.json'), `${JSON.stringify(actions(), null, 1)}\n`);
  writeFileSync(join(stage, 'package.json'), `${JSON.stringify(manifest, null, 2)}\n`);
  const entries = Object.keys(manifest.exports)
    .filter((path) => !path.endsWith('.json'))
    .map((path) => (path === '.' ? 'index' : path.slice(2)));
  modules(dist, entries);
  for (const file of ['bin.js', 'README.md']) cpSync(join(HERE, file), join(stage, file));
  for (const file of ['LICENSE-MIT', 'LICENSE-APACHE']) cpSync(join(ROOT, file), join(stage, file));
  return stage;
}

function platform(manifest) {
  const musl = process.platform === 'linux' && !process.report.getReport().header.glibcVersionRuntime;
  const libc = process.platform === 'linux' ? (musl ? '-musl' : '-gnu') : process.platform === 'win32' ? '-msvc' : '';
  const name = args.platform ?? `${process.platform}-${process.arch}${libc}`;
  const [os, cpu, kind] = name.split('-');
  const stage = join(STAGE, name);
  mkdirSync(stage, { recursive: true });
  const file = join(stage, 'stvor.node');
  copyFileSync(args.binary ?? compile(), file);
  chmodSync(file, 0o755);
  if (!args.binary && os === 'linux') run('strip', ['--strip-unneeded', file]);
  if (!args.binary && os === 'darwin') run('strip', ['-x', file]);
  const libcs = { gnu: ['glibc'], musl: ['musl'] };
  writeFileSync(
    join(stage, 'package.json'),
    `${JSON.stringify(
      {
        name: `@stvor/sdk-${name}`,
        version: manifest.version,
        description: `The native half of @stvor/sdk for ${name}`,
        license: manifest.license,
        repository: manifest.repository,
        engines: manifest.engines,
        os: [os],
        cpu: [cpu],
        ...(libcs[kind] ? { libc: libcs[kind] } : {}),
        main: './stvor.node',
        files: ['stvor.node'],
      },
      null,
      2,
    )}\n`,
  );
  writeFileSync(
    join(stage, 'README.md'),
    `The native half of [@stvor/sdk](https://www.npmjs.com/package/@stvor/sdk) for ${name}. Install that, not this.\n`,
  );
  return stage;
}

function compile() {
  const release = args.profile === 'release';
  run('cargo', ['build', '--locked', '-p', 'stvor-node', ...(release ? ['--release'] : [])]);
  const library = { darwin: 'libstvor_node.dylib', win32: 'stvor_node.dll' }[process.platform] ?? 'libstvor_node.so';
  return join(process.env.CARGO_TARGET_DIR ?? join(ROOT, 'target'), release ? 'release' : 'debug', library);
}

const manifest = JSON.parse(readFileSync(join(HERE, 'package.json'), 'utf8'));
rmSync(STAGE, { recursive: true, force: true });
mkdirSync(OUT, { recursive: true });
for (const file of readdirSync(OUT)) if (file.endsWith('.tgz')) rmSync(join(OUT, file));
for (const stage of [face(manifest), platform(manifest)]) {
  run(windows ? 'npm.cmd' : 'npm', ['pack', '--silent', '--pack-destination', OUT, stage], { cwd: OUT, shell: windows });
}
