/** Forecasts a time series: payload on stdin, result on stdout, plot.svg and forecast.csv in the working directory. */

import { readFileSync, writeFileSync } from 'node:fs'
import { measureAccuracy } from './accuracy.js'
import { BadInput } from './bad_input.js'
import { fillGaps } from './calendar.js'
import { forecastWithIntervals } from './intervals.js'
import { fitModel, MODELS, modelProblem } from './models.js'
import { drawPlot } from './plot.js'
import { parseRequest } from './request.js'

const EXIT_BAD_INPUT = 65
const PLOT = 'plot.svg'
const TABLE = 'forecast.csv'

/**
 * @typedef {object} Prediction
 * @property {import('./models.js').Fit} fit
 * @property {{ mean: number, bounds: [number, number][] }[]} steps
 * @property {(value: number) => number} round to five digits of the spread of the errors
 */

/**
 * Fits and forecasts, with the method asked for or the one of the least AICc.
 * @param {number[]} values without gaps
 * @param {{ period: number, levels: number[], method: string }} request
 * @param {number} horizon
 * @returns {Prediction}
 * @throws BadInput when no method fits
 */
function predict(values, { period, levels, method }, horizon) {
  const candidates = MODELS.filter(({ name }) => method === 'auto' || name === method)
  const problems = candidates.map((model) => modelProblem(model, values, period))
  const usable = candidates.filter((_, i) => problems[i] === undefined)
  if (usable.length === 0)
    throw new BadInput(
      `method ${candidates[0].name} ${problems[0]}; choose another method or "auto", or give a longer series`,
    )
  const fits = usable.map((model) => fitModel(model, values, period)).filter((fit) => fit !== undefined)
  fits.sort((a, b) => a.aicc - b.aicc)
  for (const fit of fits) {
    const steps = forecastWithIntervals(fit, horizon, levels)
    if (steps.every(({ mean, bounds }) => [mean, ...bounds.flat()].every(Number.isFinite))) {
      return { fit, steps, round: makeRounding(fit, steps) }
    }
  }
  throw new BadInput(
    `the forecast leaves the range of numbers within ${horizon} steps; give a smaller horizon, or the series in a larger unit`,
  )
}

function makeRounding(fit, steps) {
  const spread = fit.exact ? 0 : (steps[0].bounds[0][1] - steps[0].bounds[0][0]) / 2
  const digits = spread > 0 ? 4 - Math.floor(Math.log10(spread)) : Number.NaN
  return (value) =>
    digits >= 0 && digits <= 15 && Math.abs(value) < 1e15
      ? Number(value.toFixed(digits))
      : Number(value.toPrecision(12))
}

function describeFit({ fit, round }) {
  const { alpha, beta, gamma, phi } = fit.weights
  const { trend, damped, season, ets, name } = fit.model
  const short = (x) => Number(x.toPrecision(6))
  return {
    method: name,
    ets,
    parameters: {
      alpha: short(alpha),
      ...(trend && { beta: short(beta) }),
      ...(season !== 'none' && { gamma: short(gamma) }),
      ...(damped && { phi: short(phi) }),
      level: round(fit.states.level),
      ...(trend && { slope: short(fit.states.slope) }),
      sigma: short(fit.sigma),
    },
    aicc: fit.exact ? null : Number(fit.aicc.toFixed(3)),
  }
}

/** Rows of the forecast; `from` is the step of the first one on the axis of the series. */
function tabulate({ steps, round }, { axis, levels }, from) {
  return steps.map(({ mean, bounds }, i) => {
    const row = { ...(axis && { date: axis.dateAt(from + i) }), step: i + 1, mean: round(mean) }
    levels.forEach((level, l) => {
      row[`lower_${level}`] = round(bounds[l][0])
      row[`upper_${level}`] = round(bounds[l][1])
    })
    return row
  })
}

function toCsv(rows) {
  const columns = Object.keys(rows[0])
  return [columns, ...rows.map((row) => columns.map((column) => row[column]))]
    .map((cells) => `${cells.join(',')}\n`)
    .join('')
}

/** Forecasts the last observations from those before them. */
function holdOut(request) {
  const cut = request.values.length - request.holdout
  const training = fillGaps(request.values.slice(0, cut), request.period)
  const actual = request.values.slice(cut)
  const prediction = predict(training, request, request.holdout)
  const accuracy = measureAccuracy({
    training,
    actual,
    steps: prediction.steps,
    levels: request.levels,
    period: request.period,
  })
  return {
    prediction,
    actual,
    report: { n: accuracy.n, ...describeFit(prediction), ...accuracy, forecast: tabulate(prediction, request, cut) },
  }
}

function main() {
  const started = performance.now()
  const request = parseRequest(readFileSync(0, 'utf8'))
  const { values, axis, missing, period, holdout } = request
  const filled = fillGaps(values, period)
  const checked = holdout > 0 ? holdOut(request) : undefined
  const prediction = predict(filled, request, request.horizon)
  const rows = tabulate(prediction, request, values.length)
  writeFileSync(TABLE, toCsv(rows))
  writeFileSync(PLOT, drawPlot({ request, filled, prediction, checked }))
  const result = {
    title: request.title,
    ...(request.unit && { unit: request.unit }),
    ...(request.source && { source: request.source }),
    n: values.length - missing,
    missing,
    ...(axis && { frequency: axis.frequency, first: axis.dateAt(0), last: axis.dateAt(values.length - 1) }),
    period,
    ...describeFit(prediction),
    ...(checked && { holdout: checked.report }),
    forecast: rows,
    plot: PLOT,
    table: TABLE,
  }
  process.stdout.write(`${JSON.stringify(result)}\n`)
  process.stderr.write(
    `${result.method}: ${result.n} observations, ${missing} filled in, ${rows.length} steps, ${Math.round(performance.now() - started)} ms\n`,
  )
}

try {
  main()
} catch (error) {
  if (!(error instanceof BadInput)) throw error
  process.stderr.write(`forecast: ${error.message}\n`)
  process.exitCode = EXIT_BAD_INPUT
}
