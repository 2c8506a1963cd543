"use strict";
(() => {
  const { css, faint, layout, logTicks, minus, short, sample: drawn, watch, redraw, legend, CONFIG } = schuss, { report, bands } = schuss.data;
  const tasks = report.tasks;

  const el = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "class") node.className = value;
      else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  };
  const setting = (parameters) =>
    Object.entries(parameters).sort(([a], [b]) => (b === "lr") - (a === "lr")).map(([name, x]) => `${minus(name)} ${minus(Number(x.toPrecision(3)).toString())}`.replaceAll(" ", "\u00a0")).join(", ");
  const unique = (values) => [...new Set(values)];

  // How an entry is drawn: colour, dash, marker.
  const everyName = unique(tasks.flatMap((task) => task.entries.map((entry) => entry.name)));
  const look = (name) => schuss.look(Math.max(0, everyName.indexOf(name)));
  const sample = (name) => drawn(look(name));
  for (const mark of document.querySelectorAll("[data-mark]")) mark.innerHTML = sample(mark.dataset.mark);

  // Figures: drawn when near, redrawn on every change.
  const hidden = new Set(); // entries switched off in the legends; one switch for all figures
  const line = (name, x, y, more = {}) => {
    const { colour, dash, symbol } = look(name);
    return { name, x, y, mode: "lines+markers", line: { color: colour, width: 2, dash, ...more.line },
      marker: { color: colour, symbol, size: 7, maxdisplayed: 7 }, hovertemplate: `%{y:.4g} at %{x:.4~g}<extra>${escape(name)}</extra>`,
      ...Object.fromEntries(Object.entries(more).filter(([key]) => key !== "line")) };
  };
  const escape = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  // The band as closed pieces, so that a gap in it (an interval without an end) is a gap and not a wedge.
  const band = (name, x, low, high) => {
    const xs = [], ys = [];
    let start = null;
    for (let i = 0; i <= x.length; i++) {
      const there = i < x.length && low[i] !== null && high[i] !== null && low[i] !== undefined;
      if (there && start === null) start = i;
      if (!there && start !== null) {
        const piece = Array.from({ length: i - start }, (_, k) => start + k), back = [...piece].reverse();
        xs.push(...piece.map((k) => x[k]), ...back.map((k) => x[k]), null);
        ys.push(...piece.map((k) => high[k]), ...back.map((k) => low[k]), null);
        start = null;
      }
    }
    return { x: xs, y: ys, mode: "lines", fill: "toself", fillcolor: faint(look(name).colour, 0.14), line: { width: 0 }, hoverinfo: "skip" };
  };
  // Lines with their bands behind them; `found(name)` has x, centre, low and high.
  const banded = (names, found) => [
    ...names.map((name) => band(name, found(name).x, found(name).low, found(name).high)),
    ...names.map((name) => line(name, found(name).x, found(name).centre)),
  ];
  // An axis of the metric ends where the metric does.
  const within = ({ metric: { bounds: [least, most] } }) => ({ autorangeoptions: { ...(least === null ? {} : { minallowed: least }), ...(most === null ? {} : { maxallowed: most }) } });
  const shown = (names) => names.filter((name) => !hidden.has(name));

  const AXES = { steps: "steps", examples: "examples", gradients: "gradients", seconds: "seconds" };
  const choice = (figure, key, title, options) => {
    figure.state[key] ??= Object.keys(options)[0];
    const group = `${key}-${figure.node.dataset.figure}-${figure.task}`;
    const set = el("fieldset", { class: "choice" }, el("legend", {}, title));
    for (const [value, text] of Object.entries(options)) {
      const input = el("input", { type: "radio", name: group, value, onchange: () => { figure.state[key] = value; figure.draw(); } });
      input.checked = figure.state[key] === value;
      set.append(el("label", {}, input, text));
    }
    figure.node.querySelector(".controls").append(set);
  };

  const plots = {
    behind: {
      entries: () => [],
      draw({ task, plot }) {
        const rows = [...task.verdict.comparisons].reverse();
        const colour = css("--accent");
        const names = rows.map((row) => row.other);
        plot.style.height = `${rows.length * 30 + 62}px`;
        const whisker = { type: "scatter", mode: "lines", line: { color: colour, width: 2 }, hoverinfo: "skip",
          x: rows.flatMap((row) => [row.adjusted_low, row.adjusted_high, null]), y: rows.flatMap((row) => [row.other, row.other, null]) };
        const tick = { mode: "markers", hovertemplate: "a gap of %{x:.3g} counts<extra></extra>", x: rows.map((row) => row.gap_needed), y: names,
          marker: { symbol: "line-ns-open", size: 11, color: css("--soft"), line: { width: 1.5, color: css("--soft") } } };
        const dot = { mode: "markers", x: rows.map((row) => row.difference.mean), y: names,
          text: rows.map((row) => `${row.verdict}: ${short(row.difference.mean, 3)} (${short(row.adjusted_low, 3)} … ${short(row.adjusted_high, 3)})`),
          hovertemplate: "%{text}<extra>%{y}</extra>",
          marker: { size: 10, color: rows.map((row) => (row.verdict === "better" ? colour : css("--paper"))), line: { width: 2, color: colour } } };
        const values = rows.flatMap((row) => [row.difference.mean, row.adjusted_low, row.adjusted_high, row.gap_needed, 0]).filter((x) => x !== null);
        const [low, high] = [Math.min(...values), Math.max(...values)], room = 0.06 * (high - low || 1);
        return [[whisker, tick, dot], layout(
          { title: `advantage of ${rows[0].leader} (${rows[0].unit})`, zeroline: true, zerolinewidth: 1.5, zerolinecolor: css("--soft"), range: [low - room, high + room] },
          { title: "", type: "category", showgrid: false, range: [-0.6, rows.length - 0.4] })];
      },
    },
    budget: {
      entries: (task) => Object.keys(task.budget_curves),
      draw({ task }) {
        const curves = task.budget_curves, names = shown(Object.keys(curves));
        const most = Math.max(1, ...names.flatMap((name) => curves[name].n));
        return [banded(names, (name) => ({ x: curves[name].n, centre: curves[name].expected, ...curves[name] })), layout({ title: "trials you can afford", range: [0.6, most + 0.4], dtick: most <= 12 ? 1 : undefined },
          { title: `expected best validation ${task.metric.name}`, ...within(task) })];
      },
    },
    convergence: {
      entries: (_, index) => Object.keys(bands[index]),
      setup(figure) {
        choice(figure, "what", "Show", { validation_loss: "validation loss", train_loss: "training loss", metric: `validation ${figure.data.metric.name}` });
        choice(figure, "axis", "against", AXES);
      },
      draw({ task, index, state }) {
        const names = shown(Object.keys(bands[index])).filter((name) => bands[index][name][state.axis]);
        const found = (name) => ({ x: bands[index][name][state.axis], ...bands[index][name][state.what] });
        const log = state.what !== "metric" && names.every((name) => found(name).log);
        const values = names.flatMap((name) => found(name).centre);
        const title = state.what === "metric" ? `validation ${task.metric.name}` : state.what.replace("_", " ").replace("train ", "training ");
        return [banded(names, found), layout({ title: state.axis === "seconds" ? "seconds (steps × the calibrated step)" : state.axis, rangemode: "tozero" },
          { title, ...(log ? logTicks(values) : {}), ...(state.what === "metric" ? within(task) : {}) })];
      },
    },
    targets: {
      entries: (task) => Object.keys(task.targets[0].entries),
      setup(figure) {
        const ranking = figure.data.targets.findIndex((target) => target.ranking);
        figure.state.target = String(Math.max(0, ranking));
        choice(figure, "target", "Target", Object.fromEntries(figure.data.targets.map((target, i) => [String(i), `${short(target.value, 3)} (${Math.round(100 * target.q)} %)`])));
        figure.state.axis = "gradients";
        choice(figure, "axis", "against", AXES);
      },
      draw({ task, index, state }) {
        const target = task.targets[Number(state.target)];
        const ends = Object.values(bands[index]).map((columns) => columns[state.axis]?.at(-1) ?? 0);
        const end = Math.max(0, ...ends);
        const traces = shown(Object.keys(target.entries)).map((name) => {
          const times = target.entries[name].times[state.axis], n = times.length;
          const sorted = times.filter((x) => x !== null).sort((a, b) => a - b);
          const x = [0, ...sorted, Math.max(end, sorted.at(-1) ?? 0)];
          const y = [0, ...sorted.map((_, i) => (i + 1) / n), sorted.length / n];
          return line(name, x, y, { line: { shape: "hv" }, hovertemplate: `%{y:.0%} of the seeds within %{x:.4~g}<extra>${escape(name)}</extra>` });
        });
        return [traces, layout({ title: state.axis, rangemode: "tozero" }, { title: "fraction of seeds that reached it", range: [-0.03, 1.05], tickformat: ".0%" })];
      },
    },
    rate: {
      entries: (_, index) => Object.keys(bands[index]),
      draw({ index }) {
        const names = shown(Object.keys(bands[index])).filter((name) => bands[index][name].effective_rate.some((x) => x > 0));
        return [names.map((name) => line(name, bands[index][name].steps, bands[index][name].effective_rate)),
          layout({ title: "steps", rangemode: "tozero" }, { title: "effective rate", ...logTicks(names.flatMap((name) => bands[index][name].effective_rate)) })];
      },
    },
    profiles: {
      entries: () => Object.keys(report.profiles.share),
      setup(figure) {
        const pairs = report.profiles.pairs;
        if (!pairs.length) return;
        const select = el("select", { onchange: (event) => { figure.state.pair = event.target.value; figure.draw(); } }, el("option", { value: "" }, "all entries"),
          ...pairs.map((pair, i) => el("option", { value: String(i) }, `${pair.a} against ${pair.b}`)));
        figure.node.querySelector(".controls").append(el("label", { class: "pick" }, "Show", select));
      },
      draw({ state }) {
        const { tau, share, cost, pairs } = report.profiles;
        const pair = state.pair ? pairs[Number(state.pair)] : null;
        const lines = pair ? { [pair.a]: pair.a_share, [pair.b]: pair.b_share } : share;
        const names = pair ? Object.keys(lines) : shown(Object.keys(lines));
        return [names.map((name) => line(name, tau, lines[name], { line: { shape: "hv" }, hovertemplate: `%{y:.0%} within %{x:.2f} ×<extra>${escape(name)}</extra>` })),
          layout({ title: `τ: times the cheapest entry's ${cost}`, range: [0.97, 4.03] }, { title: "fraction solved", range: [-0.03, 1.05], tickformat: ".0%" })];
      },
    },
  };

  for (const node of document.querySelectorAll("figure[data-figure]:not([data-figure='basin'])")) {
    const kind = plots[node.dataset.figure], index = Number(node.dataset.task), task = tasks[index], plot = node.querySelector(".plot");
    const figure = watch(node, () => Plotly.react(plot, ...kind.draw({ task, index, plot, state: figure.state }), CONFIG));
    figure.task = index;
    figure.data = task;
    kind.setup?.(figure);
    legend(node.querySelector(".legend"), kind.entries(task, index).map((name) => [name, look(name)]), hidden, redraw);
  }

  // The basins: one small panel per entry, same scales.
  for (const node of document.querySelectorAll("figure[data-figure='basin']")) {
    const task = tasks[Number(node.dataset.task)], grid = node.querySelector(".basins");
    const all = Object.values(task.sensitivity).flatMap((basin) => basin.metric).filter((x) => x !== null);
    const [least, most] = all.length ? [Math.min(...all), Math.max(...all)] : [0, 1], room = 0.12 * (most - least || 1);
    // A loss whose trials span decades is drawn on a log scale; the crosses stand at the bad edge.
    const log = least > 0 && most / least > 30 && task.metric.best === "min";
    const range = log ? [Math.log10(least) - 0.15, Math.log10(most) + 0.3] : [Math.max(least - room, task.metric.bounds[0] ?? -Infinity), Math.min(most + room, task.metric.bounds[1] ?? Infinity)];
    const bad = task.metric.best === "min" ? (log ? 10 ** (range[1] - 0.12) : range[1] - room / 2) : range[0] + room / 2;
    for (const [name, basin] of Object.entries(task.sensitivity)) {
      const panel = el("div", { class: "panel", role: "img", "aria-label": `Validation ${task.metric.name} over the learning rate, ${name}` });
      const heading = el("h4", {});
      heading.innerHTML = `<span class="mark">${sample(name)}</span>`;
      heading.append(el("span", {}, name), el("span", {}, basin.decades === null ? "" : `${short(basin.decades, 2)} decades`));
      const box = el("div", { class: "basin" }, heading, panel);
      grid.append(box);
      watch(box, () => {
        const { colour, symbol } = look(name), good = basin.metric.map((x) => x !== null);
        const pick = (values, keep) => values.filter((_, i) => keep(i));
        const points = { mode: "markers", x: pick(basin.lr, (i) => good[i]), y: pick(basin.metric, (i) => good[i]),
          marker: { color: colour, symbol, size: 7 }, hovertemplate: `%{y:.4g} at lr %{x:.3g}<extra></extra>` };
        const lost = pick(basin.lr, (i) => !good[i]);
        const crosses = { mode: "markers", x: lost, y: lost.map(() => bad), text: pick(basin.status, (i) => !good[i]),
          marker: { color: css("--bad"), symbol: "x-thin-open", size: 8, line: { width: 2, color: css("--bad") } }, hovertemplate: "%{text} at lr %{x:.3g}<extra></extra>" };
        const shapes = basin.low === null ? [] : [{ type: "rect", xref: "x", yref: "paper", x0: basin.low / 1.04, x1: basin.high * 1.04, y0: 0, y1: 1, fillcolor: faint(colour, 0.13), line: { width: 0 }, layer: "below" }];
        Plotly.react(panel, [points, crosses], layout({ title: "", tickangle: 0, ...logTicks(basin.lr, true) }, { title: "", ...(log ? logTicks(all) : { nticks: 5 }), range }, { shapes, margin: { l: 4, r: 8, t: 6, b: 4 } }), CONFIG);
      });
    }
  }

  // The claims' intervals, against zero.
  for (const node of document.querySelectorAll(".whisker")) {
    const { interval, unit } = tasks[Number(node.dataset.task)].claims[Number(node.dataset.claim)];
    const { mean, low, high } = interval, ends = [low, high, mean].filter((x) => x !== null);
    const reach = 1.1 * Math.max(...ends.map(Math.abs)) || 1, at = (x) => 120 + (112 * x) / reach;
    const bar = `<line x1="${low === null ? 4 : at(low)}" x2="${high === null ? 236 : at(high)}" y1="16" y2="16" stroke-width="2.5"${low === null || high === null ? " stroke-dasharray='4 3'" : ""}/>`;
    const dot = mean === null ? "" : `<circle cx="${at(mean)}" cy="16" r="4.5"/>`;
    const text = `${short(mean, 3)} (${short(low, 3)} … ${short(high, 3)}) ${unit}, 95 % interval; right of zero speaks for the claim`;
    node.innerHTML = `<svg viewBox="0 0 240 46" role="img"><title></title><line x1="120" x2="120" y1="4" y2="28" style="stroke:var(--soft)" stroke-dasharray="2 2"/>
      <g style="stroke:var(--accent);fill:var(--accent)">${bar}${dot}</g>
      <text x="116" y="43" text-anchor="end" font-size="10.5" style="fill:var(--soft)">against</text><text x="124" y="43" font-size="10.5" style="fill:var(--soft)">for the claim</text></svg>`;
    node.querySelector("title").textContent = text;
  }

  // The details of a run, made when it is opened.
  const PAGE = 40;
  const runBody = (task, run) => {
    const pairs = { Settings: setting(run.parameters), [`Validation ${task.metric.name}`]: short(run.metric), "Validation loss": short(run.validation_loss),
      "Training loss": short(run.train_loss), Steps: short(run.steps), Examples: short(run.examples), Gradients: short(run.gradients), Configuration: run.configuration.slice(0, 8) };
    if (run.test) Object.assign(pairs, { [`Test ${task.metric.name}`]: short(run.test.metric), "Test loss": short(run.test.loss) });
    const plot = el("div", { class: "plot", role: "img", "aria-label": "Losses of this run by step" });
    const body = el("div", { class: "runbody" });
    if (run.divergence) body.append(el("p", {}, `Stopped at step ${short(run.divergence.step)}: ${run.divergence.reason}.`));
    body.append(el("dl", {}, ...Object.entries(pairs).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))), plot);
    body.append(el("p", { class: "small" }, "Solid: training loss; dashed: validation loss. This run again:"), code(run.command));
    if (run.error) body.append(code(run.error));
    const draw = () => {
      const { curve } = run, values = [...curve.train_loss, ...curve.validation_loss].filter((x) => x !== null);
      const trace = (y, dash, symbol, colour, name) => ({ name, x: curve.steps, y, mode: "lines+markers", line: { color: colour, width: 2, dash }, marker: { symbol, size: 6, maxdisplayed: 7 }, hovertemplate: `%{y:.4g} at step %{x}<extra>${name}</extra>` });
      Plotly.react(plot, [trace(curve.train_loss, "solid", "circle", css("--s0"), "training"), trace(curve.validation_loss, "dash", "square", css("--s1"), "validation")],
        layout({ title: "steps", rangemode: "tozero" }, { title: "loss", ...(values.every((x) => x > 0) ? logTicks(values) : {}) }), CONFIG);
    };
    return { body, draw };
  };
  const code = (text) => el("div", { class: "code" }, el("pre", { tabindex: "0" }, el("code", {}, text)), el("button", { type: "button", class: "copy" }, "Copy"));

  for (const section of document.querySelectorAll(".runs")) {
    const task = tasks[Number(section.dataset.task)], list = section.querySelector(".runlist");
    const filter = { entry: "", stage: "", status: "" };
    let limit = PAGE;
    const selects = {};
    for (const key of Object.keys(filter)) {
      selects[key] = el("select", { onchange: (event) => { filter[key] = event.target.value; limit = PAGE; fill(); } }, el("option", { value: "" }, "all"),
        ...unique(task.runs.map((run) => run[key])).map((value) => el("option", { value }, value)));
      section.querySelector(".filters").append(el("label", { class: "pick" }, key[0].toUpperCase() + key.slice(1), selects[key]));
    }
    const fill = () => {
      const fitting = task.runs.filter((run) => Object.entries(filter).every(([key, value]) => !value || run[key] === value));
      section.querySelector(".count").textContent = `${Math.min(limit, fitting.length)} of ${fitting.length} runs`;
      list.replaceChildren(...fitting.slice(0, limit).map((run) => {
        const summary = el("summary", {}, el("span", { class: "id" }, run.id.slice(0, 8)), el("span", {}, run.entry), el("span", { class: "hide quiet" }, setting(run.parameters)), el("span", { class: "hide" }, run.stage),
          el("span", { class: "hide right" }, `seed ${run.seed}`), el("span", { class: `right ${run.status}` }, run.status === "finished" ? short(run.metric) : run.status));
        const details = el("details", { id: `run-${run.id}` }, summary);
        details.addEventListener("toggle", () => {
          if (!details.open || details.figure) return;
          const { body, draw } = runBody(task, run);
          details.append(body);
          watch(details, draw);
        });
        return details;
      }));
      if (fitting.length > limit) list.append(el("button", { type: "button", class: "more", onclick: () => { limit += 5 * PAGE; fill(); } }, `Show more of the ${fitting.length}`));
    };
    section.reveal = (id) => {
      const at = task.runs.findIndex((run) => run.id === id);
      if (at < 0) return false;
      for (const key of Object.keys(filter)) selects[key].value = filter[key] = "";
      limit = Math.max(limit, at + 1);
      fill();
      const details = document.getElementById(`run-${id}`);
      details.open = true;
      details.scrollIntoView({ block: "start", behavior: "instant" });
      details.querySelector("summary").focus({ preventScroll: true });
      return true;
    };
    fill();
  }
  const follow = () => {
    const id = decodeURIComponent(location.hash.slice(1));
    if (id.startsWith("run-")) [...document.querySelectorAll(".runs")].some((section) => section.reveal(id.slice(4)));
  };
  addEventListener("hashchange", follow);
  // A second press on the link that is already followed changes no hash.
  document.addEventListener("click", (event) => { if (event.target.closest?.("a[href^='#run-']")?.hash === location.hash) follow(); });

  follow();
})();
