import { invalid, SignalError } from './errors.js';

/** A name and a device number, written `name.device`. */
export class ProtocolAddress {
  /** The name, which identities belong to. */
  readonly id: string;
  /** The device, which sessions belong to. */
  readonly deviceId: number;

  /** Reads `name.device`. */
  static from(encoded: string): ProtocolAddress {
    const at = typeof encoded === 'string' ? encoded.lastIndexOf('.') : -1;
    if (at < 1 || !/^\d{1,10}$/.test(encoded.slice(at + 1))) {
      throw new SignalError('an address is written name.device', { code: 'INVALID_NAME' });
    }
    return new ProtocolAddress(encoded.slice(0, at), Number(encoded.slice(at + 1)));
  }

  constructor(id: string, deviceId: number) {
    if (typeof id !== 'string' || id === '' || Buffer.byteLength(id) > 256) throw invalid('the name of an address is a string of 1 to 256 bytes');
    if (id.includes('.')) throw invalid('the name of an address has no dot');
    if (!Number.isInteger(deviceId) || deviceId < 0 || deviceId > 0xffff_ffff) {
      throw invalid('the device of an address is a whole number from 0 to 4294967295');
    }
    this.id = id;
    this.deviceId = deviceId;
  }

  toString(): string {
    return `${this.id}.${this.deviceId}`;
  }

  /** Whether it is the same. */
  is(other: unknown): boolean {
    return other instanceof ProtocolAddress && other.id === this.id && other.deviceId === this.deviceId;
  }
}

/** @internal An address of ours, or one that looks like it. */
export function addressOf(given: unknown): ProtocolAddress {
  if (given instanceof ProtocolAddress) return given;
  const { id, deviceId } = (given ?? {}) as { id?: unknown; deviceId?: unknown };
  if (typeof id === 'string' && typeof deviceId === 'number') return new ProtocolAddress(id, deviceId);
  throw invalid('protocolAddress is a ProtocolAddress');
}
