/**
 * Sender keys for groups, with the names that Baileys uses. Stores load a `SenderKeyRecord`, what its `serialize()` gave, or nothing.
 */

export { GroupCipher, groupSync, GroupSessionBuilder, type GroupOptions, type SenderKeyStore } from './group_cipher.js';
export {
  CiphertextMessage,
  keyhelper,
  SenderChainKey,
  SenderKeyDistributionMessage,
  SenderKeyMessage,
  SenderKeyName,
  SenderKeyRecord,
  SenderKeyState,
  SenderMessageKey,
  type Sender,
  type SenderKeyStateStructure,
} from './sender_keys.js';
