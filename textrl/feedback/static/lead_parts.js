// What the parts of the lead's page share: requests, tables and numbers in words.

import { banner, make, request, visible } from "./shared.js";

export const percent = (share) => (share === null ? "–" : `${(100 * share).toFixed(0)} %`);
export const number = (value, digits = 2) => (value === null ? "–" : value.toFixed(digits));
export const seconds = (value) => (value === null ? "–" : `${value.toFixed(0)} s`);
export const promptText = (prompt) =>
  visible(typeof prompt === "string" ? prompt : prompt.map((turn) => turn.content).join("\n"));

/** Return a time span in the unit that fits, such as "3.2 hours". */
export function span(value) {
  if (value < 90) return `${value.toFixed(0)} seconds`;
  if (value < 5400) return `${(value / 60).toFixed(0)} minutes`;
  return `${(value / 3600).toFixed(1)} hours`;
}

export async function get(path) {
  return request("GET", `/api/lead/${path}`);
}

export async function change(method, path, body) {
  try {
    return await request(method, `/api/lead/${path}`, body);
  } catch (error) {
    banner(error.message);
    throw error;
  }
}

export function table(place, heads, rows) {
  place.replaceChildren(
    make("thead", {}, make("tr", {}, ...heads.map((head) => (head ? make("th", { scope: "col" }, head) : make("td"))))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((cell, column) =>
      make(column ? "td" : "th", column ? { "data-head": heads[column] } : { scope: "row" },
        cell instanceof Node ? cell : String(cell)))))));
}
