// The labeler's page: fetch a task, let it be ranked and written, send the answer, fetch the next.
// `task_view.js` draws the task in hand; `outbox.js` keeps what is not sent yet; `keys.js` has the keys.

import { onKey } from "./keys.js";
import { Outbox } from "./outbox.js";
import { banner, find, make, request, say, takeToken, visible } from "./shared.js";
import { TaskView } from "./task_view.js";

const RENEW_EVERY = 4 * 60_000;
const ASK_AGAIN_EVERY = 5_000;
const page = { view: null, submit, undo, openSkip, openAnswers };
let outbox;
let me;
let round = 0; // counts what was asked for last: whoever waited longer for something older gives up
let pollTimer;
let refusals = 0;

async function start() {
  if (!takeToken()) {
    banner("Open this page with the link that the lead gave you.");
    return;
  }
  await persistently(fetchMe);
  outbox = new Outbox(me);
  await next();
}

async function fetchMe() {
  me = await request("GET", "/api/me");
  find("progress").textContent = `${me.name}: ${me.done} done, ${me.left} left`;
  find("bar").value = me.done / Math.max(1, me.done + me.left);
}

/** Repeat an action while its error may pass, and say so meanwhile. */
async function persistently(action) {
  for (let wait = 1000; ; wait = Math.min(2 * wait, 10_000)) {
    try {
      const result = await action();
      banner();
      return result;
    } catch (error) {
      if (!error.temporary) {
        banner(capital(error.message));
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
  const mine = (round += 1);
  clearTimeout(pollTimer);
  page.view?.close();
  page.view = null;
  find("task").inert = true; // what is typed now would be lost
  await persistently(() => outbox.flush(refused));
  const { task, paused } = await persistently(async () => {
    await fetchMe();
    return request("POST", "/api/claim");
  });
  if (mine !== round) return;
  if (task) {
    show(task, null);
    return;
  }
  find("task").hidden = true;
  find("nothing").hidden = false;
  find("nothing").textContent = paused
    ? "The lead has paused the work. This page goes on by itself."
    : me.left
      ? `Others have the ${me.left === 1 ? "task that is" : `${me.left} tasks that are`} left. This page goes on by itself when one is free.`
      : "Nothing left for you at the moment. This page goes on by itself when there is.";
  find("about").hidden = true;
  if (document.activeElement === document.body) find("main").focus();
  pollTimer = setTimeout(() => next().catch(() => {}), ASK_AGAIN_EVERY);
}

/** Tell of an answer that cannot count, until the labeler has seen it; its text is kept there. */
function refused(message, { body }) {
  refusals += 1;
  const text = body.demonstration ? ` You wrote: ${visible(body.demonstration)}` : "";
  find("refused-text").textContent = `An answer was not taken: ${message}.${text}`;
  find("refused").hidden = false;
}

function show(task, answer) {
  page.view?.close();
  clearTimeout(pollTimer);
  const key = answer ? `${task.task_id}.${answer.revision}` : task.task_id;
  page.view = new TaskView(task, me.flags, answer, outbox.draft(key), (draft) => {
    outbox.keepDraft(key, draft);
    if (outbox.full) banner("This browser keeps no drafts (no room, or not allowed): do not reload.");
  });
  page.view.draftKey = key;
  find("task").inert = false;
  find("task").hidden = false;
  find("nothing").hidden = true;
  find("editing").hidden = !answer;
  find("about").hidden = false;
  find("instructions").textContent = page.view.ranked ? me.instructions : me.writing_instructions;
  find("submit-key").textContent = page.view.ranked ? "Enter" : "Ctrl+Enter"; // there Enter makes a line
  find("task").dataset.task = task.task_id;
  fault();
  find("prompt-heading").focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

function fault(message) {
  find("fault").textContent = message ?? "";
  find("fault").hidden = !message;
}

async function submit(skipReason) {
  const { view } = page;
  if (!view) return;
  const missing = skipReason === undefined && view.missing;
  if (missing) {
    fault(missing);
    return;
  }
  const body = view.answer(skipReason);
  const id = view.task.task_id;
  const kept = view.before
    ? outbox.add("PUT", id, { ...body, revision: view.before.revision })
    : outbox.add("POST", id, body);
  if (!kept) {
    fault("This browser has no room to keep the answer while it is sent. Shorten it, or clear site data.");
    return;
  }
  const before = refusals;
  await next();
  outbox.dropDraft(view.draftKey);
  if (refusals === before) say("Sent.");
}

async function openAnswers() {
  const past = await persistently(() => request("GET", "/api/answers"));
  const items = past.map(({ task_id, prompt, skipped }) =>
    make("li", {}, make("button", { type: "button", onclick: () => edit(task_id) },
      `${skipped ? "Skipped: " : ""}${visible(prompt)}`)));
  find("answers").replaceChildren(...(items.length ? items : [make("li", {}, "None yet.")]));
  if (!find("answers-dialog").open) find("answers-dialog").showModal();
}

async function edit(taskId) {
  const mine = (round += 1);
  find("answers-dialog").close();
  const { task, answer } = await persistently(() => request("GET", `/api/tasks/${taskId}/answer`));
  if (mine === round) show(task, answer);
}

async function undo() {
  const { view } = page;
  if (!view || view.undo() || view.before || view.touched) return;
  const [last] = await persistently(() => request("GET", "/api/answers"));
  if (last && page.view === view) await edit(last.task_id);
}

function openSkip() {
  if (!page.view) return;
  find("reason").value = "";
  find("skip-dialog").dataset.task = page.view.task.task_id;
  find("skip-dialog").showModal();
}

document.addEventListener("keydown", (event) => onKey(event, page));
find("task").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
find("undo").addEventListener("click", undo);
find("skip").addEventListener("click", openSkip);
find("skip-cancel").addEventListener("click", () => find("skip-dialog").close());
find("skip-dialog").addEventListener("submit", () => {
  const meant = Number(find("skip-dialog").dataset.task);
  if (page.view?.task.task_id === meant) submit(find("reason").value);
});
find("stop-editing").addEventListener("click", () => {
  outbox.dropDraft(page.view.draftKey);
  next();
});
find("refused-seen").addEventListener("click", () => { find("refused").hidden = true; });
find("open-answers").addEventListener("click", openAnswers);
find("answers-close").addEventListener("click", () => find("answers-dialog").close());
find("open-keys").addEventListener("click", () => find("keys-dialog").showModal());
find("keys-close").addEventListener("click", () => find("keys-dialog").close());
setInterval(() => {
  if (page.view && !page.view.before && page.view.worksOn) {
    request("POST", `/api/tasks/${page.view.task.task_id}/renew`).catch(() => {});
  }
}, RENEW_EVERY);
start().catch(() => {});
