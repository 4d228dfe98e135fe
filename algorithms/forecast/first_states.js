/** Where the recursion of a model begins: level, slope and season before the first observation. */

/** Periods that are looked at for the first season. */
const PERIODS = 5

/**
 * @param {import('./models.js').Model} model
 * @param {Float64Array} values scaled
 * @param {number} period
 * @returns {{ level: number, slope: number, season: Float64Array, free: number, steps: number[] }} `free` of them, the
 *   level and the slope, are only a start: they are fitted like the weights, with `steps` as first steps
 */
export function firstStates(model, values, period) {
  const multiplicative = model.season === 'multiplicative'
  const seasonal = model.season !== 'none'
  const season = seasonal ? firstSeason(values, period, multiplicative) : Float64Array.of(0)
  const length = Math.min(values.length, seasonal ? Math.max(10, 2 * period) : 10)
  const adjusted = Float64Array.from({ length }, (_, t) =>
    multiplicative ? values[t] / season[t % period] : values[t] - season[t % season.length],
  )
  const unit = Math.max(1e-9, deviationOf(values))
  if (!model.trend) return { level: adjusted[0], slope: 0, season, free: 1, steps: [0.3 * unit] }
  const { level, slope } = fitLine(adjusted)
  return { level, slope, season, free: 2, steps: [0.1 * unit, Math.max(0.3 * Math.abs(slope), (0.1 * unit) / length)] }
}

/** Classical decomposition: what is left beside a centred moving average, averaged by place in the period. */
function firstSeason(values, period, multiplicative) {
  const length = Math.min(values.length, PERIODS * period)
  const half = Math.floor(period / 2)
  const sums = new Float64Array(period)
  const counts = new Float64Array(period)
  for (let t = half; t + half < length; t++) {
    let total = 0
    for (let k = -half; k <= half; k++) total += values[t + k]
    if (period % 2 === 0) total -= (values[t - half] + values[t + half]) / 2
    const mean = total / period
    sums[t % period] += multiplicative ? values[t] / mean : values[t] - mean
    counts[t % period]++
  }
  const season = sums.map((sum, i) => (counts[i] > 0 ? sum / counts[i] : Number(multiplicative)))
  const mean = season.reduce((sum, s) => sum + s, 0) / period
  return season.map((s) => (multiplicative ? s / mean : s - mean))
}

/** Least squares through values 1, 2, 3 ...; the level is the line's value at 0. */
function fitLine(values) {
  const n = values.length
  const middle = (n + 1) / 2
  const mean = values.reduce((sum, value) => sum + value, 0) / n
  let xx = 0
  let xy = 0
  for (let t = 1; t <= n; t++) {
    xx += (t - middle) ** 2
    xy += (t - middle) * (values[t - 1] - mean)
  }
  const slope = xy / xx
  return { level: mean - slope * middle, slope }
}

function deviationOf(values) {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length
  return Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length)
}
