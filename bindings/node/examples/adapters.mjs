// Stores of one's own, in Redis and PostgreSQL: node adapters.mjs [PEER TEXT] (npm install pg redis @stvor/sdk)
// One user, in one process at a time. Where a database may be given to the SDK itself, `storage: { postgres: url }` is stronger and needs none of this.
import { readFile, writeFile } from 'node:fs/promises';
import { createApp, generateIdentityKeyPair } from '@stvor/sdk';
import pg from 'pg';
import { createClient } from 'redis';

const { REDIS_SOCKET, REDIS_URL, STVOR_TOKEN, STVOR_RELAY, KEY_FILE = 'alice.key' } = process.env;
const redis = createClient(REDIS_SOCKET ? { socket: { path: REDIS_SOCKET } } : { url: REDIS_URL });
// Without a listener a server that restarts would end this process; both drivers connect again by themselves.
redis.on('error', (error) => console.error(`redis: ${error.message}`));
await redis.connect();
// PGHOST, PGUSER, PGDATABASE and PGPASSWORD say where. The server ends what takes too long: a save that was refused must not land later.
const database = new pg.Pool({ connectionTimeoutMillis: 5_000, statement_timeout: 5_000, keepAlive: true });
database.on('error', (error) => console.error(`postgres: ${error.message}`));
await database.query(`
  CREATE TABLE IF NOT EXISTS sessions (peer_id text PRIMARY KEY, state bytea NOT NULL);
  CREATE TABLE IF NOT EXISTS pins (peer_id text PRIMARY KEY, fingerprint text NOT NULL);
`);

const replay = {
  // One step: NX sets only what is not there, and answers null if it is.
  async checkAndMark(peerId, nonce) {
    const key = `replay:${peerId}:${Buffer.from(nonce).toString('hex')}`;
    return (await redis.set(key, '1', { NX: true, EX: 300 })) === null;
  },
};

const tofu = {
  // A fingerprint that is there stays.
  async storeFingerprint(peerId, fingerprint) {
    await database.query('INSERT INTO pins VALUES ($1, $2) ON CONFLICT DO NOTHING', [peerId, fingerprint]);
  },
  async verifyFingerprint(peerId, fingerprint) {
    const { rows } = await database.query('SELECT fingerprint FROM pins WHERE peer_id = $1', [peerId]);
    return rows[0]?.fingerprint === fingerprint;
  },
  // Somebody accepted another identity, or the old key signed it. One step: it changes only what is still the old one.
  async replaceFingerprint(peerId, old, fingerprint) {
    await database.query('UPDATE pins SET fingerprint = $3 WHERE peer_id = $1 AND fingerprint = $2', [peerId, old, fingerprint]);
  },
};

const sessions = {
  async save(peerId, state) {
    await database.query('INSERT INTO sessions VALUES ($1, $2) ON CONFLICT (peer_id) DO UPDATE SET state = $2', [peerId, state]);
  },
  async load(peerId) {
    const { rows } = await database.query('SELECT state FROM sessions WHERE peer_id = $1', [peerId]);
    return rows[0]?.state ?? null;
  },
};

// It opens everything that the sessions hold, so it is kept elsewhere: a file here, a KMS where there is one.
const identity = {
  async getIdentityKeyPair() {
    try {
      const { publicKey, privateKey } = JSON.parse(await readFile(KEY_FILE, 'utf8'));
      return { publicKey: Buffer.from(publicKey, 'base64'), privateKey: Buffer.from(privateKey, 'base64') };
    } catch (error) {
      if (error.code !== 'ENOENT') throw error;
    }
    const made = generateIdentityKeyPair();
    const text = (bytes) => Buffer.from(bytes).toString('base64');
    // `wx`: never over one that is there.
    await writeFile(KEY_FILE, JSON.stringify({ publicKey: text(made.publicKey), privateKey: text(made.privateKey) }), { flag: 'wx', mode: 0o600 });
    return made;
  },
};

const app = await createApp({
  appToken: STVOR_TOKEN ?? 'stvor_dev_test123',
  relayUrl: STVOR_RELAY ?? 'ws://localhost:4444',
  storageAdapters: { replay, tofu, sessions, identity },
});
const alice = await app.connect('alice');
console.log(`alice is ${alice.identity.fingerprint}`);
alice.onMessage((message) => console.log(`${message.senderId}: ${message.content}`));
const [peer, text] = process.argv.slice(2);
if (peer) await alice.send(peer, text ?? 'Hello!');

process.once('SIGTERM', async () => {
  await app.close();
  await Promise.all([redis.close(), database.end()]);
});
