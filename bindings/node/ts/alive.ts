/** What keeps the process alive while somebody waits for messages. */
export class Alive {
  #timer: NodeTimer | undefined;
  #holders = 0;
  #wanted = true;

  /** One more waits. */
  hold(): void {
    this.#holders += 1;
    this.#update();
  }

  /** One less waits. */
  release(): void {
    this.#holders -= 1;
    this.#update();
  }

  /** Whether waiting keeps the process alive at all. */
  want(wanted: boolean): void {
    this.#wanted = wanted;
    this.#update();
  }

  #update(): void {
    const needed = this.#wanted && this.#holders > 0;
    if (needed && !this.#timer) {
      this.#timer = setInterval(() => {}, 0x7fff_ffff);
    } else if (!needed && this.#timer) {
      clearInterval(this.#timer);
      this.#timer = undefined;
    }
  }
}
