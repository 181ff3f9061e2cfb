// Answers on their way: kept in local storage until the server has confirmed each one, so neither a
// reload nor a lost connection nor a restarted server loses work. Drafts of unsent answers as well.

import { request } from "./shared.js";

export class Outbox {
  /** @param {string} name of the labeler: two people may use one browser */
  constructor(name) {
    this.key = `textrl.outbox.${name}`;
    this.name = name;
  }

  get waiting() {
    return JSON.parse(localStorage.getItem(this.key) ?? "[]");
  }

  #keep(entries) {
    localStorage.setItem(this.key, JSON.stringify(entries));
  }

  add(method, task, body) {
    this.#keep([...this.waiting.filter((entry) => entry.task !== task), { method, task, body }]);
  }

  drop(task) {
    this.#keep(this.waiting.filter((entry) => entry.task !== task));
  }

  /** Send all; what the server refused for good is dropped here and thrown. */
  async flush() {
    for (const { method, task, body } of this.waiting) {
      try {
        await request(method, `/api/tasks/${task}/answer`, body);
      } catch (error) {
        if (!error.temporary && error.status !== 401) this.drop(task);
        error.task = task;
        throw error;
      }
      this.drop(task);
      this.dropDraft(task);
    }
  }

  draft(task) {
    return JSON.parse(localStorage.getItem(`textrl.draft.${this.name}.${task}`) ?? "null");
  }

  keepDraft(task, draft) {
    localStorage.setItem(`textrl.draft.${this.name}.${task}`, JSON.stringify(draft));
  }

  dropDraft(task) {
    localStorage.removeItem(`textrl.draft.${this.name}.${task}`);
  }
}
