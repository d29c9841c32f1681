// An exported recording: the canvas and the data are in this file.
DGCanvas.mount(document.getElementById("canvas")).load(
  JSON.parse(document.getElementById("recording").textContent),
);
