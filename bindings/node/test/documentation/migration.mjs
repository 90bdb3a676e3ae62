import { createApp } from '@stvor/sdk';
const app = await createApp({ appToken: 'stvor_test', relayUrl: 'ws://localhost:4444' });
const alice = await app.connect('alice');
const bob = await app.connect('bob');
bob.onMessage((from, msg) => { console.log('✅ E2EE работает:', msg); process.exit(0); });
await alice.send('bob', 'Hello from v3.0! 🔐');
