// A layout's offsets as a board, the warp's access framed on it, and the banks below.

const BOARD = 900, EDGE = 30, STRIP = 16;

function inkOn(hex) {
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  return 0.3 * r + 0.59 * g + 0.11 * b < 140 ? "#ffffff" : "#1d2127";
}

function render({ model, el }) {
  let waiting = false;
  const board = canvas(BOARD, 300);

  const draw = () => {
    waiting = false;
    const colours = theme(el, model), b = model.get("board"), groups = model.get("groups");
    alert_.textContent = b.error;
    const rows = b.offsets.length, columns = b.offsets[0].length;
    const cell = Math.max(12, Math.min(34, Math.floor((BOARD - EDGE - 4) / columns)));
    const below = EDGE + rows * cell + 34;
    const pen = board.pen(BOARD, below + b.banks.length * STRIP + 26);
    for (let j = 0; j < columns; j += columns > 32 ? 8 : 1)
      write(pen, String(j), EDGE + (j + 0.5) * cell, EDGE - 8, { color: colours.muted, align: "center", size: 10 });
    const size = Math.min(11, cell * 0.42), piece = 16 / model.get("element_bytes");
    b.offsets.forEach((row, i) => {
      write(pen, String(i), EDGE - 6, EDGE + (i + 0.5) * cell, { color: colours.muted, align: "right", size: 10 });
      row.forEach((offset, j) => {
        pen.fillStyle = groups[b.groups[i][j]];
        pen.fillRect(EDGE + j * cell, EDGE + i * cell, cell - 0.5, cell - 0.5);
      });
      row.forEach((offset, j) => {
        const color = groups[b.groups[i][j]];
        if (cell >= 20)
          write(pen, String(offset), EDGE + (j + 0.5) * cell, EDGE + (i + 0.5) * cell, { color: inkOn(color), align: "center", size });
        else if (j % piece === 0) // no room for offsets: which 16 bytes of banks the piece is in
          write(pen, String(b.groups[i][j]), EDGE + (j + piece / 2) * cell, EDGE + (i + 0.5) * cell, { color: inkOn(color), align: "center", size: 9 });
      });
    });
    pen.strokeStyle = colours.error;
    pen.lineWidth = 2;
    for (const [i, j] of b.touched) pen.strokeRect(EDGE + j * cell + 1, EDGE + i * cell + 1, cell - 2.5, cell - 2.5);
    const wide = Math.floor((BOARD - EDGE - 40) / 32);
    write(pen, "bank", EDGE - 6, below - 10, { color: colours.muted, align: "right", size: 10 });
    for (let k = 0; k < 32; k++)
      write(pen, String(k), EDGE + 10 + (k + 0.5) * wide, below - 10, { color: colours.muted, align: "center", size: 10 });
    b.banks.forEach((phase, p) => {
      const y = below + p * STRIP;
      write(pen, `${p}`, EDGE - 6, y + STRIP / 2, { color: colours.muted, align: "right", size: 10 });
      phase.forEach((n, k) => {
        pen.fillStyle = n === 0 ? colours.line : n === 1 ? colours.gate : colours.error;
        pen.fillRect(EDGE + 10 + k * wide, y, wide - 1, STRIP - 1);
        if (n) write(pen, String(n), EDGE + 10 + (k + 0.5) * wide, y + STRIP / 2, { color: colours.paper, align: "center", size: 10, weight: "bold" });
      });
    });
    said.textContent = b.says.split("\n")[0];
    board.el.setAttribute("aria-label", `Offsets of ${b.title}. ${b.says}`);
    at.limits(0, b.most);
    at.set(Math.min(model.get("at"), b.most));
    drawn(el);
  };
  const soon = () => {
    if (!waiting) requestAnimationFrame(draw);
    waiting = true;
  };
  const set = (name, value) => {
    model.set(name, value);
    model.save_changes();
  };
  const text = node("input", { type: "text", "aria-label": "layout, shape:stride", size: 22, spellcheck: "false", value: model.get("layout_text") });
  text.addEventListener("input", () => set("layout_text", text.value));
  const swizzle = chooser({ label: "swizzle", value: model.get("swizzle"), input: (x) => set("swizzle", Number(x)),
    options: [[0, "none"], [32, "32 bytes"], [64, "64 bytes"], [128, "128 bytes"]] });
  const bytes = chooser({ label: "bytes an element", value: model.get("element_bytes"), input: (x) => set("element_bytes", Number(x)),
    options: [[1, "1"], [2, "2 (bf16)"], [4, "4 (fp32)"]] });
  const access = chooser({ label: "the warp reads", value: model.get("access"), input: (x) => set("access", x),
    options: Object.entries(model.get("accesses")) });
  const at = slider({ label: "where", min: 0, max: model.get("board").most, value: model.get("at"), input: (x) => set("at", x) });
  const said = node("p", { class: "kda-said", role: "status" });
  const alert_ = node("p", { class: "kda-said", role: "alert" });
  el.append(
    node("div", { class: "kda-controls", role: "group", "aria-label": "Layout controls" },
      node("label", { class: "kda-control" }, "layout", text), swizzle.el, bytes.el, access.el, at.el),
    said, alert_,
    node("div", { class: "kda-panels" }, board.el),
    node("p", { class: "kda-reading" }, model.get("reading")),
  );
  const leave = frame(el, model, draw);
  model.on("change:board", soon);
  draw();
  return () => {
    leave();
    model.off("change:board", soon);
  };
}

export { inkOn };
export default { render };
