// Shared by all views: the frame, the controls, and drawing on a canvas in the palette's colours.

const KEYS_FOR_JUPYTER = new Set(["Escape", "Tab"]);

/** Prepares `el` for a widget; `draw` is called again when the theme changes. */
function frame(el, model, draw) {
  el.classList.add("kda");
  // JupyterLab's shortcuts would otherwise take the arrow keys from sliders and lists.
  el.addEventListener("keydown", (e) => {
    if (!e.ctrlKey && !e.metaKey && !e.altKey && !KEYS_FOR_JUPYTER.has(e.key) && !(e.key === "Enter" && e.shiftKey))
      e.stopPropagation();
  });
  const watch = new MutationObserver(() => draw());
  watch.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
  const media = window.matchMedia("(prefers-color-scheme: dark)");
  media.addEventListener("change", draw);
  return () => {
    watch.disconnect();
    media.removeEventListener("change", draw);
  };
}

/** Colours of the present theme: JupyterLab's, or the browser's outside of it. */
function theme(el, model) {
  const jupyter = document.body.dataset.jpThemeLight;
  const dark = jupyter ? jupyter === "false" : window.matchMedia("(prefers-color-scheme: dark)").matches;
  const colours = model.get("colours")[dark ? "dark" : "light"];
  el.style.setProperty("--kda-accent", colours.state);
  return colours;
}

function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "class") made.className = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** A labelled slider; `text(value)` is what stands beside it and what a screen reader says. */
function slider({ label, min, max, step = 1, value, text = String, input }) {
  const output = node("output");
  const range = node("input", { type: "range", min, max, step, "aria-label": label });
  const set = (v) => {
    range.value = v;
    output.textContent = text(Number(range.value));
    range.setAttribute("aria-valuetext", output.textContent);
  };
  range.addEventListener("input", () => {
    set(range.value);
    input(Number(range.value));
  });
  set(value);
  const limits = (low, high) => {
    range.min = low;
    range.max = high;
  };
  return { el: node("label", { class: "kda-control" }, label, range, output), set, limits, range };
}

/** A labelled drop-down; `options` are [value, text] pairs. */
function chooser({ label, options, value, input }) {
  const made = node("select", { "aria-label": label }, ...options.map(([v, text]) => node("option", { value: v }, text)));
  made.value = value;
  made.addEventListener("change", () => input(made.value));
  return { el: node("label", { class: "kda-control" }, label, made), select: made };
}

/** A canvas of width x height CSS pixels, sharp on any screen. */
function canvas(width, height) {
  const made = node("canvas", { role: "img" });
  const resize = (w, h) => {
    const ratio = window.devicePixelRatio || 1;
    if (made.width !== Math.round(w * ratio) || made.height !== Math.round(h * ratio)) {
      made.width = Math.round(w * ratio);
      made.height = Math.round(h * ratio);
      made.style.width = w + "px";
    }
    const pen = made.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, w, h);
    pen.textBaseline = "middle";
    return pen;
  };
  return { el: made, pen: (w = width, h = height) => resize(w, h) };
}

const FONT = "system-ui, 'DejaVu Sans', sans-serif";

function write(pen, text, x, y, { color, align = "left", size = 11, weight = "" }) {
  pen.fillStyle = color;
  pen.textAlign = align;
  pen.font = `${weight} ${size}px ${FONT}`;
  pen.fillText(text, x, y);
}

function line(pen, color, width, ...points) {
  pen.strokeStyle = color;
  pen.lineWidth = width;
  pen.beginPath();
  points.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
  pen.stroke();
}

/** Short text of a number: two decimals, none where they are zero. */
function short(x) {
  if (!Number.isFinite(x)) return Number.isNaN(x) ? "NaN" : x > 0 ? "∞" : "−∞";
  const a = Math.abs(x);
  const text = a !== 0 && (a < 0.01 || a >= 1e4) ? x.toExponential(0) : String(Number(x.toFixed(2)));
  return text.replace("-", "−");
}

const scratch = document.createElement("canvas");

/** Draws `data` [rows, columns] as a heat map; entries run from low to high, beyond is cut off. */
function heat(pen, x, y, width, height, data, rows, columns, high, colours, table = colours.table, low = -high) {
  if (scratch.width !== columns || scratch.height !== rows) {
    scratch.width = columns;
    scratch.height = rows;
  }
  const small = scratch.getContext("2d", { willReadFrequently: true });
  const image = small.createImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) {
    const at = Math.max(0, Math.min(255, Math.round((255 * (data[i] - low)) / (high - low || 1)))) * 3;
    image.data[4 * i] = table[at];
    image.data[4 * i + 1] = table[at + 1];
    image.data[4 * i + 2] = table[at + 2];
    image.data[4 * i + 3] = Number.isNaN(data[i]) ? 0 : 255;
  }
  small.putImageData(image, 0, 0);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(scratch, x, y, width, height);
  pen.strokeStyle = colours.line;
  pen.lineWidth = 1;
  pen.strokeRect(x - 0.5, y - 0.5, width + 1, height + 1);
}

/** Writes the numbers into the cells of a small heat map. */
function numbers(pen, x, y, width, height, data, rows, columns, high, colours) {
  const w = width / columns, h = height / rows;
  for (let i = 0; i < rows * columns; i++) {
    if (Math.abs(data[i]) < 5e-4) continue;
    const strong = Math.abs(data[i]) > 0.55 * high;
    write(pen, short(data[i]), x + ((i % columns) + 0.5) * w, y + (Math.floor(i / columns) + 0.5) * h, {
      color: strong ? colours.paper : colours.ink, align: "center", size: Math.min(12, w / 3.2),
    });
  }
}

/** Marks a finished picture, so that a test or a screen reader can tell that something changed. */
function drawn(el) {
  el.dataset.drawn = Number(el.dataset.drawn || 0) + 1;
}

function floats(view, Type = Float32Array) {
  return new Type(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
}
