import { expect, test } from 'vitest'
import { formatBytes, parseBytes } from '../../src/job/bytes.ts'

test.each([
  [0, 0],
  ['1048576', 1048576],
  ['512KiB', 524_288],
  ['64 mib', 67_108_864],
  ['1GiB', 2 ** 30],
  ['2TiB', 2 ** 41],
])('a size of %j is %d bytes', (text, bytes) => {
  expect(parseBytes(text)).toBe(bytes)
})

test.each(['', 'MiB', '1.5GiB', '64MB', '1k', '-1', '0x10', 1.5, -1, Number.NaN, '99999TiB', '9'.repeat(16)])(
  'a size of %j is refused with what came and what is taken',
  (text) => {
    expect(() => parseBytes(text)).toThrow(/such as 1048576, 512KiB, 64MiB or 1GiB; this is /)
  },
)

test('a size is written in the largest unit that fits', () => {
  expect([0, 1023, 1024, 1536, 500 * 2 ** 20, 2 ** 40].map(formatBytes)).toEqual([
    '0 bytes',
    '1023 bytes',
    '1 KiB',
    '1.5 KiB',
    '500 MiB',
    '1 TiB',
  ])
})
