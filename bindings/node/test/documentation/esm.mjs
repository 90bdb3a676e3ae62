import { Stvor } from '@stvor/sdk';
const app = await Stvor.init({
appToken: 'stvor_dev_test123',
relayUrl: 'ws://localhost:4444'
});
