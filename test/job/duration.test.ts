import { describe, expect, it } from 'vitest'
import { formatDuration, parseDuration } from '../../src/job/duration.ts'

describe('a duration', () => {
  it.each([
    ['90', 90],
    [90, 90],
    ['90s', 90],
    ['5m', 300],
    ['2h', 7200],
    ['1d', 86_400],
    ['0', 0],
    [' 7s ', 7],
    ['4294967295', 4_294_967_295],
  ])('of %j is %d seconds', (text, seconds) => {
    expect(parseDuration(text)).toBe(seconds)
  })

  it.each([
    '',
    ' ',
    '5x',
    '-1',
    '1.5',
    '1h30m',
    '500ms',
    '5M',
    '0x10',
    '1e3',
    1.5,
    -1,
    Number.NaN,
    Number.POSITIVE_INFINITY,
  ])('of %j is refused with what came and what is taken', (text) => {
    expect(() => parseDuration(text)).toThrow(RangeError)
    expect(() => parseDuration(text)).toThrow(/90, 90s.*5m.*2h.*1d.*; this is /)
  })

  it('is refused when beanstalkd could not hold it', () => {
    expect(() => parseDuration('50000d')).toThrow('at most 4294967295 seconds; this is "50000d"')
  })

  it('is written in the largest unit that divides it', () => {
    expect([0, 1, 90, 300, 7200, 86_400, 86_401].map(formatDuration)).toEqual([
      '0s',
      '1s',
      '90s',
      '5m',
      '2h',
      '1d',
      '86401s',
    ])
  })

  it('is read back from its shortest form', () => {
    for (const seconds of [0, 1, 59, 60, 61, 3600, 5400, 86_400, 4_294_967_295]) {
      expect(parseDuration(formatDuration(seconds))).toBe(seconds)
    }
  })
})
