// Masks as COCO RLEs: runs of 0 and 1 in column-major order, compressed to a text.

/** Decode the runs of a compressed COCO RLE. */
export function decodeRuns(text) {
  const runs = [];
  let at = 0;
  while (at < text.length) {
    let value = 0, shift = 0, more = true;
    while (more) {
      const code = text.charCodeAt(at++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
      more = (code & 32) !== 0;
      if (!more && code & 16) value |= -1 << shift;
    }
    if (runs.length > 2) value += runs[runs.length - 2];
    runs.push(value);
  }
  return runs;
}

/** Encode a mask (Uint8Array in row-major order) as an uncompressed COCO RLE. */
export function encodeMask(mask, width, height) {
  const counts = [];
  let last = 0, run = 0;
  for (let x = 0; x < width; x++) {
    for (let y = 0; y < height; y++) {
      const value = mask[y * width + x];
      if (value !== last) {
        counts.push(run);
        run = 0;
        last = value;
      }
      run++;
    }
  }
  counts.push(run);
  return {size: [height, width], counts};
}

/** Draw a compressed RLE at a smaller size: a Uint8Array (height * width) in row-major order. */
export function shrunkMask(rle, width, height) {
  const [fullHeight, fullWidth] = rle.size;
  const full = new Uint8Array(fullWidth * fullHeight);
  let at = 0, value = 0;
  for (const run of decodeRuns(rle.counts)) {
    if (value) full.fill(1, at, at + run);
    at += run;
    value = 1 - value;
  }
  const mask = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    const row = Math.min(fullHeight - 1, Math.floor((y + 0.5) * fullHeight / height));
    for (let x = 0; x < width; x++) {
      const column = Math.min(fullWidth - 1, Math.floor((x + 0.5) * fullWidth / width));
      mask[y * width + x] = full[column * fullHeight + row];
    }
  }
  return mask;
}

/** Draw a mask as a canvas: its pixels in a color, and its outline opaque. */
export function tinted(mask, width, height, color, alpha) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && mask[y * width + x];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const at = y * width + x;
      if (!mask[at]) continue;
      const edge = !(inside(x - 1, y) && inside(x + 1, y) && inside(x, y - 1) && inside(x, y + 1)
        && inside(x - 2, y) && inside(x + 2, y) && inside(x, y - 2) && inside(x, y + 2));
      image.data.set([...color, edge ? 255 : Math.round(255 * alpha)], 4 * at);
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}
