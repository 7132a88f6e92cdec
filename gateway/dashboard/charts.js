// The two charts. Lines are drawn by uPlot on a canvas; the legend is ours, so that it is text and says the latest.

import { SPAN_S } from "./history.js";

/* global uPlot */

const dark = matchMedia("(prefers-color-scheme: dark)");

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

export class Chart {
  #box;
  #lines;
  #format;
  #values;
  #plot;
  #data;
  #title;

  // lines: [{name: a column of the history's, label, colour: a variable of the style sheet, fill, dash}]
  constructor(box, legend, lines, format) {
    this.#box = box;
    this.#lines = lines;
    this.#format = format;
    this.#title = box.getAttribute("aria-label");
    this.#data = [[], ...lines.map(() => [])];
    this.#values = lines.map((line) => {
      const item = document.createElement("li");
      const swatch = document.createElement("span");
      const value = document.createElement("b");
      swatch.className = `swatch ${line.colour}`;
      item.append(swatch, line.label, value);
      legend.append(item);
      return value;
    });
    this.#plot = new uPlot(this.#options(), this.#data, box);
    new ResizeObserver(() => this.#plot.setSize(this.#size())).observe(box);
    dark.addEventListener("change", () => this.#plot.redraw(false, true));
  }

  show(points) {
    this.#data = [points.at, ...this.#lines.map((line) => points[line.name])];
    this.#plot.setData(this.#data);
    this.#say(this.#plot.cursor.idx);
    const now = this.#lines.map((line, at) => `${line.label} ${this.#format(this.#data[at + 1].at(-1))}`);
    this.#box.setAttribute("aria-label", `${this.#title}, the last five minutes; now: ${now.join(", ")}`);
  }

  // The legend has the values under the pointer, else the latest.
  #say(index) {
    this.#values.forEach((value, at) => {
      const column = this.#data[at + 1];
      value.textContent = this.#format(column[index ?? column.length - 1]);
    });
  }

  #size() {
    return { width: Math.max(this.#box.clientWidth, 50), height: Math.max(this.#box.clientHeight, 50) };
  }

  #options() {
    const font = `11px ${getComputedStyle(document.body).fontFamily}`;
    const axis = { font, stroke: () => colour("muted"), grid: { stroke: () => colour("hairline"), width: 1 } };
    return {
      ...this.#size(),
      padding: [8, 8, 0, 0],
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 }, sync: { key: "gateway" } },
      hooks: { setCursor: [(plot) => this.#say(plot.cursor.idx)] },
      scales: {
        x: { range: (plot, least, most) => [(most ?? Date.now() / 1000) - SPAN_S, most ?? Date.now() / 1000] },
        y: { range: (plot, least, most) => [0, Math.max(most ?? 0, 1) * 1.1] },
      },
      axes: [
        {
          ...axis,
          size: 24,
          gap: 4,
          space: 70,
          grid: { show: false },
          ticks: { show: false },
          values: (plot, splits) => splits.map((at_s) => new Date(at_s * 1000).toTimeString().slice(0, 5)),
          incrs: [60, 120],
        },
        {
          ...axis,
          size: 56,
          gap: 6,
          space: 36,
          ticks: { show: false },
          values: (plot, splits) => splits.map((value) => (value ? this.#format(value) : "0")),
        },
      ],
      series: [
        {},
        ...this.#lines.map((line) => ({
          stroke: () => colour(line.colour),
          fill: line.fill ? () => colour(`${line.colour}-fill`) : undefined,
          dash: line.dash,
          width: 1.5,
          points: { show: false },
        })),
      ],
    };
  }
}
