// Shifts a digit and compares its feature maps before and after, with and without pooling.
// data: digits [D][H][W] and filters [F][K][K], numbers.
widgets.pooling = (element, { digits, filters }) => {
  // "SAME" convolution and ReLU, as in `features` of pooling.py: [H][W], [K][K] -> [H][W].
  const convolved = (image, filter) => {
    const half = (filter.length - 1) / 2;
    return image.map((row, i) => row.map((_, j) => {
      let sum = 0;
      filter.forEach((weights, k) => weights.forEach((weight, l) => {
        sum += weight * (image[i + k - half]?.[j + l - half] ?? 0);
      }));
      return Math.max(0, sum);
    }));
  };
  const shifted = (image, down, right) => image.map((row, i) => row.map((_, j) => image[i - down]?.[j - right] ?? 0));
  const pooled = (map, window, kind) => {
    const size = Math.floor(map.length / window);
    return Array.from({ length: size }, (_, m) => Array.from({ length: size }, (_, n) => {
      const values = [];
      for (let k = 0; k < window; k++) for (let l = 0; l < window; l++) values.push(map[m * window + k][n * window + l]);
      return kind === "maximum" ? Math.max(...values) : values.reduce((sum, value) => sum + value, 0) / values.length;
    }));
  };

  const draw = () => {
    const [kind, side] = pooling.value.split(" ");
    const pool = (map) => (kind === "none" ? map : pooled(map, Number(side), kind));
    const before = digits[Number(digit.value)], after = shifted(before, down.value, right.value);
    const maps = filters.map((filter) => [pool(convolved(before, filter)), pool(convolved(after, filter))]);
    let difference = 0, norm = 0;
    for (const [old, now] of maps) {
      old.forEach((row, i) => row.forEach((value, j) => { difference += (now[i][j] - value) ** 2; norm += value ** 2; }));
    }
    const [old, now] = maps[Number(filter.value) - 1];
    const scale = (rows) => 180 / rows.length, high = Math.max(...old.flat(), 1e-9);
    drawPixels(canvases[0], after, { scale: 5 });
    drawPixels(canvases[1], old, { scale: scale(old), high });
    drawPixels(canvases[2], now, { scale: scale(now), high });
    drawPixels(canvases[3], now.map((row, i) => row.map((v, j) => v - old[i][j])), { scale: scale(now), high, signed: true });
    const change = Math.sqrt(difference / norm);
    element.dataset.change = change;
    shown.textContent = `Relative change of all ${filters.length} maps: ${(100 * change).toFixed(1)} %`;
  };

  const digit = choice("Digit", digits.map((_, i) => [i, String(i)]), 0, draw);
  const filter = slider("Filter", { min: 1, max: filters.length, value: 1, changed: draw });
  const right = slider("Shift right", { min: -4, max: 4, value: 1, changed: draw });
  const down = slider("Shift down", { min: -4, max: 4, value: 0, changed: draw });
  const kinds = [["none", "no pooling"], ["average 2", "average of 2x2"], ["average 4", "average of 4x4"],
    ["maximum 2", "maximum of 2x2"], ["maximum 4", "maximum of 4x4"]];
  const pooling = choice("Pooling", kinds, "maximum 4", draw);
  const titles = ["shifted digit", "features before", "features after", "difference"];
  const canvases = titles.map(() => make("canvas"));
  const shown = make("p", { role: "status" });
  element.append(
    make("div", { className: "controls" }, digit, filter, right, down, pooling),
    make("div", { className: "panels" }, ...titles.map((title, i) => make("figure", {}, canvases[i], make("figcaption", {}, title)))),
    shown,
  );
  draw();
};
