// A process of database.test.mjs: reads a first message, and stops where it is told to, to be killed there.
import { adapterOf, poolOf } from './database.mjs';
import { ours, read } from './world.mjs';

const [host, where, name, body] = process.argv.slice(2);
const pool = poolOf(host);
const rows = adapterOf(pool);

async function reached(place) {
  if (place !== where) return;
  console.log(place);
  await new Promise(() => {});
}

const adapter = {
  ...rows,
  async transaction(work) {
    const result = await rows.transaction((within) => work({
      ...within,
      async set(key, value) {
        await within.set(key, value);
        await reached(key.split(':')[0]);
      },
      async delete(key) {
        await within.delete(key);
        await reached('deleted');
      },
    }));
    await reached('committed');
    return result;
  },
};

const storage = ours.createStorage(adapter, { requireAtomicSessionAndPreKey: true });
console.log(await read(new ours.SessionCipher(storage, new ours.ProtocolAddress(name, 1)), { type: 3, body: Buffer.from(body, 'base64') }));
await pool.end();
