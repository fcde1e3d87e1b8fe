// Trains a small network on points in the plane, step by step, by gradient descent with written-out backpropagation.
// data: data sets by name, each { label, x [N][2], y [N] with the classes 0 and 1 }.
widgets.playground = (element, data) => {
  const activations = {
    tanh: { label: "tanh", value: Math.tanh, slope: (z, a) => 1 - a * a },
    sigmoid: { label: "logistic function", value: (z) => 1 / (1 + Math.exp(-z)), slope: (z, a) => a * (1 - a) },
    relu: { label: "ReLU", value: (z) => Math.max(0, z), slope: (z) => (z > 0 ? 1 : 0) },
    rectified_tanh: {
      label: "rectified tanh", value: (z) => Math.max(0, Math.tanh(z)), slope: (z, a) => (z > 0 ? 1 - a * a : 0),
    },
  };
  const SIDE = 320, CELLS = 160, STEPS_PER_FRAME = 2;
  const COLORS = ["#0072B2", "#D55E00"], LINE = [40, 40, 40], BACKGROUND = [[188, 220, 242], [249, 213, 185]];

  // The logistic function and the cross-entropy of the logit z, for the class y.
  const logistic = (z) => 1 / (1 + Math.exp(-z));
  const crossEntropy = (z, y) => Math.max(z, 0) - y * z + Math.log1p(Math.exp(-Math.abs(z)));

  // Weights by Glorot's rule from a small generator of random numbers (mulberry32), biases 0.
  // Without hidden units, W2 acts on the input.
  function initial(hidden, seed) {
    let state = seed * 7919 + 1;
    const uniform = (fanIn, fanOut) => {
      state = (state + 0x6D2B79F5) | 0;
      let bits = Math.imul(state ^ (state >>> 15), state | 1);
      bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
      return Math.sqrt(6 / (fanIn + fanOut)) * (2 * ((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32 - 1);
    };
    const W1 = Array.from({ length: hidden }, () => [uniform(2, hidden), uniform(2, hidden)]);
    const W2 = Array.from({ length: hidden || 2 }, () => uniform(hidden || 2, 1));
    return { W1, b1: W1.map(() => 0), W2, b2: 0 };
  }

  // z1 = W1 x + b1, a1 = sigma(z1), z2 = W2 a1 + b2 for one point x.
  function forward({ W1, b1, W2, b2 }, sigma, x) {
    const z1 = W1.map((w, i) => w[0] * x[0] + w[1] * x[1] + b1[i]);
    const a1 = W1.length ? z1.map(sigma.value) : x;
    return { z1, a1, z2: a1.reduce((sum, a, i) => sum + W2[i] * a, b2) };
  }

  // The mean cross-entropy over the points, its gradients, and the fraction of points with the right class.
  function backward(params, sigma, { x, y }) {
    const zeros = (values) => values.map(() => 0);
    const gradients = { W1: params.W1.map(zeros), b1: zeros(params.b1), W2: zeros(params.W2), b2: 0 };
    let loss = 0, right = 0;
    x.forEach((point, n) => {
      const { z1, a1, z2 } = forward(params, sigma, point);
      loss += crossEntropy(z2, y[n]) / x.length;
      right += (z2 > 0) === (y[n] === 1) ? 1 / x.length : 0;
      const delta2 = (logistic(z2) - y[n]) / x.length;
      gradients.b2 += delta2;
      a1.forEach((a, i) => { gradients.W2[i] += delta2 * a; });
      z1.forEach((z, i) => {
        const delta1 = params.W2[i] * delta2 * sigma.slope(z, a1[i]);
        gradients.b1[i] += delta1;
        gradients.W1[i][0] += delta1 * point[0];
        gradients.W1[i][1] += delta1 * point[1];
      });
    });
    return { gradients, loss, accuracy: right };
  }

  // One step of gradient descent: each weight and bias minus `rate` times its gradient.
  function descended(params, gradients, rate) {
    const less = (value, gradient) =>
      (Array.isArray(value) ? value.map((v, i) => less(v, gradient[i])) : value - rate * gradient);
    return Object.fromEntries(Object.keys(params).map((name) => [name, less(params[name], gradients[name])]));
  }

  let params, step = 0, running = false, nextFrame = 0;
  const points = () => data[dataset.value], sigma = () => activations[activation.value];

  function advance() {
    params = descended(params, backward(params, sigma(), points()).gradients, Number(rate.value));
    step += 1;
  }

  // The square of the plane that is shown: its center and half its side.
  function view() {
    const extremes = (bound) => [0, 1].map((axis) => bound(...points().x.map((point) => point[axis])));
    const low = extremes(Math.min), high = extremes(Math.max);
    const center = [0, 1].map((axis) => (low[axis] + high[axis]) / 2);
    return { center, half: Math.max(high[0] - low[0], high[1] - low[1]) / 2 + 0.3 };
  }

  const pixel = (point, { center, half }) =>
    [1, -1].map((sign, axis) => (SIDE / 2) * (1 + sign * (point[axis] - center[axis]) / half));

  // Colors the background by the prediction; the decision boundary is where its sign changes between pixels.
  function drawRegions(context, { center, half }) {
    const image = grid.getContext("2d").createImageData(CELLS, CELLS), z = new Float64Array(CELLS * CELLS);
    const at = (cell) => half * ((2 * cell + 1) / CELLS - 1);
    for (let i = 0; i < z.length; i++) {
      const column = i % CELLS, row = Math.floor(i / CELLS);
      z[i] = forward(params, sigma(), [center[0] + at(column), center[1] - at(row)]).z2;
      const left = column ? z[i - 1] : z[i], above = row ? z[i - CELLS] : z[i];
      const isBoundary = z[i] > 0 !== left > 0 || z[i] > 0 !== above > 0;
      const share = 2 * logistic(-Math.abs(z[i])), color = BACKGROUND[Number(z[i] > 0)];
      image.data.set(isBoundary ? LINE : color.map((value) => value + share * (255 - value)), 4 * i);
      image.data[4 * i + 3] = 255;
    }
    grid.getContext("2d").putImageData(image, 0, 0);
    context.drawImage(grid, 0, 0, SIDE, SIDE);
  }

  // The lines on which z of a hidden unit is 0.
  function drawLines(context, { center, half }) {
    context.setLineDash([5, 4]);
    context.strokeStyle = "#555";
    context.beginPath();
    params.W1.forEach(([w1, w2], i) => {
      const norm = Math.hypot(w1, w2), z = (w1 * center[0] + w2 * center[1] + params.b1[i]) / norm;
      const foot = [center[0] - z * w1 / norm, center[1] - z * w2 / norm], far = 3 * half;
      for (const [sign, draw] of [[-1, "moveTo"], [1, "lineTo"]]) {
        const [x, y] = [foot[0] - sign * far * w2 / norm, foot[1] + sign * far * w1 / norm];
        context[draw](...pixel([x, y], { center, half }));
      }
    });
    context.stroke();
    context.setLineDash([]);
  }

  function drawPoint(context, [x, y], label) {
    context.fillStyle = COLORS[label];
    context.beginPath();
    if (label) {
      context.moveTo(x, y - 4.5);
      context.lineTo(x + 4, y + 3);
      context.lineTo(x - 4, y + 3);
    } else context.arc(x, y, 3.3, 0, 2 * Math.PI);
    context.fill();
  }

  function draw() {
    const context = canvas.getContext("2d"), shown = view(), { x, y } = points();
    context.setTransform(canvas.width / SIDE, 0, 0, canvas.height / SIDE, 0, 0);
    drawRegions(context, shown);
    drawLines(context, shown);
    x.forEach((point, n) => drawPoint(context, pixel(point, shown), y[n]));
    const { gradients, loss, accuracy } = backward(params, sigma(), points());
    const right = `${(100 * accuracy).toFixed(1)} %`;
    status.textContent = `Step ${step}: cost ${loss.toFixed(4)}, accuracy ${right} of these ${x.length} points`;
    canvas.setAttribute("aria-label", `Decision regions on ${points().label} after ${step} steps, accuracy ${right}`);
    status.setAttribute("aria-live", running ? "off" : "polite"); // Screen readers read the result of a pause.
    start.textContent = running ? "Pause" : "Start";
    Object.assign(element.dataset, { step, loss, accuracy, running });
    Object.assign(element.dataset, { params: JSON.stringify(params), gradients: JSON.stringify(gradients) });
  }

  function reset() {
    params = initial(Number(hidden.value), Number(seed.value));
    step = 0;
    draw();
  }

  function frame() {
    for (let i = 0; i < STEPS_PER_FRAME; i++) advance();
    draw();
    nextFrame = requestAnimationFrame(frame);
  }

  function run(value) {
    running = value;
    cancelAnimationFrame(nextFrame);
    if (running) nextFrame = requestAnimationFrame(frame);
    draw();
  }

  const named = (entries) => Object.entries(entries).map(([name, { label }]) => [name, label]);
  const numbers = (values) => values.map((value) => [value, String(value)]);
  const dataset = choice("Data", named(data), "xor", reset);
  const hidden = choice("Hidden units", numbers([0, 1, 2, 3, 4, 6, 8, 16]), 8, reset);
  const activation = choice("Activation function", named(activations), "tanh", reset);
  const rate = choice("Learning rate", numbers([0.01, 0.03, 0.1, 0.3, 1, 3, 10]), 0.3, draw);
  const seed = choice("Initial weights", numbers([1, 2, 3, 4, 5, 6, 7, 8, 9]), 1, reset);
  const start = make("button", { type: "button", onclick: () => run(!running) });
  const one = make("button", { type: "button", onclick: () => { advance(); run(false); } }, "One step");
  const again = make("button", { type: "button", onclick: () => { run(false); reset(); } }, "Reset");
  const grid = make("canvas", { width: CELLS, height: CELLS });
  const canvas = make("canvas", { width: 2 * SIDE, height: 2 * SIDE, role: "img" });
  canvas.style.width = `${SIDE}px`;
  canvas.style.imageRendering = "auto";
  const status = make("p", { role: "status" });
  const side = make("div", {}, status);
  const mark = (text, label) => make("span", { style: `color: ${COLORS[label]}` }, text);
  const legend = make("p", { className: "note" }, mark("●", 0), " class 0, ", mark("▲", 1), " class 1. Background: "
    + "the prediction, blue for class 0, orange for class 1, paler if less certain; the black line separates them. "
    + "Each dashed line is where z of a hidden unit is 0.");
  side.append(legend);
  side.style.flex = "1 1 14rem";
  element.append(
    make("div", { className: "controls" }, dataset, hidden, activation, rate, seed),
    make("div", { className: "controls" }, start, one, again),
    make("div", { className: "panels" }, canvas, side),
  );
  reset();
};
