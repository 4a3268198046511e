// The slices: one series at a time, in its own plane or in all three, with the structures over them. NiiVue draws; the
// controls, the keys and what is said beside the picture are here.
"use strict";

const { Niivue, SLICE_TYPE, SHOW_RENDER } = globalThis.niivue;
const SLICES_OF = { sagittal: SLICE_TYPE.SAGITTAL, coronal: SLICE_TYPE.CORONAL, axial: SLICE_TYPE.AXIAL };
const AXIS_OF = { sagittal: 0, coronal: 1, axial: 2 }; // of NiiVue's voxels, which run to the right, front and head

const viewer = document.getElementById("viewer");
const says = document.getElementById("viewer-says");
const canvas = document.getElementById("canvas");
const where = document.getElementById("where");
const slice = document.getElementById("slice");
const opacity = document.getElementById("opacity");
const hidden = () => [...document.querySelectorAll("input.structure:not(:checked)")].map((box) => Number(box.value));
const chosen = (name) => viewer.querySelector(`input[name=${name}]:checked`).value;

let shown = null; // the series that is drawn, as viewer.json has it

const drawing = new Niivue({
  backColor: [0.05, 0.06, 0.07, 1],
  crosshairColor: [0.35, 0.75, 0.85, 0.6],
  dragAndDropEnabled: false,
  isRadiologicalConvention: true, // as on every reading station: the patient's right is on the left
  sagittalNoseLeft: true,
  isNearestInterpolation: true,
  multiplanarShowRender: SHOW_RENDER.NEVER,
  scrollRequiresFocus: true, // or the page could not be scrolled past the picture
  clipPlaneHotKey: "",
  cycleClipPlaneHotKey: "",
  viewModeHotKey: "",
  loadingText: "",
  logLevel: "error",
  onLocationChange: locate,
});

function colours({ structures }) {
  const off = new Set(hidden());
  const table = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: ["background"] };
  for (const { index, name, colour } of structures) {
    table.R.push(colour[0]);
    table.G.push(colour[1]);
    table.B.push(colour[2]);
    table.A.push(off.has(index) ? 0 : 255);
    table.I.push(index);
    table.labels.push(name);
  }
  return table;
}

async function load(series) {
  canvas.dataset.drawn = "";
  const volumes = [{ url: series.volume, colormap: "gray" }];
  if (series.labels) volumes.push({ url: series.labels, opacity: opacity.value / 100 });
  await drawing.loadVolumes(volumes);
  shown = series;
  paint();
  arrange();
  goTo(middle());
  canvas.dataset.drawn = series.plane;
}

function paint() {
  if (drawing.volumes.length < 2) return;
  drawing.volumes[1].setColormapLabel(colours(shown));
  drawing.updateGLVolume();
}

function arrange() {
  drawing.setSliceType(chosen("view") === "all" ? SLICE_TYPE.MULTIPLANAR : SLICES_OF[shown.plane]);
  drawing.opts.crosshairWidth = chosen("view") === "all" ? 0.5 : 0; // in a single plane it would only cover the picture
  drawing.drawScene();
}

const axis = () => AXIS_OF[shown.plane];
const count = () => drawing.volumes[0].dimsRAS[axis() + 1];
const middle = () => Math.floor(count() / 2);

// Slices are counted as in the pictures and in the volume's file, from 0; NiiVue counts to the right, front or head.
const turned = (number) => (drawing.volumes[0].permRAS[axis()] < 0 ? count() - 1 - number : number);
const current = () => turned(Math.min(Math.floor(drawing.scene.crosshairPos[axis()] * count()), count() - 1));

function goTo(number) {
  const place = [...drawing.scene.crosshairPos];
  place[axis()] = (turned(Math.min(Math.max(number, 0), count() - 1)) + 0.5) / count();
  drawing.scene.crosshairPos = place;
  drawing.drawScene();
  drawing.createOnLocationChange();
}

function locate({ values }) {
  if (shown === null) return;
  slice.max = count();
  slice.value = current() + 1;
  const label = values[1]?.value;
  const structure = label ? shown.structures.find(({ index }) => index === Math.round(label)) : null;
  where.textContent = `Slice ${current() + 1} of ${count()}${structure ? `: ${structure.name}` : ""}`;
}

const KEYS = {
  ArrowUp: () => current() + 1,
  ArrowRight: () => current() + 1,
  ArrowDown: () => current() - 1,
  ArrowLeft: () => current() - 1,
  PageUp: () => current() + 5,
  PageDown: () => current() - 5,
  Home: () => 0,
  End: () => count() - 1,
};

// Before NiiVue's own listener, whose letters open clip planes and message boxes. Tab is left alone: it leads on.
viewer.addEventListener(
  "keydown",
  (event) => {
    if (event.target !== canvas) return;
    event.stopPropagation();
    if (shown === null || event.ctrlKey || event.altKey || event.metaKey || !(event.key in KEYS)) return;
    event.preventDefault();
    goTo(KEYS[event.key]());
  },
  true,
);
viewer.addEventListener("keyup", (event) => event.target === canvas && event.stopPropagation(), true);

async function start() {
  if (document.createElement("canvas").getContext("webgl2") === null) {
    says.textContent = "This browser has no WebGL 2, which the slices need; the pictures below do not.";
    return;
  }
  says.textContent = "Loading the slices…";
  const answer = await fetch(viewer.dataset.source);
  const { planes } = await answer.json();
  if (!planes.length) {
    says.textContent = "The volumes are no longer here: they go when the study's time is over.";
    return;
  }
  viewer.hidden = false;
  await drawing.attachToCanvas(canvas);
  const series = () => planes.find(({ plane }) => plane === chosen("plane")) ?? planes[0];
  await load(series());
  says.textContent = "";
  slice.addEventListener("input", () => goTo(slice.value - 1));
  opacity.addEventListener("input", () => drawing.volumes.length > 1 && drawing.setOpacity(1, opacity.value / 100));
  viewer.querySelectorAll("input[name=view]").forEach((one) => one.addEventListener("change", arrange));
  viewer.querySelectorAll("input[name=plane]").forEach((one) => one.addEventListener("change", () => load(series())));
  document.querySelectorAll("input.structure").forEach((box) => box.addEventListener("change", paint));
}

start().catch((error) => {
  says.textContent = `The slices could not be shown (${error.message}); the pictures below are the same result.`;
});
