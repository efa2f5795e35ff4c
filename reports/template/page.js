const form = document.querySelector("form");
const rows = [...document.querySelectorAll("#runs tbody tr")];
const LATENCIES = 20;
const element = (id) => document.getElementById(id);
const say = (id, sentences) => (element(id).textContent = sentences.join(" "));

/* Whether a run or a shift is of the group, model, recipe and engine that are chosen. */
function matches(given) {
  const same = (name) => !form[name].value || given[name] === form[name].value;
  return given.group === Number(form.group.value) && ["model", "recipe", "engine"].every(same);
}

/* Charts */
const views = {};
let drawing = Promise.resolve();

/* One after the other, in the order asked for. */
function enqueue(draws) {
  drawing = drawing.then(async () => {
    document.querySelector("main").setAttribute("aria-busy", "true");
    await draws();
    document.querySelector("main").setAttribute("aria-busy", "false");
  });
}

async function draw(id, spec) {
  views[id]?.finalize();
  const size = { width: "container", autosize: { type: "fit-x", contains: "padding" } };
  const theme = document.documentElement.dataset.theme;
  const options = { actions: false, renderer: "svg", config: look(), tooltip: { theme } };
  views[id] = await vegaEmbed(element(id), { ...size, ...spec }, options);
}

async function drawAll() {
  const runs = data.runs.filter(matches);
  await drawFronts(runs.filter((run) => run.score !== null && run.speedup !== null && !run.invalid));
  await drawShifts();
  await drawLatencies(runs.filter((run) => run.quantiles));
}

async function drawFronts(runs) {
  const group = data.groups[form.group.value];
  element("front").parentNode.hidden = group?.timing_only ?? false;
  const engines = [...new Set(runs.map((run) => run.engine))].sort();
  const below = runs.filter((run) => run.score < group.scores[0]).length;
  say("front-note", [
    runs.length ? "" : "No run with a score and a speed-up matches.",
    below ? `Points below this axis: ${below}.` : "",
    group?.invalid ? `INVALID runs left out: ${group.invalid}.` : "",
  ]);
  const charts = engines.map((_, i) => Object.assign(document.createElement("div"), { id: `front-${i}` }));
  element("fronts").replaceChildren(...charts);
  for (const [i, chart] of charts.entries()) await draw(chart.id, front(runs, engines[i], group));
}

/* Offers what matches; at first the chosen early exit, later what was looked at, where it matches still. */
async function drawShifts() {
  const found = data.shifts.filter(matches);
  const select = element("shift");
  const kept = found.find((shift) => shift.name === select.value) ?? found.find((shift) => shift.chosen) ?? found[0];
  select.replaceChildren(...found.map((shift) => new Option(shift.name, shift.name, false, shift === kept)));
  await drawShift();
}

async function drawShift() {
  const shift = data.shifts.find((given) => matches(given) && given.name === element("shift").value);
  const moved = shift?.moved;
  element("counts").hidden = !shift;
  element("matrix").hidden = !moved;
  say("shift-note", shiftLines(shift));
  if (shift) await draw("counts", exitCounts(shift));
  if (moved) await draw("matrix", shiftMatrix(moved.matrix));
}

function shiftLines(shift) {
  if (!shift) return ["No INT8 run with a float32 run of the same policy matches."];
  if (!shift.moved) return ["The predictions of these runs are not there, so there is no exit-shift matrix."];
  const { agreement, drift, outcomes } = shift.moved;
  const way = drift < 0 ? "earlier" : "later";
  const lines = [
    `The exit is the same on ${(100 * agreement).toFixed(1)} % of dev rows;`,
    `INT8 leaves ${Math.abs(drift).toFixed(2)} layers ${way} on average.`,
  ];
  if (!outcomes) return lines;
  const { flips_same_exit, flips_other_exit, rescued, lost } = outcomes;
  return [
    ...lines,
    `${flips_same_exit + flips_other_exit} labels differ, ${flips_same_exit} of them at the same exit;`,
    `INT8 rescues ${rescued} rows and loses ${lost}.`,
  ];
}

async function drawLatencies(timed) {
  const median = (run) => run.quantiles[2];
  const ordered = timed.sort((one, other) => other.answer - one.answer || median(one) - median(other));
  const shown = ordered.slice(0, LATENCIES);
  element("latencies").hidden = !shown.length;
  say("latency-note", shown.length ? [
    `The answers and the fastest: ${shown.length} of ${timed.length} timed runs that match.`,
    "Line: 5 to 95 % of batches; bar: the middle half; tick: the median.",
  ] : ["No timed run matches."]);
  if (shown.length) await draw("latencies", latencies(shown));
}

/* The table of runs; its rows stand in the order of `data.runs` when the page opens. */
function filterRows() {
  for (const row of rows) row.hidden = !matches(data.runs[row.dataset.run]);
  const shown = rows.filter((row) => !row.hidden).length;
  say("runs-note", [`${shown} of ${rows.length} runs. A column's title sorts by it.`]);
}

function sortRows(header) {
  const headers = [...header.parentNode.children];
  const ascending = header.getAttribute("aria-sort") !== "ascending";
  for (const other of headers) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const cell = (row) => row.cells[headers.indexOf(header)].textContent;
  const compare = (one, other) => parseFloat(one) - parseFloat(other) || one.localeCompare(other);
  rows.sort((one, other) => {
    if (!cell(one) || !cell(other)) return !cell(one) - !cell(other); /* empty ones last */
    return ascending ? compare(cell(one), cell(other)) : compare(cell(other), cell(one));
  });
  document.querySelector("#runs tbody").append(...rows);
}

function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  element("theme").setAttribute("aria-pressed", dark);
}

setTheme(matchMedia("(prefers-color-scheme: dark)").matches);
element("theme").addEventListener("click", () => {
  setTheme(document.documentElement.dataset.theme !== "dark");
  enqueue(drawAll);
});
form.addEventListener("change", () => {
  filterRows();
  enqueue(drawAll);
});
element("shift").addEventListener("change", () => enqueue(drawShift));
for (const header of document.querySelectorAll("#runs th")) {
  header.firstChild.addEventListener("click", () => sortRows(header));
}
filterRows();
enqueue(drawAll);
