// The labeler's page: fetch a task, let it be ranked and written, send the answer, fetch the next.
// `task_view.js` draws the task in hand; `outbox.js` keeps what is not sent yet.

import { Outbox } from "./outbox.js";
import { banner, find, make, request, say, takeToken, visible } from "./shared.js";
import { TaskView } from "./task_view.js";

const RENEW_EVERY = 4 * 60_000;
const ASK_AGAIN_EVERY = 5_000;
let outbox;
let view = null;
let sending = false;

async function start() {
  if (!takeToken()) {
    banner("Open this page with the link that the lead gave you.");
    return;
  }
  const me = await persistently(() => fetchMe());
  outbox = new Outbox(me.name);
  await next();
}

async function fetchMe() {
  const me = await (await request("GET", "/api/me")).json();
  find("instructions").textContent = me.instructions;
  find("progress").textContent = `${me.name}: ${me.done} done, ${me.left} left`;
  find("bar").value = me.done / Math.max(1, me.done + me.left);
  flags = me.flags;
  return me;
}
let flags = {};

/** Repeat an action while its error may pass, and say so meanwhile. */
async function persistently(action) {
  for (let wait = 1000; ; wait = Math.min(2 * wait, 10_000)) {
    try {
      const result = await action();
      banner();
      return result;
    } catch (error) {
      if (!error.temporary) {
        banner(error.message);
        throw error;
      }
      banner(`${capital(error.message)}. Your work is kept here and is sent as soon as it can be.`);
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  }
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** Send what waits, then show the next task, or why there is none. */
async function next() {
  await send();
  view = null;
  const { task, paused } = await persistently(async () => {
    await fetchMe();
    return (await request("POST", "/api/claim")).json();
  });
  find("task").hidden = !task;
  find("nothing").hidden = Boolean(task);
  if (task) {
    show(task, null);
    return;
  }
  find("main").focus();
  find("nothing").textContent = paused
    ? "The lead has paused the work. This page goes on by itself."
    : "Nothing left for you at the moment. This page goes on by itself when there is.";
  setTimeout(() => view || next().catch(() => {}), ASK_AGAIN_EVERY);
}

function show(task, answer) {
  find("task").hidden = false;
  find("nothing").hidden = true;
  find("editing").hidden = !answer;
  find("task").dataset.task = task.task_id;
  fault();
  view = new TaskView(task, flags, answer, answer ? null : outbox.draft(task.task_id), (draft) => {
    if (!answer) outbox.keepDraft(task.task_id, draft);
  });
  find("prompt-heading").focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

/** Send the outbox; an answer that cannot count is reported and does not stop the rest. */
async function send() {
  sending = true;
  try {
    await persistently(async () => {
      try {
        await outbox.flush();
      } catch (error) {
        if (error.status !== 409) throw error;
        outbox.dropDraft(error.task);
        fault(capital(error.message));
        await outbox.flush();
      }
    });
  } finally {
    sending = false;
  }
}

function fault(message) {
  find("fault").textContent = message ?? "";
  find("fault").hidden = !message;
}

async function submit(skipReason) {
  if (!view || sending) return;
  const missing = skipReason === undefined && view.missing;
  if (missing) {
    fault(missing);
    return;
  }
  const body = view.answer(skipReason);
  const id = view.task.task_id;
  if (view.before) outbox.add("PUT", id, { ...body, revision: view.before.revision });
  else outbox.add("POST", id, body);
  fault();
  say("Sent.");
  await next();
}

async function openAnswers() {
  const past = await persistently(async () => (await request("GET", "/api/answers")).json());
  const items = past.map(({ task_id, prompt, skipped }) =>
    make("li", {}, make("button", { type: "button", onclick: () => edit(task_id) },
      `${skipped ? "Skipped: " : ""}${visible(prompt)}`)));
  find("answers").replaceChildren(...(items.length ? items : [make("li", {}, "None yet.")]));
  find("answers-dialog").showModal();
}

async function edit(taskId) {
  find("answers-dialog").close();
  const { task, answer } = await persistently(async () =>
    (await request("GET", `/api/tasks/${taskId}/answer`)).json());
  show(task, answer);
}

async function undo() {
  if (!view) return;
  if (view.undo()) return;
  const [last] = await persistently(async () => (await request("GET", "/api/answers")).json());
  if (last && !view.before && !view.touched) await edit(last.task_id);
}

function openSkip() {
  if (!view) return;
  find("reason").value = "";
  find("skip-dialog").showModal();
}

function onKey(event) {
  const inText = event.target.matches("textarea, input:not([type=checkbox], [type=radio]), select");
  if (document.querySelector("dialog[open]") || event.altKey || event.metaKey) return;
  if (inText) {
    if (event.key === "Escape") event.target.blur();
    else if (event.key === "Enter" && event.ctrlKey) submit();
    else return;
    event.preventDefault();
    return;
  }
  if (event.ctrlKey && event.key !== "z") return;
  if (!find("keys-on").checked || !(view || ["a", "?"].includes(event.key))) return;
  const rating = event.target.closest("#rating");
  if (/^[1-9]$/.test(event.key)) {
    if (rating) view.rate(Number(event.key));
    else view.place(Number(event.key) - 1);
  } else if (event.key === "Enter") {
    if (event.target.closest("button, summary, a")) return;
    submit();
  } else if (!act(event)) return;
  event.preventDefault();
}

function act(event) {
  const focused = event.target.closest("[data-placed]");
  const actions = {
    "=": () => view.tie(focused && Number(focused.dataset.placed)),
    u: undo,
    z: () => event.ctrlKey && undo(),
    Backspace: undo,
    r: () => view.focusRating(),
    d: () => find("demonstration").focus(),
    f: () => find("flag-choices").querySelector("input").focus(),
    s: openSkip,
    a: openAnswers,
    "?": () => find("keys-dialog").showModal(),
    ArrowUp: focused && (() => view.move(Number(focused.dataset.placed), -1)),
    ArrowDown: focused && (() => view.move(Number(focused.dataset.placed), 1)),
  };
  const action = actions[event.key];
  action?.();
  return Boolean(action);
}

document.addEventListener("keydown", onKey);
find("task").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
find("undo").addEventListener("click", undo);
find("skip").addEventListener("click", openSkip);
find("skip-cancel").addEventListener("click", () => find("skip-dialog").close());
find("skip-dialog").addEventListener("submit", () => submit(find("reason").value));
find("stop-editing").addEventListener("click", () => next());
find("open-answers").addEventListener("click", openAnswers);
find("answers-close").addEventListener("click", () => find("answers-dialog").close());
find("open-keys").addEventListener("click", () => find("keys-dialog").showModal());
find("keys-close").addEventListener("click", () => find("keys-dialog").close());
find("keys-on").checked = localStorage.getItem("textrl.keys") !== "off";
find("keys-on").addEventListener("change", (event) =>
  localStorage.setItem("textrl.keys", event.target.checked ? "on" : "off"));
setInterval(() => {
  if (view && !view.before && !document.hidden) {
    request("POST", `/api/tasks/${view.task.task_id}/renew`).catch(() => {});
  }
}, RENEW_EVERY);
start().catch(() => {});
