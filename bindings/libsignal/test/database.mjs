// An adapter over PostgreSQL, as an application has one: each transaction has a connection of its own.
import { require } from './world.mjs';

export const TABLE = 'CREATE TABLE kept (key text PRIMARY KEY, value bytea NOT NULL)';

/** Connections to the server of postgresServer in a folder. */
export const poolOf = (host) => {
  const pool = new (require('pg').Pool)({ host, user: 'stvor', database: 'postgres' });
  // Without a listener a connection that its server ends ends the process. Whoever uses the next one is told.
  pool.on('error', () => {});
  return pool;
};

const over = (connection) => ({
  get: async (key) => (await connection.query('SELECT value FROM kept WHERE key = $1', [key])).rows[0]?.value,
  set: (key, value) => connection.query('INSERT INTO kept VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = $2', [key, value]),
  delete: (key) => connection.query('DELETE FROM kept WHERE key = $1', [key]),
});

export const adapterOf = (pool) => ({
  ...over(pool),
  async transaction(work) {
    const connection = await pool.connect();
    let broken;
    try {
      await connection.query('BEGIN');
      const result = await work(over(connection));
      await connection.query('COMMIT');
      return result;
    } catch (thrown) {
      await connection.query('ROLLBACK').catch((error) => {
        broken = error;
      });
      throw thrown;
    } finally {
      // In a state that nobody knows it is used no more.
      connection.release(broken);
    }
  },
});
