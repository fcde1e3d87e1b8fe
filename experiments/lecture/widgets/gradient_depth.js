// Plots the gradient norm of each layer on a log scale and shows its value at one layer as text.
// data: seeds; after, in steps; activations [name, label, color][]; inits [name, label][]; norms: "ACTIVATION INIT WHEN"
// (start or after) -> {mean, low, high, ratio}, each [layers], layer 1 first, over the seeds. `ratio` is relative to the
// last layer; null is a number that is not finite.
widgets.gradient_depth = (element, { seeds, after, activations, inits, norms }) => {
  const shape = (tag, attributes, ...children) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
    made.append(...children);
    return made;
  };
  const power = (exponent) => `10${String(exponent).replace(/[-0-9]/g, (c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)])}`;
  const written = (value) => {
    if (value === null) return "not finite";
    if (value === 0) return "0";
    if (value >= 0.01 && value < 1000) return value < 100 ? String(Number(value.toPrecision(2))) : value.toFixed(0);
    const [digits, exponent] = value.toExponential(1).split("e");
    return `${digits}·${power(Number(exponent))}`;
  };

  // The axes are the same for all choices.
  const layers = norms[Object.keys(norms)[0]].mean.length;
  const drawable = Object.values(norms).flatMap(({ low, high }) => [...low, ...high]).filter((value) => value > 0);
  const lowest = Math.floor(Math.log10(Math.min(...drawable))), highest = Math.ceil(Math.log10(Math.max(...drawable)));
  const height = 340, left = 56, top = 32, bottom = height - 44;
  const y = (value) => bottom - (bottom - top) * (Math.log10(value) - lowest) / (highest - lowest);

  let drawnWidth;
  const draw = () => {
    drawnWidth = plot.clientWidth;
    const width = Math.max(260, drawnWidth), right = width - 14;
    const x = (layer) => left + (right - left) * (layer - 1) / (layers - 1);
    const points = (values) => values.map((value, i) => [x(i + 1), value]).filter(([, value]) => value > 0)
      .map(([place, value]) => `${place.toFixed(1)},${y(value).toFixed(1)}`);
    const svg = shape("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", fill: "currentColor", "font-size": 14 });
    const every = Math.ceil((highest - lowest) / 8);
    for (let exponent = highest; exponent >= lowest; exponent -= every) {
      const line = y(10 ** exponent);
      svg.append(shape("path", { d: `M${left} ${line}H${right}`, stroke: "currentColor", "stroke-opacity": 0.2 }),
        shape("text", { x: left - 6, y: line + 5, "text-anchor": "end" }, power(exponent)));
    }
    for (const tick of new Set([0, 1, 2, 3, 4].map((i) => Math.round(1 + (layers - 1) * i / 4)))) {
      svg.append(shape("text", { x: x(tick), y: bottom + 18, "text-anchor": "middle" }, String(tick)));
    }
    svg.append(shape("text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, "layer"),
      shape("text", { x: 4, y: 16 }, "norm of the gradient (log scale)"));

    const at = layer.value, chosen = norms[`${activation.value} ${init.value} ${when.value}`];
    const last = ([name]) => name === activation.value;  // The chosen curve is drawn on top of the others.
    for (const [name, , color] of [...activations].sort((a, b) => last(a) - last(b))) {
      const { mean, low, high } = norms[`${name} ${init.value} ${when.value}`], thick = name === activation.value;
      if (thick) svg.append(shape("polygon", { points: [...points(high), ...points(low).reverse()].join(" "), fill: color, "fill-opacity": 0.25 }));
      svg.append(shape("polyline", { points: points(mean).join(" "), fill: "none", stroke: color,
        "stroke-width": thick ? 4 : 1.5, "data-activation": name }));
    }
    svg.append(shape("path", { d: `M${x(at)} ${top}V${bottom}`, stroke: "currentColor", "stroke-dasharray": "4 3" }));
    if (chosen.mean[at - 1] > 0) {
      svg.append(shape("circle", { cx: x(at), cy: y(chosen.mean[at - 1]), r: 6, stroke: "currentColor", "stroke-width": 2, fill: "none" }));
    }

    const name = (list, key) => list.find(([each]) => each === key)[1];
    const title = `${name(activations, activation.value)}, ${name(inits, init.value)} initialization, ${name(times, when.value)}`;
    svg.setAttribute("aria-label", `Norm of the gradient by layer on a log scale. Thick line: ${title}.`);
    plot.replaceChildren(svg);
    const [mean, low, high, ratio] = ["mean", "low", "high", "ratio"].map((each) => chosen[each][at - 1]);
    const factor = at < layers && ratio > 0 ? ratio ** (1 / (layers - at)) : null;
    Object.assign(element.dataset, { title, layer: at, norm: mean, low, high, ratio, factor });
    const range = seeds > 1 ? ` (mean over ${seeds} seeds; from ${written(low)} to ${written(high)})` : "";
    shown.textContent = `${title}: the gradient norm of layer ${at} is ${written(mean)}${range}`
      + (at === layers ? "." : `, ${written(ratio)} times that of layer ${layers}.`)
      + (factor === null ? "" : ` On the way from layer ${layers}, each layer multiplies it by ${Number(factor.toPrecision(3))} on average.`);
  };

  const times = [["start", "before training"], ["after", `after ${after} steps`]];
  const activation = choice("Activation function", activations, "sigmoid", draw);
  const init = choice("Initialization", inits, "glorot", draw);
  const when = choice("Measured", times, "start", draw);
  const layer = slider("Layer", { min: 1, max: layers, value: 1, changed: draw });
  const plot = make("div"), shown = make("p", { role: "status" });
  const legend = activations.map(([, label, color]) => {
    const line = shape("svg", { width: 24, height: 10, "aria-hidden": "true" }, shape("path", { d: "M0 5H24", stroke: color, "stroke-width": 3 }));
    return make("span", {}, line, ` ${label}`);
  });
  element.append(
    make("div", { className: "controls" }, activation, init, when, layer),
    plot,
    make("div", { className: "controls" }, ...legend),
    shown,
  );
  draw();
  new ResizeObserver(() => {
    if (plot.clientWidth !== drawnWidth) draw();
  }).observe(plot);
};
