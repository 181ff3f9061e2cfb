// The lead's table of tasks: one page at a time, by state, and each task to be read whole.

import { find, make, textBlock } from "./shared.js";
import { change, get, percent, promptText, seconds, table } from "./lead_parts.js";

const PART = 50;
let starts = [0]; // the id after which each page so far begins
let drawn = "";

/** Show the present page as it is now. */
export async function redrawTasks() {
  const rows = await get(`tasks?after=${starts.at(-1)}&limit=${PART + 1}&state=${find("state").value}`);
  const page = rows.slice(0, PART);
  find("next").disabled = rows.length <= PART;
  find("previous").disabled = starts.length === 1;
  const text = JSON.stringify(page);
  if (drawn === text) return;
  drawn = text;
  find("page").textContent = page.length ? `Tasks ${page[0].id} to ${page.at(-1).id}` : "No such tasks.";
  table(find("tasks"), ["Task", "Prompt", "Outputs", "Answers", "Skipped", "Flags", "Median time", "Agreement", "Labelers", ""],
    page.map((task) => [task.id, promptText(task.prompt).slice(0, 80), task.outputs, `${task.done} of ${task.overlap}`,
      task.skipped, task.flags.join(", "), seconds(task.median_seconds), percent(task.agreement), overlapField(task),
      make("span", { class: "row" }, readButton(task), pauseButton(task))]));
}

function overlapField(task) {
  return make("input", { type: "number", min: 1, max: 100, value: task.overlap, "aria-label": `Labelers for task ${task.id}`,
    onchange: async (event) => {
      if (event.target.checkValidity()) await change("PUT", `tasks/${task.id}`, { overlap: Number(event.target.value) });
    } });
}

function pauseButton(task) {
  return make("button", { type: "button", "aria-label": `${task.paused ? "Go on with" : "Pause"} task ${task.id}`,
    onclick: async () => {
      await change("PUT", `tasks/${task.id}`, { paused: !task.paused });
      await redrawTasks();
    } }, task.paused ? "Go on" : "Pause");
}

function readButton(task) {
  return make("button", { type: "button", "aria-label": `Read task ${task.id}`, onclick: () => read(task.id) }, "Read");
}

/** Show a task whole, with every answer. */
async function read(number) {
  const task = await get(`tasks/${number}`);
  find("read-heading").textContent = `Task ${number}`;
  const ranked = task.answers.filter((answer) => answer.ranks !== null);
  const place = make("table");
  table(place, ["Output", ...ranked.map((answer) => answer.labeler)],
    task.outputs.map((text, output) => [textBlock(text), ...ranked.map((answer) => answer.ranks[output] + 1)]));
  find("read-body").replaceChildren(textBlock(promptText(task.prompt)),
    ...(task.outputs.length ? [make("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Rankings" }, place)] : []),
    ...task.answers.map(said), ...(task.answers.length ? [] : [make("p", { class: "quiet" }, "Nobody has answered yet.")]));
  find("read-dialog").showModal();
}

/** What a labeler said beside the ranks. */
function said(answer) {
  const facts = [
    answer.skip_reason === null ? "" : `skipped: ${answer.skip_reason}`,
    answer.rating === null ? "" : `rated the best ${answer.rating} of 7`,
    answer.flags.length ? `flags: ${answer.flags.join(", ")}` : "",
    `${answer.seconds.toFixed(0)} s`,
  ];
  return make("div", { class: "card" }, make("h3", {}, answer.labeler), make("p", { class: "quiet" }, facts.filter(Boolean).join("; ")),
    ...(answer.demonstration ? [textBlock(answer.demonstration)] : []));
}

find("next").addEventListener("click", async () => {
  const rows = await get(`tasks?after=${starts.at(-1)}&limit=${PART}&state=${find("state").value}`);
  starts.push(rows.at(-1).id);
  await redrawTasks();
});
find("previous").addEventListener("click", async () => {
  starts.pop();
  await redrawTasks();
});
find("state").addEventListener("change", async () => {
  starts = [0];
  await redrawTasks();
});
find("read-close").addEventListener("click", () => find("read-dialog").close());
