// The packages beside each other, each behind the same few functions. Storages are in memory and hold what they were given.

/** libsignal-node's contract, in memory. */
function storage(identity, registrationId) {
  const [sessions, prekeys, signed, groups] = [new Map(), new Map(), new Map(), new Map()];
  return {
    sessions, prekeys, signed, groups,
    loadSession: async (address) => sessions.get(address),
    storeSession: async (address, record) => void sessions.set(address, record),
    isTrustedIdentity: async () => true,
    loadPreKey: async (id) => prekeys.get(id),
    removePreKey: async (id) => void prekeys.delete(id),
    loadSignedPreKey: async (id) => signed.get(id),
    getOurRegistrationId: async () => registrationId,
    getOurIdentity: async () => identity,
    loadSenderKey: async (name) => groups.get(String(name)),
    storeSenderKey: async (name, record) => void groups.set(String(name), record),
  };
}

/** Of anything with libsignal-node's API. `keys` makes keys, `S` has the classes. */
function nodeLike(S, keys, groups, { size, adapt = (own) => own }) {
  const device = () => {
    const identity = keys.generateIdentityKeyPair();
    const registrationId = keys.generateRegistrationId();
    const own = adapt(storage(identity, registrationId));
    const signedPreKey = keys.generateSignedPreKey(identity, 1);
    own.signed.set(1, adapt.signed ? signedPreKey : signedPreKey.keyPair);
    let next = 1;
    return {
      own,
      bundle() {
        const prekey = keys.generatePreKey(next++);
        own.prekeys.set(prekey.keyId, prekey.keyPair);
        return {
          registrationId, identityKey: identity.pubKey,
          signedPreKey: { keyId: 1, publicKey: signedPreKey.keyPair.pubKey, signature: signedPreKey.signature },
          preKey: { keyId: prekey.keyId, publicKey: prekey.keyPair.pubKey },
        };
      },
    };
  };
  return {
    device,
    start: (who, name, bundle) => new S.SessionBuilder(who.own, new S.ProtocolAddress(name, 1)).initOutgoing(bundle),
    cipher: (who, name) => {
      const cipher = new S.SessionCipher(who.own, new S.ProtocolAddress(name, 1));
      return {
        encrypt: (bytes) => cipher.encrypt(bytes),
        encryptMany: cipher.encryptMany && ((all) => cipher.encryptMany(all)),
        decryptMany: cipher.decryptMany && ((all) => cipher.decryptMany(all.map(({ body }) => body))),
        decrypt: ({ type, body }) => (type === 3 ? cipher.decryptPreKeyWhisperMessage(body) : cipher.decryptWhisperMessage(body)),
      };
    },
    forget: (who) => who.own.sessions.clear(),
    recordSize: (who) => size(who.own.sessions.values().next().value),
    groups,
  };
}

const jsonSize = (record) => JSON.stringify(record.serialize()).length;

export const implementations = {
  '@stvor/libsignal': async (load) => {
    const S = await load('@stvor/libsignal');
    const G = await load('@stvor/libsignal/group');
    return nodeLike(S, S.keyhelper, {
      async pair(sender, member) {
        const name = new G.SenderKeyName('group', { id: 'sender', deviceId: 1 });
        const made = await new G.GroupSessionBuilder(sender.own).create(name);
        await new G.GroupSessionBuilder(member.own).process(name, made);
        const [out, into] = [new G.GroupCipher(sender.own, name), new G.GroupCipher(member.own, name)];
        return { encrypt: (bytes) => out.encrypt(bytes), decrypt: (bytes) => into.decrypt(bytes) };
      },
    }, { size: (record) => record.toBytes().length });
  },
  libsignal: async (load) => {
    const { default: S } = await load('libsignal');
    return nodeLike(S, S.keyhelper, undefined, { size: jsonSize });
  },
  'whatsapp-rust-bridge': async (load) => {
    const W = await load('whatsapp-rust-bridge');
    // It keeps records as bytes, and wants signed prekeys whole.
    const adapt = Object.assign((own) => Object.assign(own, {
      storeSession: async (address, record) => void own.sessions.set(address, record instanceof Uint8Array ? record : record.serialize()),
    }), { signed: true });
    return nodeLike({ ...W, SessionBuilder: class {
      constructor(store, address) {
        this.builder = new W.SessionBuilder(store, address);
      }
      initOutgoing(bundle) {
        return this.builder.processPreKeyBundle(bundle);
      }
    } }, W, {
      async pair(sender, member) {
        const address = new W.ProtocolAddress('sender', 1);
        const name = new W.SenderKeyName('group', address);
        const made = await new W.GroupSessionBuilder(sender.own).create(name);
        await new W.GroupSessionBuilder(member.own).process(new W.SenderKeyName('group', address), W.SenderKeyDistributionMessage.deserialize(made.serialize()));
        const [out, into] = [sender, member].map((who) => new W.GroupCipher(who.own, 'group', address));
        return { encrypt: (bytes) => out.encrypt(bytes), decrypt: (bytes) => into.decrypt(bytes) };
      },
    }, { size: (record) => record.length, adapt });
  },
  '@signalapp/libsignal-client': async (load) => official(await load('@signalapp/libsignal-client')),
};

/** PQXDH and the triple ratchet: more work than the others do, for more security. */
function official(L) {
  class Sessions extends L.SessionStore {
    rows = new Map();
    saveSession = async (address, record) => void this.rows.set(address.toString(), record.serialize());
    getSession = async (address) => (this.rows.has(address.toString()) ? L.SessionRecord.deserialize(this.rows.get(address.toString())) : null);
    getExistingSessions = async (addresses) => Promise.all(addresses.map(this.getSession));
  }
  class Identities extends L.IdentityKeyStore {
    rows = new Map();
    constructor(key) {
      super();
      this.key = key;
    }
    getIdentityKey = async () => this.key;
    getLocalRegistrationId = async () => 5;
    saveIdentity = async (address, key) => (this.rows.set(address.toString(), key), L.IdentityChange?.NewOrUnchanged ?? 0);
    isTrustedIdentity = async () => true;
    getIdentity = async (address) => this.rows.get(address.toString()) ?? null;
  }
  const table = (Base, names) => {
    const made = new (class extends Base {
      rows = new Map();
    })();
    const [save, get, last] = names;
    made[save] = async (id, record) => void made.rows.set(id, record);
    made[get] = async (id) => made.rows.get(id);
    if (last) made[last] = async (id) => (last.startsWith('remove') ? void made.rows.delete(id) : undefined);
    return made;
  };
  class SenderKeys extends L.SenderKeyStore {
    rows = new Map();
    saveSenderKey = async (sender, id, record) => void this.rows.set(`${sender}${id}`, record);
    getSenderKey = async (sender, id) => this.rows.get(`${sender}${id}`) ?? null;
  }
  const device = () => {
    const identity = L.PrivateKey.generate();
    const stores = {
      sessions: new Sessions(), identities: new Identities(identity), senders: new SenderKeys(),
      prekeys: table(L.PreKeyStore, ['savePreKey', 'getPreKey', 'removePreKey']),
      signed: table(L.SignedPreKeyStore, ['saveSignedPreKey', 'getSignedPreKey']),
      kyber: table(L.KyberPreKeyStore, ['saveKyberPreKey', 'getKyberPreKey', 'markKyberPreKeyUsed']),
    };
    const signed = L.PrivateKey.generate();
    const signature = identity.sign(signed.getPublicKey().serialize());
    stores.signed.rows.set(1, L.SignedPreKeyRecord.new(1, 1, signed.getPublicKey(), signed, signature));
    const kyber = L.KEMKeyPair.generate();
    const kyberSignature = identity.sign(kyber.getPublicKey().serialize());
    stores.kyber.rows.set(1, L.KyberPreKeyRecord.new(1, 1, kyber, kyberSignature));
    let next = 1;
    return {
      own: stores,
      bundle() {
        const id = next++;
        const one = L.PrivateKey.generate();
        stores.prekeys.rows.set(id, L.PreKeyRecord.new(id, one.getPublicKey(), one));
        return L.PreKeyBundle.new(5, 1, id, one.getPublicKey(), 1, signed.getPublicKey(), signature, identity.getPublicKey(), 1, kyber.getPublicKey(), kyberSignature);
      },
    };
  };
  const at = (name) => L.ProtocolAddress.new(name, 1);
  const other = { alice: 'bob', bob: 'alice' };
  return {
    device,
    start: (who, name, bundle) => L.processPreKeyBundle(bundle, at(name), at(other[name]), who.own.sessions, who.own.identities),
    cipher: (who, name) => ({
      encrypt: async (bytes) => {
        const message = await L.signalEncrypt(bytes, at(name), at(other[name]), who.own.sessions, who.own.identities);
        return { type: message.type(), body: message.serialize() };
      },
      decrypt: ({ type, body }) => {
        const { sessions, identities, prekeys, signed, kyber } = who.own;
        return type === 3
          ? L.signalDecryptPreKey(L.PreKeySignalMessage.deserialize(body), at(name), at(other[name]), sessions, identities, prekeys, signed, kyber)
          : L.signalDecrypt(L.SignalMessage.deserialize(body), at(name), at(other[name]), sessions, identities);
      },
    }),
    forget: (who) => who.own.sessions.rows.clear(),
    recordSize: (who) => who.own.sessions.rows.values().next().value.length,
    groups: {
      async pair(sender, member) {
        const [address, id] = [at('sender'), '3fa85f64-5717-4562-b3fc-2c963f66afa6'];
        const made = await L.SenderKeyDistributionMessage.create(address, id, sender.own.senders);
        await L.processSenderKeyDistributionMessage(address, made, member.own.senders);
        return {
          encrypt: async (bytes) => (await L.groupEncrypt(address, id, sender.own.senders, bytes)).serialize(),
          decrypt: (bytes) => L.groupDecrypt(address, member.own.senders, bytes),
        };
      },
    },
  };
}
