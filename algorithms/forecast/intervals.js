/**
 * Forecasts with prediction intervals. Additive models have exact ones: the variance of class 1 (Hyndman and others,
 * 2008, chapter 6). Multiplicative seasons have none in closed form: there many futures are simulated, from a seed.
 */

const SEED = 20_120_419
const MAX_PATHS = 5000
const MIN_PATHS = 1000
/** steps that all paths together take at most, before MIN_PATHS */
const WORK = 4_000_000

/**
 * @param {import('./models.js').Fit} fit
 * @param {number} horizon
 * @param {readonly number[]} levels in percent
 * @returns {{ mean: number, bounds: [lower: number, upper: number][] }[]} one for each step; bounds in the order of levels
 */
export function forecastWithIntervals(fit, horizon, levels) {
  const means = pointForecasts(fit, horizon)
  if (fit.model.season === 'multiplicative') return simulateIntervals(fit, means, levels)
  const deviations = deviationsByStep(fit, horizon)
  const quantiles = levels.map((level) => normalQuantile(0.5 + level / 200))
  return means.map((mean, i) => ({
    mean,
    bounds: quantiles.map((q) => [mean - q * deviations[i], mean + q * deviations[i]]),
  }))
}

function pointForecasts({ model, weights, states, position }, horizon) {
  const { season } = states
  let damping = 0
  let power = 1
  return Array.from({ length: horizon }, (_, i) => {
    power *= weights.phi
    damping += power
    const trend = states.level + damping * states.slope
    const s = season[(position + i) % season.length]
    return model.season === 'multiplicative' ? trend * s : trend + s
  })
}

/** Standard deviation of the error 1, 2, ... steps ahead: sigma * sqrt(1 + c1² + ... ), cj what an error does j steps later. */
function deviationsByStep({ model, weights, states, sigma }, horizon) {
  const { alpha, beta, gamma, phi } = weights
  const period = states.season.length
  let damping = 0
  let power = 1
  let sum = 1
  return Array.from({ length: horizon }, (_, i) => {
    if (i > 0) {
      power *= phi
      damping += power
      const again = model.season === 'additive' && i % period === 0 ? gamma : 0
      sum += (alpha + beta * damping + again) ** 2
    }
    return sigma * Math.sqrt(sum)
  })
}

/** Paths come in pairs with opposite errors, which keeps the bounds even with few of them. */
function simulateIntervals(fit, means, levels) {
  const { alpha, beta, gamma, phi } = fit.weights
  const period = fit.states.season.length
  const paths = 2 * Math.floor(Math.min(MAX_PATHS, Math.max(MIN_PATHS, WORK / means.length)) / 2)
  const level = new Float64Array(paths).fill(fit.states.level)
  const slope = new Float64Array(paths).fill(fit.states.slope)
  const seasons = fit.states.season
  const season = Array.from({ length: period }, (_, i) => new Float64Array(paths).fill(seasons[i]))
  const drawn = new Float64Array(paths)
  const normal = makeNormal(SEED)
  return means.map((mean, step) => {
    const now = season[(fit.position + step) % period]
    let error = 0
    for (let p = 0; p < paths; p++) {
      // an error of -1 or less would make a positive series negative
      error = p % 2 === 0 ? Math.max(-0.99, Math.min(0.99, fit.sigma * normal())) : -error
      const trend = level[p] + phi * slope[p]
      drawn[p] = trend * now[p] * (1 + error)
      level[p] = trend * (1 + alpha * error)
      slope[p] = phi * slope[p] + beta * trend * error
      now[p] *= 1 + gamma * error
    }
    const sorted = drawn.slice().sort()
    const bounds = levels.map((percent) =>
      [0.5 - percent / 200, 0.5 + percent / 200].map((share) => quantileOf(sorted, share)),
    )
    return { mean, bounds }
  })
}

function quantileOf(sorted, share) {
  const place = share * (sorted.length - 1)
  const below = Math.floor(place)
  const above = Math.min(sorted.length - 1, below + 1)
  return sorted[below] + (place - below) * (sorted[above] - sorted[below])
}

/** Marsaglia's 32-bit xorshift, then Box and Muller. */
function makeNormal(seed) {
  let state = seed | 0
  const uniform = () => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return ((state >>> 0) + 0.5) / 4294967296
  }
  let spare
  return () => {
    if (spare !== undefined) {
      const value = spare
      spare = undefined
      return value
    }
    const radius = Math.sqrt(-2 * Math.log(uniform()))
    const angle = 2 * Math.PI * uniform()
    spare = radius * Math.sin(angle)
    return radius * Math.cos(angle)
  }
}

/** The x that a standard normal variable stays below with the given probability, 0.5 <= probability < 1. */
export function normalQuantile(probability) {
  let x = 0
  for (let i = 0; i < 100; i++) {
    const density = Math.exp((-x * x) / 2) / Math.sqrt(2 * Math.PI)
    // the series x + x³/3 + x⁵/(3·5) + ... times the density is the probability between 0 and x
    let term = x
    let sum = x
    for (let k = 3; term > 1e-17 * sum; k += 2) {
      term *= (x * x) / k
      sum += term
    }
    const step = (probability - 0.5 - density * sum) / density
    x += step
    if (Math.abs(step) < 1e-13) break
  }
  return x
}
