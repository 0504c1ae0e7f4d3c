// The last minutes: moments that share what has not changed between them.

const SECONDS = 300;
const BYTES = 48 << 20;

export class History {
  constructor() {
    this.moments = [];
    this.bytes = 0;
  }

  get length() { return this.moments.length; }

  at(index) { return this.moments[index]; }

  get last() { return this.moments[this.moments.length - 1]; }

  // `maps` by region; `fresh`: bytes of those that came with this moment.
  push(moment) {
    this.moments.push(moment);
    this.bytes += moment.fresh;
    while (this.moments.length > 2 && (this.bytes > BYTES || moment.t - this.moments[0].t > SECONDS)) {
      this.bytes -= this.moments.shift().fresh;
    }
  }

  // Rates a second between one moment and the one before it.
  rates(index, paths) {
    const one = this.moments[index - 1];
    const other = this.moments[index];
    if (!one || other.t <= one.t) return null;
    const value = (moment, [part, key]) => moment.stats[part]?.[key] ?? 0;
    return paths.map((path) => Math.max(0, (value(other, path) - value(one, path)) / (other.t - one.t)));
  }
}
