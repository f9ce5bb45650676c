// Chunk matrix: the kernel computes the matrices, this draws them.

const SIDE = 236, TOP = 22, LEFT = 14, GAP = 26;

/** Size of an error on a logarithmic scale, from 0 (1e-6 and less) to 1 (1 and more). */
const wrongness = (e) => Math.min(1, Math.max(0, 1 + Math.log10(Math.max(e, 1e-6)) / 6));

function drawRange(pen, info, C, y, width, colours) {
  const x0 = 150, scale = (width - x0 - 60) / Math.max(100, 1.05 * info.chunk_exponent);
  const rows = [[`whole chunk of ${C}`, info.chunk_exponent], [`re-based every ${info.block}`, info.block_exponent]];
  const worst = Math.max(...Object.values(info.limits));
  rows.forEach(([, nats], i) => {
    pen.fillStyle = nats > worst ? colours.error : colours.gate;
    pen.fillRect(x0, y + 20 + i * 24, nats * scale, 16);
  });
  for (const [name, limit] of Object.entries(info.limits)) {
    const x = x0 + limit * scale;
    line(pen, colours.reference, 1.5, [x, y + 12], [x, y + 66]);
    write(pen, `${name} ends at ${limit.toFixed(1)}`, x, y + 4, { color: colours.error, align: "center" });
  }
  rows.forEach(([text, nats], i) => {
    const top = y + 20 + i * 24, end = x0 + nats * scale, inside = nats * scale > 140;
    const says = `${short(nats)} nats` + (nats > worst ? ": overflows to ∞" : "");
    pen.fillStyle = colours.paper; // the limits' lines must not cross the words
    if (!inside) pen.fillRect(end + 3, top, says.length * 6.5 + 6, 16);
    write(pen, text, x0 - 8, top + 8, { color: colours.ink, align: "right", size: 12 });
    write(pen, says, end + (inside ? -6 : 6), top + 8,
      { color: inside ? colours.paper : colours.ink, align: inside ? "right" : "left" });
  });
  write(pen, "exponent of exp(−G)", x0 - 8, y + 76, { color: colours.muted, align: "right" });
  line(pen, colours.muted, 1, [x0, y + 16], [x0, y + 66]);
}

function render({ model, el }) {
  const width = LEFT + 3 * SIDE + 2 * GAP + 4, height = TOP + SIDE + 112;
  const board = canvas(width, height);
  const said = node("p", { class: "kda-said", role: "status" });
  const draw = () => {
    const info = model.get("info"), C = model.get("C"), colours = theme(el, model);
    const all = floats(model.get("frame"));
    if (all.length !== 3 * C * C) return; // the kernel has not answered yet
    const pen = board.pen();
    const titles = ["L", `T after round ${model.get("step")} of ${info.rounds}`, "still wrong in T"];
    titles.forEach((title, m) => {
      const x = LEFT + m * (SIDE + GAP);
      const data = all.subarray(m * C * C, (m + 1) * C * C);
      if (m === 2) heat(pen, x, TOP, SIDE, SIDE, data.map(wrongness), C, C, 1, colours, colours.errors, 0);
      else heat(pen, x, TOP, SIDE, SIDE, data, C, C, 1, colours);
      if (C <= 8) numbers(pen, x, TOP, SIDE, SIDE, data, C, C, 1, colours);
      write(pen, title, x, TOP - 11, { color: colours.ink, size: 12, weight: "600" });
    });
    for (let m = 0; m < 3; m++) {
      write(pen, "token j →", LEFT + m * (SIDE + GAP), TOP + SIDE + 10, { color: colours.muted });
      pen.save();
      pen.translate(LEFT + m * (SIDE + GAP) - 8, TOP);
      pen.rotate(-Math.PI / 2);
      write(pen, "← token i", 0, 0, { color: colours.muted, align: "right" });
      pen.restore();
    }
    drawRange(pen, info, C, TOP + SIDE + 26, width, colours);
    step.limits(0, info.rounds);
    step.set(model.get("step"));
    said.textContent = `Largest entry of T ${short(info.largest)}, of the factors that doubling multiplies ` +
      `${short(Math.max(...info.powers))}; largest error left ${short(info.wrong)}.`;
    board.el.setAttribute("aria-label", `L, its inverse after round ${model.get("step")} of ${info.rounds}, and what is ` +
      `still wrong. ${said.textContent} Exponent over the chunk ${short(info.chunk_exponent)} nats.`);
    drawn(el);
  };
  const set = (name) => (value) => {
    model.set(name, value);
    model.save_changes();
  };
  const info = model.get("info");
  const pairs = (record) => Object.entries(record);
  const step = slider({ label: "round", min: 0, max: info.rounds, value: model.get("step"), input: set("step") });
  el.append(
    node("div", { class: "kda-controls", role: "group", "aria-label": "Chunk matrix controls" },
      slider({ label: "C", min: 0, max: info.sizes.length - 1, value: info.sizes.indexOf(model.get("C")),
        text: (i) => `${info.sizes[i]} tokens`, input: (i) => set("C")(info.sizes[i]) }).el,
      slider({ label: "β", min: 0, max: 2, step: 0.05, value: model.get("beta"), text: (x) => x.toFixed(2), input: set("beta") }).el,
      slider({ label: "gate", min: 0, max: info.gate_max, step: 0.05, value: model.get("gate"), text: (x) => `g = −${x.toFixed(2)}`,
        input: set("gate") }).el,
      chooser({ label: "keys", options: pairs(info.keys), value: model.get("kind"), input: set("kind") }).el,
      chooser({ label: "inverse by", options: pairs(info.methods), value: model.get("method"), input: set("method") }).el,
      step.el),
    said,
    board.el,
    node("p", { class: "kda-reading" }, model.get("reading")),
  );
  const leave = frame(el, model, draw);
  model.on("change:info change:frame", draw);
  draw();
  return () => {
    leave();
    model.off("change:info change:frame", draw);
  };
}

export default { render };
