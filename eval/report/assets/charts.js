// Charts as SVG, drawn for the width that they have; every mark is a link with a text for screen readers.
const report = JSON.parse(document.getElementById("numbers").textContent);
const tones = new Map();
const SHAPES = ["circle", "square", "up", "diamond", "down", "cross", "circle", "square"];
const WIDE = 10;   // an axis is logarithmic where the largest value is more than this many times the smallest
const HEIGHT = 300;

const make = (name, attributes = {}, ...children) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
};
const text = (x, y, words, attributes = {}) => make("text", {x, y, "aria-hidden": "true", ...attributes}, words);
const tone = (family) => tones.get(family) ?? 7;

const short = (value) => {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return String(+value.toPrecision(3));
};
const seconds = (value) => value < 1 ? `${short(1000 * value)} ms` : value < 60 ? `${short(value)} s`
  : value < 3600 ? `${short(value / 60)} min` : `${short(value / 3600)} h`;
const FORMATS = {time: seconds, training: seconds, seconds};

// A scale from values to pixels, with its ticks. better: "lower" turns an axis over, so that up is better.
function scaleOf(values, from, to) {
  const positive = values.filter((value) => value > 0);
  let low = Math.min(...values), high = Math.max(...values);
  const log = positive.length > 0 && low >= 0 && high > WIDE * Math.min(...positive.filter((v) => v > 0))
    && positive.length >= values.length / 2;
  if (log) low = Math.min(...positive);
  const fit = log ? Math.log10 : (value) => value;
  let [a, b] = [fit(low), fit(high)];
  const room = (b - a || Math.abs(b) || 1) * 0.06;
  [a, b] = [!log && low >= 0 && a - room < 0 ? Math.min(a, 0) : a - room, b + room];
  const place = (value) => from + (to - from) * ((value > 0 || !log ? fit(value) : a) - a) / (b - a);
  const ends = log ? [10 ** a, 10 ** b] : [a, b];
  return {place: (value) => Math.max(Math.min(from, to), Math.min(Math.max(from, to), place(value))),
    ticks: log ? decades(...ends) : steps(...ends)};
}
function steps(low, high) {
  const raw = (high - low) / 6, base = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * base).find((candidate) => candidate >= raw);
  const ticks = [];
  for (let k = Math.ceil(low / step); k * step <= high * (1 + 1e-9); k++) ticks.push(k * step);
  return ticks;
}
function decades(low, high) {
  const ticks = [], wide = Math.log10(high / low) > 2.5;
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    for (const factor of wide ? [1] : [1, 2, 5])
      if (factor * 10 ** power >= low && factor * 10 ** power <= high) ticks.push(+(factor * 10 ** power).toPrecision(1));
  return ticks;
}

function mark(x, y, number) {
  const shape = SHAPES[number], r = 6;
  if (shape === "circle") return make("circle", {class: "mark", cx: x, cy: y, r});
  const around = {
    square: [[-1, -1], [1, -1], [1, 1], [-1, 1]], up: [[0, -1.2], [1.2, 1], [-1.2, 1]],
    down: [[0, 1.2], [1.2, -1], [-1.2, -1]], diamond: [[0, -1.35], [1.35, 0], [0, 1.35], [-1.35, 0]],
    cross: [[-.4, -1.1], [.4, -1.1], [.4, -.4], [1.1, -.4], [1.1, .4], [.4, .4], [.4, 1.1], [-.4, 1.1], [-.4, .4], [-1.1, .4], [-1.1, -.4], [-.4, -.4]],
  }[shape];
  return make("polygon", {class: "mark", points: around.map(([a, b]) => `${x + a * r * .95},${y + b * r * .95}`).join(" ")});
}

function link(item, words, ...children) {
  const node = make("a", {href: `#${item.place}`, "aria-label": words, "data-tone": tone(item.family)}, ...children);
  if (item.hollow) node.classList.add("hollow");
  const tip = document.getElementById("tip");
  const show = () => {
    tip.textContent = words.replaceAll("; ", "\n");
    tip.hidden = false;
    const box = (node.querySelector(".mark") ?? node).getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${box.top - tip.offsetHeight - 8 > 0 ? box.top - tip.offsetHeight - 8 : Math.min(box.bottom + 8, innerHeight - tip.offsetHeight - 8)}px`;
  };
  const hide = () => { tip.hidden = true; };
  for (const event of ["mouseenter", "focus"]) node.addEventListener(event, show);
  for (const event of ["mouseleave", "blur"]) node.addEventListener(event, hide);
  node.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  return node;
}

function canvas(host, label, height) {
  const width = Math.max(host.clientWidth, 240);
  const svg = make("svg", {width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": label});
  host.replaceChildren(svg);
  return [svg, width];
}

// series: [{name, family, place, hollow, points: [{x, y, interval, text}]}], drawn with axes, front and floor.
function plot(host, label, series, {xKind, yName, floor = null, better = null, front = false}) {
  const [svg, width] = canvas(host, label, HEIGHT);
  const box = {left: 52, right: width - 14, top: 22, bottom: HEIGHT - 42};
  const points = series.flatMap((one) => one.points);
  const x = scaleOf(points.map((point) => point.x), box.left + 6, box.right - 6);
  const heights = points.flatMap((point) => [point.y, ...(point.interval ?? [])]);
  const y = scaleOf(floor === null ? heights : [...heights, floor], box.bottom, box.top);
  const format = FORMATS[xKind] ?? short;
  for (const tick of y.ticks) svg.append(make("line", {class: "grid", x1: box.left, x2: box.right, y1: y.place(tick), y2: y.place(tick)}),
    text(box.left - 6, y.place(tick) + 4, short(tick), {"text-anchor": "end"}));
  let lastEnd = -Infinity;
  for (const tick of x.ticks) {
    const words = format(tick), half = words.length * 3.4;
    if (x.place(tick) - half < lastEnd + 6 || x.place(tick) + half > width) continue;
    lastEnd = x.place(tick) + half;
    svg.append(text(x.place(tick), box.bottom + 18, words, {"text-anchor": "middle"}));
  }
  svg.append(make("line", {class: "grid", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom}));
  const direction = better ? ` (${better} is better)` : "";
  svg.append(text(4, 12, yName + direction, {class: "title"}), text(box.right, HEIGHT - 6, AXES[xKind], {"text-anchor": "end", class: "title"}));
  if (floor !== null) svg.append(make("line", {class: "floor", x1: box.left, x2: box.right, y1: y.place(floor), y2: y.place(floor)}),
    text(box.right, y.place(floor) - 4, "floor", {"text-anchor": "end"}));
  if (front) svg.append(frontLine(series, better, x, y));
  for (const one of series) {
    if (one.points.length > 1) svg.append(make("polyline", {class: "path", "data-tone": tone(one.family),
      points: one.points.map((point) => `${x.place(point.x)},${y.place(point.y)}`).join(" ")}));
    const every = Math.ceil(one.points.length / 12);   // marks; the line has all points
    one.points.forEach((point, k) => {
      if (k % every && k !== one.points.length - 1) return;
      const [px, py] = [x.place(point.x), y.place(point.y)];
      const bars = point.interval ? [make("line", {class: "bar", x1: px, x2: px, y1: y.place(point.interval[0]), y2: y.place(point.interval[1])})] : [];
      svg.append(link(one, point.text, ...bars, mark(px, py, tone(one.family))));
    });
  }
  names(svg, series.map((one) => ({name: one.name, x: x.place(one.points.at(-1).x), y: y.place(one.points.at(-1).y)})), width, box);
}
const AXES = {calls: "calls of the network", time: "time per image", training: "time of training", seconds: "time of training",
  images: "images of training", parameters: "parameters"};

// The models that no other is better than at the same or a lower cost.
function frontOf(points, better) {
  const sign = better === "higher" ? -1 : 1;
  const sorted = [...points].sort((a, b) => a.x - b.x || sign * (a.y - b.y));
  let best = Infinity;
  return sorted.filter((point) => sign * point.y < best && ((best = sign * point.y), true));
}
function frontLine(series, better, x, y) {
  const front = frontOf(series.flatMap((one) => one.points), better);
  const corners = front.flatMap((point, k) => [...(k ? [[point.x, front[k - 1].y]] : []), [point.x, point.y]]);
  return make("polyline", {class: "front", points: corners.map(([a, b]) => `${x.place(a)},${y.place(b)}`).join(" ")});
}

// Names beside marks, each where it hides no other name and no mark; without room, none.
function names(svg, labels, width, box) {
  const taken = labels.map(({x, y}) => [x - 7, y - 7, x + 7, y + 7]);
  const done = new Set();
  for (const {name, x, y} of labels) {
    if (done.has(name)) continue;
    const long = name.length * 6.2, places = [[x + 10, y + 4], [x - 10 - long, y + 4], [x - long / 2, y - 11], [x - long / 2, y + 20]];
    const free = places.map(([a, b]) => [a, b - 10, a + long, b + 2]).find((r) => r[0] >= 2 && r[2] <= width && r[1] >= box.top - 4 && r[3] <= box.bottom
      && taken.every((other) => r[2] < other[0] || r[0] > other[2] || r[3] < other[1] || r[1] > other[3]));
    if (!free) continue;
    done.add(name);
    taken.push(free);
    svg.append(text(free[0], free[3] - 2, name, {class: "name"}));
  }
}

// Three axes side by side, up is better, a line for each row: [{name, family, place, values: [q, c, s], text}].
function threeAxes(host, label, rows, axes) {
  const [svg, width] = canvas(host, label, HEIGHT);
  const side = Math.min(150, width * .34), [top, bottom] = [42, HEIGHT - 16];
  const places = [0, 1, 2].map((k) => 44 + k * (width - 44 - side) / 2);
  const scales = axes.map(({better}, k) => scaleOf(rows.map((row) => row.values[k]), ...(better === "lower" ? [top, bottom] : [bottom, top])));
  const narrow = width < 420;
  axes.forEach(({title, name: whole, kind}, k) => {
    const name = narrow ? whole.split("_")[0] : whole;
    const anchor = k === 0 ? {x: 4, "text-anchor": "start"} : {x: places[k], "text-anchor": "middle"};
    svg.append(make("line", {class: "grid", x1: places[k], x2: places[k], y1: top, y2: bottom}),
      text(anchor.x, 12, title, {class: "title", "text-anchor": anchor["text-anchor"]}), text(anchor.x, 28, name, {"text-anchor": anchor["text-anchor"]}));
    for (const tick of scales[k].ticks) svg.append(text(places[k] - 5, scales[k].place(tick) + 4, (FORMATS[kind] ?? short)(tick), {"text-anchor": "end"}));
  });
  const ends = [];
  for (const row of rows) {
    const points = row.values.map((value, k) => [places[k], scales[k].place(value)]);
    const line = points.map((point) => point.join(",")).join(" ");
    svg.append(link(row, row.text, make("polyline", {class: "hit", points: line}), make("polyline", {class: "path", points: line}),
      ...points.map(([a, b]) => mark(a, b, tone(row.family)))));
    ends.push({name: row.name, y: points[2][1]});
  }
  ends.sort((a, b) => a.y - b.y);
  let last = -Infinity;
  const seen = new Set(), room = Math.floor((side - 12) / 6.2);
  for (const end of ends) {
    if (seen.has(end.name) || end.y - last < -30) continue;
    seen.add(end.name);
    last = Math.max(end.y, last + 13);
    svg.append(text(places[2] + 12, last + 4, end.name.length > room ? `${end.name.slice(0, room - 1)}\u2026` : end.name, {class: "name"}));
  }
}

// Bits per dimension of all models on one axis: [{name, family, place, points: [{value, interval, text, hollow}]}].
function bitsPlot(host, label, rows) {
  const height = 44 + 30 * rows.length;
  const [svg, width] = canvas(host, label, height);
  const left = Math.min(170, width * .42), room = Math.floor((left - 10) / 6.2);
  const x = scaleOf(rows.flatMap((row) => row.points.flatMap((point) => [point.value, ...(point.interval ?? [])])), left + 8, width - 14);
  for (const tick of x.ticks) svg.append(make("line", {class: "grid", x1: x.place(tick), x2: x.place(tick), y1: 4, y2: height - 36}),
    text(x.place(tick), height - 22, short(tick), {"text-anchor": "middle"}));
  svg.append(text(width - 14, height - 4, "bits per dimension (lower is better)", {"text-anchor": "end", class: "title"}));
  rows.forEach((row, k) => {
    const y = 18 + 30 * k;
    svg.append(text(2, y + 4, row.name.length > room ? `${row.name.slice(0, room - 1)}\u2026` : row.name, {class: "name"}));
    for (const point of row.points) {
      const bars = point.interval ? [make("line", {class: "bar", x1: x.place(point.interval[0]), x2: x.place(point.interval[1]), y1: y, y2: y})] : [];
      svg.append(link({...row, hollow: point.hollow}, point.text, ...bars, mark(x.place(point.value), y, tone(row.family))));
    }
  });
}
