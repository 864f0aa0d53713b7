// What matched in retrieval: heat over the words of a query and a passage, light on patches of images.
// Everything is put into the page as text: no markup is ever made of data.
"use strict";
const ravqa = (() => {
  // An element with attributes and children; strings become text.
  function el(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === undefined || value === false) continue;
      if (typeof value === "function") element.addEventListener(name, value);
      else element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return element;
  }

  const KINDS = {
    word: "words", mark: "marks", filler: "fillers", global: "whole text and image", patch: "image patches",
  };

  function matches(match) {
    const holder = el("div");
    const tabs = match.passages.map((passage, i) => el(
      "button",
      {
        type: "button",
        class: "chip",
        "aria-pressed": String(i === 0),
        click: () => {
          tabs.forEach((tab, j) => tab.setAttribute("aria-pressed", String(i === j)));
          holder.replaceChildren(heat(match, passage));
        },
      },
      `${i + 1} `, passage.id,
    ));
    if (match.passages.length) holder.append(heat(match, match.passages[0]));
    return el(
      "section",
      { class: "match" },
      el("h4", {}, "What matched"),
      el("div", { class: "line", role: "group", "aria-label": "Passage" }, tabs),
      holder,
    );
  }

  // Vectors as people see them: those of one word together, and likewise fillers and whole images.
  function units(labels) {
    const found = [];
    labels.forEach((label, vector) => {
      const last = found.at(-1);
      const same = last && last.label.kind === label.kind && (
        label.word ? last.label.word?.[0] === label.word[0] : !label.place && last.label.name === label.name
      );
      if (same) last.vectors.push(vector);
      else found.push({ label, vectors: [vector] });
    });
    return found;
  }

  const unitText = ({ label, vectors }, text) => {
    if (label.word) return text.slice(...label.word);
    if (label.place) return `patch ${label.place.map((x) => x + 1).join(", ")}`;
    return vectors.length > 1 ? `${label.name} \u00d7${vectors.length}` : label.name;
  };

  // What vectors of a whole text or image are, by their names.
  function wholes(names) {
    const quoted = names.map((name) => `\u201c${name}\u201d`);
    const said = quoted.length > 3 ? `${quoted[0]}, \u2026, ${quoted.at(-1)}` : quoted.join(", ");
    const what = "for the text or the image as a whole, and";
    return names.length > 1
      ? `${said} are no words: they stand ${what} are matched as words are.`
      : `${said} is no word: it stands ${what} is matched as words are.`;
  }

  function heat(match, passage) {
    const width = passage.labels.length;
    const parts = passage.parts.map((part) => {
      const bytes = Uint8Array.from(atob(part.products), (letter) => letter.charCodeAt(0));
      return { ...part, levels: new Int8Array(bytes.buffer) };
    });
    const product = (part, row, column) => (part.levels[row * width + column] * part.scale) / 127;
    const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);

    // Both sides, each with what it brought or got.
    const theirs = units(passage.labels).map((unit) => ({ ...unit, text: unitText(unit, passage.text), total: 0 }));
    const owner = [];
    theirs.forEach((unit) => unit.vectors.forEach((vector) => { owner[vector] = unit; }));
    const ours = parts.flatMap((part) => units(part.labels).map((unit) => {
      const total = sum(unit.vectors.map((vector) => part.gains[vector]));
      const best = unit.vectors.reduce((a, b) => (part.gains[b] > part.gains[a] ? b : a));
      unit.vectors.forEach((vector) => { owner[part.found[vector]].total += part.gains[vector]; });
      return { ...unit, part, total, text: unitText(unit, part.text), found: owner[part.found[best]] };
    }));
    // How like two units are: of each vector its best match in the other unit, on average.
    const like = (our, their) => sum(our.vectors.map((row) =>
      Math.max(...their.vectors.map((column) => product(our.part, row, column))))) / our.vectors.length;

    const said = el("p", { class: "said", "aria-live": "polite" });
    const legend = el("p", { class: "scale" });
    let chosen = null;
    const pick = (unit) => ({
      type: "button",
      class: "w",
      "aria-pressed": "false",
      click: () => choose(unit === chosen ? null : unit),
    });

    // A text with its words as buttons, and what stands for no word behind it. Words that take no
    // part (an instruction, what was cut off) are dim.
    const between = (text) => (/[\p{L}\p{N}]/u.test(text) ? el("span", { class: "dim" }, text) : text);
    function line(text, all) {
      const out = el("div", { class: "heat" });
      let at = 0;
      const rest = [];
      for (const unit of all) {
        unit.element = el("button", pick(unit), unit.text);
        if (!unit.label.word) {
          rest.push(" ", unit.element);
          unit.element.classList.add("other");
          continue;
        }
        out.append(between(text.slice(at, unit.label.word[0])), unit.element);
        at = unit.label.word[1];
      }
      out.append(between(text.slice(at)), ...rest);
      return out;
    }

    function field(all, seen, alt) {
      const [rowCount, columnCount] = seen.grid;
      const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      svg.setAttribute("viewBox", `0 0 ${columnCount} ${rowCount}`);
      svg.setAttribute("preserveAspectRatio", "none");
      for (const unit of all) {
        const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
        const [y, x] = unit.label.place;
        const box = { x, y, width: 1, height: 1, tabindex: 0, role: "button", "aria-label": unit.text };
        for (const [name, value] of Object.entries(box)) rect.setAttribute(name, value);
        rect.addEventListener("click", () => choose(unit === chosen ? null : unit));
        rect.addEventListener("keydown", (event) => {
          if (event.key !== "Enter" && event.key !== " ") return;
          choose(unit === chosen ? null : unit);
          event.preventDefault();
        });
        unit.element = rect;
        svg.append(rect);
      }
      return el(
        "div",
        { class: "field" },
        el("img", { src: seen.image, alt }),
        svg,
      );
    }

    const patches = ours.filter((unit) => unit.label.place);
    const theirPatches = theirs.filter((unit) => unit.label.place);
    const theirWords = theirs.filter((unit) => !unit.label.place);
    const texts = parts.map((part) => [part, ours.filter((unit) => unit.part === part && !unit.label.place)]);

    // What stands for the whole is left out of the scale: words would all be pale beside it.
    function shade(all, value) {
      const values = all.map(value);
      const scale = values.filter((_, i) => all[i].label.kind !== "global");
      const [low, high] = [Math.min(...scale), Math.max(...scale)];
      all.forEach((unit, i) => {
        const share = high > low ? Math.min(1, Math.max(0, (values[i] - low) / (high - low))) : 0;
        const image = Boolean(unit.label.place);
        unit.element.style.setProperty("--a", (image ? 0.75 * (1 - share) : 0.85 * share).toFixed(3));
      });
    }

    // What light and dark mean, on the side whose shades have changed.
    function explain(what, kinds) {
      const ramps = { words: "from pale to deep", patches: "from dark to bright" };
      const ramp = (kind) => [
        kinds.length > 1 ? `${kind} ` : "", "little ",
        el("span", { class: `ramp ${kind}`, role: "img", "aria-label": ramps[kind] }), " much",
      ];
      legend.replaceChildren(
        `${what}: `, ...kinds.flatMap((kind, i) => [i ? ", " : "", el("span", {}, ramp(kind))]), ".",
      );
    }

    function choose(unit) {
      chosen = unit;
      const kindsOf = (all) => ["words", "patches"].filter((kind) =>
        all.some((one) => Boolean(one.label.place) === (kind === "patches")));
      const [shades, theirShades] = [kindsOf(ours), kindsOf(theirs)];
      const shadeTheirs = (value) => {
        shade(theirWords, value);
        if (theirPatches.length) shade(theirPatches, value);
      };
      for (const one of [...ours, ...theirs]) {
        one.element.classList.toggle("on", one === unit);
        one.element.setAttribute("aria-pressed", String(one === unit));
      }
      const words = ours.filter((one) => !one.label.place);
      if (unit === null) {
        explain("Part of the score", shades);
        shade(words, (one) => one.total);
        shadeTheirs((one) => one.total);
        if (patches.length) shade(patches, (one) => one.total);
        said.textContent = `All matches add up to ${passage.score.toPrecision(4)}, the retriever's score. `
          + "Choose a word" + (patches.length ? " or a patch" : "") + " to see what it matched.";
      } else if (ours.includes(unit)) {
        explain(`In the passage, likeness to \u201c${unit.text}\u201d`, theirShades);
        shadeTheirs((one) => like(unit, one));
        said.textContent = `\u201c${unit.text}\u201d contributes ${unit.total.toPrecision(3)}; `
          + `it is most like \u201c${unit.found.text}\u201d.`;
      } else {
        explain(`In the query, likeness to \u201c${unit.text}\u201d`, shades);
        shade(words, (one) => like(one, unit));
        if (patches.length) shade(patches, (one) => like(one, unit));
        const finders = ours.filter((one) => one.found === unit).sort((a, b) => b.total - a.total);
        said.textContent = finders.length
          ? `\u201c${unit.text}\u201d is the best match of ${finders.slice(0, 6).map((one) =>
            `${one.text} (${one.total.toPrecision(2)})`).join(", ")}${finders.length > 6 ? ", \u2026" : ""}.`
          : `\u201c${unit.text}\u201d is the best match of no word.`;
      }
    }

    const kinds = new Map();
    for (const one of ours) kinds.set(one.label.kind, (kinds.get(one.label.kind) ?? 0) + one.total);
    const percent = (part) => `${Math.round((100 * part) / passage.score)} %`;
    const whole = [...new Set([...ours, ...theirs].filter((one) => one.label.kind === "global").map((one) => one.label.name))];
    const strongest = [...ours].sort((a, b) => b.total - a.total).slice(0, 8);

    const out = el(
      "div",
      {},
      said,
      legend,
      el(
        "div",
        { class: patches.length ? "grid2" : "" },
        patches.length ? field(patches, match, "The image as the model sees it, in patches") : null,
        el(
          "div",
          {},
          texts.filter(([, all]) => all.length).map(([part, all]) => el(
            "div",
            {},
            el("small", {}, parts.length > 1 ? `query, weight ${part.weight.toFixed(2)}` : "query"),
            line(part.text, all),
          )),
          el("small", {}, "passage"),
          theirPatches.length ? field(theirPatches, passage, "The passage's image in patches") : null,
          line(passage.text, theirWords),
        ),
      ),
      el(
        "p",
        { class: "caption" },
        "Of the score: ",
        [...kinds].sort((a, b) => b[1] - a[1]).map(([kind, part]) => `${KINDS[kind]} ${percent(part)}`).join(", "),
        ". Strongest: ",
        strongest.map((one) => `${one.text} \u2192 ${one.found.text} ${percent(one.total)}`).join(", "),
        ".",
        whole.length ? ` ${wholes(whole)}` : null,
      ),
    );
    choose(null);
    return out;
  }

  return { el, matches };
})();
