// A group chat on a terminal: node group.mjs NAME [MEMBER...]. Who names members makes the group; the others wait to be let in.
//   node group.mjs bob     (and in other terminals)
//   node group.mjs carol
//   node group.mjs alice bob carol
import { createInterface } from 'node:readline';
import { createApp } from '@stvor/sdk';

const [name, ...members] = process.argv.slice(2);
if (!name) {
  console.error('usage: node group.mjs NAME [MEMBER...]');
  process.exit(2);
}
const app = await createApp({
  appToken: process.env.STVOR_TOKEN ?? 'stvor_dev_test123',
  relayUrl: process.env.STVOR_RELAY ?? 'ws://localhost:4444',
});
const client = await app.connect(name);
let group = (await client.groups())[0];
client.on('groupJoined', ({ group: joined, by }) => {
  group = joined;
  console.log(`* ${by} let you in`);
});
client.on('groupChanged', ({ by, joined, gone, name: called }) => {
  for (const who of joined) console.log(`* ${by} let ${who} into ${called}`);
  for (const who of gone) console.log(`* ${who} is gone`);
});
client.onMessage((message) => {
  if (message.group) console.log(`${message.senderId}: ${message.content}`);
});
if (members.length > 0) {
  for (const member of members) await client.waitForUser(member);
  group = await client.createGroup('friends', members);
}
console.log('* write; /add NAME, /remove NAME, /members, /leave; end with Ctrl-D');

const COMMANDS = {
  add: (who) => group.add(who),
  remove: (who) => group.remove(who),
  members: async () => console.log(`* ${(await group.members()).join(', ')}`),
  leave: () => group.leave(),
};
for await (const line of createInterface({ input: process.stdin })) {
  const [, command, who] = /^\/(\w+)\s*(.*)$/.exec(line) ?? [];
  try {
    if (!group) console.log('* you are in no group yet');
    else if (command && Object.hasOwn(COMMANDS, command)) await COMMANDS[command](who);
    else if (line !== '') await group.send(line);
  } catch (error) {
    console.log(`* ${error.message} ${error.action}`);
  }
}
await app.close();
