import fc from 'fast-check'
import { expect, test } from 'vitest'
import { readPlainly } from '../../src/cli/option-table.ts'
import { makeProgram, OPTIONS } from '../../src/cli/qproducer-flags.ts'
import { effort, FUZZ_TIMEOUT_MS } from './effort.ts'

const names = OPTIONS.flatMap(({ flags }) => flags.replace(/ <.*/, '').split(', '))
const name = fc.constantFrom(...names)
const value = fc.constantFrom(
  '',
  '-',
  '--',
  '-1',
  '-x',
  '--json',
  'a',
  'a=b',
  '=',
  '{"a": 1}',
  '@file',
  'help',
  '-pa',
  '1',
)
const stray = fc.constantFrom(
  '--color',
  '--color=never',
  '--help',
  '-h',
  '-V',
  '--version',
  '--no-json',
  '--jso',
  '-vp',
  '-vv',
)
const word = fc.oneof(
  { weight: 4, arbitrary: fc.tuple(name, value) },
  { weight: 2, arbitrary: fc.tuple(name, value).map(([one, other]) => [`${one}=${other}`]) },
  { weight: 1, arbitrary: fc.tuple(name, value).map(([one, other]) => [`${one}${other}`]) },
  { weight: 1, arbitrary: fc.oneof(name, value, stray).map((one) => [one]) },
)

test(
  'a command line that is read from the table is read by commander in the same way',
  () => {
    let plain = 0
    fc.assert(
      fc.property(fc.array(word, { maxLength: 5 }), (words) => {
        const args = words.flat()
        const flags = readPlainly<Record<string, unknown>>(OPTIONS, args)
        if (flags === undefined) return
        plain++
        expect({ ...makeProgram().parse(args, { from: 'user' }).opts() }).toEqual(flags)
      }),
      effort(3000),
    )
    expect(plain).toBeGreaterThan(300)
  },
  FUZZ_TIMEOUT_MS,
)

test('what is not plain is left to commander', () => {
  const args = ['--help', '-V', '--color', '--nothing', 'word', '--json=1', '-p', '-a -x', '--ttr']
  for (const line of args) expect(readPlainly(OPTIONS, line.split(' ')), line).toBeUndefined()
  expect(readPlainly(OPTIONS, ['-va', 'sleep', '--max-attempts=3', '--tag', 'a=1', '--tag', 'b=2', '-p', '-'])).toEqual(
    {
      verbose: true,
      algorithm: 'sleep',
      maxAttempts: '3',
      tag: ['a=1', 'b=2'],
      payload: '-',
    },
  )
})
