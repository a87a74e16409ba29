"""index.html of a dump directory: every text side by side, with diffs, in one file that needs no network.

The texts lie in the page as JSON; a few lines of script choose two of them and compute the difference (by lines, Myers'
O(ND) algorithm), draw the arena over time and the passes over each fiber, and sort the compiler's passes.  The page has no dependency and no storage.

Source of the diff: E. Myers, An O(ND) Difference Algorithm and Its Variations, Algorithmica 1986.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dlc.control_graph import graph_svg, has_control

LARGEST_TEXT = 4_000_000


def write_report(folder: str | Path) -> Path:
    """Write `index.html` from the other files of the folder; returns its path."""
    folder = Path(folder)
    page = PAGE.replace("@@TITLE@@", folder.resolve().name).replace("@@DATA@@", _embed(collect(folder)))
    path = folder / "index.html"
    path.write_text(page)
    return path


def collect(folder: Path) -> dict[str, Any]:
    """What the page shows: {programs, kernels, passes, memory, schedule, pass_analysis, control, manifest, error}."""
    kernels: dict[str, dict[str, str]] = {}
    for path in sorted(folder.glob("kernels/*")):
        name, _, level = path.name.partition(".")
        kernels.setdefault(name, {})[level] = _read(path)
    return {
        "programs": [{"name": p.name, "text": _read(p)} for p in sorted(folder.glob("[0-9][0-9][0-9]-*.ein"))],
        "kernels": kernels,
        "passes": [json.loads(line) for line in _read(folder / "passes.jsonl").splitlines() if line.strip()],
        "memory": _read_json(folder / "memory.json"),
        "schedule": _read_json(folder / "schedule.json"),
        "pass_analysis": _read_json(folder / "pass_analysis.json"),
        "control": _control(_read_json(folder / "control.json")),
        "manifest": _read_json(folder / "manifest.json"),
        "error": _read(folder / "error.txt"),
    }


def _control(graph: Any) -> str | None:
    """The control graph's drawing, where there is control."""
    return graph_svg(graph) if graph is not None and has_control(graph) else None


def _read(path: Path) -> str:
    if not path.exists():
        return ""
    text = path.read_text(errors="replace")
    return (
        text if len(text) <= LARGEST_TEXT else text[:LARGEST_TEXT] + f"\n... {len(text)} characters, see {path.name}\n"
    )


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def _embed(data: Any) -> str:
    # inside <script>, "</" would end the element and "<!--" start a comment
    return json.dumps(data).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


PAGE = r"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>dlc: @@TITLE@@</title>
<meta name="viewport" content="width=device-width">
<style>
:root { color-scheme: light dark; --edge: #8884; --dim: #8889; --add: #2da04433; --del: #cf222e33; --at: #3b82f6; }
* { box-sizing: border-box } body { margin: 0; font: 14px/1.45 system-ui, sans-serif }
header { padding: .6rem 1rem; border-bottom: 1px solid var(--edge); display: flex; gap: 1rem; align-items: baseline; flex-wrap: wrap }
h1 { font-size: 1.05rem; margin: 0 } nav button, select, input { font: inherit }
nav button { border: 0; background: none; padding: .3rem .6rem; cursor: pointer; color: inherit; border-bottom: 2px solid transparent }
nav button[aria-selected=true] { border-color: var(--at) }
main { padding: 1rem } section[hidden] { display: none }
table { border-collapse: collapse } td, th { padding: .2rem .7rem; text-align: left; border-bottom: 1px solid var(--edge) }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums } tr.same { opacity: .55 } td a { cursor: pointer; color: var(--at) }
pre { margin: 0; font: 12.5px/1.45 ui-monospace, monospace; tab-size: 2 } .cols { display: grid; gap: 1px; background: var(--edge); border: 1px solid var(--edge) }
.cols > div { background: Canvas; overflow: auto; min-width: 0; max-height: 78vh } .cols h3 { margin: 0; padding: .3rem .6rem; font-size: .85rem; position: sticky; top: 0; left: 0; background: Canvas; border-bottom: 1px solid var(--edge) }
.diff { width: 100%; table-layout: fixed } .diff td { padding: 0 .5rem; border: 0; vertical-align: top; font: 12.5px/1.45 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere }
.diff td.l { width: 4.5em; color: var(--dim); text-align: right; user-select: none } .add { background: var(--add) } .del { background: var(--del) } .gap td { color: var(--dim); text-align: center; background: #8881 }
.bar { height: .7em; background: var(--at); display: inline-block; vertical-align: middle } .error { border-left: 4px solid #cf222e; padding: .5rem 1rem; white-space: pre-wrap; font-family: ui-monospace, monospace }
.tools { display: flex; gap: .8rem; align-items: center; flex-wrap: wrap; margin-bottom: .7rem } svg text { font: 11px system-ui; fill: currentColor }
</style></head><body>
<header><h1>dlc: @@TITLE@@</h1><span id="outcome"></span><nav role="tablist" id="tabs"></nav></header>
<main id="main"><noscript>This report needs JavaScript to choose what it shows; the same texts are files beside it.</noscript></main>
<script id="data" type="application/json">@@DATA@@</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const main = document.getElementById("main"), tabs = document.getElementById("tabs");
function make(tag, attributes = {}, ...children) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attributes)) { if (k.startsWith("on")) e[k] = v; else e.setAttribute(k, v); }
  e.append(...children); return e;
}
const sections = {};
function tab(name, fill) {
  const section = make("section", {id: name, hidden: ""}); main.append(section); let done = false;
  const button = make("button", {role: "tab", "aria-selected": "false", onclick: () => show(name)}, name); tabs.append(button);
  sections[name] = {section, button, fill: () => { if (!done) { done = true; fill(section); } }};
}
function show(name) {
  for (const [n, s] of Object.entries(sections)) { s.section.hidden = n !== name; s.button.setAttribute("aria-selected", n === name); }
  sections[name].fill(); history.replaceState(null, "", "#" + name);
}
const ms = s => (s * 1e3).toFixed(2);
const MAX_EDITS = 3000;
function diff(a, b) {                        // Myers: pairs [line of a or -1, line of b or -1]
  let head = 0; while (head < a.length && head < b.length && a[head] === b[head]) head++;
  let tail = 0; while (tail < a.length - head && tail < b.length - head && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail++;
  const n = a.length - head - tail, m = b.length - head - tail, out = [];
  for (let i = 0; i < head; i++) out.push([i, i]);
  const trace = []; let v = new Map([[1, 0]]), found = n + m === 0 ? 0 : -1;
  for (let d = 0; found < 0 && d <= Math.min(n + m, MAX_EDITS); d++) {
    trace.push(new Map(v));
    for (let k = -d; k <= d; k += 2) {
      let x = k === -d || (k !== d && (v.get(k - 1) ?? -1) < (v.get(k + 1) ?? -1)) ? v.get(k + 1) ?? 0 : (v.get(k - 1) ?? 0) + 1;
      let y = x - k; while (x < n && y < m && a[head + x] === b[head + y]) { x++; y++; }
      v.set(k, x); if (x >= n && y >= m) { found = d; break; }
    }
  }
  const middle = [];
  if (found < 0) { for (let i = 0; i < n; i++) middle.push([head + i, -1]); for (let j = 0; j < m; j++) middle.push([-1, head + j]); }
  else {
    let x = n, y = m;
    for (let d = found; d > 0; d--) {
      const w = trace[d], k = x - y, down = k === -d || (k !== d && (w.get(k - 1) ?? -1) < (w.get(k + 1) ?? -1));
      const pk = down ? k + 1 : k - 1, px = w.get(pk) ?? 0, py = px - pk;
      while (x > px && y > py) { x--; y--; middle.push([head + x, head + y]); }
      if (down) { y--; middle.push([-1, head + y]); } else { x--; middle.push([head + x, -1]); }
    }
    while (x > 0 && y > 0) { x--; y--; middle.push([head + x, head + y]); }
    middle.reverse();
  }
  out.push(...middle);
  for (let i = 0; i < tail; i++) out.push([a.length - tail + i, b.length - tail + i]);
  return out;
}
function sideBySide(left, right, context) {
  const a = left.split("\n"), b = right.split("\n"), rows = []; let dels = [], adds = [];
  const flush = () => { for (let i = 0; i < Math.max(dels.length, adds.length); i++) rows.push([dels[i] ?? -1, adds[i] ?? -1, true]); dels = []; adds = []; };
  for (const [i, j] of diff(a, b)) { if (i >= 0 && j >= 0) { flush(); rows.push([i, j, false]); } else if (i >= 0) dels.push(i); else adds.push(j); }
  flush();
  const near = rows.map(() => false);
  rows.forEach((r, at) => { if (r[2]) for (let q = Math.max(0, at - context); q <= Math.min(rows.length - 1, at + context); q++) near[q] = true; });
  const body = make("tbody"); let hidden = 0, changes = 0;
  const cell = (lines, i, cls) => [make("td", {class: "l"}, i >= 0 ? String(i + 1) : ""), make("td", {class: i >= 0 ? cls : ""}, i >= 0 ? lines[i] : "")];
  const gap = () => { if (hidden) body.append(make("tr", {class: "gap"}, make("td", {colspan: 4}, `${hidden} equal lines`))); hidden = 0; };
  rows.forEach(([i, j, changed], at) => {
    if (!near[at] && context < 1e9) { hidden++; return; }
    gap(); changes += changed; body.append(make("tr", {}, ...cell(a, i, changed ? "del" : ""), ...cell(b, j, changed ? "add" : "")));
  });
  gap();
  return [make("table", {class: "diff"}, body), changes];
}
function choose(names, at, onchange) {
  const s = make("select", {onchange}); names.forEach((n, i) => s.append(make("option", {value: i}, n))); s.value = at; return s;
}
let compare = () => {};
if (data.error) tab("error", s => s.append(make("div", {class: "error"}, data.error)));
tab("passes", s => {
  const total = data.passes.reduce((t, p) => t + p.seconds, 0) || 1, body = make("tbody");
  for (const p of data.passes) {
    const where = data.programs.findIndex(f => f.name === p.file), name = p.pass ?? p.stage;
    const link = p.changed && where >= 0 ? make("a", {onclick: () => { show("programs"); compare(Math.max(0, where - 1), where); }}, name) : name;
    const sizes = p.sizes ?? {}, facts = Object.entries(p.statistics ?? {}).map(([k, v]) => `${k} ${v}`).join(", ");
    body.append(make("tr", {class: p.changed || p.stage ? "" : "same"}, make("td", {class: "n"}, String(p.index ?? "")), make("td", {}, link), make("td", {class: "n"}, ms(p.seconds)),
      make("td", {}, make("span", {class: "bar", style: `width:${(120 * p.seconds / total).toFixed(1)}px`})), make("td", {class: "n"}, String(sizes.statements ?? "")),
      make("td", {class: "n"}, String(sizes.einsums ?? "")), make("td", {class: "n"}, String(sizes.kernels ?? "")), make("td", {}, facts)));
  }
  const head = ["", "pass", "ms", "share", "statements", "Einsums", "kernels", "statistics"];
  s.append(make("table", {}, make("thead", {}, make("tr", {}, ...head.map((h, i) => make("th", {class: [0, 2, 4, 5, 6].includes(i) ? "n" : ""}, h)))), body));
});
tab("programs", s => {
  const names = data.programs.map(p => p.name); if (!names.length) { s.append("none"); return; }
  const area = make("div"), count = make("span"); let all = false;
  const draw = () => {
    const l = data.programs[left.value], r = data.programs[right.value]; area.textContent = "";
    const [table, changes] = sideBySide(l.text, r.text, all ? 1e9 : 3); count.textContent = changes ? `${changes} lines differ` : "equal";
    area.append(make("div", {class: "cols"}, make("div", {}, table)));
  };
  const left = choose(names, Math.max(0, names.length - 2), draw), right = choose(names, names.length - 1, draw);
  const toggle = make("input", {type: "checkbox", id: "all", onchange: e => { all = e.target.checked; draw(); }});
  compare = (i, j) => { left.value = i; right.value = j; draw(); };
  const step = by => () => { const j = Math.min(names.length - 1, Math.max(1, Number(right.value) + by)); compare(j - 1, Math.max(j, 0)); };
  s.append(make("div", {class: "tools"}, left, "→", right, make("button", {onclick: step(-1)}, "previous"), make("button", {onclick: step(1)}, "next"),
    make("label", {for: "all"}, toggle, " equal lines too"), count), area);
  draw();
});
tab("kernels", s => {
  const names = Object.keys(data.kernels).sort((a, b) => (a === "dlc_main") - (b === "dlc_main") || (a < b ? -1 : 1)); if (!names.length) { s.append("none"); return; }
  const area = make("div"), order = ["ein", "tile", "mlir", "lowered.mlir", "ll", "s"];
  const draw = () => {
    const levels = Object.entries(data.kernels[names[pick.value]]).sort((a, b) => order.indexOf(a[0]) - order.indexOf(b[0])); area.textContent = "";
    const shown = levels.filter(([l]) => boxes[l]?.checked ?? true);
    area.append(make("div", {class: "cols", style: `grid-template-columns: repeat(${shown.length || 1}, minmax(0, 1fr))`},
      ...shown.map(([l, t]) => make("div", {}, make("h3", {}, l), make("pre", {style: "padding: .5rem"}, t)))));
  };
  const pick = choose(names, 0, draw), boxes = {}, have = new Set(names.flatMap(n => Object.keys(data.kernels[n])));
  const labels = order.filter(l => have.has(l)).map(l => { const b = boxes[l] = make("input", {type: "checkbox", onchange: draw}); b.checked = ["ein", "tile", "mlir", "s"].includes(l); return make("label", {}, b, " " + l); });
  s.append(make("div", {class: "tools"}, pick, ...labels), area); draw();
});
function fiberPicture(cascade, row) {        // Einsums in columns by pass, data flow between them, a line for each barrier
  const ns = "http://www.w3.org/2000/svg", W = 150, H = 24, GX = 60, GY = 12, TOP = 30, columns = {}, at = {};
  const add = (parent, tag, attributes, title) => {
    const e = document.createElementNS(ns, tag); Object.entries(attributes).forEach(([k, v]) => e.setAttribute(k, v));
    if (title) { const t = document.createElementNS(ns, "title"); t.textContent = title; e.append(t); } parent.append(e); return e;
  };
  for (const e of cascade.einsums) (columns[row.index[e.name] ?? 0] ??= []).push(e);
  const used = Object.keys(columns).map(Number).sort((a, b) => a - b), first = used[0] ?? 0, last = Math.max(row.passes, used.at(-1) ?? 0);
  const x = p => 30 + (p - first) * (W + GX), height = TOP + Math.max(1, ...used.map(p => columns[p].length)) * (H + GY) + 10, width = x(last) + W + 10;
  const svg = document.createElementNS(ns, "svg"); svg.setAttribute("viewBox", `0 0 ${width} ${height}`); svg.setAttribute("width", width); svg.setAttribute("role", "img");
  for (let p = first; p <= last; p++) add(svg, "text", {x: x(p), y: 16}).textContent = p ? `pass ${p}` : "elsewhere";
  used.forEach(p => columns[p].forEach((e, n) => { at[e.name] = {p, x: x(p), y: TOP + n * (H + GY)}; }));
  for (const e of cascade.einsums) for (const r of e.reads) {
    const a = at[r], b = at[e.name]; if (!a || a === b) continue;
    const d = a.p === b.p ? `M${a.x} ${a.y + H / 2} C${a.x - 22} ${a.y + H / 2} ${b.x - 22} ${b.y + H / 2} ${b.x} ${b.y + H / 2}`
      : `M${a.x + W} ${a.y + H / 2} C${a.x + W + 30} ${a.y + H / 2} ${b.x - 30} ${b.y + H / 2} ${b.x} ${b.y + H / 2}`;
    add(svg, "path", {d, fill: "none", stroke: "currentColor", "stroke-opacity": .35}, `${r} → ${e.name}`);
  }
  for (const p of new Set(row.barriers.map(b => b.pass))) {
    const why = row.barriers.filter(b => b.pass === p).map(b => b.why).join("\n"), at = x(p) - GX / 2;
    add(svg, "line", {x1: at, x2: at, y1: 4, y2: height - 4, stroke: "#cf222e", "stroke-width": 2, "stroke-dasharray": "6 3"});
    add(svg, "rect", {x: at - 8, y: 0, width: 16, height, fill: "#cf222e", "fill-opacity": 0, class: "barrier"}, why);
  }
  for (const e of cascade.einsums) {
    const b = at[e.name];
    add(svg, "rect", {x: b.x, y: b.y, width: W, height: H, rx: 4, fill: b.p ? `hsl(${210 + 60 * (b.p - 1)} 60% 60% / .35)` : "#8882", stroke: "currentColor", "stroke-opacity": .5}, `${e.name} reads ${e.reads.join(", ") || "nothing"}`);
    add(svg, "text", {x: b.x + 8, y: b.y + 16}).textContent = e.name.length > 22 ? e.name.slice(0, 21) + "…" : e.name;
  }
  return svg;
}
if (data.pass_analysis && data.pass_analysis.cascades.length) tab("fibers", s => {
  const all = data.pass_analysis.cascades, area = make("div"), label = r => `${r.tensor} along ${r.rank}: ${r.passes}${r.partition ? " (in a block)" : ""}`;
  const tools = make("div", {class: "tools"}); let rows;
  const draw = () => {
    const c = all[which.value], r = c.rows[rows.value]; area.textContent = "";
    const t = c.traffic, facts = [`${c.level} ${c.cascade}: ${c.passes} passes`];
    if (r) facts.push(`live: ${r.footprint.elements} elements of ${r.tensor}, ${r.footprint.bytes} bytes`, ...Object.entries(r.repeats).map(([k, n]) => `again in each of the ${n} steps of ${k}`));
    facts.push(t.ratio === null ? `traffic at least ${t.bound} bytes, S words of cache` : `traffic ${t.moved_bytes.toLocaleString()} bytes, at least ${t.bound_bytes.toLocaleString()}: ${t.ratio} times the bound`);
    area.append(...facts.map(f => make("div", {}, f))); if (!r) return;
    const picture = make("div", {style: "overflow-x: auto; margin: .7rem 0"}); picture.append(fiberPicture(c, r));
    area.append(picture, make("ul", {}, ...r.barriers.map(b => make("li", {}, `pass ${b.pass}: ${b.why}`))));
  };
  const pickCascade = () => {
    const c = all[which.value], best = c.rows.reduce((m, r, i) => !r.partition && r.passes > (c.rows[m]?.passes ?? 0) ? i : m, 0), next = choose(c.rows.map(label), c.rows.length ? best : "", draw);
    if (rows) rows.replaceWith(next); else tools.append(next);
    rows = next; draw();
  };
  const which = choose(all.map(c => `${c.level} ${c.cascade}: ${c.passes}`), all.reduce((m, c, i) => c.passes > all[m].passes ? i : m, 0), pickCascade);
  tools.prepend(which); s.append(tools, area); pickCascade();
});
if (data.control) tab("control", s => { const box = make("div", {style: "overflow: auto"}); box.innerHTML = data.control; s.append(box); });
tab("memory", s => {
  const m = data.memory; if (!m || !m.buffers || !m.buffers.length) { s.append("no plan"); return; }
  const W = 1100, H = 460, steps = Math.max(1, m.steps ?? Math.max(...m.buffers.map(b => b.last)) + 1), bytes = Math.max(1, m.arena_bytes ?? Math.max(...m.buffers.map(b => b.offset + b.bytes)));
  const ns = "http://www.w3.org/2000/svg", svg = document.createElementNS(ns, "svg"); svg.setAttribute("viewBox", `0 0 ${W} ${H + 24}`); svg.setAttribute("width", "100%");
  m.buffers.forEach((b, i) => {
    const r = document.createElementNS(ns, "rect"), t = document.createElementNS(ns, "title"), x = W * b.first / steps, w = W * (b.last + 1 - b.first) / steps, h = H * b.bytes / bytes;
    Object.entries({x, y: H - H * b.offset / bytes - h, width: Math.max(w, 1), height: Math.max(h, .5), fill: `hsl(${i * 47 % 360} 60% 60%)`, stroke: "#0006", "stroke-width": .4}).forEach(([k, v]) => r.setAttribute(k, v));
    t.textContent = `${b.name}: ${b.bytes.toLocaleString()} bytes at ${b.offset.toLocaleString()}, steps ${b.first} to ${b.last}`; r.append(t); svg.append(r);
  });
  const label = document.createElementNS(ns, "text"); label.setAttribute("x", 0); label.setAttribute("y", H + 16); label.textContent = `steps 0 to ${steps - 1} →   address ↑ 0 to ${bytes.toLocaleString()} bytes`; svg.append(label);
  s.append(svg);
});
if (data.schedule) tab("schedule", s => s.append(make("pre", {}, JSON.stringify(data.schedule, null, 2))));
tab("manifest", s => s.append(make("pre", {}, JSON.stringify(data.manifest, null, 2))));
const o = data.manifest ?? {};
document.getElementById("outcome").textContent = [o.model, o.outcome, o.seconds !== undefined ? o.seconds + " s" : ""].filter(Boolean).join(" · ");
show(sections[location.hash.slice(1)] ? location.hash.slice(1) : data.error ? "error" : "passes");
document.documentElement.dataset.ready = "yes";
</script></body></html>
"""
