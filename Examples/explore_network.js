// Runs a network that export_graph.py wrote: a list of steps, each with its inputs and its shape.
// Tensors are Float32Arrays in the order (channel, row, column), as in torch.

"use strict";

class Network {
  constructor(description) {
    Object.assign(this, description); // steps, stages, name and more
    const bytes = Uint8Array.from(atob(description.weights), (c) => c.charCodeAt(0));
    this.weights = new Float32Array(bytes.buffer);
    this.values = this.steps.map((step) => new Float32Array(step.shape[0] * step.shape[1] * step.shape[2]));
    this.padded = {}; // scratch memory for images with a border of zeros, by length
  }

  get output() {
    return this.values[this.values.length - 1];
  }

  // The output (C, H, W) for an image (3, H, W) of 0..255. All steps' results stay in `values`.
  run(image) {
    this.values[0].set(image);
    this.steps.forEach((step, number) => {
      if (number === 0) return;
      const out = this.values[number];
      const inputs = step.from.map((k) => this.values[k]);
      const shape = this.steps[step.from[0]].shape;
      this[step.op](step, out, inputs, shape);
      if (step.relu && step.op !== "relu") rectify(out);
    });
    return this.output;
  }

  conv(step, out, [x], [channels, height, width]) {
    const { kernel, stride, padding, dilation } = step;
    const [outChannels, outHeight, outWidth] = step.shape;
    const paddedWidth = width + 2 * padding;
    const plane = (height + 2 * padding) * paddedWidth;
    let source = x;
    if (padding > 0) {
      source = this.padded[channels * plane] ??= new Float32Array(channels * plane);
      source.fill(0);
      for (let c = 0; c < channels; c++) {
        for (let y = 0; y < height; y++) {
          const start = (c * height + y) * width;
          source.set(x.subarray(start, start + width), c * plane + (y + padding) * paddedWidth + padding);
        }
      }
    }
    const size = outHeight * outWidth;
    const taps = kernel * kernel;
    const add = kernel === 3 && stride === 1 ? addConv3 : addConv;
    for (let o = 0, tap = step.weight; o < outChannels; o++) {
      out.fill(this.weights[step.bias + o], o * size, (o + 1) * size);
      for (let c = 0; c < channels; c++, tap += taps) {
        add(out, o * size, outHeight, outWidth, source, c * plane, paddedWidth, this.weights, tap, kernel, stride, dilation);
      }
    }
  }

  // Puts x on every stride-th row and column, and zeros between: the start of a transposed convolution.
  spread(step, out, [x], [channels, height, width]) {
    const [, outHeight, outWidth] = step.shape;
    for (let c = 0, i = 0; c < channels; c++) {
      for (let y = 0; y < height; y++) {
        let to = (c * outHeight + y * step.stride) * outWidth;
        for (let column = 0; column < width; column++, to += step.stride) out[to] = x[i++];
      }
    }
  }

  affine(step, out, [x], [channels, height, width]) {
    const size = height * width;
    for (let c = 0, i = 0; c < channels; c++) {
      const scale = this.weights[step.scale + c];
      const shift = this.weights[step.shift + c];
      for (let k = 0; k < size; k++, i++) out[i] = x[i] * scale + shift;
    }
  }

  pool(step, out, [x], [, , width]) {
    const [channels, outHeight, outWidth] = step.shape;
    const size = step.size;
    for (let row = 0, i = 0; row < channels * outHeight; row++) {
      for (let column = 0; column < outWidth; column++, i++) {
        const start = row * size * width + column * size;
        let largest = -Infinity;
        for (let dy = 0; dy < size; dy++) {
          for (let dx = 0; dx < size; dx++) largest = Math.max(largest, x[start + dy * width + dx]);
        }
        out[i] = largest;
      }
    }
  }

  enlarge(step, out, [x], [, , width]) {
    const [channels, outHeight, outWidth] = step.shape;
    for (let row = 0, i = 0; row < channels * outHeight; row++) {
      const start = Math.floor(row / step.size) * width;
      for (let column = 0; column < outWidth; column++) out[i++] = x[start + Math.floor(column / step.size)];
    }
  }

  relu(step, out, [x]) {
    out.set(x);
    rectify(out);
  }

  slice(step, out, [x], [, height, width]) {
    const start = step.start * height * width;
    out.set(x.subarray(start, start + out.length));
  }

  add(step, out, [x, y]) {
    for (let i = 0; i < out.length; i++) out[i] = x[i] + y[i];
  }

  cat(step, out, inputs) {
    let start = 0;
    for (const x of inputs) {
      out.set(x, start);
      start += x.length;
    }
  }

  // The input pixels from which a path leads to one output pixel: a Uint8Array (H, W) of 0 and 1.
  // It does not depend on the weights: a path may have a weight of zero, or meet a closed ReLU.
  receptiveField(row, column) {
    const reached = this.emptyMaps();
    const [, , width] = this.steps[this.steps.length - 1].shape;
    reached[reached.length - 1][row * width + column] = 1;
    for (let number = this.steps.length - 1; number > 0; number--) {
      const [, height, width] = this.steps[number].shape;
      for (let y = 0, i = 0; y < height; y++) {
        for (let x = 0; x < width; x++, i++) {
          if (!reached[number][i]) continue;
          this.eachSource(number, y, x, (source, index) => (reached[source][index] = 1));
        }
      }
    }
    return reached[0];
  }

  // The output pixels to which a path leads from some input pixel: a Uint8Array (H, W) of 0 and 1.
  coverage() {
    const reached = this.emptyMaps();
    reached[0].fill(1);
    for (let number = 1; number < this.steps.length; number++) {
      const [, height, width] = this.steps[number].shape;
      for (let y = 0, i = 0; y < height; y++) {
        for (let x = 0; x < width; x++, i++) {
          this.eachSource(number, y, x, (source, index) => (reached[number][i] |= reached[source][index]));
        }
      }
    }
    return reached[reached.length - 1];
  }

  emptyMaps() {
    return this.steps.map((step) => new Uint8Array(step.shape[1] * step.shape[2]));
  }

  // Calls visit(number of the input step, pixel) for each pixel that a pixel of a step is made from.
  eachSource(number, y, x, visit) {
    const step = this.steps[number];
    for (const source of step.from) {
      const [, height, width] = this.steps[source].shape;
      if (step.op === "conv") {
        for (let ky = 0; ky < step.kernel; ky++) {
          const row = y * step.stride - step.padding + ky * step.dilation;
          for (let kx = 0; kx < step.kernel; kx++) {
            const column = x * step.stride - step.padding + kx * step.dilation;
            const inside = row >= 0 && row < height && column >= 0 && column < width;
            if (inside) visit(source, row * width + column);
          }
        }
      } else if (step.op === "spread") {
        const row = y / step.stride;
        const column = x / step.stride;
        const onLattice = Number.isInteger(row) && Number.isInteger(column) && row < height && column < width;
        if (onLattice) visit(source, row * width + column);
      } else if (step.op === "pool") {
        for (let dy = 0; dy < step.size; dy++) {
          for (let dx = 0; dx < step.size; dx++) {
            visit(source, (y * step.size + dy) * width + x * step.size + dx);
          }
        }
      } else if (step.op === "enlarge") {
        visit(source, Math.floor(y / step.size) * width + Math.floor(x / step.size));
      } else {
        visit(source, y * width + x); // one pixel at the same place
      }
    }
  }

  // How strongly one output number depends on each input pixel: the absolute gradient, summed over
  // red, green and blue, for the image of the last run: a Float32Array (H, W).
  influence(channel, row, column) {
    const gradients = this.values.map((value) => new Float32Array(value.length));
    const last = this.steps.length - 1;
    const [, outHeight, outWidth] = this.steps[last].shape;
    gradients[last][(channel * outHeight + row) * outWidth + column] = 1;
    for (let number = last; number > 0; number--) {
      const step = this.steps[number];
      const gradient = gradients[number];
      if (step.relu) {
        for (let i = 0; i < gradient.length; i++) if (this.values[number][i] <= 0) gradient[i] = 0;
      }
      this.sendBack(step, gradient, step.from.map((k) => gradients[k]));
    }
    const [, height, width] = this.steps[0].shape;
    const total = new Float32Array(height * width);
    gradients[0].forEach((value, i) => (total[i % total.length] += Math.abs(value)));
    return total;
  }

  // Adds to the gradients of a step's inputs what the gradient of its output says.
  sendBack(step, gradient, inputs) {
    const [channels, outHeight, outWidth] = step.shape;
    const [inChannels, height, width] = this.steps[step.from[0]].shape;
    const [first] = inputs;
    let from = 0;
    for (let c = 0, i = 0; c < channels; c++) {
      for (let y = 0; y < outHeight; y++) {
        for (let x = 0; x < outWidth; x++, i++) {
          const value = gradient[i];
          if (value === 0) continue;
          if (step.op === "conv") {
            this.sendBackConv(step, value, c, y, x, first, inChannels, height, width);
          } else if (step.op === "spread") {
            const row = y / step.stride;
            const column = x / step.stride;
            const onLattice = Number.isInteger(row) && Number.isInteger(column) && row < height && column < width;
            if (onLattice) first[(c * height + row) * width + column] += value;
          } else if (step.op === "pool") {
            const numbers = this.values[step.from[0]];
            let best = -1;
            for (let dy = 0; dy < step.size; dy++) {
              for (let dx = 0; dx < step.size; dx++) {
                const k = (c * height + y * step.size + dy) * width + x * step.size + dx;
                if (best < 0 || numbers[k] > numbers[best]) best = k;
              }
            }
            first[best] += value;
          } else if (step.op === "enlarge") {
            first[(c * height + Math.floor(y / step.size)) * width + Math.floor(x / step.size)] += value;
          } else if (step.op === "affine") {
            first[i] += value * this.weights[step.scale + c];
          } else if (step.op === "slice") {
            first[step.start * height * width + i] += value;
          } else if (step.op === "cat") {
            while (i - from >= inputs[0].length) from += inputs.shift().length;
            inputs[0][i - from] += value;
          } else {
            for (const input of inputs) input[i] += value; // add, relu
          }
        }
      }
    }
  }

  sendBackConv(step, value, o, y, x, input, channels, height, width) {
    const { kernel, stride, padding, dilation } = step;
    for (let ky = 0; ky < kernel; ky++) {
      const row = y * stride - padding + ky * dilation;
      if (row < 0 || row >= height) continue;
      for (let kx = 0; kx < kernel; kx++) {
        const column = x * stride - padding + kx * dilation;
        if (column < 0 || column >= width) continue;
        let tap = step.weight + (o * channels * kernel + ky) * kernel + kx;
        let to = row * width + column;
        for (let c = 0; c < channels; c++, tap += kernel * kernel, to += height * width) {
          input[to] += value * this.weights[tap];
        }
      }
    }
  }
}

function rectify(values) {
  for (let i = 0; i < values.length; i++) if (values[i] < 0) values[i] = 0;
}

// Adds to the channel of `out` that starts at `start` the convolution of one input channel, which
// starts at `first` in x, with the 3x3 kernel that starts at `tap` in w. All nine products stand in
// one expression: this is where the page spends its time.
function addConv3(out, start, height, width, x, first, rowLength, w, tap, kernel, stride, dilation) {
  const w1 = w[tap], w2 = w[tap + 1], w3 = w[tap + 2];
  const w4 = w[tap + 3], w5 = w[tap + 4], w6 = w[tap + 5];
  const w7 = w[tap + 6], w8 = w[tap + 7], w9 = w[tap + 8];
  const second = dilation;
  const third = 2 * dilation;
  for (let row = 0, to = start; row < height; row++) {
    let top = first + row * rowLength;
    let middle = top + second * rowLength;
    let bottom = top + third * rowLength;
    for (const end = to + width; to < end; to++, top++, middle++, bottom++) {
      out[to] +=
        w1 * x[top] + w2 * x[top + second] + w3 * x[top + third] +
        w4 * x[middle] + w5 * x[middle + second] + w6 * x[middle + third] +
        w7 * x[bottom] + w8 * x[bottom + second] + w9 * x[bottom + third];
    }
  }
}

// The same for a kernel of any size and stride.
function addConv(out, start, height, width, x, first, rowLength, w, tap, kernel, stride, dilation) {
  for (let ky = 0; ky < kernel; ky++) {
    for (let kx = 0; kx < kernel; kx++, tap++) {
      const weight = w[tap];
      for (let row = 0, to = start; row < height; row++) {
        let from = first + (row * stride + ky * dilation) * rowLength + kx * dilation;
        for (const end = to + width; to < end; to++, from += stride) out[to] += weight * x[from];
      }
    }
  }
}
