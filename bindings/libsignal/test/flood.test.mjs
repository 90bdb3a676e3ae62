// More calls than are let in, while a storage hangs: each is done or refused, and the memory that is kept stays within a fixed bound.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

/** Calls of the flood: `STVOR_FLOOD_CALLS` says how many, for a long run. */
const CALLS = Number(process.env.STVOR_FLOOD_CALLS ?? 300_000);

test('however many calls come while a storage hangs, memory does not grow, and each is done or refused', { timeout: 120_000 + CALLS }, () => {
  const flood = fileURLToPath(new URL('flood.mjs', import.meta.url));
  const { status, stdout, stderr } = spawnSync(process.execPath, ['--expose-gc', flood, `${CALLS}`], { encoding: 'utf8' });
  assert.equal(status, 0, stderr);
  const { ends, grown } = JSON.parse(stdout);
  // One of each of 64 addresses runs, and 4,096 wait.
  assert.deepEqual(ends, { done: 64 + 4_096, BACKPRESSURE: CALLS - 64 - 4_096 });
  // If what is refused were kept, its contents alone would be 280 MiB.
  assert.ok(grown < 16 * 2 ** 20, `${grown} bytes`);
});
