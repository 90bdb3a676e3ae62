/** What has bytes that are secret, and is told when to wipe them. */
export abstract class Wipeable {
  #needed = 0;
  #wiped: Buffer[] | undefined;

  /** @internal A job needs the bytes until it lets go of them: storages may wipe what they are given, and what they gave. */
  _hold(): void {
    this.#needed += 1;
  }

  /** @internal */
  _release(): void {
    this.#needed -= 1;
    if (this.#needed > 0 || this.#wiped === undefined) return;
    for (const bytes of this.#wiped) bytes.fill(0);
    this.#wiped = undefined;
  }

  /** @internal Wipes bytes of it; while a job needs some, as soon as it does not. */
  _wipe(bytes: Buffer): void {
    if (this.#needed === 0) bytes.fill(0);
    else (this.#wiped ??= []).push(bytes);
  }
}
