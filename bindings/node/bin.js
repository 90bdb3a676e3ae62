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
  if (verb === '--help' || verb === 'help') return void process.stdout.write(USAGE);
  if (verb !== 'mock-relay' || rest.length > 0) {
    process.stderr.write(USAGE);
    process.exitCode = 2;
    return;
  }
  const { STVOR_MOCK_PORT: port = '4444', STVOR_MOCK_VERBOSE: verbose } = process.env;
  if (!/^\d{1,5}$/.test(port)) {
    process.stderr.write(`STVOR_MOCK_PORT is a port number, not "${port}"\n`);
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

main(process.argv.slice(2)).catch((error) => {
  process.stderr.write(`${error}\n${error.action ? `  ${error.action}\n` : ''}`);
  process.exitCode = 1;
});
