/** `SessionCipher` alone, where projects import it from. */

import { SessionCipher } from './session.js';

export = SessionCipher;
