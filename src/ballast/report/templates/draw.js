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

  // What another choice hides is drawn when it is chosen.
  const visible = (id) => document.getElementById(id).offsetParent !== null;

  const draw = () => {
    const style = getComputedStyle(document.body);
    const drawings = [...specs].filter(([id]) => visible(id)).map(([id, text]) => {
      const spec = resolve(JSON.parse(text), style);
      return Plotly.react(id, spec.data, spec.layout, { displayModeBar: false, responsive: true });
    });
    Promise.all(drawings).then(() => { document.body.dataset.drawn = String(drawings.length); });
  };

  for (const select of document.querySelectorAll("select[data-chooses]")) {
    const choices = [...document.querySelectorAll("[data-choice]")].filter((e) => e.dataset.choice === select.dataset.chooses);
    const choose = () => choices.forEach((choice, index) => { choice.hidden = index !== select.selectedIndex; });
    select.addEventListener("change", () => { choose(); draw(); });
    choose();
  }
  follow.addEventListener("change", draw);
  window.addEventListener("beforeprint", () => { document.documentElement.dataset.theme = "light"; draw(); });
  window.addEventListener("afterprint", () => { delete document.documentElement.dataset.theme; draw(); });
  draw();
})();
