"use strict";
// What every page draws with: colours from the style sheet, one look for a plot, light and dark, copy, contents.
const schuss = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "triangle-down"];
  const look = (i) => ({ colour: css(`--s${i % 8}`), dash: DASHES[(i + Math.floor(i / 8)) % 6], symbol: SYMBOLS[i % 8] });
  const faint = (hex, alpha) => `rgba(${[1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)).join(",")},${alpha})`;
  const minus = (text) => text.replaceAll("-", "−");
  const short = (x, digits = 4) => x === null || x === undefined ? "–"
    : minus(Math.abs(x) >= 1e6 || (x !== 0 && Math.abs(x) < 1e-4) ? x.toExponential(2) : String(Number(x.toPrecision(digits))));
  const pointer = matchMedia("(pointer: fine)").matches;
  const CONFIG = { displayModeBar: false, responsive: true, showTips: false, doubleClick: "reset" };
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
  // Powers of ten as plain ticks, fewer where there are many, 2 and 5 or 3 between where there are few.
  const logTicks = (values) => {
    const known = values.filter((x) => x > 0 && Number.isFinite(x));
    if (!known.length) return { type: "log" };
    const [low, high] = [Math.min(...known), Math.max(...known)];
    const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high)), apart = Math.max(1, Math.ceil((last - first) / 6));
    const digits = Math.log10(high / low) < 1.2 ? [1, 2, 5] : Math.log10(high / low) < 2.2 ? [1, 3] : [1];
    const tickvals = [], ticktext = [];
    for (let k = first; k <= last; k += apart) for (const digit of digits) {
      tickvals.push(digit * 10 ** k);
      ticktext.push(k >= -3 && k <= 5 ? minus(String(Number(`${digit}e${k}`))) : `${digit === 1 ? "" : `${digit}·`}10${[...String(k)].map((c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c] ?? "⁻").join("")}`);
    }
    return { type: "log", tickvals, ticktext };
  };

  // A figure is drawn when it comes near, and again whenever the theme changes.
  const figures = [];
  const figure = (node, draw) => {
    const plot = node.querySelector(".plot"), known = { node, plot, drawn: false };
    known.draw = () => { known.drawn = true; const [traces, shape] = draw(plot); return Plotly.react(plot, traces, shape, CONFIG); };
    figures.push(known);
    new IntersectionObserver((entries, watcher) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      watcher.disconnect();
      known.draw();
    }, { rootMargin: "600px" }).observe(node);
    return known;
  };
  const redraw = () => { for (const known of figures) if (known.drawn) known.draw(); };

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
  const onPaper = (printing) => {
    root.classList.toggle("paper", printing);
    for (const known of figures) if (printing || known.drawn) known.draw();
    for (const plot of document.querySelectorAll(".js-plotly-plot")) Plotly.Plots.resize(plot);
  };
  matchMedia("print").addEventListener("change", (event) => onPaper(event.matches));
  addEventListener("beforeprint", () => onPaper(true));
  addEventListener("afterprint", () => onPaper(false));

  return { data, css, look, faint, short, layout, axis, logTicks, figure, isDark, CONFIG };
})();
