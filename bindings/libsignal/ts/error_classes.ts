/** The classes of errors alone, where projects import them from. */

export {
  BackpressureError,
  MessageCounterError,
  PreKeyError,
  SessionError,
  SignalError,
  StorageError,
  UntrustedIdentityKeyError,
} from './errors.js';
