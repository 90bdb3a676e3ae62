const sdk = require('@stvor/sdk');
// Use the async loader
const { Stvor } = await sdk.load();
const app = await Stvor.init({
appToken: 'stvor_dev_test123',
relayUrl: 'ws://localhost:4444'
});
