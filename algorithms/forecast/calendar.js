/** Time axes: the step between the dates of a series, the gaps in it, and the dates that follow. Pure; all in UTC. */

import { BadInput } from './bad_input.js'

const DAY_MS = 86_400_000
const MAX_STEPS = 100_000

/**
 * @typedef {object} Axis
 * @property {string} frequency yearly, quarterly, monthly, weekly, daily, or for example "every 15 minutes"
 * @property {number} period steps until the season comes again; 1: none is expected
 * @property {(step: number) => number} timeAt milliseconds since 1970 of a step, 0 being the first observation
 * @property {(step: number) => string} dateAt the same, written as the series writes its dates
 */

/**
 * Finds the equal step that all dates are multiples of.
 * @param {readonly string[]} dates
 * @returns {{ axis: Axis, steps: number[] }} `steps` is the place of each observation on the axis
 * @throws BadInput for dates that are malformed, not ascending, or not equally spaced
 */
export function readAxis(dates) {
  const times = dates.map(parseDate)
  for (let i = 1; i < times.length; i++) {
    if (times[i] > times[i - 1]) continue
    const what = times[i] === times[i - 1] ? 'the same date again' : 'an earlier date'
    throw new BadInput(
      `series[${i}].date is ${dates[i]}, ${what} after ${dates[i - 1]}; give one value for each date, in ascending order`,
    )
  }
  const axis = monthAxis(times, dates) ?? evenAxis(times, dates)
  if (axis === undefined) {
    throw new BadInput(
      `the dates of the series are not equally spaced (${dates[0]}, ${dates[1]}, ${dates[2]}, ...); give a series by year, quarter, month, week, day or another equal step`,
    )
  }
  const length = axis.steps.at(-1) + 1
  if (length > MAX_STEPS)
    throw new BadInput(
      `the series spans ${length} steps with its gaps, at most ${MAX_STEPS} are allowed; give a shorter or coarser one`,
    )
  if (length > 2 * dates.length)
    throw new BadInput(
      `${length - dates.length} of ${length} ${axis.axis.frequency} values are missing, more than there are; give a more complete series`,
    )
  return axis
}

function parseDate(date, index) {
  const match = /^(\d{4})-(\d{2})(?:-(\d{2})(?:T\d{2}:\d{2}(?::\d{2}(?:\.\d{1,3})?)?Z)?)?$/.exec(date)
  const time = match === null ? Number.NaN : Date.parse(date)
  const isReal = !Number.isNaN(time) && new Date(time).toISOString().startsWith(date.slice(0, 10))
  if (isReal) return time
  throw new BadInput(
    `series[${index}].date is ${JSON.stringify(date.slice(0, 40))}; expected a date such as "1958-03-01", "1958-03" or "1958-03-01T12:00:00Z"`,
  )
}

/** Months, quarters or years: the same day of the month each time, or the last one. */
function monthAxis(times, dates) {
  const parts = times.map((time) => new Date(time))
  const isMonthEnd = parts.every((d) => new Date(d.getTime() + DAY_MS).getUTCDate() === 1)
  const rest = (d) => d.getTime() % DAY_MS
  if (!parts.every((d) => rest(d) === rest(parts[0]))) return undefined
  if (!isMonthEnd && !parts.every((d) => d.getUTCDate() === parts[0].getUTCDate())) return undefined
  const months = parts.map((d) => d.getUTCFullYear() * 12 + d.getUTCMonth())
  const step = smallestStep(months)
  if (step === undefined) return undefined
  const day = parts[0].getUTCDate()
  const timeAt = (i) => {
    const month = months[0] + i * step
    const [year, of] = [Math.floor(month / 12), month % 12]
    return (isMonthEnd ? Date.UTC(year, of + 1, 0) : Date.UTC(year, of, day)) + rest(parts[0])
  }
  const frequency = { 1: 'monthly', 3: 'quarterly', 12: 'yearly' }[step] ?? `every ${step} months`
  const period = step < 12 && 12 % step === 0 ? 12 / step : 1
  return {
    axis: { frequency, period, timeAt, dateAt: dateWriter(timeAt, dates[0]) },
    steps: months.map((m) => (m - months[0]) / step),
  }
}

/** Weeks, days, hours ... */
function evenAxis(times, dates) {
  const step = smallestStep(times)
  if (step === undefined) return undefined
  const timeAt = (i) => times[0] + i * step
  const [frequency, period] = namedSteps.get(step) ?? [
    `every ${step % 60_000 === 0 ? `${step / 60_000} minutes` : `${step / 1000} seconds`}`,
    1,
  ]
  return {
    axis: { frequency, period, timeAt, dateAt: dateWriter(timeAt, dates[0]) },
    steps: times.map((t) => (t - times[0]) / step),
  }
}

const namedSteps = new Map([
  [7 * DAY_MS, ['weekly', 1]],
  [DAY_MS, ['daily', 7]],
  [DAY_MS / 24, ['hourly', 24]],
])

/** The smallest difference, if all others are multiples of it. */
function smallestStep(places) {
  let step = Number.POSITIVE_INFINITY
  for (let i = 1; i < places.length; i++) step = Math.min(step, places[i] - places[i - 1])
  return step > 0 && places.every((place) => (place - places[0]) % step === 0) ? step : undefined
}

function dateWriter(timeAt, sample) {
  return (i) => {
    const iso = new Date(timeAt(i)).toISOString()
    if (sample.length <= 10) return iso.slice(0, sample.length)
    return `${iso.slice(0, sample.length - 1)}Z`
  }
}

/**
 * Fills gaps: a straight line across the gap, plus how far the same months of the periods before and after stand off
 * such a line of their own.
 * @param {readonly number[]} values NaN where one is missing; the first is there
 * @param {number} period
 * @returns {number[]}
 */
export function fillGaps(values, period) {
  const filled = [...values]
  for (let t = 1; t < values.length; t++) {
    if (!Number.isNaN(values[t])) continue
    const from = t - 1
    while (t < values.length && Number.isNaN(values[t])) t++
    for (let i = from + 1; i < t; i++) filled[i] = valueInGap(values, filled, from, t, i, period)
  }
  return filled
}

function valueInGap(values, filled, from, to, i, period) {
  // a gap at the end has no other side: it gets what was there one period ago, or the last value
  if (to >= values.length) return period > 1 && i >= period ? filled[i - period] : filled[from]
  const share = (i - from) / (to - from)
  const offLine = (shift) => values[i + shift] - (values[from + shift] * (1 - share) + values[to + shift] * share)
  const offs = period > 1 ? [offLine(-period), offLine(period)].filter((off) => Number.isFinite(off)) : []
  const off = offs.reduce((sum, value) => sum + value / offs.length, 0)
  return values[from] * (1 - share) + values[to] * share + off
}
