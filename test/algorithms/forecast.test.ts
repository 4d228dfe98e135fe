import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { runAlgorithm } from './child.ts'

const ROOT = join(import.meta.dirname, '..', '..')

async function forecast(payload: unknown) {
  const ended = await runAlgorithm('forecast', payload)
  expect(ended.stderr).not.toContain('    at ')
  expect({ code: ended.code, stderr: ended.stderr }).toMatchObject({ code: 0 })
  const svg = ended.files['plot.svg'] ?? ''
  for (const text of [ended.stdout, svg, ended.files['forecast.csv']])
    expect(text).not.toMatch(/NaN|Infinity|undefined/)
  return { ...ended, svg, result: JSON.parse(ended.stdout) }
}

function sales(n: number): number[] {
  return Array.from({ length: n }, (_, i) => 200 + 2 * i + 30 * Math.sin((i * Math.PI) / 6) + ((i * 7919) % 13))
}

describe('the sample series', () => {
  it('is the CO2 column of the package it comes from, value by value', () => {
    const rows = readFileSync(join(ROOT, 'node_modules/vega-datasets/data/co2-concentration.csv'), 'utf8')
      .trim()
      .split(/\r?\n/)
      .slice(1)
    const expected = rows.map((row) => row.split(',')).map(([date, co2]) => ({ date, value: Number(co2) }))
    const sample = JSON.parse(readFileSync(join(ROOT, 'algorithms/samples/co2.json'), 'utf8'))
    expect(expected).toHaveLength(741)
    expect(sample.series).toEqual(expected)
    expect(sample.source).toContain('Scripps')
  })

  it('has its last two years forecast far better than by the seasonal-naive way, within the stated error', async () => {
    const { result } = await forecast({ sample: 'co2', holdout: 24 })
    expect(result).toMatchObject({ n: 741, missing: 5, frequency: 'monthly', period: 12, last: '2020-04-01' })
    const { holdout } = result
    expect(holdout.n).toBe(24)
    expect(holdout.mae).toBeLessThan(1.2)
    expect(holdout.rmse).toBeLessThan(1.35)
    expect(holdout.mape).toBeLessThan(0.3)
    expect(holdout.coverage_95).toBeGreaterThanOrEqual(0.8)
    // the need: the naive way does not pass the same bound
    expect(holdout.seasonal_naive.mae).toBeGreaterThan(3.5)
  })

  it('gives dated steps with nested intervals that widen, and the same result each time', async () => {
    const [one, two] = await Promise.all([
      forecast({ sample: 'co2', horizon: 36 }),
      forecast({ sample: 'co2', horizon: 36 }),
    ])
    expect(one.stdout).toBe(two.stdout)
    const steps = one.result.forecast
    expect(steps).toHaveLength(36)
    expect(steps[0]).toMatchObject({ date: '2020-05-01', step: 1 })
    expect(steps.at(-1).date).toBe('2023-04-01')
    for (const s of steps) {
      const bounds = [s.lower_95, s.lower_80, s.mean, s.upper_80, s.upper_95]
      expect(bounds).toEqual([...bounds].sort((a, b) => a - b))
    }
    expect(steps.at(-1).upper_95 - steps.at(-1).lower_95).toBeGreaterThan(2 * (steps[0].upper_95 - steps[0].lower_95))
    const csv = one.files['forecast.csv']?.trim().split('\n') ?? []
    expect(csv[0]).toBe('date,step,mean,lower_80,upper_80,lower_95,upper_95')
    expect(csv).toHaveLength(37)
  })
})

describe('methods', () => {
  it('continues a straight line exactly', async () => {
    const { result } = await forecast({ series: Array.from({ length: 20 }, (_, i) => 3 + 2 * i), horizon: 3 })
    expect(result).toMatchObject({ method: 'holt', aicc: null })
    expect(result.forecast.map((s: { mean: number }) => s.mean)).toEqual([43, 45, 47])
  })

  it('has the variance of simple exponential smoothing: sigma² (1 + (h - 1) alpha²)', async () => {
    const { result } = await forecast({ series: sales(60), method: 'ses', levels: [95], horizon: 5 })
    const { alpha, sigma } = result.parameters
    for (const { step, upper_95, lower_95 } of result.forecast) {
      expect((upper_95 - lower_95) / 2 / 1.959964).toBeCloseTo(sigma * Math.sqrt(1 + (step - 1) * alpha ** 2), 2)
    }
  })

  it.each([
    'holt',
    'holt_damped',
    'holt_winters_additive',
    'holt_winters_additive_damped',
    'holt_winters_multiplicative',
    'holt_winters_multiplicative_damped',
  ])('runs %s when asked for it, and reports it', async (method) => {
    const { result } = await forecast({ series: sales(72), method, period: 12, horizon: 12, holdout: 12 })
    expect(result.method).toBe(method)
    if (method.startsWith('holt_winters')) expect(result.holdout.mae).toBeLessThan(result.holdout.seasonal_naive.mae)
  })

  it('takes a constant series, huge values and tiny ones', async () => {
    const [constant, huge, tiny] = await Promise.all([
      forecast({ series: Array(12).fill(5), horizon: 2, holdout: 2 }),
      forecast({ series: [1e300, 2e299, 3e299, 1e300, -1e300, 5, 6, 7e299, 1e300, 1, 1, 2], horizon: 4, holdout: 3 }),
      forecast({ series: [1e-320, 2e-320, 1e-321, 4e-320, 1e-320, 5e-320, 1e-320], horizon: 2 }),
    ])
    expect(constant.result.forecast[1]).toEqual({
      step: 2,
      mean: 5,
      lower_80: 5,
      upper_80: 5,
      lower_95: 5,
      upper_95: 5,
    })
    for (const { result } of [huge, tiny]) for (const s of result.forecast) expect(Object.values(s)).not.toContain(null)
  })
})

describe('the plot', () => {
  it('stands alone: no script, no link, and text that is escaped', async () => {
    const { svg } = await forecast({ series: sales(40), title: '</text><script>alert("1")</script>&', horizon: 5 })
    expect(svg).toMatch(/^<svg [\s\S]*<\/svg>\n$/)
    expect(svg).not.toMatch(/<script|href|onload|url\(/i)
    expect(svg).toContain('&#60;script&#62;')
    expect(svg).toContain('prefers-color-scheme: dark')
    expect(svg.match(/class="band" d=/g)).toHaveLength(2)
  })
})

describe('bad input ends at once with 65 and one line that says what was wrong', () => {
  const twelve = sales(12)
  it.each([
    ['text that is not JSON', 'nope', /not JSON/],
    ['nothing', '', /not JSON/],
    ['a list', [1, 2], /a list of 2/],
    ['an object without a series', {}, /neither "series" nor "sample"/],
    ['a series and a sample', { series: twelve, sample: 'co2' }, /both/],
    ['a series with text in it', { series: [1, 2, '3', 4, 5, 6] }, /series\[2\] is "3" \(string\)/],
    ['a series with null in it', { series: [1, 2, null, 4, 5, 6] }, /series\[2\] is null/],
    ['a number beyond all doubles', '{"series":[1,2,3,4,5,1e999]}', /beyond 1e\+300/],
    ['a short series', { series: [1, 2, 3] }, /at least 6/],
    ['too many observations', { series: Array(100_001).fill(1) }, /at most 100000/],
    ['a horizon of 0', { series: twelve, horizon: 0 }, /horizon is 0; expected a whole number from 1 to 10000/],
    ['a horizon of 10001', { series: twelve, horizon: 10_001 }, /horizon is 10001/],
    [
      'a horizon beyond the year 9999',
      { series: twelve.map((value, i) => ({ date: `${2000 + i}-01-01`, value })), horizon: 10_000 },
      /beyond the year 9999/,
    ],
    ['an unknown sample', { sample: 'nile' }, /there are: co2/],
    ['a path as sample', { sample: '../forecast/package' }, /there are: co2/],
    ['an unknown key', { series: twelve, hrizon: 3 }, /unknown key "hrizon"/],
    ['an unknown method', { series: twelve, method: 'magic' }, /expected one of auto, ses/],
    [
      'a season that the series is too short for',
      { series: twelve, period: 12, method: 'holt_winters_additive' },
      /two whole periods/,
    ],
    [
      'a multiplicative season of negative values',
      { series: sales(48).map((x) => -x), period: 12, method: 'holt_winters_multiplicative' },
      /above 0/,
    ],
    ['a date that is none', { series: twelve.map((value) => ({ date: '2020-02-30', value })) }, /expected a date/],
    [
      'dates in the wrong order',
      { series: twelve.map((value, i) => ({ date: `2020-${String(12 - i).padStart(2, '0')}-01`, value })) },
      /earlier date/,
    ],
    ['levels out of range', { series: twelve, levels: [80, 100] }, /levels is \[80,100\]/],
    ['60 KB of nested lists', '['.repeat(30_000) + ']'.repeat(30_000), /a list of 1/],
  ])('%s', async (_, payload, reason) => {
    const ended = await runAlgorithm('forecast', payload)
    expect(ended.code).toBe(65)
    expect(ended.stdout).toBe('')
    expect(ended.stderr).toMatch(reason)
    expect(ended.stderr.trim().split('\n')).toHaveLength(1)
    expect(ended.seconds).toBeLessThan(5)
    expect(Object.keys(ended.files)).toEqual(['input.json'])
  })
})
