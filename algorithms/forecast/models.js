/**
 * The models: exponential smoothing in state-space form (Hyndman, Koehler, Ord, Snyder: Forecasting with Exponential
 * Smoothing, 2008), as a table, their recursion, and how each is fitted by maximum likelihood.
 */

import { firstStates } from './first_states.js'
import { minimize } from './nelder_mead.js'

/**
 * @typedef {object} Model
 * @property {string} name
 * @property {string} ets error, trend and season: A additive, Ad additive and damped, M multiplicative, N none
 * @property {boolean} trend
 * @property {boolean} damped
 * @property {'none' | 'additive' | 'multiplicative'} season multiplicative goes with multiplicative errors
 */

/** @type {readonly Model[]} */
export const MODELS = [
  { name: 'ses', ets: 'ETS(A,N,N)', trend: false, damped: false, season: 'none' },
  { name: 'holt', ets: 'ETS(A,A,N)', trend: true, damped: false, season: 'none' },
  { name: 'holt_damped', ets: 'ETS(A,Ad,N)', trend: true, damped: true, season: 'none' },
  { name: 'holt_winters_additive', ets: 'ETS(A,A,A)', trend: true, damped: false, season: 'additive' },
  { name: 'holt_winters_additive_damped', ets: 'ETS(A,Ad,A)', trend: true, damped: true, season: 'additive' },
  { name: 'holt_winters_multiplicative', ets: 'ETS(M,A,M)', trend: true, damped: false, season: 'multiplicative' },
  {
    name: 'holt_winters_multiplicative_damped',
    ets: 'ETS(M,Ad,M)',
    trend: true,
    damped: true,
    season: 'multiplicative',
  },
]

/**
 * @typedef {object} States after an observation
 * @property {number} level
 * @property {number} slope
 * @property {Float64Array} season by position in the period; one 0 (or 1) when there is none
 */

/** @typedef {{ alpha: number, beta: number, gamma: number, phi: number }} Weights */

/**
 * @typedef {object} Fit in the units of the series
 * @property {Model} model
 * @property {Weights} weights
 * @property {States} states after the last observation
 * @property {number} position place in the period of the next observation
 * @property {number} sigma standard deviation of the one-step errors (relative ones for multiplicative errors)
 * @property {number} aicc in the units of the series, so that models can be compared
 * @property {boolean} exact the series has no noise; then sigma is 0, and aicc has no meaning but to choose by
 */

/** What no fit can be better than, so that a series without noise has a likelihood. In units of the scaled series. */
const LEAST_MEAN_SQUARE = 1e-20

/** Work of one fit: evaluations times observations. */
const WORK = 30_000_000

/** Where the searches begin: alpha, beta as a share of alpha, gamma as a share of 1 - alpha, phi. */
const STARTS = [
  [0.3, 0.1, 0.1, 0.97],
  [0.1, 0.02, 0.3, 0.95],
  [0.8, 0.1, 0.1, 0.9],
  [0.5, 0.01, 0.03, 0.97],
]

/** Parameters that are fitted, with the variance of the errors. */
export function countParameters(model, period) {
  const seasonal = model.season === 'none' ? 0 : period
  return 2 + (model.trend ? 2 : 0) + (model.damped ? 1 : 0) + seasonal + 1
}

/** Why a model cannot be fitted to these values, or undefined. */
export function modelProblem(model, values, period) {
  if (model.season !== 'none') {
    if (period < 2) return `needs a period of at least 2, this series has none`
    if (values.length < 2 * period)
      return `needs two whole periods, that is ${2 * period} observations, and has ${values.length}`
  }
  if (model.season === 'multiplicative' && values.some((value) => value <= 0)) return 'needs values above 0'
  const least = countParameters(model, period) + 2
  if (values.length < least) return `needs at least ${least} observations, and has ${values.length}`
  return undefined
}

/**
 * Runs the recursion over the series and adds up its errors. `states` is changed; at the end it holds the last states.
 * @param {Model} model
 * @param {Weights} weights
 * @param {States} states
 * @param {Float64Array} values
 * @returns {{ squares: number, logs: number }} squared errors, and the logarithms of the factors they are relative to
 */
export function runFilter(model, { alpha, beta, gamma, phi }, states, values) {
  const { season } = states
  const period = season.length
  const multiplicative = model.season === 'multiplicative'
  const seasonal = model.season === 'additive'
  let { level, slope } = states
  let squares = 0
  let logs = 0
  for (let t = 0, i = 0; t < values.length; t++) {
    const damped = phi * slope
    const trend = level + damped
    if (multiplicative) {
      const mean = trend * season[i]
      if (!(trend > 0) || !(season[i] > 0)) return { squares: Number.POSITIVE_INFINITY, logs: 0 }
      const error = values[t] / mean - 1
      level = trend * (1 + alpha * error)
      slope = damped + beta * trend * error
      season[i] *= 1 + gamma * error
      squares += error * error
      logs += Math.log(mean)
    } else {
      const error = values[t] - trend - season[i]
      level = trend + alpha * error
      slope = damped + beta * error
      if (seasonal) season[i] += gamma * error
      squares += error * error
    }
    if (++i === period) i = 0
  }
  states.level = level
  states.slope = slope
  return { squares, logs }
}

/**
 * Fits one model by maximum likelihood.
 * @param {Model} model for which modelProblem() found none
 * @param {readonly number[]} series
 * @param {number} period
 * @returns {Fit | undefined} undefined when no start led to finite errors
 */
export function fitModel(model, series, period) {
  const scale = makeScale(model, series)
  const values = Float64Array.from(series, (value) => value / scale.unit - scale.shift)
  const first = firstStates(model, values, period)
  const n = values.length
  const twiceMinusLog = ({ squares, logs }) =>
    n * (Math.log(2 * Math.PI * Math.max(squares / n, LEAST_MEAN_SQUARE)) + 1) + 2 * logs
  const cost = (x) => {
    const { weights, states } = decode(model, x, first)
    return twiceMinusLog(runFilter(model, weights, states, values))
  }
  const best = searchFromStarts(model, cost, first, n)
  if (!Number.isFinite(best.cost)) return undefined

  const { weights, states } = decode(model, best.x, first)
  const { squares } = runFilter(model, weights, states, values)
  const k = countParameters(model, period)
  const aic = best.cost + 2 * n * Math.log(scale.unit) + 2 * k
  const back = model.season === 'multiplicative' ? 1 : scale.unit
  const exact = squares / n <= LEAST_MEAN_SQUARE
  return {
    model,
    weights,
    states: {
      level: (states.level + scale.shift) * scale.unit,
      slope: states.slope * scale.unit,
      season: states.season.map((s) => s * back),
    },
    position: model.season === 'none' ? 0 : n % period,
    sigma: exact ? 0 : Math.sqrt(squares / Math.max(1, n - k + 1)) * back,
    aicc: aic + (2 * k * (k + 1)) / (n - k - 1),
    exact,
  }
}

/** Brings values near 1, so that nothing overflows: value / unit - shift. Multiplicative models may not be shifted. */
function makeScale(model, series) {
  let largest = 0
  for (const value of series) largest = Math.max(largest, Math.abs(value))
  if (largest === 0) return { unit: 1, shift: 0 }
  let mean = 0
  for (const value of series) mean += value / largest / series.length
  if (model.season === 'multiplicative') return { unit: largest * mean, shift: 0 }
  let deviation = 0
  for (const value of series) deviation += (value / largest - mean) ** 2 / series.length
  const spread = Math.sqrt(deviation)
  // spread below the resolution of the numbers is rounding, not signal
  const unit = spread > 1e-14 * Math.abs(mean) ? Math.max(largest * spread, Number.MIN_VALUE) : largest
  return { unit, shift: mean * (largest / unit) }
}

function searchFromStarts(model, cost, first, n) {
  const evaluations = Math.round(Math.min(1500, Math.max(150, WORK / n)))
  const starts = STARTS.map((start) => encode(model, start, first))
  const steps = starts[0].map((_, i) =>
    i < starts[0].length - first.free ? 0.7 : first.steps[i - starts[0].length + first.free],
  )
  const rough = starts.map((start) =>
    minimize(cost, start, steps, { evaluations: Math.round(evaluations / 8), tolerance: 1e-5 }),
  )
  rough.sort((a, b) => a.cost - b.cost)
  const fine = rough.slice(0, 2).map(({ x }) =>
    minimize(
      cost,
      [...x],
      steps.map((step) => step / 4),
      { evaluations: Math.round(evaluations / 4) },
    ),
  )
  fine.sort((a, b) => a.cost - b.cost)
  // a second, fresh simplex around the best point frees a search that has collapsed
  return minimize(
    cost,
    [...fine[0].x],
    steps.map((step) => step / 4),
    { evaluations: Math.round(evaluations / 2) },
  )
}

const logistic = (u) => 1 / (1 + Math.exp(-u))
const logit = (p) => Math.log(p / (1 - p))

/** Any real vector stands for weights inside the usual region: beta < alpha, gamma < 1 - alpha, 0.8 < phi < 0.98. */
function decode(model, x, first) {
  let i = 0
  const alpha = 1e-4 + 0.9998 * logistic(x[i++])
  const beta = model.trend ? alpha * logistic(x[i++]) : 0
  const gamma = model.season === 'none' ? 0 : (1 - alpha) * logistic(x[i++])
  const phi = model.damped ? 0.8 + 0.18 * logistic(x[i++]) : 1
  const level = x[i++]
  const slope = model.trend ? x[i++] : 0
  return { weights: { alpha, beta, gamma, phi }, states: { level, slope, season: first.season.slice() } }
}

function encode(model, [alpha, betaShare, gammaShare, phi], first) {
  const x = [logit(alpha)]
  if (model.trend) x.push(logit(betaShare))
  if (model.season !== 'none') x.push(logit(gammaShare))
  if (model.damped) x.push(logit((Math.min(phi, 0.975) - 0.8) / 0.18))
  x.push(first.level)
  if (model.trend) x.push(first.slope)
  return x
}
