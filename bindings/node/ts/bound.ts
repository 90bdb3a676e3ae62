/** Methods that may be handed on: `process.once('SIGTERM', client.close)`. */

/** Binds the methods of an object's class to it, out of sight of whoever prints it. */
export function bind(object: object): void {
  const { prototype } = object.constructor as { prototype: object };
  for (const name of Object.getOwnPropertyNames(prototype)) {
    const { value } = Object.getOwnPropertyDescriptor(prototype, name) as PropertyDescriptor;
    if (name === 'constructor' || typeof value !== 'function') continue;
    Object.defineProperty(object, name, { value: value.bind(object), writable: true, configurable: true, enumerable: false });
  }
}
