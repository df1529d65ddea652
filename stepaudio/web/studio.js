"use strict";
// What the page does without asking the server: tags at the cursor, A/B listening, colours, what is remembered.
(() => {
  const KEYS = { language: "stepaudio-language", dark: "stepaudio-dark", typed: "stepaudio-typed" };

  // A browser may forbid to keep anything: then nothing is remembered, and all else works.
  const recall = (storage, key) => {
    try {
      return window[storage].getItem(key);
    } catch {
      return null;
    }
  };
  const remember = (storage, key, value) => {
    try {
      window[storage].setItem(key, value);
    } catch {
      // see above
    }
  };

  const write = (field, text) => {
    field.value = text;
    field.dispatchEvent(new Event("input", { bubbles: true }));
  };

  // The second click of a double one would end what the first has begun, and begin it anew.
  document.addEventListener(
    "click",
    (event) => {
      if (event.detail > 1 && event.target.closest?.("#generate, #apply, #save-voice")) event.stopImmediatePropagation();
    },
    true,
  );

  // These go away with the click on them, or the tab that they are in does: the keyboard goes on here instead.
  const ONWARD = {
    "#delete-no, #delete-yes": "#delete",
    "#clear-no, #clear-yes": "#clear",
    "#edit-this": "#tabs button[role=tab]:nth-of-type(2)",
    "#compare-this": "#tabs button[role=tab]:nth-of-type(3)",
  };
  document.addEventListener("click", (event) => {
    for (const [from, to] of Object.entries(ONWARD)) {
      if (event.target.closest?.(from)) document.querySelector(to)?.focus();
    }
  });

  // What was typed outlives a reload: Gradio loads the page anew by itself where the server was away for a moment.
  // The words of a voice that was chosen are not kept, as the choice is not.
  const TYPED = { "#text": () => true, "#transcript": () => !document.querySelector("#voice-sound") };
  const field = (selector) => document.querySelector(`${selector} textarea`);
  let restored = false; // before that, what was kept may not be overwritten
  const restore = () => {
    if (restored) return;
    restored = true;
    for (const [selector, text] of Object.entries(JSON.parse(recall("sessionStorage", KEYS.typed) ?? "{}"))) {
      if (text && field(selector)?.value === "") write(field(selector), text);
    }
  };
  addEventListener("pagehide", () => {
    if (!restored) return;
    const kept = Object.keys(TYPED).filter((selector) => field(selector) && TYPED[selector]());
    const texts = Object.fromEntries(kept.map((selector) => [selector, field(selector).value]));
    remember("sessionStorage", KEYS.typed, JSON.stringify(texts));
  });

  // A button with data-tag puts it where the cursor is in the field that its bar names; one with data-text puts it
  // there in place of everything.
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("button[data-tag], button[data-text]");
    if (!button) return;
    const target = field(button.closest("[data-target]").dataset.target);
    const { tag, text } = button.dataset;
    if (tag !== undefined) target.setRangeText(tag, target.selectionStart, target.selectionEnd, "end");
    write(target, text ?? target.value);
    target.focus();
  });

  // A/B: both sounds run side by side from one start; only one of them is let through, at its matched level.
  let playing = null;
  let clicks = 0; // what an earlier click has fetched is not played any more

  class Pair {
    constructor(panel, buffers) {
      this.panel = panel;
      this.context = new AudioContext();
      this.gains = {};
      this.seconds = Math.max(...Object.values(buffers).map((buffer) => buffer.duration));
      this.start = this.context.currentTime + 0.05;
      for (const [side, buffer] of Object.entries(buffers)) {
        const gain = new GainNode(this.context, { gain: 0 });
        const source = new AudioBufferSourceNode(this.context, { buffer });
        source.connect(gain).connect(this.context.destination);
        source.start(this.start);
        this.gains[side] = gain;
      }
      this.timer = setInterval(() => this.step(), 50);
    }

    listen(side) {
      for (const [name, gain] of Object.entries(this.gains)) {
        const level = name === side ? Number(this.panel.dataset[name === "a" ? "gainA" : "gainB"]) : 0;
        gain.gain.setTargetAtTime(level, this.context.currentTime, 0.005); // without a click
        this.panel.querySelector(`[data-ab="${name}"]`)?.setAttribute("aria-pressed", String(name === side));
      }
      this.panel.dataset.heard = side;
    }

    step() {
      const at = this.context.currentTime - this.start;
      const cursor = document.querySelector("#pictures .cursor");
      if (cursor) {
        cursor.hidden = false;
        cursor.style.left = `${(100 * Math.max(at, 0)) / this.seconds}%`;
      }
      if (at > this.seconds) this.end();
    }

    end() {
      clearInterval(this.timer);
      this.context.close();
      this.panel.querySelectorAll("[aria-pressed]").forEach((button) => button.setAttribute("aria-pressed", "false"));
      delete this.panel.dataset.heard;
      const cursor = document.querySelector("#pictures .cursor");
      if (cursor) cursor.hidden = true;
      playing = null;
    }
  }

  const sound = async (side) => {
    const link = document.querySelector(`#sound-${side} a[download]`);
    const answer = await fetch(link.href);
    if (!answer.ok) throw new Error(answer.statusText);
    return new OfflineAudioContext(1, 1, 44100).decodeAudioData(await answer.arrayBuffer());
  };

  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("button[data-ab]");
    if (!button) return;
    const side = button.dataset.ab;
    const panel = button.closest(".stepaudio-ab");
    const click = ++clicks;
    if (side === "stop") return void playing?.end();
    if (playing && playing.panel !== panel) playing.end(); // the page has brought other sounds
    if (!playing) {
      const [a, b] = await Promise.all([sound("a"), sound("b")]);
      if (click !== clicks) return;
      playing = new Pair(panel, { a, b });
    }
    playing.listen(side);
  });

  // Colours: those of the system, unless the reader chose others.
  const paint = () => {
    const chosen = recall("localStorage", KEYS.dark);
    if (chosen !== null) document.body.classList.toggle("dark", chosen === "yes");
  };
  const dark = () => remember("localStorage", KEYS.dark, document.body.classList.toggle("dark") ? "yes" : "no");

  const speak = (language) => {
    remember("localStorage", KEYS.language, language);
    document.documentElement.lang = language;
  };
  // Called once the page is there.
  const language = () => {
    paint();
    restore();
    const chosen = recall("localStorage", KEYS.language) ?? "";
    document.documentElement.lang = chosen || (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
    return chosen;
  };

  // Gradio gives no roles. An empty sound without one is passed over by readers of the screen; and they read aloud
  // what comes into an alert or a status only where that was there before.
  const ROLES = { '[aria-label="Empty value"]': "img", ".stepaudio-alert": "alert", ".stepaudio-status": "status" };
  new MutationObserver(() => {
    for (const [selector, role] of Object.entries(ROLES)) {
      for (const element of document.querySelectorAll(`${selector}:not([role])`)) element.role = role;
    }
  }).observe(document.documentElement, { childList: true, subtree: true });

  window.stepaudioStudio = { dark, language, speak };
})();
