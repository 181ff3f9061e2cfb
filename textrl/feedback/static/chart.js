// Line charts of the lead's page, as SVG elements.

const LEFT = 44, RIGHT = 292, TOP = 10, BOTTOM = 112;

function svg(tag, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

/**
 * Return a figure of some lines; a point that is null is left out.
 * @param {string} label what the figure shows, in words
 * @param {{name: string, points: [number, number | null][]}[]} lines
 * @param {{highest: number, rows: number[], show: (y: number) => string, left: string, right: string}} axes
 */
export function lineChart(label, lines, axes) {
  const all = lines.flatMap((line) => line.points.map(([x]) => x));
  const from = axes.from ?? Math.min(...all), width = Math.max(...all) - from || 1;
  const x = (value) => LEFT + ((RIGHT - LEFT) * (value - from)) / width;
  const y = (value) => BOTTOM - ((BOTTOM - TOP) * value) / (axes.highest || 1);
  const figure = svg("svg", { viewBox: "0 0 300 130", role: "img", class: "figure", "aria-label": label });
  for (const row of axes.rows) {
    figure.append(svg("line", { x1: LEFT, x2: RIGHT, y1: y(row), y2: y(row), class: "grid" }),
      svg("text", { x: LEFT - 5, y: y(row) + 3, "text-anchor": "end" }, axes.show(row)));
  }
  lines.forEach((line, number) => {
    const known = line.points.filter(([, value]) => value !== null);
    const kind = `line line-${number % 4}`;
    figure.append(svg("polyline", { points: known.map(([at, value]) => `${x(at)},${y(value)}`).join(" "), class: kind }),
      ...known.map(([at, value]) => svg("circle", { cx: x(at), cy: y(value), r: 1.8, class: `dot line-${number % 4}` })));
  });
  figure.append(svg("text", { x: LEFT, y: 126 }, axes.left), svg("text", { x: RIGHT, y: 126, "text-anchor": "end" }, axes.right));
  return figure;
}
