// relay-server.mjs
import WebSocket, { WebSocketServer } from 'ws';
const PORT = 8080;
const wss = new WebSocketServer({ port: PORT });
console.log(`🔌 Relay running on ws://localhost:${PORT}`);
const clients = new Map();
const pubkeys = new Map();
wss.on('connection', (ws) => {
// Send all known keys to new client
for (const [user, pub] of pubkeys.entries()) {
ws.send(JSON.stringify({ type: 'announce', user, pub }));
}
ws.on('message', (data) => {
let msg;
try { msg = JSON.parse(data.toString()); } catch { return; }
if (msg.type === 'announce' && msg.user) {
clients.set(msg.user, ws);
pubkeys.set(msg.user, msg.pub);
// Broadcast to all
for (const [_, client] of clients) {
if (client.readyState === WebSocket.OPEN) {
client.send(JSON.stringify({
type: 'announce',
user: msg.user,
pub: msg.pub
}));
}
}
}
if (msg.type === 'message' && msg.to) {
const target = clients.get(msg.to);
if (target && target.readyState === WebSocket.OPEN) {
target.send(JSON.stringify(msg));
}
}
});
});
