// The table of classes: searched, sorted, and drawn a screenful at a time, so that 8,142 rows open
// at once. Names are only ever set as text, never as HTML.
"use strict";
for (const part of document.querySelectorAll("[data-rows]")) {
  const { columns, bins, rows, thumbs } = JSON.parse(part.querySelector("script").textContent);
  const body = part.querySelector("tbody"), search = part.querySelector("input");
  const told = part.querySelector(".told"), card = part.querySelector(".hover");
  const heads = [...part.querySelectorAll("thead button")];
  const STEP = 60;
  let order = rows.map((_, i) => i), drawn = 0, by = 3, down = false, held = null;

  const make = (tag, text, kind) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (kind) node.className = kind;
    return node;
  };
  const shown = (value, kind) =>
    value === null ? "–" : kind === "share" ? value.toFixed(3) : String(value);
  const picture = (i) => {
    if (!thumbs[i]) return make("span", "", "thumb");
    const image = make("img", undefined, "thumb");
    image.src = "data:image/jpeg;base64," + thumbs[i];
    image.alt = "";
    return image;
  };
  // a bar with its interval, from 0 to 1
  const bar = (value, low, high) => {
    const outer = make("span", undefined, "bar"), inner = make("i"), whisker = make("u");
    inner.style.width = 100 * value + "%";
    whisker.style.left = 100 * low + "%";
    whisker.style.width = 100 * (high - low) + "%";
    outer.append(inner, whisker);
    return outer;
  };
  const line = (i) => {
    const row = make("tr"), values = rows[i];
    row.tabIndex = -1;
    row.dataset.row = i;
    columns.forEach(([, kind], c) => {
      const cell = make(c ? "td" : "th", undefined, kind), value = values[c];
      if (c === 0) cell.append(picture(i), make("span", value, "name"));
      else if (kind === "bin") {
        const dot = make("span", undefined, "dot");
        dot.style.setProperty("--c", bins[value]);
        cell.append(dot, value);
      } else if (kind === "recall") {
        cell.append(value === null ? "–" : value.toFixed(3));
        if (value !== null) cell.append(bar(value, ...values[columns.length]));
      } else if (kind === "text wide") cell.append(make("span", value, "name"));
      else cell.append(shown(value, kind));
      row.append(cell);
    });
    return row;
  };
  // the table is one stop of the tab key; the arrows go from row to row
  const hold = (row) => {
    if (held) held.tabIndex = -1;
    held = row;
    row.tabIndex = 0;
  };
  const walk = (event) => {
    const forward = event.key === "ArrowDown";
    if (!forward && event.key !== "ArrowUp") return;
    event.preventDefault();
    if (forward && !held.nextSibling) more();
    const next = forward ? held.nextSibling : held.previousSibling;
    if (next) next.focus();
  };
  const more = () => {
    const next = order.slice(drawn, drawn + STEP);
    body.append(...next.map(line));
    drawn += next.length;
    told.textContent = `${order.length} of ${rows.length} classes`;
  };
  const again = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const text = (i) => `${rows[i][0]} ${rows[i][1]}`.toLowerCase();
    const key = (i) => rows[i][by];
    order = rows.map((_, i) => i).filter((i) => words.every((word) => text(i).includes(word)));
    order.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      const less = typeof x === "string" ? x.localeCompare(y) : x - y;
      return (down ? -less : less) || a - b;
    });
    body.replaceChildren();
    drawn = 0;
    card.hidden = true;
    heads.forEach((head, c) => {
      const sorted = c === by ? (down ? "descending" : "ascending") : "none";
      head.parentElement.setAttribute("aria-sort", sorted);
    });
    more();
    if (body.firstChild) hold(body.firstChild);
  };
  heads.forEach((head, c) => head.addEventListener("click", () => {
    down = c === by ? !down : columns[c][1] === "count";
    by = c;
    again();
  }));
  search.addEventListener("input", again);
  new IntersectionObserver((seen) => {
    if (seen.some((entry) => entry.isIntersecting) && drawn < order.length) more();
  }, { rootMargin: "400px", root: part.querySelector(".scroll") }).observe(part.querySelector(".end"));

  const open = (event) => {
    const row = event.target.closest("tr[data-row]");
    if (!row) return;
    const i = row.dataset.row, facts = make("dl");
    columns.forEach(([name, kind], c) => {
      if (c) facts.append(make("dt", name), make("dd", shown(rows[i][c], kind === "recall" ? "share" : kind)));
    });
    card.replaceChildren(picture(i), make("b", rows[i][0]), facts);
    card.hidden = false;
    const box = row.getBoundingClientRect();
    const left = Math.min(event.clientX || box.left, innerWidth - card.offsetWidth - 12) + 10;
    card.style.left = Math.max(4, Math.min(left, innerWidth - card.offsetWidth - 4)) + "px";
    const below = box.bottom + 4, fits = below + card.offsetHeight < innerHeight;
    card.style.top = (fits ? below : Math.max(4, box.top - card.offsetHeight - 4)) + "px";
  };
  const close = () => { card.hidden = true; };
  body.addEventListener("mouseover", open);
  body.addEventListener("focusin", (event) => { hold(event.target.closest("tr")); open(event); });
  body.addEventListener("keydown", walk);
  body.addEventListener("mouseleave", close);
  body.addEventListener("focusout", close);
  addEventListener("scroll", close, { passive: true });
  addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });
  again();
}
