/** The payload of a forecast job: checked whole, with its defaults. */

import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { BadInput } from './bad_input.js'
import { readAxis } from './calendar.js'
import { MODELS } from './models.js'

const SAMPLES_DIR = join(import.meta.dirname, '..', 'samples')
const MAX_POINTS = 100_000
const MIN_POINTS = 6
const MAX_HORIZON = 10_000
const LAST_TIME = Date.UTC(9999, 11, 31)
const MAX_PERIOD = 1000
const MAX_LEVELS = 5
/** Larger numbers leave no room for the bounds of a forecast. */
const LARGEST = 1e300
const KEYS = ['series', 'sample', 'horizon', 'period', 'levels', 'holdout', 'method', 'title', 'unit']

/**
 * @typedef {object} Request
 * @property {number[]} values one for each step, NaN where the series has a gap
 * @property {number} missing
 * @property {import('./calendar.js').Axis | undefined} axis undefined for a series without dates
 * @property {number} period
 * @property {number} horizon
 * @property {number[]} levels in percent, ascending
 * @property {number} holdout
 * @property {string} method
 * @property {string} title
 * @property {string | undefined} unit
 * @property {string | undefined} source
 */

/**
 * @param {string} source JSON
 * @returns {Request}
 * @throws BadInput
 */
export function parseRequest(source) {
  const payload = parsePayload(source)
  const unknown = Object.keys(payload).filter((key) => !KEYS.includes(key))
  if (unknown.length > 0)
    throw new BadInput(`unknown key ${unknown.slice(0, 5).map(quote).join(', ')}; known are ${KEYS.join(', ')}`)
  if ((payload.series === undefined) === (payload.sample === undefined)) {
    throw new BadInput(
      `the payload has ${payload.series === undefined ? 'neither' : 'both'} "series" and "sample"; give one: {"series": [1, 2, ...]} or {"sample": ${quote(sampleNames()[0] ?? 'name')}}`.replace(
        'neither "series" and',
        'neither "series" nor',
      ),
    )
  }
  const sample = payload.sample === undefined ? {} : readSample(payload.sample)
  const { values, axis, missing } = readSeries(payload.series ?? sample.series)
  const horizon = wholeNumber(payload.horizon, 'horizon', 1, MAX_HORIZON) ?? 24
  if (axis !== undefined && !(axis.timeAt(values.length + horizon) <= LAST_TIME)) {
    throw new BadInput(
      `the forecast of ${horizon} ${axis.frequency} steps goes beyond the year 9999; give a smaller horizon`,
    )
  }
  const holdout = wholeNumber(payload.holdout, 'holdout', 0, Math.max(0, values.length - MIN_POINTS)) ?? 0
  return {
    values,
    axis,
    missing,
    period: wholeNumber(payload.period, 'period', 1, MAX_PERIOD) ?? axis?.period ?? 1,
    horizon,
    levels: readLevels(payload.levels),
    holdout,
    method: readMethod(payload.method),
    title: shortText(payload.title, 'title') ?? sample.title ?? 'Forecast',
    unit: shortText(payload.unit, 'unit') ?? sample.unit,
    source: sample.source,
  }
}

function parsePayload(source) {
  let payload
  try {
    payload = JSON.parse(source)
  } catch (error) {
    throw new BadInput(
      `the payload is not JSON (${error.message.slice(0, 100)}); give an object such as {"series": [1, 2, ...]}`,
    )
  }
  if (typeof payload === 'object' && payload !== null && !Array.isArray(payload)) return payload
  throw new BadInput(`the payload is ${kindOf(payload)}; give an object such as {"series": [1, 2, ...]}`)
}

function sampleNames() {
  const files = existsSync(SAMPLES_DIR) ? readdirSync(SAMPLES_DIR) : []
  return files
    .filter((file) => /^[a-z0-9][a-z0-9_-]*\.json$/.test(file))
    .map((file) => file.slice(0, -'.json'.length))
    .sort()
}

function readSample(name) {
  const names = sampleNames()
  if (!names.includes(name))
    throw new BadInput(`sample is ${quote(name)}, which is not there; there are: ${names.join(', ')}`)
  return JSON.parse(readFileSync(join(SAMPLES_DIR, `${name}.json`), 'utf8'))
}

function readSeries(series) {
  if (!Array.isArray(series))
    throw new BadInput(
      `series is ${kindOf(series)}; give a list of numbers, or of {"date": "1958-03-01", "value": 315.7}`,
    )
  if (series.length > MAX_POINTS)
    throw new BadInput(
      `series has ${series.length} observations, at most ${MAX_POINTS} are allowed; give the last ones, or a coarser series`,
    )
  if (series.length < MIN_POINTS)
    throw new BadInput(`series has ${series.length} observations, at least ${MIN_POINTS} are needed; give a longer one`)
  if (typeof series[0] !== 'object' || series[0] === null) {
    return { values: series.map((value, i) => finiteNumber(value, `series[${i}]`)), axis: undefined, missing: 0 }
  }
  const observed = series.map((point, i) => {
    if (typeof point !== 'object' || point === null || typeof point.date !== 'string') {
      throw new BadInput(
        `series[${i}] is ${kindOf(point)}${point?.date === undefined ? '' : ` whose date is ${kindOf(point.date)}`}; expected {"date": "1958-03-01", "value": 315.7} like the first`,
      )
    }
    const unknown = Object.keys(point).find((key) => key !== 'date' && key !== 'value')
    if (unknown !== undefined)
      throw new BadInput(`series[${i}] has the unknown key ${quote(unknown)}; known are date and value`)
    return finiteNumber(point.value, `series[${i}].value`)
  })
  const { axis, steps } = readAxis(series.map((point) => point.date))
  const values = new Array(steps.at(-1) + 1).fill(Number.NaN)
  for (let i = 0; i < observed.length; i++) values[steps[i]] = observed[i]
  return { values, axis, missing: values.length - observed.length }
}

function finiteNumber(value, name) {
  if (typeof value !== 'number')
    throw new BadInput(`${name} is ${kindOf(value)}; expected a number (leave out a date that has no value)`)
  if (Math.abs(value) > LARGEST) throw new BadInput(`${name} is beyond ${LARGEST}; give the series in a larger unit`)
  return value
}

function wholeNumber(value, name, least, most) {
  if (value === undefined) return undefined
  if (Number.isInteger(value) && value >= least && value <= most) return value
  throw new BadInput(`${name} is ${quote(value)}; expected a whole number from ${least} to ${most}`)
}

function readLevels(levels) {
  if (levels === undefined) return [80, 95]
  const isGood = Array.isArray(levels) && levels.length >= 1 && levels.length <= MAX_LEVELS
  if (
    !isGood ||
    !levels.every((level) => typeof level === 'number' && level >= 1 && level <= 99.99) ||
    new Set(levels).size < levels.length
  ) {
    throw new BadInput(
      `levels is ${quote(levels)}; expected 1 to ${MAX_LEVELS} different percentages from 1 to 99.99, such as [80, 95]`,
    )
  }
  return [...levels].sort((a, b) => a - b)
}

function readMethod(method = 'auto') {
  const names = ['auto', ...MODELS.map(({ name }) => name)]
  if (names.includes(method)) return method
  throw new BadInput(`method is ${quote(method)}; expected one of ${names.join(', ')}`)
}

function shortText(value, name) {
  if (value === undefined) return undefined
  if (
    typeof value === 'string' &&
    value.length <= 120 &&
    !/[\0-\x1f\x7f\ufffe\uffff]/.test(value) &&
    value.isWellFormed()
  )
    return value
  throw new BadInput(`${name} is ${quote(value)}; expected one line of at most 120 characters`)
}

function kindOf(value) {
  if (value === null) return 'null'
  if (Array.isArray(value)) return `a list of ${value.length}`
  if (typeof value === 'object') return 'an object'
  return value === undefined ? 'missing' : `${quote(value)} (${typeof value})`
}

function quote(value) {
  const json = JSON.stringify(value) ?? String(value)
  return json.length > 60 ? `${json.slice(0, 57)}...` : json
}
