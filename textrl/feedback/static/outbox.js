// Answers on their way: kept in local storage until the server has confirmed each one, so neither a
// reload nor a lost connection nor a restarted server loses work. Drafts of unsent answers as well.

import { request } from "./shared.js";

export class Outbox {
  /** @param me as /api/me gives it: keys hold database and labeler, for a browser may know several */
  constructor(me) {
    this.prefix = `textrl.${me.database}.${me.name}`;
    this.key = `${this.prefix}.outbox`;
    this.full = false;
  }

  get waiting() {
    return JSON.parse(localStorage.getItem(this.key) ?? "[]");
  }

  /** Store a value; a full or forbidden storage is remembered in `full`, and work goes on without. */
  #store(key, value) {
    try {
      localStorage.setItem(key, JSON.stringify(value));
      this.full = false;
    } catch {
      this.full = true;
    }
    return !this.full;
  }

  /** Keep an answer to be sent; false if the browser has no room for it. */
  add(method, task, body) {
    const others = this.waiting.filter((entry) => entry.task !== task);
    return this.#store(this.key, [...others, { method, task, body }]);
  }

  /** Remove exactly this entry: another tab may have replaced it meanwhile. */
  #drop(entry) {
    const same = JSON.stringify(entry);
    this.#store(this.key, this.waiting.filter((other) => JSON.stringify(other) !== same));
  }

  /** Send all. What the server refuses for good is dropped, with `refused(message, entry)`. */
  async flush(refused) {
    for (const entry of this.waiting) {
      try {
        await request(entry.method, `/api/tasks/${entry.task}/answer`, entry.body);
      } catch (error) {
        if (error.temporary || error.status === 401) throw error;
        this.#drop(entry);
        refused(error.message, entry);
        continue;
      }
      this.#drop(entry);
      this.dropDraft(entry.task);
    }
  }

  draft(task) {
    return JSON.parse(localStorage.getItem(`${this.prefix}.draft.${task}`) ?? "null");
  }

  keepDraft(task, draft) {
    this.#store(`${this.prefix}.draft.${task}`, draft);
  }

  dropDraft(task) {
    localStorage.removeItem(`${this.prefix}.draft.${task}`);
  }
}
