/** Groups of a client: every member sends, one encryption for all. */

import { bind } from './bound.js';
import { abortable, contentOf, elements, idsOf, options, owned, shortText, userName } from './check.js';
import { awaited, invalid } from './errors.js';
import { historyOf } from './history.js';
import { madeHere, OURS } from './made.js';
import type { NativeClient, NativeGroup } from './native.js';
import { sendsOf } from './sending.js';
import type { DeliveryStatus, HistoryOptions, HistoryPage, Sendable, Signal } from './types.js';

/** Users that one call names: a group has 1,000 members at most. */
const MOST_MEMBERS = 1_000;

/** What is known of a group. */
export interface GroupInfo {
  readonly id: string;
  /** What it is called. */
  readonly name: string;
  /** Who is in it, in the order of their names. */
  readonly members: readonly string[];
  /** Whether we are in it. */
  readonly isMember: boolean;
  /** Counts the changes of its membership and name. */
  readonly epoch: number;
  /** The hash of its state: members who show the same agree on everything. */
  readonly state: string;
}

/** How far a message came with a member of a group. */
export interface MemberReceipt {
  readonly userId: string;
  readonly state: DeliveryStatus;
  /** When that was heard of here. */
  readonly at: Date;
}

/**
 * A group of a client. Made by `client.createGroup`, `client.group`, `client.groups`, and with each message of it (`message.group`).
 *
 * @example
 * ```js
 * const group = await alice.createGroup('friends', ['bob', 'carol']);
 * await group.send('Hello, all!');
 * bob.onMessage((message) => message.group?.send('Hello, Alice!'));
 * ```
 */
export class Group {
  readonly #native: NativeClient;
  /** The same at all members. */
  readonly id: string;

  /** @internal */
  constructor(native: NativeClient, id: string, ours: typeof OURS) {
    madeHere(ours, 'Group', 'client.createGroup, or client.group,');
    bind(this);
    this.#native = native;
    this.id = id;
  }

  /** What is known of it now. */
  info(): Promise<GroupInfo> {
    return awaited(async () => infoOf(await this.#native.groupInfo(this.id)));
  }

  /** What it is called. */
  name(): Promise<string> {
    return awaited(async () => (await this.#native.groupInfo(this.id)).name);
  }

  /** Who is in it, in the order of their names. */
  members(): Promise<string[]> {
    return awaited(async () => (await this.#native.groupInfo(this.id)).members);
  }

  /**
   * Sends a message to all members; it is encrypted once. Resolves with its id when it is in the outbox: from then on it can only wait
   * (`client.pending` counts); `groupReceipt` tells how far it came with each member. It counts as one of `executor`, and `BACKPRESSURE` says that there
   * is no room for it. 65,472 bytes at most; `NOT_A_MEMBER` when we are not in the group.
   */
  send<T>(content: T & Sendable<T>, options_?: { signal?: Signal | undefined }): Promise<{ id: string }> {
    return awaited(() => {
      const { signal } = options<{ signal: Signal }>(options_, ['signal'], 'the options of send');
      const request = { group: this.id, content: owned(contentOf(content)) };
      return sendsOf(this.#native).inTurn({ to: this.id, content: request.content }, signal, async () => {
        await known(this.#native, this.id);
        return { id: await abortable(signal, (cancel) => this.#native.groupSend(request, cancel)) };
      });
    });
  }

  /** Lets users in, or members with a new identity. They read what is sent from now on, and nothing of before. */
  add(userIds: string | readonly string[], options_?: { signal?: Signal | undefined }): Promise<void> {
    return awaited(() => {
      const names = namesOf(userIds);
      if (names.length === 0) throw invalid('add names one user or more');
      return this.#change('add', names, options_);
    });
  }

  /** Puts a user out. They read nothing that members send once they know of it. */
  remove(userId: string, options_?: { signal?: Signal | undefined }): Promise<void> {
    return awaited(() => this.#change('remove', [userName(userId)], options_));
  }

  /** Leaves the group. */
  leave(options_?: { signal?: Signal | undefined }): Promise<void> {
    return awaited(() => this.#change('leave', [], options_));
  }

  /** Gives it another name, of 1 to 256 bytes. */
  rename(name: string, options_?: { signal?: Signal | undefined }): Promise<void> {
    return awaited(() => this.#change('rename', [shortText(name, 'the name of a group')], options_));
  }

  /** How far a message of ours came with each member that said so: none while nobody did, and in groups of more than 128. */
  receipts(id: string): Promise<MemberReceipt[]> {
    return awaited(async () =>
      (await this.#native.groupReceipts(this.id, shortText(id, 'the id'))).map(({ user, state, at }) => ({
        userId: user,
        state: state as DeliveryStatus,
        at: new Date(at),
      })));
  }

  /** Says that messages of a member were read: the member is told, if receipts of reading are on. */
  markRead(userId: string, ids: readonly string[]): Promise<void> {
    return awaited(() => this.#native.groupMarkRead(this.id, userName(userId), idsOf(ids)));
  }

  /** What was said in the group, newest first, page by page, as `client.history` has it of a user. */
  history(options_?: HistoryOptions): Promise<HistoryPage> {
    return awaited(() => historyOf(this.#native, { of: this.id, group: true }, options_));
  }

  /** Removes a group that we are not in any more, with its messages and what is kept of it; `INVALID_CONFIG` while we are in it. */
  delete(): Promise<void> {
    return awaited(() => this.#change('delete', [], undefined));
  }

  #change(what: string, names: string[], given: unknown): Promise<void> {
    const { signal } = options<{ signal: Signal }>(given, ['signal'], `the options of ${what}`);
    return abortable(signal, (cancel) => this.#native.groupChange({ group: this.id, what, names }, cancel));
  }
}

/** Groups that the native half has at hand: from then on sends keep the order of their calls. */
const found = new WeakMap<NativeClient, Map<string, Promise<unknown>>>();

function known(native: NativeClient, id: string): Promise<unknown> {
  let groups = found.get(native);
  if (!groups) found.set(native, (groups = new Map()));
  let looked = groups.get(id);
  if (!looked) {
    looked = native.groupInfo(id);
    groups.set(id, looked);
    looked.catch(() => groups.delete(id));
  }
  return looked;
}

/** Users, named one by one or in an array. */
export function namesOf(given: unknown): string[] {
  return elements(typeof given === 'string' ? [given] : given, MOST_MEMBERS, 'members').map((name) => userName(name));
}

function infoOf(raw: NativeGroup): GroupInfo {
  const { id, name, members, isMember, epoch, state } = raw;
  return { id, name, members, isMember, epoch, state };
}
