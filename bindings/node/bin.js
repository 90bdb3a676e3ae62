#!/usr/bin/env node
'use strict';
// npx @stvor/sdk mock-relay
const { startMockRelay } = require('./dist/mock-relay.js');
const { version } = require('./package.json');

const USAGE = `usage: npx @stvor/sdk mock-relay

A relay for development: in memory, on this machine, any token that begins with stvor_ is let in.

  STVOR_MOCK_PORT     the port (4444); 0 takes any free one
  STVOR_MOCK_VERBOSE  1: says on standard error what it does
`;

async function main([verb, ...rest]) {
  if (verb === '--version') return void process.stdout.write(`${version}\n`);
  if (verb === 'help' || [verb, ...rest].some((word) => word === '--help' || word === '-h')) return void process.stdout.write(USAGE);
  if (verb !== 'mock-relay' || rest.length > 0) {
    process.stderr.write(USAGE);
    process.exitCode = 2;
    return;
  }
  const { STVOR_MOCK_VERBOSE: verbose } = process.env;
  // Compose files give what is not set as empty.
  const port = process.env.STVOR_MOCK_PORT || '4444';
  if (!/^\d{1,5}$/.test(port) || Number(port) > 65_535) {
    process.stderr.write(`STVOR_MOCK_PORT is a port number, 65535 at most, not "${port}"\n`);
    process.exitCode = 2;
    return;
  }
  const relay = await startMockRelay({ port: Number(port), verbose: Boolean(verbose) && verbose !== '0' });
  process.stdout.write(`STVOR mock relay on ws://localhost:${relay.port}\n`);
  process.stdout.write(`  health: curl http://localhost:${relay.port}/health\n`);
  process.stdout.write('  in memory, for development only; Ctrl-C ends it\n');
  if (verbose && verbose !== '0') follow(relay);
  for (const signal of ['SIGINT', 'SIGTERM']) {
    process.once(signal, () => relay.close().then(() => process.exit(0)));
  }
}

/** Says who comes and goes, in numbers. */
function follow(relay) {
  let last = '';
  const look = () => {
    const { connections, users } = relay.load;
    const now = `${connections} connections, ${users} users`;
    if (now !== last) process.stderr.write(`${new Date().toISOString()} ${now}\n`);
    last = now;
  };
  look();
  setInterval(look, 250).unref();
}

// Whoever read the output may go away: the relay goes on.
for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {});

main(process.argv.slice(2)).catch((error) => {
  process.stderr.write(`${error}\n${error.action ? `  ${error.action}\n` : ''}`);
  process.exitCode = 1;
});
