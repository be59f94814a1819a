// Keeps the page current. The server renders everything; this script is told by /events that something changed, fetches
// what is shown anew, and puts in what differs. Nothing of an event becomes HTML, and no text becomes code.
"use strict";
(() => {
  const SETTLE_MS = 300; // events come in bursts
  const REFRESH_MS = 15000; // ages go on even when nothing happens
  const PATIENCE_MS = 10000; // for one answer
  const MAX_WAIT_MS = 15000; // between two tries to reconnect
  const KEY = "dispatcher.key"; // of this tab alone, gone with it
  const WORDS = { TypeError: "the dispatcher cannot be reached", AbortError: "the dispatcher is silent" };

  const main = document.getElementById("content");
  const byId = (id) => document.getElementById(id);
  const source = main.dataset.fragment ?? null; // "": asks for a key first; null: this page stays as it is
  const fragment = source === "" ? fragmentOf(location.pathname) : source;
  let needsKey = false; // nothing is asked for until somebody gives one
  document.documentElement.classList.add("is-scripted");

  function fragmentOf(path) {
    return path === "/" ? "/page/fragments/status" : path.replace("/page/", "/page/fragments/");
  }

  // ── asking ──────────────────────────────────────────────────────────────────────────────────────────────────────

  function headers(more = {}) {
    const key = sessionStorage.getItem(KEY);
    return key ? { ...more, Authorization: `Bearer ${key}` } : more;
  }

  async function ask(path, options = {}) {
    const answer = await fetch(path, {
      ...options,
      headers: headers(options.headers),
      cache: "no-store",
      signal: AbortSignal.timeout(PATIENCE_MS),
    });
    if (answer.status === 401) wantKey();
    if (!answer.ok) throw new Error(await whyNot(answer));
    return answer;
  }

  async function whyNot(answer) {
    try {
      const problem = await answer.json();
      return problem.detail || problem.title || `status ${answer.status}`;
    } catch {
      return `status ${answer.status}`;
    }
  }

  function parsed(html) {
    const told = new DOMParser().parseFromString(html, "text/html").body;
    return [...told.childNodes].map((node) => document.importNode(node, true));
  }

  function tell(words, bad = false) {
    const told = byId("told");
    told.textContent = words;
    told.classList.toggle("bad", bad);
  }

  // ── what is shown: only what differs is touched, so that focus, open details and clicks survive ───────────────────

  function keyOf(node) {
    return node.nodeType === 1 ? node.dataset.key ?? (node.id || null) : null;
  }

  function isSame(old, wanted) {
    return old.nodeType === wanted.nodeType && old.nodeName === wanted.nodeName && keyOf(old) === keyOf(wanted);
  }

  function become(old, wanted) {
    if (old.isEqualNode(wanted)) return;
    if (old.nodeType !== 1) {
      old.data = wanted.data;
      return;
    }
    if (old.dataset.keep !== undefined) return;
    for (const { name } of [...old.attributes]) {
      if (!wanted.hasAttribute(name) && !(name === "open" && old.nodeName === "DETAILS")) old.removeAttribute(name);
    }
    for (const { name, value } of wanted.attributes) {
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    becomeChildren(old, [...wanted.childNodes]);
    if (old.nodeName === "SELECT" && document.activeElement !== old) old.value = old.dataset.now ?? old.value;
  }

  function becomeChildren(parent, wanted) {
    const kept = new Map([...parent.children].filter((each) => keyOf(each)).map((each) => [keyOf(each), each]));
    let at = parent.firstChild;
    for (const each of wanted) {
      const known = keyOf(each) ? kept.get(keyOf(each)) : null;
      if (known && known.nodeName === each.nodeName) {
        if (known === at) at = at.nextSibling;
        else parent.insertBefore(known, at);
        become(known, each);
      } else if (at && !keyOf(at) && isSame(at, each)) {
        const next = at.nextSibling;
        become(at, each);
        at = next;
      } else {
        parent.insertBefore(each, at);
      }
    }
    while (at) {
      const next = at.nextSibling;
      at.remove();
      at = next;
    }
  }

  let asking = false;
  let again = false;
  let isShown = true; // what is fetched anew; an event tells that something changed, not that it is seen

  async function refresh() {
    if (document.hidden || needsKey) return;
    if (asking) {
      again = true;
      return;
    }
    asking = true;
    try {
      const told = parsed(await (await ask(fragment)).text());
      const wanted = told.find((node) => node.id === "status");
      if (wanted) become(byId("status"), wanted);
      else byId("status").replaceChildren(...told);
      byId("signed-out")?.remove();
      hideKeyForm();
      isShown = true;
      if (hears) live();
    } catch (error) {
      isShown = false;
      stale(error.message);
    } finally {
      asking = false;
      if (again) {
        again = false;
        soon();
      }
    }
  }

  let due = null;
  function soon() {
    due ??= setTimeout(() => {
      due = null;
      refresh();
    }, SETTLE_MS);
  }

  // ── the event stream, by fetch: an EventSource cannot send a key ─────────────────────────────────────────────────

  let stream = null;
  let lastId = "";
  let waitMs = 1000;
  let seenAt = null;
  let hears = false; // the stream is open

  function live() {
    seenAt = new Date();
    document.documentElement.classList.remove("is-stale");
    document.documentElement.classList.add("is-live");
    byId("live").textContent = "Live";
  }

  function stale(because) {
    if (!byId("live")) return;
    document.documentElement.classList.remove("is-live");
    document.documentElement.classList.add("is-stale");
    const since = seenAt ? `as of ${seenAt.toISOString().slice(11, 19)} UTC` : "not connected";
    byId("live").textContent = `Not live, ${since}: ${because}`;
  }

  function silenceEnds(mine) {
    const heartbeatMs = 1000 * Number(byId("status").dataset.heartbeatSeconds || 15);
    return setTimeout(() => mine.abort(), 2.5 * heartbeatMs + 1000);
  }

  async function follow() {
    if (stream || document.hidden || needsKey) return;
    const mine = (stream = new AbortController());
    const silence = silenceEnds(mine);
    let because = "the connection ended";
    try {
      const wanted = headers({ Accept: "text/event-stream", ...(lastId ? { "Last-Event-ID": lastId } : {}) });
      const answer = await fetch("/events", { headers: wanted, cache: "no-store", signal: mine.signal });
      if (answer.status === 401) wantKey();
      if (!answer.ok) throw new Error(await whyNot(answer));
      clearTimeout(silence);
      hears = true;
      await refresh();
      await read(answer.body.getReader(), mine);
    } catch (error) {
      because = WORDS[error.name] ?? error.message;
    }
    clearTimeout(silence);
    if (stream !== mine) return;
    leaveStream();
    if (document.hidden) return;
    if (needsKey) return stale("a key is needed");
    stale(`${because}; trying again`);
    setTimeout(follow, waitMs * (0.75 + Math.random() / 2));
    waitMs = Math.min(MAX_WAIT_MS, waitMs * 2);
  }

  async function read(reader, mine) {
    const decoder = new TextDecoder();
    let rest = "";
    for (;;) {
      const silence = silenceEnds(mine);
      let piece;
      try {
        piece = await reader.read();
      } finally {
        clearTimeout(silence);
      }
      if (piece.done) return;
      rest += decoder.decode(piece.value, { stream: true });
      const blocks = rest.split("\n\n");
      rest = blocks.pop();
      blocks.forEach(heard);
      waitMs = 1000;
      if (isShown) live();
    }
  }

  function heard(block) {
    let isEvent = false;
    for (const line of block.split("\n")) {
      if (line.startsWith("id: ")) lastId = line.slice(4);
      if (line === "event: dropped") lastId = ""; // the fragment is whole: what was missed is in it
      if (line.startsWith("event: ")) isEvent = true;
    }
    if (isEvent) soon();
  }

  function leaveStream() {
    const mine = stream;
    stream = null;
    hears = false;
    mine?.abort();
  }

  // ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────

  function wantKey() {
    needsKey = true;
    byId("key-form").hidden = false;
    byId("forget").hidden = true;
    if (sessionStorage.getItem(KEY)) tell("This key is not known here.", true);
    sessionStorage.removeItem(KEY);
  }

  function hideKeyForm() {
    byId("key-form").hidden = true;
    byId("forget").hidden = !sessionStorage.getItem(KEY);
  }

  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const key = byId("key").value.trim();
    byId("key").value = "";
    if (/[^\x20-\x7e]/.test(key)) return tell("A header cannot carry this key: it has letters outside ASCII.", true);
    sessionStorage.setItem(KEY, key);
    needsKey = false;
    tell("");
    leaveStream();
    begin();
  });
  byId("forget").addEventListener("click", () => {
    sessionStorage.removeItem(KEY);
    location.reload();
  });

  // ── acting ──────────────────────────────────────────────────────────────────────────────────────────────────────

  function actOf(button) {
    const what = button.dataset.act;
    if (what !== "pin") return ["POST", button.dataset.model, what];
    const select = byId("pin");
    const pinned = select.dataset.now;
    if (select.value) return ["POST", select.value, "pin"];
    return pinned ? ["DELETE", pinned, "pin"] : null;
  }

  main.addEventListener("click", async (event) => {
    const button = event.target.closest("button[data-act]");
    const act = button && actOf(button);
    if (!act) return;
    const [method, model, what] = act;
    button.disabled = true;
    try {
      const told = await (await ask(`/models/${encodeURIComponent(model)}/${what}`, { method })).json();
      tell(`${told.model}: ${told.action}${told.because ? `, ${told.because}` : ""}.`);
    } catch (error) {
      tell(error.message, true);
    }
    button.disabled = false;
    soon();
  });

  main.addEventListener("submit", async (event) => {
    if (event.target.id !== "try-form") return;
    event.preventDefault();
    const form = new FormData(event.target);
    const body = { prompt: form.get("prompt"), prefer: form.get("prefer"), model: form.get("model") };
    if (form.get("task")) body.task = form.get("task");
    const options = { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
    try {
      const html = await (await ask("/page/fragments/choice", options)).text();
      byId("choice").replaceChildren(...parsed(html));
    } catch (error) {
      byId("choice").textContent = error.message;
    }
  });

  main.addEventListener(
    "toggle",
    async (event) => {
      const details = event.target;
      const inside = details.querySelector?.(".inside");
      if (!details.open || !details.dataset.fragment || !inside || inside.dataset.whole) return;
      try {
        inside.replaceChildren(...parsed(await (await ask(details.dataset.fragment)).text()));
        inside.dataset.whole = "true";
      } catch (error) {
        inside.textContent = error.message;
      }
    },
    true, // toggle does not bubble
  );

  // ── beginning ───────────────────────────────────────────────────────────────────────────────────────────────────

  const isStatus = fragment === "/page/fragments/status";

  function begin() {
    if (isStatus) follow();
    else refresh();
  }

  if (source === null) return;
  if (isStatus) setInterval(soon, REFRESH_MS);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) leaveStream();
    else begin();
  });
  hideKeyForm();
  if (source === "" && !sessionStorage.getItem(KEY)) {
    needsKey = true;
    byId("key-form").hidden = false;
    byId("live").textContent = "";
    byId("key").focus();
  } else {
    begin();
  }
})();
