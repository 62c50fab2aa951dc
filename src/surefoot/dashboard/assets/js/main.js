// The way in: the key, then the page that the address names.

import { compare } from "./compare.js";
import { failed, locked } from "./frame.js";
import { list } from "./list.js";
import { run } from "./live.js";
import { Refused, enter } from "./session.js";

async function start() {
  await enter();
  const [, first, id] = location.pathname.split("/");
  if (first === "run") await run(id);
  else if (first === "compare") await compare();
  else await list();
}

start().catch((error) => {
  if (error instanceof Refused && error.status === 401) locked(error.message === "" ? "" : `${error.message[0].toUpperCase()}${error.message.slice(1)}.`);
  else if (error instanceof Refused) failed("This cannot be shown", `${error.message}.`);
  else throw error;
});
// The link opened again in a page that is there already changes only the part with the key.
addEventListener("hashchange", () => location.hash.startsWith("#token=") && location.reload());
