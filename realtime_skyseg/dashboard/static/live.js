// The live view: frames with the outlines of their masks on one canvas. Frames come over a binary websocket; each is
// confirmed when it has been drawn, so that the server never sends more than the browser can show.

const CLASSES = { skyrmion: 1, defect: 2, outside: 3, edge: 4 };
const STRIPE = 5; // objects of kind stripe are drawn as a class of their own

// Okabe and Ito's colours, which colour-blind people tell apart.
const COLOURS = {
  [CLASSES.skyrmion]: [230, 159, 0],
  [STRIPE]: [86, 180, 233],
  [CLASSES.defect]: [0, 158, 115],
  [CLASSES.outside]: [240, 228, 66],
  [CLASSES.edge]: [204, 121, 167],
};

// The same as the four bytes of a pixel: red first, in little-endian order.
const PACKED = [];
for (const [key, [red, green, blue]] of Object.entries(COLOURS)) {
  PACKED[key] = ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

// Of viridis, dark to bright.
const SCALE = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];

// Draws the frames of a source on the page's canvas, once it is there.
export function begin(source) {
  const canvas = document.getElementById("skyseg-live");
  if (!canvas) {
    setTimeout(() => begin(source), 50);
    return;
  }
  const write = (id, text) => {
    const place = document.getElementById(id);
    if (place) place.textContent = text;
  };
  window.skysegView = new LiveView(canvas, {
    scale: (name, low, high) => write("skyseg-scale", `${name}: ${low.toPrecision(3)} (dark) to ${high.toPrecision(3)} (bright)`),
    count: (head) => write("skyseg-count", head.count === null ? "shows nothing" : `${head.count} skyrmions`),
    object: (text) => write("skyseg-object", text || "Point at a skyrmion for its numbers."),
  }, source);
}

export class LiveView {
  constructor(canvas, told, source) {
    this.canvas = canvas;
    this.told = told;
    this.source = source;
    this.context = canvas.getContext("2d");
    this.frame = null;
    this.paused = false;
    this.step = false;
    this.outlines = true;
    this.colourBy = "";
    this.pixelSize = null;
    this.raw = false; // the raw frame instead of what is segmented
    this.percent = 0; // of the pixels that are taken for too dark and too bright; -1: low and high are set by hand
    this.low = 0;
    this.high = 1;
    this.view = { x: 0, y: 0, zoom: 1 }; // of the frame's px, relative to the one that fits
    this.drawn = 0;
    this.chosen = null;
    this.hovered = null;
    this.layer = document.createElement("canvas");
    this.listen();
    this.connect();
    new ResizeObserver(() => this.draw()).observe(canvas);
    document.addEventListener("visibilitychange", () => this.want());
  }

  connect() {
    const scheme = location.protocol === "https:" ? "wss://" : "ws://";
    this.socket = new WebSocket(`${scheme}${location.host}/skyseg/frames?source=${encodeURIComponent(this.source)}`);
    this.socket.binaryType = "arraybuffer";
    this.socket.onopen = () => this.want();
    this.socket.onmessage = (event) => this.take(event.data);
    this.socket.onclose = () => setTimeout(() => this.connect(), 1000);
  }

  // Draw the frames of another source.
  show(source) {
    this.source = source;
    this.socket.close();
  }

  // Whether frames are wanted: a page that nobody sees gets none.
  want() {
    if (this.socket.readyState !== WebSocket.OPEN) return;
    const wanted = !document.hidden && (!this.paused || this.step);
    this.socket.send(JSON.stringify({ want: wanted, raw: this.raw }));
  }

  async take(data) {
    const view = new DataView(data);
    const length = view.getUint32(0, true);
    const head = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
    if (!this.paused || this.step) {
      const [image, runs] = head.parts;
      const at = 4 + length;
      const bitmap = await createImageBitmap(new Blob([new Uint8Array(data, at, image)], { type: "image/jpeg" }));
      if (this.frame) this.frame.bitmap.close();
      const mask = unpackRuns(data, at + image, runs, head.shape);
      const table = new Float32Array(data.slice(at + image + runs));
      this.frame = { head, bitmap, mask, objects: objectsOf(head, table) };
      this.hovered = null;
      if (this.percent > 0) [this.low, this.high] = endsOf(bitmap, this.percent);
      this.paintOutlines();
      this.draw();
      this.told.count(head);
      this.drawn += 1;
      this.age = head.received_ms === null ? null : Date.now() - head.received_ms; // ms since the service got it
      if (this.step) { this.step = false; this.want(); }
    }
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ drawn: head.number }));
  }

  // Pixels of a class that have a neighbour of another one, as a layer of the mask's size.
  paintOutlines() {
    const { mask, head } = this.frame;
    const [height, width] = head.shape;
    this.layer.width = width;
    this.layer.height = height;
    const context = this.layer.getContext("2d");
    const picture = context.createImageData(width, height);
    const pixels = new Uint32Array(picture.data.buffer);
    const stripes = stripeBoxes(this.frame.objects);
    for (let y = 0, at = 0; y < height; y++) {
      for (let x = 0; x < width; x++, at++) {
        const own = mask[at];
        if (own === 0 || own === 255) continue;
        const inside = x > 0 && x < width - 1 && y > 0 && y < height - 1
          && mask[at - 1] === own && mask[at + 1] === own && mask[at - width] === own && mask[at + width] === own;
        if (!inside) pixels[at] = PACKED[own === CLASSES.skyrmion && inBox(stripes, x, y) ? STRIPE : own] || 0;
      }
    }
    context.putImageData(picture, 0, 0);
  }

  // Scale and place of the frame on the canvas, in its device pixels.
  place() {
    const [height, width] = this.frame.head.shape;
    const fit = Math.min(this.canvas.width / width, this.canvas.height / height);
    const scale = fit * this.view.zoom;
    return {
      scale,
      left: (this.canvas.width - width * scale) / 2 + this.view.x * scale,
      top: (this.canvas.height - height * scale) / 2 + this.view.y * scale,
    };
  }

  draw() {
    const ratio = window.devicePixelRatio || 1;
    const box = this.canvas.getBoundingClientRect();
    const [across, down] = [box.width, box.height].map((side) => Math.max(1, Math.round(side * ratio)));
    if (this.canvas.width !== across) this.canvas.width = across;
    if (this.canvas.height !== down) this.canvas.height = down;
    const context = this.context;
    context.fillStyle = "#101418";
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    if (!this.frame) {
      context.fillStyle = "#b8c2cc";
      context.font = `${16 * ratio}px sans-serif`;
      context.textAlign = "center";
      context.fillText("no frame has come yet", this.canvas.width / 2, this.canvas.height / 2);
      return;
    }
    const [height, width] = this.frame.head.shape;
    const { scale, left, top } = this.place();
    context.imageSmoothingEnabled = scale < 1;
    const contrast = 1 / Math.max(this.high - this.low, 0.02);
    // brightness first moves the dark end to 0, contrast then stretches around the middle
    context.filter = this.low === 0 && this.high === 1 ? "none"
      : `brightness(${1 + 0.5 - (this.low + this.high) / 2}) contrast(${contrast})`;
    context.drawImage(this.frame.bitmap, left, top, width * scale, height * scale);
    context.filter = "none";
    context.imageSmoothingEnabled = false;
    if (this.outlines) context.drawImage(this.layer, left, top, width * scale, height * scale);
    if (this.colourBy) this.drawValues(left, top, scale);
    if (this.hovered !== null) this.drawBox(this.hovered, "#ffffffaa", left, top, scale);
    if (this.chosen !== null) this.drawBox(this.chosen, "#ffffff", left, top, scale);
    this.drawBar(scale, ratio);
  }

  drawValues(left, top, scale) {
    const known = this.frame.objects.filter((one) => Number.isFinite(one[this.colourBy]));
    if (!known.length) return;
    const values = known.map((one) => one[this.colourBy]).sort((a, b) => a - b);
    const low = values[Math.floor(0.02 * (values.length - 1))];
    const high = values[Math.ceil(0.98 * (values.length - 1))];
    for (const one of known) {
      const share = high > low ? Math.min(1, Math.max(0, (one[this.colourBy] - low) / (high - low))) : 0.5;
      this.context.fillStyle = `rgb(${colourOf(share).join(",")})`;
      this.context.beginPath();
      this.context.arc(left + (one.x + 0.5) * scale, top + (one.y + 0.5) * scale,
        Math.max(2, 0.3 * one.diameter * scale), 0, 2 * Math.PI);
      this.context.fill();
    }
    this.told.scale(this.colourBy, low, high);
  }

  drawBox(k, colour, left, top, scale) {
    const one = this.frame.objects[k];
    if (!one) return;
    this.context.strokeStyle = colour;
    this.context.lineWidth = 2;
    this.context.strokeRect(left + (one.left - 2) * scale, top + (one.top - 2) * scale,
      (one.width + 4) * scale, (one.height + 4) * scale);
  }

  drawBar(scale, ratio) {
    const size = this.pixelSize;
    const rough = (0.2 * this.canvas.width) / scale * (size || 1);
    const power = 10 ** Math.floor(Math.log10(rough));
    const length = [5, 2, 1].map((step) => step * power).find((one) => one <= rough);
    const px = (length / (size || 1)) * scale;
    const context = this.context;
    const [right, bottom] = [this.canvas.width - 16 * ratio, this.canvas.height - 16 * ratio];
    context.fillStyle = "rgba(0,0,0,0.55)";
    context.fillRect(right - px - 10 * ratio, bottom - 26 * ratio, px + 20 * ratio, 36 * ratio);
    context.fillStyle = "#ffffff";
    context.fillRect(right - px, bottom - 2 * ratio, px, 4 * ratio);
    context.font = `${13 * ratio}px sans-serif`;
    context.textAlign = "right";
    context.fillText(`${length} ${size ? "µm" : "px"}`, right, bottom - 8 * ratio);
  }

  // The object at a place of the page; null: there is none.
  objectAt(event) {
    if (!this.frame) return null;
    const ratio = window.devicePixelRatio || 1;
    const box = this.canvas.getBoundingClientRect();
    const { scale, left, top } = this.place();
    const x = ((event.clientX - box.left) * ratio - left) / scale;
    const y = ((event.clientY - box.top) * ratio - top) / scale;
    let best = null;
    let nearest = Infinity;
    this.frame.objects.forEach((one, k) => {
      const inside = x >= one.left && x < one.left + one.width && y >= one.top && y < one.top + one.height;
      const apart = Math.hypot(one.x + 0.5 - x, one.y + 0.5 - y);
      if (inside && apart < nearest) [best, nearest] = [k, apart];
    });
    return best;
  }

  listen() {
    const canvas = this.canvas;
    let from = null;
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY / 400));
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      from = { x: event.clientX, y: event.clientY, begin: [event.clientX, event.clientY], moved: false };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.frame) return;
      if (!from) {
        this.hover(this.objectAt(event));
        return;
      }
      const ratio = window.devicePixelRatio || 1;
      const { scale } = this.place();
      from.moved ||= Math.hypot(event.clientX - from.begin[0], event.clientY - from.begin[1]) > 3;
      if (!from.moved) return; // a hand that shakes at a click
      this.view.x += ((event.clientX - from.x) * ratio) / scale;
      this.view.y += ((event.clientY - from.y) * ratio) / scale;
      [from.x, from.y] = [event.clientX, event.clientY];
      this.draw();
    });
    canvas.addEventListener("pointerleave", () => this.hover(null));
    canvas.addEventListener("pointerup", (event) => {
      if (from && !from.moved) this.choose(this.objectAt(event));
      from = null;
    });
    canvas.addEventListener("keydown", (event) => {
      const step = 40 / (this.frame ? this.place().scale : 1);
      const keys = {
        "+": () => this.zoom(1.25), "=": () => this.zoom(1.25), "-": () => this.zoom(0.8), "0": () => this.reset(),
        ArrowLeft: () => { this.view.x += step; }, ArrowRight: () => { this.view.x -= step; },
        ArrowUp: () => { this.view.y += step; }, ArrowDown: () => { this.view.y -= step; },
      };
      if (!keys[event.key]) return;
      event.preventDefault();
      keys[event.key]();
      this.draw();
    });
  }

  zoom(factor) {
    this.view.zoom = Math.min(40, Math.max(1, this.view.zoom * factor));
    if (this.view.zoom === 1) this.view.x = this.view.y = 0;
    this.draw();
  }

  reset() {
    this.view = { x: 0, y: 0, zoom: 1 };
    this.draw();
  }

  choose(k) {
    this.chosen = k;
    this.draw();
    this.tellObject(k);
  }

  hover(k) {
    if (k === this.hovered) return;
    this.hovered = k;
    this.draw();
    this.tellObject(k === null ? this.chosen : k);
  }

  tellObject(k) {
    this.told.object(k === null || !this.frame ? "" : textOf(this.frame.objects[k], this.pixelSize));
  }

  // What is seen, as a picture for the user's disk.
  save() {
    if (!this.frame) return;
    const link = document.createElement("a");
    link.download = `frame-${this.frame.head.frame}.png`;
    this.canvas.toBlob((blob) => {
      link.href = URL.createObjectURL(blob);
      link.click();
      URL.revokeObjectURL(link.href);
    });
  }

  set(values) {
    Object.assign(this, values);
    if ("paused" in values || "step" in values || "raw" in values) this.want();
    if ("percent" in values && this.frame) {
      [this.low, this.high] = values.percent > 0 ? endsOf(this.frame.bitmap, values.percent) : [0, 1];
    }
    this.draw();
  }
}

// The grey levels, 0 to 1, below and above which so many percent of the pixels lie.
function endsOf(bitmap, percent) {
  const side = 160;
  const small = new OffscreenCanvas(side, side);
  const context = small.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0, side, side);
  const pixels = context.getImageData(0, 0, side, side).data;
  const levels = [];
  for (let k = 0; k < pixels.length; k += 4) levels.push(pixels[k]);
  levels.sort((a, b) => a - b);
  const cut = Math.floor((percent / 100) * levels.length);
  const [low, high] = [levels[cut] / 255, levels[levels.length - 1 - cut] / 255];
  return high > low ? [low, high] : [0, 1];
}

function unpackRuns(data, at, length, shape) {
  const view = new DataView(data, at, length);
  const mask = new Uint8Array(shape[0] * shape[1]);
  for (let k = 0, place = 0; k < length; k += 5) {
    const end = place + view.getUint32(k + 1, true);
    const value = view.getUint8(k);
    if (value) mask.fill(value, place, end);
    place = end;
  }
  return mask;
}

function objectsOf(head, table) {
  const found = [];
  for (let k = 0; k < head.objects; k++) {
    const one = {};
    head.columns.forEach((name, column) => { one[name] = table[column * head.objects + k]; });
    found.push(one);
  }
  return found;
}

function stripeBoxes(objects) {
  return objects.filter((one) => one.kind === 1);
}

function inBox(boxes, x, y) {
  return boxes.some((one) => x >= one.left && x < one.left + one.width && y >= one.top && y < one.top + one.height);
}

function colourOf(share) {
  const place = share * (SCALE.length - 1);
  const k = Math.min(Math.floor(place), SCALE.length - 2);
  return SCALE[k].map((value, c) => Math.round(value + (place - k) * (SCALE[k + 1][c] - value)));
}

function textOf(one, size) {
  const length = (px) => (size ? `${(px * size).toPrecision(3)} µm` : `${px.toFixed(1)} px`);
  const kind = one.kind === 1 ? "stripe" : "skyrmion";
  const told = [`${kind} at (${one.x.toFixed(1)}, ${one.y.toFixed(1)}) px`, `diameter ${length(one.diameter)}`, `elongation ${one.elongation.toFixed(2)}`];
  for (const [name, value] of Object.entries(one)) {
    const plain = ["x", "y", "area", "left", "top", "width", "height", "diameter", "elongation", "kind", "border"];
    if (!plain.includes(name) && Number.isFinite(value)) told.push(`${name} ${Number(value.toPrecision(4))}`);
  }
  return told.join(", ");
}
