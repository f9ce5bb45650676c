// Roofline: the kernel computes costs, this draws them on logarithmic axes.

const WIDTH = 760, HEIGHT = 380, X0 = 62, Y0 = 16, W = WIDTH - X0 - 16, H = HEIGHT - Y0 - 44;
const XR = [4, 2000], YR = [4, 2000];
const along = (v, [low, high]) => Math.log(v / low) / Math.log(high / low);
const px = (v) => X0 + W * along(v, XR);
const py = (v) => Y0 + H * (1 - along(v / 1e12, YR));

const time = (s) => (s >= 1e-3 ? `${(s * 1e3).toPrecision(3)} ms` : `${(s * 1e6).toPrecision(3)} µs`);
const grouped = (x) => Math.round(x).toLocaleString("en");

function drawRoof(pen, info, gpu, colours) {
  const [flops, bandwidth, sms] = info.gpus[gpu];
  for (const v of [10, 100, 1000]) {
    line(pen, colours.line, 1, [px(v), Y0], [px(v), Y0 + H]);
    line(pen, colours.line, 1, [X0, py(v * 1e12)], [X0 + W, py(v * 1e12)]);
    write(pen, String(v), px(v), Y0 + H + 12, { color: colours.muted, align: "center" });
    write(pen, String(v), X0 - 6, py(v * 1e12), { color: colours.muted, align: "right" });
  }
  write(pen, "FLOP per byte moved", X0 + W / 2, Y0 + H + 32, { color: colours.ink, align: "center", size: 12 });
  pen.save();
  pen.translate(16, Y0 + H / 2);
  pen.rotate(-Math.PI / 2);
  write(pen, "TFLOP/s", 0, 0, { color: colours.ink, align: "center", size: 12 });
  pen.restore();
  const roof = (share, dash, width, color) => {
    const top = flops * share, ridge = top / bandwidth;
    pen.setLineDash(dash);
    line(pen, color, width, [px(XR[0]), py(XR[0] * bandwidth)], [px(ridge), py(top)], [X0 + W, py(top)]);
    pen.setLineDash([]);
  };
  roof(1, [], 2.5, colours.reference);
  if (info.share < 1) {
    roof(info.share, [5, 4], 1.5, colours.muted);
    write(pen, `${Math.round(info.share * sms)} of ${sms} SMs, one a head`, X0 + W - 4, py(flops * info.share) + 11,
      { color: colours.muted, align: "right" });
  }
  write(pen, `tensor cores, ${(flops / 1e12).toFixed(0)} TFLOP/s`, X0 + W - 4, py(flops) - 10, { color: colours.reference, align: "right", size: 12 });
  pen.save();
  pen.translate(px(9), py(9 * bandwidth) - 10);
  pen.rotate(-Math.atan2(py(10 * bandwidth) - py(100 * bandwidth), px(100) - px(10)));
  write(pen, `memory, ${bandwidth / 1e12} TB/s`, 0, 0, { color: colours.reference, size: 12 });
  pen.restore();
}

function drawPoint(pen, name, [intensity, rate, seconds], color, hollow, below) {
  const x = px(intensity), y = py(rate);
  pen.setLineDash([2, 3]);
  line(pen, color, 1, [x, y], [x, Y0 + H]);
  pen.setLineDash([]);
  pen.beginPath();
  pen.arc(x, y, 6, 0, 2 * Math.PI);
  pen.fillStyle = pen.strokeStyle = color;
  pen.lineWidth = 2;
  if (!hollow) pen.fill();
  pen.stroke();
  write(pen, `${name}: ${time(seconds)}`, x + 11, y + (below ? 14 : 6), { color, size: 12.5, weight: "600" });
}

function render({ model, el }) {
  const board = canvas(WIDTH, HEIGHT);
  const said = node("p", { class: "kda-said", role: "status" });
  const draw = () => {
    const info = model.get("info"), colours = theme(el, model), pen = board.pen();
    const points = info.points, one = points["one kernel"], alone = points["one kernel, one SM a head"];
    drawRoof(pen, info, model.get("gpu"), colours);
    drawPoint(pen, "two kernels", points["two kernels"], colours.peer, false, true);
    drawPoint(pen, "one kernel", one, colours.own, false, true);
    if (alone[2] > one[2]) drawPoint(pen, "one SM a head", alone, colours.own, true, true);
    const wait = info.flops / one[2] < info.gpus[model.get("gpu")][0] * 0.999 ? "bytes" : "arithmetic";
    said.textContent = `${grouped(info.flops / 1e9)} GFLOP, ${grouped(info.bytes / 1e6)} MB: at least ${time(one[2])} in one kernel, ` +
      `waiting for ${wait}. A model on data-sheet peaks, not a measurement.`;
    board.el.setAttribute("aria-label", `Roofline of an ${model.get("gpu")}. ${said.textContent} ` +
      Object.entries(points).map(([name, [i, , s]]) => `${name}: ${short(i)} FLOP per byte, ${time(s)}`).join("; "));
    drawn(el);
  };
  const set = (name) => (value) => {
    model.set(name, value);
    model.save_changes();
  };
  const info = model.get("info");
  const steps = (label, name, list, text) => slider({ label, min: 0, max: list.length - 1, value: list.indexOf(model.get(name)),
    text: (i) => text(list[i]), input: (i) => set(name)(list[i]) }).el;
  el.append(
    node("div", { class: "kda-controls", role: "group", "aria-label": "Roofline controls" },
      chooser({ label: "GPU", options: Object.keys(info.gpus).map((x) => [x, x]), value: model.get("gpu"), input: set("gpu") }).el,
      slider({ label: "T", min: 9, max: 20, value: Math.round(Math.log2(model.get("T"))), text: (x) => grouped(2 ** x), input: (x) => set("T")(2 ** x) }).el,
      slider({ label: "H", min: 1, max: info.H_max, value: model.get("H"), text: (x) => `${x} heads`, input: set("H") }).el,
      steps("D", "D", info.dims, String),
      steps("chunk", "C", info.chunks, (x) => `C = ${x}`),
      chooser({ label: "gate", options: Object.entries(info.gates), value: model.get("gate"), input: set("gate") }).el),
    said,
    board.el,
    node("p", { class: "kda-reading" }, model.get("reading")),
  );
  const leave = frame(el, model, draw);
  model.on("change:info", draw);
  draw();
  return () => {
    leave();
    model.off("change:info", draw);
  };
}

export default { render };
