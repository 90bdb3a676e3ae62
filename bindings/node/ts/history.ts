/** Pages of what was said, with a user or in a group. */

import { abortable, contentFrom, only, options } from './check.js';
import { awaited, invalid } from './errors.js';
import type { NativeClient, NativeHistoryRequest, NativePage } from './native.js';
import type { DeliveryStatus, HistoryOptions, HistoryPage, Message, Signal } from './types.js';

/** Messages of one page, and characters that are searched for. */
const MOST_MESSAGES = 500;
const MOST_WORDS = 65_536;

/** @internal The newest page. */
export function historyOf(
  native: NativeClient,
  conversation: Pick<NativeHistoryRequest, 'of' | 'group'>,
  given: HistoryOptions | undefined,
): Promise<HistoryPage> {
  const { limit, search, signal } = options<Required<HistoryOptions>>(given, ['limit', 'search', 'signal'], 'the options of history');
  if (search !== undefined && (typeof search !== 'string' || search.length > MOST_WORDS)) throw invalid('search is a string');
  if (limit !== undefined && !(Number.isInteger(limit) && limit >= 1 && limit <= MOST_MESSAGES)) {
    throw invalid(`limit is a whole number from 1 to ${MOST_MESSAGES}`);
  }
  return page(native, { ...conversation, limit, search }, signal);
}

async function page(native: NativeClient, request: NativeHistoryRequest, signal: Signal | undefined, before?: NativePage): Promise<HistoryPage> {
  const found = await abortable(signal, (cancel) => native.history(request, before, cancel));
  const messages = found.take().map((raw) => ({
    id: raw.id,
    direction: raw.incoming ? ('in' as const) : ('out' as const),
    senderId: raw.incoming ? raw.peer : undefined,
    content: contentFrom(raw.content),
    kind: raw.content.kind as Message['kind'],
    timestamp: new Date(raw.sentAt),
    receivedAt: raw.receivedAt === undefined ? undefined : new Date(raw.receivedAt),
    status: raw.status as DeliveryStatus,
    read: raw.read,
  }));
  const older: HistoryPage['older'] = (options_) => awaited(async () => {
    const signal = only(options_, 'older');
    return found.more ? page(native, request, signal, found) : null;
  });
  return { messages, older };
}
