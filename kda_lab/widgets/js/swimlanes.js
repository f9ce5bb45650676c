// Swim lanes: spans of a trace on a time axis, one lane a role.

const ROW_H = 22, GAP = 8, NAMES = 120, AXIS = 30, WIDE = 900;

/** Round steps for about `count` ticks over `span`. */
function ticks(from, span, count) {
  const raw = span / count, base = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * base).find((s) => s >= raw);
  const out = [];
  for (let x = Math.ceil(from / step) * step; x <= from + span; x += step) out.push(x);
  return out;
}

function hatch(pen, x, y, w, h, color) {
  pen.save();
  pen.beginPath();
  pen.rect(x, y, w, h);
  pen.clip();
  for (let d = -h; d < w; d += 6) line(pen, color, 1, [x + d, y + h], [x + d + h, y]);
  pen.restore();
  pen.strokeStyle = color;
  pen.strokeRect(x, y, w, h);
}

function render({ model, el }) {
  let waiting = false, chosen = -1, where = [];
  const rows = () => model.get("picture").lanes.reduce((n, l) => n + l.rows.length, 0);
  const height = () => rows() * ROW_H + model.get("picture").lanes.length * GAP + AXIS;
  const board = canvas(WIDE, height());

  const window_ = () => {
    const p = model.get("picture"), whole = p.end - p.begin || 1, span = whole / model.get("zoom");
    return { from: p.begin + model.get("start") * (whole - span), span };
  };
  const draw = () => {
    waiting = false;
    const colours = theme(el, model), p = model.get("picture"), { from, span } = window_();
    const pen = board.pen(WIDE, height()), wide = WIDE - NAMES - 8;
    const x = (time) => NAMES + ((time - from) / span) * wide;
    where = [];
    let y = 2;
    for (const lane of p.lanes) {
      write(pen, lane.role, NAMES - 8, y + (lane.rows.length * ROW_H) / 2, { color: colours.ink, align: "right", size: 12 });
      for (const row of lane.rows) {
        for (const i of row) {
          const s = p.spans[i];
          if (s.end < from || s.begin > from + span) continue;
          const left = Math.max(NAMES, x(s.begin)), w = Math.max(1, Math.min(WIDE - 8, x(s.end)) - left);
          where.push([left, y, w, i]);
          if (s.what === "wait") hatch(pen, left, y + 4, w, ROW_H - 8, colours.line);
          else {
            pen.globalAlpha = s.phase === 1 ? 0.6 : 1;
            pen.fillStyle = colours[s.meaning];
            pen.fillRect(left, y + 1, w, ROW_H - 2);
            pen.globalAlpha = 1;
            if (s.stage !== null && w > 11)
              write(pen, String(s.stage), left + w / 2, y + ROW_H / 2, { color: colours.paper, align: "center", weight: "bold" });
          }
          if (i === chosen) {
            pen.strokeStyle = colours.ink;
            pen.lineWidth = 2.5;
            pen.strokeRect(left, y + 1, Math.max(3, w), ROW_H - 2);
          }
        }
        y += ROW_H;
      }
      y += GAP;
      line(pen, colours.line, 1, [0, y - GAP / 2], [WIDE, y - GAP / 2]);
    }
    for (const time of ticks(from, span, 8)) {
      line(pen, colours.muted, 1, [x(time), y], [x(time), y + 4]);
      write(pen, String(Math.round(time)), x(time), y + 13, { color: colours.muted, align: "center" });
    }
    write(pen, p.unit, NAMES - 8, y + 13, { color: colours.muted, align: "right" });
    board.el.setAttribute("aria-label", `Swim lanes of ${p.title}: roles ${p.lanes.map((l) => l.role).join(", ")}`);
    said.textContent = chosen >= 0 ? p.spans[chosen].text : p.title;
    drawn(el);
  };
  const soon = () => {
    if (!waiting) requestAnimationFrame(draw);
    waiting = true;
  };
  const set = (name, value) => {
    model.set(name, value);
    model.save_changes();
    soon();
  };
  const choose = (i) => {
    chosen = i;
    const p = model.get("picture"), s = p.spans[i], { from, span } = window_();
    if (s && (s.end < from || s.begin > from + span)) {
      const whole = p.end - p.begin || 1, room = whole - whole / model.get("zoom");
      move.set(room > 0 ? Math.max(0, Math.min(1, (s.begin - p.begin - span * 0.1) / room)) : 0);
      set("start", Number(move.range.value));
    }
    soon();
  };
  const step = (by) => () => {
    const order = model.get("picture").order;
    const at = order.indexOf(chosen) + by;
    choose(order[(at + order.length) % order.length]);
  };
  board.el.addEventListener("click", (e) => {
    const box = board.el.getBoundingClientRect(), scale = WIDE / box.width;
    const [x, y] = [(e.clientX - box.left) * scale, (e.clientY - box.top) * scale];
    const hit = where.find(([left, top, w]) => x >= left - 2 && x <= left + w + 2 && y >= top && y <= top + ROW_H);
    choose(hit ? hit[3] : -1);
  });
  const zoom = slider({ label: "zoom", min: 1, max: 40, step: 0.5, value: model.get("zoom"), text: (x) => `${x}×`, input: (x) => set("zoom", x) });
  const move = slider({ label: "move", min: 0, max: 1, step: 0.01, value: model.get("start"),
    text: (x) => `${Math.round(100 * x)}%`, input: (x) => set("start", x) });
  const controls = [zoom.el, move.el,
    node("button", { type: "button", onclick: step(-1) }, "◀ span"),
    node("button", { type: "button", onclick: step(1) }, "span ▶")];
  if (model.get("blocks").length > 1)
    controls.push(chooser({ label: "block", options: model.get("blocks").map((b) => [b, `block ${b}`]), value: model.get("block"),
      input: (b) => { chosen = -1; set("block", Number(b)); } }).el);
  const said = node("p", { class: "kda-said", role: "status" });
  el.append(
    node("div", { class: "kda-controls", role: "group", "aria-label": "Swim lane controls" }, ...controls),
    said,
    node("div", { class: "kda-panels" }, board.el),
    node("p", { class: "kda-reading" }, model.get("reading")),
  );
  const leave = frame(el, model, draw);
  model.on("change:picture change:zoom change:start", soon);
  draw();
  return () => {
    leave();
    model.off("change:picture change:zoom change:start", soon);
  };
}

export { ticks };
export default { render };
