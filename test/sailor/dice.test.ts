import { expect, test } from 'vitest'
import { rollDice, SAMPLE_SEED } from '../../src/sailor/dice.ts'
import { listMischiefs } from '../../src/sailor/mischief.ts'
import { chooseMischief, readOrders } from '../../src/sailor/voyage.ts'

test('the sample seed throws 3, 2, 0, and no smaller seed does', () => {
  const throws = (seed: number) => [1, 2, 3].map((attempt) => rollDice(seed, attempt, 4)).join()
  expect(throws(SAMPLE_SEED)).toBe('3,2,0')
  for (let seed = 0; seed < SAMPLE_SEED; seed += 1) expect(throws(seed)).not.toBe('3,2,0')
})

test('the sample seed meets the infinite loop, the fault and the normal end of the ancestor', () => {
  const voyage = [1, 2, 3].map((attempt) => chooseMischief({ seed: SAMPLE_SEED }, attempt))
  expect(voyage).toEqual(['infinite-loop', 'faulty', 'normal'])
})

test.each([
  { what: 'over neighbouring seeds', roll: (n: number, sides: number) => rollDice(n, 1, sides) },
  { what: 'over the attempts of one seed', roll: (n: number, sides: number) => rollDice(7, n + 1, sides) },
  { what: 'over seeds beyond 32 bits', roll: (n: number, sides: number) => rollDice((n + 1) * 2 ** 33, 1, sides) },
])('the dice fall evenly $what', ({ roll }) => {
  for (const sides of [4, listMischiefs(true).length]) {
    const counts = new Array<number>(sides).fill(0)
    const throws = 5000 * sides
    for (let n = 0; n < throws; n += 1) counts[roll(n, sides)]! += 1
    for (const count of counts) expect(Math.abs(count / 5000 - 1)).toBeLessThan(0.08)
  }
})

test('one throw says nothing about the next', () => {
  const pairs = new Array<number>(16).fill(0)
  for (let seed = 0; seed < 80_000; seed += 1) pairs[rollDice(seed, 1, 4) * 4 + rollDice(seed, 2, 4)]! += 1
  for (const count of pairs) expect(Math.abs(count / 5000 - 1)).toBeLessThan(0.08)
})

test('a tame voyage meets only the four, a wild one meets all', () => {
  const met = (wild: boolean) => new Set(Array.from({ length: 2000 }, (_, seed) => chooseMischief({ seed, wild }, 1)))
  expect([...met(false)].sort()).toEqual(['faulty', 'infinite-loop', 'normal', 'slow'])
  expect([...met(true)].sort()).toEqual([...listMischiefs(true)].sort())
})

test('an outcome in the orders beats the dice', () => {
  expect(chooseMischief({ seed: SAMPLE_SEED, wild: true, outcome: 'half-json' }, 1)).toBe('half-json')
})

test('a payload may hold keys of others beside ours', () => {
  const text = '{"foo":"bar","23":"42","payload":null,"seed":5,"wild":true,"sleep":0.5}'
  expect(readOrders(text)).toEqual({ kind: 'orders', orders: { seed: 5, wild: true, sleep: 0.5 } })
})

test.each([
  ['seed', -1],
  ['seed', 1.5],
  ['seed', '5'],
  ['seed', null],
  ['outcome', 'slwo'],
  ['outcome', 'constructor'],
  ['wild', 'yes'],
  ['sleep', -2],
  ['sleep', '2'],
  ['megabytes', 0],
  ['megabytes', 1e9],
])('a payload with %s %j is refused by that key', (key, value) => {
  expect(readOrders(JSON.stringify({ [key]: value }))).toMatchObject({ kind: 'refused', key, value })
})

test.each(['', '{"seed":', '[1]', '"text"', 'null', '7'])('a payload that is no object is refused: %s', (text) => {
  expect(readOrders(text)).toMatchObject({ kind: 'refused', key: 'payload' })
})
