// Who asks: the key in the link becomes a cookie that scripts cannot read; and how the server is asked.

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Change the key of the link for the session's cookie, and take it out of the address. */
export async function enter() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!token) return;
  history.replaceState(null, "", location.pathname + location.search);
  const answer = await fetch("/api/session", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ token }) });
  if (!answer.ok) throw new Refused(answer.status, (await answer.json()).error);
}

/** What the server answers, as values. Throws Refused with its words, and with status 0 when it is not there. */
export async function ask(path, method = "GET") {
  let answer;
  try {
    answer = await fetch(path, { method });
  } catch {
    throw new Refused(0, "the server does not answer");
  }
  const found = await answer.json();
  if (!answer.ok) throw new Refused(answer.status, found.error);
  return found;
}

/** For the browser to have the line again, in ms; then it is opened anew. */
const PATIENCE = 3000;

/**
 * One stream of events while the page is looked at. `path()` tells where to begin; `told` has a function for each event;
 * `stands(word)` hears live, lost, gone or locked.
 */
export function listen(path, told, stands) {
  let source = null;
  let patience = null;
  const close = () => {
    clearTimeout(patience);
    if (source) source.close();
    [source, patience] = [null, null];
  };
  const open = () => {
    close();
    source = new EventSource(path());
    source.addEventListener("open", () => {
      clearTimeout(patience);
      patience = null;
      stands("live");
    });
    source.addEventListener("error", async () => {
      if (!source || source.readyState !== EventSource.CLOSED) {
        stands("lost"); // the browser tries again by itself, from the last event on; some wait ever longer
        patience ??= setTimeout(open, PATIENCE);
        return;
      }
      close();
      const answer = await fetch(path(), { method: "HEAD" }).catch(() => null);
      stands(answer && answer.status === 401 ? "locked" : answer && answer.status === 404 ? "gone" : "lost");
      if (!answer || answer.status >= 500) setTimeout(open, 2000);
    });
    for (const [name, hear] of Object.entries(told)) source.addEventListener(name, (event) => hear(JSON.parse(event.data)));
  };
  // A page that nobody looks at holds no line: browsers have six to a server, and training has the machine to itself.
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  addEventListener("pagehide", close);
  addEventListener("pageshow", (event) => event.persisted && open()); // come back to by the browser's Back
  // A line that is opened before the page has loaded keeps the browser saying that it loads.
  if (document.readyState !== "complete") addEventListener("load", () => document.hidden || open(), { once: true });
  else if (!document.hidden) open();
  return { close, open };
}
