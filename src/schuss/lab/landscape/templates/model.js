"use strict";
{
  const { data, css, look } = schuss;
  const least = Math.min(...data.heights.flat().filter((z) => z !== null && z > data.lowest).map((z) => z - data.lowest));
  const floor = Math.max(least / 10, 1e-12);
  const up = (z) => (z === null ? null : Math.log10(Math.max(z - data.lowest, floor)));
  const levels = data.heights.map((row) => row.map(up)), modelled = data.modelled.map((row) => row.map(up));
  const sorted = levels.flat().filter((z) => z !== null).sort((a, b) => a - b);
  const [bottom, top] = [sorted[Math.floor(0.01 * sorted.length)], sorted.at(-1)];
  const contours = { start: bottom, end: top, size: (top - bottom) / 16 };
  const mix = (a, b, t) => `rgb(${[1, 3, 5].map((at) => Math.round((1 - t) * parseInt(a.slice(at, at + 2), 16) + t * parseInt(b.slice(at, at + 2), 16))).join(",")})`;
  const stepLook = (i) => ({ ...look(i), dash: i === data.steps.length - 1 ? "dot" : "solid", width: [3, 6, 2.5][i] ?? 2.5 });
  const ink = { css: "var(--ink)", width: 1.4 }, named = data.steps.map((step, i) => [`${step.name} step`, stepLook(i)]), hidden = new Set(), seen = (name) => !hidden.has(name);
  for (const mark of document.querySelectorAll("[data-look]")) mark.innerHTML = schuss.sample(stepLook(Number(mark.dataset.look)));
  const ground = schuss.figure(document.querySelector(".ground"), (plot) => {
    plot.style.height = `${Math.min(plot.clientWidth, 600)}px`;
    const traces = [
      { type: "contour", x: data.xs, y: data.ys, z: levels, autocontour: false, showscale: false, hoverinfo: "skip", zmin: bottom, zmax: top, showlegend: false,
        colorscale: [[0, mix(css("--accent"), css("--paper"), 0.45)], [1, css("--paper")]], line: { color: css("--soft"), width: 0.4 }, contours: { coloring: "fill", ...contours } },
      { type: "contour", name: "model", visible: seen("model"), x: data.xs, y: data.ys, z: modelled, autocontour: false, showscale: false, hoverinfo: "skip",
        colorscale: [[0, css("--ink")], [1, css("--ink")]], line: { width: 1.1, dash: "dot", color: css("--ink") }, contours: { coloring: "none", ...contours } },
      { name: "trust region", visible: seen("trust region"), x: data.circle[0], y: data.circle[1], mode: "lines", hoverinfo: "skip", line: { color: css("--ink"), width: 1.6, dash: "dash" } },
    ];
    data.steps.forEach((step, i) => traces.push({ name: `${step.name} step`, visible: seen(`${step.name} step`), x: [data.at[0], step.end[0]], y: [data.at[1], step.end[1]], mode: "lines+markers",
      line: { color: look(i).colour, width: stepLook(i).width, dash: stepLook(i).dash }, marker: { size: [0, 12 - i], symbol: look(i).symbol, color: look(i).colour, line: { width: 1.2, color: css("--paper") } },
      hovertemplate: `(%{x:.4g}, %{y:.4g})<extra>${step.name}</extra>` }));
    traces.push({ x: [data.at[0]], y: [data.at[1]], mode: "markers", hoverinfo: "skip", marker: { symbol: "circle-open", size: 13, color: css("--ink"), line: { width: 1.6 } } });
    if (data.minima.length) traces.push({ x: data.minima.map((p) => p[0]), y: data.minima.map((p) => p[1]), mode: "markers", hovertemplate: "minimum (%{x:.4g}, %{y:.4g})<extra></extra>",
      marker: { symbol: "cross-thin", size: 11, line: { width: 2, color: css("--ink") } } });
    const ends = (values) => [values[0], values.at(-1)];
    return [traces, schuss.layout({ title: "x", range: ends(data.xs), showgrid: false, zeroline: false, constrain: "domain" },
      { title: "y", range: ends(data.ys), showgrid: false, zeroline: false, scaleanchor: "x", constrain: "domain" })];
  });
  const cut = schuss.figure(document.querySelector(".cut"), () => {
    const traces = data.steps.flatMap((step, i) => [
      { name: `${step.name} step`, visible: seen(`${step.name} step`), x: data.fractions, y: data.actual[i], mode: "lines", line: { color: look(i).colour, width: [2.2, 4.5, 2][i] ?? 2 }, hovertemplate: `%{y:.4g} at %{x:.2f} of it<extra>${step.name}</extra>` },
      { visible: seen(`${step.name} step`), x: data.fractions, y: data.predicted[i], mode: "lines", line: { color: look(i).colour, width: 1.6, dash: "dot" }, hovertemplate: `model %{y:.4g} at %{x:.2f} of it<extra>${step.name}</extra>` },
    ]);
    return [traces, schuss.layout({ title: "fraction of the step", zeroline: false }, { title: "value of the surface" })];
  });
  const redraw = () => { for (const known of [ground, cut]) if (known.drawn) known.draw(); };
  schuss.legend(document.querySelector(".legend"), [["model", { ...ink, dash: "dot" }], ["trust region", { ...ink, dash: "dash" }], ...named], hidden, redraw);
}
