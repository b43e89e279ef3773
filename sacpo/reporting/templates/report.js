"use strict";
// The page's own code: charts, choice, comparison of answers, tables. Data is JSON; text goes into the page as text alone.
const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);
const trialOf = new Map(data.trials.map((trial) => [trial.id, trial]));
const number = (value, digits = 3) => (value === null || value === undefined ? "–" : value.toFixed(digits));

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function shape(tag, attributes, parent) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  parent.append(node);
  return node;
}

// ------------------------------------------------------------------------------------------------------------ choice
// The rule of `sacpo choose` (docs/statistics.md): order and front by the choosing part, qualification by the other.

function choose(bounds) {
  const margin = (row) => Math.min(...bounds.map(([name, bound]) => row[name].choosing - bound));
  const gain = (row) => row[data.objective].choosing;
  const names = [...bounds.map(([name]) => name), data.objective];
  const rows = data.choice.filter((row) => names.every((name) => row[name] && row[name].choosing !== null));
  const dominates = (a, b) =>
    margin(a) >= margin(b) && gain(a) >= gain(b) && (margin(a) > margin(b) || gain(a) > gain(b));
  const front = rows.filter((row) => !rows.some((other) => dominates(other, row)));
  front.sort((a, b) => margin(b) - margin(a) || gain(b) - gain(a) || a.position - b.position);
  const failed = front.findIndex((row) => bounds.some(([name, bound]) => row[name].low < bound));
  const certified = failed < 0 ? front : front.slice(0, failed);
  const best = rows.reduce((a, b) => (a === null || gain(b) > gain(a) ? b : a), null);
  return { front, certified, chosen: certified.length ? certified[certified.length - 1] : null, best };
}

function currentBounds() {
  return data.constraints.map((constraint, i) => [constraint.criterion, Number(byId(`bound-${i}`).value)]);
}

function showChoice() {
  const bounds = currentBounds();
  bounds.forEach(([, bound], i) => { byId(`bound-${i}-value`).textContent = bound.toFixed(2); });
  const choice = choose(bounds);
  const lines = [];
  if (choice.chosen) {
    const row = choice.chosen;
    lines.push(element("p", { class: "chosen" }, element("b", {}, row.label)));
    for (const [name, bound] of bounds) {
      const { certifying, n, low } = row[name];
      lines.push(element("p", {}, `${name} ≥ ${bound.toFixed(2)}: certified. ${number(certifying)} on ${n} prompts ` +
        `that had no part in the choice, lower bound ${number(low)} (for this policy by itself).`));
    }
    const gain = row[data.objective], best = choice.best[data.objective];
    lines.push(element("p", {}, `${data.objective} ${number(gain.certifying)} on those prompts` + (choice.best === row
      ? "; no policy has more: the constraint costs nothing."
      : `, against ${number(best.certifying)} of ${choice.best.label}, the best without the constraint.`)));
  } else {
    lines.push(element("p", { class: "chosen" }, element("b", {}, "None qualifies.")));
    if (choice.front.length) {
      const row = choice.front[0];
      lines.push(element("p", {}, `The most conservative policy is ${row.label}: ` + bounds.map(([name]) =>
        `${name} ${number(row[name].certifying)}, lower bound ${number(row[name].low)}`).join("; ") + "."));
    }
  }
  lines.push(element("p", { class: "soft" }, `${choice.certified.length} of ${choice.front.length} policies on the ` +
    "front of the choosing part are certified. The certificate holds for a bound that is fixed before looking here."));
  byId("choice").replaceChildren(...lines);
  drawCharts(choice);
}

// ------------------------------------------------------------------------------------------------------------ charts

const MARKERS = {
  o: "M-5,0A5,5 0 1 0 5,0A5,5 0 1 0 -5,0Z", s: "M-4.5,-4.5H4.5V4.5H-4.5Z", D: "M0,-6L6,0L0,6L-6,0Z",
  "^": "M0,-6L5.5,4.5H-5.5Z", v: "M0,6L5.5,-4.5H-5.5Z", d: "M0,-7L4,0L0,7L-4,0Z",
  P: "M-2,-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z", X: "M-6,-4L-4,-6L0,-2L4,-6L6,-4L2,0L6,4L4,6L0,2L-4,6L-6,4L-2,0Z",
  "*": "M0,-8L2,-2.6L7.6,-2.5L3.2,1L4.7,6.5L0,3.2L-4.7,6.5L-3.2,1L-7.6,-2.5L-2,-2.6Z", "<": "M-6,0L4.5,-5.5V5.5Z",
};
const hidden = new Set();
const picked = [null, null];

function limits(values) {
  const low = Math.min(...values), high = Math.max(...values), pad = 0.07 * (high - low) || 0.05;
  return [low - pad, high + pad];
}

function ticks([low, high]) {
  const rough = (high - low) / 6, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => (first + i) * step);
}

function drawChart(plane, choice) {
  const [xName, yName] = plane.axes;
  const trials = data.trials.filter((t) => t[xName] !== null && t[yName] !== null && t[xName] !== undefined);
  const box = byId(`chart-${plane.id}`);
  box.replaceChildren();
  if (!trials.length) { box.append(element("p", {}, data.empty)); return; }
  const width = Math.max(300, Math.min(640, box.clientWidth || 640)), height = Math.round(120 + 0.625 * width);
  const left = 58, right = 16, top = 14, bottom = 46;
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": plane.title }, box);
  const counted = trials.filter((t) => !t.sentinel);
  const extent = (name) => (counted.length ? counted : trials).flatMap((t) =>
    [t[name], t[`${name}_low`], t[`${name}_high`]].filter((v) => v !== null && v !== undefined));
  const lines = plane.curves.flatMap((curve) => curve.points.filter(([, , marked]) => marked));
  const xs = limits([...extent(xName), ...lines.map((p) => p[0])]);
  const ys = limits([...extent(yName), ...lines.map((p) => p[1])]);
  const clip = (value, [low, high]) => Math.min(Math.max(value, low), high);
  const X = (v) => left + ((clip(v, xs) - xs[0]) / (xs[1] - xs[0])) * (width - left - right);
  const Y = (v) => height - bottom - ((clip(v, ys) - ys[0]) / (ys[1] - ys[0])) * (height - top - bottom);
  const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${X(x).toFixed(1)},${Y(y).toFixed(1)}`).join("");
  for (const [values, axis] of [[ticks(xs), "x"], [ticks(ys), "y"]]) {
    for (const value of values) {
      const at = axis === "x" ? X(value) : Y(value);
      const text = String(Number(value.toPrecision(6)));
      if (axis === "x") {
        shape("path", { d: `M${at},${top}V${height - bottom}`, class: "grid" }, svg);
        shape("text", { x: at, y: height - bottom + 18, class: "tick", "text-anchor": "middle" }, svg).textContent = text;
      } else {
        shape("path", { d: `M${left},${at}H${width - right}`, class: "grid" }, svg);
        shape("text", { x: left - 8, y: at + 4, class: "tick", "text-anchor": "end" }, svg).textContent = text;
      }
    }
  }
  shape("text", { x: (left + width - right) / 2, y: height - 8, class: "axis", "text-anchor": "middle" }, svg)
    .textContent = plane.titles[0];
  shape("text", { transform: `translate(14,${(top + height - bottom) / 2}) rotate(-90)`, class: "axis",
    "text-anchor": "middle" }, svg).textContent = plane.titles[1];
  if (plane.band.length) {
    const inside = plane.band.filter(([x]) => x >= xs[0] && x <= xs[1]);
    const edge = [...inside.map(([x, low]) => [x, low]), ...inside.map(([x, , high]) => [x, high]).reverse()];
    if (edge.length) shape("path", { d: `${path(edge)}Z`, class: "band" }, svg);
  }
  if (plane.id === "rates" && data.choice.length) {
    for (const [name, bound] of currentBounds()) {
      if (name === yName && bound > ys[0] && bound < ys[1]) {
        shape("path", { d: `M${left},${Y(bound)}H${width - right}`, class: "bound" }, svg);
      }
      if (name === xName && bound > xs[0] && bound < xs[1]) {
        shape("path", { d: `M${X(bound)},${top}V${height - bottom}`, class: "bound" }, svg);
      }
    }
  }
  for (const curve of plane.curves) {
    const points = curve.points.filter(([x, y]) => x >= xs[0] && x <= xs[1] && y >= ys[0] && y <= ys[1]);
    const marks = points.filter(([, , name]) => name);
    const cross = (x, y) => `M${x - 5},${y - 5}l10,10m0,-10l-10,10`;
    const d = marks.length ? marks.map(([x, y]) => cross(X(x), Y(y))).join("") : path(points);
    for (const [[x, y], low, high] of curve.bars || []) {
      shape("path", { d: path([[low[0], y], [high[0], y]]) + path([[x, low[1]], [x, high[1]]]), class: "preview-bar" }, svg);
    }
    const line = shape("path", { d, class: curve.look, "stroke-dasharray": curve.dash }, svg);
    shape("title", {}, line).textContent = [curve.name, ...marks.map(([, , name]) => name)].join(" ");
  }
  if (plane.front.length) {
    const stairs = [[xs[0], plane.front[0][1]]];
    plane.front.forEach(([x, y], i) => stairs.push([x, y], [x, i + 1 < plane.front.length ? plane.front[i + 1][1] : ys[0]]));
    shape("path", { d: path(stairs), class: "stairs" }, svg);
  }
  const certified = new Set((choice ? choice.certified : []).map((row) => row.id));
  const taken = [];
  const shown = trials.filter((t) => !hidden.has(t.series));
  for (const series of data.series.filter((s) => !hidden.has(s.name))) {
    for (const run of series.runs) {
      const points = run.map((id) => trialOf.get(id)).filter((t) => shown.includes(t));
      if (points.length > 1) {
        shape("path", { d: path(points.map((t) => [t[xName], t[yName]])), stroke: series.colour, class: "run" }, svg);
      }
    }
  }
  for (const t of shown) {
    const x = X(t[xName]), y = Y(t[yName]);
    for (const [name, from, to] of [[xName, xs, 1], [yName, ys, 0]]) {
      if (t[`${name}_low`] === null || t[`${name}_low`] === undefined || t.sentinel) continue;
      const d = to ? `M${X(t[`${name}_low`])},${y}H${X(t[`${name}_high`])}` : `M${x},${Y(t[`${name}_low`])}V${Y(t[`${name}_high`])}`;
      shape("path", { d, stroke: t.colour, class: "bar" }, svg);
    }
    taken.push([x - 7, y - 7, x + 7, y + 7]);
  }
  for (const t of shown) {
    const x = X(t[xName]), y = Y(t[yName]);
    const group = shape("g", { transform: `translate(${x},${y})`, class: "point", tabindex: 0, role: "button" }, svg);
    const text = hover(t);
    group.setAttribute("aria-label", text.join(", "));
    if (certified.has(t.id)) shape("circle", { r: 11, class: "certified" }, group);
    if (choice && choice.chosen && choice.chosen.id === t.id) shape("circle", { r: 14, class: "chosen-ring" }, group);
    if (picked.includes(t.id)) shape("circle", { r: 9, class: "picked" }, group);
    shape("path", { d: MARKERS[t.marker] || MARKERS.o, fill: t.colour, class: t.on_front ? "mark front" : "mark" }, group);
    const isOutside = t[xName] !== clip(t[xName], xs) || t[yName] !== clip(t[yName], ys);
    const label = isOutside ? `${t.short} (${number(t[xName], 2)}, ${number(t[yName], 2)})` : t.short;
    const place = placed(label, x, y, taken, [left, top, width - right, height - bottom]);
    if (place) {
      const node = shape("text", { x: place[0], y: place[1], class: "label", fill: t.text_colour }, svg);
      node.textContent = label;
    }
    for (const event of ["pointerenter", "focus"]) group.addEventListener(event, () => showTip(text, group));
    for (const event of ["pointerleave", "blur"]) group.addEventListener(event, hideTip);
    group.addEventListener("click", () => pick(t.id));
    group.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pick(t.id, plane.id); }
    });
    group.dataset.trial = t.id;
  }
  drawLines(plane, box);
}

// The names of a chart's lines.
function drawLines(plane, box) {
  const lines = plane.curves.map((curve) => [curve.name, curve.look, curve.dash]);
  if (plane.front.length) lines.push(["front (outlined)", "stairs", ""]);
  box.append(element("div", { class: "lines" }, ...lines.map(([name, look, dash]) => {
    const item = element("span");
    const svg = shape("svg", { viewBox: "0 0 34 10", width: 34, height: 10, "aria-hidden": "true" }, item);
    shape("path", { d: look === "cross" ? "M13,1l8,8m0,-8l-8,8" : "M0,5H34", class: look, "stroke-dasharray": dash }, svg);
    item.append(` ${name}`);
    return item;
  })));
}

// A place beside the point that touches no marker and no other label; null if there is none (the tip still names it).
function placed(text, x, y, taken, [left, top, right, bottom]) {
  const w = 6.1 * text.length + 2, h = 13;
  for (const gap of [9, 14, 22, 32]) {
    for (const [dx, dy] of [[1, -0.5], [1, 0.5], [-1, -0.5], [-1, 0.5], [0, -1], [0, 1], [1, 0], [-1, 0]]) {
      const cx = x + dx * (gap + w / 2), cy = y + dy * (gap + h / 2);
      const box = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2];
      const isFree = taken.every((o) => box[2] <= o[0] || box[0] >= o[2] || box[3] <= o[1] || box[1] >= o[3]);
      if (isFree && box[0] >= left && box[2] <= right && box[1] >= top && box[3] <= bottom) {
        taken.push(box);
        return [box[0] + 1, box[3] - 3];
      }
    }
  }
  return null;
}

function hover(t) {
  const lines = [t.label, t.id];
  for (const name of data.criteria) {
    lines.push(`${name} ${number(t[name])} [${number(t[`${name}_low`])}, ${number(t[`${name}_high`])}], ` +
      `${number(t[`n_${name}`], 0)} verdicts`);
  }
  for (const [column, title] of Object.entries(data.hover)) {
    if (t[column] !== null && t[column] !== undefined) lines.push(`${title} ${number(t[column])}`);
  }
  if (t.constraint) lines.push(`constraint ${t.constraint}`);
  return lines;
}

function showTip(lines, target) {
  const tip = byId("tip");
  tip.replaceChildren(...lines.map((line, i) => element("div", i ? {} : { class: "head" }, line)));
  tip.hidden = false;
  const at = target.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(at.right + 10, innerWidth - tip.offsetWidth - 10)) + scrollX}px`;
  tip.style.top = `${at.bottom + 8 + scrollY}px`;
}
function hideTip() { byId("tip").hidden = true; }

function drawCharts(choice) {
  for (const plane of data.planes) drawChart(plane, choice);
}

function drawLegend() {
  byId("legend").replaceChildren(...data.series.map((series) => {
    const button = element("button", { type: "button", "aria-pressed": String(!hidden.has(series.name)) });
    const svg = shape("svg", { viewBox: "-8 -8 16 16", width: 14, height: 14, "aria-hidden": "true" }, button);
    shape("path", { d: MARKERS[series.marker] || MARKERS.o, fill: series.colour }, svg);
    button.append(` ${series.name}`);
    button.addEventListener("click", () => {
      if (!hidden.delete(series.name)) hidden.add(series.name);
      button.setAttribute("aria-pressed", String(!hidden.has(series.name)));
      redraw();
    });
    return button;
  }));
}

function redraw() {
  if (data.choice.length) showChoice(); else drawCharts(null);
}

// ------------------------------------------------------------------------------------------------------------ answers

function pick(id, focus = null) {
  if (!data.answers[id]) return;
  const at = picked[0] === id || picked[1] === id ? null : id;
  if (at === null) picked[picked.indexOf(id)] = null;
  else if (picked[0] === null) picked[0] = id;
  else picked[1] = id;
  for (const i of [0, 1]) byId(`policy-${i}`).value = picked[i] ?? data.baseline;
  hideTip();
  redraw();
  showAnswers();
  const again = focus && document.querySelector(`#chart-${focus} [data-trial="${CSS.escape(id)}"]`);
  if (again) again.focus();
}

function answerCell(answer) {
  if (!answer) return element("td", { class: "soft" }, "no answer");
  const cell = element("td", { class: "text" }, answer.text);
  if (!answer.finished) cell.append(element("small", { class: "soft" }, " (cut at the token limit)"));
  if (answer.judge_directed) cell.append(element("small", { class: "error" }, " (directed at a judge)"));
  const notes = [];
  if (answer.verdicts.length) notes.push(`verdicts: ${answer.verdicts.join(", ")}`);
  if (answer.score !== null) notes.push(`prompt's mean score ${number(answer.score)}`);
  if (notes.length) cell.append(element("small", { class: "verdicts" }, notes.join("; ")));
  return cell;
}

function showAnswers() {
  if (!byId("policy-0")) return;
  const ids = [0, 1].map((i) => byId(`policy-${i}`).value);
  const criterion = byId("criterion").value, prompts = data.prompts[criterion] || [];
  const sides = ids.map((id) => (data.answers[id] || {})[criterion] || []);
  const difference = (i) => {
    const scores = sides.map((answers) => (answers[i] && answers[i].score !== null ? answers[i].score : 0.5));
    return scores[0] - scores[1];
  };
  const order = prompts.map((_, i) => i).filter((i) => sides.some((answers) => answers[i]));
  order.sort((a, b) => Math.abs(difference(b)) - Math.abs(difference(a)) || a - b);
  const count = Number(byId("shown").value);
  const head = element("tr", {}, element("th", {}, "prompt"), ...ids.map((id) => element("th", {}, trialOf.get(id).label)));
  byId("answers").replaceChildren(head, ...order.slice(0, count).map((i) => {
    const prompt = element("td", { class: "text" }, prompts[i].text);
    const note = `difference ${difference(i).toFixed(3)}` + (prompts[i].category ? `, ${prompts[i].category}` : "");
    prompt.append(element("small", { class: "verdicts" }, note));
    return element("tr", {}, prompt, ...sides.map((answers) => answerCell(answers[i])));
  }));
  byId("answers-note").textContent =
    `${Math.min(count, order.length)} of ${data.prompt_counts[criterion]} prompts for ${criterion}, those with the largest difference first` +
    (prompts.length < data.prompt_counts[criterion] ? `; the page holds the ${prompts.length} on which policies differ most` : "") + ".";
}

// ------------------------------------------------------------------------------------------------------------- tables

const cellValue = (cell) => cell.dataset.value ?? cell.textContent.trim();

function equip(table) {
  const rows = () => [...table.tBodies[0].rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = element("button", { type: "button", class: "sort" }, ...head.childNodes);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const direction = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
      const key = (row) => (row.cells[column] ? cellValue(row.cells[column]) : "");
      const compare = (a, b) => {
        const [x, y] = [Number(a), Number(b)];
        const isEmpty = (v) => v === "" || v === "–";
        if (isEmpty(a) || isEmpty(b)) return isEmpty(a) - isEmpty(b);
        return direction * (Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y);
      };
      table.tBodies[0].append(...rows().sort((a, b) => compare(key(a), key(b))));
    });
  });
  const filter = element("input", { type: "search", placeholder: "filter rows", "aria-label": "filter rows" });
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows()) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
  });
  const save = element("button", { type: "button" }, "download CSV");
  save.addEventListener("click", () => {
    const quote = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const text = [table.tHead.rows[0], ...rows().filter((row) => !row.hidden)]
      .map((row) => [...row.cells].map((cell) => quote(cell.dataset.csv ?? cell.textContent.trim())).join(",")).join("\n");
    const link = element("a", { href: URL.createObjectURL(new Blob([text + "\n"], { type: "text/csv" })),
      download: `${table.dataset.name}.csv` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
  table.closest(".wide").before(element("div", { class: "tools" }, filter, save));
}

document.querySelectorAll("table[data-name]").forEach(equip);
for (const i of data.constraints.keys()) byId(`bound-${i}`)?.addEventListener("input", showChoice);
for (const id of ["policy-0", "policy-1", "criterion", "shown"]) {
  byId(id)?.addEventListener("change", () => {
    picked[0] = byId("policy-0").value;
    picked[1] = byId("policy-1").value;
    showAnswers();
    redraw();
  });
}
addEventListener("beforeprint", () => document.querySelectorAll("details.open-in-print").forEach((d) => { d.open = true; }));
let drawnAt = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== drawnAt) redraw();
  drawnAt = innerWidth;
});
drawLegend();
redraw();
showAnswers();
