/** `SessionBuilder` alone, where projects import it from. */

import { SessionBuilder } from './session.js';

export = SessionBuilder;
