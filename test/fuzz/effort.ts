/** How long to search: FUZZ_EFFORT=20 npx vitest run test/fuzz tries twenty times as much as usual. */

import fc from 'fast-check'
import { expect } from 'vitest'

const EFFORT = Math.max(1, Number(process.env.FUZZ_EFFORT) || 1)

/** Parameters of a property that is usually tried `runs` times. A failure prints its seed and path: pass both here. */
export function effort(runs: number) {
  return { numRuns: Math.ceil(runs * EFFORT), endOnFailure: false }
}

export const FUZZ_TIMEOUT_MS = 240_000 * EFFORT

const PROTOTYPES = [Object.prototype, Array.prototype, Function.prototype, String.prototype]
const before = PROTOTYPES.map((prototype) => Reflect.ownKeys(prototype).map(String).join())

/** Whatever was read, it changed nothing that all objects have. */
export function expectCleanPrototypes(): void {
  expect(PROTOTYPES.map((prototype) => Reflect.ownKeys(prototype).map(String).join())).toEqual(before)
}

/** YAML that opens the same thing again and again, deep, long or full of itself, and closes it or not. */
export function repetitions(most: number): fc.Arbitrary<string> {
  const opening = fc.constantFrom(
    '[',
    '{',
    '{a: ',
    '- ',
    '? ',
    '&a [',
    '!!map ',
    '"',
    'a: &a\n',
    '*a ',
    '[*a,',
    '- - ',
    '\t',
    '#',
    '|\n ',
  )
  return fc
    .tuple(opening, fc.nat(most), fc.constantFrom('', ']', '}', '"'))
    .map(([open, times, close]) => `${open.repeat(times)}${close.repeat(times)}`)
}
