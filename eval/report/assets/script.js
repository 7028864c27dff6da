// Filters, sorting, sliders, and which charts there are. Without this file the page is tables and pictures.
const $ = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

for (const [number, chip] of all('.chip[data-family]').entries()) tones.set(chip.dataset.family, number % 8);
for (const node of all("[data-family]")) node.dataset.tone = tone(node.dataset.family);
for (const node of all(".script")) node.hidden = false;

// Which models are shown.
const chosen = (kind) => new Set(all(`input[name=${kind}]:checked`).map((box) => box.value));
function isShown() {
  const families = chosen("family"), data = chosen("data"), word = $("#search").value.trim().toLowerCase();
  return (family, set, name) => families.has(family) && data.has(set) && name.toLowerCase().includes(word);
}
function filter() {
  const shown = isShown();
  for (const node of all("tr[data-name], figure[data-name], details[data-name], li[data-name]"))
    node.hidden = !shown(node.dataset.family, node.dataset.data, node.dataset.name);
  const rows = all("#results tbody tr"), left = rows.filter((row) => !row.hidden).length;
  $("#status").textContent = `${left} of ${rows.length} rows shown`;
  charts();
}
$("#filters").addEventListener("input", filter);
$("#filters").addEventListener("reset", () => setTimeout(filter));
$("#filters").addEventListener("submit", (event) => event.preventDefault());

// The table is sorted by the column of a pressed button; what was not measured comes last.
const key = (row, column) => {
  const cell = row.cells[column];
  return cell.classList.contains("none") ? null : cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
};
for (const head of all("#results th[data-sort]")) {
  const button = document.createElement("button"), label = $("span", head);
  button.type = "button";
  label.replaceWith(button);
  button.append(...label.childNodes);
  button.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending", sign = down ? -1 : 1;
    for (const other of all("#results th[aria-sort]")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = $("#results tbody");
    const keyed = [...body.rows].map((row) => [key(row, head.cellIndex), row]);
    keyed.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null)
      : sign * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", {numeric: true})));
    body.append(...keyed.map(([, row]) => row));
    $("#status").textContent = `sorted by ${button.textContent}, ${down ? "descending" : "ascending"}`;
  });
}

// Sliders: each process has its own; one number of calls is for all sheets.
function show(view, frame) {
  const labels = JSON.parse(view.dataset.labels), figure = view.closest("figure"), img = $("img", view);
  view.hidden = frame < 0;
  if (frame < 0) {
    $(".state", figure).textContent = `needs at least ${labels[0]}`;
    return;
  }
  view.style.setProperty("--shown", frame);
  $(".state", figure).textContent = labels[frame];
  img.dataset.alt ??= img.alt.slice(0, img.alt.length - labels.at(-1).length);
  img.alt = img.dataset.alt + labels[frame];
}
for (const [number, view] of all("#process .view[data-labels]").entries()) {
  const labels = JSON.parse(view.dataset.labels), line = document.createElement("p");
  line.className = "slider";
  const label = document.createElement("label"), input = document.createElement("input");
  label.htmlFor = input.id = `process-${number}`;
  label.textContent = `Noise to image, ${view.dataset.name}`;
  Object.assign(input, {type: "range", min: 0, max: labels.length - 1, value: labels.length - 1});
  const moved = () => { show(view, Number(input.value)); input.setAttribute("aria-valuetext", labels[input.value]); };
  input.addEventListener("input", moved);
  line.append(label, input);
  view.after(line);
  moved();
}
const calls = $("#calls");
if (calls) {
  const limits = calls.dataset.calls.split(" ").map(Number);
  const moved = () => {
    const limit = limits[calls.value];
    $("output[for=calls]").textContent = limit.toLocaleString("en");
    calls.setAttribute("aria-valuetext", `${limit} calls`);
    for (const view of all("#samples .view[data-values]"))
      show(view, view.dataset.values.split(" ").map(Number).findLastIndex((value) => value <= limit));
  };
  calls.addEventListener("input", moved);
  moved();
}

// Charts, a panel for each data set that has something to show.
const together = (...parts) => parts.filter(Boolean).join("; ");
function panels(section, chartOf) {
  const host = $(`${section} .panels`), shown = isShown(), drawings = [];
  host.replaceChildren();
  for (const group of report) {
    const rows = group.rows.filter((row) => shown(row.family, group.data, row.name));
    const chart = chartOf(group, rows);
    if (!chart) continue;
    const panel = document.createElement("div"), title = document.createElement("h3"), place = document.createElement("div");
    panel.className = "panel";
    place.className = "plot";
    title.textContent = group.data;
    panel.append(title, place);
    if (chart.remark) panel.append(Object.assign(document.createElement("p"), {textContent: chart.remark}));
    host.append(panel);
    drawings.push(() => chart.draw(place));
  }
  if (!drawings.length) host.append(Object.assign(document.createElement("p"), {textContent: "There is no measured number for this chart."}));
  for (const draw of drawings) draw();   // when all panels are there and have their width
}
const called = (row) => row.sampling ? `${row.name}, ${row.sampling}` : row.name;
function costChart(group, rows) {
  const metric = group.metrics.find((one) => one.name === $("#cost-y").value), kind = $("#cost-x").value;
  if (!metric) return null;
  const measured = rows.filter((row) => row.values[metric.name] && row.x[kind] !== null && row.x[kind] !== undefined);
  const drawn = measured.filter((row) => !row.values[metric.name].remark);
  if (!drawn.length) return null;
  const left = measured.filter((row) => row.values[metric.name].remark).map((row) => `${row.name} (${row.values[metric.name].remark})`);
  const series = drawn.map((row) => ({...row, points: [{x: row.x[kind], y: row.values[metric.name].value, interval: row.values[metric.name].interval,
    text: together(called(row), row.values[metric.name].text, `${AXES[kind]} ${(FORMATS[kind] ?? short)(row.x[kind])}`)}]}));
  return {remark: left.length ? `Left out, since they were measured in another way: ${[...new Set(left)].join("; ")}.` : "",
    draw: (place) => plot(place, `${metric.name} against ${AXES[kind]}, ${group.data}`, series,
      {xKind: kind, yName: metric.name, floor: metric.floor, better: metric.better, front: true})};
}
function axesChart(group, rows) {
  const ready = (row, metric) => row.values[metric.name] && !row.values[metric.name].remark && row.x.time;
  const pairs = group.metrics.filter((one) => one.axis === "quality").flatMap((quality) => group.metrics.filter((one) => one.axis === "coverage")
    .map((coverage) => ({metrics: [quality, coverage], whole: rows.filter((row) => ready(row, quality) && ready(row, coverage))})));
  // The pair that tells most rows apart.
  const apart = ({metrics, whole}) => Math.min(...metrics.map((metric) => new Set(whole.map((row) => row.values[metric.name].value)).size));
  const [best] = pairs.filter((pair) => pair.whole.length).sort((a, b) => apart(b) - apart(a) || b.metrics[1].name.includes("coverage") - a.metrics[1].name.includes("coverage"));
  if (!best) return null;
  const {metrics, whole} = best;
  const lines = whole.map((row) => ({...row, values: [...metrics.map((metric) => row.values[metric.name].value), row.x.time],
    text: together(called(row), ...metrics.map((metric) => row.values[metric.name].text), `${seconds(row.x.time)} an image`)}));
  const missing = [...new Set(rows.filter((row) => !whole.includes(row)).map((row) => row.name))];
  return {remark: missing.length ? `Left out, since not all three were measured in the same way: ${missing.join(", ")}.` : "",
    draw: (place) => threeAxes(place, `Quality, coverage and speed, ${group.data}`, lines, [{title: "Quality", name: metrics[0].name, better: metrics[0].better},
      {title: "Coverage", name: metrics[1].name, better: metrics[1].better}, {title: "Speed", name: "time per image", better: "lower", kind: "time"}])};
}
function trainingChart(group, rows) {
  const metric = $("#training-y").value, kind = $("#training-x").value;
  const curves = group.curves.filter((curve) => curve.metric === metric && rows.some((row) => row.name === curve.name));
  const series = curves.map((curve) => ({...curve, place: rows.find((row) => row.name === curve.name).place, hollow: !curve.alike,
    points: curve.points.filter((point) => point[kind] !== null).map((point) => ({x: point[kind], y: point.value, interval: point.interval,
      text: together(curve.name, `${metric} ${short(point.value)}`, point.text)}))})).filter((one) => one.points.length);
  if (!series.length) return null;
  const facts = group.metrics.find((one) => one.name === metric);
  return {draw: (place) => plot(place, `${metric} against ${AXES[kind]}, ${group.data}`, series, {xKind: kind, yName: metric, better: facts ? facts.better : "lower"})};
}
function bitsChart(group, rows) {
  const bits = group.metrics.filter((metric) => metric.axis === "bits");
  const found = new Map();
  for (const row of rows) if (!found.has(row.name)) found.set(row.name, {...row, points: bits.filter((metric) => row.values[metric.name]).map((metric) => ({
    ...row.values[metric.name], hollow: metric.name.includes("train"), text: together(row.name, row.values[metric.name].text, row.values[metric.name].remark)}))});
  const lines = [...found.values()].filter((row) => row.points.length);
  return lines.length ? {remark: "Filled: held-out images. Hollow: training images.", draw: (place) => bitsPlot(place, `Bits per dimension, ${group.data}`, lines)} : null;
}
function options(select, names) {
  select.replaceChildren(...names.map((name) => Object.assign(document.createElement("option"), {value: name, textContent: name})));
}
function charts() {
  panels("#cost", costChart);
  panels("#axes", axesChart);
  panels("#training", trainingChart);
  panels("#bits", bitsChart);
}
const usual = (axes) => [...new Set(axes.flatMap((axis) => report.flatMap((group) => group.metrics.filter((metric) => metric.axis === axis).map((metric) => metric.name))))];
options($("#cost-y"), usual(["quality", "coverage", "bits"]));
options($("#training-y"), [...new Set([...usual(["quality", "coverage"]), "bits per dimension"])].filter((name) =>
  report.some((group) => group.curves.some((curve) => curve.metric === name))));
for (const [section, draw] of [["#cost", costChart], ["#training", trainingChart]])
  for (const select of all(`${section} select`)) select.addEventListener("change", () => panels(section, draw));
let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; charts(); } });

// A link to a model opens its part of the page.
function open() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target && target.tagName === "DETAILS") {
    target.open = true;
    target.scrollIntoView();
  }
}
addEventListener("hashchange", open);
document.addEventListener("click", (event) => {
  const link = event.target.closest && event.target.closest('a[href^="#model-"]');
  if (link) setTimeout(open);
});
filter();
open();
