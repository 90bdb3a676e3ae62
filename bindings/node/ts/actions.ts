/** What to do about codes in JavaScript's terms, where the page of errors speaks of Rust and the command line. */
export const ACTIONS: Readonly<Record<string, string>> = {
  RELAY_UNAVAILABLE: 'Check the URL and that the relay runs (GET /livez answers); npx @stvor/sdk mock-relay starts one for development. A client that was here before keeps trying by itself, '
    + 'and nothing that waits to be sent is lost; a first connect has to be called again.',
  INVALID_APP_TOKEN: 'Ask the relay\'s operator for a token. A mock relay takes any that begins with "stvor_".',
  USER_ID_TAKEN: 'Use the store that has this user\'s identity (dataDir or storage; one in memory forgets it when its client closes), or restore a backup of it. If it is lost, '
    + 'createApp with replaceIdentity: true takes the name over where the relay allows it, or the operator resets the user; contacts then see IDENTITY_CHANGED.',
  IDENTITY_NOT_FOUND: 'Check the name and the store: connect(userId) makes an identity.',
  IDENTITY_HANDED_OVER: 'If you made the rotation, use the store with the new identity. If you did not, warn your contacts by another way and tell them client.identity.fingerprint, by which '
    + 'they accept it again (acceptIdentity); have the operator reset the user. The relay only says so: a contact\'s client checks the statement itself.',
  REGISTRATION_CLOSED: 'Let your backend sign a client token for the user (clientToken and appId of createApp), or ask the operator to open registration for holders of the app token.',
  LISTEN_FAILED: 'Stop the other program, or choose another port: STVOR_MOCK_PORT, or port of startMockRelay; 0 takes any free one.',
  IDENTITY_SUPERSEDED: 'Nothing, if it was one message on its way: it is asked for again. If it stays, ask them by another way; if they did go back (to a backup), compare safety numbers and '
    + 'accept the identity by its fingerprint: client.acceptIdentity(userId, fingerprint).',
  IDENTITY_FORKED: 'Ask them by another way which fingerprint is theirs (client.identity.fingerprint). If it is the pinned one, nothing; they should know that their old key was used. If it is the '
    + 'other one: client.acceptIdentity(userId, fingerprint).',
  IDENTITY_DERIVED: 'If nobody else has the words, nothing. If somebody may have them, connect with new words and a new store, with replaceIdentity: true where the relay allows it; contacts have to accept it.',
  IDENTITY_ORIGIN_UNKNOWN: 'If there are words, connect once with them (identityPhrase, identityPassphrase): then it is known, and it is not rotated. If there are none, say so: rotateIdentity(userId, { notDerived: true }).',
  ROTATION_UNSAFE: 'Mend what the message names, as production mode asks for it. Or take the risk: rotateIdentity(userId, { acceptLossyStore: true }), and make a backup at once.',
  SAFETY_NUMBER_NOT_SHOWN: 'Call client.safetyNumber(userId), compare, then client.verify(userId); or keep the number and call client.verify(userId, number).',
  ROLLBACK_DETECTED: 'Where the relay returned the proof that this device made, the client goes on by itself: the events rollbackDetected, then rollbackRecovered. Else nothing is sent until somebody '
    + 'decides: return to the newest copy of the store; if it is gone, client.recoverFromRollback() gives up the sessions and one-time prekeys of the copy and makes fresh ones.',
  GROUP_NOT_FOUND: 'client.groups() gives the groups that you are in. Ask a member to add you.',
  UNKNOWN_SENDER_KEY: 'Nothing: the message waits for up to 7 days, and its sender is asked for the key and the message. As the code of the event messageUndecryptable it says that the waiting is over: '
    + 'ask the sender to say it again.',
  STORE_SERVER_UNTRUSTED: 'Give the certificate of the authority (storage.rootCertificateFile), and use the host name that the certificate is for. The message says which of the two is wrong. There is no way '
    + 'to switch the check off.',
  STORE_EMPTIED: 'Bring back what the server held, from its own dump or backup: the store opens again, and if that is older than what was sent it is ROLLBACK_DETECTED and resolved. Without one, clear the '
    + 'place (in Redis the keys of the user, in PostgreSQL the rows of the place) and restore a backup: app.restore(file, ...); or begin anew, for which the relay has to let the name go: createApp with '
    + 'replaceIdentity: true. Then set the server up so that it keeps what it holds, as the page about stores says.',
  FINGERPRINT_FIXED: 'Compare safety numbers with the peer by another way. Then delete the fingerprint of that peer from your store yourself and call client.acceptIdentity(userId) once more. If it shall not '
    + 'come again, give the adapter tofu a replaceFingerprint(peerId, old, new).',
  STORE_PUT_BACK: 'Nothing for keys: the client gives up its sessions as after any rollback (the events rollbackDetected, then rollbackRecovered) and takes commits again; try the call again. What was received '
    + 'in the lost commits, and not yet processed, is lost. Let commits wait for a replica.',
  BACKPRESSURE: 'Wait for sends that are under way, then try again; or let sends wait for room: createApp with executor: { onPressure: \'wait\' }.',
};
