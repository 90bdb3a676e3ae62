/** The classes of errors alone, where projects import them from. */

export {
  BackpressureError,
  MessageCounterError,
  PreKeyError,
  SessionError,
  SignalError,
  StorageError,
  UntrustedIdentityKeyError,
  type ErrorCode,
} from './errors.js';
