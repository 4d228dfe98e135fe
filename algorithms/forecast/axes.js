/** Ticks for numbers and dates, and the panel of a plot with its scales and grid. */

const MAX_TICKS = 1000
const DAY_MS = 86_400_000
const MONTHS = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec']

/** @typedef {{ at: number, label: string }} Tick */

/**
 * Round numbers between low and high.
 * @returns {Tick[]}
 */
export function numberTicks(low, high, about) {
  const rough = (high - low) / about
  const power = 10 ** Math.floor(Math.log10(rough))
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999)
  const first = Math.ceil(low / step)
  const ticks = []
  for (let i = first; i * step <= high * (1 + 1e-12) && ticks.length < MAX_TICKS; i++)
    ticks.push({ at: i * step, label: writeNumber(i * step, step) })
  return ticks
}

function writeNumber(value, step) {
  const size = Math.abs(value)
  if (size === 0) return '0'
  if (size >= 1e7 || step < 1e-5) {
    const digits = Math.min(15, Math.max(1, Math.ceil(Math.log10(size / step)) + 1))
    return String(Number(value.toPrecision(digits))).replace('-', '−')
  }
  return value.toFixed(Math.max(0, -Math.floor(Math.log10(step) + 1e-9))).replace('-', '−')
}

/** Steps between dates that people read easily: days, then months. */
const DAY_STEPS = [1, 2, 7, 14]
const MONTH_STEPS = [1, 2, 3, 6, 12, 24, 60, 120, 240, 600, 1200, 6000, 12000]

/**
 * Dates between two times (milliseconds since 1970).
 * @returns {Tick[]}
 */
export function dateTicks(low, high, about) {
  const days = (high - low) / DAY_MS
  const dayStep = DAY_STEPS.find((step) => days / step <= about)
  if (days < 3) return clockTicks(low, high, about)
  if (dayStep !== undefined) {
    const first = Math.ceil(low / (dayStep * DAY_MS))
    const count = Math.floor(high / (dayStep * DAY_MS)) - first + 1
    return Array.from({ length: Math.max(0, count) }, (_, i) => {
      const at = (first + i) * dayStep * DAY_MS
      const date = new Date(at)
      return { at, label: `${date.getUTCDate()} ${MONTHS[date.getUTCMonth()]}` }
    })
  }
  const step = MONTH_STEPS.find((months) => days / 30.4 / months <= about) ?? MONTH_STEPS.at(-1)
  const monthOf = (time) => new Date(time).getUTCFullYear() * 12 + new Date(time).getUTCMonth()
  const ticks = []
  for (let month = Math.floor(monthOf(low) / step) * step; month <= monthOf(high); month += step) {
    const at = Date.UTC(0, month) - (Date.UTC(0, 0) - Date.parse('0000-01-01'))
    const year = String(Math.floor(month / 12))
    if (at >= low && at <= high) ticks.push({ at, label: step % 12 === 0 ? year : `${MONTHS[month % 12]} ${year}` })
  }
  return ticks
}

function clockTicks(low, high, about) {
  const step =
    [1, 5, 15, 60, 180, 360, 720, 1440]
      .map((minutes) => minutes * 60_000)
      .find((size) => (high - low) / size <= about) ?? DAY_MS
  const count = Math.min(MAX_TICKS, Math.floor(high / step) - Math.ceil(low / step) + 1)
  return Array.from({ length: Math.max(0, count) }, (_, i) => {
    const at = (Math.ceil(low / step) + i) * step
    const iso = new Date(at).toISOString()
    return { at, label: iso.endsWith('T00:00:00.000Z') ? iso.slice(5, 10) : iso.slice(11, 16) }
  })
}

/**
 * A panel: where it lies, its scales, and its frame.
 * @param {{ x: number, y: number, width: number, height: number }} box of the drawing area, without the labels
 * @param {{ from: number, to: number, isDate: boolean }} time
 * @param {{ low: number, high: number }} range
 */
export function makePanel(box, time, range) {
  // halves, because high - low of huge numbers is not finite
  const half = range.high / 2 - range.low / 2
  const margin = half > 0 ? half * 0.1 : Math.abs(range.high) * 0.05 || 1
  const [low, high] = [range.low - margin, range.high + margin]
  const px = (x) => Math.round(x * 10) / 10
  const x = (at) => px(box.x + ((at - time.from) / (time.to - time.from || 1)) * box.width)
  const y = (value) => px(box.y + box.height - ((value / 2 - low / 2) / (high / 2 - low / 2)) * box.height)
  const across = time.isDate
    ? dateTicks(time.from, time.to, box.width / 80)
    : numberTicks(time.from, time.to, box.width / 90)
  const up = numberTicks(low, high, box.height / 42)
  const bottom = box.y + box.height
  const frame = [
    ...up.map(
      ({ at, label }) =>
        `<path class="grid" d="M${box.x} ${y(at)}h${box.width}"/><text class="tick" x="${box.x - 8}" y="${y(at) + 4}" text-anchor="end">${label}</text>`,
    ),
    ...across.map(
      ({ at, label }) =>
        `<path class="axis" d="M${x(at)} ${bottom}v5"/><text class="tick" x="${x(at)}" y="${bottom + 19}" text-anchor="middle">${label}</text>`,
    ),
    `<path class="axis" d="M${box.x} ${bottom}h${box.width}"/>`,
  ]
  return { box, x, y, frame: frame.join('\n') }
}
