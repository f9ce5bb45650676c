// Affine scan: two diagrams of rounds, serial and tree, and the states known by now.

const WIDTH = 412, TOP = 22, TILE_GAP = 3;

function drawScan(pen, { P, rounds, states, K, high, step, colours }) {
  const pitch = (WIDTH - 26) / P, x = (p) => 26 + (p + 0.5) * pitch;
  const row = Math.min(34, 300 / (P + 1)), y = (r) => TOP + (r + 0.5) * row;
  const first = Array.from({ length: P }, (_, p) => p);
  for (let r = 0; r <= rounds.length; r++) {
    const done = r <= step;
    pen.globalAlpha = done ? 1 : 0.5;
    if (r) {
      const start = [...first];
      for (const [left, right] of rounds[r - 1]) {
        first[right] = start[left];
        line(pen, done ? colours.state : colours.muted, 1.2, [x(left), y(r - 1) + row * 0.28], [x(right), y(r) - row * 0.28]);
      }
    }
    write(pen, r === 0 ? "start" : String(r), 20, y(r), { color: colours.muted, align: "right", size: 9 });
    for (let p = 0; p < P; p++) {
      const full = first[p] === 0 && done;
      pen.fillStyle = full ? colours.state : colours.paper;
      pen.strokeStyle = done ? colours.state : colours.muted;
      pen.lineWidth = 1.2;
      pen.beginPath();
      pen.roundRect(x(p) - pitch * 0.42, y(r) - row * 0.28, pitch * 0.84, row * 0.56, 3);
      pen.fill();
      pen.stroke();
      const text = first[p] === p ? String(p) : `${first[p]}–${p}`;
      write(pen, text, x(p), y(r) + 0.5,
        { color: full ? colours.paper : colours.ink, align: "center", size: Math.min(11, pitch / 2.6, row * 0.5) });
    }
  }
  pen.globalAlpha = 1;
  const bottom = TOP + (P + 0) * row + 22, tile = Math.min(pitch - TILE_GAP, 44);
  write(pen, "state at the end of each segment", 26, bottom - 10, { color: colours.muted, size: 10.5 });
  for (let p = 0; p < P; p++) {
    const S = states.subarray(p * K * K, (p + 1) * K * K);
    if (Number.isNaN(S[0])) {
      pen.setLineDash([2, 2]);
      pen.strokeStyle = colours.muted;
      pen.strokeRect(x(p) - tile / 2, bottom, tile, tile);
      pen.setLineDash([]);
      write(pen, "?", x(p), bottom + tile / 2, { color: colours.muted, align: "center" });
    } else heat(pen, x(p) - tile / 2, bottom, tile, tile, S, K, K, high, colours);
  }
}

function render({ model, el }) {
  const names = Object.entries(model.get("info").methods);
  const boards = names.map(([method, title]) => {
    const board = canvas(WIDTH, 420), caption = node("figcaption", {}, title);
    return { method, title, board, caption, el: node("figure", { class: "kda-panel" }, caption, board.el) };
  });
  const said = node("p", { class: "kda-said", role: "status" });
  const draw = () => {
    const info = model.get("info"), P = model.get("P"), colours = theme(el, model), K = info.K;
    const all = floats(model.get("frame"));
    if (all.length !== 2 * P * K * K) return; // the kernel has not answered yet
    const says = boards.map(({ method, title, board, caption }, m) => {
      const rounds = info.rounds[method], step = Math.min(model.get("step"), rounds.length);
      const states = all.subarray(m * P * K * K, (m + 1) * P * K * K);
      const total = rounds.reduce((n, r) => n + r.length, 0);
      const row = Math.min(34, 300 / (P + 1));
      drawScan(board.pen(WIDTH, TOP + P * row + 22 + 50), { P, rounds, states, K, high: info.high, step, colours });
      const counts = `${rounds.length} round${rounds.length === 1 ? "" : "s"} deep, ${total} combine${total === 1 ? "" : "s"}`;
      caption.replaceChildren(title, node("span", {}, counts));
      let known = 0;
      for (let p = 0; p < P; p++) known += !Number.isNaN(states[p * K * K]);
      const text = `${title}: ${known} of ${P} states known after ${step} of ${rounds.length} rounds`;
      board.el.setAttribute("aria-label", `Segments combined ${text}; ${counts}.`);
      return text;
    });
    said.textContent = says.join(". ") + ".";
    step.limits(0, P - 1);
    step.set(model.get("step"));
    drawn(el);
  };
  const set = (name) => (value) => {
    model.set(name, value);
    model.save_changes();
  };
  const step = slider({ label: "round", min: 0, max: model.get("P") - 1, value: model.get("step"), input: set("step") });
  el.append(
    node("div", { class: "kda-controls", role: "group", "aria-label": "Affine scan controls" },
      slider({ label: "segments", min: 2, max: model.get("info").P_max, value: model.get("P"), input: set("P") }).el,
      step.el,
      slider({ label: "gate", min: 0, max: 1, step: 0.02, value: model.get("gate"), text: (x) => `g = −${x.toFixed(2)}`, input: set("gate") }).el),
    said,
    node("div", { class: "kda-panels" }, ...boards.map((b) => b.el)),
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
