// The lead's page: asks for the overview every few seconds, and draws it.

import { lineChart } from "./chart.js";
import { change, get, number, percent, promptText, seconds, span, table } from "./lead_parts.js";
import { banner, find, make, request, say, takeToken, textBlock } from "./shared.js";
import { redrawTasks } from "./task_table.js";

const REFRESH_EVERY = 5_000;
let paused = false;
let saved = {};
let trouble = "";

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
  drawHistory(overview);
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
  return make("span", { class: "row" },
    make("button", { type: "button", "aria-label": `New link for ${person.name}`, onclick: () => addLabeler(person.name) }, "New link"),
    ...(person.active ? [make("button", { type: "button", class: "danger", "aria-label": `Shut out ${person.name}`,
      onclick: () => askBeforeShuttingOut(person) }, "Shut out…")] : []));
}

function askBeforeShuttingOut(person) {
  find("shut-heading").textContent = `Shut out ${person.name}?`;
  find("shut-dialog").showModal();
  find("shut-yes").onclick = async () => {
    find("shut-dialog").close();
    await change("POST", `labelers/${person.id}/deactivate`);
    refreshOnce();
  };
}

function refreshOnce() {
  return redraw("overview", draw);
}

function pairs(list, rows) {
  list.replaceChildren(...rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
}

/** Answers of each labeler and agreement over time, and what is left to do. */
function drawHistory({ history, answers_left: left, seconds_left: time, tasks }) {
  const work = left && time !== null ? `, about ${span(time)} of labelers' time` : "";
  find("left").textContent = left ? `${left} answers are missing${work}.` : tasks.total ? "Nothing is left to do." : "There are no tasks yet.";
  if (!history.moments.length) {
    find("curves").replaceChildren();
    return;
  }
  const moment = (at) => new Date(1000 * at).toLocaleString([], { dateStyle: "short", timeStyle: "short" });
  const { moments } = history;
  const axes = { left: moment(moments[0]), right: moment(moments.at(-1)) };
  const names = Object.keys(history.done);
  const most = Math.max(...names.map((name) => history.done[name].at(-1)));
  const lines = names.map((name) => ({ name, points: moments.map((at, step) => [at, history.done[name][step]]) }));
  const done = lineChart(`Answers: ${names.map((name) => `${name} ${history.done[name].at(-1)}`).join(", ")}`, lines,
    { ...axes, highest: most, rows: [0, most], show: String });
  const agreed = history.agreement.some((rate) => rate !== null);
  const agreement = lineChart("Agreement over time",
    [{ name: "agreement", points: moments.map((at, step) => [at, history.agreement[step]]) }],
    { ...axes, highest: 1, rows: [0, 0.5, 1], show: percent });
  find("curves").replaceChildren(
    make("figure", {}, make("figcaption", {}, "Answers by labeler"), done,
      make("p", { class: "legend" }, ...names.map((name, index) => make("span", { class: `key line-${index % 4}` }, name)))),
    ...(agreed ? [make("figure", {}, make("figcaption", {}, "Pairs of outputs ordered alike, of the tasks finished in each part of the time"), agreement)] : []));
}

/** Accuracy against the number of rankings, as a small figure and in words. */
function drawChecks(checks) {
  if (!checks.length) {
    find("check").replaceChildren(make("p", { class: "quiet" },
      "None yet. Start with --reward_model FOLDER, and a reward model is trained again and again on the rankings so far."));
    return;
  }
  const newest = checks.at(-1);
  const figure = lineChart(`Accuracy ${percent(newest.accuracy)} after ${newest.rankings} rankings`,
    [{ name: "accuracy", points: checks.map((check) => [check.rankings, check.accuracy]) }],
    { from: 0, highest: 1, rows: [0, 0.5, 1], show: percent, left: "0", right: `${newest.rankings} rankings` });
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
find("shut-no").addEventListener("click", () => find("shut-dialog").close());
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
