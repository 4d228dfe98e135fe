/**
 * The plot of a forecast as SVG that stands alone: recent values with the forecast above, the whole series and the
 * check on held-out values below. Follows the reader's light or dark scheme.
 */

import { makePanel } from './axes.js'

const WIDTH = 1000
const HEIGHT = 600
const LEFT = 72
const RIGHT = 976
/** Points of a line that is drawn as it is; longer ones are drawn by their extremes. */
const MAX_LINE_POINTS = 1600

const STYLE = `
text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; fill: #334155; }
.paper { fill: #ffffff; }
.title { font-size: 21px; font-weight: 650; fill: #0f172a; }
.note, .key { font-size: 13px; font-weight: 400; fill: #64748b; }
.head { font-size: 13px; font-weight: 600; }
.tick { font-size: 12px; fill: #64748b; font-variant-numeric: tabular-nums; }
.grid { stroke: #e8edf3; fill: none; }
.axis { stroke: #94a3b8; fill: none; }
.now { stroke: #94a3b8; stroke-dasharray: 3 4; fill: none; }
.history { stroke: #334155; stroke-width: 1.6; fill: none; stroke-linejoin: round; }
.forecast { stroke: #2563eb; stroke-width: 2.2; fill: none; stroke-linejoin: round; }
.band { fill: #2563eb; fill-opacity: 0.17; stroke: none; }
.actual { fill: #ea580c; stroke: #ffffff; stroke-width: 1; }
.window { fill: #2563eb; fill-opacity: 0.09; stroke: none; }
@media (prefers-color-scheme: dark) {
  text { fill: #cbd5e1; }
  .paper { fill: #0f172a; }
  .title { fill: #f1f5f9; }
  .note, .key, .tick { fill: #94a3b8; }
  .grid { stroke: #1e293b; }
  .axis, .now { stroke: #64748b; }
  .history { stroke: #cbd5e1; }
  .forecast { stroke: #60a5fa; }
  .band { fill: #60a5fa; fill-opacity: 0.2; }
  .actual { fill: #fb923c; stroke: #0f172a; }
  .window { fill: #60a5fa; fill-opacity: 0.12; }
}`

/**
 * @param {object} given
 * @param {import('./request.js').Request} given.request
 * @param {readonly number[]} given.filled the series without gaps
 * @param {import('./forecast.js').Prediction} given.prediction
 * @param {{ prediction: object, actual: readonly number[], report: object } | undefined} given.checked
 * @returns {string} SVG
 */
export function drawPlot({ request, filled, prediction, checked }) {
  const { axis, horizon, holdout, period } = request
  const n = filled.length
  const view = { at: axis?.timeAt ?? ((i) => i + 1), isDate: axis !== undefined, values: filled }
  const recent = Math.min(n, Math.max(3 * horizon, 5 * period, 48))
  const hasOverview = recent < n
  const hasBelow = hasOverview || checked !== undefined
  const top = { x: LEFT, y: 92, width: RIGHT - LEFT, height: hasBelow ? 250 : 452 }
  const [left, right] = splitBelow(hasOverview, checked !== undefined)
  const parts = [
    drawHeader(request, prediction),
    drawLegend(request.levels, checked !== undefined),
    drawForecastPanel(view, top, n - recent, n, prediction.steps),
    left && drawOverview(view, left, n - recent),
    right && drawCheck(view, right, n - holdout, checked, request),
  ]
  const label = `${request.title}: ${horizon} steps forecast by ${prediction.fit.model.name}`
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" width="${WIDTH}" height="${HEIGHT}" role="img" aria-label="${escapeText(label)}">`,
    `<style>${STYLE}\n</style>`,
    `<rect class="paper" width="${WIDTH}" height="${HEIGHT}"/>`,
    ...parts.filter((part) => part !== undefined),
    '</svg>\n',
  ].join('\n')
}

function splitBelow(hasOverview, hasCheck) {
  const whole = { x: LEFT, y: 412, width: RIGHT - LEFT, height: 150 }
  if (!hasOverview) return [undefined, hasCheck ? whole : undefined]
  if (!hasCheck) return [whole, undefined]
  return [
    { ...whole, width: 404 },
    { ...whole, x: 546, width: RIGHT - 546 },
  ]
}

function drawHeader({ title, unit, values, missing, axis, horizon }, { fit }) {
  const count = `${(values.length - missing).toLocaleString('en')} ${axis?.frequency ?? ''} values`.replace('  ', ' ')
  const span = axis ? `, ${axis.dateAt(0)} to ${axis.dateAt(values.length - 1)}` : ''
  const gaps = missing > 0 ? ` (${missing} missing, filled in)` : ''
  const name = fit.model.name.replaceAll('_', ' ')
  const note = `${count}${span}${gaps} · ${name}, ${fit.model.ets} · ${horizon} steps ahead`
  return `<text class="title" x="24" y="34">${escapeText(title)}${unit ? `<tspan class="note" dx="8">${escapeText(unit)}</tspan>` : ''}</text>
<text class="note" x="24" y="57">${escapeText(note)}</text>`
}

function drawLegend(levels, hasCheck) {
  const entries = [
    ['<path class="history" d="M0 -4h22"/>', 'observed'],
    ['<path class="forecast" d="M0 -4h22"/>', 'forecast'],
    // the bands lie on each other: the narrowest is the darkest
    ...levels.map((level, i) => [
      '<rect class="band" y="-10" width="22" height="12" rx="2"/>'.repeat(levels.length - i),
      `${level} %`,
    ]),
    ...(hasCheck ? [['<circle class="actual" cx="11" cy="-4" r="4"/>', 'held out']] : []),
  ]
  const widths = entries.map(([, text]) => 44 + text.length * 7)
  let x = RIGHT - widths.reduce((sum, width) => sum + width, -12)
  return entries
    .map(([mark, text], i) => {
      const entry = `<g transform="translate(${x} 80)">${mark}<text class="key" x="28">${escapeText(text)}</text></g>`
      x += widths[i]
      return entry
    })
    .join('\n')
}

function rangeOf(...lists) {
  let low = Number.POSITIVE_INFINITY
  let high = Number.NEGATIVE_INFINITY
  for (const list of lists) {
    for (const value of list) {
      if (value < low) low = value
      if (value > high) high = value
    }
  }
  return { low, high }
}

/** History from step `from`, and the forecast that begins at step `cut`. */
function drawForecastPanel(view, box, from, cut, steps) {
  const { at, values, isDate } = view
  const history = values.slice(from, cut)
  const range = rangeOf(history, ...steps.map(({ mean, bounds }) => [mean, ...bounds.flat()]))
  const panel = makePanel(box, { from: at(from), to: at(cut + steps.length - 1), isDate }, range)
  return [
    panel.frame,
    drawBands(panel, at, cut, steps, values[cut - 1]),
    `<path class="now" d="M${panel.x(at(cut - 1))} ${box.y}v${box.height}"/>`,
    drawLine('history', panel, at, from, history),
    drawLine('forecast', panel, at, cut - 1, [values[cut - 1], ...steps.map(({ mean }) => mean)]),
  ].join('\n')
}

/** The bands open at the last value that was known. */
function drawBands({ x, y }, at, cut, steps, last) {
  const stride = Math.max(1, Math.floor(steps.length / MAX_LINE_POINTS))
  const shown = steps.map((_, i) => i).filter((i) => i % stride === 0 || i === steps.length - 1)
  const edge = (l, side) => shown.map((i) => `${x(at(cut + i))} ${y(steps[i].bounds[l][side])}`)
  const start = `${x(at(cut - 1))} ${y(last)}`
  return steps[0].bounds
    .map((_, l) => `<path class="band" d="M${[start, ...edge(l, 0), ...edge(l, 1).reverse()].join('L')}Z"/>`)
    .join('\n')
}

/** Values at steps from, from + 1, ...; of a long line the lowest and highest value of each bucket are drawn. */
function drawLine(name, { x, y }, at, from, values) {
  const bucket = Math.max(1, Math.ceil((2 * values.length) / MAX_LINE_POINTS))
  const points = []
  for (let i = 0; i < values.length; i += bucket) {
    let [low, high] = [i, i]
    for (let k = i; k < Math.min(values.length, i + bucket); k++) {
      if (values[k] < values[low]) low = k
      if (values[k] > values[high]) high = k
    }
    for (const k of new Set(low < high ? [low, high] : [high, low])) points.push(`${x(at(from + k))} ${y(values[k])}`)
  }
  return `<path class="${name}" d="M${points.join('L')}"/>`
}

function drawOverview(view, box, recentFrom) {
  const { at, values, isDate } = view
  const panel = makePanel(box, { from: at(0), to: at(values.length - 1), isDate }, rangeOf(values))
  const edge = panel.x(at(recentFrom))
  return [
    `<text class="head" x="${box.x}" y="${box.y - 14}">The whole series<tspan class="note" dx="8">shaded: shown above</tspan></text>`,
    `<rect class="window" x="${edge}" y="${box.y}" width="${Math.round(10 * (box.x + box.width - edge)) / 10}" height="${box.height}"/>`,
    panel.frame,
    drawLine('history', panel, at, 0, values),
  ].join('\n')
}

function drawCheck(view, box, cut, { prediction, actual, report }, { unit }) {
  const before = Math.max(0, cut - Math.ceil(actual.length / 3))
  const { at, isDate, values } = view
  const { steps } = prediction
  const history = values.slice(before, cut)
  const observed = actual.map((_, i) => i).filter((i) => !Number.isNaN(actual[i]))
  const range = rangeOf(
    history,
    observed.map((i) => actual[i]),
    ...steps.map(({ mean, bounds }) => [mean, ...bounds.flat()]),
  )
  const panel = makePanel(box, { from: at(before), to: at(cut + steps.length - 1), isDate }, range)
  const stride = Math.max(1, Math.ceil(observed.length / 300))
  const dots = observed
    .filter((_, k) => k % stride === 0)
    .map((i) => `<circle class="actual" cx="${panel.x(at(cut + i))}" cy="${panel.y(actual[i])}" r="3.2"/>`)
  const brief = (x) => String(Number(x.toPrecision(3)))
  const errors = `mean error ${brief(report.mae)}${unit && unit.length < 8 ? ` ${unit}` : ''}, naive ${brief(report.seasonal_naive.mae)}`
  return [
    `<text class="head" x="${box.x}" y="${box.y - 14}">Check: last ${actual.length} held out<tspan class="note" dx="8">${escapeText(errors)}</tspan></text>`,
    panel.frame,
    drawBands(panel, at, cut, steps, values[cut - 1]),
    drawLine('history', panel, at, before, history),
    drawLine('forecast', panel, at, cut - 1, [values[cut - 1], ...steps.map(({ mean }) => mean)]),
    ...dots,
  ].join('\n')
}

function escapeText(text) {
  return text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`)
}
