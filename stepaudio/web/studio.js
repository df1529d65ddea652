"use strict";
// What the page does without asking the server: tags at the cursor, A/B listening, colours, the language remembered.
(() => {
  const KEYS = { language: "stepaudio-language", dark: "stepaudio-dark" };

  // A button with data-tag puts it where the cursor is in the field that its bar names; one with data-text puts it
  // there in place of everything.
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("button[data-tag], button[data-text]");
    if (!button) return;
    const field = document.querySelector(`${button.closest("[data-target]").dataset.target} textarea`);
    const { tag, text } = button.dataset;
    if (tag !== undefined) field.setRangeText(tag, field.selectionStart, field.selectionEnd, "end");
    else field.value = text;
    field.dispatchEvent(new Event("input", { bubbles: true }));
    field.focus();
  });

  // A/B: both sounds run side by side from one start; only one of them is let through, at its matched level.
  let playing = null;

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
    if (side === "stop") return void playing?.end();
    if (playing && playing.panel !== panel) playing.end(); // the page has brought other sounds
    if (!playing) {
      const [a, b] = await Promise.all([sound("a"), sound("b")]);
      playing = new Pair(panel, { a, b });
    }
    playing.listen(side);
  });

  // Colours: those of the system, unless the reader chose others.
  const paint = () => {
    const chosen = localStorage.getItem(KEYS.dark);
    if (chosen !== null) document.body.classList.toggle("dark", chosen === "yes");
  };
  const dark = () => {
    localStorage.setItem(KEYS.dark, document.body.classList.contains("dark") ? "no" : "yes");
    paint();
  };

  const speak = (language) => {
    localStorage.setItem(KEYS.language, language);
    document.documentElement.lang = language;
  };
  const language = () => {
    paint();
    const chosen = localStorage.getItem(KEYS.language) ?? "";
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
