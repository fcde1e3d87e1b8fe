// Classifies a drawn digit with the trained network, and shows the feature maps of its convolutions.
// data: digits [10][28][28] from 0 to 255; layers, each with a name, a shape ([K, K, in, out] of a convolution, [in, out]
// of a dense layer) and its kernel and bias as base64 of float32 (see `folded` of abstraction.py); accuracy from 0 to 1.
widgets.draw = (element, { digits, layers, accuracy }) => {
  const SIDE = 28, BOX = 20, MIDDLE = 14, SCALE = 10;
  const floats = (text) => new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  const network = layers.map(({ name, shape, kernel, bias }) => ({ name, shape, kernel: floats(kernel), bias: floats(bias) }));
  const clamped = (value, low, high) => Math.max(low, Math.min(high, value));

  // Convolution with zero padding to the same size: [side, side, in] -> [side, side, out], both flat in row-major order.
  const convolved = (input, side, { shape: [window, , ins, outs], kernel, bias }) => {
    const output = new Float64Array(side * side * outs), half = (window - 1) / 2;
    for (let y = 0; y < side; y++) for (let x = 0; x < side; x++) {
      const to = (y * side + x) * outs;
      output.set(bias, to);
      for (let i = Math.max(0, half - y); i < Math.min(window, side + half - y); i++) {
        for (let j = Math.max(0, half - x); j < Math.min(window, side + half - x); j++) {
          const from = ((y + i - half) * side + x + j - half) * ins;
          for (let c = 0; c < ins; c++) {
            const value = input[from + c], row = ((i * window + j) * ins + c) * outs;
            if (value === 0) continue;
            for (let o = 0; o < outs; o++) output[to + o] += value * kernel[row + o];
          }
        }
      }
    }
    return output;
  };
  // Max pooling of 2x2: [side, side, channels] -> [half, half, channels]; a remaining row and column are dropped.
  const pooled = (input, side, channels) => {
    const half = Math.floor(side / 2), output = new Float64Array(half * half * channels);
    for (let y = 0; y < half; y++) for (let x = 0; x < half; x++) for (let c = 0; c < channels; c++) {
      const at = (i, j) => input[((2 * y + i) * side + 2 * x + j) * channels + c];
      output[(y * half + x) * channels + c] = Math.max(at(0, 0), at(0, 1), at(1, 0), at(1, 1));
    }
    return output;
  };
  // The logits of a flat image, and the feature maps of each convolution before pooling.
  const classified = (image) => {
    let values = image, side = SIDE;
    const maps = [];
    for (const layer of network) {
      if (layer.shape.length === 4) {
        const channels = layer.shape[3], map = convolved(values, side, layer).map((z) => Math.max(0, z));
        maps.push({ name: layer.name, values: map, side, channels });
        values = pooled(map, side, channels);
        side = Math.floor(side / 2);
      } else {  // A dense layer is a convolution of one pixel.
        values = convolved(values, 1, { ...layer, shape: [1, 1, ...layer.shape] });
        if (layer !== network.at(-1)) values = values.map((z) => Math.max(0, z));
      }
    }
    return { logits: [...values], maps };
  };

  // The drawing as in MNIST: its longer side is scaled to 20 pixels, and its center of mass moved to pixel (14, 14).
  const centered = () => {
    let mass = 0, massY = 0, massX = 0, top = SIDE, left = SIDE, bottom = 0, right = 0;
    pixels.forEach((value, k) => {
      if (value === 0) return;
      const y = Math.floor(k / SIDE), x = k % SIDE;
      mass += value; massY += value * y; massX += value * x;
      top = Math.min(top, y); bottom = Math.max(bottom, y); left = Math.min(left, x); right = Math.max(right, x);
    });
    if (mass === 0) return pixels.slice();
    const scale = BOX / (Math.max(bottom - top, right - left) + 1);
    const y0 = Math.round(massY / mass), x0 = Math.round(massX / mass);  // Whole pixels: an unscaled digit stays sharp.
    return pixels.map((_, k) => interpolated(y0 + (Math.floor(k / SIDE) - MIDDLE) / scale, x0 + (k % SIDE - MIDDLE) / scale));
  };
  const interpolated = (y, x) => {  // Bilinear; zero outside.
    const top = Math.floor(y), left = Math.floor(x), down = y - top, right = x - left;
    const at = (i, j) => (i < 0 || i >= SIDE || j < 0 || j >= SIDE ? 0 : pixels[i * SIDE + j]);
    return (1 - down) * ((1 - right) * at(top, left) + right * at(top, left + 1))
      + down * ((1 - right) * at(top + 1, left) + right * at(top + 1, left + 1));
  };

  // Draws or erases a line from pixel (x0, y0) to (x1, y1), about two pixels wide with soft edges.
  const paint = (x0, y0, x1, y1) => {
    const length = (x1 - x0) ** 2 + (y1 - y0) ** 2;
    for (let y = 0; y < SIDE; y++) for (let x = 0; x < SIDE; x++) {
      const along = length && clamped(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length, 0, 1);
      const ink = clamped(1.6 - Math.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0)), 0, 1);
      const old = pixels[y * SIDE + x];
      pixels[y * SIDE + x] = tool.value === "pen" ? Math.max(old, ink) : Math.min(old, 1 - ink);
    }
  };

  const rows = (image) => Array.from({ length: SIDE }, (_, y) => [...image.slice(y * SIDE, (y + 1) * SIDE)]);
  const showCanvas = () => {
    drawPixels(canvas, rows(pixels), { scale: SCALE });
    if (document.activeElement !== canvas || pointing) return;
    const context = canvas.getContext("2d");
    context.strokeStyle = "#E69F00";
    context.lineWidth = 2;
    context.strokeRect(cursor.x * SCALE, cursor.y * SCALE, SCALE, SCALE);
  };
  // All maps of a layer in rows of eight, one canvas pixel per value; white is the layer's largest value.
  const showMaps = (target, { values, side, channels }) => {
    const pitch = side + 1, columns = Math.min(8, channels);
    target.width = columns * pitch - 1;
    target.height = Math.ceil(channels / columns) * pitch - 1;
    const image = new ImageData(target.width, target.height);
    const high = values.reduce((largest, value) => Math.max(largest, value), 1e-9);
    values.forEach((value, k) => {
      const map = k % channels, place = (k - map) / channels;
      const y = Math.floor(map / columns) * pitch + Math.floor(place / side), x = (map % columns) * pitch + place % side;
      const grey = Math.round(255 * value / high);
      image.data.set([grey, grey, grey, 255], 4 * (y * target.width + x));
    });
    target.getContext("2d").putImageData(image, 0, 0);
  };
  const draw = () => {
    const image = centered(), { logits, maps } = classified(image), shares = softmax(logits);
    const best = shares.indexOf(Math.max(...shares));
    showCanvas();
    drawPixels(input, rows(image), { scale: 5 });
    maps.forEach((map, i) => showMaps(mapCanvases[i], map));
    chart.show(shares);
    const empty = pixels.every((value) => value === 0) ? "The canvas is empty, but softmax still chooses. " : "";
    shown.textContent = `${empty}Prediction: ${best}, with the probability ${percent(shares[best])}.`;
    element.dataset.logits = JSON.stringify(logits);
  };

  const pixels = new Float64Array(SIDE * SIDE), cursor = { x: MIDDLE, y: MIDDLE };
  const start = () => {
    if (from.value === "empty") pixels.fill(0);
    else pixels.set(digits[Number(from.value)].flat().map((value) => value / 255));
    draw();
  };
  const from = choice("Start from", [["empty", "an empty canvas"], ...digits.map((_, i) => [i, `test digit ${i}`])], 3, start);
  const tool = choice("Tool", [["pen", "pen"], ["eraser", "eraser"]], "pen", () => {});
  const clear = make("button", { type: "button" }, "Clear");
  clear.addEventListener("click", () => {
    from.querySelector("select").value = "empty";
    start();
  });

  const canvas = make("canvas", { tabIndex: 0, role: "application" });
  canvas.ariaLabel = "Drawing of 28 by 28 pixels. Arrow keys move the cursor, space paints, shift with an arrow key draws a line.";
  const pixelOf = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left - canvas.clientLeft) / canvas.clientWidth * SIDE - 0.5,
      (event.clientY - box.top - canvas.clientTop) / canvas.clientHeight * SIDE - 0.5];
  };
  let last = [0, 0], pointing = false;  // The cursor is hidden while the pointer draws.
  const paintTo = (event, begin) => {
    const to = pixelOf(event);
    paint(...begin, ...to);
    last = to;
    [cursor.x, cursor.y] = to.map((place) => clamped(Math.round(place), 0, SIDE - 1));
    draw();
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointing = true;
    paintTo(event, pixelOf(event));
  });
  canvas.addEventListener("pointermove", (event) => {
    if (canvas.hasPointerCapture(event.pointerId)) paintTo(event, last);
  });
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[event.key];
    if (!move && event.key !== " ") return;
    event.preventDefault();
    pointing = false;
    const { x, y } = cursor;
    if (move) {
      cursor.x = clamped(x + move[0], 0, SIDE - 1);
      cursor.y = clamped(y + move[1], 0, SIDE - 1);
    }
    if (!move || event.shiftKey) {
      paint(x, y, cursor.x, cursor.y);
      draw();
    } else showCanvas();
  });
  canvas.addEventListener("focus", showCanvas);
  canvas.addEventListener("blur", () => {
    pointing = false;
    showCanvas();
  });

  const input = make("canvas"), chart = bars(network.at(-1).bias.length), shown = make("p", { role: "status" });
  const convolutions = network.filter(({ shape }) => shape.length === 4);
  const mapCanvases = convolutions.map(() => make("canvas", { className: "maps" }));
  const figure = (content, text) => make("figure", {}, content, make("figcaption", {}, text));
  element.append(
    make("div", { className: "controls" }, from, tool, clear),
    make("div", { className: "panels" },
      figure(canvas, "Draw with the pointer. Or: arrow keys move, space paints, shift and an arrow key draw a line."),
      figure(input, "centered and scaled"), chart),
    shown,
    make("div", { className: "panels" }, ...convolutions.map(({ name, shape }, i) =>
      figure(mapCanvases[i], `${name}: ${shape[3]} feature maps of ${SIDE >> i}x${SIDE >> i} values, before pooling`))),
    make("p", { className: "note" }, `White is the largest value of the layer. The network classifies ${percent(accuracy)} of the test digits correctly.`),
  );
  start();
};
