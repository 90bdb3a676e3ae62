// The example runs as it stands, and the README's imports exist.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { copyFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { pathToFileURL } from 'node:url';
import { group, ours } from './world.mjs';

const project = process.env.STVOR_TEST_PROJECT;

test('the Baileys-shaped flow runs to its end', () => {
  const path = join(project, 'baileys.mjs');
  copyFileSync(join(project, 'node_modules/@stvor/libsignal/examples/baileys.mjs'), path);
  const printed = execFileSync(process.execPath, [path], { cwd: project }).toString().trim().split('\n');
  assert.deepEqual(printed, [
    'phone reads: hello',
    'the same again: DUPLICATE',
    'bot reads: hi',
    'phone reads: hello once more',
    'bot reads: sent before the retry',
    'phone reads in the group: to all',
    'both read: one one',
    'prekey 0 is stored: true',
    'both read: two two',
    'prekey 1 is stored: true',
    'moved: true',
    'phone reads: to the LID',
  ]);
});

test('both module systems give one implementation', async () => {
  const imported = await import(pathToFileURL(join(project, 'node_modules/@stvor/libsignal/dist/index.mjs')).href);
  assert.deepEqual(Object.keys(imported).sort(), [...Object.keys(ours), 'default'].sort());
  for (const name of Object.keys(ours)) assert.equal(imported[name], ours[name], name);
  const groups = await import(pathToFileURL(join(project, 'node_modules/@stvor/libsignal/dist/group.mjs')).href);
  assert.equal(groups.GroupCipher, group.GroupCipher);
});
