// Moves a kernel over a digit and shows the patch below it, the products, their sum and the feature map.
// data: digits [D][H][W], integers from 0 to 255; filters [F][K][K] and biases [F] of a trained layer.
widgets.convolution = (element, { digits, filters, biases }) => {
  const images = digits.map((rows) => rows.map((row) => row.map((pixel) => pixel / 255)));
  const side = filters[0].length, height = images[0].length - side + 1, width = images[0][0].length - side + 1;
  const zoom = 8;
  let row = 0, column = 0; // Of the top left corner of the kernel.

  const patch = (image, i, j) => image.slice(i, i + side).map((pixels) => pixels.slice(j, j + side));
  const products = (pixels, kernel) => pixels.map((values, k) => values.map((value, m) => value * kernel[k][m]));
  const sum = (rows) => rows.flat().reduce((total, value) => total + value, 0);
  const relu = (z) => Math.max(0, z);
  const written = (value, digits) => value.toFixed(digits).replace(/^-(?=0\.0*$)/, "").replace("-", "−");
  const sumsOf = (image, number) => Array.from({ length: height }, (_, i) => Array.from({ length: width }, (_, j) => (
    sum(products(patch(image, i, j), filters[number])) + biases[number])));

  // A table of numbers on the colors of pixels; `high` is the value of the strongest color.
  const cells = () => {
    const fields = Array.from({ length: side }, () => Array.from({ length: side }, () => make("td")));
    const table = make("table", { className: "cells" }, ...fields.map((line) => make("tr", {}, ...line)));
    const show = (rows, high, signed) => rows.forEach((values, k) => values.forEach((value, m) => {
      fields[k][m].textContent = written(value, 2);
      fields[k][m].style.background = pixelColor(value / high, signed);
      fields[k][m].style.color = (signed ? value < -high / 2 : value < high / 2) ? "#fff" : "#000";
    }));
    return [table, show];
  };

  const frame = (canvas, x, y, size) => {
    const context = canvas.getContext("2d");
    context.strokeStyle = "#E69F00";
    context.lineWidth = 3;
    context.strokeRect(x * zoom, y * zoom, size * zoom, size * zoom);
  };

  const draw = () => {
    const image = images[Number(digit.value)], number = filter.value - 1, kernel = filters[number];
    const sums = sumsOf(image, number), map = sums.map((values) => values.map(relu));
    const seen = patch(image, row, column), parts = products(seen, kernel), z = sums[row][column];
    drawPixels(input, image, { scale: zoom });
    frame(input, column, row, side);
    drawPixels(output, map, { scale: zoom, high: Math.max(...map.flat(), 1e-9) });
    frame(output, column, row, 1);
    const largest = Math.max(...kernel.flat().map(Math.abs), 1e-9);
    showPatch(seen, 1, false);
    showKernel(kernel, largest, true);
    showProducts(parts, largest, true);
    Object.assign(element.dataset, { row, column, sum: sum(parts), z, value: relu(z), map: JSON.stringify(map) });
    status.textContent = `Row ${row}, column ${column}: sum of the products ${written(sum(parts), 3)}, bias `
      + `${written(biases[number], 3)}, together z = ${written(z, 3)}; after the ReLU, a = ${written(relu(z), 3)}`;
  };

  const moveTo = (i, j) => {
    row = Math.max(0, Math.min(height - 1, i));
    column = Math.max(0, Math.min(width - 1, j));
    draw();
  };
  const follow = (canvas, size) => canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect(), cell = box.width / (canvas.width / zoom);
    moveTo(Math.floor((event.clientY - box.top) / cell - (size - 1) / 2), Math.floor((event.clientX - box.left) / cell - (size - 1) / 2));
  });

  // At first: the filter with the largest mean of the feature map, at the position where it responds most.
  const first = Math.min(4, images.length - 1);
  const totals = filters.map((_, number) => sum(sumsOf(images[first], number).map((values) => values.map(relu))));
  const strongest = totals.indexOf(Math.max(...totals)), responses = sumsOf(images[first], strongest).flat();
  const place = responses.indexOf(Math.max(...responses));
  [row, column] = [Math.floor(place / width), place % width];
  const digit = choice("Digit", images.map((_, i) => [i, String(i)]), first, draw);
  const filter = slider("Filter", { min: 1, max: filters.length, value: strongest + 1, changed: draw });
  const input = make("canvas", { tabIndex: 0, role: "application" }), output = make("canvas");
  input.setAttribute("aria-label", "Digit with the kernel. Arrow keys move the kernel.");
  const keys = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  input.addEventListener("keydown", (event) => {
    if (!keys[event.key]) return;
    event.preventDefault();
    moveTo(row + keys[event.key][0], column + keys[event.key][1]);
  });
  follow(input, side);
  follow(output, 1);
  const [patchTable, showPatch] = cells(), [kernelTable, showKernel] = cells(), [productTable, showProducts] = cells();
  const status = make("p", { role: "status" });
  const panels = [
    ["digit with the kernel", input], ["pixels under the kernel", patchTable], ["times the weights", kernelTable],
    ["products", productTable], ["feature map", output],
  ].map(([text, content]) => make("figure", {}, content, make("figcaption", {}, text)));
  element.append(
    make("div", { className: "controls" }, digit, filter),
    make("p", { className: "note" }, "Move the pointer over the digit, or use the arrow keys when it is selected."),
    make("div", { className: "panels" }, ...panels),
    status,
  );
  draw();
};
