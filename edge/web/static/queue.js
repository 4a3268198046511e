// Keeps the queue current: asks for its markup every other second while the page is looked at, and leaves the focus
// where it was. Without this script the page loads itself again every five seconds.
"use strict";

const part = document.getElementById("part");
const live = document.getElementById("live");
const SECONDS = 2;

const clock = () => new Date().toLocaleTimeString();

// Two moments can't be told apart by a reader if only "3 s ago" changed, so a screen reader hears of counts alone.
let told = null;

async function refresh() {
  try {
    const answer = await fetch("/queue.json");
    if (!answer.ok) throw new Error(`it answered ${answer.status}`);
    const { html, unfinished } = await answer.json();
    show(html);
    const now = unfinished ? `Live: ${unfinished} on the way` : "Live: nothing on the way";
    if (now !== told) live.textContent = told = now;
    live.classList.remove("lost");
  } catch (error) {
    if (!live.classList.contains("lost")) {
      live.textContent = told = `The appliance does not answer (${error.message}); shown as of ${clock()}`;
    }
    live.classList.add("lost");
  }
}

function show(html) {
  if (part.querySelector("form button:active")) return; // a click is on its way
  const focused = document.activeElement;
  const name = part.contains(focused) ? focused.id || focused.getAttribute("aria-label") : null;
  const scrolled = [...part.querySelectorAll(".scroll")].map((box) => box.scrollLeft);
  part.innerHTML = html; // made and escaped by the appliance's own templates
  part.querySelectorAll(".scroll").forEach((box, n) => (box.scrollLeft = scrolled[n] ?? 0));
  if (name === null) return;
  const again = [...part.querySelectorAll("a, button, [tabindex]")].find(
    (one) => one.id === name || one.getAttribute("aria-label") === name,
  );
  again?.focus({ preventScroll: true });
}

setInterval(() => document.hidden || refresh(), 1000 * SECONDS);
refresh();
