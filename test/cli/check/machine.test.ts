import { expect, test } from 'vitest'
import { checkClock, checkLimits } from '../../../src/cli/check/machine.ts'
import { DEFAULTS } from '../../../src/config.ts'

const CONFIG = { ...DEFAULTS, CONCURRENCY: 4 }

function limits(files: string, processes: string, core: string): string {
  return `Limit                     Soft Limit           Hard Limit           Units
Max core file size        ${core.padEnd(20)} unlimited            bytes
Max processes             ${processes.padEnd(20)} 96365                processes
Max open files            ${files.padEnd(20)} 524288               files
`
}

function levels(isRoot: boolean, text: string): Record<string, string> {
  return Object.fromEntries(checkLimits(CONFIG, isRoot, text).map(({ check, level }) => [check, level]))
}

test('limits that do are told, also where there are none', () => {
  expect(levels(false, limits('1024', '4096', '0'))).toEqual({ files: 'ok', processes: 'ok', core: 'ok' })
  expect(levels(false, limits('unlimited', 'unlimited', '0'))).toEqual({ files: 'ok', processes: 'ok', core: 'ok' })
  expect(levels(false, '')).toEqual({ files: 'ok' })
})

test('too few files for the slots are a problem, and the message says how many it takes', () => {
  // 64 of its own, 26 for each slot, 2 for each of 8 clients.
  expect(checkLimits(CONFIG, false, limits('184', '4096', '0'))[0]?.level).toBe('ok')
  expect(checkLimits(CONFIG, false, limits('183', '4096', '0'))[0]).toMatchObject({
    level: 'problem',
    exitCode: 78,
    message: expect.stringMatching(/^183 open files are too few for 4 slots.*raise the limit to 184 at least/),
  })
})

test('core files and few processes are warnings; root has any number of processes', () => {
  expect(levels(false, limits('1024', '127', 'unlimited'))).toMatchObject({ processes: 'warning', core: 'warning' })
  expect(levels(true, limits('1024', '127', '4096'))).toMatchObject({ processes: 'ok', core: 'warning' })
})

test.each<[string, number | undefined, string, RegExp]>([
  ['2001-01-01', undefined, 'problem', /before this program was made; set it, and let NTP keep it/],
  ['2027-01-01', undefined, 'ok', /there is no other clock to compare with/],
  ['2027-01-01', -1_400, 'ok', /as S3's clock says/],
  ['2027-01-01', 60_000, 'warning', /60 s behind S3's clock/],
  ['2027-01-01', -60_000, 'warning', /60 s ahead of S3's clock/],
  ['2027-01-01', 3_600_000, 'problem', /3600 s behind S3's clock, and S3 refuses/],
])('a clock that says %s while S3 is %s ms ahead is: %s', (date, aheadMs, level, message) => {
  expect(checkClock(new Date(date), aheadMs)).toMatchObject({ level, message: expect.stringMatching(message) })
})
