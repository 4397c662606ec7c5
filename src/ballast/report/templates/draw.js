"use strict";
// Draws every figure of the page with the colours that the style sheet gives them now.
(() => {
  const follow = window.matchMedia("(prefers-color-scheme: dark)");
  const specs = new Map();
  for (const script of document.querySelectorAll("script[data-figure]")) {
    specs.set(script.dataset.figure, script.textContent);
  }

  const resolve = (value, style) => {
    if (typeof value === "string") {
      const name = /^var\((--[\w-]+)\)$/.exec(value);
      return name ? style.getPropertyValue(name[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((item) => resolve(item, style));
    if (value !== null && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, resolve(item, style)]));
    }
    return value;
  };

  const frame = (style) => {
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = {
      gridcolor: colour("--rule"), linecolor: colour("--rule"), zerolinecolor: colour("--rule"), tickcolor: colour("--rule"),
      tickfont: { color: colour("--muted") }, title: { font: { color: colour("--muted"), size: 13 }, standoff: 10 },
    };
    return {
      layout: {
        font: { family: style.fontFamily, size: 12, color: colour("--text") },
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        hoverlabel: { bgcolor: colour("--panel"), bordercolor: colour("--rule"), font: { color: colour("--text") } },
        xaxis: axis, yaxis: axis,
      },
    };
  };

  const draw = () => {
    const style = getComputedStyle(document.body);
    const drawings = [...specs].map(([id, text]) => {
      const spec = resolve(JSON.parse(text), style);
      spec.layout.template = frame(style);
      return Plotly.react(id, spec.data, spec.layout, { displayModeBar: false, responsive: true });
    });
    Promise.all(drawings).then(() => { document.body.dataset.drawn = String(drawings.length); });
  };

  follow.addEventListener("change", draw);
  window.addEventListener("beforeprint", () => { document.documentElement.dataset.theme = "light"; draw(); });
  window.addEventListener("afterprint", () => { delete document.documentElement.dataset.theme; draw(); });
  draw();
})();
