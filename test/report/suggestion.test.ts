import { expect, test } from 'vitest'
import { didYouMean, findNear } from '../../src/report/suggestion.ts'

const ALGORITHMS = ['drunken_sailor', 'forecast', 'mail', 'pi', 'sleep']

test.each([
  ['forcast', ALGORITHMS, ['forecast']],
  ['FORECAST', ALGORITHMS, ['forecast']],
  ['slepe', ALGORITHMS, ['sleep']],
  ['pie', ALGORITHMS, ['pi']],
  ['sailor', ALGORITHMS, ['drunken_sailor']],
  ['hlep', ['init', 'check', 'completion', 'help'], ['help']],
  ['BEANSTALKD_SERVERNAME', ['BEANSTALK_PORT', 'BEANSTALK_SERVER'], ['BEANSTALK_SERVER']],
  ['cat', ['cart', 'coat', 'chat', 'scat'], ['cart', 'coat', 'chat']],
  ['cat', ['cat', 'cart', 'cat'], ['cat']],
])('%s among %j is near to %j', (name, known, near) => {
  expect(findNear(name, known)).toEqual(near)
})

test.each([
  ['nope', ['ok']],
  ['x', ['pi']],
  ['', ['a', 'pi']],
  ['ab', ['pi']],
  ['weather', ALGORITHMS],
  ['f'.repeat(10_000), ['f'.repeat(10_000)]],
])('%.20s is near to none of %.40j', (name, known) => {
  expect(findNear(name, known)).toEqual([])
  expect(didYouMean(name, known)).toBe('')
})

test('the hint ends a sentence, and names up to three', () => {
  expect(didYouMean('forcast', ALGORITHMS)).toBe('; did you mean forecast?')
  expect(didYouMean('tun', ['tub', 'ton', 'run', 'turn'])).toBe('; did you mean tub, ton or run?')
})
