// The lead's page: asks for the overview every few seconds, and draws it.

import { banner, find, make, request, say, takeToken, textBlock, visible } from "./shared.js";

const REFRESH_EVERY = 5_000;
let paused = false;
const PART = 50;
let shownTasks = PART;
let saved = {};
let trouble = "";

const percent = (share) => (share === null ? "–" : `${(100 * share).toFixed(0)} %`);
const number = (value, digits = 2) => (value === null ? "–" : value.toFixed(digits));
const seconds = (value) => (value === null ? "–" : `${value.toFixed(0)} s`);
const promptText = (prompt) => visible(typeof prompt === "string" ? prompt : prompt.map((turn) => turn.content).join("\n"));

async function get(path) {
  return request("GET", `/api/lead/${path}`);
}

async function change(method, path, body) {
  try {
    return await request(method, `/api/lead/${path}`, body);
  } catch (error) {
    banner(error.message);
    throw error;
  }
}

async function refresh() {
  try {
    await redraw("overview", draw);
    await redraw("disagreements?limit=10", drawDisagreements);
    await redrawTasks();
    banner(trouble);
  } catch (error) {
    banner(error.status === 403 ? "This page is the lead's; yours is the other link." : error.message);
    if (!error.temporary) return;
  }
  setTimeout(refresh, REFRESH_EVERY);
}

const last = {};

/** Draw anew what has changed: a button in focus and an opened text stay as they are. */
async function redraw(path, drawn) {
  const found = await get(path);
  const text = JSON.stringify(found);
  if (last[path] !== text) drawn(found);
  last[path] = text;
}

function draw(overview) {
  const { tasks, agreement, labelers } = overview;
  const first = find("main").hidden;
  trouble = overview.trouble;
  find("main").hidden = false;
  find("progress").textContent =
    `${tasks.complete} of ${tasks.total} tasks complete, ${tasks.started} begun, ${overview.flags} answers flagged`;
  paused = overview.paused;
  find("pause").textContent = paused ? "Go on" : "Pause";
  find("pause").setAttribute("aria-pressed", paused);
  pairs(find("agreement"), [
    ["Pairs of outputs ordered alike", percent(agreement.pairwise)],
    ["Krippendorff's alpha (ordinal)", number(agreement.alpha)],
    ["Kendall's tau-b", number(agreement.tau_b)],
    ["Tasks ranked by two or more", String(agreement.tasks)],
  ]);
  table(find("labelers"), ["Labeler", "Done", "Skipped", "Flagged", "Median time", "Agrees with others", ""],
    labelers.map((person) => [
      `${person.name}${person.is_lead ? " (lead)" : ""}${person.active ? "" : " (shut out)"}`,
      person.done, person.skipped, person.flagged, seconds(person.median_seconds), percent(person.agreement),
      person.is_lead ? "" : labelerButtons(person),
    ]));
  drawChecks(overview.reward_checks);
  if (first) {
    saved = { overlap: overview.overlap, instructions: overview.instructions };
    find("overlap").value = saved.overlap;
    find("instructions").value = saved.instructions;
  }
}

function labelerButtons(person) {
  return make("span", {},
    make("button", { type: "button", onclick: () => addLabeler(person.name) }, "New link"),
    make("button", { type: "button", onclick: async () => {
      await change("POST", `labelers/${person.id}/deactivate`);
      refreshOnce();
    } }, "Shut out"));
}

function refreshOnce() {
  return redraw("overview", draw);
}

function pairs(list, rows) {
  list.replaceChildren(...rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
}

function table(place, heads, rows) {
  place.replaceChildren(
    make("thead", {}, make("tr", {}, ...heads.map((head) => (head ? make("th", { scope: "col" }, head) : make("td"))))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((cell, column) =>
      make(column ? "td" : "th", column ? {} : { scope: "row" }, cell instanceof Node ? cell : String(cell)))))));
}

/** Accuracy against the number of rankings, as a small figure and in words. */
function drawChecks(checks) {
  if (!checks.length) {
    find("check").replaceChildren(make("p", { class: "quiet" },
      "None yet. Start with --reward_model FOLDER, and a reward model is trained again and again on the rankings so far."));
    return;
  }
  const newest = checks.at(-1);
  const most = Math.max(...checks.map((check) => check.rankings));
  const x = (check) => 40 + (250 * check.rankings) / most;
  const y = (share) => 110 - 100 * share;
  const svg = (tag, attributes, text = "") => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.textContent = text;
    return element;
  };
  const figure = svg("svg", { viewBox: "0 0 300 130", role: "img", class: "figure",
    "aria-label": `Accuracy ${percent(newest.accuracy)} after ${newest.rankings} rankings` });
  figure.append(
    svg("line", { x1: 40, x2: 290, y1: y(0.5), y2: y(0.5), class: "chance" }),
    svg("polyline", { points: checks.map((check) => `${x(check)},${y(check.accuracy)}`).join(" "), class: "curve" }),
    ...checks.map((check) => svg("circle", { cx: x(check), cy: y(check.accuracy), r: 2.5, class: "point" })),
    ...[0, 0.5, 1].map((share) => svg("text", { x: 34, y: y(share) + 4, "text-anchor": "end" }, percent(share))),
    svg("text", { x: 290, y: 126, "text-anchor": "end" }, `${most} rankings`));
  find("check").replaceChildren(figure,
    make("p", {}, `${percent(newest.accuracy)} of held-out pairs ordered as labelers did, after ${newest.rankings} rankings.`));
}

function drawDisagreements(tasks) {
  const shown = tasks.map((task) => make("article", { class: "card" },
    make("h3", {}, `Task ${task.id}: ${percent(task.agreement)} of pairs alike`),
    textBlock(typeof task.prompt === "string" ? task.prompt : promptText(task.prompt)),
    make("div", { class: "wide", tabindex: 0, role: "region", "aria-label": `Task ${task.id}` }, rankTable(task))));
  find("disagreements").replaceChildren(...(shown.length ? shown : [make("p", { class: "quiet" }, "None.")]));
}

function rankTable(task) {
  const place = make("table");
  table(place, ["Output", ...task.rankings.map((ranking) => ranking.labeler)], task.outputs.map((text, output) => [
    textBlock(text),
    ...task.rankings.map((ranking) => ranking.ranks[output] + 1),
  ]));
  return place;
}

/** Show as many tasks as were asked for so far, as they are now. */
async function redrawTasks() {
  const rows = [];
  while (rows.length < shownTasks) {
    const part = await get(`tasks?after=${rows.at(-1)?.id ?? 0}&limit=${PART}`);
    rows.push(...part);
    if (part.length < PART) break;
  }
  find("more").hidden = rows.length < shownTasks;
  const text = JSON.stringify(rows);
  if (last.tasks === text) return;
  last.tasks = text;
  table(find("tasks"), ["Task", "Prompt", "Outputs", "Answers", "Skipped", "Flags", "Median time", "Agreement", "Labelers", ""],
    rows.map((task) => [task.id, promptText(task.prompt).slice(0, 80), task.outputs, `${task.done} of ${task.overlap}`,
      task.skipped, task.flags.join(", "), seconds(task.median_seconds), percent(task.agreement), taskOverlap(task), taskPause(task)]));
}

function taskOverlap(task) {
  return make("input", { type: "number", min: 1, max: 100, value: task.overlap, "aria-label": `Labelers for task ${task.id}`,
    onchange: async (event) => {
      if (event.target.checkValidity()) await change("PUT", `tasks/${task.id}`, { overlap: Number(event.target.value) });
    } });
}

function taskPause(task) {
  return make("button", { type: "button", "aria-label": `${task.paused ? "Go on with" : "Pause"} task ${task.id}`,
    onclick: async () => {
      await change("PUT", `tasks/${task.id}`, { paused: !task.paused });
      redrawTasks();
    } }, task.paused ? "Go on" : "Pause");
}

async function addLabeler(name) {
  const { token } = await change("POST", "labelers", { name });
  const link = `${location.origin}/#token=${token}`;
  find("link").replaceChildren(`Link for ${name}, shown this once: `, make("code", {}, link));
  find("link").hidden = false;
  say(`The link for ${name} is on the page.`);
  refreshOnce();
}

find("add").addEventListener("submit", async (event) => {
  event.preventDefault();
  await addLabeler(find("name").value.trim());
  find("name").value = "";
});
find("settings").addEventListener("submit", async (event) => {
  event.preventDefault();
  const wanted = { overlap: Number(find("overlap").value), instructions: find("instructions").value };
  const changed = Object.entries(wanted).filter(([name, value]) => saved[name] !== value);
  await change("PUT", "settings", Object.fromEntries(changed));
  saved = wanted;
  say("Saved.");
  refreshOnce();
});
find("pause").addEventListener("click", async () => {
  await change("PUT", "settings", { paused: !paused });
  refreshOnce();
});
find("more").addEventListener("click", () => {
  shownTasks += PART;
  redrawTasks();
});
find("export").addEventListener("submit", async (event) => {
  event.preventDefault();
  const filters = new URLSearchParams({ drop_flagged: find("unflagged").checked });
  if (find("least").value) filters.set("min_agreement", find("least").value);
  const kind = find("kind").value;
  try {
    const blob = await request("GET", `/api/lead/export/${kind}?${filters}`, undefined, (response) => response.blob());
    const link = make("a", { href: URL.createObjectURL(blob), download: `${kind}.jsonl` });
    link.click();
    URL.revokeObjectURL(link.href);
  } catch (error) {
    banner(error.message);
  }
});
if (takeToken()) refresh();
else banner("Open this page with the lead's link.");
