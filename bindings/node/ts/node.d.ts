// The little of Node that the face uses. Not shipped: the package needs no @types/node, neither here nor at its users.
declare function require(id: string): any;
declare const module: { exports: any };
interface NodeTimer {
  ref(): void;
  unref(): void;
}
declare function setTimeout(callback: () => void, millis: number): NodeTimer;
declare function clearTimeout(timer: NodeTimer): void;
declare function queueMicrotask(callback: () => void): void;
declare function setImmediate(callback: () => void): unknown;
declare function setInterval(callback: () => void, millis: number): NodeTimer;
declare function clearInterval(timer: NodeTimer): void;
declare const performance: { now(): number };
declare const process: {
  platform: string;
  arch: string;
  version: string;
  versions: { node: string };
  report?: { excludeNetwork?: boolean; getReport(): any };
  emitWarning(message: string, options: { type: string; code: string }): void;
  on(event: 'beforeExit', listener: () => void): void;
};
interface Buffer extends Uint8Array {
  readUInt32LE(offset: number): number;
  toString(encoding?: 'base64url' | 'utf8', start?: number, end?: number): string;
}
declare const Buffer: {
  byteLength(text: string): number;
  from(text: string, encoding: 'base64url'): Uint8Array;
  from(buffer: ArrayBufferLike, offset: number, length: number): Buffer;
};
