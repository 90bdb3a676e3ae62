/// <reference lib="esnext.disposable" preserve="true" />
/** What `await using` calls; Node 18 knows the symbol by its name only. */
export const asyncDispose: typeof Symbol.asyncDispose = Symbol.asyncDispose ?? Symbol.for('Symbol.asyncDispose');
