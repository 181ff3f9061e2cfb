// The task in hand: prompt, outputs, the order being built, text, rating, flags. Draws itself into the
// page's places and calls `changed` with a draft after every change.

import { draggable } from "./drag.js";
import { Order } from "./order.js";
import { find, make, say, textBlock, visible } from "./shared.js";

const AWAY_AFTER = 60_000;
const GONE_AFTER = 10 * 60_000;
const places = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"];

export class TaskView {
  /**
   * @param task as /api/claim gives it
   * @param flags key -> wording
   * @param before the stored answer when it is being changed, else null
   * @param draft what `changed` was called with before a reload, else null
   */
  constructor(task, flags, before, draft, changed) {
    this.task = task;
    this.before = before;
    this.changed = changed;
    this.order = new Order(task.outputs.length);
    this.touched = Boolean(draft);
    this.seconds = draft?.seconds ?? before?.seconds ?? 0;
    const start = draft ?? before ?? { demonstration: task.outputs.length === 1 ? task.outputs[0] : "" };
    if (start.tiers) this.order.tiers = start.tiers.filter((tier) => tier.every((i) => i < this.order.count));
    else if (before?.ranks) this.order.ranks = before.ranks;
    this.rating = start.rating ?? null;
    this.#drawTask(flags, start);
    this.#drawOrder();
    this.#countSeconds();
  }

  /** Whether the labeler has been here lately: then the task stays theirs. */
  get worksOn() {
    return !document.hidden && Date.now() - this.activeAt < GONE_AFTER;
  }

  /** Stop counting and listening; the page may show another task. */
  close() {
    clearInterval(this.timer);
    this.listening.abort();
    find("demonstration").oninput = null;
  }

  get ranked() {
    return this.task.outputs.length > 1;
  }

  /** What still keeps the answer from being sent, or "". */
  get missing() {
    if (this.ranked && !this.order.complete) {
      const left = this.order.unplaced.map((output) => output + 1).join(", ");
      return `Not placed yet: output ${left}.`;
    }
    if (!this.ranked && !find("demonstration").value.trim()) return "Write the answer first.";
    return "";
  }

  answer(skipReason) {
    const skip = skipReason !== undefined;
    return {
      ranks: this.ranked && !skip ? this.order.ranks : null,
      demonstration: (!skip && find("demonstration").value) || null,
      rating: skip ? null : this.rating,
      flags: [...find("flag-choices").querySelectorAll("input:checked")].map((box) => box.value),
      skip_reason: skip ? skipReason : null,
      seconds: this.seconds,
    };
  }

  place(output) {
    if (!this.ranked || output >= this.order.count) return;
    if (!this.order.place(output)) say(`Output ${output + 1} is placed already.`);
    else this.#orderChanged(output);
  }

  tie(output) {
    if (output === null || output === undefined ? this.order.tie() : this.order.tieWithAbove(output)) {
      this.#orderChanged();
      if (this.order.tieNext) say("The next one ties with the last.");
    }
  }

  move(output, step) {
    if (this.order.move(output, step)) this.#orderChanged(output, true);
  }

  undo() {
    const undone = this.order.undo();
    if (undone) this.#orderChanged();
    return undone;
  }

  rate(value) {
    if (value > 7) return;
    this.rating = value;
    find(`rating-${value}`).checked = true;
    find(`rating-${value}`).focus();
    this.#keep();
  }

  focusRating() {
    const chosen = find("rating-choices").querySelector("input:checked");
    (chosen ?? find("rating-choices").querySelector("input"))?.focus();
  }

  #keep() {
    this.touched = true;
    this.changed({
      tiers: this.order.tiers,
      demonstration: find("demonstration").value,
      rating: this.rating,
      flags: this.answer().flags,
      seconds: this.seconds,
    });
  }

  #orderChanged(output, keepFocus = false) {
    this.#drawOrder();
    this.#keep();
    if (output !== undefined) {
      const tier = this.order.tierOf(output);
      const tied = this.order.tiers[tier].length > 1 ? ", tied" : "";
      say(`Output ${output + 1} is ${places[tier]}${tied}.${this.order.complete ? " All are placed." : ""}`);
      if (keepFocus) find("order").querySelector(`[data-placed="${output}"]`)?.focus();
    }
  }

  #drawTask(flags, start) {
    find("prompt").replaceChildren(...this.task.prompt.map(({ role, content }) =>
      make("div", { class: "turn" }, ...(role ? [make("p", { class: "role" }, visible(role))] : []), textBlock(content))));
    find("ranking").hidden = !this.task.outputs.length;
    find("order-panel").hidden = !this.ranked;
    find("outputs").replaceChildren(...this.task.outputs.map((text, output) => this.#card(text, output)));
    find("write-label").textContent = this.ranked ? "Write a better one, if you can" : "Write the answer";
    find("demonstration").value = start.demonstration ?? "";
    find("demonstration").oninput = () => this.#keep();
    find("rating-choices").replaceChildren(...[1, 2, 3, 4, 5, 6, 7].map((value) =>
      make("label", {},
        make("input", { type: "radio", name: "rating", id: `rating-${value}`, value, checked: value === this.rating,
          onchange: () => this.rate(value) }), ` ${value}`)));
    find("flag-choices").replaceChildren(...Object.entries(flags).map(([key, wording]) =>
      make("label", {},
        make("input", { type: "checkbox", value: key, checked: (start.flags ?? []).includes(key),
          onchange: () => this.#keep() }), ` ${wording}`)));
  }

  #card(text, output) {
    const name = `Output ${output + 1}`;
    const head = make("div", { class: "card-head", title: this.ranked ? "Drag into your order" : null },
      make("h3", { id: `output-${output}` }, name), make("span", { class: "rank", id: `rank-${output}` }));
    if (this.ranked) {
      draggable(head, (target) => this.#drop(output, target));
      head.append(make("button", { type: "button", "aria-keyshortcuts": output + 1, "aria-label": `Place ${name} next`,
        onclick: () => this.place(output) }, "Place ", make("kbd", {}, String(output + 1))));
    }
    head.append(make("button", { type: "button", "aria-label": `Write, starting from ${name}`, onclick: () => {
      find("demonstration").value = text;
      find("demonstration").focus();
      this.#keep();
    } }, "Edit a copy"));
    return make("article", { class: "card", "aria-labelledby": `output-${output}` }, head, textBlock(text));
  }

  #drop(output, target) {
    const at = Number(target.dataset.at);
    const done = target.matches(".tie") ? this.order.join(output, at) : this.order.insert(output, at);
    if (done) this.#orderChanged(output, true);
  }

  #drawOrder() {
    const { tiers, count } = this.order;
    const gap = (at) => make("li", { class: "gap drop", "data-at": at, "aria-hidden": "true" });
    const rows = tiers.flatMap((tier, at) => [gap(at), make("li", { class: "tier" },
      ...tier.map((output) => this.#chip(output, at)),
      make("span", { class: "tie drop", "data-at": at, "aria-hidden": "true" }, "tie here"))]);
    if (tiers.length < count || !this.order.complete) rows.push(gap(tiers.length));
    else rows.push(gap(count));
    find("order").replaceChildren(...rows);
    const left = this.order.unplaced.length;
    find("hint").textContent = left
      ? `${this.order.tieNext ? "Tied with the last: which one? " : ""}Press a number, drag an output here, or use its button. ${left} to go.`
      : "All placed. Arrows move the one in focus, = ties it with the one above.";
    for (let output = 0; output < count && this.ranked; output += 1) {
      const tier = this.order.tierOf(output);
      find(`rank-${output}`).textContent = tier < 0 ? "" : places[tier];
    }
  }

  #chip(output, at) {
    const first = visible(this.task.outputs[output].slice(0, 300).trim().replace(/\s+/g, " "));
    const act = (label, sign, action) =>
      make("button", { type: "button", "aria-label": `${label} output ${output + 1}`, onclick: action }, sign);
    const chip = make("div", { class: "chip", tabindex: 0, "data-placed": output, role: "group",
      "aria-label": `Output ${output + 1}, ${places[at]}` },
      make("strong", {}, String(output + 1)), make("span", { class: "start", dir: "auto" }, first),
      act("Move up", "↑", () => this.move(output, -1)), act("Move down", "↓", () => this.move(output, 1)),
      act("Tie with the one above:", "=", () => this.tie(output)));
    draggable(chip, (target) => this.#drop(output, target));
    return chip;
  }

  #countSeconds() {
    this.activeAt = Date.now();
    this.listening = new AbortController();
    const options = { passive: true, signal: this.listening.signal };
    for (const kind of ["pointermove", "keydown", "scroll"]) {
      document.addEventListener(kind, () => { this.activeAt = Date.now(); }, options);
    }
    this.timer = setInterval(() => {
      if (!document.hidden && Date.now() - this.activeAt < AWAY_AFTER) this.seconds += 0.25;
    }, 250);
  }
}
