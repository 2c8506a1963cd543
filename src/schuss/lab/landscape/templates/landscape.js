"use strict";
for (const section of document.querySelectorAll("[data-scene]")) {
  const scene = schuss.data[Number(section.dataset.scene)], { css, look } = schuss, hidden = new Set();
  const marked = scene.trails.map((trail, i) => ({ ...look(i), dash: i < 9 ? "solid" : look(i).dash })), seenNow = (trail) => !hidden.has(trail.name);
  for (const mark of section.querySelectorAll("[data-look]")) mark.innerHTML = schuss.sample(look(Number(mark.dataset.look)));
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

  // All lines first, then all heads, so that no head lies under another's line.
  const moving = (k) => [...scene.trails.map((trail) => lineOf(trail, k)), ...scene.trails.map((trail) => headOf(trail, k))];
  const ground = schuss.figure(section.querySelector(".ground"), (plot) => {
    const traces = [{ type: "contour", x: scene.xs, y: scene.ys, z: levels, autocontour: false, showscale: false, hoverinfo: "skip", zmin: bottom, zmax: top,
      colorscale: colours(), line: { color: css("--soft"), width: 0.4 }, contours: { coloring: "fill", start: bottom, end: top, size: (top - bottom) / 18 } }];
    if (scene.minima.length) traces.push({ x: scene.minima.map((p) => p[0]), y: scene.minima.map((p) => p[1]), mode: "markers", hovertemplate: "minimum (%{x:.4g}, %{y:.4g})<extra></extra>",
      marker: { symbol: "cross-thin", size: 11, line: { width: 2, color: css("--ink") } } });
    const starts = [...new Map(scene.trails.map((trail) => [String(trail.places[0]), trail.places[0]])).values()];
    traces.push({ x: starts.map((p) => p[0]), y: starts.map((p) => p[1]), mode: "markers", hoverinfo: "skip", marker: { symbol: "circle-open", size: 12, color: css("--ink"), line: { width: 1.5 } } });
    const first = traces.length, many = scene.trails.length;
    scene.trails.forEach((trail, i) => {
      const { colour, dash } = marked[i];
      traces.push({ name: trail.name, visible: seenNow(trail), ...lineOf(trail, step), mode: "lines+markers", line: { color: colour, width: 2, dash },
        marker: { size: trail.places.length > 120 ? 2.5 : 4, color: colour }, hovertemplate: `(%{x:.4g}, %{y:.4g})<extra>${trail.name}</extra>` });
    });
    scene.trails.forEach((trail, i) => traces.push({ visible: seenNow(trail), ...headOf(trail, step), mode: "markers", hoverinfo: "skip",
      marker: { symbol: marked[i].symbol, size: 11, color: marked[i].colour, line: { width: 1.5, color: css("--paper") } } }));
    if (scene.marks.length) traces.push({ x: scene.marks.map((m) => m[0]), y: scene.marks.map((m) => m[1]), text: scene.marks.map((m) => m[2]), mode: "markers+text", hoverinfo: "skip",
      marker: { size: 19, color: css("--card"), line: { width: 1, color: css("--soft") } }, textfont: { color: css("--ink"), size: 12 } });
    plot.moving = [...Array(2 * many).keys()].map((i) => first + i);
    plot.framed = false;
    const range = (values) => [values[0], values.at(-1)], [wide, high] = [scene.xs, scene.ys].map((values) => values.at(-1) - values[0]);
    // To scale the height follows from the width that there is.
    plot.style.height = `${scene.to_scale ? Math.min(Math.max(((plot.clientWidth - 60) * high) / wide + 55, 170), 660) : Math.min(plot.clientWidth, 480)}px`;
    const same = scene.to_scale ? { constrain: "domain" } : {};
    return [traces, schuss.layout({ title: scene.axes[0], range: range(scene.xs), showgrid: false, zeroline: false, ...same },
      { title: scene.axes[1], range: range(scene.ys), showgrid: false, zeroline: false, ...same, ...(scene.to_scale ? { scaleanchor: "x" } : {}) })];
  });
  const height = schuss.figure(section.querySelector(".height"), () => {
    // What lies more than sixteen decades below the highest is rounding: the line leaves the picture there.
    const rise = (z) => (z > scene.lowest ? z - scene.lowest : null), values = scene.trails.flatMap((trail) => trail.values.map(rise)).filter((z) => z !== null);
    const high = Math.max(...values), low = Math.max(Math.min(...values), high * 1e-16);
    const traces = scene.trails.map((trail, i) => ({ name: trail.name, visible: seenNow(trail), x: trail.at, y: trail.values.map(rise), mode: "lines",
      line: { color: look(i).colour, dash: look(i).dash, width: 2 }, hovertemplate: `%{y:.3g} at step %{x}<extra>${trail.name}</extra>` }));
    const room = 0.04 * Math.log10(high / low) || 0.5;
    return [traces, schuss.layout({ title: "step", zeroline: false, rangemode: "tozero" }, { title: scene.unit, ...schuss.logTicks([low, high], true), range: [Math.log10(low) - room, Math.log10(high) + room] }, { shapes: [cursor()] })];
  });
  const watchedNode = section.querySelector(".watched");
  const watched = watchedNode && schuss.figure(watchedNode, () => {
    const traces = scene.trails.map((trail, i) => ({ name: trail.name, visible: seenNow(trail), x: trail.seen.map((_, k) => k + 1), y: trail.seen, mode: "lines", line: { color: look(i).colour, dash: look(i).dash, width: 2 },
      hovertemplate: `%{y:.3g} at step %{x}<extra>${trail.name}</extra>` }));
    return [traces, schuss.layout({ title: "step", zeroline: false, rangemode: "tozero" }, { title: scene.watched, rangemode: "tozero", ...(scene.logarithmic ? schuss.logTicks(scene.trails.flatMap((trail) => trail.seen)) : {}) }, { shapes: [cursor()] })];
  });
  const cursor = () => ({ type: "line", x0: longest.at[step], x1: longest.at[step], yref: "paper", y0: 0, y1: 1, line: { color: css("--soft"), width: 1, dash: "dot" } });
  const lift = 0.015 * (top - bottom), shown3 = (z) => (z === null ? null : Math.max(z, bottom));
  // The height of the drawn surface at a place, between the four points of the grid round it; a path runs above both.
  const drawnAt = ([x, y]) => {
    const [[i, s], [j, t]] = [[scene.xs, x], [scene.ys, y]].map(([grid, value]) => {
      const at = ((value - grid[0]) / (grid.at(-1) - grid[0])) * (grid.length - 1), k = Math.min(Math.max(Math.floor(at), 0), grid.length - 2);
      return [k, at - k];
    });
    const z = (a, b) => shown3(levels[j + b][i + a]) ?? bottom;
    return (1 - s) * (1 - t) * z(0, 0) + s * (1 - t) * z(1, 0) + (1 - s) * t * z(0, 1) + s * t * z(1, 1);
  };
  const deep = schuss.figure(section.querySelector(".deep"), (plot) => {
    const axis = (title) => ({ title: { text: title.split(",")[0] }, gridcolor: css("--grid"), color: css("--soft"), showbackground: false, zeroline: false, nticks: 6 });
    const window_ = ([x, y]) => x >= scene.xs[0] && x <= scene.xs.at(-1) && y >= scene.ys[0] && y <= scene.ys.at(-1);
    const traces = [{ type: "surface", x: scene.xs, y: scene.ys, z: levels.map((row) => row.map(shown3)), colorscale: colours(), showscale: false, opacity: 0.92, hoverinfo: "skip",
      contours: { z: { show: true, usecolormap: false, color: css("--line"), width: 1 } }, lighting: { ambient: 0.85, diffuse: 0.35, specular: 0.05 } }];
    scene.trails.forEach((trail, i) => {
      const at = trail.places.map((p, k) => (k <= step && window_(p) ? p : null)), height = (p, k) => (p === null ? null : Math.max(shown3(up(trail.values[k])), scene.unit === "loss" ? bottom : drawnAt(p)) + lift);
      traces.push({ type: "scatter3d", name: trail.name, visible: seenNow(trail), mode: "lines", x: at.map((p) => p?.[0] ?? null), y: at.map((p) => p?.[1] ?? null), z: at.map(height),
        line: { color: look(i).colour, width: 6 }, hoverinfo: "name" });
    });
    // Farther away where there is little room, or the labels of the axes are cut off.
    const far = plot.clientWidth < 560 ? 1.7 : 1.2, ratio = (scene.ys.at(-1) - scene.ys[0]) / (scene.xs.at(-1) - scene.xs[0]);
    const long = scene.to_scale ? Math.min(Math.max(ratio, 0.5), 2) : 1;
    return [traces, { ...schuss.layout({}, {}), margin: { l: 0, r: 0, t: 0, b: 0 },
      scene: { xaxis: axis(scene.axes[0]), yaxis: axis(scene.axes[1]), zaxis: axis(scene.unit === "loss" ? "log₁₀ loss" : "log₁₀ height"), aspectratio: { x: 1.25 / Math.max(long, 1), y: 1.25 * Math.min(long, 1), z: 0.6 },
        camera: { eye: { x: -0.85 * far, y: -1.15 * far, z: 0.95 * far }, center: { x: 0, y: 0, z: -0.08 } } }, uirevision: "kept" }];
  });
  schuss.legend(section.querySelector(".legend"), scene.trails.map((trail, i) => [trail.name, look(i)]), hidden,
    () => { for (const known of [ground, height, watched, deep]) if (known?.drawn) known.draw(); }, section);

  // One frame for each stop of the slider, made when they are first wanted.
  const frames = async () => {
    if (ground.plot.framed) return;
    ground.plot.framed = true;
    keep(ground.plot);
    await Plotly.addFrames(ground.plot, stops.map((k) => ({ name: String(k), data: moving(k), traces: ground.plot.moving })));
  };
  // An animated frame takes away the layers in which nothing moves; drawing all of them again in each frame would take ten
  // times as long. So the landscape is put back, and before the screen has shown that it was gone.
  let keeper = null;
  const keep = (plot) => {
    keeper?.disconnect();
    const levels = plot.querySelector(".contourlayer"), layers = levels.parentNode;
    keeper = new MutationObserver(() => { if (!layers.querySelector(".contourlayer")) layers.prepend(levels); });
    keeper.observe(layers, { childList: true });
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
