// What an owner keeps: the search of a history, backups, the journal, the key of the store.
import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { codeOf, directory, sdk, startMockRelay } from './project.mjs';

const { createApp } = sdk;

/** Alice on disk, who wrote these to bob. */
async function wrote(t, texts) {
  const relay = await startMockRelay({ port: 0 });
  const settings = { appToken: 'stvor_dev_test123', relayUrl: relay.url, actor: 'nightly job' };
  const apps = [];
  t.after(async () => {
    for (const app of apps) await app.close();
    await relay.close();
  });
  const open = async (more) => {
    const app = await createApp({ ...settings, ...more });
    apps.push(app);
    return app;
  };
  const bob = await (await open({ storage: 'memory' })).connect('bob');
  const place = { storage: { sqlite: directory() } };
  const app = await open(place);
  const alice = await app.connect('alice');
  for (const content of texts) await (await alice.send('bob', content)).delivered();
  return { open, bob, alice, app, place };
}

test('a history is searched page by page', async (t) => {
  const { alice } = await wrote(t, ['The report of May', 'nothing', { title: 'REPORT of June' }, 'a report of July']);
  const said = (page) => page.messages.map(({ content }) => content.title ?? content);
  const first = await alice.history('bob', { search: 'Report OF', limit: 2 });
  assert.deepEqual(said(first), ['a report of July', 'REPORT of June']);
  const second = await first.older();
  assert.deepEqual(said(second), ['The report of May']);
  assert.equal(await second.older(), null);
  assert.deepEqual(said(await alice.history('bob', { search: 'August' })), []);
  assert.equal((await alice.history('bob', { search: '' })).messages.length, 4);
  const signal = AbortSignal.abort();
  for (const look of [alice.history('bob', { search: 'report', signal }), first.older({ signal })]) assert.equal(await codeOf(look), 'ABORTED');
  assert.deepEqual(said(await first.older({ signal: new AbortController().signal })), ['The report of May']);
  for (const search of [1, {}, 'x'.repeat(65_537)]) assert.equal(await codeOf(alice.history('bob', { search })), 'INVALID_ARGUMENT');
});

test('a backup of a client that works is restored elsewhere, by passphrase or by recipient', async (t) => {
  // Of the documentation of age.
  const recipients = ['age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj'];
  const identity = 'AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX';
  const { open, alice, app } = await wrote(t, ['one', 'two', 'three']);
  const kept = directory();
  const steps = [];
  const made = await alice.backup(kept, { passphrase: 'correct horse', onProgress: (progress) => steps.push(progress) });
  assert.deepEqual([made.messages, made.conversations, made.removed], [3, 1, []]);
  assert.ok(made.path.startsWith(kept) && made.bytes === readFileSync(made.path).length);
  assert.ok(readFileSync(made.path, 'latin1').startsWith('age-encryption.org/v1'));
  await (await alice.send('bob', 'it works on')).delivered();
  const later = await alice.backup(kept, { recipients, keep: 1 });
  assert.deepEqual(later.removed, [made.path]);
  const [newest, older] = await alice.journal({ limit: 2 });
  assert.deepEqual([newest.deed, newest.who, newest.subject], ['backup_made', 'nightly job', later.path]);
  assert.ok(newest.at >= older.at && newest.at instanceof Date);
  assert.deepEqual(steps.at(-1), { done: 1, total: 1 });

  const { fingerprint } = alice.identity;
  const known = join(kept, 'passphrase.age');
  await alice.backup(known, { passphrase: 'correct horse', onProgress: () => { throw new Error('never mind'); } });
  // An unhandled rejection would fail the test.
  await alice.backup(join(kept, 'async.age'), { passphrase: 'correct horse', onProgress: async () => { throw new Error('never mind'); } });
  assert.equal(await codeOf(alice.backup(known, { passphrase: 'x' })), 'BACKUP_FILE_EXISTS');
  await app.close();
  for (const [file, opening, wrong] of [
    [known, { passphrase: 'correct horse' }, [{ passphrase: 'wrong' }, 'BACKUP_WRONG_KEY']],
    [later.path, { identity }, [{ passphrase: 'correct horse' }, 'KEY_REQUIRED']],
  ]) {
    const elsewhere = await open({ storage: { sqlite: directory() } });
    assert.equal(await codeOf(elsewhere.restore(file, wrong[0])), wrong[1]);
    const restored = await elsewhere.restore(file, opening);
    assert.deepEqual([restored.userId, restored.messages], ['alice', 4]);
    assert.ok(restored.madeAt instanceof Date);
    assert.equal(await codeOf(elsewhere.restore(file, opening)), 'RESTORE_STORE_EXISTS');
    const again = await elsewhere.connect('alice');
    assert.equal(again.identity.fingerprint, fingerprint);
    const { deed, detail } = (await again.journal())[0];
    assert.equal(deed, 'restored');
    assert.match(detail, /^backup of 20\d\d-\d\d-\d\dT[0-9:.]+Z$/);
    await elsewhere.close();
  }
});

test('an aborted backup leaves nothing', async (t) => {
  const { alice } = await wrote(t, ['one']);
  const kept = directory();
  const signal = AbortSignal.abort();
  assert.equal(await codeOf(alice.backup(kept, { passphrase: 'x', signal })), 'ABORTED');
  assert.deepEqual(readdirSync(kept), []);
});

test('the key of a store is changed and its data key rotated under a client that works', async (t) => {
  const { open, alice, app, place } = await wrote(t, ['one', 'two']);
  const steps = [];
  await alice.rotateKey({ onProgress: (progress) => steps.push(progress) });
  await alice.changeKey({ passphrase: 'a new one' });
  await (await alice.send('bob', 'three')).delivered();
  assert.deepEqual((await alice.journal()).map(({ deed }) => deed), ['key_changed', 'key_rotated']);
  assert.ok(steps.length > 0 && steps.every(({ done, total }) => done <= total));
  await app.close();
  assert.equal(await codeOf((await open(place)).connect('alice')), 'KEY_REQUIRED');
  const again = await (await open({ ...place, passphrase: 'a new one' })).connect('alice');
  assert.equal((await again.history('bob')).messages.length, 3);
  const signal = AbortSignal.abort();
  assert.equal(await codeOf(again.rotateKey({ signal })), 'ABORTED');
  // It changed nothing: what comes after finds the key of before.
  assert.equal(await codeOf(again.changeKey({ passphrase: 'one more' }, { signal })), 'ABORTED');
  await again.changeKey({ passphrase: 'the last' }, { signal: new AbortController().signal });
  assert.deepEqual((await again.journal()).map(({ deed }) => deed), ['key_changed', 'key_changed', 'key_rotated']);
});

test('what can be no backup, key or journal is refused', async (t) => {
  const { alice, app } = await wrote(t, ['one']);
  const kept = directory();
  const refused = async (code, ...all) => {
    for (const one of all) assert.equal(await codeOf(one()), code);
  };
  await refused('INVALID_ARGUMENT', () => alice.backup(kept, {}), () => alice.backup(kept, { passphrase: 'x', recipients: [] }), () => alice.backup('', { passphrase: 'x' }),
    () => alice.backup(kept, { passphrase: 'x', keep: 0 }), () => alice.backup(kept, { recipients: [] }), () => alice.backup(kept, { passphrase: 'x', onProgress: 1 }),
    () => alice.journal({ limit: 0 }), () => alice.journal({ limit: 1_001 }), () => app.restore(kept, {}));
  await refused('INVALID_CONFIG', () => alice.backup(kept, { password: 'x' }), () => alice.backup(7, { passphrase: 'x' }), () => alice.backup(kept, { recipients: [7] }),
    () => alice.changeKey({}), () => alice.changeKey({ passphrase: 'x', keyfile: 'y' }), () => alice.changeKey({ passphrase: 7 }), () => alice.changeKey({ phrase: 'x' }));
  await refused('KEY_MALFORMED', () => alice.backup(kept, { recipients: ['age1nobody'] }), () => alice.backup(kept, { passphrase: '' }), () => alice.changeKey({ passphrase: '' }),
    () => app.restore(kept, { identity: 'nonsense' }));
  assert.deepEqual(readdirSync(kept), []);
  await alice.close();
  await refused('CLIENT_NOT_READY', () => alice.backup(kept, { passphrase: 'x' }), () => alice.journal(), () => alice.changeKey({ passphrase: 'x' }), () => alice.rotateKey());
});
