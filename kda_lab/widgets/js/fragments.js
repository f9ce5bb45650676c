// Fragments: three grids laid out as a product on paper; the chosen thread's cells are filled.

const CELL = 19, GAP = 30, LEFT = 4, TOP = 22;
const SPOT = {
  A: [LEFT, TOP + 16 * CELL + GAP, "keys"],
  B: [LEFT + 16 * CELL + GAP, TOP, "values"],
  C: [LEFT + 16 * CELL + GAP, TOP + 16 * CELL + GAP, "state"],
};
const WIDTH = LEFT + 24 * CELL + GAP + 250, HEIGHT = TOP + 32 * CELL + GAP + 6;

function drawGrid(pen, name, owners, thread, colours) {
  const [x0, y0, meaning] = SPOT[name], color = colours[meaning];
  const rows = owners.length, columns = owners[0].length;
  write(pen, `${name}  ${rows} × ${columns}`, x0, y0 - 11, { color, size: 13, weight: "bold" });
  owners.forEach((row, i) => row.forEach(([t, v], j) => {
    const own = t === thread, x = x0 + j * CELL, y = y0 + i * CELL;
    pen.globalAlpha = own ? 1 : 0.08 + 0.1 * (t % 4);
    pen.fillStyle = color;
    pen.fillRect(x, y, CELL - 1, CELL - 1);
    pen.globalAlpha = 1;
    write(pen, own ? `${name.toLowerCase()}${v}` : String(t), x + CELL / 2 - 0.5, y + CELL / 2,
      { color: own ? colours.paper : colours.ink, align: "center", size: 10, weight: own ? "bold" : "" });
  }));
}

function held(owners, thread) {
  const found = [];
  owners.forEach((row, i) => row.forEach(([t, v], j) => t === thread && (found[v] = [i, j])));
  return found;
}

function render({ model, el }) {
  const board = canvas(WIDTH, HEIGHT), owners = model.get("owners");
  const said = node("p", { class: "kda-said", role: "status" });
  const draw = () => {
    const colours = theme(el, model), thread = model.get("thread"), pen = board.pen();
    for (const name of "ABC") drawGrid(pen, name, owners[name], thread, colours);
    const x = LEFT + 24 * CELL + GAP + 24;
    let y = TOP + 6;
    write(pen, `Thread ${thread}: group ${thread >> 2}, place ${thread & 3} in it`, x, y, { color: colours.ink, size: 13, weight: "bold" });
    const says = [];
    for (const name of "ABC") {
      const where = held(owners[name], thread), low = name.toLowerCase();
      y += 26;
      write(pen, `${name}: ${where.length} ${name === "C" ? "fp32 values" : "bf16 values"} in ${name === "C" ? where.length : where.length / 2} registers`,
        x, y, { color: colours[SPOT[name][2]], size: 12, weight: "bold" });
      const step = name === "C" ? 1 : 2;
      for (let v = 0; v < where.length; v += step) {
        y += 16;
        const cells = where.slice(v, v + step).map(([i, j], n) => `${low}${v + n} = ${name}[${i},${j}]`).join("   ");
        write(pen, `r${v / step}   ${cells}`, x, y, { color: colours.ink, size: 11.5 });
      }
      says.push(`${name} ${where.map(([i, j]) => `(${i},${j})`).join(" ")}`);
    }
    said.textContent = `Thread ${thread} holds, as (row, column): ${says.join("; ")}.`;
    board.el.setAttribute("aria-label", said.textContent);
    choice.set(thread);
    drawn(el);
  };
  const set = (thread) => {
    model.set("thread", Math.max(0, Math.min(31, thread))); // draws, by the event below
    model.save_changes();
  };
  const choice = slider({ label: "thread", min: 0, max: 31, value: model.get("thread"), input: set });
  board.el.style.cursor = "pointer";
  board.el.addEventListener("click", (e) => {
    const box = board.el.getBoundingClientRect(), zoom = WIDTH / box.width;
    const at = [(e.clientX - box.left) * zoom, (e.clientY - box.top) * zoom];
    for (const name of "ABC") {
      const [x0, y0] = SPOT[name];
      const cell = owners[name][Math.floor((at[1] - y0) / CELL)]?.[Math.floor((at[0] - x0) / CELL)];
      if (cell) set(cell[0]);
    }
  });
  el.append(
    node("div", { class: "kda-controls", role: "group", "aria-label": "Fragments controls" }, choice.el,
      node("span", {}, "or click an element")),
    said,
    board.el,
    node("p", { class: "kda-reading" }, model.get("reading")),
  );
  const leave = frame(el, model, draw);
  model.on("change:thread", draw);
  draw();
  return () => {
    leave();
    model.off("change:thread", draw);
  };
}

export default { render };
