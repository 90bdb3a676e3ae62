// The repository of sessions for Baileys 7, so that no key of a message is used twice: over the rows themselves, and over one name of each peer.
//
//   import makeWASocket, { DEFAULT_CONNECTION_CONFIG } from 'baileys';
//
//   makeWASocket({ auth: { creds, keys }, makeSignalRepository: repositoryOver(keys, DEFAULT_CONNECTION_CONFIG.makeSignalRepository) });

/** `keys` are those of `auth`, the same object; `make` is what makes Baileys' own repository. */
export function repositoryOver(keys, make) {
  return ({ creds }, ...rest) => {
    const last = new Map();
    // Work of one key in order, as in Baileys; but what is written is there at once. Baileys keeps it until the message was sent, and what the same peer sends meanwhile is read with the session
    // of before: of the two that are stored in the end the later one undoes the other.
    const transaction = (work, key) => {
      const mine = Promise.resolve(last.get(key)).then(() => work());
      const done = mine.catch(() => {}).then(() => last.get(key) === done && last.delete(key));
      last.set(key, done);
      return mine;
    };
    const rows = { get: (type, ids) => keys.get(type, ids), set: (data) => keys.set(data), isInTransaction: () => false, transaction };
    const repository = make({ creds, keys: rows }, ...rest);
    // A phone number and its LID have one row: under one name they have one order, too.
    const named = (act) => async (given) => act({ ...given, jid: (await repository.lidMapping.getLIDForPN(given.jid)) ?? given.jid });
    const { encryptMessage, decryptMessage, injectE2ESession } = repository;
    return { ...repository, encryptMessage: named(encryptMessage), decryptMessage: named(decryptMessage), injectE2ESession: named(injectE2ESession) };
  };
}
