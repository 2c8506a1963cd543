"use strict";
for (const section of document.querySelectorAll("[data-picture]")) {
  const picture = schuss.data[Number(section.dataset.picture)], { css, look } = schuss, hidden = new Set();
  const marked = picture.trajectories.map((trajectory, i) => ({ ...look(i), dash: i < 9 ? "solid" : look(i).dash })), seenNow = (trajectory) => !hidden.has(trajectory.name);
  for (const mark of section.querySelectorAll("[data-look]")) mark.innerHTML = schuss.sample(look(Number(mark.dataset.look)));
  const least = Math.min(...picture.heights.flat().filter((z) => z !== null && z > picture.lowest).map((z) => z - picture.lowest));
  const floor = Math.max(least / 10, 1e-12);
  const up = (z) => (z === null ? null : Math.log10(Math.max(z - picture.lowest, floor)));
  const levels = picture.heights.map((row) => row.map(up));
  const sorted = levels.flat().filter((z) => z !== null).sort((a, b) => a - b);
  const [bottom, top] = [sorted[Math.floor(0.01 * sorted.length)], sorted.at(-1)]; // a pole at a minimum would stretch the scale
  const last = Math.max(...picture.trajectories.map((trajectory) => trajectory.values.length)) - 1;
  const stride = Math.max(1, Math.ceil(last / 120)), stops = [];
  for (let k = 0; k < last; k += stride) stops.push(k);
  stops.push(last);
  const slider = section.querySelector("input"), output = section.querySelector("output"), button = section.querySelector(".player button");
  slider.max = stops.length - 1;
  slider.value = stops.length - 1;
  let step = last, timer = null;

  const upTo = (trajectory, k) => trajectory.points.slice(0, k + 1);
  const lineOf = (trajectory, k) => ({ x: upTo(trajectory, k).map((p) => p[0]), y: upTo(trajectory, k).map((p) => p[1]) });
  const headOf = (trajectory, k) => { const p = trajectory.points[Math.min(k, trajectory.points.length - 1)]; return { x: [p[0]], y: [p[1]] }; };
  const heightOf = (trajectory, k) => trajectory.values.slice(0, k + 1).map(up);
  const colours = () => [[0, css("--accent")], [1, css("--paper")]].map(([at, c], i) => [at, i ? c : mix(c, css("--paper"), 0.45)]);
  const mix = (a, b, t) => `rgb(${[1, 3, 5].map((at) => Math.round((1 - t) * parseInt(a.slice(at, at + 2), 16) + t * parseInt(b.slice(at, at + 2), 16))).join(",")})`;

  // All lines first, then all heads, so that no head lies under another's line.
  const moving = (k) => [...picture.trajectories.map((trajectory) => lineOf(trajectory, k)), ...picture.trajectories.map((trajectory) => headOf(trajectory, k))];
  const ground = schuss.figure(section.querySelector(".ground"), (plot) => {
    const traces = [{ type: "contour", x: picture.xs, y: picture.ys, z: levels, autocontour: false, showscale: false, hoverinfo: "skip", zmin: bottom, zmax: top,
      colorscale: colours(), line: { color: css("--soft"), width: 0.4 }, contours: { coloring: "fill", start: bottom, end: top, size: (top - bottom) / 18 } }];
    if (picture.minima.length) traces.push({ x: picture.minima.map((p) => p[0]), y: picture.minima.map((p) => p[1]), mode: "markers", hovertemplate: "minimum (%{x:.4g}, %{y:.4g})<extra></extra>",
      marker: { symbol: "cross-thin", size: 11, line: { width: 2, color: css("--ink") } } });
    const starts = [...new Map(picture.trajectories.map((trajectory) => [String(trajectory.points[0]), trajectory.points[0]])).values()];
    traces.push({ x: starts.map((p) => p[0]), y: starts.map((p) => p[1]), mode: "markers", hoverinfo: "skip", marker: { symbol: "circle-open", size: 12, color: css("--ink"), line: { width: 1.5 } } });
    const first = traces.length, many = picture.trajectories.length;
    picture.trajectories.forEach((trajectory, i) => {
      const { colour, dash } = marked[i];
      traces.push({ name: trajectory.name, visible: seenNow(trajectory), ...lineOf(trajectory, step), mode: "lines+markers", line: { color: colour, width: 2, dash },
        marker: { size: trajectory.points.length > 120 ? 2.5 : 4, color: colour }, hovertemplate: `(%{x:.4g}, %{y:.4g})<extra>${trajectory.name}</extra>` });
    });
    picture.trajectories.forEach((trajectory, i) => traces.push({ visible: seenNow(trajectory), ...headOf(trajectory, step), mode: "markers", hoverinfo: "skip",
      marker: { symbol: marked[i].symbol, size: 11, color: marked[i].colour, line: { width: 1.5, color: css("--paper") } } }));
    if (picture.marks.length) traces.push({ x: picture.marks.map((m) => m[0]), y: picture.marks.map((m) => m[1]), text: picture.marks.map((m) => m[2]), mode: "markers+text", hoverinfo: "skip",
      marker: { size: 19, color: css("--card"), line: { width: 1, color: css("--soft") } }, textfont: { color: css("--ink"), size: 12 } });
    plot.moving = [...Array(2 * many).keys()].map((i) => first + i);
    plot.framed = false;
    const range = (values) => [values[0], values.at(-1)], [wide, high] = [picture.xs, picture.ys].map((values) => values.at(-1) - values[0]);
    // To scale the height follows from the width that there is.
    plot.style.height = `${picture.to_scale ? Math.min(Math.max(((plot.clientWidth - 60) * high) / wide + 55, 170), 660) : Math.min(plot.clientWidth, 480)}px`;
    const same = picture.to_scale ? { constrain: "domain" } : {};
    return [traces, schuss.layout({ title: "x", range: range(picture.xs), showgrid: false, zeroline: false, ...same },
      { title: "y", range: range(picture.ys), showgrid: false, zeroline: false, ...same, ...(picture.to_scale ? { scaleanchor: "x" } : {}) })];
  });
  const height = schuss.figure(section.querySelector(".height"), () => {
    // What lies more than sixteen decades below the highest is rounding: the line leaves the picture there.
    const rise = (z) => (z > picture.lowest ? z - picture.lowest : null), values = picture.trajectories.flatMap((trajectory) => trajectory.values.map(rise)).filter((z) => z !== null);
    const high = Math.max(...values), low = Math.max(Math.min(...values), high * 1e-16);
    const traces = picture.trajectories.map((trajectory, i) => ({ name: trajectory.name, visible: seenNow(trajectory), x: trajectory.values.map((_, k) => k), y: trajectory.values.map(rise), mode: "lines",
      line: { color: look(i).colour, dash: look(i).dash, width: 2 }, hovertemplate: `%{y:.3g} at step %{x}<extra>${trajectory.name}</extra>` }));
    const room = 0.04 * Math.log10(high / low) || 0.5;
    return [traces, schuss.layout({ title: "step", zeroline: false, rangemode: "tozero" }, { title: "height above the lowest", ...schuss.logTicks([low, high], true), range: [Math.log10(low) - room, Math.log10(high) + room] }, { shapes: [cursor()] })];
  });
  const watchedNode = section.querySelector(".watched");
  const watched = watchedNode && schuss.figure(watchedNode, () => {
    const traces = picture.trajectories.map((trajectory, i) => ({ name: trajectory.name, visible: seenNow(trajectory), x: trajectory.seen.map((_, k) => k + 1), y: trajectory.seen, mode: "lines", line: { color: look(i).colour, dash: look(i).dash, width: 2 },
      hovertemplate: `%{y:.3g} at step %{x}<extra>${trajectory.name}</extra>` }));
    return [traces, schuss.layout({ title: "step", zeroline: false, rangemode: "tozero" }, { title: picture.watched, rangemode: "tozero", ...(picture.logarithmic ? schuss.logTicks(picture.trajectories.flatMap((trajectory) => trajectory.seen)) : {}) }, { shapes: [cursor()] })];
  });
  const cursor = () => ({ type: "line", x0: step, x1: step, yref: "paper", y0: 0, y1: 1, line: { color: css("--soft"), width: 1, dash: "dot" } });
  const lift = 0.015 * (top - bottom), shown3 = (z) => (z === null ? null : Math.max(z, bottom));
  // The height of the drawn surface at a point, between the four points of the grid round it; a path runs above both.
  const drawnAt = ([x, y]) => {
    const [[i, s], [j, t]] = [[picture.xs, x], [picture.ys, y]].map(([grid, value]) => {
      const at = ((value - grid[0]) / (grid.at(-1) - grid[0])) * (grid.length - 1), k = Math.min(Math.max(Math.floor(at), 0), grid.length - 2);
      return [k, at - k];
    });
    const z = (a, b) => shown3(levels[j + b][i + a]) ?? bottom;
    return (1 - s) * (1 - t) * z(0, 0) + s * (1 - t) * z(1, 0) + (1 - s) * t * z(0, 1) + s * t * z(1, 1);
  };
  const deep = schuss.figure(section.querySelector(".deep"), (plot) => {
    const axis = (title) => ({ title: { text: title }, gridcolor: css("--grid"), color: css("--soft"), showbackground: false, zeroline: false, nticks: 6 });
    const window_ = ([x, y]) => x >= picture.xs[0] && x <= picture.xs.at(-1) && y >= picture.ys[0] && y <= picture.ys.at(-1);
    const traces = [{ type: "surface", x: picture.xs, y: picture.ys, z: levels.map((row) => row.map(shown3)), colorscale: colours(), showscale: false, opacity: 0.92, hoverinfo: "skip",
      contours: { z: { show: true, usecolormap: false, color: css("--line"), width: 1 } }, lighting: { ambient: 0.85, diffuse: 0.35, specular: 0.05 } }];
    picture.trajectories.forEach((trajectory, i) => {
      const at = trajectory.points.map((p, k) => (k <= step && window_(p) ? p : null)), height = (p, k) => (p === null ? null : Math.max(shown3(up(trajectory.values[k])), drawnAt(p)) + lift);
      traces.push({ type: "scatter3d", name: trajectory.name, visible: seenNow(trajectory), mode: "lines", x: at.map((p) => p?.[0] ?? null), y: at.map((p) => p?.[1] ?? null), z: at.map(height),
        line: { color: look(i).colour, width: 6 }, hoverinfo: "name" });
    });
    // Farther away where there is little room, or the labels of the axes are cut off.
    const far = plot.clientWidth < 560 ? 1.7 : 1.2, ratio = (picture.ys.at(-1) - picture.ys[0]) / (picture.xs.at(-1) - picture.xs[0]);
    const long = picture.to_scale ? Math.min(Math.max(ratio, 0.5), 2) : 1;
    return [traces, { ...schuss.layout({}, {}), margin: { l: 0, r: 0, t: 0, b: 0 },
      scene: { xaxis: axis("x"), yaxis: axis("y"), zaxis: axis("log₁₀ height"), aspectratio: { x: 1.25 / Math.max(long, 1), y: 1.25 * Math.min(long, 1), z: 0.6 },
        camera: { eye: { x: -0.85 * far, y: -1.15 * far, z: 0.95 * far }, center: { x: 0, y: 0, z: -0.08 } } }, uirevision: "kept" }];
  });
  schuss.legend(section.querySelector(".legend"), picture.trajectories.map((trajectory, i) => [trajectory.name, look(i)]), hidden,
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
    output.textContent = `step ${step} of ${last}`;
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
