"use strict";
// Shows the values under the pointer. Charts carry numbers only: [ms since start, allocated, reserved, in use], null where unknown.
(() => {
  const size = (bytes) => {
    if (bytes === null) return "–";
    let n = Math.abs(bytes), unit = "B";
    for (const next of ["KiB", "MiB", "GiB", "TiB", "PiB"]) {
      if (n < 1023.5) break;
      n /= 1024;
      unit = next;
    }
    const digits = unit === "B" ? 0 : n < 9.995 ? 2 : n < 99.95 ? 1 : 0;
    return (bytes < 0 ? "-" : "") + n.toFixed(digits) + " " + unit;
  };
  const time = (ms) => ms < 1000 ? ms.toFixed(1) + " ms" : ms < 120000 ? (ms / 1000).toFixed(2) + " s" : (ms / 60000).toFixed(2) + " min";
  for (const figure of document.querySelectorAll("figure[data-chart]")) {
    const svg = figure.querySelector("svg");
    const chart = JSON.parse(figure.querySelector("script").textContent);
    const cross = svg.querySelector(".cross");
    const tip = document.createElement("div");
    tip.className = "tip";
    tip.hidden = true;
    figure.append(tip);
    svg.addEventListener("pointerleave", () => {
      tip.hidden = true;
      cross.setAttribute("visibility", "hidden");
    });
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width * chart.width;
      const at = (x - chart.left) / chart.plot * chart.length;
      let low = 0, high = chart.points.length - 1;
      if (high < 0) return;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (chart.points[middle][0] < at) low = middle + 1; else high = middle;
      }
      if (low > 0 && at - chart.points[low - 1][0] < chart.points[low][0] - at) low -= 1;
      const [ms, allocated, reserved, used] = chart.points[low];
      const px = chart.left + ms / chart.length * chart.plot;
      cross.setAttribute("x1", px);
      cross.setAttribute("x2", px);
      cross.setAttribute("visibility", "visible");
      tip.textContent = "+" + time(ms) + "\nallocated  " + size(allocated) + "\nreserved   " + size(reserved) + "\nin use     " + size(used);
      tip.hidden = false;
      const left = px / chart.width * box.width;
      const width = tip.offsetWidth;
      tip.style.left = Math.max(0, left + 14 + width > box.width ? left - width - 14 : left + 14) + "px";
    });
  }
})();
