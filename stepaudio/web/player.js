"use strict";
// Plays a sound while it is being made: 16-bit samples from stream/<ticket>, one piece scheduled behind the other.
// The element #player shows how far it is. Its data attributes: state (waiting, playing, ended, stopped), first-ms
// (milliseconds from the click to the first scheduled sample), samples (that have come), gaps (how often it ran dry).
(() => {
  const base = new URL(".", document.currentScript.src);
  const RATE = 24000; // of the output; what comes at another rate is resampled by the browser
  const LEAD = 0.05; // seconds from scheduling the first sample to its sound
  const SHOW_MS = 250;
  const STOPPED = "stopped"; // in place of a ticket: nobody wants this run any more, see handlers.py
  let current = null;
  let pending = false; // a run is on its way to the server
  let clicked = 0;

  class Player {
    constructor() {
      this.clicked = clicked;
      this.context = new AudioContext({ sampleRate: RATE });
      this.connection = new AbortController();
      this.samples = this.gaps = 0;
      this.made = 0; // seconds
      this.next = 0; // when the next sample is due, on the context's clock
      this.complete = this.unwanted = false;
      this.show("waiting");
      this.timer = setInterval(() => this.step(), SHOW_MS);
    }

    async ticket() {
      const answer = await fetch(new URL("tickets", base), { method: "POST", signal: this.connection.signal });
      if (!answer.ok) throw new Error(answer.statusText);
      return (await answer.json()).ticket;
    }

    async play(ticket) {
      const answer = await fetch(new URL(ticket, base), { signal: this.connection.signal });
      if (!answer.ok) throw new Error(answer.statusText); // the page itself says why
      const rate = Number(answer.headers.get("X-Sample-Rate"));
      await this.context.resume();
      const reader = answer.body.getReader();
      let rest = new Uint8Array();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        const bytes = new Uint8Array(rest.length + value.length);
        bytes.set(rest);
        bytes.set(value, rest.length);
        const count = bytes.length >> 1; // the network may cut a sample in two
        rest = bytes.slice(2 * count);
        if (count) this.schedule(new DataView(bytes.buffer, 0, 2 * count), rate);
      }
      this.complete = true;
    }

    schedule(view, rate) {
      const buffer = this.context.createBuffer(1, view.byteLength / 2, rate);
      const channel = buffer.getChannelData(0);
      for (let i = 0; i < channel.length; i++) channel[i] = view.getInt16(2 * i, true) / 32768;
      const now = this.context.currentTime;
      if (this.next < now) {
        if (this.samples) this.gaps += 1;
        this.next = now + LEAD;
      }
      const source = new AudioBufferSourceNode(this.context, { buffer });
      source.connect(this.context.destination);
      source.start(this.next);
      const first = this.samples ? {} : { firstMs: performance.now() - this.clicked + 1000 * (this.next - now) };
      this.next += buffer.duration;
      this.made += buffer.duration;
      this.samples += channel.length;
      this.show("playing", first);
    }

    step() {
      if (this.complete && this.context.currentTime >= this.next) this.end("ended");
      else if (this.samples) this.show("playing");
    }

    show(state, values = {}) {
      const line = document.querySelector("#player .stepaudio-player");
      const heard = this.made - Math.max(this.next - this.context.currentTime, 0);
      if (state === "waiting") delete line.dataset.firstMs;
      Object.assign(line.dataset, { state, samples: this.samples, gaps: this.gaps, ...values });
      line.querySelector("progress").value = this.made ? heard / this.made : 0;
      const seconds = `${Math.max(heard, 0).toFixed(1)} s / ${this.made.toFixed(1)} s${this.complete ? "" : " …"}`;
      line.querySelector("span").textContent = this.made ? `▶ ${seconds}` : "";
      line.hidden = state !== "playing";
    }

    end(state) {
      clearInterval(this.timer);
      this.connection.abort(); // where the sound is still being made, this ends the job
      if (this.context.state === "closed") return;
      this.show(state);
      this.context.close();
    }
  }

  document.addEventListener(
    "click",
    (event) => {
      const on = (selector) => event.target.closest?.(selector);
      if (on("#generate")) {
        if (pending) return event.stopImmediatePropagation(); // or it would end what has just been asked for
        clicked = performance.now();
      }
      if (on("#stop") && current) current.unwanted = true;
      // The file that is complete takes over from the playing at once.
      if (on("#stop") || (on("#result") && !on("#result a") && current?.complete)) current?.end("stopped");
    },
    true,
  );

  // Called with the inputs of a generation, the last but two of which is the ticket; returns them with it filled in.
  // The player is made within the click, or the browser would not let it sound.
  const begin = async (values) => {
    current?.end("stopped");
    const takes = Number(document.querySelector("#takes input").value); // several are chosen from, not listened to at once
    current = document.querySelector("#live input").checked && takes === 1 ? new Player() : null;
    if (!current) return values;
    const player = current;
    const failed = () => player.end("stopped");
    const filled = (ticket) => [...values.slice(0, -3), ticket, ...values.slice(-2)];
    pending = true;
    try {
      const ticket = await player.ticket();
      player.play(ticket).catch(failed);
      return filled(ticket);
    } catch {
      failed(); // then the sound comes when it is complete, unless it was Stop that broke this off
      return player.unwanted ? filled(STOPPED) : values;
    } finally {
      pending = false;
    }
  };

  window.stepaudioPlayer = { begin };
})();
