// The same with Fastify: node fastify.mjs (npm install fastify @stvor/sdk)
import { createApp, StvorError } from '@stvor/sdk';
import fastify from 'fastify';

const stvor = await createApp({
  appToken: process.env.STVOR_TOKEN ?? 'stvor_dev_test123',
  relayUrl: process.env.STVOR_RELAY ?? 'ws://localhost:4444',
});
const support = await stvor.connect('support');
support.onMessage((message) => console.log(`${message.senderId}: ${message.content}`));

const server = fastify({ bodyLimit: 65_536 });

server.post('/messages/:user', async (request, reply) => {
  const receipt = await support.send(request.params.user, request.body);
  return reply.code(202).send({ id: receipt.id, status: receipt.status });
});

server.setErrorHandler((error, _request, reply) => {
  if (!(error instanceof StvorError)) return reply.send(error);
  const { code, message, action, retryable } = error;
  return reply.code(retryable ? 503 : 400).send({ code, message, action });
});

server.addHook('onClose', () => stvor.close());
const address = await server.listen({ port: Number(process.env.PORT ?? 3000), host: '127.0.0.1' });
console.log(`listening on ${new URL(address).port}`);
process.once('SIGTERM', () => server.close());
