"use strict";
{
  const hidden = new Set(), escape = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  const section = document.querySelector("[data-figure='curves']");
  const drawn = schuss.figure(section, () => [
    schuss.data.map(({ name, steps, values }, i) => ({ name, x: steps, y: values, mode: "lines", visible: !hidden.has(name),
      line: { color: schuss.look(i).colour, dash: schuss.look(i).dash, width: 2 }, hovertemplate: `%{y:.4g} at step %{x:.6~g}<extra>${escape(name)}</extra>` })),
    schuss.layout({ title: "finished steps" }, { title: "value", rangemode: "tozero" }),
  ]);
  schuss.legend(section.querySelector(".legend"), schuss.data.map(({ name }, i) => [name, { ...schuss.look(i), symbol: null }]), hidden, () => drawn.draw());
}
