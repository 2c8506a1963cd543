"use strict";
// What every page draws with: colours from the style sheet, one look for a plot, light and dark, copy, contents.
const schuss = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  // How the i-th of many is drawn: no two of the first 72 have both colour and marker alike.
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
  const STROKES = { solid: "", dash: "6 3", dot: "2 3", dashdot: "6 3 2 3", longdash: "9 3", longdashdot: "9 3 2 3" };
  const COLOURS = 9; // and 8 markers: 72 pairs before one comes again
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "triangle-down"];
  const look = (i) => ({ colour: css(`--s${i % COLOURS}`), css: `var(--s${i % COLOURS})`, dash: DASHES[(i + Math.floor(i / COLOURS)) % 6], symbol: SYMBOLS[i % 8] });
  const SHAPES = {
    circle: "<circle cx='14' cy='6' r='3.2'/>", square: "<rect x='11' y='3' width='6' height='6'/>",
    diamond: "<path d='M14 1.6 18.4 6 14 10.4 9.6 6z'/>", "triangle-up": "<path d='M14 2 18.2 9.4H9.8z'/>",
    cross: "<path d='M12.6 2h2.8v2.6H18v2.8h-2.6V10h-2.8V7.4H10V4.6h2.6z'/>",
    star: "<path d='m14 1.4 1.3 3.2 3.4.2-2.6 2.2.9 3.4-3-1.9-3 1.9.9-3.4-2.6-2.2 3.4-.2z'/>",
    hexagon: "<path d='m14 1.8 3.7 2.1v4.2L14 10.2l-3.7-2.1V3.9z'/>", "triangle-down": "<path d='M14 10 9.8 2.6h8.4z'/>",
  };
  const sample = ({ css: colour, dash, symbol, width }) =>
    `<svg viewBox="0 0 28 12" aria-hidden="true"><line x1="0" y1="6" x2="28" y2="6" stroke-width="${width ?? 2}" stroke-dasharray="${STROKES[dash ?? "solid"]}" style="stroke:${colour}"/><g style="fill:${colour}">${SHAPES[symbol] ?? ""}</g></svg>`;
  const faint = (hex, alpha) => `rgba(${[1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)).join(",")},${alpha})`;
  const minus = (text) => text.replaceAll("-", "−");
  const short = (x, digits = 4) => {
    if (x === null || x === undefined) return "–";
    if (Number.isInteger(x)) return minus(x.toLocaleString("en-US").replaceAll(",", "\u202f"));
    return minus(Math.abs(x) >= 1e6 || Math.abs(x) < 1e-4 ? x.toExponential(2) : x.toPrecision(digits));
  };
  const pointer = matchMedia("(pointer: fine)").matches;
  const CONFIG = { modeBarButtons: [["toImage"]], displaylogo: false, responsive: true, showTips: false, doubleClick: "reset" };
  const axis = (given) => ({
    gridcolor: css("--grid"), linecolor: css("--line"), zerolinecolor: css("--line"), tickcolor: css("--line"),
    automargin: true, exponentformat: "power", ...given,
    title: { text: given.title, standoff: 8, font: { size: 12, color: css("--soft") } },
  });
  const layout = (x, y, more = {}) => ({
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, autosize: true,
    font: { family: css("--sans"), size: 12, color: css("--soft") },
    margin: { l: 8, r: 14, t: 12, b: 8 }, dragmode: pointer ? "zoom" : false, hovermode: "closest",
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink"), family: css("--sans") } },
    ...more, xaxis: axis({ fixedrange: !pointer, ...x }), yaxis: axis({ fixedrange: !pointer, ...y }),
  });
  // Round ticks of a logarithmic axis: powers of ten, and between them 2 and 5, or 3, where there are few.
  const power = (exponent) => (exponent >= -3 && exponent <= 4 ? String(Number(`1e${exponent}`)) : `10${[...String(exponent)].map((c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c] ?? "⁻").join("")}`);
  const logTicks = (values, narrow = false) => {
    const known = values.filter((x) => x > 0 && Number.isFinite(x)), [low, high] = known.length ? [Math.min(...known), Math.max(...known)] : [1, 10];
    const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high)), apart = Math.max(1, Math.ceil((last - first) / 6));
    const tickvals = [], ticktext = [], span = Math.log10(high / low);
    const digits = span < (narrow ? 1.2 : 2.2) ? [1, 2, 5] : span < 2.2 ? [1, 3] : [1];
    for (let k = first; k <= last; k += apart) {
      for (const digit of digits) {
        tickvals.push(digit * 10 ** k);
        ticktext.push(digit === 1 ? power(k) : k >= -3 && k <= 4 ? String(Number(`${digit}e${k}`)) : `${digit}·${power(k)}`);
      }
    }
    return { type: "log", tickvals, ticktext };
  };

  // A figure is drawn when it comes near, and again whenever the theme changes.
  const figures = [];
  const nearby = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { nearby.unobserve(entry.target); entry.target.figure.draw(); }
  }, { rootMargin: "800px" });
  const watch = (node, draw) => {
    const figure = { node, drawn: false, state: {}, draw: () => { figure.drawn = true; return draw(figure); } };
    node.figure = figure;
    figures.push(figure);
    nearby.observe(node);
    return figure;
  };
  const redraw = () => { for (const figure of figures) if (figure.drawn) figure.draw(); };
  const figure = (node, draw) => {
    const plot = node.querySelector(".plot"), known = watch(node, () => { const [traces, shape] = draw(plot); return Plotly.react(plot, traces, shape, CONFIG); });
    known.plot = plot;
    return known;
  };
  // A legend in the page's own words, which wrap on a narrow screen: `items` are [name, look]; pressing one puts its
  // name into `hidden`, or takes it out again, in every legend of `scope`.
  const legend = (box, items, hidden, changed, scope = document) => {
    for (const [name, drawn] of items) {
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.entry = name;
      button.setAttribute("aria-pressed", "true");
      button.innerHTML = sample(drawn);
      button.append(name);
      button.addEventListener("click", () => {
        if (!hidden.delete(name)) hidden.add(name);
        for (const other of scope.querySelectorAll(".legend button")) other.setAttribute("aria-pressed", String(!hidden.has(other.dataset.entry)));
        changed();
      });
      box.append(button);
    }
  };

  // The losses of some sweeps of a range test by learning rate; a vertical line at one rate.
  const rangeTest = ({ rates, losses, interval }, upright) => {
    const known = losses.flat().filter((l) => l !== null), start = Math.max(...losses.map((sweep) => sweep[0] ?? 0)), shown = known.filter((l) => l < 4 * start);
    const traces = losses.map((sweep, i) => ({ x: rates, y: sweep.map((l) => (l !== null && l < 4 * start ? l : null)), mode: "lines", line: { color: css("--s0"), width: 1.4, dash: DASHES[i % 6] }, hovertemplate: `loss %{y:.4g} at lr %{x:.3g}<extra>sweep ${i + 1}</extra>` }));
    const shapes = upright === null ? [] : [{ type: "line", x0: upright, x1: upright, yref: "paper", y0: 0, y1: 1, line: { color: css("--accent"), width: 1.5, dash: "dot" } }];
    if (interval) shapes.push({ type: "rect", x0: interval[0], x1: interval[1], yref: "paper", y0: 0, y1: 1, fillcolor: faint(css("--accent"), 0.09), line: { width: 0 }, layer: "below" });
    return [traces, layout({ title: "learning rate", ...logTicks(rates) }, { title: "loss of the batch", ...(known.every((l) => l > 0) ? logTicks(shown) : {}) }, { shapes })];
  };

  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.(".copy");
    if (!button) return;
    const block = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(block.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(block);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });

  const contents = document.querySelector("nav details");
  if (matchMedia("(max-width: 62rem)").matches) contents.open = false;
  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const reading = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) {
      for (const link of links.values()) link.removeAttribute("aria-current");
      links.get(entry.target.id)?.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-15% 0px -75% 0px" });
  for (const id of links.keys()) { const target = document.getElementById(id); if (target) reading.observe(target); }

  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  document.getElementById("theme").addEventListener("click", () => {
    const wanted = isDark() ? "light" : "dark", asSystem = system.matches === (wanted === "dark");
    if (asSystem) delete root.dataset.theme; // back to following the system
    else root.dataset.theme = wanted;
    try {
      if (asSystem) localStorage.removeItem("schuss-theme");
      else localStorage.setItem("schuss-theme", wanted);
    } catch { /* without storage the choice lasts until the page is closed */ }
    redraw();
  });
  system.addEventListener("change", () => { if (!root.dataset.theme) redraw(); });
  // On paper everything is drawn, in the light colours, at the paper's width. Its width is set before the browser lays
  // the paper out, as Plotly draws at the width it finds. Not when the medium changes: by then the browser has counted
  // the sheets, and what has moved beyond the last is never printed.
  const onPaper = (printing) => {
    root.classList.toggle("paper", printing);
    for (const known of figures) if (printing || known.drawn) known.draw();
    for (const plot of document.querySelectorAll(".js-plotly-plot")) {
      plot.style.minHeight = "";
      Plotly.Plots.resize(plot);
      if (printing) plot.style.minHeight = `${plot.clientHeight}px`; // as drawn, whatever the paper's letters measure
    }
  };
  addEventListener("beforeprint", () => onPaper(true));
  addEventListener("afterprint", () => onPaper(false));

  return { data, css, look, sample, faint, minus, short, layout, logTicks, watch, figure, redraw, legend, rangeTest, CONFIG };
})();
