/** `ProtocolAddress` alone, where projects import it from. */

import { ProtocolAddress } from './address.js';

export = ProtocolAddress;
