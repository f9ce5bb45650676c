// State evolution. `evolve` and `recall` are the twins of kda_lab.widgets.state_evolution, computed
// here so that a drag never waits for the kernel; tests/browser compares them number by number.

function unpack(info, bytes) {
  const { T, K, V, P } = info;
  const all = floats(bytes, Float64Array);
  let at = 0;
  const take = (n) => all.subarray(at, (at += n));
  return { ...info, k: take(T * K), v: take(T * V), g: take(T * K), gScalar: take(T), keys: take(P * K) };
}

/** States after each token, [T, K, V] in one array. */
function evolve({ T, K, V, k, v, g, gScalar }, mode, beta, dead) {
  const states = new Float32Array(T * K * V);
  const S = new Float64Array(K * V), u = new Float64Array(V);
  for (let t = 0; t < T; t++) {
    if (mode === "gated" || mode === "kda") {
      for (let c = 0; c < K; c++) {
        const gone = mode === "kda" ? c === dead : dead >= 0;
        const alpha = gone ? 0 : Math.exp(mode === "kda" ? g[t * K + c] : gScalar[t]);
        if (alpha !== 1) for (let d = c * V; d < (c + 1) * V; d++) S[d] *= alpha;
      }
    }
    for (let d = 0; d < V; d++) u[d] = v[t * V + d];
    if (mode !== "linear") {
      for (let c = 0; c < K; c++) {
        const kc = k[t * K + c];
        if (kc !== 0) for (let d = 0; d < V; d++) u[d] -= kc * S[c * V + d];
      }
      for (let d = 0; d < V; d++) u[d] *= beta;
    }
    for (let c = 0; c < K; c++) {
      const kc = k[t * K + c];
      if (kc !== 0) for (let d = 0; d < V; d++) S[c * V + d] += kc * u[d];
    }
    states.set(S, t * K * V);
  }
  return states;
}

/** hit and leak of each pair in the state S [K, V] after token `now`; see the Python twin. */
function recall({ K, V, P, v, keys, wanted }, S, now) {
  const hit = new Array(P).fill(0), leak = new Array(P).fill(0);
  const r = new Float64Array(V);
  for (let p = 0; p < P; p++) {
    const source = wanted[now * P + p];
    if (source === -1) continue;
    r.fill(0);
    for (let c = 0; c < K; c++) {
      const kc = keys[p * K + c];
      if (kc !== 0) for (let d = 0; d < V; d++) r[d] += kc * S[c * V + d];
    }
    let rv = 0, vv = source >= 0 ? 0 : 1, rest = 0;
    if (source >= 0) for (let d = 0; d < V; d++) (rv += r[d] * v[source * V + d]), (vv += v[source * V + d] ** 2);
    hit[p] = rv / vv;
    for (let d = 0; d < V; d++) rest += (r[d] - (source >= 0 ? hit[p] * v[source * V + d] : 0)) ** 2;
    leak[p] = Math.sqrt(rest / vv);
  }
  return { hit, leak };
}

const SIDE = 134, LEFT = 32, TOP = 18, ENERGY = 24, ROW = 15;

function drawPanel(pen, story, states, now, high, most, dead, colours) {
  const { K, V, P, pairs, wanted } = story;
  const S = states.subarray(now * K * V, (now + 1) * K * V);
  heat(pen, LEFT, TOP, SIDE, SIDE, S, K, V, high, colours);
  if (K <= 8 && V <= 8) numbers(pen, LEFT, TOP, SIDE, SIDE, S, K, V, high, colours);
  story.columns.forEach((name, d) =>
    write(pen, name, LEFT + ((d + 0.5) * SIDE) / V, TOP - 9, { color: colours.values, align: "center", size: 10.5 }));
  story.rows.forEach((name, c) =>
    write(pen, name, LEFT - 6, TOP + ((c + 0.5) * SIDE) / K, { color: colours.keys, align: "right" }));
  if (!story.rows.length) {
    write(pen, "value channel →", LEFT, TOP - 9, { color: colours.values, size: 10.5 });
    pen.save();
    pen.translate(LEFT - 12, TOP);
    pen.rotate(-Math.PI / 2);
    write(pen, "← key channel", 0, 0, { color: colours.keys, align: "right", size: 10.5 });
    pen.restore();
  }
  const x0 = LEFT + SIDE + 4;
  pen.fillStyle = colours.state;
  const step = SIDE / K, thick = Math.max(1, step * 0.6);
  for (let c = 0; c < K; c++) {
    let sum = 0;
    for (let d = 0; d < V; d++) sum += S[c * V + d] ** 2;
    pen.fillRect(x0, TOP + (c + 0.5) * step - thick / 2, (Math.sqrt(sum) / most) * ENERGY, thick);
  }
  if (dead >= 0) {
    const y = TOP + (dead + 0.5) * step;
    write(pen, "✕", x0 + ENERGY - 4, y, { color: colours.gate, size: 13, weight: "bold" });
    line(pen, colours.gate, 2, [LEFT - 3, y - Math.max(step, 4) / 2], [LEFT - 3, y + Math.max(step, 4) / 2]);
  }
  const y0 = TOP + SIDE + 14, unit = 78;
  const { hit, leak } = recall(story, S, now);
  line(pen, colours.muted, 1, [LEFT, y0 - 4], [LEFT, y0 + P * ROW]);
  for (let p = 0; p < P; p++) {
    const y = y0 + p * ROW, source = wanted[now * P + p];
    const own = P > 4 ? colours.values : colours.pairs[p];
    write(pen, pairs[p], LEFT - 6, y + 6, { color: source >= 0 ? colours.ink : colours.muted, align: "right" });
    if (source === -1) continue;
    const clip = (x) => Math.max(-LEFT / 3, Math.min(1.5 * unit, x * unit));
    pen.fillStyle = own;
    pen.fillRect(LEFT, y, clip(hit[p]), 7);
    pen.fillStyle = colours.error;
    pen.fillRect(LEFT, y + 8, clip(leak[p]), 4);
    const says = source === -2 ? "has left" : short(hit[p]);
    write(pen, says, LEFT + 1.56 * unit, y + 6, { color: colours.muted, size: 10.5 });
  }
  line(pen, colours.reference, 1.5, [LEFT + unit, y0 - 4], [LEFT + unit, y0 + P * ROW]);
  write(pen, "0", LEFT, y0 + P * ROW + 8, { color: colours.muted, align: "center", size: 10 });
  write(pen, "1 = exact", LEFT + unit, y0 + P * ROW + 8, { color: colours.muted, align: "center", size: 10 });
  return { hit, leak };
}

function render({ model, el }) {
  const story = unpack(model.get("story_info"), model.get("story_data"));
  const modes = model.get("modes");
  const gated = modes.some((m) => m === "gated" || m === "kda");
  const steered = modes.some((m) => m !== "linear");
  let states = {}, high = 1, most = 1, timer = null, waiting = false, computed = "";

  const compute = () => {
    const wanted = [model.get("beta"), model.get("dead")].join();
    if (computed === wanted) return;
    computed = wanted;
    high = most = 1e-6;
    for (const mode of modes) {
      const all = (states[mode] = evolve(story, mode, model.get("beta"), model.get("dead")));
      for (let i = 0; i < all.length; i++) high = Math.max(high, Math.abs(all[i]));
      for (let row = 0; row < all.length; row += story.V) {
        let sum = 0;
        for (let d = row; d < row + story.V; d++) sum += all[d] ** 2;
        most = Math.max(most, Math.sqrt(sum));
      }
    }
    if (story.K > 8) high /= 3; // large states have few large entries
  };
  const width = LEFT + SIDE + 4 + ENERGY + 4, height = TOP + SIDE + 14 + story.P * ROW + 18;
  const panels = modes.map((mode) => {
    const board = canvas(width, height);
    const [title, rule] = story.titles[mode];
    return { mode, board, el: node("figure", { class: "kda-panel" }, node("figcaption", {}, title, node("span", {}, rule)), board.el) };
  });

  const draw = () => {
    waiting = false;
    const colours = theme(el, model), now = model.get("token") - 1;
    for (const { mode, board } of panels) {
      const dead = mode === "kda" ? model.get("dead") : -1;
      const { hit } = drawPanel(board.pen(), story, states[mode], now, high, most, dead, colours);
      const shares = story.pairs.map((name, p) => [name, p]).filter(([, p]) => story.wanted[now * story.P + p] >= 0);
      board.el.setAttribute("aria-label", `${story.titles[mode][0]}: state after token ${now + 1}. Recalled: ` +
        shares.map(([name, p]) => `${name} ${short(hit[p])}`).join(", "));
    }
    said.textContent = `Token ${now + 1} of ${story.T}: ${story.texts[now]}`;
    chips.forEach((chip, i) => (i === now ? chip.setAttribute("aria-current", "step") : chip.removeAttribute("aria-current")));
    drawn(el);
  };
  const soon = () => {
    if (!waiting) requestAnimationFrame(draw);
    waiting = true;
  };
  const set = (name, value) => {
    model.set(name, value); // calls `follow`
    model.save_changes();
  };

  const token = slider({ label: "token", min: 1, max: story.T, value: model.get("token"), text: (x) => `${x} / ${story.T}`,
    input: (x) => set("token", x) });
  const play = node("button", { type: "button", "aria-pressed": "false", onclick: () => (timer ? stop() : start()) }, "▶ play");
  const show = () => {
    play.textContent = timer ? "❚❚ pause" : "▶ play";
    play.setAttribute("aria-pressed", String(Boolean(timer)));
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    show();
  };
  const start = () => {
    const next = () => {
      const now = model.get("token") >= story.T ? 1 : model.get("token") + 1;
      set("token", now);
      if (now === story.T) stop();
    };
    timer = setInterval(next, story.T > 12 ? 200 : 900);
    next();
    show();
  };
  const controls = [token.el, play];
  if (steered)
    controls.push(slider({ label: "β", min: 0, max: story.beta_max, step: 0.05, value: model.get("beta"),
      text: (x) => x.toFixed(2), input: (x) => set("beta", x) }).el);
  if (gated) {
    const names = Array.from({ length: story.K }, (_, c) => [c, `channel ${story.rows[c] || c}`]);
    controls.push(chooser({ label: "set α to 0 in", options: [[-1, "no channel"], ...names], value: model.get("dead"),
      input: (x) => set("dead", Number(x)) }).el);
  }
  const chips = story.T > 12 ? [] : story.texts.map((text) => node("li", {}, text));
  const said = node("p", { class: "kda-said", role: "status" });
  el.append(
    node("div", { class: "kda-controls", role: "group", "aria-label": "State evolution controls" }, ...controls),
    chips.length ? node("ol", { class: "kda-tokens" }, ...chips) : "",
    said,
    node("div", { class: "kda-panels" }, ...panels.map((p) => p.el)),
    node("p", { class: "kda-reading" }, model.get("reading")),
  );
  const leave = frame(el, model, draw);
  const follow = () => {
    token.set(model.get("token"));
    compute();
    soon();
  };
  model.on("change:beta change:dead change:token", follow);
  compute();
  draw();
  return () => {
    stop();
    leave();
    model.off("change:beta change:dead change:token", follow);
  };
}

export { evolve, recall, unpack };
export default { render };
