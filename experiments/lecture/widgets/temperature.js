// Softmax of a test digit's logits at any temperature, with the entropy of the probabilities.
// data: digits [N][28][28] from 0 to 1, labels [N] and logits [N][10], from the least to the most certain prediction.
widgets.temperature = (element, { digits, labels, logits }) => {
  const draw = () => {
    const index = Number(digit.value), T = 10 ** temperature.value;
    const shares = softmax(logits[index], T);
    const entropy = shares.reduce((sum, p) => (p > 0 ? sum - p * Math.log(p) : sum), 0);
    const best = shares.indexOf(Math.max(...shares)), largest = Math.log(shares.length);
    drawPixels(canvas, digits[index], { scale: 5 });
    caption.textContent = `true class: ${labels[index]}`;
    chart.show(shares, logits[index].map((z, k) => `${k}: z = ${z.toFixed(1)}`));
    shown.textContent = `Entropy: ${entropy.toFixed(2)} nats; the largest possible is ${largest.toFixed(2)}. `
      + `Prediction: ${best}, with the probability ${percent(shares[best])}.`;
    Object.assign(element.dataset, { temperature: T, entropy, probabilities: JSON.stringify(shares) });
  };

  const digit = choice("Digit", labels.map((label, i) => [i, `${i + 1}: a handwritten ${label}`]), 0, draw);
  const format = (exponent) => String(Number((10 ** exponent).toPrecision(2)));
  const temperature = slider("Temperature", { min: -1, max: 2, step: 0.02, value: 0, format, changed: draw });
  const canvas = make("canvas"), caption = make("figcaption"), chart = bars(logits[0].length);
  const shown = make("p", { role: "status" });
  element.append(
    make("div", { className: "controls" }, digit, temperature),
    make("div", { className: "panels" }, make("figure", {}, canvas, caption), chart),
    shown,
  );
  draw();
};
