/** `SessionRecord` alone, where projects import it from. */

import { SessionRecord } from './record.js';

export = SessionRecord;
