// The questions of a report. Everything is read from the JSON in this file and put into the page as
// text: no markup is ever made of data.
"use strict";
(() => {
  const PAGE = 25; // questions shown at a time
  const PASSAGES = 5; // passages shown before more are asked for

  const json = (id) => JSON.parse(document.getElementById(id).textContent);
  const data = json("index");
  const rows = data.questions;
  rows.forEach((row, place) => { row.place = place; });

  // An item of a table that is read in blocks.
  const blocks = new Map();
  function item(kind, number) {
    const size = data.sizes[kind];
    const name = `${kind}-${Math.floor(number / size)}`;
    if (!blocks.has(name)) blocks.set(name, json(name));
    return blocks.get(name)[number % size];
  }

  const { el, matches } = ravqa;
  const count = (number) => number.toLocaleString("en");
  const badge = (kind, text) => el("span", { class: `badge ${kind}` }, text);

  // ---- filters and order ----------------------------------------------------------------------

  const filters = [
    data.scored && {
      name: "answer",
      chips: {
        right: (row) => row.s >= 0.9999,
        partly: (row) => row.s > 0 && row.s < 0.9999,
        wrong: (row) => row.s === 0,
      },
    },
    data.compared && {
      name: "retrieval",
      chips: {
        helped: (row) => row.turned > 0,
        hurt: (row) => row.turned < 0,
        ...(data.moved && {
          "score up": (row) => row.gain > 0,
          "score down": (row) => row.gain < 0,
        }),
      },
    },
    data.retrieved && {
      name: "passages",
      chips: { "answer found": (row) => row.rank > 0, "not found": (row) => row.rank === 0 },
    },
  ].filter(Boolean);

  const orders = { "as in the dataset": null };
  if (data.scored) {
    orders["score, lowest first"] = [(row) => row.s, 1];
    orders["score, highest first"] = [(row) => row.s, -1];
  }
  if (data.compared) {
    orders["gain by retrieval, largest first"] = [(row) => row.gain, -1];
    orders["loss by retrieval, largest first"] = [(row) => row.gain, 1];
  }
  if (data.retrieved) {
    const rank = (row) => (row.rank === 0 ? Infinity : row.rank);
    orders["first passage with an answer, nearest first"] = [rank, 1];
    orders["first passage with an answer, farthest first"] = [rank, -1];
    orders["score of the first passage, highest first"] = [(row) => row.top, -1];
    orders["score of the first passage, lowest first"] = [(row) => row.top, 1];
  }

  const state = { words: [], chips: new Set(), type: "", order: "as in the dataset", page: 0 };
  let shown = rows;

  function haystack(row) {
    row.hay ??= [row.id, row.q, row.a ?? "", ...row.refs].join("\n").toLowerCase();
    return row.hay;
  }

  function wanted(row) {
    if (state.type && row.type !== state.type) return false;
    for (const { chips } of filters) {
      const on = Object.keys(chips).filter((name) => state.chips.has(name));
      if (on.length && !on.some((name) => chips[name](row))) return false;
    }
    return state.words.every((word) => haystack(row).includes(word));
  }

  function choose() {
    shown = rows.filter(wanted);
    const order = orders[state.order];
    if (order) {
      const [key, sign] = order;
      const value = (row) => key(row) ?? sign * Infinity; // what has no value comes last
      shown.sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        return x === y ? a.place - b.place : sign * (x < y ? -1 : 1);
      });
    }
    state.page = 0;
    draw();
  }

  // ---- the tools above the list ---------------------------------------------------------------

  const root = document.getElementById("browser");
  const list = el("div", { class: "cards" });
  const search = el("input", {
    type: "search",
    placeholder: "Search questions and answers",
    "aria-label": "Search questions, answers and ids",
    autocomplete: "off",
    spellcheck: "false",
    input: () => {
      state.words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      choose();
    },
  });

  function chip(name, test, first) {
    const button = el(
      "button",
      {
        type: "button",
        class: first ? "chip first" : "chip",
        "aria-pressed": "false",
        click: () => {
          if (!state.chips.delete(name)) state.chips.add(name);
          button.setAttribute("aria-pressed", String(state.chips.has(name)));
          choose();
        },
      },
      name, " ", el("small", {}, count(rows.filter(test).length)),
    );
    return button;
  }

  function picker(label, names, change) {
    const select = el(
      "select",
      { change: () => change(select.value) },
      names.map(([value, text]) => el("option", { value }, text)),
    );
    return el("label", {}, label, select);
  }

  function tools() {
    const types = new Map();
    for (const { type } of rows) if (type !== undefined) types.set(type, (types.get(type) ?? 0) + 1);
    const pickers = [];
    if (types.size > 1) {
      const names = [...types].sort(([a], [b]) => (a < b ? -1 : 1));
      pickers.push(picker(
        "type",
        [["", "all"], ...names.map(([type, n]) => [type, `${type} (${count(n)})`])],
        (value) => { state.type = value; choose(); },
      ));
    }
    pickers.push(picker(
      "order",
      Object.keys(orders).map((name) => [name, name]),
      (value) => { state.order = value; choose(); },
    ));
    const meanings = [
      data.scored && "Right: a score of 1; wrong: 0.",
      data.compared && "Helped, hurt: compared with no retrieval, the answer became right, became wrong"
        + (data.moved ? ` (right here: ${data.right}); score up, down: any change.` : "."),
      data.retrieved && `Answer found: a passage contains a reference answer (rule ${data.rule}).`,
    ].filter(Boolean);
    const chips = filters.flatMap(({ chips: own }, group) =>
      Object.entries(own).map(([name, test], i) => chip(name, test, group > 0 && i === 0)));
    return el(
      "div",
      { class: "tools", role: "search" },
      el("div", { class: "line" }, search, pickers),
      chips.length
        ? el("div", { class: "line", role: "group", "aria-label": "Only these questions" }, chips)
        : null,
      chips.length ? el("p", { class: "meaning" }, meanings.join(" ")) : null,
      el(
        "p",
        { class: "keys" },
        el("kbd", {}, "/"), " search ", el("kbd", {}, "j"), " ", el("kbd", {}, "k"),
        " next, previous question ", el("kbd", {}, "Enter"), " open, close ",
        el("kbd", {}, "\u2190"), " ", el("kbd", {}, "\u2192"), " page ",
        el("kbd", {}, "Esc"), " close",
      ),
    );
  }

  function turn(step) {
    const page = state.page + step;
    if (page < 0 || page * PAGE >= shown.length) return false;
    state.page = page;
    draw();
    return true;
  }

  function pager(live) {
    const first = state.page * PAGE;
    const last = Math.min(first + PAGE, shown.length);
    const range = shown.length ? `${count(first + 1)}\u2013${count(last)} of ` : "";
    const button = (name, step, on) => el(
      "button",
      {
        type: "button",
        class: "turn",
        disabled: !on,
        click: () => {
          turn(step);
          top.scrollIntoView({ block: "start" });
        },
      },
      name,
    );
    return el(
      "div",
      { class: "pager" },
      el("output", live ? { "aria-live": "polite" } : {}, `${range}${count(shown.length)} questions`),
      button("\u2190 previous", -1, first > 0),
      button("next \u2192", 1, last < shown.length),
    );
  }

  let top = el("div");
  let bottom = el("div");

  function draw() {
    const pagers = [pager(true), pager(false)];
    top.replaceWith(pagers[0]);
    bottom.replaceWith(pagers[1]);
    [top, bottom] = pagers;
    const page = shown.slice(state.page * PAGE, (state.page + 1) * PAGE);
    list.replaceChildren(
      ...(page.length ? page.map(card) : [el("p", { class: "empty" }, "No question matches.")]),
    );
    bottom.hidden = shown.length <= PAGE;
  }

  // ---- one question ---------------------------------------------------------------------------

  const verdict = (score) => (score >= 0.9999 ? "right" : score > 0 ? "partly" : "wrong");
  const scored = (score) => badge(verdict(score), `${verdict(score)} ${score.toFixed(2)}`);

  function photo(row, attributes) {
    if (row.photo < 0) return el("span", attributes);
    return el("img", {
      src: item("photos", row.photo), alt: `Image of question ${row.id}`, decoding: "async",
      ...attributes,
    });
  }

  function card(row) {
    const marks = [];
    if (row.s !== undefined) marks.push(scored(row.s));
    if (row.turned > 0) marks.push(badge("helped", "helped"));
    else if (row.turned < 0) marks.push(badge("hurt", "hurt"));
    else if (row.gain) marks.push(badge("", row.gain > 0 ? "score up" : "score down"));
    if (row.rank > 0) marks.push(badge("", `answer in passage ${row.rank}`));
    if (row.rank === 0 && row.top !== undefined) marks.push(badge("", "no passage with an answer"));
    const head = el(
      "button",
      { type: "button", class: "head", "aria-expanded": "false", click: () => toggle(article, row) },
      photo(row, { class: "thumb" }),
      el("span", { class: "asked" }, row.q),
      el(
        "span",
        { class: "line2" },
        row.a !== undefined ? el("span", {}, row.a === "" ? "(empty)" : row.a) : null,
        marks,
        row.refs.length
          ? el("small", {}, `reference: ${row.refs.slice(0, 4).join(", ")}${row.refs.length > 4 ? ", \u2026" : ""}`)
          : null,
        row.type !== undefined ? el("small", {}, row.type) : null,
      ),
    );
    const article = el("article", { class: "card", "data-id": row.id }, el("h3", {}, head));
    return article;
  }

  function toggle(article, row, open = !article.classList.contains("open")) {
    article.classList.toggle("open", open);
    article.querySelector(".head").setAttribute("aria-expanded", String(open));
    article.querySelector(":scope > .body")?.remove();
    if (open) {
      article.append(body(row));
      article.scrollIntoView({ block: "start" }); // what opens below the edge would not be seen
    }
    place(open ? `#q=${encodeURIComponent(row.id)}` : "#questions");
  }

  function place(hash) {
    try {
      history.replaceState(null, "", hash);
    } catch {
      // Some browsers allow no history of files; a link to the question is all that is lost.
    }
  }

  function body(row) {
    const detail = item("questions", row.place);
    const percent = (share) => `${Math.round(100 * share)} %`;
    const facts = [
      detail.choices && ["choices", detail.choices.join(" \u00b7 ")],
      detail.tags && ["seen", detail.tags.map(([name, p]) => `${name} ${percent(p)}`).join(", ")],
      detail.caption && ["caption", detail.caption],
      detail.ocr && ["text in the image", detail.ocr.join(" \u00b7 ")],
      ["question", row.id],
      detail.seconds.length &&
        ["seconds", detail.seconds.map(([stage, s]) => `${stage} ${s.toFixed(2)}`).join(", ")],
    ].filter(Boolean);
    return el(
      "div",
      { class: "body" },
      el(
        "div",
        { class: "side" },
        photo(row, { class: "photo" }),
        facts.map(([name, text]) => el("p", {}, el("span", { class: "dim" }, `${name}: `), text)),
      ),
      el(
        "div",
        {},
        answers(row, detail),
        drafts(detail),
        stages(detail),
        row.match === undefined ? null : matches(item("matches", row.match)),
        passages(row, detail),
        prompts(detail),
      ),
    );
  }

  function answers(row, detail) {
    const lines = [];
    const line = (name, ...content) => lines.push(el("dt", {}, name), el("dd", {}, ...content));
    const text = (answer) => (answer === "" ? "(empty)" : answer ?? "(none)");
    if (row.a !== undefined) {
      line("prediction", el("b", {}, text(row.a)), " ", row.s === undefined ? null : scored(row.s));
      if (detail.raw !== undefined) line("as generated", el("code", { class: "raw" }, detail.raw));
      if (detail.cut) line("left out", `${detail.cut} passages that did not fit into the reader's context`);
    }
    if (detail.error) line("no answer", detail.error);
    if (detail.refs.length) {
      line("references", detail.refs.map(([answer, n]) => (n > 1 ? `${answer} \u00d7${n}` : answer)).join(", "));
    }
    for (const [name, answer, score] of detail.others) {
      line(name, text(answer), " ", typeof score === "number" ? scored(score) : null);
    }
    return lines.length ? el("dl", { class: "answers" }, lines) : null;
  }

  function heading(text) {
    return el("h4", {}, text);
  }

  const readRanks = (draft) => (draft.read.length ? draft.read.map((r) => r || "?").join(", ") : "none");

  function drafts(detail) {
    if (detail.drafts.length < 2) return null;
    const columns = [
      ["answer", (draft) => draft.text],
      ["passages read", readRanks],
      ["log p", (draft) => draft.log_prob?.toFixed(2)],
      ["prior", (draft) => draft.prior?.toFixed(3)],
      ["posterior", (draft) => draft.posterior?.toFixed(3)],
      ["rule's score", (draft) => draft.score?.toFixed(2)],
    ].filter(([, value]) => detail.drafts.some((draft) => value(draft) !== undefined));
    const line = (draft, i) => el(
      "tr",
      i === detail.chosen ? { class: "reference" } : {},
      columns.map(([, value], c) => el(c ? "td" : "th", c ? {} : { scope: "row" }, value(draft) ?? "")),
    );
    return [
      heading(`Drafts, of which ${detail.decision} chose one`),
      el(
        "div",
        { class: "scroll" },
        el(
          "table",
          {},
          el("thead", {}, el("tr", {}, columns.map(([name]) => el("th", { scope: "col" }, name)))),
          el("tbody", {}, detail.drafts.map(line)),
        ),
      ),
    ];
  }

  function stages(detail) {
    if (!detail.stages || detail.stages.length < 2) return null;
    const where = (rank) => (rank === null ? "" : rank ? `, answer at ${rank}` : ", no answer");
    return [
      heading("Stages"),
      el("p", { class: "meta" }, detail.stages.map(([name, n, rank]) => `${name}: ${n} passages${where(rank)}`).join(" \u2192 ")),
    ];
  }

  function passages(row, detail) {
    if (!detail.hits.length) return null;
    const read = new Set(detail.read);
    const shape = ([passage, score, holds, marks], i) => {
      const known = typeof passage === "number" ? item("passages", passage) : null;
      const id = known ? known.id : passage;
      const before = detail.before?.[i];
      return el(
        "li",
        { class: "passage" },
        el(
          "div",
          { class: "meta" },
          el("span", { class: "rank" }, String(i + 1)),
          known?.url ? el("a", { href: known.url, rel: "noreferrer noopener" }, id) : el("span", {}, id),
          el("span", {}, `score ${Number(score).toPrecision(4)}`),
          before !== undefined && before !== i + 1 ? el("span", {}, `was ${before || "not there"}`) : null,
          holds ? badge("found", "contains an answer") : null,
          read.has(i + 1) ? badge("", "read") : null,
        ),
        known ? marked(known, marks) : null,
      );
    };
    const items = detail.hits.map((hit, i) => [hit, i]);
    const many = el("ol", { class: "passages" }, items.slice(0, PASSAGES).map(([hit, i]) => shape(hit, i)));
    const rest = items.slice(PASSAGES);
    const more = el(
      "button",
      {
        type: "button",
        class: "turn more",
        click: () => {
          many.append(...rest.map(([hit, i]) => shape(hit, i)));
          more.remove();
        },
      },
      `${rest.length} more`,
    );
    return [heading(`Passages (answers marked by the rule ${data.rule})`), many, rest.length ? more : null];
  }

  // A passage's text, its title in bold, the answers marked.
  function marked({ text, head }, marks) {
    const out = el("p");
    const put = (parent, from, to) => {
      const middle = Math.min(Math.max(head, from), to);
      if (middle > from) parent.append(el("b", {}, text.slice(from, middle)));
      if (to > middle) parent.append(text.slice(middle, to));
    };
    let at = 0;
    for (let i = 0; i < marks.length; i += 2) {
      put(out, at, marks[i]);
      at = marks[i] + marks[i + 1];
      const mark = el("mark");
      put(mark, marks[i], at);
      out.append(mark);
    }
    put(out, at, text.length);
    return out;
  }

  function prompts(detail) {
    const shownDrafts = detail.drafts.filter((draft) => draft.prompt);
    return shownDrafts.map((draft) => {
      const text = () => draft.prompt.map((line) => item("lines", line)).join("\n");
      const ranks = draft.read.length > 1 ? `passages ${readRanks(draft)}` : `passage ${readRanks(draft)}`;
      const name = detail.drafts.length > 1 ? `Prompt with ${ranks}` : "Prompt";
      const fold = el("details", { class: "fold" }, el("summary", {}, name));
      fold.addEventListener(
        "toggle",
        () => fold.append(el("pre", { class: "prompt" }, text())),
        { once: true },
      );
      return fold;
    });
  }

  // ---- keys -----------------------------------------------------------------------------------

  const cards = () => [...list.querySelectorAll(".card")];
  const current = () => document.activeElement?.closest?.(".card") ?? null;
  const rowOf = (article) => rows.find((row) => row.id === article.dataset.id);

  function go(step) {
    const all = cards();
    const here = current();
    const at = all.indexOf(here);
    let next = here ? all[at + step] : all[step > 0 ? 0 : all.length - 1];
    const wasOpen = here?.classList.contains("open");
    if (!next) {
      if (!turn(step)) return;
      next = step > 0 ? cards()[0] : cards().at(-1);
    } else if (wasOpen) {
      toggle(here, rowOf(here), false);
    }
    if (wasOpen) toggle(next, rowOf(next), true);
    next.querySelector(".head").focus({ preventScroll: true });
    next.scrollIntoView({ block: wasOpen ? "start" : "nearest" });
  }

  const keys = {
    j: () => go(1),
    k: () => go(-1),
    ArrowRight: () => turn(1),
    ArrowLeft: () => turn(-1),
    "/": () => search.focus(),
    Escape: () => {
      const here = current();
      if (here?.classList.contains("open")) {
        toggle(here, rowOf(here), false);
        here.querySelector(".head").focus();
      }
    },
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.closest?.("input, select, textarea");
    if (typing) {
      if (event.key === "Escape" && typing === search) {
        search.value = "";
        state.words = [];
        choose();
        search.blur();
      }
      return;
    }
    if (keys[event.key]) {
      keys[event.key]();
      event.preventDefault();
    }
  });

  // ---- start ----------------------------------------------------------------------------------

  root.append(tools(), top, list, bottom);
  root.hidden = false;
  choose();

  function openFromAddress() {
    const found = /^#q=(.+)$/.exec(location.hash);
    if (!found) return;
    let id = found[1];
    try {
      id = decodeURIComponent(id);
    } catch {
      return;
    }
    const at = shown.findIndex((row) => row.id === id);
    if (at < 0) return;
    state.page = Math.floor(at / PAGE);
    draw();
    const article = cards().find((one) => one.dataset.id === id);
    toggle(article, shown[at], true);
  }
  openFromAddress();
  window.addEventListener("hashchange", openFromAddress);
})();
