// Numbers as people read them. `null` and what is no number show as a dash.

const NONE = "–";
const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const EXACT = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
const CENTS = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });
const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

function known(number) {
  return typeof number === "number" && Number.isFinite(number);
}

export function count(number) {
  if (!known(number)) return NONE;
  return number < 100000 ? WHOLE.format(number) : SHORT.format(number);
}

// An amount of money or of whatever is counted, given as a decimal text: to the cent, or with four digits that count.
export function amount(text) {
  const number = Number(text);
  if (!known(number)) return NONE;
  if (number >= 100000) return SHORT.format(number);
  return (number < 10 ? EXACT : CENTS).format(number);
}

export function rate(perSecond) {
  if (!known(perSecond)) return NONE;
  return perSecond > 0 && perSecond < 9.95 ? perSecond.toFixed(1) : count(perSecond);
}

export function duration(ms) {
  if (!known(ms)) return NONE;
  if (ms < 9.95) return `${ms.toFixed(ms < 0.995 ? 2 : 1)} ms`;
  if (ms < 999.5) return `${WHOLE.format(ms)} ms`;
  return `${(ms / 1000).toFixed(ms < 9995 ? 2 : 1)} s`;
}

export function seconds(s) {
  if (!known(s)) return NONE;
  if (s < 99.5) return `${Math.ceil(s)} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  return s < 129600 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} d`;
}

export function bytes(number) {
  if (!known(number)) return NONE;
  let unit = 0;
  while (number >= 999.5 && unit < 5) {
    number /= 1000;
    unit += 1;
  }
  return `${unit && number < 9.95 ? number.toFixed(1) : WHOLE.format(number)} ${["B", "kB", "MB", "GB", "TB", "PB"][unit]}`;
}

export function clock(at_s) {
  return new Date(at_s * 1000).toLocaleTimeString("en-GB");
}
