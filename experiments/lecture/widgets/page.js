"use strict";
// The script of the lecture page: the guesses before figures, and the start of the widgets.
// Each other file of this folder defines widgets.NAME = (element, data) => {...}.
const widgets = {};

// Creates an element; `attributes` are properties of the element, `children` are elements or text.
function make(tag, attributes = {}, ...children) {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children);
  return element;
}

// A labeled slider; calls `changed` with the number. Returns the label element, whose `value` property is the number.
function slider(text, { min, max, step = 1, value, format = String, changed }) {
  const input = make("input", { type: "range", min, max, step, value });
  const shown = make("output", {}, format(value));
  const label = make("label", {}, text, input, shown);
  Object.defineProperty(label, "value", { get: () => Number(input.value) });
  input.addEventListener("input", () => {
    shown.textContent = format(label.value);
    changed(label.value);
  });
  return label;
}

// A labeled choice among `options`, [value, text] each; calls `changed` with the value.
function choice(text, options, value, changed) {
  const select = make("select", {}, ...options.map(([key, name]) => make("option", { value: key }, name)));
  select.value = value;
  select.addEventListener("change", () => changed(select.value));
  const label = make("label", {}, text, select);
  Object.defineProperty(label, "value", { get: () => select.value });
  return label;
}

// The CSS color of a number: black 0, white 1; if `signed`, blue -1, white 0, red 1. Other numbers are clipped.
function pixelColor(value, signed) {
  const share = Math.max(-1, Math.min(1, value));
  const rest = Math.round(255 * (1 - Math.abs(share)));
  const grey = Math.round(255 * Math.max(0, share));
  if (!signed) return `rgb(${grey},${grey},${grey})`;
  return share < 0 ? `rgb(${rest},${rest},255)` : `rgb(255,${rest},${rest})`;
}

// Draws rows of numbers as squares of `scale` canvas pixels; numbers are divided by `high` for `pixelColor`.
function drawPixels(canvas, rows, { scale, high = 1, signed = false }) {
  canvas.width = rows[0].length * scale;
  canvas.height = rows.length * scale;
  const context = canvas.getContext("2d");
  rows.forEach((row, y) => row.forEach((value, x) => {
    context.fillStyle = pixelColor(value / high, signed);
    context.fillRect(x * scale, y * scale, scale, scale);
  }));
}

const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;

// exp(z / T), normalized to the sum 1. The largest power is 1, so nothing overflows.
function softmax(logits, temperature = 1) {
  const largest = Math.max(...logits), powers = logits.map((z) => Math.exp((z - largest) / temperature));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}

// A horizontal bar for each class. `show(shares, names)` sets the probabilities and, if given, the names of the classes.
function bars(count) {
  const rows = Array.from({ length: count }, (_, k) => [make("span", {}, String(k)), make("span", { className: "bar" }), make("span", { className: "n" })]);
  const element = make("div", { className: "bars" }, ...rows.flatMap(([name, bar, text]) => [name, make("span", {}, bar), text]));
  element.show = (shares, names) => rows.forEach(([name, bar, text], k) => {
    if (names) name.textContent = names[k];
    bar.style.width = `${100 * shares[k]}%`;
    text.textContent = percent(shares[k]);
  });
  return element;
}

function startGuess(form) {
  const input = form.querySelector("input"), shown = form.querySelector("output"), truth = form.querySelector(".truth");
  const measured = Number(form.dataset.value), unit = form.dataset.unit;
  const written = (number) => `${Number(number.toPrecision(3))} ${unit}`.trim();
  const figure = form.parentElement.querySelector("figure"), section = form.closest("section");
  // A figure without a question could give the answer away, too.
  const results = section.querySelectorAll(".measured, .shown:not(:has(form))");
  const open = (element) => element.querySelector("form.guess:not([data-done])") !== null;
  form.hidden = false;
  const hide = (hidden) => results.forEach((each) => { each.hidden = hidden; });
  figure.hidden = true;
  hide(true);
  shown.textContent = written(Number(input.value));
  input.addEventListener("input", () => { shown.textContent = written(Number(input.value)); });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    truth.textContent = `Your guess: ${written(Number(input.value))}. Result: ${written(measured)}.`;
    input.disabled = true;
    form.querySelector("button").hidden = true;
    form.dataset.done = "yes";
    figure.hidden = open(form.parentElement);
    hide(open(section));
  });
}

document.addEventListener("DOMContentLoaded", () => {
  const guesses = document.querySelectorAll("form.guess");
  guesses.forEach(startGuess);
  if (guesses.length) {
    const all = make("button", { type: "button", id: "show-all" }, "Show all results without guessing");
    all.addEventListener("click", () => {
      guesses.forEach((form) => { form.dataset.done = "yes"; form.hidden = true; });
      document.querySelectorAll(".shown, .shown > figure, .measured").forEach((element) => { element.hidden = false; });
      all.remove();
    });
    document.querySelector("nav").append(make("p", {}, all));
  }
  const data = JSON.parse(document.getElementById("widget-data").textContent);
  for (const element of document.querySelectorAll(".widget")) {
    element.replaceChildren();
    widgets[element.dataset.widget](element, data[element.dataset.widget]);
  }
});
