// The little of Node that the face uses. Not shipped: users have @types/node, or do not look at types.
declare function require(id: string): any;
interface NodeTimer {
  ref(): void;
  unref(): void;
}
declare function setTimeout(callback: () => void, millis: number): NodeTimer;
declare function clearTimeout(timer: NodeTimer): void;
declare function queueMicrotask(callback: () => void): void;
declare function setImmediate(callback: () => void): void;
declare const performance: { now(): number };
declare const process: {
  platform: string;
  arch: string;
  versions: { node: string };
  report?: { excludeNetwork?: boolean; getReport(): any };
};
declare module 'node:async_hooks' {
  class AsyncResource {
    constructor(type: string);
    runInAsyncScope<T>(act: () => T): T;
  }
}
interface Buffer extends Uint8Array {
  copy(target: Uint8Array, targetStart?: number, sourceStart?: number, sourceEnd?: number): number;
  readUInt32LE(offset: number): number;
  equals(other: Uint8Array): boolean;
  toString(encoding?: string, start?: number, end?: number): string;
  subarray(start?: number, end?: number): Buffer;
  writeUInt32BE(value: number, offset: number): number;
  readUInt32BE(offset: number): number;
}
declare const Buffer: {
  from(text: string, encoding?: string): Buffer;
  from(bytes: Uint8Array | readonly number[]): Buffer;
  from(buffer: ArrayBufferLike, offset: number, length: number): Buffer;
  alloc(size: number): Buffer;
  allocUnsafe(size: number): Buffer;
  allocUnsafeSlow(size: number): Buffer;
  concat(parts: readonly Uint8Array[]): Buffer;
  isBuffer(value: unknown): value is Buffer;
  byteLength(text: string): number;
};
