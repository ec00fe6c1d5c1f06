// Asks the frontend again and again; when it does not answer, says so, and goes on trying.

const TIMEOUT_MS = 8_000;
const RETRY_MS = [1_000, 2_000, 4_000, 8_000];
const KEY = "stafette-key";

export class Unauthorized extends Error {}

export const storedKey = () => sessionStorage.getItem(KEY);
export const storeKey = (key) => sessionStorage.setItem(KEY, key);
export const forgetKey = () => sessionStorage.removeItem(KEY);

// Paths are relative to the page's own, since a proxy may mount the API under a prefix.
export async function ask(path) {
  const key = storedKey();
  const answer = await fetch(path, {
    headers: key ? { authorization: `Bearer ${key}` } : {},
    cache: "no-store",
    signal: AbortSignal.timeout(TIMEOUT_MS),
  });
  if (answer.status === 401) throw new Unauthorized();
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    throw new Error(told.error?.message ?? `the frontend answers ${answer.status}`);
  }
  return answer.json();
}

export class Connection {
  // `pathOf` gives the next question; `take` gets its answer and returns after how many ms to ask
  // again; `tell` hears how it goes; `signIn` is awaited when a key is wanted.
  constructor({ pathOf, take, tell, signIn }) {
    Object.assign(this, { pathOf, take, tell, signIn });
    this.failures = 0;
    this.wake = () => {};
    document.addEventListener("visibilitychange", () => this.wake());
    window.addEventListener("online", () => this.wake());
  }

  async run() {
    for (;;) {
      const pause = await this.turn();
      await this.sleep(pause);
      while (document.hidden) await this.sleep(60_000);
    }
  }

  async turn() {
    try {
      const pause = this.take(await ask(this.pathOf()));
      this.failures = 0;
      this.tell("live");
      return pause;
    } catch (error) {
      if (error instanceof Unauthorized) {
        this.tell("signed out");
        await this.signIn(storedKey() !== null);
        return 0;
      }
      this.failures += 1;
      this.tell("lost", error);
      return RETRY_MS[Math.min(this.failures, RETRY_MS.length) - 1];
    }
  }

  sleep(milliseconds) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, milliseconds);
      this.wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}
