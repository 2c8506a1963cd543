"use strict";
for (const section of document.querySelectorAll("[data-scene]")) {
  const scene = schuss.data[Number(section.dataset.scene)], { css, look } = schuss;
  const least = Math.min(...scene.heights.flat().filter((z) => z !== null && z > scene.lowest).map((z) => z - scene.lowest));
  const floor = Math.max(least / 10, 1e-12);
  const up = (z) => (z === null ? null : Math.log10(Math.max(z - scene.lowest, floor)));
  const levels = scene.heights.map((row) => row.map(up));
  const sorted = levels.flat().filter((z) => z !== null).sort((a, b) => a - b);
  const [bottom, top] = [sorted[Math.floor(0.01 * sorted.length)], sorted.at(-1)]; // a pole at a minimum would stretch the scale
  const longest = scene.trails.reduce((a, b) => (b.at.length > a.at.length ? b : a)), last = longest.at.length - 1;
  const stride = Math.max(1, Math.ceil(last / 120)), stops = [];
  for (let k = 0; k < last; k += stride) stops.push(k);
  stops.push(last);
  const slider = section.querySelector("input"), output = section.querySelector("output"), button = section.querySelector(".player button");
  slider.max = stops.length - 1;
  slider.value = stops.length - 1;
  let step = last, timer = null;

  const upTo = (trail, k) => trail.places.slice(0, k + 1);
  const lineOf = (trail, k) => ({ x: upTo(trail, k).map((p) => p[0]), y: upTo(trail, k).map((p) => p[1]) });
  const headOf = (trail, k) => { const p = trail.places[Math.min(k, trail.places.length - 1)]; return { x: [p[0]], y: [p[1]] }; };
  const heightOf = (trail, k) => trail.values.slice(0, k + 1).map(up);
  const colours = () => [[0, css("--accent")], [1, css("--paper")]].map(([at, c], i) => [at, i ? c : mix(c, css("--paper"), 0.45)]);
  const mix = (a, b, t) => `rgb(${[1, 3, 5].map((at) => Math.round((1 - t) * parseInt(a.slice(at, at + 2), 16) + t * parseInt(b.slice(at, at + 2), 16))).join(",")})`;

  const moving = (k) => scene.trails.flatMap((trail) => [lineOf(trail, k), headOf(trail, k)]);
  const ground = schuss.figure(section.querySelector(".ground"), (plot) => {
    const traces = [{ type: "contour", x: scene.xs, y: scene.ys, z: levels, autocontour: false, showscale: false, hoverinfo: "skip", zmin: bottom, zmax: top,
      colorscale: colours(), line: { color: css("--soft"), width: 0.4 }, contours: { coloring: "fill", start: bottom, end: top, size: (top - bottom) / 18 } }];
    if (scene.minima.length) traces.push({ x: scene.minima.map((p) => p[0]), y: scene.minima.map((p) => p[1]), mode: "markers", hovertemplate: "minimum (%{x:.4g}, %{y:.4g})<extra></extra>",
      marker: { symbol: "cross-thin", size: 11, line: { width: 2, color: css("--ink") } } });
    const starts = [...new Map(scene.trails.map((trail) => [String(trail.places[0]), trail.places[0]])).values()];
    traces.push({ x: starts.map((p) => p[0]), y: starts.map((p) => p[1]), mode: "markers", hoverinfo: "skip", marker: { symbol: "circle-open", size: 12, color: css("--ink"), line: { width: 1.5 } } });
    const first = traces.length;
    scene.trails.forEach((trail, i) => {
      const { colour, symbol, dash } = look(i);
      traces.push({ name: trail.name, ...lineOf(trail, step), mode: "lines+markers", line: { color: colour, width: 2, dash: i < 8 ? "solid" : dash },
        marker: { size: trail.places.length > 120 ? 2.5 : 4, color: colour }, hovertemplate: `(%{x:.4g}, %{y:.4g})<extra>${trail.name}</extra>` });
      traces.push({ ...headOf(trail, step), mode: "markers", hoverinfo: "skip", marker: { symbol, size: 11, color: colour, line: { width: 1.5, color: css("--paper") } } });
    });
    plot.moving = scene.trails.flatMap((_, i) => [first + 2 * i, first + 2 * i + 1]);
    plot.framed = false;
    const range = (values) => [values[0], values.at(-1)];
    return [traces, schuss.layout({ title: scene.axes[0], range: range(scene.xs), showgrid: false, zeroline: false }, { title: scene.axes[1], range: range(scene.ys), showgrid: false, zeroline: false },
      { showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { color: css("--ink") } } })];
  });
  // The legend shows paths; heads, starts and minima have no name of their own.
  const quiet = ground.draw;
  ground.draw = () => quiet().then((plot) => {
    const named = ground.plot.data.map((trace) => trace.name !== undefined);
    const silent = named.map((is, i) => (is ? -1 : i)).filter((i) => i >= 0);
    return Plotly.restyle(ground.plot, { showlegend: false }, silent);
  });
  const height = schuss.figure(section.querySelector(".height"), () => {
    const values = scene.trails.flatMap((trail) => trail.values.map((z) => z - scene.lowest)).filter((z) => z > 0);
    const traces = scene.trails.map((trail, i) => ({ name: trail.name, x: trail.at, y: trail.values.map((z) => Math.max(z - scene.lowest, floor * 1e-4)), mode: "lines",
      line: { color: look(i).colour, dash: look(i).dash, width: 2 }, hovertemplate: `%{y:.3g} at step %{x}<extra>${trail.name}</extra>` }));
    return [traces, schuss.layout({ title: "step", zeroline: false }, { title: scene.unit, ...schuss.logTicks(values.map((z) => Math.max(z, floor * 1e-4))) }, { shapes: [cursor()] })];
  });
  const watchedNode = section.querySelector(".watched");
  const watched = watchedNode && schuss.figure(watchedNode, () => {
    const traces = scene.trails.map((trail, i) => ({ name: trail.name, x: trail.seen.map((_, k) => k + 1), y: trail.seen, mode: "lines", line: { color: look(i).colour, dash: look(i).dash, width: 2 },
      hovertemplate: `%{y:.3g} at step %{x}<extra>${trail.name}</extra>` }));
    return [traces, schuss.layout({ title: "step", zeroline: false }, { title: scene.watched, rangemode: "tozero" }, { shapes: [cursor()] })];
  });
  const cursor = () => ({ type: "line", x0: longest.at[step], x1: longest.at[step], yref: "paper", y0: 0, y1: 1, line: { color: css("--soft"), width: 1, dash: "dot" } });
  const lift = 0.015 * (top - bottom), shown3 = (z) => (z === null ? null : Math.max(z, bottom));
  const deep = schuss.figure(section.querySelector(".deep"), () => {
    const axis = (title) => ({ title: { text: title }, gridcolor: css("--grid"), color: css("--soft"), showbackground: false, zeroline: false });
    const window_ = ([x, y]) => x >= scene.xs[0] && x <= scene.xs.at(-1) && y >= scene.ys[0] && y <= scene.ys.at(-1);
    const traces = [{ type: "surface", x: scene.xs, y: scene.ys, z: levels.map((row) => row.map(shown3)), colorscale: colours(), showscale: false, opacity: 0.92, hoverinfo: "skip",
      contours: { z: { show: true, usecolormap: false, color: css("--line"), width: 1 } }, lighting: { ambient: 0.85, diffuse: 0.35, specular: 0.05 } }];
    scene.trails.forEach((trail, i) => {
      const shown = trail.places.map((p, k) => (k <= step && window_(p) ? k : -1)).filter((k) => k >= 0);
      traces.push({ type: "scatter3d", name: trail.name, mode: "lines", x: shown.map((k) => trail.places[k][0]), y: shown.map((k) => trail.places[k][1]), z: shown.map((k) => shown3(up(trail.values[k])) + lift),
        line: { color: look(i).colour, width: 6 }, hoverinfo: "name" });
    });
    return [traces, { ...schuss.layout({}, {}), margin: { l: 0, r: 0, t: 0, b: 0 },
      scene: { xaxis: axis(scene.axes[0]), yaxis: axis(scene.axes[1]), zaxis: axis(`log₁₀ ${scene.unit}`), aspectratio: { x: 1, y: 1, z: 0.6 }, camera: { eye: { x: -1.05, y: -1.15, z: 0.8 }, center: { x: 0, y: 0, z: -0.12 } } }, uirevision: "kept" }];
  });

  // One frame for each stop of the slider, made when they are first wanted.
  const frames = async () => {
    if (ground.plot.framed) return;
    ground.plot.framed = true;
    await Plotly.addFrames(ground.plot, stops.map((k) => ({ name: String(k), data: moving(k), traces: ground.plot.moving })));
  };
  const go = async (at) => {
    step = stops[at];
    output.textContent = `step ${longest.at[step]} of ${longest.at[last]}`;
    if (ground.drawn) {
      await frames();
      await Plotly.animate(ground.plot, [String(step)], { mode: "immediate", frame: { duration: 0, redraw: false }, transition: { duration: 0 } }).catch(() => {}); // a newer stop has taken over
    }
    for (const known of [height, watched]) if (known?.drawn) Plotly.relayout(known.plot, { shapes: [cursor()] });
  };
  const stop = () => { clearInterval(timer); timer = null; button.textContent = "▶"; if (deep.drawn) deep.draw(); };
  slider.addEventListener("input", () => { if (timer) stop(); go(Number(slider.value)); });
  slider.addEventListener("change", () => { if (deep.drawn) deep.draw(); });
  button.addEventListener("click", () => {
    if (timer) return stop();
    if (Number(slider.value) === stops.length - 1) slider.value = 0;
    button.textContent = "❚❚";
    timer = setInterval(() => {
      const next = Number(slider.value) + 1;
      if (next >= stops.length) return stop();
      slider.value = next;
      go(next);
    }, 60);
  });
  go(stops.length - 1);
}
