// What seals the stores, and what identities follow from.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, writeFileSync } from 'node:fs';
import { createServer, request } from 'node:http';
import { join } from 'node:path';
import { test } from 'node:test';
import { createCipheriv, createDecipheriv, randomBytes } from 'node:crypto';
import { directory, run, sdk, startMockRelay, write } from './project.mjs';
import { required, serve } from './servers.mjs';

const { createApp, generateRecoveryPhrase } = sdk;

async function relayFor(t) {
  const relay = await startMockRelay({ port: 0 });
  t.after(() => relay.close());
  return { appToken: 'stvor_dev_test123', relayUrl: relay.url, replaceIdentity: true };
}

/** The fingerprint of a user, or the code of what went wrong. */
async function fingerprint(settings, user = 'alice') {
  try {
    const app = await createApp(settings);
    try {
      return (await app.connect(user)).identity.fingerprint;
    } finally {
      await app.close();
    }
  } catch (error) {
    return error.code;
  }
}

test('one key, and one only', async () => {
  const base = { appToken: 'stvor_x', relayUrl: 'ws://localhost:1', storage: { sqlite: directory() } };
  const token = { module: '/m', token: 't', key: 'k', pin: '1' };
  const server = { server: 'localhost', rootCertificateFile: 'r', clientCertificateFile: 'c', clientKeyFile: 'k', key: '1' };
  const refused = (more, pattern, code = 'INVALID_CONFIG') => assert.rejects(createApp({ ...base, ...more }), (error) => {
    assert.match(error.message, pattern);
    assert.equal(error.code, code);
    return true;
  });
  for (const productionMode of [false, true]) await refused({ passphrase: '', productionMode }, /empty/);
  await refused({ passphrase: 'x', keyfile: 'y' }, /passphrase and keyfile exclude each other/);
  await refused({ osKeyring: true, pkcs11: token, kmip: server }, /osKeyring and pkcs11 and kmip exclude/);
  await refused({ osKeyring: 'yes' }, /true or false/);
  await refused({ pkcs11: { ...token, pin: undefined } }, /either pin or pinFile/);
  await refused({ pkcs11: { ...token, pinFile: 'x' } }, /either pin or pinFile/);
  await refused({ pkcs11: { ...token, slot: 1 } }, /pkcs11 has no "slot"/);
  await refused({ pkcs11: { ...token, key: '' } }, /pkcs11\.key is missing/);
  await refused({ pkcs11: 'x' }, /pkcs11 is an object/);
  await refused({ pkcs11: token }, /./, 'KEY_UNAVAILABLE');
  await refused({ pkcs11: { ...token, pin: undefined, pinFile: '/nowhere' } }, /pkcs11\.pinFile/, 'KEY_IO');
  await refused({ kmip: { ...server, key: undefined } }, /kmip\.key is missing/);
  await refused({ kmip: server }, /kmip\.rootCertificateFile/, 'KEY_IO');
  await refused({ kms: 'x' }, /kms is an object/);
  await refused({ kms: null }, /kms is an object/);
  await refused({ kms: { unwrap() {} } }, /kms\.wrap is a function/);
  await refused({ kms: { wrap() {}, unwrap: 1 } }, /kms\.unwrap is a function/);
  await refused({ kms: { wrap() {}, unwrap() {} }, passphrase: 'x' }, /passphrase and kms exclude each other/);
  await refused({ identityPhrase: 'a', identityPassphrase: 'b' }, /exclude/);
  await refused({ identityPhrase: 'abandon ability' }, /24 words/, 'KEY_MALFORMED');
  await refused({ identityPassphrase: 'short' }, /16 bytes/, 'KEY_MALFORMED');
});

test('24 words are the same person on a new device, and nobody else', async (t) => {
  const settings = { ...(await relayFor(t)), storage: 'memory' };
  const words = generateRecoveryPhrase();
  assert.match(words, /^([a-z]+ ){23}[a-z]+$/);
  assert.notEqual(words, generateRecoveryPhrase());
  const first = await fingerprint({ ...settings, identityPhrase: words });
  assert.match(first, /^[0-9a-f]{64}$/);
  assert.equal(await fingerprint({ ...settings, identityPhrase: words.toUpperCase() }), first);
  assert.notEqual(await fingerprint({ ...settings, identityPhrase: words }, 'bob'), first);
  const swapped = words.split(' ');
  [swapped[0], swapped[1]] = [swapped[1], swapped[0]];
  if (swapped[0] !== swapped[1]) assert.notEqual(await fingerprint({ ...settings, identityPhrase: swapped.join(' ') }), first);
  // A store that holds somebody else is refused.
  const disk = { ...settings, storage: { sqlite: directory() } };
  await fingerprint(disk);
  assert.equal(await fingerprint({ ...disk, identityPhrase: words }), 'IDENTITY_EXISTS');
});

test('a passphrase of 16 bytes or more does, too', async (t) => {
  const settings = { ...(await relayFor(t)), storage: 'memory', identityPassphrase: 'not a good one, but long' };
  assert.equal(await fingerprint(settings), await fingerprint(settings));
});

test('the system\'s keyring, where there is none, is KEYRING_UNAVAILABLE', async (t) => {
  const settings = { ...(await relayFor(t)), storage: { sqlite: directory() }, osKeyring: true };
  const ended = await run([write(`
    import { createApp } from '@stvor/sdk';
    const code = (error) => console.log(error.code);
    await createApp(${JSON.stringify(settings)}).then((app) => app.connect('alice').catch(code), code);
    process.exit(0);`)], { env: { DBUS_SESSION_BUS_ADDRESS: 'unix:path=/nowhere' } });
  if (process.platform === 'linux') assert.equal(ended.stdout, 'KEYRING_UNAVAILABLE\n', ended.stderr);
});

const MODULE = ['/usr/lib/softhsm/libsofthsm2.so', '/usr/lib64/pkcs11/libsofthsm2.so'].find((path) => existsSync(path));
const softhsm = !MODULE && !required && 'SoftHSM2 is missing: ./x setup-keys';

test('a key in a PKCS #11 token', { skip: softhsm }, async (t) => {
  const place = directory();
  const [config, pinFile, key] = ['softhsm2.conf', 'pin', 'key'].map((name) => join(place, name));
  writeFileSync(config, `directories.tokendir = ${place}\nobjectstore.backend = file\nlog.level = ERROR\n`);
  writeFileSync(pinFile, '1234\n');
  // The tool ends a key early at some bytes (zero is one), and the token then has no cipher for its length.
  writeFileSync(key, randomBytes(16).toString('hex'));
  const tool = (...argv) => {
    const ended = spawnSync('softhsm2-util', argv, { env: { ...process.env, SOFTHSM2_CONF: config }, encoding: 'utf8' });
    assert.equal(ended.status, 0, ended.stderr);
  };
  tool('--init-token', '--free', '--label', 'app', '--so-pin', '5678', '--pin', '1234');
  tool('--import', key, '--aes', '--token', 'app', '--label', 'store', '--id', '01', '--pin', '1234');
  const settings = { ...(await relayFor(t)), storage: { sqlite: directory() }, pkcs11: { module: MODULE, token: 'app', key: 'store', pinFile } };
  // The module reads its settings once for each process.
  const as = async (pkcs11) => {
    const ended = await run([write(`
      import { createApp } from '@stvor/sdk';
      const app = await createApp(${JSON.stringify({ ...settings, ...pkcs11 })});
      try {
        const alice = await app.connect('alice');
        console.log(alice.identity.fingerprint);
        const { messages } = await alice.history('bob');
        await alice.send('bob', String(messages.length));
        console.log(messages.map(({ content }) => content).join());
      } catch (error) {
        console.log(error.code, error.message);
      }
      await app.close();`)], { env: { SOFTHSM2_CONF: config } });
    assert.equal(ended.code, 0, ended.stderr);
    return ended.stdout.trim();
  };
  const others = await createApp({ ...settings, storage: 'memory', pkcs11: undefined });
  t.after(() => others.close());
  const bob = (await others.connect('bob')).messages();
  const first = await as({});
  assert.match(first, /^[0-9a-f]{64}$/);
  assert.equal((await bob.next()).value.content, '0');
  assert.equal(await as({}), `${first}\n0`);
  assert.equal((await bob.next()).value.content, '1');
  assert.match(await as({ pkcs11: { ...settings.pkcs11, pinFile: undefined, pin: '4321' } }), /^WRONG_KEY /);
  assert.match(await as({ pkcs11: { ...settings.pkcs11, key: 'another' } }), /^KEY_MISSING /);
  assert.match(await as({ pkcs11: undefined, passphrase: 'x' }), /^KEY_REQUIRED /);
});

/** Makes certificates, serves, makes a key, and says its port and the key's identifier. */
const KMIP = `
import datetime, logging, socket, sys, threading
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID, ExtendedKeyUsageOID
from kmip import enums
from kmip.pie.client import ProxyKmipClient
from kmip.services.server import KmipServer
folder = sys.argv[1]
now = datetime.datetime.now(datetime.timezone.utc)
def save(name, key, certificate):
    open(folder + "/" + name + ".key", "wb").write(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    open(folder + "/" + name + ".pem", "wb").write(certificate.public_bytes(serialization.Encoding.PEM))
def named(name): return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
def begin(name, key): return (x509.CertificateBuilder().subject_name(named(name)).public_key(key.public_key())
    .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1)))
root = ec.generate_private_key(ec.SECP256R1())
ca = begin("ca", root).issuer_name(named("ca")).add_extension(x509.BasicConstraints(True, None), True).sign(root, hashes.SHA256())
save("ca", root, ca)
for name, use in [("server", ExtendedKeyUsageOID.SERVER_AUTH), ("client", ExtendedKeyUsageOID.CLIENT_AUTH)]:
    key = ec.generate_private_key(ec.SECP256R1())
    host = "localhost" if name == "server" else name
    save(name, key, begin(host, key).issuer_name(ca.subject).add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), False)
        .add_extension(x509.ExtendedKeyUsage([use]), False).sign(root, hashes.SHA256()))
probe = socket.socket(); probe.bind(("127.0.0.1", 0)); port = probe.getsockname()[1]; probe.close()
server = KmipServer(hostname="127.0.0.1", port=port, certificate_path=folder + "/server.pem", key_path=folder + "/server.key",
    ca_path=folder + "/ca.pem", auth_suite="TLS1.2", config_path=None, policy_path=folder + "/policies", log_path=folder + "/log",
    enable_tls_client_auth=True, logging_level="INFO", database_path=folder + "/kmip.db")
def make():
    masks = [enums.CryptographicUsageMask.ENCRYPT, enums.CryptographicUsageMask.DECRYPT]
    with ProxyKmipClient(hostname="127.0.0.1", port=port, cert=folder + "/client.pem", key=folder + "/client.key", ca=folder + "/ca.pem",
                         ssl_version="PROTOCOL_TLSv1_2", kmip_version=enums.KMIPVersion.KMIP_1_2) as client:
        uid = client.create(enums.CryptographicAlgorithm.AES, 256, cryptographic_usage_mask=masks)
        client.activate(uid)
        print("ready", port, uid, flush=True)
with server:
    threading.Thread(target=make, daemon=True).start()
    server.serve()
`;

const python = join(new URL('../../..', import.meta.url).pathname, 'target/tools/kmip/bin/python');
const pykmip = !existsSync(python) && !required && 'PyKMIP is missing: ./x setup-keys';

test('a key in a key management server', { skip: pykmip }, async (t) => {
  const place = directory();
  const file = join(place, 'server.py');
  writeFileSync(file, KMIP);
  const [, port, key] = /ready (\d+) (\d+)/.exec(await serve(t, [python, file, place], /ready \d+ \d+\n/));
  const kmip = {
    server: `localhost:${port}`, key, rootCertificateFile: join(place, 'ca.pem'),
    clientCertificateFile: join(place, 'client.pem'), clientKeyFile: join(place, 'client.key'),
  };
  const settings = { ...(await relayFor(t)), storage: { sqlite: directory() }, kmip };
  const others = await createApp({ ...settings, storage: 'memory', kmip: undefined });
  t.after(() => others.close());
  const bob = (await others.connect('bob')).messages();
  const app = await createApp(settings);
  const alice = await app.connect('alice');
  const first = alice.identity.fingerprint;
  await alice.send('bob', 'sealed by the server');
  assert.equal((await bob.next()).value.content, 'sealed by the server');
  await app.close();
  const again = await createApp(settings);
  const [sent] = (await (await again.connect('alice')).history('bob')).messages;
  assert.equal(sent.content, 'sealed by the server');
  await again.close();
  assert.equal(await fingerprint(settings), first);
  assert.equal(await fingerprint({ ...settings, kmip: { ...kmip, server: 'localhost:1' } }), 'KEY_UNAVAILABLE');
  assert.equal(await fingerprint({ ...settings, kmip: { ...kmip, clientKeyFile: join(place, 'server.key') } }), 'KEY_MALFORMED');
});

/** A key management service over HTTP, with a protocol of its own: its key never leaves it. */
async function keyService(t) {
  const key = randomBytes(32);
  const asked = [];
  const sealed = (plain) => {
    const nonce = randomBytes(12);
    const cipher = createCipheriv('aes-256-gcm', key, nonce);
    const text = Buffer.concat([cipher.update(plain), cipher.final()]);
    return Buffer.concat([nonce, text, cipher.getAuthTag()]);
  };
  const opened = (bytes) => {
    const decipher = createDecipheriv('aes-256-gcm', key, bytes.subarray(0, 12));
    decipher.setAuthTag(bytes.subarray(-16));
    return Buffer.concat([decipher.update(bytes.subarray(12, -16)), decipher.final()]);
  };
  const body = (stream, done) => {
    const parts = [];
    stream.on('data', (part) => parts.push(part)).on('end', () => done(Buffer.concat(parts)));
  };
  const server = createServer((question, answer) => body(question, (bytes) => {
    asked.push([question.url, bytes.length]);
    try {
      answer.end(question.url === '/wrap' ? sealed(bytes) : opened(bytes));
    } catch {
      answer.writeHead(403).end();
    }
  }));
  await new Promise((listening) => server.listen(0, '127.0.0.1', listening));
  const { port } = server.address();
  const close = () => new Promise((closed) => server.close(closed));
  t.after(() => server.listening && close());
  const call = (path, bytes) => new Promise((resolve, reject) => {
    const to = { host: '127.0.0.1', port, path, method: 'POST', headers: { connection: 'close' } };
    request(to, (answer) => body(answer, (said) => {
      if (answer.statusCode === 200) resolve(said);
      else reject(Object.assign(new Error('geheim'), { code: 'EDENIED' }));
    })).on('error', reject).end(bytes);
  });
  // A class, as clients of such services are: its functions need their `this`.
  class Service {
    #call = call;
    wrap(bytes) { return this.#call('/wrap', bytes); }
    unwrap(bytes) { return this.#call('/unwrap', bytes); }
  }
  return { kms: new Service(), asked, close };
}

test('a key in a service that the application asks itself', async (t) => {
  const service = await keyService(t);
  const settings = { ...(await relayFor(t)), storage: { sqlite: directory() }, kms: service.kms };
  const others = await createApp({ ...settings, storage: 'memory', kms: undefined });
  t.after(() => others.close());
  const bob = (await others.connect('bob')).messages();
  const app = await createApp(settings);
  assert.ok(!app.findings.some(({ code }) => code.startsWith('keyfile')), 'it is no keyfile');
  const alice = await app.connect('alice');
  const first = alice.identity.fingerprint;
  assert.ok(service.asked.some(([path, length]) => path === '/wrap' && length === 32));
  const opening = service.asked.length;
  await alice.send('bob', 'sealed by the service');
  assert.equal((await bob.next()).value.content, 'sealed by the service');
  assert.equal(service.asked.length, opening, 'no message asks it');
  await app.close();
  const again = await createApp(settings);
  const [sent] = (await (await again.connect('alice')).history('bob')).messages;
  assert.equal(sent.content, 'sealed by the service');
  await again.close();
  assert.ok(service.asked.some(([path]) => path === '/unwrap'));

  assert.equal(await fingerprint({ ...settings, kms: undefined }), 'KEY_REQUIRED');
  const answering = (unwrap) => fingerprint({ ...settings, kms: { wrap: (key) => service.kms.wrap(key), unwrap } });
  assert.equal(await answering(() => new Uint8Array(32)), 'WRONG_KEY');
  for (const odd of [() => {}, () => 'text', () => new Uint8Array(5), () => new Uint8Array(0), () => new Uint8Array(2_000), async () => { throw null; }]) {
    assert.equal(await answering(odd), 'KEY_UNAVAILABLE', odd.toString());
  }
  const strangers = await createApp({ ...settings, kms: (await keyService(t)).kms });
  await assert.rejects(strangers.connect('alice'), (error) => {
    assert.deepEqual([error.code, error.retryable, error.cause?.code], ['KEY_UNAVAILABLE', true, 'EDENIED']);
    assert.match(error.message, /kms\.unwrap failed: Error EDENIED/);
    assert.doesNotMatch(`${error}${error.stack}`, /geheim|thrown/);
    return true;
  });
  await strangers.close();
  assert.equal(await fingerprint(settings), first, 'all of that changed nothing');
  await service.close();
  assert.equal(await fingerprint(settings), 'KEY_UNAVAILABLE');
});

test('a service that does not give back what it was given seals no store, and keys that it was given are wiped', async (t) => {
  const service = await keyService(t);
  const settings = { ...(await relayFor(t)), storage: { sqlite: directory() } };
  const given = [];
  const wrap = (key) => {
    given.push(key);
    return service.kms.wrap(key);
  };
  const answering = (unwrap) => fingerprint({ ...settings, kms: { wrap, unwrap } });
  assert.equal(await answering(() => new Uint8Array(32)), 'KEY_UNAVAILABLE');
  assert.match(await answering((wrapped) => service.kms.unwrap(wrapped)), /^[0-9a-f]{64}$/, 'nothing was kept');
  assert.ok(given.length > 1);
  for (const key of given) assert.deepEqual([...key], Array(32).fill(0));
});

test('a store moves into a service that the application asks, and its data key is replaced there', async (t) => {
  const service = await keyService(t);
  const settings = { ...(await relayFor(t)), storage: { sqlite: directory() } };
  const app = await createApp({ ...settings, passphrase: 'of before' });
  const alice = await app.connect('alice');
  const first = alice.identity.fingerprint;
  await assert.rejects(alice.changeKey({ kms: {} }), { code: 'INVALID_CONFIG' });
  await assert.rejects(alice.changeKey({ kms: service.kms, passphrase: 'x' }), { code: 'INVALID_CONFIG' });
  await alice.changeKey({ kms: service.kms });
  const [{ deed, detail }] = await alice.journal();
  assert.match(`${deed} ${detail}`, /key management server/);
  await app.close();
  const again = await createApp({ ...settings, kms: service.kms });
  const wraps = () => service.asked.filter(([path]) => path === '/wrap').length;
  const changed = wraps();
  await (await again.connect('alice')).rotateKey();
  assert.ok(wraps() > changed, 'the fresh data key is wrapped there, too');
  await again.close();
  assert.equal(await fingerprint({ ...settings, passphrase: 'of before' }), 'KEY_REQUIRED');
  assert.equal(await fingerprint({ ...settings, kms: service.kms }), first);
});
