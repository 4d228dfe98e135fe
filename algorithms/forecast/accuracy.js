/** How good a forecast was, once the actual values are known. */

/**
 * @param {object} given
 * @param {readonly number[]} given.training what the forecast was made from
 * @param {readonly number[]} given.actual NaN where nothing was observed: such a step is not counted
 * @param {readonly { mean: number, bounds: [number, number][] }[]} given.steps
 * @param {readonly number[]} given.levels
 * @param {number} given.period
 */
export function measureAccuracy({ training, actual, steps, levels, period }) {
  const observed = actual.map((_, i) => i).filter((i) => !Number.isNaN(actual[i]))
  const naive = actual.map((_, i) => training[training.length - period + (i % period)] ?? training.at(-1))
  const coverage = {}
  levels.forEach((level, l) => {
    const inside = observed.filter((i) => steps[i].bounds[l][0] <= actual[i] && actual[i] <= steps[i].bounds[l][1])
    coverage[`coverage_${level}`] = short(inside.length / observed.length)
  })
  return {
    n: observed.length,
    ...errorsOf(observed, actual, (i) => steps[i].mean),
    ...coverage,
    // the same season one period before; without a season, the last value
    seasonal_naive: errorsOf(observed, actual, (i) => naive[i]),
  }
}

/** Mean absolute and root mean square error in the unit of the series, and the mean absolute one in percent. */
function errorsOf(observed, actual, forecastAt) {
  const errors = observed.map((i) => actual[i] - forecastAt(i))
  const largest = Math.max(...errors.map(Math.abs))
  const mean = (f) => errors.reduce((sum, error, k) => sum + f(error, observed[k]) / errors.length, 0)
  const percent = 100 * mean((error, i) => Math.abs(error / actual[i]))
  return {
    mae: short(mean(Math.abs)),
    // divided by the largest first, so that squares of huge errors do not overflow
    rmse: largest === 0 ? 0 : short(largest * Math.sqrt(mean((error) => (error / largest) ** 2))),
    // a percentage of 0 is no number
    mape: Number.isFinite(percent) ? short(percent) : null,
    bias: short(mean((error) => error)),
  }
}

function short(x) {
  return Number(x.toPrecision(5))
}
