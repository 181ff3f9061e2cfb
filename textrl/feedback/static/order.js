// The order that a labeler builds: tiers of outputs, best first; outputs in one tier are tied.
// No page here: `labeler.js` draws it.

export class Order {
  /** @param {number} count how many outputs there are */
  constructor(count) {
    this.count = count;
    this.tiers = [];
    this.tieNext = false;
    this.past = [];
  }

  get complete() {
    return this.tiers.flat().length === this.count;
  }

  get unplaced() {
    return [...Array(this.count).keys()].filter((output) => this.tierOf(output) < 0);
  }

  tierOf(output) {
    return this.tiers.findIndex((tier) => tier.includes(output));
  }

  /** Place an output after those placed so far; the last one left places itself. */
  place(output) {
    if (output >= this.count || this.tierOf(output) >= 0) return false;
    this.#remember();
    if (this.tieNext && this.tiers.length) this.tiers.at(-1).push(output);
    else this.tiers.push([output]);
    this.tieNext = false;
    if (this.unplaced.length === 1) this.tiers.push(this.unplaced);
    return true;
  }

  /** Tie the next output with the last one; with all placed, tie the last tier with the one above. */
  tie() {
    if (this.complete) return this.tieWithAbove(this.tiers.at(-1)[0]);
    if (!this.tiers.length) return false;
    this.tieNext = !this.tieNext;
    return true;
  }

  tieWithAbove(output) {
    const at = this.tierOf(output);
    if (at < 1) return false;
    this.#remember();
    this.tiers[at - 1].push(...this.tiers[at]);
    this.tiers.splice(at, 1);
    return true;
  }

  /** Move an output one step up (-1) or down (1); out of a tie first. */
  move(output, step) {
    const at = this.tierOf(output);
    if (at < 0) return false;
    const alone = this.tiers[at].length === 1;
    if (alone && (at + step < 0 || at + step >= this.tiers.length)) return false;
    return this.insert(output, alone ? at + (step < 0 ? -1 : 2) : at + (step < 0 ? 0 : 1));
  }

  /** Make an output a tier of its own before tier `at`; `at` counts as things are now. */
  insert(output, at) {
    this.#remember();
    const from = this.tierOf(output);
    const marked = this.tiers.map((tier) => tier.filter((other) => other !== output));
    marked.splice(at, 0, [output]);
    this.tiers = marked.filter((tier) => tier.length);
    if (from < 0 && this.unplaced.length === 1) this.tiers.push(this.unplaced);
    return true;
  }

  /** Put an output into tier `at`. */
  join(output, at) {
    if (this.tiers[at].includes(output)) return false;
    this.#remember();
    const target = this.tiers[at];
    target.push(output);
    this.tiers = this.tiers
      .map((tier) => (tier === target ? tier : tier.filter((other) => other !== output)))
      .filter((tier) => tier.length);
    if (this.unplaced.length === 1) this.tiers.push(this.unplaced);
    return true;
  }

  undo() {
    if (this.tieNext) {
      this.tieNext = false;
      return true;
    }
    const before = this.past.pop();
    if (!before) return false;
    this.tiers = before;
    return true;
  }

  /** Ranks by output, 0 is best. */
  get ranks() {
    return [...Array(this.count).keys()].map((output) => this.tierOf(output));
  }

  set ranks(ranks) {
    const values = [...new Set(ranks)].sort((a, b) => a - b);
    this.tiers = values.map((value) => [...ranks.keys()].filter((i) => ranks[i] === value));
  }

  #remember() {
    this.past.push(this.tiers.map((tier) => [...tier]));
  }
}
