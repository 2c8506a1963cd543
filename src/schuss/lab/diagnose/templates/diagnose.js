"use strict";
(() => {
  const { data, css, look, faint, layout, logTicks } = schuss;
  const draw = {
    edge() {
      const known = data.measurements.filter((l) => l.sharpness !== null), x = known.map((l) => l.step);
      const values = known.flatMap((l) => [l.sharpness, l.limit]);
      return [[
        { x, y: known.map((l) => l.sharpness), mode: "lines+markers", name: "sharpness", visible: !hidden.has("sharpness"), line: { color: look(0).colour, width: 2 }, marker: { size: 7 }, hovertemplate: "sharpness %{y:.4g} at step %{x}<extra></extra>" },
        { x, y: known.map((l) => l.limit), mode: "lines", name: "stability limit", visible: !hidden.has("stability limit"), line: { color: css("--bad"), width: 2, dash: "dash" }, hovertemplate: "stability limit %{y:.4g}<extra></extra>" },
      ], layout({ title: "step", zeroline: false, rangemode: "tozero" }, { title: "sharpness", ...logTicks(values) })];
    },
    density() {
      const { grid, density, error } = data.density, floor = Math.max(...density) * 1e-6;
      const high = density.map((d, i) => Math.max(d + error[i], floor)), low = density.map((d, i) => Math.max(d - error[i], floor));
      return [[
        { x: [...grid, ...[...grid].reverse()], y: [...high, ...[...low].reverse()], mode: "lines", fill: "toself", fillcolor: faint(look(0).colour, 0.16), line: { width: 0 }, hoverinfo: "skip" },
        { x: grid, y: density.map((d) => Math.max(d, floor)), mode: "lines", line: { color: look(0).colour, width: 2 }, hovertemplate: "%{y:.3g} at %{x:.3g}<extra></extra>" },
      ], layout({ title: "eigenvalue", zeroline: true }, { title: "density", ...logTicks([floor, ...high]) })];
    },
    costs() {
      const batches = data.costs.map((c) => c.batch), times = data.costs.map((c) => c.time);
      const own = data.costs.filter((c) => c.batch === data.batch);
      return [[
        { x: batches, y: times, mode: "lines+markers", line: { color: look(0).colour, width: 2 }, marker: { size: 8 }, hovertemplate: "batch %{x}: %{y:.3g}<extra></extra>" },
        { x: own.map((c) => c.batch), y: own.map((c) => c.time), mode: "markers", hoverinfo: "skip", marker: { symbol: "circle-open", size: 16, color: css("--accent"), line: { width: 2 } } },
      ], layout({ title: "batch size", type: "log", tickvals: batches, ticktext: batches.map(String) }, { title: "seconds × relative steps", ...logTicks(times) })];
    },
    range: () => schuss.rangeTest(data.range, data.lr),
  };
  const box = document.querySelector(".edge .legend");
  const items = [["sharpness", look(0)], ["stability limit", { css: "var(--bad)", dash: "dash" }]];
  const hidden = new Set(), redraw = () => document.querySelector(".figure.edge").figure.draw();
  if (box) schuss.legend(box, items, hidden, redraw);
  for (const node of document.querySelectorAll("[data-figure]")) schuss.figure(node, draw[node.dataset.figure]);
})();
