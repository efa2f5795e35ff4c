"use strict";
/* Each function makes one Vega-Lite specification from the runs it is given. Colours and marks come with the data. */
const data = JSON.parse(document.getElementById("data").textContent);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const isNarrow = () => matchMedia("(max-width: 40rem)").matches;
const scaleOf = (map) => ({ domain: Object.keys(map), range: Object.values(map) });
const number = (field, title, format) => ({ field, title, format, type: "quantitative" });
const sum = (counts) => counts.reduce((total, count) => total + count, 0);
const CROSS = "M-.7,-1L0,-.3L.7,-1L1,-.7L.3,0L1,.7L.7,1L0,.3L-.7,1L-1,.7L-.3,0L-1,-.7Z";
const OUTCOME = [
  { field: "name", title: "run" },
  number("score", "dev %", ".2f"),
  { field: "change", title: "from float32, points" },
  number("speedup", "speed-up", ".2f"),
  number("mean_exit_layer", "mean layer", ".2f"),
  number("ms", "ms / example", ".3f"),
];
const colour = { field: "model", type: "nominal", scale: scaleOf(data.colours), title: "model" };

/* Score against speed-up on one engine. The axes and the front are those of the whole group. */
function front(runs, engine, group) {
  const drawn = runs.filter((run) => run.engine === engine && run.score >= group.scores[0]);
  const of = (...roles) => (run) => roles.includes(run.role);
  const layer = (some, mark, encoding) => ({ data: { values: drawn.filter(some) }, mark, encoding });
  const recipe = { field: "recipe", type: "nominal", title: "recipe" };
  const legend = { symbolFillColor: css("--faint"), symbolStrokeWidth: 0 };
  const shape = { ...recipe, scale: scaleOf(data.shapes), legend };
  const dash = { ...recipe, scale: scaleOf(data.dashes) };
  const point = { type: "point", filled: true, opacity: 1, size: 75, stroke: css("--page"), strokeWidth: 0.6 };
  const outlined = { ...point, size: 130, stroke: css("--ink"), strokeWidth: 1.6 };
  const hollow = { ...point, filled: false, fill: css("--page"), strokeWidth: 1.6 };
  const ring = { type: "point", size: 420, stroke: css("--ink"), strokeWidth: 1.3, fill: null, aria: false };
  const steps = { type: "line", interpolate: "step-before", strokeWidth: 5, opacity: 0.25, color: css("--ink") };
  const order = { field: "mean_exit_layer" };
  const ladder = { stroke: colour, strokeDash: dash, detail: { field: "ladder" }, order };
  const name = { type: "text", dy: { expr: "datum.role === 'truncated' ? -18 : 20" }, aria: false };
  const twice = [{ stroke: css("--page"), strokeWidth: 4 }, { fill: css("--ink") }]; /* legible across lines */
  return {
    title: `engine ${engine}`,
    description: `Dev score against speed-up of ${drawn.length} runs on ${engine}; the table holds the figures.`,
    height: 255,
    encoding: {
      x: {
        ...number("speedup", group.x_title),
        scale: { type: group.log ? "log" : "linear", domain: group.speeds, nice: false },
        axis: { labelExpr: "format(datum.value, '~g') + 'x'", labelOverlap: true, tickCount: 6 },
      },
      y: { ...number("score", group.metric), scale: { domain: group.scores, nice: false } },
    },
    layer: [
      { data: { values: group.front }, mark: { ...steps, clip: true, aria: false } },
      {
        data: { values: group.reference === null ? [] : [{ score: 100 * group.reference }] },
        mark: { type: "rule", strokeDash: [1, 3], color: css("--ink"), aria: false },
        encoding: { x: null },
      },
      layer((run) => run.ladder, { type: "line", strokeWidth: 1.2, opacity: 0.8, aria: false }, ladder),
      layer(of("truncated"), { ...point, shape: CROSS }, { fill: colour, tooltip: OUTCOME }),
      layer(of("exits never fire"), hollow, { stroke: colour, shape, tooltip: OUTCOME }),
      layer(of("no exits"), outlined, { fill: colour, shape, tooltip: OUTCOME }),
      layer(of("early exit", "fixed exit", "timing only"), point, { fill: colour, shape, tooltip: OUTCOME }),
      layer((run) => run.chosen, ring, {}),
      ...twice.map((style) => layer((run) => run.chosen, { ...name, ...style }, { text: { field: "configuration" } })),
    ].filter((given) => given.data.values.length),
  };
}

/* Where rows leave in float32 and in INT8. */
function exitCounts(shift) {
  const recipes = { float32: "float32", int8: shift.recipe };
  const values = Object.entries(recipes).flatMap(([side, recipe]) =>
    shift.counts[side].map((count, i) => ({
      layer: i + 1, recipe, count, share: (100 * count) / sum(shift.counts[side]),
    })));
  return {
    title: "Rows by exit layer",
    description: "Share of dev rows that leave at each layer, float32 beside INT8.",
    height: 260,
    data: { values },
    mark: "bar",
    encoding: {
      x: { field: "layer", type: "ordinal", title: "exit layer", axis: { labelAngle: 0 } },
      xOffset: { field: "recipe", sort: Object.values(recipes) },
      y: number("share", "dev rows, %"),
      color: { field: "recipe", scale: { domain: Object.values(recipes), range: data.sides } },
      tooltip: [{ field: "recipe" }, { field: "layer" }, { field: "count" }, number("share", "%", ".1f")],
    },
  };
}

/* matrix[i][j]: rows that left at layer i + 1 in float32 and at j + 1 in INT8. */
function shiftMatrix(matrix) {
  const values = matrix.flatMap((counts, i) =>
    counts.map((count, j) => ({ from: i + 1, to: j + 1, count, share: count / sum(counts) })));
  const axis = (field, title) => ({
    field, title, type: "ordinal", scale: { domain: matrix.map((_, i) => i + 1) }, axis: { labelAngle: 0 },
  });
  const legend = { title: "share of the float32 layer", format: ".0%", values: [0, 0.5, 1] };
  const tooltip = [
    { field: "from", title: "float32 layer" },
    { field: "to", title: "INT8 layer" },
    { field: "count", title: "rows" },
    number("share", "of the float32 layer", ".1%"),
  ];
  return {
    title: "Exit-shift matrix: number of rows",
    description: "Rows by exit layer in float32 and in INT8; those off the diagonal moved.",
    height: 260,
    data: { values: values.filter((cell) => cell.count) },
    encoding: { x: axis("to", "exit layer in INT8"), y: axis("from", "exit layer in float32") },
    layer: [
      {
        mark: { type: "rect", stroke: css("--line") },
        encoding: { color: { ...number("share"), scale: { scheme: "cividis", domain: [0, 1] }, legend }, tooltip },
      },
      {
        mark: { type: "text", aria: false },
        encoding: {
          text: { field: "count" },
          color: { condition: { test: "datum.share < 0.5", value: "white" }, value: "black" },
          tooltip,
        },
      },
    ],
  };
}

/* Quantiles of the seconds of a batch, each below the name of its run. */
function latencies(runs) {
  const percents = ["p5", "p25", "p50", "p75", "p95"];
  const values = runs.map((run) => ({ ...run, ...Object.fromEntries(percents.map((p, i) => [p, run.quantiles[i]])) }));
  const tooltip = [OUTCOME[0], ...percents.map((p) => number(p, `${p} ms`, ".3f"))];
  const span = (mark, low, high) => ({
    mark: { yOffset: 6, ...mark },
    encoding: { x: { ...number(low, "ms a batch"), axis: { tickCount: 8 } }, x2: { field: high }, color: colour, tooltip },
  });
  return {
    description: `Latency quantiles of ${values.length} runs; the table of runs holds p50 and p95.`,
    height: 32 * values.length,
    data: { values },
    encoding: { y: { field: "name", type: "nominal", sort: { field: "p50" }, axis: null } },
    layer: [
      span({ type: "rule" }, "p5", "p95"),
      span({ type: "bar", height: 9 }, "p25", "p75"),
      {
        mark: { type: "tick", thickness: 2, color: css("--ink"), yOffset: 6, aria: false },
        encoding: { x: number("p50"), size: { value: 13 } },
      },
      {
        mark: { type: "text", align: "left", dy: -7, fontSize: isNarrow() ? 8.5 : 11, aria: false },
        encoding: { x: { value: 0 }, text: { field: "name" } },
      },
    ],
  };
}

/* The look all charts share, in the colours of the page. */
function look() {
  const [ink, faint, line] = ["--ink", "--faint", "--line"].map(css);
  const axis = { labelColor: faint, titleColor: ink, gridColor: line, domainColor: line, tickColor: line };
  const narrow = isNarrow(); /* one legend below the other */
  const layout = { bottom: { anchor: "start", margin: 16, direction: narrow ? "vertical" : "horizontal" } };
  const legends = { orient: "bottom", columns: narrow ? 1 : 3, layout };
  return {
    background: null,
    font: "system-ui, sans-serif",
    view: { stroke: null },
    text: { fill: ink },
    title: { color: ink, fontSize: 13 },
    axis: { ...axis, titleFontWeight: "normal" },
    legend: { ...legends, labelColor: faint, titleColor: ink, labelLimit: 300 },
  };
}
