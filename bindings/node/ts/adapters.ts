/** Storage adapters of the application: called with what the native half asks, answered with what they say. */

import { isUint8Array, kindOf, unshared } from './check.js';
import { failure, guarded, misconfigured, remembered } from './errors.js';
import { native, type NativeAdapterAnswer, type NativeAdapterRequest, type NativeAdapters } from './native.js';
import type { IdentityKeyPair, StorageAdapters } from './types.js';

/** The four stores, in the order in which messages name them, and what each has to offer. */
const METHODS = {
  replay: ['checkAndMark'],
  tofu: ['storeFingerprint', 'verifyFingerprint'],
  sessions: ['save', 'load'],
  identity: ['getIdentityKeyPair'],
} as const;

/** What a store may offer beside that. */
const OPTIONAL: Partial<Record<Name, readonly string[]>> = { tofu: ['replaceFingerprint'] };

type Name = keyof typeof METHODS;
type Given = Record<Name, Record<string, (...given: unknown[]) => unknown>>;

/** The names of the four stores. */
export const ADAPTERS = Object.keys(METHODS) as Name[];

/** Which of the four are not there. Each is read once, so that a getter can not answer twice. */
export function adaptersOf(given: unknown): { adapters: Partial<Given>; missing: Name[] } {
  if (typeof given !== 'object' || given === null) throw misconfigured(`storageAdapters is an object, not ${kindOf(given)}`);
  for (const key of Object.keys(given)) {
    if (!ADAPTERS.includes(key as Name)) throw misconfigured(`storageAdapters has no "${key}"; there are ${ADAPTERS.join(', ')}`);
  }
  const adapters: Partial<Given> = {};
  for (const name of ADAPTERS) {
    const adapter = (given as StorageAdapters)[name] as unknown;
    if (adapter === undefined || adapter === null) continue;
    if (typeof adapter !== 'object' && typeof adapter !== 'function') {
      throw misconfigured(`storageAdapters.${name} is an object, not ${kindOf(adapter)}`);
    }
    const methods: Record<string, (...given: unknown[]) => unknown> = {};
    const optional = OPTIONAL[name] ?? [];
    for (const method of [...METHODS[name], ...optional]) {
      const call = (adapter as Record<string, unknown>)[method];
      if (call === undefined && optional.includes(method)) continue;
      if (typeof call !== 'function') throw misconfigured(`storageAdapters.${name}.${method} is a function, not ${kindOf(call)}`);
      methods[method] = (...rest) => call.apply(adapter, rest);
    }
    adapters[name] = methods;
  }
  return { adapters, missing: ADAPTERS.filter((name) => !adapters[name]) };
}

/**
 * Stand-ins in memory for what development mode does without. States are sealed under the identity, so without the one the other is of no
 * use: then both are in memory.
 */
export function completed(adapters: Partial<Given>): Given {
  const whole = adapters.sessions && adapters.identity;
  const seen = new Set<string>();
  const pins = new Map<string, string>();
  const states = new Map<string, unknown>();
  const pair = whole ? undefined : generateIdentityKeyPair();
  return {
    replay: adapters.replay ?? {
      checkAndMark: (peer, nonce) => {
        const mark = `${peer as string}:${(nonce as Uint8Array).join()}`;
        if (seen.has(mark)) return true;
        if (seen.size >= 100_000) seen.clear();
        seen.add(mark);
        return false;
      },
    },
    tofu: adapters.tofu ?? {
      storeFingerprint: (peer, fingerprint) => {
        if (!pins.has(peer as string)) pins.set(peer as string, fingerprint as string);
      },
      verifyFingerprint: (peer, fingerprint) => pins.get(peer as string) === fingerprint,
      replaceFingerprint: (peer, old, fingerprint) => {
        if (pins.get(peer as string) === old) pins.set(peer as string, fingerprint as string);
      },
    },
    sessions: (whole && adapters.sessions) || {
      save: (id, state) => { states.set(id as string, state); },
      load: (id) => states.get(id as string) ?? null,
    },
    identity: (whole && adapters.identity) || { getIdentityKeyPair: () => pair },
  };
}

/** Connects the adapters with the native half. */
export function bridge(adapters: Given): NativeAdapters {
  const bridged = new (native().NativeAdapters)((request) => { void answer(request); }, 'replaceFingerprint' in adapters.tofu);
  const answer = async (request: NativeAdapterRequest): Promise<void> => {
    let said: NativeAdapterAnswer;
    try {
      const [name, method] = request.call.split('.') as [Name, string];
      const given = [request.peer, request.old, request.bytes ?? request.text].filter((one) => one !== undefined && one !== null);
      said = judged(request.call, await adapters[name][method]!(...(name === 'identity' ? [] : given)));
    } catch (thrown) {
      said = { failed: remembered(thrown) };
    }
    try {
      bridged.answer(request.id, said);
    } catch (thrown) {
      // Bytes that can not be handed over: detached, or too many.
      bridged.answer(request.id, { wrong: failure(thrown).message.slice(0, 1_000) });
    }
  };
  return bridged;
}

/** What an adapter said, as its interface has it. */
function judged(call: string, said: unknown): NativeAdapterAnswer {
  switch (call) {
    case 'replay.checkAndMark':
    case 'tofu.verifyFingerprint':
      return typeof said === 'boolean' ? { flag: said } : { wrong: `it is ${kindOf(said)}; true or false is expected` };
    case 'sessions.load':
      // Only null is "there is none": a forgotten return must not begin a new account over the old one.
      if (said === null) return {};
      if (isBytes(said) && said.byteLength === 0) return { wrong: 'it is a Uint8Array of 0 bytes: either it was never saved so, or its buffer was transferred' };
      return isBytes(said) ? { bytes: unshared(said) } : { wrong: `it is ${kindOf(said)}; a Uint8Array as it was saved, or null if there is none, is expected` };
    case 'identity.getIdentityKeyPair': {
      const { publicKey, privateKey } = Object(said) as Partial<IdentityKeyPair>;
      if (isBytes(publicKey) && isBytes(privateKey)) return { bytes: unshared(publicKey), secret: unshared(privateKey) };
      return { wrong: 'it is no { publicKey, privateKey } of two Uint8Arrays (65 and 32 bytes)' };
    }
    default:
      return {};
  }
}

function isBytes(value: unknown): value is Uint8Array {
  return isUint8Array(value);
}

/**
 * Makes a P-256 key pair for an identity store: keep it, and answer the same one for ever. It is the user's signing key, and everything that
 * `sessions` saves is sealed under a key derived from it.
 *
 * @example
 * ```js
 * const identity = {
 *   async getIdentityKeyPair() {
 *     return (await kms.read('identity')) ?? (await kms.create('identity', generateIdentityKeyPair()));
 *   },
 * };
 * ```
 */
export function generateIdentityKeyPair(): IdentityKeyPair {
  return guarded(() => native().generateIdentity());
}
