/** A plot in characters: what was measured, its forecast, and the interval around it, over years. */

export interface Measured {
  /** in years: 2019.5 is the middle of 2019 */
  readonly year: number
  readonly value: number
}

export interface Forecast {
  readonly year: number
  readonly mean: number
  readonly lower: number
  readonly upper: number
}

export type Layer = 'measured' | 'forecast' | 'interval' | 'axis'

export interface Chart {
  /** at least one */
  readonly measured: readonly Measured[]
  readonly forecast: readonly Forecast[]
  readonly unit: string
  /** characters, with the axes; below MIN_COLUMNS it is that much */
  readonly columns: number
  /** lines of the plot itself */
  readonly rows: number
  /** `braille` has 2 x 4 dots in a character */
  readonly glyphs: 'braille' | 'ascii'
  readonly paint: (text: string, layer: Layer) => string
}

export const MIN_COLUMNS = 30
const LAYERS = ['interval', 'measured', 'forecast'] as const
const ASCII: Record<(typeof LAYERS)[number], string> = { interval: ':', measured: '*', forecast: 'o' }
/** Bits of a Braille character by column and row of its dots. */
const BRAILLE_DOTS = [
  [0x01, 0x02, 0x04, 0x40],
  [0x08, 0x10, 0x20, 0x80],
]
const BRAILLE_BLANK = 0x2800
/** At least so many lines for each number beside the axis. */
const ROWS_PER_LABEL = 2.5

/** Lines without line ends; the first names the unit, the last the years. */
export function drawChart(chart: Chart): string[] {
  const range = rangeOf(chart)
  const labels = makeLabels(range, Math.max(2, chart.rows / ROWS_PER_LABEL))
  const margin = Math.max(...labels.map(({ text }) => text.length), chart.unit.length)
  // The margin, a blank, and the axis.
  const width = Math.max(MIN_COLUMNS, chart.columns) - margin - 2
  const grid = new Grid(width, chart.rows, chart.glyphs, range)
  grid.line(
    'measured',
    chart.measured.map(({ year, value }) => [year, value]),
  )
  const forecast = joinForecast(chart)
  grid.band(forecast)
  grid.line(
    'forecast',
    forecast.map(({ year, mean }) => [year, mean]),
  )
  const marks = chart.glyphs === 'braille' ? { tick: '┤', side: '│', corner: '└', base: '─', year: '┴' } : ASCII_MARKS
  const axis = (text: string) => chart.paint(text, 'axis')
  const byRow = new Map(labels.map(({ value, text }) => [grid.rowOf(value), text]))
  const lines = grid.lines(chart.paint).map((line, row) => {
    const label = byRow.get(row)
    return `${axis(`${(label ?? '').padStart(margin)} ${label === undefined ? marks.side : marks.tick}`)}${line}`
  })
  const years = makeYears(range, grid, width)
  const base = Array.from({ length: width }, (_, column) =>
    years.some((each) => each.column === column) ? marks.year : marks.base,
  )
  return [
    axis(chart.unit.padStart(margin)),
    ...lines,
    axis(`${' '.repeat(margin + 1)}${marks.corner}${base.join('')}`),
    axis(writeYears(years, margin + 2, width)),
  ]
}

const ASCII_MARKS = { tick: '+', side: '|', corner: '+', base: '-', year: '+' }

/** It sets out from the last value that was measured. */
function joinForecast({ measured, forecast }: Chart): readonly Forecast[] {
  const last = measured.at(-1)
  if (last === undefined || forecast.length === 0) return forecast
  const { year, value } = last
  return [{ year, mean: value, lower: value, upper: value }, ...forecast]
}

interface Range {
  readonly from: number
  readonly to: number
  readonly low: number
  readonly high: number
}

function rangeOf({ measured, forecast }: Chart): Range {
  const years = [...measured, ...forecast].map(({ year }) => year)
  const values = [
    ...measured.map(({ value }) => value),
    ...forecast.flatMap(({ mean, lower, upper }) => [mean, lower, upper]),
  ]
  const [low, high] = [Math.min(...values), Math.max(...values)]
  const margin = (high - low || Math.abs(high) || 1) * 0.03
  return { from: Math.min(...years), to: Math.max(...years), low: low - margin, high: high + margin }
}

/** Round numbers inside the range. */
function makeLabels({ low, high }: Range, most: number): { value: number; text: string }[] {
  const rough = (high - low) / most
  const power = 10 ** Math.floor(Math.log10(rough))
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999) ?? 10 * power
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9))
  const first = Math.ceil(low / step)
  return Array.from({ length: Math.max(0, Math.floor(high / step) - first + 1) }, (_, i) => {
    const value = (first + i) * step
    return { value, text: value.toFixed(digits) }
  })
}

/** Whole years where their numbers do not touch each other. */
function makeYears({ from, to }: Range, grid: Grid, width: number): { column: number; text: string }[] {
  const all = Array.from({ length: Math.floor(to) - Math.ceil(from) + 1 }, (_, i) => Math.ceil(from) + i)
  const columnsPerYear = to > from ? width / (to - from) : width
  const step = [1, 2, 5, 10, 20, 50, 100].find((years) => years * columnsPerYear >= 7) ?? 100
  return all.filter((year) => year % step === 0).map((year) => ({ column: grid.columnOf(year), text: String(year) }))
}

/** Each number stands with its second digit below its mark, unless it is at the edge. */
function writeYears(years: readonly { column: number; text: string }[], indent: number, width: number): string {
  let line = ''
  for (const { column, text } of years) line = line.padEnd(indent + Math.min(column - 1, width - text.length)) + text
  return line
}

/** Characters of several dots each; a character belongs to the uppermost layer that has a dot in it. */
class Grid {
  readonly #dots: Uint8Array[]
  readonly #layers: Uint8Array
  readonly #across: number
  readonly #down: number
  readonly #columns: number
  readonly #rows: number
  readonly #glyphs: Chart['glyphs']
  readonly #range: Range

  constructor(columns: number, rows: number, glyphs: Chart['glyphs'], range: Range) {
    this.#columns = columns
    this.#rows = rows
    this.#glyphs = glyphs
    this.#range = range
    this.#across = glyphs === 'braille' ? 2 : 1
    this.#down = glyphs === 'braille' ? 4 : 1
    this.#dots = LAYERS.map(() => new Uint8Array(columns * rows))
    this.#layers = new Uint8Array(columns * rows)
  }

  columnOf(year: number): number {
    return Math.floor(this.#x(year) / this.#across)
  }

  rowOf(value: number): number {
    return Math.floor(this.#y(value) / this.#down)
  }

  /** Dots between lower and upper, straight from one point to the next. */
  band(points: readonly Forecast[]): void {
    for (const [i, to] of points.entries()) {
      const from = points[i - 1]
      if (from === undefined) continue
      const [fromX, toX] = [this.#x(from.year), this.#x(to.year)]
      for (let x = fromX; x <= toX; x++) {
        const share = (x - fromX) / (toX - fromX || 1)
        const between = (one: number, other: number) => this.#y(one + (other - one) * share)
        this.#column(x, between(from.upper, to.upper), between(from.lower, to.lower))
      }
    }
  }

  /** With Braille every second dot of every second column, and the bounds: a line is seen in it. */
  #column(x: number, top: number, bottom: number): void {
    const isDense = this.#glyphs === 'ascii'
    if (!isDense && x % 2 === 1) return
    for (let y = top; y <= bottom; y++) {
      if (isDense || y % 2 === 0 || y === top || y === bottom) this.#set('interval', x, y)
    }
  }

  /** Through all points. */
  line(layer: 'measured' | 'forecast', points: readonly (readonly [year: number, value: number])[]): void {
    const dots = points.map(([year, value]) => [this.#x(year), this.#y(value)] as const)
    for (const [i, [x, y]] of dots.entries()) {
      const [fromX, fromY] = dots[Math.max(0, i - 1)] ?? [x, y]
      const steps = Math.max(Math.abs(x - fromX), Math.abs(y - fromY), 1)
      for (let step = 0; step <= steps; step++) {
        const share = step / steps
        this.#set(layer, Math.round(fromX + (x - fromX) * share), Math.round(fromY + (y - fromY) * share))
      }
    }
  }

  lines(paint: Chart['paint']): string[] {
    return Array.from({ length: this.#rows }, (_, row) => {
      let line = ''
      let run = ''
      let runLayer = 0
      for (let column = 0; column <= this.#columns; column++) {
        const cell = row * this.#columns + column
        const layer = column < this.#columns ? (this.#layers[cell] ?? 0) : -1
        if (layer !== runLayer) {
          line += runLayer === 0 ? run : paint(run, LAYERS[runLayer - 1] as Layer)
          run = ''
          runLayer = layer
        }
        if (layer >= 0) run += this.#glyph(cell, layer)
      }
      return line.trimEnd()
    })
  }

  #glyph(cell: number, layer: number): string {
    if (layer === 0) return ' '
    if (this.#glyphs === 'ascii') return ASCII[LAYERS[layer - 1] as (typeof LAYERS)[number]]
    const dots = this.#dots.reduce((all, each) => all | (each[cell] ?? 0), 0)
    return String.fromCharCode(BRAILLE_BLANK + dots)
  }

  #x(year: number): number {
    const { from, to } = this.#range
    return Math.round(((year - from) / (to - from || 1)) * (this.#columns * this.#across - 1))
  }

  #y(value: number): number {
    const { low, high } = this.#range
    return Math.round(((high - value) / (high - low)) * (this.#rows * this.#down - 1))
  }

  #set(layer: (typeof LAYERS)[number], x: number, y: number): void {
    const cell = Math.floor(y / this.#down) * this.#columns + Math.floor(x / this.#across)
    const index = LAYERS.indexOf(layer)
    const bit = BRAILLE_DOTS[x % this.#across]?.[y % this.#down] ?? 0
    const dots = this.#dots[index]
    if (dots !== undefined) dots[cell] = (dots[cell] ?? 0) | bit
    this.#layers[cell] = Math.max(this.#layers[cell] ?? 0, index + 1)
  }
}
