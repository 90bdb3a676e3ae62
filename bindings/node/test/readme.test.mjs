// The README's examples run as they stand, and so do the servers of examples/ where their frameworks are installed.
import assert from 'node:assert/strict';
import { cpSync, existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { at, directory, load, project, run, start, write } from './project.mjs';

const { startMockRelay } = await load('@stvor/sdk/mock-relay');
const here = (path) => fileURLToPath(new URL(`../${path}`, import.meta.url));
const quiet = () => ({ NODE_OPTIONS: '--no-warnings', XDG_DATA_HOME: directory() });

const EXPECTED = ['alice: Hello!\n', 'json 1\njson 2\njson 3\n', 'true\n', /^(judy: Hello, all!\n)*kate: Hello, judy!\n$/, /^RECIPIENT_TIMEOUT true\n.+\n$/, 'by pigeon\n'];

test('the examples of the README', async (t) => {
  const relay = await startMockRelay({ port: 0 });
  t.after(() => relay.close());
  const env = quiet();
  const blocks = [...readFileSync(here('README.md'), 'utf8').matchAll(/```js\n([\s\S]*?)```/g)].map(([, code]) => code);
  assert.equal(blocks.length, EXPECTED.length);
  // Twice at one relay, which a newcomer leaves running.
  for (const [number, code] of [...blocks.entries(), ...blocks.entries()]) {
    const file = write(code.replaceAll('localhost:4444', `localhost:${relay.port}`));
    const { stdout, stderr, code: exit } = await run([file], { env });
    assert.equal(exit, 0, stderr);
    if (EXPECTED[number] instanceof RegExp) assert.match(stdout, EXPECTED[number]);
    else assert.equal(stdout, EXPECTED[number]);
  }
});

for (const framework of ['express', 'fastify']) {
  const installed = existsSync(join(here('tools/node_modules'), framework));
  test(`the ${framework} server hands messages on`, { skip: !installed && `npm ci in bindings/node/tools installs ${framework}` }, async (t) => {
    const { relay, app } = await at(t);
    const bob = await app.connect('bob');
    const file = join(project, `${framework}.mjs`);
    cpSync(here(`examples/${framework}.mjs`), file);
    const server = start([file], { env: { ...quiet(), PORT: '0', STVOR_RELAY: relay.url } });
    t.after(() => server.child.kill('SIGKILL'));
    const port = /\d+/.exec(await server.line(/listening/))[0];
    const post = (user, body) => fetch(`http://127.0.0.1:${port}/messages/${user}`, {
      method: 'POST', headers: { 'content-type': 'application/json', connection: 'close' }, body: JSON.stringify(body),
    });
    const inbox = bob.messages();
    const answer = await post('bob', { text: 'hi' });
    assert.equal(answer.status, 202);
    const { value } = await inbox.next();
    assert.deepEqual([value.senderId, value.content, value.id], ['support', { text: 'hi' }, (await answer.json()).id]);
    await bob.send('support', 'thanks');
    assert.equal(await server.line(/bob/), 'bob: thanks');
    const refused = await post('support', { text: 'to itself' });
    assert.deepEqual([refused.status, (await refused.json()).code], [400, 'INVALID_ARGUMENT']);
    server.child.kill('SIGTERM');
    const { code } = await server.ended;
    // Elsewhere it is asked to end; Windows just ends it.
    if (process.platform !== 'win32') assert.equal(code, 0);
  });
}

test('the group of the examples, on three terminals', async (t) => {
  const relay = await startMockRelay({ port: 0 });
  t.after(() => relay.close());
  const file = join(project, 'group.mjs');
  cpSync(here('examples/group.mjs'), file);
  const terminal = (...argv) => {
    const one = start([file, ...argv], { env: { ...quiet(), STVOR_RELAY: relay.url }, open: true });
    t.after(() => one.child.kill('SIGKILL'));
    return one;
  };
  const [bob, carol] = [terminal('bob'), terminal('carol')];
  await Promise.all([bob.line(/write/), carol.line(/write/)]);
  const alice = terminal('alice', 'bob', 'carol');
  await Promise.all([bob, carol].map((one) => one.line(/alice let you in/)));
  bob.child.stdin.write('hello\n/members\n');
  assert.equal(await bob.line(/alice,/), '* alice, bob, carol');
  for (const one of [alice, carol]) assert.equal(await one.line(/^bob/), 'bob: hello');
  carol.child.stdin.write('/leave\nstill there?\n');
  assert.match(await carol.line(/NOT_A_MEMBER/), /\[NOT_A_MEMBER\]/);
  await bob.line(/carol is gone/);
  for (const one of [alice, bob, carol]) {
    one.child.stdin.end();
    assert.equal((await one.ended).code, 0, one.stderr);
  }
});
