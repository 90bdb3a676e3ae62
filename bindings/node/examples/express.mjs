// A web server that hands messages on, end to end encrypted: node express.mjs (npm install express@5 @stvor/sdk)
import { createApp, StvorError } from '@stvor/sdk';
import express from 'express';

const stvor = await createApp({
  appToken: process.env.STVOR_TOKEN ?? 'stvor_dev_test123',
  relayUrl: process.env.STVOR_RELAY ?? 'ws://localhost:4444',
});
const support = await stvor.connect('support');
support.onMessage((message) => console.log(`${message.senderId}: ${message.content}`));

const server = express();
server.use(express.json({ limit: '64kb' }));

server.post('/messages/:user', async (request, response) => {
  const receipt = await support.send(request.params.user, request.body);
  response.status(202).json({ id: receipt.id, status: receipt.status });
});

// Codes say whether it helps to ask again; messages say what to do.
server.use((error, _request, response, next) => {
  if (!(error instanceof StvorError)) return next(error);
  response.status(error.retryable ? 503 : 400).json({ code: error.code, message: error.message, action: error.action });
});

const listening = server.listen(Number(process.env.PORT ?? 3000), '127.0.0.1', () => {
  console.log(`listening on ${listening.address().port}`);
});
// Requests that are under way are answered first.
process.once('SIGTERM', () => listening.close(() => stvor.close()));
