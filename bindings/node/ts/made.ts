/** Classes whose objects this package makes: applications see them, and make none. */

import { invalid } from './errors.js';

/** What a constructor is given by this package, and by nobody else. */
export const OURS = Symbol('ours');

/** Refuses a constructor that an application called: `maker` is what it wanted. */
export function madeHere(given: unknown, name: string, maker: string): void {
  if (given !== OURS) throw invalid(`${name} has no constructor of use: ${maker} makes one`);
}
