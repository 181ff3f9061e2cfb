// The keys of the labeler's page. Each has a button that does the same.

import { find } from "./shared.js";

/** Act on a key; `page` is what labeler.js offers: view, submit, undo, openSkip, openAnswers. */
export function onKey(event, page) {
  const inText = event.target.matches("textarea, input:not([type=checkbox], [type=radio]), select");
  if (document.querySelector("dialog[open]") || event.altKey || event.metaKey) return;
  if (inText) {
    if (event.key === "Escape") event.target.blur();
    else if (event.key === "Enter" && event.ctrlKey) page.submit();
    else return;
    event.preventDefault();
    return;
  }
  if (!find("keys-on").checked || (event.ctrlKey && event.key !== "z")) return;
  if (event.key === "Enter" && event.target.closest("button, summary, a")) return;
  const action = actionOf(event, page);
  if (!action) return;
  event.preventDefault();
  action();
}

function actionOf(event, page) {
  const { view } = page;
  const always = { a: page.openAnswers, "?": () => find("keys-dialog").showModal() };
  if (!view) return always[event.key];
  const focused = event.target.closest("[data-placed]");
  const output = focused && Number(focused.dataset.placed);
  if (/^[1-9]$/.test(event.key)) {
    const number = Number(event.key);
    return () => (event.target.closest("#rating") ? view.rate(number) : view.place(number - 1));
  }
  return {
    ...always,
    Enter: () => page.submit(),
    "=": () => view.tie(output),
    u: page.undo,
    z: event.ctrlKey && page.undo,
    Backspace: page.undo,
    r: () => view.focusRating(),
    d: () => find("demonstration").focus(),
    f: () => find("flag-choices").querySelector("input").focus(),
    s: page.openSkip,
    ArrowUp: focused && (() => view.move(output, -1)),
    ArrowDown: focused && (() => view.move(output, 1)),
  }[event.key];
}

find("keys-on").checked = read() !== "off";
find("keys-on").addEventListener("change", (event) => {
  try {
    localStorage.setItem("textrl.keys", event.target.checked ? "on" : "off");
  } catch { /* not kept, then */ }
});

function read() {
  try {
    return localStorage.getItem("textrl.keys");
  } catch {
    return null;
  }
}
