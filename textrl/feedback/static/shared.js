// What both pages share: the token, requests, making elements, showing text that nobody may trust.

/** The token comes once in the link's fragment and stays in this tab's session storage. */
export function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  addEventListener("hashchange", () => location.hash.includes("token=") && location.reload());
  if (given) {
    sessionStorage.setItem("textrl.token", given);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem("textrl.token") ?? "";
}

export class RequestError extends Error {
  /** @param {number} status HTTP status, 0 when there was no answer at all */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
  /** Whether the same request may succeed later: no connection, server restarting, too fast. */
  get temporary() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

/**
 * Send a request with the token and return what `read` makes of the response, by default its JSON.
 * Whatever goes wrong is a RequestError, also a response that breaks off.
 */
export async function request(method, path, body, read = (response) => response.json()) {
  try {
    const response = await fetch(path, {
      method,
      headers: {
        authorization: `Bearer ${sessionStorage.getItem("textrl.token") ?? ""}`,
        ...(body === undefined ? {} : { "content-type": "application/json" }),
      },
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: AbortSignal.timeout(60_000),
    });
    if (!response.ok) {
      const problem = await response.json().catch(() => ({}));
      throw new RequestError(response.status, problem.detail ?? `error ${response.status}`);
    }
    return await read(response);
  } catch (error) {
    throw error instanceof RequestError ? error : new RequestError(0, "no connection to the server");
  }
}

export const find = (id) => document.getElementById(id);

/** Make an element; strings become text nodes, never markup. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u2028-\u202e\u2066-\u2069\ufeff]/g;

/** Return the text with control characters and direction overrides made visible. */
export function visible(text) {
  return text.replaceAll("\r\n", "\n").replace(HIDDEN, (character) => {
    const code = character.charCodeAt(0);
    if (code < 0x20) return String.fromCharCode(0x2400 + code);
    return `⟦U+${code.toString(16).toUpperCase().padStart(4, "0")}⟧`;
  });
}

const SHOWN_AT_ONCE = 20_000;
const FENCED = /^ {0,3}```[^\n`]*\n([\s\S]*?)^ {0,3}```[ \t]*$\n?/gm;

/** Return a text in parts: what stands between fences is code, everything else is as it was written. */
function withCode(text) {
  const parts = [];
  let end = 0;
  for (const found of text.matchAll(FENCED)) {
    parts.push(visible(text.slice(end, found.index)), make("pre", { class: "code", tabindex: 0 }, visible(found[1])));
    end = found.index + found[0].length;
  }
  return [...parts, visible(text.slice(end))];
}

/** Return a block that shows a text as it is, a long one cut with a button for the rest. */
export function textBlock(text) {
  const block = make("div", { class: "text", dir: "auto" });
  if (text.length <= SHOWN_AT_ONCE) {
    block.append(...withCode(text));
    return block;
  }
  const more = make("button", { type: "button" }, `Show all ${text.length.toLocaleString()} characters`);
  more.addEventListener("click", () => {
    block.replaceChildren(...withCode(text));
    more.remove();
  });
  block.append(visible(text.slice(0, SHOWN_AT_ONCE)), "…");
  return make("div", {}, block, more);
}

/** Show a message above the page until it is called with nothing. */
export function banner(message) {
  find("banner").textContent = message ?? "";
  find("banner").hidden = !message;
}

/** Tell a screen reader. */
export function say(message) {
  find("said").textContent = message;
}
